"""Durable writing: nothing counts before its fsync, and an fsync that failed is never asked for again.

After a failed fsync the kernel may have dropped what it could not write, and asking again on the same descriptor can
report success for lost data. So it ends the process, whatever the reason was.
"""

import errno
import os
from pathlib import Path

from ingester.errors import SpoolBroken, SpoolFull


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file as a whole: beside, fsync, rename, fsync the folder."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        fsync(file.fileno(), beside)
    beside.rename(path)
    fsync_folder(path.parent)


def fsync(descriptor: int, path: Path) -> None:
    """Raises SpoolBroken."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SpoolBroken(f"fsync of {path} failed: {error.strerror}") from error


def fsync_folder(path: Path) -> None:
    """Make what was made, renamed and removed in a folder durable. Raises SpoolBroken."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fsync(descriptor, path)
    finally:
        os.close(descriptor)


class disk_errors:  # noqa: N801 - used as a statement: with disk_errors(path)
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
