"""What watches Tweetlake: rules for Prometheus, an example of its settings, a dashboard for Grafana."""
