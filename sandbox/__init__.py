"""A whole world on one machine: a simulated X API, a real S3 server and the demo; for tests and first steps."""
