"""From verified pages to rows of the curated tables: fast where a page is as it should be, exact where it is not.

`decode_pages` is the way in. Every row comes from one page and says which; nothing here is deduplicated or written.
"""

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from compaction_dags.compaction.decode import exact, fast
from compaction_dags.compaction.decode.asked import Asked
from compaction_dags.compaction.decode.fast import Parser, parse_arro3, parse_pyarrow
from compaction_dags.compaction.decode.pages import Decoded, RawPage, Reject, page_batches
from compaction_dags.compaction.decode.sample import has_unknown_keys
from compaction_dags.compaction.rows import file_schema, united
from schemas.curated import DECODED

__all__ = [
    "Asked",
    "Decoded",
    "Parser",
    "RawPage",
    "Reject",
    "decode_pages",
    "page_batches",
    "parse_arro3",
    "parse_pyarrow",
]

_FEWER = 8
"""Into how many parts a batch is cut that the fast way refused: two cuts find one bad page among 64."""


def decode_pages(pages: Sequence[RawPage], parse: Parser = parse_arro3, asked: Asked | None = None) -> Decoded:
    """Decode pages of any number of microbatches. Never raises for what a page holds. `asked` is for those who decode
    one batch after the other: it learns from each what the next will most likely hold.

    One page of each microbatch, its largest, is looked through for keys without a column, and so is every page that the
    fast way refuses; a hit sends all given pages of that microbatch the exact way, which keeps such keys in `extras`.
    Memory: about six times the bytes of the bodies while it works; `page_batches` bounds them.
    """
    asked = asked or Asked()
    suspects = {page.raw_key for page in _samples(pages) if has_unknown_keys(page.body)}
    while True:
        run = _Run(parse, asked)
        run.exactly([page for page in pages if page.raw_key in suspects])
        run.fast([page for page in pages if page.raw_key not in suspects])
        if run.suspects <= suspects:
            return run.result()
        suspects |= run.suspects  # a refused page had keys without a column: its neighbours may have them too


def _samples(pages: Sequence[RawPage]) -> list[RawPage]:
    largest: dict[str, RawPage] = {}
    for page in pages:
        known = largest.get(page.raw_key)
        if known is None or len(page.body) > len(known.body):
            largest[page.raw_key] = page
    return list(largest.values())


class _Run:
    """One pass over the pages; collects what each way finds."""

    def __init__(self, parse: Parser, asked: Asked) -> None:
        self._parse = parse
        self._asked = asked
        self._tables: list[dict[str, pa.Table]] = []
        self._found = exact.Found()
        self._unknown_keys_of: dict[str, Counter[str]] = {}
        self.suspects: set[str] = set()

    def fast(self, pages: Sequence[RawPage]) -> None:
        """Decode fast, by the parser that may read the page."""
        if self._parse is not parse_arro3:
            self._fast(pages, self._parse)
            return
        safe = [fast.safe_for_arro3(page.body) for page in pages]
        self._fast([page for page, is_safe in zip(pages, safe, strict=True) if is_safe], parse_arro3)
        self._fast([page for page, is_safe in zip(pages, safe, strict=True) if not is_safe], parse_pyarrow)

    def _fast(self, pages: Sequence[RawPage], parse: Parser) -> None:
        """Decode fast; where that is refused, in ever smaller parts, and a single page exactly."""
        if not pages:
            return
        try:
            self._tables.append(fast.decode(pages, parse, self._asked))
        except fast.Unfit:
            if len(pages) == 1:
                self.exactly(pages)
                return
            size = -(-len(pages) // _FEWER)
            for start in range(0, len(pages), size):
                self._fast(pages[start : start + size], parse)

    def exactly(self, pages: Sequence[RawPage]) -> None:
        """Decode exactly, each page for itself."""
        for page in pages:
            try:
                found = exact.decode([page])
            except exact.TooDeep as error:
                self._too_deep(page, error)
                continue
            self._found.add(found)
            if found.unknown_keys:
                self._unknown_keys_of.setdefault(page.raw_key, Counter()).update(found.unknown_keys)
            if found.unknown_columns:
                self.suspects.add(page.raw_key)

    def _too_deep(self, page: RawPage, error: Exception) -> None:
        """Python cannot read the page; pyarrow steps over what is nested in keys it does not know."""
        try:
            self._tables.append(fast.decode([page], parse_pyarrow))
            reason, body = "keys_too_deep", None
        except fast.Unfit:
            reason, body = "page_too_deep", page.body
        self._found.rejects.append(
            Reject(page.raw_key, page.record_index, page.query, reason, str(error), None, body, page.received_at_us)
        )

    def result(self) -> Decoded:
        parts = [*self._tables]
        if not parts or any(self._found.rows.values()):
            parts.append(self._found.tables())
        tables = {table: united((part[table] for part in parts), file_schema(table)) for table in DECODED}
        return Decoded(
            tables, self._found.rejects, self._found.unknown_keys, self._unknown_keys_of, self._found.misfits
        )
