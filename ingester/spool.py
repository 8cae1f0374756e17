"""The durable local queue of microbatches, and the only file that moves anything in the spool folder.

Constraints, before any code:
- Folder = state: `open/` (being written, at most one), `sealed/` (waiting for S3), `shipped/` (the newest one that S3
  has, kept so that a start needs no S3), `quarantine/` (set aside for a person; never deleted by itself).
- A record is durable when `append` returns.
- Sealing writes beside, fsyncs, writes the sidecar, fsyncs, renames, fsyncs the folder. After it nothing changes.
- A name is given once, at opening. The sequence in it is the only order.
- A file moves before its sidecar does, so that a crash in between leaves a sidecar alone: `recover` moves it after.
- Everything here blocks: callers run it in a thread. One writer at a time; a lock on the folder keeps processes apart,
  so `sealed/` is listed once and known from then on: with 10,000 files waiting a listing costs more than a request.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from ingester.disk import disk_errors, fsync_folder, write_durably
from ingester.errors import SpoolBroken, SpoolDamaged, SpoolFull, SpoolLocked
from ingester.microbatch import (
    OpenMicrobatch,
    Sealed,
    check,
    load_checkpoint,
    load_state,
    read_sidecar,
    refuse_newer,
    sidecar,
    whole_part,
    write_sealed,
)
from ingester.ports import Destination
from schemas.keys import MicrobatchName
from schemas.records import RawRecord
from schemas.state import State

FOLDERS = ("open", "sealed", "shipped", "quarantine")
"""Folder = state."""


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


@dataclass(frozen=True, slots=True)
class Lost:
    """What cannot be shipped any more, and the states around it."""

    names: list[MicrobatchName]
    """The damaged file, and those right behind it that are damaged too."""
    before: State | None
    """The state that the first of them was opened with; None if nothing tells it."""
    behind: State | None
    """The state that the first whole file behind them was opened with; None if there is none yet."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What the folders hold and what the disk has left, as seen at one moment."""

    waiting: int
    oldest_waiting_at: datetime | None
    """When the oldest file that waits was sealed, by the file's own time."""
    quarantine: int
    used_bytes: int
    free_bytes: int

    def lacks_room(self, max_bytes: int, min_free_bytes: int) -> str | None:
        """Why nothing more may be asked for, as far as the disk is concerned; None when there is room."""
        return lacks_room(self.used_bytes, self.free_bytes, max_bytes, min_free_bytes)


class Spool:
    """One spool folder. Call `acquire` first; every method blocks. What is opened is stamped with its destination."""

    def __init__(
        self,
        directory: Path,
        *,
        codec: str = "zstandard",
        destination: Destination | None = None,
        new_id: Callable[[], str] = lambda: secrets.token_hex(4),
        on_step: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self._directory = directory
        self._codec = codec
        self._destination = destination
        self._new_id = new_id
        self._on_step = on_step
        self._lock: IO[str] | None = None
        self._open: OpenMicrobatch | None = None
        self._sealed: dict[MicrobatchName, int] | None = None
        self._guard = threading.Lock()
        self._moving = threading.Lock()
        """Held while a file and its sidecar change folders, and by who reads both."""
        self.spool_id = ""

    # Taking and leaving the folder.

    def acquire(self) -> None:
        """Make the folder, take its lock, learn its id. Raises SpoolLocked, SpoolFull or SpoolBroken."""
        try:
            is_new = not self._directory.exists()
            for folder in FOLDERS:
                (self._directory / folder).mkdir(parents=True, exist_ok=True)
            fsync_folder(self._directory)  # or a power cut could take a folder, with all that is durable in it
            if is_new:
                fsync_folder(self._directory.parent)
            self._lock = (self._directory / "lock").open("a")
        except OSError as error:
            raise SpoolBroken(f"spool.directory {self._directory} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise SpoolLocked(f"another process uses the spool {self._directory}; stop it first") from error
        if self.stored_id() is None:
            with disk_errors(self._directory):
                write_durably(self._directory / "spool-id", self._new_id().encode())
        self.spool_id = self.stored_id() or ""

    def stored_id(self) -> str | None:
        """The id that was made with the folder; None if there is none yet."""
        try:
            return (self._directory / "spool-id").read_text().strip()
        except FileNotFoundError:
            return None

    def release(self) -> None:
        if self._open is not None:
            self._open.close()
        if self._lock is not None:
            self._lock.close()
        self._open = self._lock = None

    def recover(self) -> list[Salvaged]:
        """Finish what a crash interrupted: nothing is left in `open/`, nothing half-written or half-moved in `sealed/`.

        Raises NewerFormat before anything is touched, SpoolFull (call it again) or SpoolBroken.
        """
        left_open = sorted((self._directory / "open").iterdir())
        for path in left_open:
            refuse_newer(path)
        salvaged = []
        for path in left_open:
            sealed_already = self._path("sealed", path.name).exists() or self._path("shipped", path.name).exists()
            if sealed_already or path.stat().st_size == 0:
                path.unlink()
            elif (found := self._salvage(path)) is not None:
                salvaged.append(found)
        fsync_folder(self._directory / "open")
        self._tidy_sealed()
        return salvaged

    def _salvage(self, path: Path) -> Salvaged | None:
        try:
            records, end = whole_part(path)
            if records == 0:
                path.unlink()
                return None
            lost = path.stat().st_size - end
            return Salvaged(self._seal_file(path), lost_bytes=lost)
        except SpoolDamaged as error:
            # Not deleted: a torn header holds nothing, but a damaged one may have records behind it.
            self._set_aside(path, str(error))
            return None

    def _tidy_sealed(self) -> None:
        """Remove what was half-written; move a sidecar after its file."""
        folder = self._directory / "sealed"
        entries = set(os.listdir(folder))  # noqa: PTH208 - no stat per file with 10,000 waiting
        for entry in entries:
            if entry.startswith(".") and entry.endswith(".tmp"):
                (folder / entry).unlink()
            elif entry.endswith(".json") and (name := entry.removesuffix(".json")) not in entries:
                moved = (self._path(there, name) for there in ("shipped", "quarantine"))
                target = next((path for path in moved if path.exists()), None)
                if target is None:  # written just before a crash; its microbatch was sealed anew
                    (folder / entry).unlink()
                else:
                    (folder / entry).rename(sidecar(target))

    # Writing.

    @property
    def open_name(self) -> MicrobatchName | None:
        return self._open.name if self._open else None

    @property
    def open_bytes(self) -> int:
        return self._open.size if self._open else 0

    def open_microbatch(self, name: MicrobatchName, checkpoint: State) -> None:
        """Begin a microbatch whose header is a checkpoint. Raises SpoolFull or SpoolBroken."""
        path = self._path("open", str(name))
        with disk_errors(path):
            self._open = OpenMicrobatch(path, name, self._codec, checkpoint, self._destination)
            fsync_folder(path.parent)
        self._on_step("opened")

    def append(self, record: RawRecord) -> None:
        """Make a record durable. Raises SpoolFull (nothing was written) or SpoolBroken."""
        if self._open is None:
            raise SpoolBroken("no microbatch is open")
        with disk_errors(self._open.path):
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
            with disk_errors(target):
                sealed = write_sealed(path, beside, name, self._codec)
                self._on_step("sealed_file_written")
                write_durably(sidecar(target), sealed.to_json().encode())
                self._on_step("sidecar_written")
                beside.rename(target)
                self._on_step("sealed_file_renamed")
                fsync_folder(target.parent)
        except SpoolFull:
            beside.unlink(missing_ok=True)
            raise
        self._on_step("sealed")
        self._waiting()[name] = sealed.bytes + sidecar(target).stat().st_size
        path.unlink()
        fsync_folder(path.parent)
        self._on_step("open_file_gone")
        return sealed

    # Shipping.

    def waiting(self) -> list[MicrobatchName]:
        """Sealed microbatches that S3 does not have yet, by sequence."""
        return list(self._waiting())

    def is_waiting(self, name: MicrobatchName) -> bool:
        return name in self._waiting()

    def sealed_file(self, name: MicrobatchName) -> Path:
        return self._path("sealed", str(name))

    def describe(self, name: MicrobatchName, folder: str = "sealed") -> Sealed:
        """Read a sealed file's sidecar. Raises SpoolDamaged when it is missing or no sidecar."""
        return read_sidecar(self._path(folder, str(name)))

    def forget(self, name: MicrobatchName) -> None:
        """S3 has it: keep only the newest such file. Losing power in between costs one more, identical PUT.

        Raises SpoolFull (call it again) or SpoolBroken.
        """
        target = self._path("shipped", str(name))
        with disk_errors(target):
            self._move(self.sealed_file(name), target)
            self._on_step("shipped_file_moved")
            for older in self.names("shipped"):
                if older.sequence < name.sequence:
                    self._path("shipped", str(older)).unlink(missing_ok=True)
                    sidecar(self._path("shipped", str(older))).unlink(missing_ok=True)
        self._on_step("older_files_gone")

    def set_aside(self, name: MicrobatchName, reason: str) -> None:
        """Move a sealed file to quarantine with the reason beside it. Raises SpoolFull (call it again) or SpoolBroken."""
        self._set_aside(self.sealed_file(name), reason)

    def _set_aside(self, source: Path, reason: str) -> None:
        target = self._path("quarantine", source.name)
        with disk_errors(target):
            write_durably(target.with_name(f"{target.name}.reason"), reason.encode())
            self._on_step("reason_written")
            self._move(source, target)
            fsync_folder(target.parent)
        self._on_step("set_aside")

    def _move(self, source: Path, target: Path) -> None:
        with self._moving:
            source.rename(target)
            fsync_folder(target.parent)  # or a power cut could keep the sidecar's move without the file's
            self._on_step("file_moved")
            if sidecar(source).exists():
                sidecar(source).rename(sidecar(target))
            self._waiting().pop(MicrobatchName.parse(source.name), None)

    # Looking.

    def newest(self, on_unreadable: Callable[[str, str], None]) -> Found | None:
        """The state that the newest readable microbatch leads to. Unreadable ones are told and passed over.

        Raises NewerFormat: passing over a file that is whole would pay for it a second time.
        """
        with self._moving:
            for path in self._files_back_from(None):
                try:
                    return Found(MicrobatchName.parse(path.name), _checked(path, load_state))
                except (SpoolDamaged, OSError) as error:
                    on_unreadable(path.name, str(error))
        return None

    def _files_back_from(self, before: MicrobatchName | None) -> Iterable[Path]:
        """Sealed and shipped files, the newest first."""
        folders = {**dict.fromkeys(self.names("shipped"), "shipped"), **dict.fromkeys(self._waiting(), "sealed")}
        names = sorted(folders, reverse=True)
        return (self._path(folders[name], str(name)) for name in names if before is None or name < before)

    def reason(self, name: MicrobatchName) -> str:
        """Why a file is in quarantine; empty if nothing tells."""
        try:
            return (self._directory / "quarantine" / f"{name}.reason").read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return ""

    def lost_with(self, name: MicrobatchName) -> Lost:
        """What is lost with a sealed file. Raises NewerFormat."""
        names, behind = [name], None
        for later in self.waiting():
            if later <= name:
                continue
            try:
                behind = _checked(self.sealed_file(later), load_checkpoint)
                break
            except (SpoolDamaged, OSError):
                names.append(later)
        return Lost(names, self._state_before(name), behind)

    def _state_before(self, name: MicrobatchName) -> State | None:
        """From the file right before it; else from its own header, which may be what is damaged; else from further back."""
        earlier = list(self._files_back_from(name))
        if earlier and MicrobatchName.parse(earlier[0].name).sequence == name.sequence - 1:
            with contextlib.suppress(SpoolDamaged, OSError):
                return _checked(earlier[0], load_state)
        with contextlib.suppress(SpoolDamaged, OSError), self.sealed_file(name).open("rb") as file:
            return load_checkpoint(file, str(name))
        for path in earlier:
            with contextlib.suppress(SpoolDamaged, OSError):
                return _checked(path, load_state)
        return State() if name.sequence == 1 else None

    def all_names(self) -> list[MicrobatchName]:
        """Every name the spool has used and still knows."""
        return [name for folder in FOLDERS for name in self.names(folder)]

    def names(self, folder: str) -> list[MicrobatchName]:
        """The microbatches of one folder, in no order."""
        return self.waiting() if folder == "sealed" else list(self._look(folder))

    def count(self, folder: str) -> int:
        return len(self._waiting()) if folder == "sealed" else len(self._look(folder))

    @property
    def waiting_now(self) -> int | None:
        """How many files wait, from memory: the disk is not asked. None before anybody has listed them."""
        return None if self._sealed is None else len(self._sealed)

    def contents(self) -> Contents:
        """Look at all folders and at the disk. Raises OSError when the disk does not let itself be looked at."""
        waiting = self.waiting()
        oldest = None
        if waiting:
            with contextlib.suppress(FileNotFoundError):  # it was shipped in this moment
                oldest = datetime.fromtimestamp(self.sealed_file(waiting[0]).stat().st_mtime, UTC)
        return Contents(len(waiting), oldest, self.count("quarantine"), self.used_bytes(), self.free_bytes())

    def used_bytes(self) -> int:
        """Bytes of everything in the spool."""
        others = [self._look(folder).values() for folder in FOLDERS if folder != "sealed"]
        return sum(list(self._waiting().values())) + sum(sum(sizes) for sizes in others)

    def free_bytes(self) -> int:
        """What the disk has left for this user."""
        return shutil.disk_usage(self._directory).free

    def file(self, name: MicrobatchName, folder: str) -> Path:
        """Where a microbatch lies, or would."""
        return self._path(folder, str(name))

    def _path(self, folder: str, name: str) -> Path:
        return self._directory / folder / name

    def _waiting(self) -> dict[MicrobatchName, int]:
        """What `sealed/` holds, by sequence, with its bytes. Nobody else changes it, so it is listed once."""
        with self._guard:
            if self._sealed is None:
                found = self._look("sealed")
                self._sealed = {name: found[name] for name in sorted(found)}
            return self._sealed

    def _look(self, folder: str) -> dict[MicrobatchName, int]:
        """The microbatches of one folder, in no order, with their bytes and those of what lies beside them."""
        sizes = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._directory / folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    sizes[entry.name] = entry.stat().st_size
        found = {}
        for entry_name, size in sizes.items():
            with contextlib.suppress(ValueError):
                name = MicrobatchName.parse(entry_name)
                found[name] = size + sizes.get(f"{entry_name}.json", 0) + sizes.get(f"{entry_name}.reason", 0)
        return found


def lacks_room(used: int, free: int, max_bytes: int, min_free_bytes: int) -> str | None:
    """The sentence for a spool that has reached a bound of the settings; None when there is room."""
    if used >= max_bytes:
        return f"the spool holds {used:,} bytes, spool.max_bytes allows {max_bytes:,}"
    if free < min_free_bytes:
        return f"the disk has {free:,} bytes left, spool.min_free_bytes keeps {min_free_bytes:,}"
    return None


def _checked(path: Path, load: Callable[[IO[bytes], str], State]) -> State:
    """Load a state off a sealed file that is what its sidecar says. Raises SpoolDamaged, NewerFormat or OSError."""
    refuse_newer(path)  # before its sidecar is read, which a newer program may write in another way
    check(path)
    with path.open("rb") as file:
        return load(file, str(path))
