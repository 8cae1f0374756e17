"""The work of compaction: raw microbatches to curated Delta tables, with or without Airflow."""
