"""`tweetlake install-service`: the systemd unit and its example of an environment into place."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click

PROGRAM = "/opt/tweetlake/bin/tweetlake"
"""Where the unit, as it is shipped, expects the program."""
HIDDEN = {Path("/home"), Path("/root"), Path("/run/user")}
"""What ProtectHome=yes hides from the service."""
GROWING_WAITS_SINCE = 254
_GROWING_WAITS = """\
# Waits between restarts grow from RestartSec= to ten minutes. Written by `tweetlake install-service`, as this systemd is 254
# or newer.
[Service]
RestartSteps=8
RestartMaxDelaySec=600
"""
_NEXT = """
Next, where it is not done yet:
  1. /etc/tweetlake/tweetlake.toml: the settings, readable by everybody (docs/settings.md shows the smallest)
  2. /etc/tweetlake/x-bearer-token: X's bearer token:  install -m 0600 /dev/stdin /etc/tweetlake/x-bearer-token
  3. systemctl daemon-reload && systemctl enable --now tweetlake
  4. systemctl status tweetlake; journalctl -u tweetlake -f
"""


@dataclass(frozen=True, slots=True)
class _File:
    """What shall lie where."""

    path: Path
    content: str


@click.command("install-service")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path("/"),
    show_default=True,
    help="Install below this folder, as for an image.",
)
@click.option("--program", default=None, help="The `tweetlake` that the unit starts. Default: the one of this Python.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
def install_service(root: Path, program: str | None, dry_run: bool) -> None:
    """Put the hardened systemd unit and an example of its environment into place. Starts nothing, asks for nothing, and
    may be called again: what is as it should be stays.

    Own changes belong into `systemctl edit tweetlake`: the unit itself is replaced by the next version's.

    \b
    Examples:
      sudo /opt/tweetlake/bin/tweetlake install-service
      tweetlake install-service --dry-run
      tweetlake install-service --root /mnt/image --program /opt/tweetlake/bin/tweetlake
    """
    program = program or str(Path(sys.prefix) / "bin/tweetlake")
    _refuse_what_the_service_cannot_reach(root, program)
    for file in _files(root, program, _systemd_version()):
        was = file.path.read_text("utf-8") if file.path.is_file() else None
        told = "unchanged" if was == file.content else "written" if was is None else "replaced"
        if was != file.content and dry_run:
            told = f"would be {told}"
        elif was != file.content:
            _write(file)
        click.echo(f"{told:<10} {file.path}")
    click.echo(_NEXT)


def _files(root: Path, program: str, systemd: int | None) -> list[_File]:
    """Everything that belongs to an installation, for this program and this systemd."""
    units, settings = root / "etc/systemd/system", root / "etc/tweetlake"
    shipped = _shipped()
    unit = (shipped / "tweetlake.service").read_text("utf-8").replace(f"={PROGRAM} ", f"={program} ")
    example = (shipped / "tweetlake.env.example").read_text("utf-8")
    files = [_File(units / "tweetlake.service", unit), _File(settings / "tweetlake.env.example", example)]
    if systemd is not None and systemd >= GROWING_WAITS_SINCE:
        files.append(_File(units / "tweetlake.service.d/10-growing-waits.conf", _GROWING_WAITS))
    return files


def _shipped() -> Path:
    """The folder with the unit: in an installed package beside this room, in a checkout beside all of them."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "systemd", package.parent / "systemd") if folder.is_dir())


def _refuse_what_the_service_cannot_reach(root: Path, program: str) -> None:
    if any(character.isspace() for character in program):
        raise click.ClickException(f"{program}: systemd would split that path\n  fix: install into /opt/tweetlake")
    real = str((root / program.lstrip("/")).with_name("python").resolve())
    for path in (program, real):
        if HIDDEN & set(Path(path).parents):
            raise click.ClickException(
                f"the service could not reach {path}: people's homes are hidden from it\n"
                "  fix: make the environment outside of homes, from a Python outside of homes:"
                " /usr/bin/python3 -m venv /opt/tweetlake"
            )
    if not (root / program.lstrip("/")).is_file():
        raise click.ClickException(f"{program} does not exist{'' if root == Path('/') else f' below {root}'}\n"
                                   "  fix: install tweetlake there, or name the program by --program")  # fmt: skip


def _systemd_version() -> int | None:
    """Of this machine; None where there is none."""
    try:
        told = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.match(r"systemd (\d+)", told)
    return int(found[1]) if found else None


def _write(file: _File) -> None:
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.write_text(file.content, "utf-8")
        file.path.chmod(0o644)
    except PermissionError as error:
        raise click.ClickException(f"{file.path} cannot be written: {error.strerror}\n  fix: run it as root") from None
    except OSError as error:
        raise click.ClickException(
            f"{file.path} cannot be written: {error.strerror}\n  fix: look at that disk"
        ) from None
