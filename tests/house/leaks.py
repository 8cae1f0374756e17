"""Tokens and keys that tests give to programs, and where one of them stands written. No program may write one."""

from collections.abc import Iterable, Iterator
from pathlib import Path

SECRETS = (
    "sandbox-token",  # the sandbox's X
    "sandbox-secret",  # the sandbox's X and S3
    "AAAA-very-secret",  # the rest is of single tests
    "AAAA-secret-token",
    "a-wrong-token",
    "a-wrong-key",
    "a-token-of-a-test-0123456789",
    "the-token-of-systemd",
)
_WORDS = frozenset({".log", ".txt", ".html", ".prom"})
_LARGEST = 20_000_000
"""Bytes. What is larger is not what a program says, but data."""


def is_told(content: str) -> bool:
    """Whether one of the secrets stands in it."""
    return any(secret in content for secret in SECRETS)


def leaking(folder: Path) -> list[Path]:
    """The files below a folder, of those that programs write for people, in which a secret stands."""
    return sorted(file for file in _for_people(folder.rglob("*")) if is_told(file.read_text("utf-8", "replace")))


def _for_people(files: Iterable[Path]) -> Iterator[Path]:
    for file in files:
        if file.suffix in _WORDS and file.is_file() and file.stat().st_size <= _LARGEST:
            yield file
