"""One microbatch as a file: how it is written, read and sealed, and what a torn or damaged one still holds.

- While open it has one Avro block a record, each fdatasynced: a torn tail costs no whole record.
- Sealing re-blocks the records into large blocks (zstandard finds repetition across pages) and describes the file in a
  sidecar {sha256, bytes, records, ...}.
- Avro does not notice damage, so a page's SHA-256 is compared whenever a file is salvaged or sealed.
- A file keeps the schema it was written with, so that sealing by an older program drops no field of a newer one.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Self, cast

import fastavro
from fastavro.write import Writer

from ingester.disk import fsync
from ingester.errors import NewerFormat, SpoolBroken, SpoolDamaged
from ingester.ports import Destination
from schemas import raw
from schemas import state as states
from schemas.keys import MicrobatchName
from schemas.records import RawRecord
from schemas.state import State

OPEN_LEVEL = 1
"""Compression level of an open file, for either codec: a third less CPU than the default for a few percent more bytes,
which sealing writes anew.
"""
SEALED_LEVELS = {"zstandard": 11}
"""Compression levels of a sealed file, where it is not the codec's default: a fifth fewer bytes to keep for good, for 4 ms
of CPU a page, of which X gives one every two seconds at most.
"""
SEALED_BLOCK_BYTES = 4_000_000
"""Uncompressed bytes of a sealed block: bounds the memory of sealing and reading, large enough for zstandard."""

_SCHEMA = fastavro.parse_schema(raw.load_schema())
_FIELDS = {field["name"] for field in raw.load_schema()["fields"]} - raw.ADDED_SINCE
"""What every file of this format has. A flipped bit in a field's name would make a new field of it."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed microbatch as its sidecar describes it."""

    name: MicrobatchName
    sha256: str
    bytes: int
    records: int
    pages: int
    min_id: int | None
    max_id: int | None
    destination: Destination | None = None
    """None in an older file: then the settings say where it belongs."""

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "name": str(self.name)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What a newer program wrote beside what is known here is ignored. Raises SpoolDamaged when it is no sidecar."""
        try:
            found = json.loads(text)
            known = {field.name: found[field.name] for field in fields(cls) if field.name in found}
            belongs = found.get("destination")
            return cls(
                **{
                    **known,
                    "name": MicrobatchName.parse(found["name"]),
                    "destination": Destination.from_dict(belongs) if belongs else None,
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SpoolDamaged(f"not a sidecar: {error}") from error

    @property
    def metadata(self) -> dict[str, str]:
        """What travels with the object to S3."""
        return {
            "sha256": self.sha256,
            "records": str(self.records),
            "sequence": str(self.name.sequence),
            "spool-id": self.name.spool_id,
            "format": raw.FORMAT,
            "min-id": "" if self.min_id is None else str(self.min_id),
            "max-id": "" if self.max_id is None else str(self.max_id),
        }


class OpenMicrobatch:
    """The file being written. Raises OSError, and SpoolBroken when an fsync fails."""

    def __init__(
        self, path: Path, name: MicrobatchName, codec: str, checkpoint: State, destination: Destination | None
    ) -> None:
        metadata = {
            raw.META_FORMAT: raw.FORMAT,
            raw.META_SEQUENCE: str(name.sequence),
            raw.META_SPOOL_ID: name.spool_id,
            raw.META_CHECKPOINT: states.to_checkpoint(checkpoint),
        }
        if destination is not None:
            metadata[raw.META_DESTINATION] = json.dumps(asdict(destination))
        self.path = path
        self.name = name
        self.size = 0
        self._memory = io.BytesIO()
        self._writer = Writer(
            self._memory, _SCHEMA, codec=codec, compression_level=OPEN_LEVEL, metadata=metadata, sync_interval=1
        )
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            self._write(self._take())
        except OSError:
            os.close(self._descriptor)
            path.unlink()  # a name is used once it holds a header; the next try may have it
            raise

    def append(self, record: RawRecord, on_step: Callable[[str], None]) -> None:
        self._writer.write(cast("dict[str, Any]", record))
        self._write(self._take(), on_step)

    def _take(self) -> bytes:
        block = self._memory.getvalue()
        self._memory.seek(0)
        self._memory.truncate()
        return block

    def _write(self, block: bytes, on_step: Callable[[str], None] = lambda _step: None) -> None:
        try:
            view = memoryview(block)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            # Part of the block may be there: cut it off, so that the file ends with a whole one.
            os.ftruncate(self._descriptor, self.size)
            os.lseek(self._descriptor, self.size, os.SEEK_SET)
            raise
        on_step("record_written")
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise SpoolBroken(f"fsync of {self.path} failed: {error.strerror}") from error
        self.size += len(block)
        on_step("record_durable")

    def close(self) -> None:
        os.close(self._descriptor)


# Reading.


def load_state(file: IO[bytes], name: str) -> State:
    """The state a microbatch leads to: its header's checkpoint and its records. Raises SpoolDamaged or NewerFormat."""
    reader = _reader(file, name)
    try:
        return states.fold(_checkpoint(reader), cast("Iterable[RawRecord]", reader))
    except Exception as error:  # fastavro raises whatever its codecs and struct raise on damaged bytes
        raise SpoolDamaged(f"cannot be read: {error!r}") from error


def load_checkpoint(file: IO[bytes], name: str) -> State:
    """The state a microbatch was opened with. Raises SpoolDamaged or NewerFormat."""
    try:
        return _checkpoint(_reader(file, name))
    except (KeyError, ValueError) as error:
        raise SpoolDamaged(f"the header cannot be read: {error!r}") from error


def refuse_newer(path: Path) -> None:
    """Raises NewerFormat when a newer program wrote the file. A header that cannot be read says nothing of it."""
    with path.open("rb") as file:
        try:
            _reader(file, str(path))
        except SpoolDamaged:
            return


def _reader(file: IO[bytes], name: str) -> Any:
    try:
        reader = _with_our_fields(fastavro.reader(file))
        format_, known = int(reader.metadata[raw.META_FORMAT]), int(raw.FORMAT)
        if format_ <= known:
            format_, known = json.loads(reader.metadata[raw.META_CHECKPOINT])["format"], states.CHECKPOINT_FORMAT
        newer = format_ > known
    except Exception as error:  # as above
        raise SpoolDamaged(f"the header cannot be read: {error!r}") from error
    if newer:
        raise NewerFormat(
            f"{name} was written by a newer tweetlake (format {format_}, this one knows {known}): start that one again; "
            "docs/runbook.md says what else can be done"
        )
    return reader


def _with_our_fields(reader: Any) -> Any:
    """The reader of a file that has every field there must be. Raises SpoolDamaged."""
    if missing := _FIELDS - {field["name"] for field in reader.writer_schema["fields"]}:
        raise SpoolDamaged(f"the header names no field {', '.join(sorted(missing))}")
    return reader


def _checkpoint(reader: Any) -> State:
    return states.from_checkpoint(reader.metadata[raw.META_CHECKPOINT])


def read_records(path: Path) -> Iterator[RawRecord]:
    """Every whole record of a microbatch, up to the first damaged one.

    What follows a damaged record is left out too: the fold relies on pages in their order, and what is not in the
    state is asked again.
    """
    with path.open("rb") as file:
        try:
            for record in _with_our_fields(fastavro.reader(file)):
                if not _body_is_whole(record):
                    return
                yield cast("RawRecord", record)
        except Exception:  # noqa: BLE001 - a torn tail shows as any error of fastavro, its codecs or struct
            return


def holds_all_of(content: bytes, path: Path) -> bool:
    """Whether the content of another microbatch begins with every record of this one, in their order."""
    with path.open("rb") as file:
        try:
            others = fastavro.reader(io.BytesIO(content))
            return all(record == next(others, None) for record in fastavro.reader(file))
        except Exception:  # noqa: BLE001 - what cannot be read is not the same
            return False


def whole_part(path: Path) -> tuple[int, int]:
    """How many whole records a file has and where they end. Raises SpoolDamaged when its header cannot be read."""
    with path.open("rb") as file:
        try:
            blocks = iter(_with_our_fields(fastavro.block_reader(file)))
        except Exception as error:  # as above
            raise SpoolDamaged(f"the header cannot be read: {error!r}") from error
        records, end = 0, file.tell()
        try:
            for block in blocks:
                if not all(_body_is_whole(record) for record in block):
                    break
                records, end = records + block.num_records, file.tell()
        except Exception:  # noqa: BLE001 - as above
            return records, end
        return records, end


def _body_is_whole(record: Any) -> bool:
    body = record.get("body")
    return body is None or hashlib.sha256(body).hexdigest() == record.get("body_sha256")


# Sealing.


def write_sealed(source: Path, target: Path, name: MicrobatchName, codec: str) -> Sealed:
    """Write the whole records of an open file as a sealed one, fsynced. Raises SpoolDamaged, OSError or SpoolBroken."""
    with source.open("rb") as file:
        reader = _with_our_fields(fastavro.reader(file))
        metadata = {key: value for key, value in reader.metadata.items() if key.startswith("tweetlake.")}
        schema = reader.writer_schema
    destination = _destination(metadata)
    records = pages = 0
    ids: list[int] = []
    with target.open("wb") as file:
        writer = Writer(
            file,
            schema,
            codec=codec,
            compression_level=SEALED_LEVELS.get(codec),
            metadata=metadata,
            sync_interval=SEALED_BLOCK_BYTES,
        )
        for record in read_records(source):
            writer.write(cast("dict[str, Any]", record))
            records += 1
            pages += record["kind"] == "page"
            ids += [number for number in (record.get("oldest_id"), record.get("newest_id")) if number is not None]
        writer.flush()
        fsync(file.fileno(), target)
    return Sealed(
        name=name,
        sha256=hash_file(target),
        bytes=target.stat().st_size,
        records=records,
        pages=pages,
        min_id=min(ids, default=None),
        max_id=max(ids, default=None),
        destination=destination,
    )


def _destination(metadata: Mapping[str, str]) -> Destination | None:
    if raw.META_DESTINATION not in metadata:
        return None
    try:
        return Destination.from_dict(json.loads(metadata[raw.META_DESTINATION]))
    except (ValueError, KeyError, TypeError) as error:
        raise SpoolDamaged(f"the header does not say where it belongs: {error!r}") from error


def sidecar(path: Path) -> Path:
    """Where a sealed file is described."""
    return path.with_name(f"{path.name}.json")


def read_sidecar(path: Path) -> Sealed:
    """What the sidecar of a sealed file says. Raises SpoolDamaged when it is missing or no sidecar."""
    try:
        return Sealed.from_json(sidecar(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SpoolDamaged(f"its sidecar cannot be read: {reason}") from error


def check(path: Path) -> Sealed:
    """Compare a sealed file with its sidecar. Raises SpoolDamaged when it is not what was sealed."""
    sealed = read_sidecar(path)
    if hash_file(path) != sealed.sha256:
        raise SpoolDamaged("its SHA-256 is not the one it was sealed with")
    return sealed


def check_whole(path: Path) -> Sealed:
    """`check`, and read it to its end, comparing every page's SHA-256. Raises SpoolDamaged."""
    sealed = check(path)
    records, _ = whole_part(path)
    if records != sealed.records:
        raise SpoolDamaged(f"{records} of its {sealed.records} records can be read")
    return sealed


def hash_file(path: Path) -> str:
    """SHA-256 of a file, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
