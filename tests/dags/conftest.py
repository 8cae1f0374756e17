"""One Airflow for all DAG tests: a child process with a hermetic environment, started when the first test needs it."""

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.airflow import airflow_environment
from sandbox.s3 import RunningS3, running_s3
from tests.dags import laboratory
from tests.dags.place import Lake, new_lake

Laboratory = Callable[..., Any]
ANSWER_SECONDS = 100


@pytest.fixture(scope="session")
def loading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Calls a function of laboratory.py in the child, which has no database yet."""
    home = tmp_path_factory.mktemp("airflow")
    environment = airflow_environment(home, home / "no-settings.toml")
    spawning = multiprocessing.get_context("spawn")
    requests, theirs = spawning.Pipe()
    child = spawning.Process(target=laboratory.serve, args=(theirs, environment))
    child.start()
    theirs.close()

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        requests.send((function, arguments))
        if not requests.poll(ANSWER_SECONDS):
            child.kill()
            raise TimeoutError(f"{function.__name__} took more than {ANSWER_SECONDS} s in Airflow's process")
        result, error = requests.recv()
        if error is not None:
            raise error
        return result

    yield call
    child.kill()  # Airflow would not heed a SIGTERM
    child.join()


@pytest.fixture(scope="session")
def running(loading: Laboratory) -> Laboratory:
    """The same, with a database: the DAG can run."""
    loading(laboratory.make_database)
    return loading


@pytest.fixture(scope="session")
def folder(loading: Laboratory) -> laboratory.FolderFacts:
    """The DAGs folder as Airflow loads it."""
    return loading(laboratory.load)


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """A settings file that is good, for a lake that is not there."""
    file = tmp_path / "tweetlake.toml"
    file.write_text('[lake]\nbucket = "nowhere"\n[[query]]\nname = "q"\nrule = "cats"\n', "utf-8")
    return file


@pytest.fixture(scope="session")
def server() -> Iterator[RunningS3]:
    with running_s3() as server:
        yield server


@pytest.fixture
def lake(server: RunningS3, tmp_path: Path) -> Lake:
    return new_lake(server, tmp_path)
