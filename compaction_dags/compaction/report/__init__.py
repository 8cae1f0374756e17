"""The report on what was collected: `figures` gathers it from the tables, `page` draws it."""
