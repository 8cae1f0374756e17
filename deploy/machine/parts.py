"""What the machine has beside releases: packages, the spool's volume, files and accounts, PostgreSQL, secrets, settings.

Each function leaves things as they shall be, however it finds them, so a run that was interrupted is simply run again.
"""

import base64
import json
import os
import secrets
import shutil
import tomllib
from pathlib import Path

from deploy.machine.releases import Release
from deploy.machine.shell import Trouble, run, say, succeeds, write
from deploy.machine.told import Told

PACKAGES = ("nftables", "postgresql", "python3-venv")
SPOOL_VOLUME = Path("/var/lib/private/tweetlake")
"""Where systemd keeps /var/lib/tweetlake of a service whose user is made for each of its lives."""
ETC = Path("/etc/tweetlake")
SETTINGS = ETC / "tweetlake.toml"
UNITS = Path("/etc/systemd/system")
AIRFLOW_USER = "tweetlake-airflow"
AIRFLOW_HOME = Path("/var/lib/tweetlake-airflow")
CLUSTER, PORT, SOCKETS, DATABASE = "tweetlake", "5499", "/run/postgresql", "airflow"
"""A PostgreSQL of its own, which listens on a socket alone; its port is only a part of the socket's name."""

_MOUNT = "var-lib-private-tweetlake.mount"
_MOUNT_UNIT = """\
# The volume that the spool lies on: what waits for S3 outlives the machine. Written by tweetlake-machine.
[Unit]
Description=Tweetlake: the volume of the spool
# Not one of the file systems that a boot waits for: without it the ingester alone cannot start.
DefaultDependencies=no
Conflicts=umount.target
Before=umount.target

[Mount]
What={device}
Where={place}
Type=ext4

[Install]
WantedBy=multi-user.target
"""
_POSTGRESQL = """\
# No port, and little memory: Airflow's metadata are small. Written by tweetlake-machine.
listen_addresses = ''
shared_buffers = 32MB
"""
_STARTER = """\
# Settings of both programs; docs/settings.md has them all.
[lake]
bucket = "{bucket}"
prefix = "{prefix}"
region = "{region}"

[budget]
usd_per_month = 50

# What is collected, a block each. Take the signs away and write your own rule, then: systemctl restart tweetlake
#[[query]]
#name = "python"
#rule = "python lang:en -is:retweet"
"""


# Debian's packages.


def packages() -> None:
    missing = [name for name in PACKAGES if not _is_installed(name)]
    if not missing:
        return
    say(f"installing {', '.join(missing)}")
    # The package would make and start a server of its own, on TCP.
    write(Path("/etc/postgresql-common/createcluster.d/tweetlake.conf"), "create_main_cluster = false\n")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    fix = "can this machine reach Debian's packages?"
    patient = ("apt-get", "--quiet", "--yes", "--option", "DPkg::Lock::Timeout=300")  # a new machine updates itself
    run(*patient, "update", environment=quiet, fix=fix)
    run(*patient, "--no-install-recommends", "install", *missing, environment=quiet, fix=fix)


def _is_installed(package: str) -> bool:
    return succeeds("sh", "-c", f"dpkg-query --show --showformat='${{Status}}' {package} | grep -q ' installed$'")


# The spool's volume.


def volume(machine: Told) -> None:
    """The data volume where the spool will lie: made into a file system if it is empty, mounted now and at every boot."""
    if not machine.data_device:
        return
    device = _device(machine.data_device)
    if not os.path.ismount(SPOOL_VOLUME) and SPOOL_VOLUME.is_dir() and any(SPOOL_VOLUME.iterdir()):
        raise Trouble(
            f"there is a spool on the system's disk, in {SPOOL_VOLUME}, which a volume there would hide\n"
            "  fix: let it ship what it has (`tweetlake spool ship`), then move it away"
        )
    if is_blank(device):
        say(f"making a file system on {machine.data_device}, which is empty")
        run("mkfs.ext4", "-q", "-m", "0", "-L", "tweetlake", device)
    SPOOL_VOLUME.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(UNITS / _MOUNT, _MOUNT_UNIT.format(device=device, place=SPOOL_VOLUME))
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "--quiet", "--now", _MOUNT)


def is_blank(device: Path) -> bool:
    """Whether nothing was ever written where file systems and partitions begin: new volumes read as zeros.

    Not by blkid, to which a disk that cannot be read is an empty one.
    """
    try:
        with device.open("rb") as disk:
            return not any(disk.read(1 << 20))
    except OSError as error:
        raise Trouble(
            f"{device} cannot be read: {error}\n  fix: nothing was written to it; look at the volume"
        ) from None


def _device(name: str) -> Path:
    """A volume's id is not the name of its device: on today's instances that is an NVMe disk, by its serial number."""
    by_id = Path(f"/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{name.replace('-', '')}")
    device = by_id if name.startswith("vol-") else Path(name)
    if not device.exists():
        raise Trouble(
            f"--data-device {name} is not there\n  fix: attach the volume to this instance, then run this again"
        )
    return device


# Files, accounts, folders.


def place(release: Release, instead_of: Release | None) -> None:
    """The release's units and settings of the system into place; what only the one before had is removed."""
    for file in _tree(release):
        write(Path("/") / file, (release.files / file).read_text("utf-8"))
    for file in (_tree(instead_of) if instead_of else set()) - _tree(release):
        (Path("/") / file).unlink(missing_ok=True)
    run("systemd-sysusers", "tweetlake.conf")
    run("systemd-tmpfiles", "--create", "tweetlake.conf")


def _tree(release: Release) -> set[Path]:
    return {file.relative_to(release.files) for file in release.files.rglob("*") if file.is_file()}


# PostgreSQL, for Airflow's metadata.


def database() -> None:
    """A cluster that can be reached by socket alone, in which Airflow's user, and nobody else, has a database."""
    version = max((path.name for path in Path("/usr/lib/postgresql").iterdir()), key=float)
    cluster = Path(f"/etc/postgresql/{version}/{CLUSTER}")
    if not (cluster / "postgresql.conf").is_file():
        say(f"making a PostgreSQL {version} for Airflow")
        options = ("--port", PORT, "--socketdir", SOCKETS, "--encoding", "UTF8", "--locale", "C.UTF-8")
        run("pg_createcluster", *options, version, CLUSTER, "--", "--auth-local=peer")
    changed = write(cluster / "conf.d/tweetlake.conf", _POSTGRESQL)
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "--quiet", "postgresql")
    run("systemctl", "restart" if changed else "start", f"postgresql@{version}-{CLUSTER}")
    run("systemctl", "start", "postgresql")
    if not _sql(f"select 1 from pg_roles where rolname = '{AIRFLOW_USER}'"):  # noqa: S608 - names of our own
        _sql(f'create role "{AIRFLOW_USER}" login')
    if not _sql(f"select 1 from pg_database where datname = '{DATABASE}'"):  # noqa: S608 - as above
        _sql(f'create database {DATABASE} owner "{AIRFLOW_USER}"')


def _sql(statement: str) -> str:
    return run(
        "runuser", "--user", "postgres", "--", "psql", "--host", SOCKETS, "--port", PORT, "--no-align", "--tuples-only",
        "--quiet", "--command", statement,
    ).strip()  # fmt: skip


# Airflow's secrets.


def airflow_secrets() -> None:
    """Made once: what Airflow's parts know each other by, and the password of its page."""
    keys = ETC / "airflow-secrets.env"
    if not keys.exists():
        fernet = base64.urlsafe_b64encode(os.urandom(32)).decode()
        write(
            keys,
            "# Made once on this machine by tweetlake-machine; only root reads it.\n"
            f"AIRFLOW__API_AUTH__JWT_SECRET={secrets.token_urlsafe(48)}\n"
            f"AIRFLOW__API__SECRET_KEY={secrets.token_urlsafe(48)}\n"
            f"AIRFLOW__CORE__FERNET_KEY={fernet}\n",
            0o600,
        )
    if not (passwords := AIRFLOW_HOME / "passwords.json").exists():
        write(passwords, json.dumps({"admin": secrets.token_urlsafe(15)}) + "\n", 0o600, AIRFLOW_USER)


# The settings of both programs.


def settings(machine: Told, given: Path | None) -> None:
    """The file that is there stays, whatever it says. Otherwise the given one, else one that has no query yet."""
    if not SETTINGS.exists() and given is not None:
        shutil.copyfile(given, SETTINGS)
        SETTINGS.chmod(0o644)
    elif not SETTINGS.exists():
        write(SETTINGS, _STARTER.format(bucket=machine.bucket, prefix=machine.prefix, region=machine.region))
    if remark := _remark(machine, SETTINGS.read_text("utf-8")):
        say(f"{SETTINGS}: {remark}")


def _remark(machine: Told, text: str) -> str | None:
    """What the programs' roles would refuse, if that can be seen: they may reach one bucket and one prefix."""
    try:
        lake = tomllib.loads(text).get("lake", {})
    except tomllib.TOMLDecodeError as error:
        return f"is not TOML: {error}"
    there = (lake.get("bucket", ""), lake.get("prefix", "").rstrip("/"))
    if there != (allowed := (machine.bucket, machine.prefix.rstrip("/"))):
        return f"the lake is {'/'.join(there)!r}, but the programs may only reach {'/'.join(allowed)!r}"
    return None
