"""The contract between the two programs: settings file, raw record, key grammar, snowflake ids, curated columns."""
