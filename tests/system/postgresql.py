"""A PostgreSQL server of one's own on this machine: empty, on a free port of 127.0.0.1, gone when the block ends."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2

from sandbox.leash import free_ports, leashed

START_SECONDS = 30.0
USER = "postgres"
"""The server refuses to be root, so as root it is run as the user that Debian's package makes."""


def programs() -> Path:
    """The folder of the newest server that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3]))
    named = shutil.which("initdb")
    if not found and named is None:
        raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1].parent if found else Path(str(named)).parent


@contextlib.contextmanager
def running_postgresql(database: str) -> Iterator[str]:
    """Run a server with an empty database; yields `user@host:port/database`."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="tweetlake-postgresql-") as folder:
        place = Path(folder)
        if os.geteuid() == 0:
            shutil.chown(place, USER, USER)
        data, log = place / "data", place / "server.log"
        _as_user(programs() / "initdb", "-D", data, "-U", "airflow", "--auth=trust", "-E", "UTF8", "--no-sync")
        server = [
            *_prefix(), programs() / "postgres", "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1",
            "-c", f"unix_socket_directories={place}", "-c", "fsync=off", "-c", "max_connections=200",
        ]  # fmt: skip
        with (
            log.open("wb") as output,
            leashed(list(map(str, server)), stdout=output, stderr=output, cwd=place) as keeper,
        ):
            address = f"airflow@127.0.0.1:{port}"
            connection = _connected(f"postgresql://{address}/postgres", keeper, log)
            with contextlib.closing(connection), connection.cursor() as cursor:
                connection.autocommit = True
                cursor.execute(f'CREATE DATABASE "{database}"')
            yield f"{address}/{database}"


def _prefix() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--pdeathsig=KILL"]


def _as_user(*command: object) -> None:
    done = subprocess.run(
        [*_prefix(), *map(str, command)], capture_output=True, text=True, check=False, timeout=60, cwd="/"
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr}")


def _connected(url: str, keeper: "subprocess.Popen[bytes]", log: Path) -> "psycopg2.extensions.connection":
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return psycopg2.connect(url)
        except psycopg2.OperationalError as error:
            if time.monotonic() > deadline or keeper.poll() is not None:
                raise RuntimeError(f"PostgreSQL does not start: {error}\n{log.read_text(errors='replace')}") from error
            time.sleep(0.05)
