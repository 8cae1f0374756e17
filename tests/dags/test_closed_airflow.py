"""The closed Airflow of sandbox/airflow.py: nothing of the user's own gets in, and nothing is left running."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sandbox import airflow

pytestmark = pytest.mark.dag


def test_the_environment_is_all_under_one_folder(tmp_path: Path) -> None:
    environment = airflow.airflow_environment(tmp_path / "home", tmp_path / "tweetlake.toml")
    assert environment["AIRFLOW_HOME"] == str(tmp_path / "home")
    assert environment["TWEETLAKE_CONFIG"] == str(tmp_path / "tweetlake.toml")
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == f"sqlite:///{tmp_path}/home/airflow.db"
    assert (Path(environment["AIRFLOW__CORE__DAGS_FOLDER"]) / "compact_tweets.py").exists()
    assert not (tmp_path / "home").exists()


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = airflow.airflow_environment(Path("home"), Path("tweetlake.toml"))
    assert environment["AIRFLOW_HOME"] == str(tmp_path / "home")
    assert environment["TWEETLAKE_CONFIG"] == str(tmp_path / "tweetlake.toml")


def test_what_would_steer_airflow_or_the_settings_stays_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://the-users-own")
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", "aws://the-users-own")
    monkeypatch.setenv("TWEETLAKE__LAKE__BUCKET", "the-users-own")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "passes")
    environment = airflow.airflow_environment(tmp_path, tmp_path / "tweetlake.toml")
    assert "the-users-own" not in " ".join(environment.values())
    assert environment["AWS_ACCESS_KEY_ID"] == "passes"


HANGS = """
import os, subprocess, sys, threading
helper = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
print(os.getpid(), helper.pid, flush=True)
threading.Event().wait()
"""


def pretend(tmp_path: Path, body: str) -> dict[str, str]:
    """An environment in which `airflow` is a few lines of ours, so that what surrounds it can be seen alone."""
    package = tmp_path / "pretended" / "airflow"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(body, "utf-8")
    return airflow.airflow_environment(tmp_path, tmp_path / "none.toml") | {"PYTHONPATH": str(package.parent)}


def test_a_run_that_takes_too_long_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(airflow.AirflowFailed, match=r"was stopped after 2 s") as failed:
        airflow.run_dag(pretend(tmp_path, HANGS), on_line=lines.append, timeout_seconds=2)
    assert failed.value.tail == lines
    assert all(ended(int(pid)) for pid in lines[0].split())


def test_a_listener_that_gives_up_leaves_nothing_running(tmp_path: Path) -> None:
    lines: list[str] = []

    def interrupted(line: str) -> None:
        lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        airflow.run_dag(pretend(tmp_path, HANGS), on_line=interrupted, timeout_seconds=60)
    assert all(ended(int(pid)) for pid in lines[0].split())


def test_airflow_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = """
import json, sys
from sandbox import airflow
airflow.run_dag(json.loads(sys.argv[1]), on_line=lambda line: print(line, flush=True))
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(pretend(tmp_path, HANGS))], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid, helper = parent.stdout.readline().split()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        assert ended(int(pid))
    finally:
        psutil.Process(int(helper)).kill()  # this one would have to notice by itself


def ended(pid: int) -> bool:
    """Whether it ends, at the latest in 20 seconds; the dead that nobody has reaped yet count as ended."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_a_failing_run_shows_its_last_lines(tmp_path: Path) -> None:
    environment = pretend(tmp_path, 'print("\\x1b[31mfirst\\x1b[0m")\nprint("the cause")\nraise SystemExit(3)')
    lines: list[str] = []
    with pytest.raises(airflow.AirflowFailed, match="failed with exit code 3") as failed:
        airflow.run_dag(environment, on_line=lines.append)
    assert lines == failed.value.tail == ["first", "the cause"]
    assert "the cause" in str(failed.value)


def test_parameters_are_handed_on(tmp_path: Path) -> None:
    lines: list[str] = []
    airflow.run_dag(
        pretend(tmp_path, "import sys; print(sys.argv[1:])"), conf={"include_open": True}, on_line=lines.append
    )
    assert lines == ["""['dags', 'test', 'compact_tweets', '--conf', '{"include_open": true}']"""]


def test_only_what_our_tasks_tell_counts_as_their_words() -> None:
    told = (
        "2026-11-21T05:10:26.342701Z [info     ] 2026-11-20T13: 2 microbatches [tweetlake.compact_tweets] loc=x.py:123"
    )
    assert airflow.own_words(told) == "2026-11-20T13: 2 microbatches"
    assert (
        airflow.own_words("2026-11-21T05:10:26Z [info     ] [DAG TEST] running task [airflow.sdk] loc=x.py:1") is None
    )
    assert airflow.own_words("Traceback (most recent call last):") is None
