"""A real S3 server for all scenarios, and places on it: each with an X and a prefix of its own."""

import contextlib
import re

import pytest

from sandbox.s3 import running_s3
from sandbox.world import WorldSettings
from sandbox.x_api import ApiSettings, running_x_api
from tests.scenarios.place import Place

WORLD = WorldSettings(seed=7, tweets_per_second=3, backlog_hours=1)


@pytest.fixture(scope="session")
def s3():
    with running_s3(kind="seaweedfs") as server:
        yield server


@pytest.fixture
def new_place(s3, tmp_path, monkeypatch, request):
    """Makes places, each with its name; the S3 that its service sees may be a proxy's."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    test = re.sub(r"\W+", "-", request.node.name)
    with contextlib.ExitStack() as stack:

        def make(name="place", *, x=None, seen_s3=None, world=WORLD, **settings):
            if x is None:
                x = stack.enter_context(running_x_api(world, ApiSettings(search_limit=100_000), process=True))
            return Place(tmp_path / name, x, s3, f"{test}/{name}", seen_s3 or s3, **settings)

        yield make


@pytest.fixture
def place(new_place):
    return new_place()
