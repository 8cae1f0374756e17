"""The checkout as the house tests see it: its root, its files, its pyproject.toml."""

import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@cache
def files() -> list[Path]:
    """Every file that is or is about to be committed, relative to ROOT."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    found = [Path(name) for name in listing.stdout.split("\0") if name]
    return sorted(file for file in found if (ROOT / file).is_file())


def text(file: Path | str) -> str:
    return (ROOT / file).read_text("utf-8")


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads(text("pyproject.toml"))
