"""One row per key: which of several rows of the same object counts, as pure functions on Arrow tables.

The latest counts: highest (fetched_at, raw_key, record_index). For tweets the queries that found any of them are united
and the first fetch is the earliest. The same rows in any order and any grouping give the same result, so an hour that is
done again changes nothing.
"""

import pyarrow as pa
import pyarrow.compute as pc

LATEST_FIRST = [("fetched_at", "descending"), ("raw_key", "descending"), ("record_index", "descending")]


def latest_rows(rows: pa.Table, key: str) -> pa.Table:
    """The latest row of every key, sorted by key. Rows without a key are left out."""
    ordered = rows.take(pc.sort_indices(rows, sort_keys=[(key, "ascending"), *LATEST_FIRST]))
    ordered = ordered.filter(pc.is_valid(ordered[key]))
    return ordered.filter(_begins_run(ordered[key]))


def merged_tweets(rows: pa.Table) -> pa.Table:
    """The latest row of every tweet id, sorted by id, with `matched_queries` united and `first_fetched_at` earliest."""
    ordered = rows.take(pc.sort_indices(rows, sort_keys=[("id", "ascending"), *LATEST_FIRST])).combine_chunks()
    begins = _begins_run(ordered["id"])
    if pc.all(begins).as_py() is not False:  # also for no rows at all
        return ordered
    latest = ordered.filter(begins)
    run = _run_numbers(begins)
    earliest = pa.table({"run": run, "at": ordered["first_fetched_at"]}).group_by("run").aggregate([("at", "min")])
    earliest = earliest.sort_by("run")["at_min"]
    united = _united(run, ordered["matched_queries"].combine_chunks(), latest.num_rows)
    return _replaced(_replaced(latest, "first_fetched_at", earliest), "matched_queries", united)


def _united(run: pa.Array, lists: pa.Array, runs: int) -> pa.Array:
    """The distinct texts of each run's lists, sorted; a list a run."""
    names = pc.list_flatten(lists)
    pairs = pa.table({"run": run.take(pc.list_parent_indices(lists)), "name": names})
    pairs = pairs.group_by(["run", "name"]).aggregate([]).sort_by([("run", "ascending"), ("name", "ascending")])
    counts = pairs["run"].combine_chunks().value_counts()
    sizes = pa.array([0] * runs, pa.int64()).to_numpy(zero_copy_only=False).copy()
    sizes[counts.field("values").to_numpy()] = counts.field("counts").to_numpy()
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(pa.array(sizes)).cast(pa.int32())])
    return pa.ListArray.from_arrays(offsets, pairs["name"].combine_chunks()).cast(lists.type)


def _begins_run(keys: pa.ChunkedArray) -> pa.Array:
    """True where a sorted column's value differs from the one before it."""
    whole = keys.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], keys.type)
    if len(whole) == 0:
        return pa.array([], pa.bool_())
    differs = pc.not_equal(whole.slice(1), whole.slice(0, len(whole) - 1))
    return pa.concat_arrays([pa.array([True]), differs])


def _run_numbers(begins: pa.Array) -> pa.Array:
    return pc.subtract(pc.cumulative_sum(begins.cast(pa.int64())), 1)


def _replaced(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), column.cast(table.schema.field(index).type))
