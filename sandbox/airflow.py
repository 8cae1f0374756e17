"""A real Airflow of one's own: a closed environment under one folder, and `airflow` commands run in it as child processes.

Metadata in SQLite, no examples, no servers, nothing of the user's own Airflow read or written. A child never outlives
its parent, whatever the parent dies of.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.leash import leashed
from schemas.settings import CONFIG_ENV

DAG_ID = "compact_tweets"

_FAMILY = re.compile(r"AIRFLOW_|_AIRFLOW_|TWEETLAKE_")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OWN_LINE = re.compile(r"\S+ \[info +\] (?P<words>.*?) *\[tweetlake\.\w+\]")
_TAIL_LINES = 40


class AirflowFailed(Exception):
    """A command of Airflow failed or took too long. `tail` holds the last lines it printed."""

    def __init__(self, what: str, tail: list[str]) -> None:
        self.what = what
        self.tail = tail
        super().__init__("\n".join([what, *tail]))


@dataclass(frozen=True, slots=True)
class DagRun:
    """One finished, successful run of a DAG: how long it took, start of the process included, in seconds."""

    dag_id: str
    seconds: float


def dags_folder() -> Path:
    """Where the project's DAG files lie, as installed."""
    import compaction_dags

    return Path(compaction_dags.__file__).resolve().parent


def airflow_environment(home: Path, config: Path) -> dict[str, str]:
    """Every environment variable of a hermetic Airflow: this process's own, without any that would steer Airflow.

    `home` gets the metadata, logs and configuration; `config` is the settings file that the DAG reads. AWS credentials
    pass through as they are. Nothing is written here; Airflow makes `home` when it is first imported.
    """
    home, config = home.resolve(), config.resolve()
    inherited = {name: value for name, value in os.environ.items() if not _FAMILY.match(name)}
    return inherited | {
        CONFIG_ENV: str(config),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags_folder()),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        # Warnings of Airflow's own, and what our tasks tell: per-logger levels do not reach plain loggers such as ours.
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
        "AIRFLOW__LOGGING__NAMESPACE_LEVELS": "airflow=WARNING alembic=WARNING task=WARNING",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__API__HOST": "127.0.0.1",
        # Two libraries of Airflow warn about their own future at every start; neither is ours to mend.
        "PYTHONWARNINGS": "ignore",
        "PYTHONUNBUFFERED": "1",
    }


def migrate(
    environment: Mapping[str, str], *, on_line: Callable[[str], None] = lambda _: None, timeout_seconds: float = 180
) -> None:
    """Make Airflow's metadata database, or bring it up to date. Raises AirflowFailed."""
    _airflow(["db", "migrate"], environment, on_line, timeout_seconds)


def run_dag(
    environment: Mapping[str, str],
    *,
    dag_id: str = DAG_ID,
    conf: Mapping[str, Any] | None = None,
    on_line: Callable[[str], None] = lambda _: None,
    timeout_seconds: float = 600,
) -> DagRun:
    """Run a DAG once, now, to its end, by `airflow dags test`: real task runs, recorded in the metadata database.

    `conf` sets the run's parameters. `on_line` gets each line of output as it comes, without colours. Raises
    AirflowFailed if the run fails or takes longer than `timeout_seconds`; then nothing of it is left running.
    """
    began = time.monotonic()
    arguments = ["dags", "test", dag_id, *(["--conf", json.dumps(conf)] if conf else [])]
    _airflow(arguments, environment, on_line, timeout_seconds)
    return DagRun(dag_id, time.monotonic() - began)


def own_words(line: str) -> str | None:
    """What one of our tasks told in this line of output, without time and place; None for every other line."""
    match = _OWN_LINE.match(line)
    return match["words"] if match else None


def _airflow(
    arguments: list[str], environment: Mapping[str, str], on_line: Callable[[str], None], timeout_seconds: float
) -> None:
    words = f"airflow {' '.join(arguments[:3])}"
    tail = deque[str](maxlen=_TAIL_LINES)
    overdue = threading.Event()
    command = [sys.executable, "-m", "airflow", *arguments]
    with leashed(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as child:

        def stop() -> None:
            overdue.set()
            _kill_group(child)

        alarm = threading.Timer(timeout_seconds, stop)
        alarm.daemon = True
        alarm.start()
        try:
            assert child.stdout is not None
            for raw_line in child.stdout:
                line = _COLOURS.sub("", raw_line.decode("utf-8", "replace")).rstrip()
                tail.append(line)
                on_line(line)
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        finally:
            alarm.cancel()
            alarm.join()
            _kill_group(child)
    if overdue.is_set():
        raise AirflowFailed(f"`{words}` was stopped after {timeout_seconds:g} s; its last lines:", list(tail))
    if child.returncode != 0:
        raise AirflowFailed(f"`{words}` failed with exit code {child.returncode}; its last lines:", list(tail))


def _kill_group(child: "subprocess.Popen[bytes]") -> None:
    """End the command and everything it started, at once: there is nothing that it would have to save. Only before it
    is reaped, since until then nobody else can get its number.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a group of the dead
        os.killpg(child.pid, signal.SIGKILL)
