"""`make release`: the one file that a machine is installed from, with wheel, locks, and what installs them, into dist/."""

import gzip
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("bootstrap", "ingester", "airflow")
_EXECUTABLE = {"deploy/bootstrap"}


def build(root: Path, into: Path) -> Path:
    """The release of a checkout. The same checkout gives the same bytes."""
    with tempfile.TemporaryDirectory(prefix="tweetlake-wheel-") as place:
        wheel = _wheel(root, Path(place))
        name = f"tweetlake-{wheel.name.split('-')[1]}"
        into.mkdir(parents=True, exist_ok=True)
        tarball = into / f"{name}.tar.gz"
        with (
            tarball.open("wb") as file,
            gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            _add(tar, f"{name}/{wheel.name}", wheel)
            for member in _members(root):
                _add(tar, f"{name}/{member}", root / member)
    return tarball


def _wheel(root: Path, place: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", place],
        cwd=root, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return next(place.glob("tweetlake-*.whl"))


def _members(root: Path) -> Iterator[str]:
    """What goes beside the wheel, in an order that is always the same."""
    yield from ("deploy/__init__.py", "deploy/bootstrap", *(f"requirements/{lock}.lock" for lock in LOCKS))
    for folder in ("deploy/machine", "deploy/files"):
        found = (file for file in (root / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        yield from sorted(str(file.relative_to(root)) for file in found)


def _add(tar: tarfile.TarFile, name: str, file: Path) -> None:
    """Without owner and time, and with a mode that no umask has changed."""
    content = file.read_bytes()
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = 0o755 if name.partition("/")[2] in _EXECUTABLE else 0o644
    tar.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    made = build(ROOT, ROOT / "dist")
    version = made.name.removeprefix("tweetlake-").removesuffix(".tar.gz")
    print(f"dist/{made.name}: {made.stat().st_size:,} bytes")
    print(f"  next: aws s3 cp dist/{made.name} s3://BUCKET/releases/")
    print(f"        a new machine installs it by itself; a running one: sudo tweetlake-machine upgrade {version}")
