"""Commands run and files written as root: quiet when all is well, one clear line when something is not."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

_SHOWN_LINES = 15


class Trouble(Exception):
    """What a person has to mend: what is wrong, and after `fix:` how."""


def say(line: str) -> None:
    """A line for whoever looks on, or for the journal."""
    print(line, flush=True)


def run(
    *command: str | Path, environment: Mapping[str, str] | None = None, fix: str = "the lines above say why"
) -> str:
    """Run a command; what it printed. Raises Trouble with its last words."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd="/",
        env=None if environment is None else {**os.environ, **environment},
    )  # fmt: skip
    if done.returncode:
        last = "\n".join(f"  {line}" for line in done.stdout.splitlines()[-_SHOWN_LINES:])
        raise Trouble(f"{last}\n`{' '.join(words[:6])}` ended with {done.returncode}\n  fix: {fix}".lstrip("\n"))
    return done.stdout


def succeeds(*command: str | Path) -> bool:
    """Whether a command ends well; what it says is of no interest."""
    return subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, cwd="/",
    ).returncode == 0  # fmt: skip


def write(path: Path, content: str, mode: int = 0o644, owner: str | None = None) -> bool:
    """Make a file hold this, in one step; whether it did not before. Nobody else can read a secret on its way."""
    if path.is_file() and path.read_text("utf-8") == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(content)
    if owner is not None:
        shutil.chown(name, owner, owner)
    Path(name).chmod(mode)
    Path(name).replace(path)
    return True


def point(link: Path, target: str | Path) -> None:
    """Make a symbolic link lead there, in one step: whoever follows it finds the old or the new."""
    beside = link.with_name(f".{link.name}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(link)
