"""Releases side by side: each a folder with its two environments; one symbolic link says which is the current one.

/opt/tweetlake-releases/0.1.0/{deploy,requirements,ingester,airflow,dags}
/opt/tweetlake-releases/current  -> 0.1.0        switched in one step
/opt/tweetlake-releases/previous -> the one before
/opt/tweetlake, /opt/tweetlake-airflow           the environments of the current one
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from deploy.machine.shell import Trouble, point, run, say

RELEASES = Path("/opt/tweetlake-releases")
CURRENT, PREVIOUS = RELEASES / "current", RELEASES / "previous"
COMMAND = Path("/usr/local/sbin/tweetlake-machine")
LINKS = {
    Path("/opt/tweetlake"): CURRENT / "ingester",
    Path("/opt/tweetlake-airflow"): CURRENT / "airflow",
    COMMAND: CURRENT / "deploy/bootstrap",
}
PARTS = ("ingester", "airflow")
"""An environment each, from the lock of the same name: the ingester comes without Airflow."""
_CACHE = RELEASES / ".cache"
"""uv's: beside the environments, so that what two releases have in common takes room once."""
_READY = ".ready"


@dataclass(frozen=True, slots=True)
class Release:
    """One that lies, or shall lie, in its folder."""

    folder: Path

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def is_ready(self) -> bool:
        return (self.folder / _READY).is_file()

    @property
    def wheel(self) -> Path:
        return _wheel_in(self.folder)

    @property
    def files(self) -> Path:
        """What it puts into the file system, as a tree of its own."""
        return self.folder / "deploy/files"

    @property
    def airflow_version(self) -> tuple[int, ...]:
        """Of the Airflow in it."""
        found = next((self.folder / "airflow/lib").glob("python3*/site-packages/apache_airflow_core-*.dist-info"))
        return tuple(int(number) for number in re.findall(r"\d+", found.name.split("-")[1]))

    def program(self, part: str, name: str) -> Path:
        return self.folder / part / "bin" / name


def current() -> Release | None:
    return _behind(CURRENT)


def previous() -> Release | None:
    return _behind(PREVIOUS)


def _behind(link: Path) -> Release | None:
    return Release(link.resolve()) if link.exists() else None


def _wheel_in(folder: Path) -> Path:
    if len(found := list(folder.glob("tweetlake-*.whl"))) != 1:
        raise Trouble(
            f"{folder} is no release: it holds {len(found)} wheels of tweetlake\n  fix: `make release` makes one"
        )
    return found[0]


def settled(source: Path) -> Release:
    """A release that was unpacked somewhere, in its own place. Twice is once."""
    wheel = _wheel_in(source)
    release = Release(RELEASES / wheel.name.split("-")[1])
    if source.resolve() == release.folder.resolve():
        return release
    if release.is_ready and release.wheel.read_bytes() != wheel.read_bytes():
        raise Trouble(
            f"release {release.version} is installed already, and is another build of that version\n"
            "  fix: give the new one a version of its own in pyproject.toml, then `make release`"
        )
    if not release.is_ready:
        shutil.rmtree(release.folder, ignore_errors=True)
        beside = RELEASES / f".{release.version}.new"
        shutil.rmtree(beside, ignore_errors=True)
        RELEASES.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, beside)
        beside.rename(release.folder)
    return release


def unpacked(tarball: Path, place: Path) -> Path:
    """A release's folder, made in a place for it."""
    run(
        "tar", "--extract", "--gzip", "--no-same-owner", "--file", tarball.resolve(), "--directory", place,
        fix="is it a file of `make release`, and all of it?",
    )  # fmt: skip
    folders = [folder for folder in place.iterdir() if (folder / "deploy/bootstrap").is_file()]
    if len(folders) != 1:
        raise Trouble(f"{tarball} is no release\n  fix: `make release` makes one")
    return folders[0]


def build(release: Release, wheels: Path | None) -> None:
    """Both environments, by hash; from a folder of wheels and nowhere else, if one is named. A half-made one is made anew."""
    if release.is_ready:
        return
    sources = [] if wheels is None else ["--no-index", "--find-links", str(wheels)]
    python, tools = "/usr/bin/python3", release.folder / "tools"
    cache = {"UV_CACHE_DIR": str(_CACHE), "UV_PYTHON_DOWNLOADS": "never"}
    offline = "can this machine reach the package index? Else name a folder of wheels by --wheels"
    run(python, "-m", "venv", "--clear", tools)
    run(
        tools / "bin/pip",
        "--quiet",
        "install",
        "--require-hashes",
        *sources,
        "-r",
        _lock(release, "bootstrap"),
        fix=offline,
    )
    uv = tools / "bin/uv"
    for part in PARTS:
        say(f"installing the {part} of release {release.version}")
        venv = release.folder / part
        into = ["--python", str(venv / "bin/python"), "--compile-bytecode", "--quiet"]
        run(uv, "venv", "--quiet", "--clear", "--python", python, venv, environment=cache)
        run(
            uv, "pip", "sync", *into, *sources, "--require-hashes", _lock(release, part), environment=cache, fix=offline
        )
        run(uv, "pip", "install", *into, "--no-index", "--no-deps", release.wheel, environment=cache)
    shutil.rmtree(tools)
    point(
        release.folder / "dags", next((release.folder / "airflow/lib").glob("python3*/site-packages/compaction_dags"))
    )
    os.sync()  # ready is what a power cut leaves whole
    (release.folder / _READY).touch()


def _lock(release: Release, name: str) -> Path:
    return release.folder / f"requirements/{name}.lock"


def switch(release: Release) -> None:
    """Make a release the current one, in one step; the one until now becomes the previous one."""
    for link in LINKS:
        if link.exists() and not link.is_symlink():
            raise Trouble(f"{link} is there already, and not by this command\n  fix: move it away, then run this again")
    until_now = current()
    if until_now is not None and until_now != release:
        point(PREVIOUS, until_now.version)
    point(CURRENT, release.version)
    for link, target in LINKS.items():
        if not link.is_symlink() or link.readlink() != target:
            point(link, target)


def forget_older_ones() -> None:
    """Keep the current and the previous one."""
    kept = {found.folder for found in (current(), previous()) if found}
    for folder in RELEASES.iterdir():
        if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith(".") and folder not in kept:
            say(f"release {folder.name} is removed")
            shutil.rmtree(folder)
