"""File systems of one's own for a test: small ones in memory, and ones on a file that can lose power. They need root."""

import contextlib
import filecmp
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_MOST_COPIES = 20


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system in memory, mounted at this folder."""
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={megabytes}m", "tweetlake-test"):
        yield


def new_disk(image: Path, megabytes: int) -> None:
    """Make a disk with an empty file system."""
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)


@contextlib.contextmanager
def disk(folder: Path, image: Path) -> Iterator[None]:
    """A disk, mounted at this folder."""
    with _mounted(folder, "-o", "loop", str(image)):
        yield


def lose_power(image: Path, rest: Path) -> None:
    """What is on the disk now and not only in memory: what would be left of it if there were no power any more.

    The kernel may write meanwhile, and a copy with blocks of different moments is a disk that never was: journal entries
    can be gone from it before what they stand for is there. So it is compared, and copied again if it is not as it was.
    """
    for _ in range(_MOST_COPIES):
        shutil.copyfile(image, rest)
        if filecmp.cmp(image, rest, shallow=False):
            return
    pytest.fail(f"{image} was written to during each of {_MOST_COPIES} copies: end who writes to it first")


@contextlib.contextmanager
def _mounted(folder: Path, *what: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.fail("mounting a disk needs root: run `make test-system` as root")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *what, folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
