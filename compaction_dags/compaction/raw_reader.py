"""From the bytes of a raw microbatch to verified pages: what is whole is used, what is not is named in a reject.

Avro does not notice damage, so three things watch: the SHA-256 of the file (told, but no reason to drop its good pages),
the SHA-256 of every body, and the sync markers, from which reading goes on behind a damaged block. Of a damaged block
the records in front of the damage are used too: a sealed file is one block, and a flipped bit must not cost all of it.
"""

import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import fastavro

from compaction_dags.compaction.counts import Count, counts_of
from compaction_dags.compaction.coverage import Account, Listener
from compaction_dags.compaction.decode import RawPage, Reject
from compaction_dags.compaction.errors import UnknownFormatError
from schemas.keys import MicrobatchName
from schemas.raw import FORMAT, META_CHECKPOINT, META_FORMAT, META_SEQUENCE, META_SPOOL_ID
from schemas.records import COUNTS, SEARCH

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from backports import zstd

_SYNC: Final = 16
"""Bytes of an Avro sync marker."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_STEP: Final = 256
"""Bytes given to a decompressor at once when it has failed on the whole."""
_MOST_RECORDS: Final = 1_000_000
"""More records than any block holds: a count beyond it is damage."""


@dataclass(slots=True)
class Microbatch:
    """A raw microbatch being read. `pages` can be run through once and is read as it goes; all the counts and `rejects`
    are whole only when it is at its end.
    """

    raw_key: str
    sequence: int
    spool_id: str
    bytes: int
    """Size of the file."""
    sha256: str
    """Of the file as it is here, lower-case hex."""
    pages: Iterator[RawPage] = field(repr=False)
    """Search pages whose body is what X sent, in the order of the file."""
    rejects: list[Reject] = field(default_factory=list)
    records: int = 0
    """Records read, of all kinds."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Records that are no search page, by kind; pages of another endpoint by its name."""
    counts: list[Count] = field(default_factory=list)
    """What X counted, off its counts pages."""
    listener: Listener = field(default_factory=lambda: Listener(""), repr=False)

    @property
    def account(self) -> Account:
        """What the records tell of the collection."""
        return self.listener.account(self.sequence, self.spool_id)


def read_microbatch(
    data: bytes | Path, raw_key: str, expected_sha256: str | None = None, expected_records: int | None = None
) -> Microbatch:
    """Open a raw microbatch, given as its bytes or as a local file.

    `expected_*` is what the object's metadata say; a difference is a reject of the file, and its good pages are used all
    the same. A header that cannot be read is one too. Raises UnknownFormatError for a format this release does not know.
    """
    content = data.read_bytes() if isinstance(data, Path) else data
    sha256 = hashlib.sha256(content).hexdigest()
    sequence, spool_id = _named(raw_key)
    microbatch = Microbatch(raw_key, sequence, spool_id, len(content), sha256, pages=iter(()))
    changed = expected_sha256 is not None and expected_sha256.lower() != sha256
    if changed:
        detail = f"the file's SHA-256 is {sha256}, not {expected_sha256}; pages whose own SHA-256 holds are used"
        microbatch.rejects.append(_file_reject(raw_key, "file_sha256", detail))
    try:
        container = _Container(content)
        _check_format(container.metadata, raw_key, changed)
        microbatch.sequence = int(container.metadata.get(META_SEQUENCE, sequence))
        microbatch.spool_id = container.metadata.get(META_SPOOL_ID, spool_id)
    except UnknownFormatError:
        raise
    except Exception as error:  # noqa: BLE001 - bytes that are no Avro make fastavro raise anything at all
        microbatch.rejects.append(_file_reject(raw_key, "file_header", f"no Avro header: {_said(error)}"))
        return microbatch
    microbatch.listener = Listener(container.metadata.get(META_CHECKPOINT, ""))
    microbatch.pages = _pages(microbatch, container, expected_records)
    return microbatch


def _named(raw_key: str) -> tuple[int, str]:
    """Sequence and spool id as the key says; the header says them too, and counts for more."""
    try:
        name = MicrobatchName.parse(raw_key)
    except ValueError:
        return -1, ""
    return name.sequence, name.spool_id


def _check_format(metadata: dict[str, str], raw_key: str, changed: bool) -> None:
    written = metadata.get(META_FORMAT, "")
    if not written.isascii() or not written.isdigit():
        raise ValueError(f"{META_FORMAT} is {written!r}")
    if int(written) > int(FORMAT):
        if changed:
            raise ValueError(f"{META_FORMAT} is {written!r}, in a file that is not as it was written")
        raise UnknownFormatError(
            f"{raw_key} is written in format {written}; this release reads up to {FORMAT}: update Tweetlake"
        )


def _file_reject(raw_key: str, reason: str, detail: str) -> Reject:
    return Reject(raw_key, None, None, reason, detail, None, None)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ")


# --- records ---


def _pages(microbatch: Microbatch, container: "_Container", expected_records: int | None) -> Iterator[RawPage]:
    for index, record in container.records():
        microbatch.records += 1
        page = _page(microbatch, index, record)
        if page is not None:
            yield page
    for damage in container.damages:
        microbatch.rejects.append(_file_reject(microbatch.raw_key, "file_damaged", damage))
    if expected_records is not None and expected_records != microbatch.records:
        detail = f"{microbatch.records} records could be read, {expected_records} were written"
        microbatch.rejects.append(_file_reject(microbatch.raw_key, "file_records", detail))


def _page(microbatch: Microbatch, index: int, record: dict[str, Any]) -> RawPage | None:
    """The record as a page; None if it is none that is decoded, which is counted or rejected here."""
    kind, endpoint = record.get("kind"), record.get("endpoint")
    if kind != "page" or endpoint not in (SEARCH, COUNTS) or record.get("status") != 200:
        microbatch.skipped[str(kind) if kind != "page" else f"page {endpoint} {record.get('status')}"] += 1
        microbatch.listener.hear(record)
        return None
    received_at_us = _microseconds(record.get("received_at") or record.get("at"))
    body = record.get("body")
    query = str(record.get("query") or "")
    reason, detail = _fault(body, record.get("body_sha256"), received_at_us)
    microbatch.listener.hear(record, is_damaged=bool(reason))
    if not reason and endpoint == COUNTS:
        microbatch.skipped[f"page {endpoint} 200"] += 1
        reason, detail = _counted(microbatch, record, query)
    if reason:
        microbatch.rejects.append(Reject(microbatch.raw_key, index, query, reason, detail, None, body, received_at_us))
    if reason or endpoint == COUNTS:
        return None
    assert isinstance(body, bytes)
    assert received_at_us is not None
    return RawPage(microbatch.raw_key, index, query, received_at_us, body)


def _counted(microbatch: Microbatch, record: dict[str, Any], query: str) -> tuple[str, str]:
    """Keep what a counts page says; a reason and its detail if it says nothing."""
    try:
        microbatch.counts += counts_of(record["body"], query, record.get("received_at") or record["at"])
    except ValueError as error:
        return "page_not_counts", str(error)[:200]
    return "", ""


def _fault(body: Any, expected: Any, received_at_us: int | None) -> tuple[str, str]:
    if not isinstance(body, bytes):
        return "no_body", "the record has no body"
    found = hashlib.sha256(body).hexdigest()
    if found != expected:
        return "body_sha256", f"the body's SHA-256 is {found}, not {expected}"
    if received_at_us is None:
        return "no_time", "the record does not say when the page was received"
    return "", ""


def _microseconds(moment: Any) -> int | None:
    if isinstance(moment, datetime):
        return (moment - _EPOCH) // timedelta(microseconds=1)
    return None


# --- the Avro container ---


class _Container:
    """An Avro object container, read block by block, over damage too. The constructor raises if there is no header."""

    def __init__(self, content: bytes) -> None:
        stream = io.BytesIO(content)
        reader = fastavro.block_reader(stream)
        self.metadata: dict[str, str] = dict(reader.metadata)
        self.damages: list[str] = []
        self._schema = fastavro.parse_schema(reader.writer_schema)
        self._codec: str = reader.codec
        self._content = content
        self._start = stream.tell()
        self._sync = content[self._start - _SYNC : self._start]
        if content.find(self._sync, self._start) < 0:
            self._sync = (
                self._marker_of_first_block() or self._sync
            )  # damaged in the header: blocks end with the true one

    def _marker_of_first_block(self) -> bytes:
        try:
            _, start = _long(self._content, self._start)
            size, start = _long(self._content, start)
        except IndexError:
            return b""
        marker = self._content[start + size : start + size + _SYNC] if size >= 0 else b""
        return marker if len(marker) == _SYNC else b""

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every record that can be read, with its position in the file."""
        position = self._start
        index = 0
        while position < len(self._content):
            found = self._content.find(self._sync, position)
            end = len(self._content) if found < 0 else found
            block = _Block(self._content, position, end)
            read = 0
            for record in block.records(self._codec, self._schema):
                yield index + read, record
                read += 1
            if block.damage or found < 0:
                what = block.damage or "the file ends inside a block"
                lost = f"; {block.count - read} records are lost" if block.count > read else ""
                self.damages.append(f"bytes {position} to {end}: {what}{lost}")
            index += max(read, block.count)
            position = end + _SYNC


class _Block:
    """What lies between two sync markers: a count, a size and that many bytes of records, compressed."""

    def __init__(self, content: bytes, start: int, end: int) -> None:
        self.damage = ""
        self.count = 0
        try:
            self.count, start = _long(content, start)
            size, start = _long(content, start)
        except IndexError:
            self.damage = "no block begins here"
            size = 0
        if not 0 <= self.count <= _MOST_RECORDS:
            self.damage, self.count = f"a block of {self.count} records", 0
        elif size != end - start:
            self.damage = f"a block of {size} bytes is {max(end - start, 0)} bytes long"
        self._payload = content[start:end]

    def records(self, codec: str, schema: Any) -> Iterator[dict[str, Any]]:
        """The records of the block, up to where it is damaged."""
        plain, damage = _decompressed(self._payload, codec)
        self.damage = self.damage or damage
        stream = io.BytesIO(plain)
        expected = self.count or (_MOST_RECORDS if self.damage else 0)
        for _ in range(expected):
            if self.damage and stream.tell() == len(plain):
                return
            try:
                record = fastavro.schemaless_reader(stream, schema, None)
            except Exception as error:  # noqa: BLE001 - damaged bytes make fastavro raise anything at all
                self.damage = self.damage or f"a record cannot be read: {_said(error)}"
                return
            if isinstance(record, dict):
                yield record
        if stream.tell() != len(plain):
            self.damage = self.damage or f"{len(plain) - stream.tell()} bytes more than its {self.count} records"


def _long(content: bytes, position: int) -> tuple[int, int]:
    """An Avro long (zigzag, 7 bits a byte, low bits first) and the position behind it. Raises IndexError at the end."""
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), position
        if shift > 63:
            return -1, position


def _decompressed(payload: bytes, codec: str) -> tuple[bytes, str]:
    """The plain bytes, as far as they can be had, and what stopped it."""
    if codec == "null":
        return payload, ""
    for step in (max(len(payload), 1), _STEP):
        plain, damage = _inflated(payload, codec, step)
        if not damage:
            break
    return plain, damage  # in small steps the most can be had in front of the damage


def _inflated(payload: bytes, codec: str, step: int) -> tuple[bytes, str]:
    if codec == "deflate":
        decompressor: Any = zlib.decompressobj(-zlib.MAX_WBITS)
    elif codec == "zstandard":
        decompressor = zstd.ZstdDecompressor()
    else:
        return b"", f"unknown codec {codec}"
    plain: list[bytes] = []
    try:
        plain.extend(decompressor.decompress(payload[start : start + step]) for start in range(0, len(payload), step))
    except (zlib.error, zstd.ZstdError, EOFError) as error:
        damage = f"its {codec} data is broken: {_said(error)}"
    else:
        damage = "" if decompressor.eof else f"its {codec} data has no end"
    return b"".join(plain), damage  # which copies nothing if it is one piece
