"""One PostgreSQL, one Airflow and one S3 server for all tests here; a lake of its own for each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.s3 import RunningS3, running_s3
from tests.dags.place import Lake, new_lake
from tests.system.running_airflow import RunningAirflow, running_airflow


@pytest.fixture(scope="session")
def server() -> Iterator[RunningS3]:
    with running_s3(kind="seaweedfs") as server:
        yield server


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings file that every task reads: the lake of the test that runs."""
    return tmp_path_factory.mktemp("settings") / "tweetlake.toml"


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory, server: RunningS3, config: Path) -> Iterator[RunningAirflow]:
    with running_airflow(tmp_path_factory.mktemp("airflow"), config, server.environment()) as running:
        yield running


@pytest.fixture
def lake(server: RunningS3, tmp_path: Path, config: Path) -> Lake:
    made = new_lake(server, tmp_path)
    config.write_text(made.settings.read_text())
    return made
