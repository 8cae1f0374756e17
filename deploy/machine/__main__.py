"""`tweetlake-machine`: the commands, and the story of an installation, an upgrade and the way back."""

import argparse
import contextlib
import fcntl
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.machine import parts, releases
from deploy.machine.releases import Release
from deploy.machine.shell import Trouble, run, say, succeeds
from deploy.machine.told import Told, told

INGESTER = "tweetlake.service"
AIRFLOW = ("airflow-api-server.service", "airflow-scheduler.service", "airflow-dag-processor.service")
GUARD = "tweetlake-imds-guard.service"
TIMERS = (
    "tweetlake-credentials@ingester.timer", "tweetlake-credentials@compaction.timer", "tweetlake-airflow-clean.timer",
)  # fmt: skip
_LOCK = Path("/run/tweetlake-machine.lock")
_ENDPOINTS = parts.ETC / "aws-endpoints.env"

_EXAMPLES = """\
examples:
  tweetlake-machine install --bucket my-lake --region us-east-1 --secret ARN --ingester-role ARN --compaction-role ARN
  tweetlake-machine install                     again, with what it was told before: mends what is not as it should be
  tweetlake-machine upgrade 0.2.0               fetches s3://my-lake/releases/tweetlake-0.2.0.tar.gz
  tweetlake-machine upgrade ./tweetlake-0.2.0.tar.gz
  tweetlake-machine rollback                    back to the release before, within a minute
  tweetlake-machine status                      what runs, which release, and what to do next
  tweetlake-machine airflow dags list           any command of Airflow, as its user and with its settings
"""


# The stories.


def install(machine: Told, wheels: Path | None, settings: Path | None) -> None:
    """Everything, from a bare Debian to running programs; what is as it should be already is left alone."""
    parts.packages()
    release = releases.settled(Path(__file__).resolve().parents[2])
    releases.build(release, wheels)
    machine.remember()
    parts.volume(machine)
    activate(release, machine, settings)
    releases.forget_older_ones()


def activate(release: Release, machine: Told, settings: Path | None = None) -> None:
    """Make a release that is built the one that runs. The ingester stands still for seconds, Airflow for a minute."""
    until_now, collected = releases.current(), succeeds("systemctl", "is-active", INGESTER)
    parts.place(release, until_now)
    parts.database()
    parts.airflow_secrets()
    parts.settings(machine, settings)
    run("systemctl", "stop", *AIRFLOW)
    _bring_metadata_to(release, until_now)
    releases.switch(release)
    run(release.program("ingester", "tweetlake"), "install-service", "--program", "/opt/tweetlake/bin/tweetlake")
    _start(collected)
    say(f"release {release.version} is in place")
    status()


def _start(collected: bool) -> None:
    """Everything, now and at every boot. Only an ingester that ran before has to: a new one may lack a token or a query."""
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "systemd-journald")
    run("systemctl", "enable", "--quiet", INGESTER, *AIRFLOW, GUARD, *TIMERS)
    run("systemctl", "reload-or-restart", GUARD)  # a restart would take both programs along
    run("systemctl", "restart", *TIMERS)
    run("systemctl", "restart", *AIRFLOW)
    succeeds("systemctl", "reset-failed", INGESTER)
    if not succeeds("systemctl", "restart", INGESTER) and collected:
        raise Trouble(
            "the ingester ran, and does not come up with this release\n"
            "  fix: `journalctl -u tweetlake -n 20` says why; to go back: tweetlake-machine rollback"
        )


def _bring_metadata_to(release: Release, until_now: Release | None) -> None:
    """Airflow's database, to what the release's Airflow knows; backwards only the newer Airflow can bring it."""
    if until_now is not None and release.airflow_version < until_now.airflow_version:
        version = ".".join(map(str, release.airflow_version))
        _airflow(until_now, "db", "downgrade", "--to-version", version, "--yes")
    else:
        _airflow(release, "db", "migrate")


def upgrade(wanted: str, wheels: Path | None) -> None:
    """Hand over to the release that is wanted: it knows best how it is installed."""
    told({})  # nothing is fetched for a machine that was never installed
    until_now = releases.current()
    with tempfile.TemporaryDirectory(prefix="tweetlake-upgrade-") as place:
        tarball = Path(wanted) if wanted.endswith(".tar.gz") else _fetched(wanted, Path(place))
        if not tarball.is_file():
            raise Trouble(f"{tarball} is not there\n  fix: name a version, such as 0.2.0, or a file of `make release`")
        folder = releases.unpacked(tarball, Path(place))
        options = ["--wheels", str(wheels)] if wheels else []
        done = subprocess.run([str(folder / "deploy/bootstrap"), "install", *options], check=False)
    if done.returncode:
        back = "install` sets the present release right" if releases.current() == until_now else "rollback` goes back"
        raise Trouble(
            f"the upgrade is not complete\n  fix: mend what is said above and run it again; `tweetlake-machine {back}"
        )


def _fetched(version: str, place: Path) -> Path:
    if not re.fullmatch(r"\d+\.\d+[\w.]*", version):
        raise Trouble(f"{version!r} is no release\n  fix: name a version, such as 0.2.0, or a file of `make release`")
    file = place / f"tweetlake-{version}.tar.gz"
    _grant("release", version, str(file))
    return file


def rollback() -> None:
    """The release before becomes the current one; the spool, the lake and the settings stay as they are."""
    before = releases.previous()
    if before is None or not before.is_ready:
        raise Trouble(
            "there is no release before this one\n  fix: tweetlake-machine upgrade VERSION installs any release"
        )
    activate(before, told({}))


def status() -> bool:
    """A line a unit, and what to do; whether all is well."""
    release, before = releases.current(), releases.previous()
    if release is None:
        raise Trouble("nothing is installed here yet\n  fix: deploy/bootstrap install --help")
    say(f"release    {release.version}" + (f" (before: {before.version})" if before and before != release else ""))
    states = {unit: _shown(unit) for unit in (INGESTER, *AIRFLOW)}
    for unit, state in states.items():
        say(f"{state['ActiveState']:<10} {unit.removesuffix('.service'):<22} {state['StatusText']}".rstrip())
    if states[INGESTER]["ActiveState"] != "active":
        say(f"  next: {_advice()}")
    say(f"Airflow    http://127.0.0.1:8080, user admin, password in {parts.AIRFLOW_HOME}/passwords.json")
    return all(state["ActiveState"] == "active" for state in states.values())


def _shown(unit: str) -> dict[str, str]:
    lines = run("systemctl", "show", "--property=ActiveState,StatusText", unit).splitlines()
    return {"StatusText": ""} | dict(line.split("=", 1) for line in lines)


def _advice() -> str:
    if not Path("/run/tweetlake-secrets/x-bearer-token").is_file():
        return (
            "put X's token into the secret; `journalctl -u tweetlake-secret -n 3` says how. It is looked for every 30 s"
        )
    return f"`journalctl -u tweetlake -n 20`; then mend {parts.SETTINGS} and `systemctl restart tweetlake`"


# What they need.


def _grant(*arguments: str) -> None:
    """Run what needs boto3 by the current release's Python. It says itself what is wrong."""
    command = ["/opt/tweetlake/bin/python", "-m", "deploy.machine.grants", *arguments]
    environment = os.environ | _variables(_ENDPOINTS)
    if subprocess.run(command, check=False, cwd=releases.CURRENT, env=environment).returncode:
        raise Trouble("  fix: is the release in the bucket, and may the machine's role read `releases/`?")


def _airflow(release: Release, *arguments: str) -> str:
    return run(*_airflow_command(release, *arguments), environment=_airflow_environment())


def _airflow_command(release: Release, *arguments: str) -> list[str]:
    return ["runuser", "--user", parts.AIRFLOW_USER, "--", str(release.program("airflow", "airflow")), *arguments]


def _airflow_environment() -> dict[str, str]:
    """What the units give it, in the same order."""
    files = ("airflow.env", "airflow-secrets.env", "airflow-local.env")
    found: dict[str, str] = {}
    for name in files:
        found |= _variables(parts.ETC / name)
    return found | {"HOME": str(parts.AIRFLOW_HOME)}


def _variables(file: Path) -> dict[str, str]:
    """An environment file, as systemd reads it."""
    if not file.exists():
        return {}
    lines = [line for line in file.read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")]
    return dict(shlex.split(line)[0].split("=", 1) for line in lines)


# The command line.


def main(arguments: list[str]) -> int:
    options = _options().parse_args(arguments)
    try:
        _as_root()
        return 0 if _done(options) else 1
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return 1


def _as_root() -> None:
    if os.geteuid() != 0:
        raise Trouble("this command needs root\n  fix: sudo tweetlake-machine …")


def _done(options: argparse.Namespace) -> bool:
    if options.command == "status":
        return status()
    if options.command == "airflow":
        release = releases.current()
        if release is None:
            raise Trouble("nothing is installed here yet\n  fix: deploy/bootstrap install --help")
        command = _airflow_command(release, *options.arguments)
        return subprocess.run(command, check=False, cwd="/", env=os.environ | _airflow_environment()).returncode == 0
    if options.command == "upgrade":
        upgrade(options.release, options.wheels)
    elif options.command == "rollback":
        with _alone():
            rollback()
    else:
        with _alone():
            given: dict[str, Any] = vars(options)
            install(told({name: given[name] for name in Told.__dataclass_fields__}), options.wheels, options.settings)
    return True


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with _LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Trouble("another tweetlake-machine is at work\n  fix: wait until it has ended") from None
        yield


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tweetlake-machine",
        description="Prepare this machine for Tweetlake, upgrade it, put it back. Every command may be run again.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    installing = commands.add_parser(
        "install", help="this release onto this machine; again: mend what is not as it should be"
    )
    installing.add_argument("--bucket", help="the lake's bucket")
    installing.add_argument("--prefix", help="the lake's folder in it; default: the whole bucket")
    installing.add_argument("--region", help="the bucket's region")
    installing.add_argument("--ingester-role", metavar="ARN", help="what the ingester may do")
    installing.add_argument("--compaction-role", metavar="ARN", help="what Airflow's tasks may do")
    installing.add_argument("--secret", metavar="ARN", help="the secret that holds X's bearer token")
    installing.add_argument(
        "--data-device", metavar="VOLUME", help="the spool's volume; default: the disk that is there"
    )
    installing.add_argument("--settings", type=_file, metavar="FILE", help="settings for a machine that has none yet")
    upgrading = commands.add_parser("upgrade", help="to another release, from the bucket or from a file")
    upgrading.add_argument("release", help="a version, such as 0.2.0, or a file that `make release` made")
    for parser_with_wheels in (installing, upgrading):
        parser_with_wheels.add_argument(
            "--wheels", type=_folder, metavar="FOLDER", help="install Python packages from here and nowhere else"
        )
    commands.add_parser("rollback", help="back to the release before")
    commands.add_parser("status", help="what runs, which release, and what to do next")
    airflow = commands.add_parser("airflow", help="any command of Airflow, as its user and with its settings")
    airflow.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    return parser


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is no file")
    return Path(text).resolve()


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder")
    return Path(text).resolve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
