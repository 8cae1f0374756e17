"""A simulated X whose clock the test holds, and a caller that asks it as any program would."""

import http.client
import json
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from sandbox.world import WorldSettings
from sandbox.x_api import ApiSettings, RunningXApi, running_x_api
from schemas.snowflake import EPOCH_MS, SHIFT

NOW = 1_795_176_000.0
"""2026-11-20T12:00:00Z."""
WORLD = WorldSettings(seed=7, tweets_per_second=4.0, backlog_hours=3.0)


@dataclass
class Clock:
    """A clock that stands until it is moved."""

    seconds: float = NOW

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    raw: bytes
    body: Any = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.body = json.loads(self.raw)
        except ValueError:
            self.body = None


class Caller:
    """Asks over one connection, anew after a broken one."""

    def __init__(self, api: RunningXApi) -> None:
        self.api = api
        self._address = urllib.parse.urlsplit(api.url).netloc
        self._connection = http.client.HTTPConnection(self._address, timeout=10)

    def get(self, path: str, headers: dict[str, str] | None = None, **parameters: Any) -> Reply:
        query = urllib.parse.urlencode({name.replace("__", "."): value for name, value in parameters.items()})
        sent = {"Authorization": f"Bearer {self.api.token}"} | (headers or {})
        sent = {name: value for name, value in sent.items() if value}
        try:
            self._connection.request("GET", f"{path}?{query}", headers=sent)
            answer = self._connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read())
        except Exception:
            self.close()
            raise

    def search(self, query: str, **parameters: Any) -> Reply:
        return self.get("/2/tweets/search/recent", query=query, **parameters)

    def pages(self, query: str, **parameters: Any) -> Iterator[Reply]:
        """Page after page; `parameters` may give a list of page sizes as max_results."""
        sizes = parameters.pop("max_results", [100])
        token: dict[str, str] = {}
        for turn in range(10_000):
            page = self.search(query, max_results=sizes[turn % len(sizes)], **parameters, **token)
            assert page.status == 200, page.raw
            yield page
            if "next_token" not in page.body["meta"]:
                return
            token = {"next_token": page.body["meta"]["next_token"]}
        raise AssertionError("paging does not end")

    def ids(self, query: str, **parameters: Any) -> list[int]:
        return [int(post["id"]) for page in self.pages(query, **parameters) for post in page.body.get("data", [])]

    def close(self) -> None:
        self._connection.close()


def id_at(seconds: float) -> int:
    return (int(seconds * 1000) - EPOCH_MS) << SHIFT


@pytest.fixture(scope="session")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def shared_api(clock):
    with running_x_api(WORLD, ApiSettings(search_limit=10**9, counts_limit=10**9), now=clock) as api:
        yield api


@pytest.fixture
def api(shared_api, clock):
    clock.seconds = NOW
    shared_api.set_faults()
    return shared_api


@pytest.fixture
def caller(api):
    made = Caller(api)
    yield made
    made.close()
