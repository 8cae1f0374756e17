"""Releases to install in a test, and the wheels that they need: the package source of a machine that reaches nothing."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.release import LOCKS, build
from tests.house.checkout import ROOT, files, text

_PARTS = {
    "schemas", "ingester", "compaction_dags", "sandbox", "systemd", "deploy", "requirements", "pyproject.toml", "README.md", "LICENSE",
}  # fmt: skip


def release_of_this_checkout(into: Path) -> Path:
    return build(ROOT, into)


def next_release(version: str, into: Path) -> Path:
    """The same with another version, as a later one would be."""
    copy = into / "checkout"
    for file in files():
        if file.parts[0] in _PARTS:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, copy / file)
    project = copy / "pyproject.toml"
    project.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text(), count=1))
    return build(copy, into)


def wheelhouse() -> Path:
    """A folder with every locked package as a wheel; fetched once for these locks, from where pip's own settings say."""
    locked = hashlib.sha256("".join(text(f"requirements/{lock}.lock") for lock in LOCKS).encode()).hexdigest()
    folder = ROOT / "build" / f"wheels-{locked[:12]}"
    if not (folder / "complete").exists():
        for lock in LOCKS:
            subprocess.run(
                [
                    sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                    "--require-hashes", "--only-binary=:all:", "--dest", folder, "--requirement", f"requirements/{lock}.lock",
                ],
                cwd=ROOT, check=True, stdin=subprocess.DEVNULL, timeout=400,
            )  # fmt: skip
        (folder / "complete").touch()
    return folder
