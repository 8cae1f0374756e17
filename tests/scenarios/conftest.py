"""A real S3 server for all scenarios, and places on it: each with an X and a prefix of its own."""

import re

import pytest

from sandbox.s3 import running_s3
from tests.scenarios.place import new_places


@pytest.fixture(scope="package")
def s3():
    """SeaweedFS, with its credentials in the environment, where boto3 and delta-rs look for them."""
    with running_s3(kind="seaweedfs") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def new_place(s3, tmp_path, request):
    with new_places(s3, tmp_path, re.sub(r"\W+", "-", request.node.name)) as make:
        yield make


@pytest.fixture
def place(new_place):
    return new_place()
