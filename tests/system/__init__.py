"""Tests that need more of a machine than a Python: PostgreSQL, root. `make test-system` runs them, `make test` does not."""
