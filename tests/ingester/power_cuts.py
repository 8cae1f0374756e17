"""Power cuts: every file operation of the spool in its order, and the disks that a cut may leave at any of them.

What a disk keeps, as hostile as a file system that renames atomically can be:
- Of a file surely what was there at its last fsync. What was written since is there, or not, or a part of it, or zeros.
- Of a folder surely the names that it had at its last fsync. Of the creations, renames and unlinks since, any may be
  there and any other may not, in whatever order they were made. A file may so have its name but not yet its content.

An operation that is not known here cannot slip through: after each known one the folder must be what the model says.
"""

import builtins
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from tests.ingester.moments import Disk, read_disk

ALL_SUBSETS_OF = 4
"""Names pending up to which every combination is tried; of more only the likely ones."""
NAMES_TRIED_ALONE = 6
"""The newest of the pending names; each is tried as the only one that is there, and as the only one that is not."""


class UnknownOperation(AssertionError):
    """The spool did something to its folder that no model of a cut takes into account."""


# What happened.


@dataclass(frozen=True)
class Wrote:
    """A file's content changed, by writing or by cutting it off."""

    file: int
    content: bytes


@dataclass(frozen=True)
class Named:
    """Names of a file or folder changed, all of them at once."""

    verb: str
    removed: str | None = None
    added: str | None = None
    file: int = -1
    """-1 is a folder."""

    @property
    def folder(self) -> str:
        """Whose fsync makes it durable."""
        return str(Path(self.added or self.removed or "").parent)


@dataclass(frozen=True)
class SyncedFile:
    file: int
    path: str


@dataclass(frozen=True)
class SyncedFolder:
    path: str


Operation = Wrote | Named | SyncedFile | SyncedFolder
Seen = TypeVar("Seen")


@dataclass
class Recording:
    """The operations of a run, and what was to be seen outside around each of them."""

    initial: Disk
    folders: list[str]
    """Those that were there before, as everything in `initial` durable."""
    operations: list[Operation] = field(default_factory=list)
    before: list[Any] = field(default_factory=list)
    after: list[Any] = field(default_factory=list)

    def without(self, is_left_out: Callable[[int], bool]) -> "Recording":
        """The same run of a program that leaves out some operations: an fsync changes nothing that the program sees."""
        kept = [number for number in range(len(self.operations)) if not is_left_out(number)]

        def pick(of: list[Any]) -> list[Any]:
            return [of[number] for number in kept]

        return Recording(self.initial, self.folders, pick(self.operations), pick(self.before), pick(self.after))

    def wrecks(self) -> Iterator["Wreck"]:
        """What the disk knows after none, one, two ... all of the operations. Each is only good until the next."""
        wreck = Wreck(self.initial, self.folders)
        yield wreck
        for operation in self.operations:
            wreck.pass_on(operation)
            yield wreck


def purpose(recording: Recording, number: int) -> str | None:
    """What an fsync is for, in words; None for any other operation."""
    match recording.operations[number]:
        case SyncedFile(file, path):
            is_first = not any(
                isinstance(one, SyncedFile) and one.file == file for one in recording.operations[:number]
            )
            return f"{'first' if is_first else 'later'} content of {kind_of(path)}"
        case SyncedFolder(folder):
            changes = [
                change
                for change in recording.operations[:number]
                if isinstance(change, Named) and folder in {parent_of(change.added), parent_of(change.removed)}
            ]
            last = changes[-1] if changes else None
            return (
                f"{folder} after {last.verb} {kind_of(last.added or last.removed)}" if last else f"{folder} as it was"
            )
        case _:
            return None


def parent_of(path: str | None) -> str | None:
    return None if path is None else str(Path(path).parent)


def kind_of(path: str | None) -> str:
    return re.sub(r"\d{4}-.*-[0-9a-f]{8}", "*", path or "")


@contextmanager
def recorded(root: Path, look: Callable[[], object]) -> Iterator[Recording]:
    """Record what is done below `root` while the block lasts; `look` is called before and after every operation."""
    recorder = _Recorder(root, look)
    watched = {name: getattr(recorder, name) for name in _WATCHED}
    with (
        mock.patch.multiple(os, **watched),
        mock.patch.object(io, "open", recorder.open_file),
        mock.patch.object(builtins, "open", recorder.open_file),
    ):
        yield recorder.recording
        recorder.compare("the end")


class _Recorder:
    """Stands between the program and the operating system."""

    def __init__(self, root: Path, look: Callable[[], object]) -> None:
        self._root = root
        self._look = look
        self._numbers = itertools.count()
        self._real = {name: getattr(os, name) for name in _WATCHED}
        self._names: dict[str, int] = {}
        self._contents: dict[int, bytes] = {}
        self._descriptors: dict[int, tuple[str, int]] = {}
        folders = [self._relative(folder) for folder in root.rglob("*") if folder.is_dir()]
        self.recording = Recording(read_disk(root), folders)
        self._names |= dict.fromkeys(folders, -1)
        for path, content in self.recording.initial.items():
            self._names[path] = next(self._numbers)
            self._contents[self._names[path]] = content

    def compare(self, operation: object) -> None:
        expected = {path: self._contents[number] for path, number in self._names.items() if number != -1}
        if (found := read_disk(self._root)) != expected:
            changed = [path for path in {*found, *expected} if found.get(path) != expected.get(path)]
            raise UnknownOperation(f"something was done to {changed} before or in {operation}, and nothing tells what")

    def _done(self, operation: Operation) -> None:
        self.recording.operations.append(operation)
        self.recording.after.append(self._look())
        self.compare(operation)

    def _is_ours(self, path: Any) -> bool:
        return not isinstance(path, int) and Path(os.fsdecode(path)).is_relative_to(self._root)

    def _relative(self, path: Any) -> str:
        return str(Path(os.fsdecode(path)).relative_to(self._root))

    # Names.

    def mkdir(self, path: Any, *args: Any, **kwargs: Any) -> None:
        if not self._is_ours(path):
            self._real["mkdir"](path, *args, **kwargs)
            return
        before = self._look()
        self._real["mkdir"](path, *args, **kwargs)
        self.recording.before.append(before)
        self._names[self._relative(path)] = -1
        self._done(Named("mkdir", added=self._relative(path)))

    def rename(self, source: Any, target: Any, **kwargs: Any) -> None:
        if not (self._is_ours(source) or self._is_ours(target)):
            self._real["rename"](source, target, **kwargs)
            return
        before = self._look()
        self._real["rename"](source, target, **kwargs)
        self.recording.before.append(before)
        number = self._names.pop(self._relative(source))
        self._names[self._relative(target)] = number
        self._done(Named("rename", removed=self._relative(source), added=self._relative(target), file=number))

    def replace(self, source: Any, target: Any, **kwargs: Any) -> None:
        self.rename(source, target, **kwargs)

    def unlink(self, path: Any, **kwargs: Any) -> None:
        if not self._is_ours(path):
            self._real["unlink"](path, **kwargs)
            return
        before = self._look()
        self._real["unlink"](path, **kwargs)
        self.recording.before.append(before)
        number = self._names.pop(self._relative(path))
        self._done(Named("unlink", removed=self._relative(path), file=number))

    def remove(self, path: Any, **kwargs: Any) -> None:
        self.unlink(path, **kwargs)

    # Contents.

    def open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if not self._is_ours(path):
            return int(self._real["open"](path, flags, *args, **kwargs))
        name, before = self._relative(path), self._look()
        descriptor = int(self._real["open"](path, flags, *args, **kwargs))
        if flags & os.O_DIRECTORY:
            self._descriptors[descriptor] = (name, -1)
        elif flags & (os.O_WRONLY | os.O_RDWR):
            if name not in self._names:
                self.recording.before.append(before)
                number = self._names[name] = next(self._numbers)
                self._contents[number] = b""
                self._done(Named("create", added=name, file=number))
            self._descriptors[descriptor] = (name, self._names[name])
            if flags & os.O_TRUNC:
                self._changed(descriptor, before)
        return descriptor

    def open_file(
        self, file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Python's own files, made of watched descriptors when they are written to."""
        if not self._is_ours(file) or not set(mode) & set("wax+"):
            return _REAL_OPEN(file, mode, buffering, encoding, *args, **kwargs)
        binary = io.BufferedWriter(_WatchedFile(file, mode))
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding=encoding or "utf-8")

    def close(self, descriptor: int) -> None:
        self._descriptors.pop(descriptor, None)
        self._real["close"](descriptor)

    def write(self, descriptor: int, content: Any) -> int:
        before = self._look() if descriptor in self._descriptors else None
        written = int(self._real["write"](descriptor, content))
        self._changed(descriptor, before)
        return written

    def ftruncate(self, descriptor: int, length: int) -> None:
        before = self._look() if descriptor in self._descriptors else None
        self._real["ftruncate"](descriptor, length)
        self._changed(descriptor, before)

    def _changed(self, descriptor: int, before: object) -> None:
        """What is in the file now is asked of the operating system; no offset has to be kept in mind."""
        if descriptor not in self._descriptors:
            return
        name, number = self._descriptors[descriptor]
        content = self._contents[number] = _read(self._root / name)
        self.recording.before.append(before)
        self._done(Wrote(number, content))

    # Durability.

    def fsync(self, descriptor: Any) -> None:
        self._sync("fsync", descriptor)

    def fdatasync(self, descriptor: Any) -> None:
        self._sync("fdatasync", descriptor)

    def _sync(self, call: str, descriptor: Any) -> None:
        if descriptor not in self._descriptors:
            self._real[call](descriptor)
            return
        self.recording.before.append(self._look())  # the call itself would only cost time: this disk is a model
        name, number = self._descriptors[descriptor]
        self._done(SyncedFolder(name) if number == -1 else SyncedFile(number, name))


_WATCHED = (
    "mkdir", "rename", "replace", "unlink", "remove", "open", "close", "write", "ftruncate", "fsync", "fdatasync",
)  # fmt: skip
_REAL_OPEN = io.open


class _WatchedFile(io.RawIOBase):
    """What lies below a Python file that is written to."""

    def __init__(self, path: Any, mode: str) -> None:
        how = {"w": os.O_TRUNC | os.O_CREAT, "a": os.O_APPEND | os.O_CREAT, "x": os.O_EXCL | os.O_CREAT}
        self._descriptor = os.open(path, os.O_WRONLY | how[mode[0]], 0o644)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, content: Any) -> int:
        return os.write(self._descriptor, content)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _read(path: Path) -> bytes:
    with _REAL_OPEN(path, "rb") as file:
        return bytes(file.read())


# What a cut leaves.


class Wreck:
    """What surely is on the disk, and what may be."""

    def __init__(self, disk: Disk, folders: Iterable[str]) -> None:
        self.pending: list[Named] = []
        """Changes of names that no fsync of their folder has followed yet."""
        self._names = {path: number for number, path in enumerate(disk)} | dict.fromkeys(folders, -1)
        self._synced = dict(enumerate(disk.values()))
        self._written: dict[int, list[bytes]] = {}
        """By file, its contents since its last fsync."""

    def pass_on(self, operation: Operation) -> None:
        match operation:
            case Wrote(file, content):
                self._written.setdefault(file, []).append(content)
            case Named():
                self.pending.append(operation)
            case SyncedFile(file, _):
                self._synced[file] = self._written.pop(file, [self._synced.get(file, b"")])[-1]
            case SyncedFolder(path):
                for change in self.pending:
                    if change.folder == path:
                        _rename(self._names, change)
                self.pending = [change for change in self.pending if change.folder != path]

    def names(self, kept: Sequence[bool]) -> dict[str, int]:
        """The names if of those pending just these were kept."""
        names = dict(self._names)
        for change, is_kept in zip(self.pending, kept, strict=True):
            if is_kept:
                _rename(names, change)
        return {path: file for path, file in names.items() if file != -1 and self._folder_is_there(path, names)}

    @staticmethod
    def _folder_is_there(path: str, names: Mapping[str, int]) -> bool:
        return all(str(folder) in names for folder in Path(path).parents if str(folder) != ".")

    def contents(self, file: int) -> list[bytes]:
        """What a file may hold: the least and the most first, then what lies between."""
        if not self.is_uncertain(file):
            return [self._synced.get(file, b"")]
        extremes = [self._synced.get(file, b""), self._written[file][-1]]
        between = [self.torn(file, 0.5, 1.0), self.torn(file, 1.0, 0.0), self.torn(file, 1.0, 0.5)]
        return list(dict.fromkeys([*extremes, *between, *self._written[file]]))

    def is_uncertain(self, file: int) -> bool:
        return file in self._written

    def torn(self, file: int, length: float, whole: float) -> bytes:
        """What was written last: only so much of it is there, and of that only so much is no zeros."""
        synced, newest = self._synced.get(file, b""), self._written[file][-1]
        kept, more = (synced, newest[len(synced) :]) if newest.startswith(synced) else (b"", newest)
        there = more[: round(length * len(more))]
        return kept + there[: round(whole * len(there))] + bytes(len(there) - round(whole * len(there)))

    def disk(self, kept: Sequence[bool], contents: Mapping[int, bytes]) -> Disk:
        """The disk with these names, and with these contents of the files that are uncertain."""
        return {
            path: contents[file] if self.is_uncertain(file) else self._synced.get(file, b"")
            for path, file in self.names(kept).items()
        }

    def likely_disks(self) -> Iterator[Disk]:
        """Each once: what a journal would leave, what is missing alone, what is there alone; with every content."""
        seen = set()
        for kept in self._likely_names():
            for disk in self._with_contents(kept):
                key = frozenset(disk.items())
                if key not in seen:
                    seen.add(key)
                    yield disk

    def _likely_names(self) -> Iterator[tuple[bool, ...]]:
        count = len(self.pending)
        if count <= ALL_SUBSETS_OF:
            yield from itertools.product([True, False], repeat=count)
            return
        for length in range(count + 1):
            yield (True,) * length + (False,) * (count - length)
        for number in range(count - NAMES_TRIED_ALONE, count):
            yield tuple(place == number for place in range(count))
            yield tuple(place != number for place in range(count))

    def _with_contents(self, kept: Sequence[bool]) -> Iterator[Disk]:
        """Every content of every file, one file after another, the others with their least and with their most."""
        uncertain = [file for file in self.names(kept).values() if self.is_uncertain(file)]
        for others in (0, -1):
            usual = {file: self.contents(file)[:2][others] for file in uncertain}
            yield self.disk(kept, usual)
            for file in uncertain:
                for content in self.contents(file):
                    yield self.disk(kept, usual | {file: content})


def _rename(names: dict[str, int], change: Named) -> None:
    if change.removed is not None:
        names.pop(change.removed, None)
    if change.added is not None:
        names[change.added] = change.file
