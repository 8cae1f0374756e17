"""The work of compaction: raw microbatches to curated Delta tables, with or without Airflow."""

import os

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # pyarrow looks once, when it is imported; see memory.py
