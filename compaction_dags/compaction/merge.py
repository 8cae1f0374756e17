"""One row per key: which of several rows of the same object counts, as pure functions on Arrow tables.

The latest counts: highest (fetched_at, raw_key, record_index). For tweets the queries that found any of them are united
and the first fetch is the earliest. The same rows in any order and any grouping give the same result, so an hour that is
done again changes nothing. Of rows that are equally late the one given first counts: the same page, decoded anew.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_LATEST_FIRST = [("fetched_at", "descending"), ("raw_key", "descending"), ("record_index", "descending")]


def latest_rows(rows: pa.Table, key: str) -> pa.Table:
    """The latest row of every key, sorted by key. Rows without a key are left out."""
    order, begins = _runs(rows, key)
    return rows.take(order.filter(begins)).combine_chunks()


def merged_tweets(rows: pa.Table) -> pa.Table:
    """The latest row of every tweet id, sorted by id, with `matched_queries` united and `first_fetched_at` earliest."""
    order, begins = _runs(rows, "id")
    latest = rows.take(order.filter(begins)).combine_chunks()
    if latest.num_rows == rows.num_rows:
        return latest
    run = pc.subtract(pc.cumulative_sum(begins.cast(pa.int64())), 1)
    seen = pa.table({"run": run, "at": rows["first_fetched_at"].take(order)})
    earliest = seen.group_by("run").aggregate([("at", "min")]).sort_by("run")["at_min"]
    united = _united(run, rows["matched_queries"].take(order).combine_chunks(), latest.num_rows)
    return _replaced(_replaced(latest, "first_fetched_at", earliest), "matched_queries", united)


def _runs(rows: pa.Table, key: str) -> tuple[pa.Array, pa.Array]:
    """The order by key and the latest first, and where in it a new key begins."""
    order = pc.sort_indices(rows, sort_keys=[(key, "ascending"), *_LATEST_FIRST])  # stable
    keys = rows[key].take(order).combine_chunks().drop_null()  # nulls come last
    begins = pc.not_equal(keys.slice(1), keys.slice(0, max(len(keys) - 1, 0)))
    first = pa.array([True] if len(keys) else [], pa.bool_())
    return order.slice(0, len(keys)), pa.concat_arrays([first, begins])


def _united(run: pa.Array, lists: pa.Array, runs: int) -> pa.Array:
    """The distinct texts of each run's lists, sorted; a list a run."""
    pairs = pa.table({"run": run.take(pc.list_parent_indices(lists)), "name": pc.list_flatten(lists)})
    pairs = pairs.group_by(["run", "name"]).aggregate([]).sort_by([("run", "ascending"), ("name", "ascending")])
    sizes = np.bincount(pairs["run"].to_numpy(), minlength=runs)
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pairs["name"].combine_chunks()).cast(lists.type)


def _replaced(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), column.cast(table.schema.field(index).type))
