"""The durable local queue of microbatches, and the only file that writes to the spool folder.

Constraints, before any code:
- Folder = state: `open/` (being written, at most one), `sealed/` (waiting for S3), `shipped/` (the newest one that S3
  has, kept so that a start needs no S3), `quarantine/` (set aside for a person; never deleted by itself).
- A record is durable when `append` returns: one Avro block a record while open, fdatasync after each.
- Sealing re-blocks the records into large blocks (zstandard finds repetition across pages), writes beside, fsyncs,
  writes the sidecar {sha256, bytes, records, ...}, fsyncs, renames, fsyncs the folder. After it nothing changes.
- A name is given once, at opening. The sequence in it is the only order.
- Everything here blocks: callers run it in a thread. One writer at a time; a lock on the folder keeps processes apart.
- An error of fsync ends the process: after it the kernel may have dropped what it could not write, and asking again on
  the same descriptor can report success for lost data.
- Avro does not notice damage, so a page's SHA-256 is compared whenever a file is salvaged or sealed.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

import fastavro
from fastavro.write import Writer

from ingester import state as states
from ingester.errors import SpoolBroken, SpoolDamaged, SpoolFull, SpoolLocked
from ingester.model import RawRecord
from ingester.state import State
from schemas import raw
from schemas.keys import MicrobatchName

SEALED_BLOCK_BYTES = 4_000_000
"""Uncompressed bytes of a sealed block: bounds the memory of sealing and reading, large enough for zstandard."""

FOLDERS = ("open", "sealed", "shipped", "quarantine")
"""Folder = state."""

_SCHEMA = fastavro.parse_schema(raw.load_schema())


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

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "name": str(self.name)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises SpoolDamaged when the text is no sidecar."""
        try:
            found = json.loads(text)
            return cls(**{**found, "name": MicrobatchName.parse(found["name"])})
        except (ValueError, TypeError, KeyError) as error:
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


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What a start found in `open/` and sealed."""

    sealed: Sealed
    lost_bytes: int
    """Bytes of a torn last record; it was never reported as durable."""


@dataclass(frozen=True, slots=True)
class Found:
    """The state that a microbatch leads to."""

    name: MicrobatchName
    state: State


class Spool:
    """One spool folder. Call `acquire` first; every method blocks."""

    def __init__(
        self,
        directory: Path,
        *,
        codec: str = "zstandard",
        new_id: Callable[[], str] = lambda: secrets.token_hex(4),
        on_step: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self._directory = directory
        self._codec = codec
        self._new_id = new_id
        self._on_step = on_step
        self._lock: IO[str] | None = None
        self._open: _OpenMicrobatch | None = None
        self.spool_id = ""

    # Taking and leaving the folder.

    def acquire(self) -> None:
        """Make the folder, take its lock, learn its id. Raises SpoolLocked or SpoolBroken."""
        try:
            for folder in FOLDERS:
                (self._directory / folder).mkdir(parents=True, exist_ok=True)
            self._lock = (self._directory / "lock").open("a")
        except OSError as error:
            raise SpoolBroken(f"spool.directory {self._directory} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise SpoolLocked(f"another process uses the spool {self._directory}; stop it first") from error
        id_file = self._directory / "spool-id"
        if not id_file.exists():
            _write_durably(id_file, self._new_id().encode())
        self.spool_id = id_file.read_text().strip()

    def release(self) -> None:
        if self._open is not None:
            self._open.close()
        if self._lock is not None:
            self._lock.close()

    def recover(self) -> list[Salvaged]:
        """Finish what a crash interrupted: nothing is left in `open/`, nothing half-written in `sealed/`."""
        for leftover in (self._directory / "sealed").glob(".*.tmp"):
            leftover.unlink()
        salvaged = []
        for path in sorted((self._directory / "open").iterdir()):
            sealed_already = self._path("sealed", path.name).exists() or self._path("shipped", path.name).exists()
            if sealed_already or path.stat().st_size == 0:
                path.unlink()
            elif (found := self._salvage(path)) is not None:
                salvaged.append(found)
        _fsync_folder(self._directory / "open")
        for sidecar in (self._directory / "sealed").glob("*.json"):
            if not sidecar.with_suffix("").exists():  # written just before a crash; its microbatch was sealed anew
                sidecar.unlink()
        return salvaged

    def _salvage(self, path: Path) -> Salvaged | None:
        try:
            records, end = _whole_part(path)
        except SpoolDamaged as error:
            # Not deleted: a torn header holds nothing, but a damaged one may have records behind it.
            self._set_aside(path, str(error))
            return None
        if records == 0:
            path.unlink()
            return None
        lost = path.stat().st_size - end
        return Salvaged(self._seal_file(path), lost_bytes=lost)

    # Writing.

    @property
    def open_name(self) -> MicrobatchName | None:
        return self._open.name if self._open else None

    @property
    def open_bytes(self) -> int:
        return self._open.size if self._open else 0

    def open_microbatch(self, name: MicrobatchName, checkpoint: State) -> None:
        """Begin a microbatch whose header is a checkpoint. Raises SpoolFull or SpoolBroken."""
        metadata = {
            raw.META_FORMAT: raw.FORMAT,
            raw.META_SEQUENCE: str(name.sequence),
            raw.META_SPOOL_ID: name.spool_id,
            raw.META_CHECKPOINT: states.to_checkpoint(checkpoint),
        }
        path = self._path("open", str(name))
        with _disk_errors(path):
            self._open = _OpenMicrobatch(path, name, self._codec, metadata)
            _fsync_folder(path.parent)
        self._on_step("opened")

    def append(self, record: RawRecord) -> None:
        """Make a record durable. Raises SpoolFull (nothing was written) or SpoolBroken."""
        if self._open is None:
            raise SpoolBroken("no microbatch is open")
        with _disk_errors(self._open.path):
            self._open.append(record, self._on_step)

    def seal(self) -> Sealed | None:
        """Close the open microbatch for ever. None if there is none. Raises SpoolFull (it stays open) or SpoolBroken."""
        if self._open is None:
            return None
        sealed = self._seal_file(self._open.path)
        self._open.close()
        self._open = None
        return sealed

    def _seal_file(self, path: Path) -> Sealed:
        name = MicrobatchName.parse(path.name)
        target = self._path("sealed", str(name))
        beside = target.with_name(f".{target.name}.tmp")
        try:
            with _disk_errors(target):
                sealed = _write_sealed(path, beside, name, self._codec)
                self._on_step("sealed_file_written")
                _write_durably(_sidecar(target), sealed.to_json().encode())
                self._on_step("sidecar_written")
                beside.rename(target)
                self._on_step("sealed_file_renamed")
                _fsync_folder(target.parent)
        except SpoolFull:
            beside.unlink(missing_ok=True)
            raise
        self._on_step("sealed")
        path.unlink()
        _fsync_folder(path.parent)
        self._on_step("open_file_gone")
        return sealed

    # Shipping.

    def waiting(self) -> list[MicrobatchName]:
        """Sealed microbatches that S3 does not have yet, by sequence."""
        return sorted(self.names("sealed"))

    def sealed_file(self, name: MicrobatchName) -> Path:
        return self._path("sealed", str(name))

    def describe(self, name: MicrobatchName, folder: str = "sealed") -> Sealed:
        """Read a sealed file's sidecar. Raises SpoolDamaged when it is missing or no sidecar."""
        try:
            return Sealed.from_json(_sidecar(self._path(folder, str(name))).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SpoolDamaged(f"sidecar of {name} cannot be read: {error}") from error

    def verify(self, sealed: Sealed) -> bool:
        """Whether a sealed file still holds the bytes that were sealed."""
        return hash_file(self.sealed_file(sealed.name)) == sealed.sha256

    def forget(self, name: MicrobatchName) -> None:
        """S3 has it: keep only the newest such file. Losing power in between costs one more, identical PUT."""
        source, target = self.sealed_file(name), self._path("shipped", str(name))
        _sidecar(source).rename(_sidecar(target))
        source.rename(target)
        self._on_step("shipped_file_moved")
        for older in self.names("shipped"):
            if older.sequence < name.sequence:
                self._path("shipped", str(older)).unlink(missing_ok=True)
                _sidecar(self._path("shipped", str(older))).unlink(missing_ok=True)
        self._on_step("older_files_gone")

    def set_aside(self, name: MicrobatchName, reason: str) -> None:
        """Move a sealed file to quarantine with the reason beside it."""
        self._set_aside(self.sealed_file(name), reason)

    def _set_aside(self, source: Path, reason: str) -> None:
        target = self._path("quarantine", source.name)
        _write_durably(target.with_name(f"{target.name}.reason"), reason.encode())
        if _sidecar(source).exists():
            _sidecar(source).rename(_sidecar(target))
        source.rename(target)
        _fsync_folder(target.parent)

    # Looking.

    def newest(self, on_unreadable: Callable[[str, str], None]) -> Found | None:
        """The state that the newest readable microbatch leads to. Unreadable ones are told and passed over."""
        names = sorted({*self.names("sealed"), *self.names("shipped")}, reverse=True)
        for name in names:
            path = next(p for f in ("sealed", "shipped") if (p := self._path(f, str(name))).exists())
            try:
                _check(path)
                with path.open("rb") as file:
                    return Found(name, load_state(file))
            except (SpoolDamaged, OSError) as error:
                on_unreadable(str(name), str(error))
        return None

    def all_names(self) -> list[MicrobatchName]:
        """Every name the spool has used and still knows."""
        return [name for folder in FOLDERS for name in self.names(folder)]

    def count(self, folder: str) -> int:
        return len(self.names(folder))

    def used_bytes(self) -> int:
        """Bytes of everything in the spool."""
        total = 0
        for folder in FOLDERS:
            with os.scandir(self._directory / folder) as entries:
                for entry in entries:
                    try:
                        total += entry.stat().st_size
                    except FileNotFoundError:
                        continue
        return total

    def free_bytes(self) -> int:
        """What the disk has left for this user."""
        return shutil.disk_usage(self._directory).free

    def file(self, name: MicrobatchName, folder: str) -> Path:
        """Where a microbatch lies, or would."""
        return self._path(folder, str(name))

    def _path(self, folder: str, name: str) -> Path:
        return self._directory / folder / name

    def names(self, folder: str) -> list[MicrobatchName]:
        """The microbatches of one folder, in no order."""
        names = []
        for entry in os.listdir(self._directory / folder):  # noqa: PTH208 - no stat per file with 10,000 waiting
            try:
                names.append(MicrobatchName.parse(entry))
            except ValueError:
                continue
        return names


class _OpenMicrobatch:
    """The file being written: one Avro block a record, so that a torn tail costs no whole record."""

    def __init__(self, path: Path, name: MicrobatchName, codec: str, metadata: dict[str, str]) -> None:
        self.path = path
        self.name = name
        self._memory = io.BytesIO()
        self._writer = Writer(self._memory, _SCHEMA, codec=codec, metadata=metadata, sync_interval=1)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self.size = 0
        try:
            self._write(self._take())
        except OSError:
            os.close(self._descriptor)
            path.unlink()  # a name is used once it holds a header; the next try may have it
            raise

    def append(self, record: RawRecord, on_step: Callable[[str], None]) -> None:
        self._writer.write(cast("dict[str, Any]", record))
        block = self._take()
        self._write(block, on_step)

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


def load_state(file: IO[bytes]) -> State:
    """The state a microbatch leads to: its header's checkpoint and its records. Raises SpoolDamaged."""
    try:
        reader = fastavro.reader(file)
        metadata = reader.metadata
        newer = int(metadata[raw.META_FORMAT]) > int(raw.FORMAT)
        if not newer:
            records = cast("Iterable[RawRecord]", reader)
            return states.fold(states.from_checkpoint(metadata[raw.META_CHECKPOINT]), records)
    except Exception as error:  # fastavro raises whatever its codecs and struct raise on damaged bytes
        raise SpoolDamaged(f"cannot be read: {error!r}") from error
    raise SpoolDamaged(f"format {metadata[raw.META_FORMAT]} is newer than this program knows")


def _check(path: Path) -> None:
    """Raises SpoolDamaged when a sealed file is not what its sidecar says."""
    if hash_file(path) != Sealed.from_json(_sidecar(path).read_text("utf-8")).sha256:
        raise SpoolDamaged("its SHA-256 is not the one it was sealed with")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_records(path: Path) -> Iterator[RawRecord]:
    """Every whole record of a microbatch, up to the first damaged one.

    What follows a damaged record is left out too: the fold relies on pages in their order, and what is not in the
    state is asked again.
    """
    with path.open("rb") as file:
        try:
            for record in fastavro.reader(file):
                if not _body_is_whole(record):
                    return
                yield cast("RawRecord", record)
        except Exception:  # noqa: BLE001 - a torn tail shows as any error of fastavro, its codecs or struct
            return


def _body_is_whole(record: Any) -> bool:
    body = record.get("body")
    return body is None or hashlib.sha256(body).hexdigest() == record.get("body_sha256")


def _whole_part(path: Path) -> tuple[int, int]:
    """How many whole records a file has and where they end. Raises SpoolDamaged when its header cannot be read."""
    with path.open("rb") as file:
        try:
            blocks = iter(fastavro.block_reader(file))
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


def _write_sealed(source: Path, target: Path, name: MicrobatchName, codec: str) -> Sealed:
    with source.open("rb") as file:
        metadata = {key: value for key, value in fastavro.reader(file).metadata.items() if key.startswith("tweetlake.")}
    records = pages = 0
    ids: list[int] = []
    with target.open("wb") as file:
        writer = Writer(file, _SCHEMA, codec=codec, metadata=metadata, sync_interval=SEALED_BLOCK_BYTES)
        for record in read_records(source):
            writer.write(cast("dict[str, Any]", record))
            records += 1
            pages += record["kind"] == "page"
            ids += [number for number in (record.get("oldest_id"), record.get("newest_id")) if number is not None]
        writer.flush()
        _fsync(file.fileno(), target)
    return Sealed(
        name=name,
        sha256=hash_file(target),
        bytes=target.stat().st_size,
        records=records,
        pages=pages,
        min_id=min(ids, default=None),
        max_id=max(ids, default=None),
    )


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_durably(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        _fsync(file.fileno(), beside)
    beside.rename(path)
    _fsync_folder(path.parent)


def _fsync(descriptor: int, path: Path) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SpoolBroken(f"fsync of {path} failed: {error.strerror}") from error


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _fsync(descriptor, path)
    finally:
        os.close(descriptor)


class _disk_errors:  # noqa: N801 - used as a statement: with _disk_errors(path)
    """Turn what the operating system says into what the caller does: wait for room, or end."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise SpoolFull(f"no room to write {self._path}: {error.strerror}") from error
        raise SpoolBroken(f"cannot write {self._path}: {error.strerror}") from error
