"""Rows of a table on their way from pages to files: a column may be left out while it holds nothing, and is there again in
files.

Of X's fields most posts have half. The others would be copied with every row, again and again.
"""

from collections.abc import Iterable
from functools import cache
from typing import Final

import pyarrow as pa

from schemas.curated import TABLES

PARTITIONED_BY: Final = ["date", "hour"]


@cache
def file_schema(name: str) -> pa.Schema:
    """What is in a table's Parquet files: all but the partition columns. What columns mean is said in the Delta log."""
    return pa.schema([pa.field(each.name, each.type) for each in TABLES[name] if each.name not in PARTITIONED_BY])


def united(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """The rows of all tables, in their order, with the columns that any of them has; all of `schema` if there is no row."""
    found = [rows for rows in tables if rows.num_rows]
    return pa.concat_tables(found, promote_options="default") if found else schema.empty_table()


def whole(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with the columns of `schema`. Those they lack, as rows of an older file may, are null."""
    columns = [
        rows[each.name].cast(each.type) if each.name in rows.schema.names else pa.nulls(rows.num_rows, each.type)
        for each in schema
    ]
    return pa.table(columns, schema=schema)
