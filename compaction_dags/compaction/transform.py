"""The user's own step: a function on a pandas DataFrame of new tweets, loaded by name, checked going in and coming out.

Columns travel as pandas ArrowDtype, so nested values, int64 ids and nulls come back as they went.
"""

import hashlib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from compaction_dags.compaction.errors import TransformError
from compaction_dags.compaction.memory import knows_pandas

if TYPE_CHECKING:
    import pandas as pd

Function = Callable[["pd.DataFrame"], "pd.DataFrame"]

_KEPT = ("id", "raw_key", "record_index", "fetched_at", "first_fetched_at", "matched_queries")
"""Columns that merging relies on; a function may read them and leaves them as they are."""


@dataclass(frozen=True, slots=True)
class Transform:
    """A loaded function: what it is called, which version of it, and how to apply it."""

    name: str
    version: str
    """First 16 digits of the SHA-256 over its module's source: a change anywhere in that file is a new version."""
    function: Function

    def apply(self, rows: pa.Table) -> pa.Table:
        """New rows in, the rows to keep out, in the same schema, sorted by id. Called for a part of an hour at a time.

        Raises TransformError naming the function and what is wrong with what it returned.
        """
        if rows.num_rows == 0:
            return rows
        import pandas as pd

        try:
            returned: Any = self.function(rows.to_pandas(types_mapper=pd.ArrowDtype))
        except (Exception, SystemExit) as error:
            raise TransformError(f"transform.function {self.name} failed: {type(error).__name__}: {error}") from error
        if not isinstance(returned, pd.DataFrame):
            raise TransformError(f"transform.function {self.name} returned {type(returned).__name__}, not a DataFrame")
        return self._checked(returned, rows)

    def _checked(self, returned: "pd.DataFrame", rows: pa.Table) -> pa.Table:
        lost = [name for name in rows.schema.names if name not in returned.columns]
        extra = [str(name) for name in returned.columns if name not in rows.schema.names]
        twice = [str(name) for name in returned.columns[returned.columns.duplicated()]]
        if lost or extra or twice:
            raise TransformError(
                f"transform.function {self.name} must return the columns it got"
                + (f"; missing: {', '.join(lost)}" if lost else "")
                + (f"; not known to the table: {', '.join(extra)}" if extra else "")
                + (f"; there twice: {', '.join(twice)}" if twice else "")
            )
        columns = []
        for column in rows.schema:
            try:
                columns.append(pa.array(returned[column.name], type=column.type, from_pandas=True))
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise TransformError(
                    f"transform.function {self.name}: column {column.name} cannot be read as {column.type}: {error}"
                ) from error
        kept = pa.table([_plain(column) for column in columns], schema=rows.schema)
        self._check_rows(kept, rows)
        return kept.sort_by("id")

    def _check_rows(self, kept: pa.Table, rows: pa.Table) -> None:
        if len(pc.unique(kept["id"])) != kept.num_rows:
            raise TransformError(f"transform.function {self.name} returned an id twice; it may drop rows, not add any")
        found = pc.index_in(kept["id"], value_set=rows["id"].combine_chunks())
        if found.null_count:
            raise TransformError(f"transform.function {self.name} returned an id that it was not given")
        given = rows.take(found)
        for name in _KEPT:
            if not kept[name].combine_chunks().equals(given[name].combine_chunks()):
                raise TransformError(f"transform.function {self.name} changed the column {name}, which merging needs")


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def load(name: str) -> Transform | None:
    """The function that `transform.function` names; None for an empty name. Raises TransformError."""
    if not name:
        return None
    if not knows_pandas():
        raise TransformError(f"transform.function {name}: this process was set up for none; use another process")
    module_name, function_name = name.split(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script is no module: importing it runs it, up to its sys.exit()
        raise TransformError(
            f"transform.function {name}: module {module_name} cannot be imported: {error}; "
            "install it where compaction runs, or put its folder on PYTHONPATH"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise TransformError(f"transform.function {name}: {module_name} has no function {function_name}")
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        source = repr(function)
    return Transform(name, hashlib.sha256(f"{name}\n{source}".encode()).hexdigest()[:16], function)
