"""What systemd hears: held against a real datagram socket, by sd_notify(3) and sd_watchdog_enabled(3)."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingester.notify import Notifier, in_a_sentence


class Manager:
    """The other end: listens where NOTIFY_SOCKET points."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Everything since the last call."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture(params=["a path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = f"@tweetlake-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    found = Manager(address)
    yield found
    found.socket.close()


def notifier(manager, **environment):
    return Notifier.from_environment({"NOTIFY_SOCKET": manager.address} | environment, os.getpid())


def test_each_message_is_one_datagram_as_sd_notify_has_it(manager):
    told = notifier(manager, WATCHDOG_USEC="2000000")
    told.ready()
    told.alive()
    told.starts_longer(1.5)
    told.stopping()
    told.says("collects")
    assert manager.heard() == ["READY=1", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=1500000", "STOPPING=1", "STATUS=collects"]


def test_a_sentence_is_one_line_and_is_not_told_twice(manager):
    told = notifier(manager)
    told.says("X said:\n  no\nREADY=1")
    told.says("X said:\n  no\nREADY=1")
    told.says("fine")
    assert manager.heard() == ["STATUS=X said: no READY=1", "STATUS=fine"]


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_signs_of_life_are_given_only_where_they_are_waited_for(manager, environment, seconds):
    told = notifier(manager, **environment)
    assert told.watchdog_seconds == seconds
    told.alive()
    assert manager.heard() == ([] if seconds is None else ["WATCHDOG=1"])


def test_without_systemd_nothing_is_said_and_nothing_is_waited_for():
    for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "1000"}):
        told = Notifier.from_environment(environment, os.getpid())
        told.ready()
        told.alive()
        assert told.watchdog_seconds is None


def test_who_does_not_listen_stops_nothing(manager, tmp_path):
    Notifier(str(tmp_path / "nobody")).ready()
    told = notifier(manager, WATCHDOG_USEC="1000")
    for _ in range(10_000):  # more than fit into the socket's queue
        told.alive()
    assert manager.heard()


# The sentence.


def status(*reasons, lags=(12.4, 3.0), waiting=0):
    queries = [{"lag_seconds": lag} for lag in lags]
    return {"reasons": list(reasons), "queries": queries, "spool": {"waiting": waiting}}


@pytest.mark.parametrize(
    ("found", "is_ready", "sentence"),
    [
        (status(), True, "collects 2 queries, 12 s behind at most; 0 files wait for S3"),
        (status(lags=(None,), waiting=1), True, "collects 1 query; 1 file waits for S3"),
        (status("X refuses"), True, "collects 2 queries, 12 s behind at most; 0 files wait for S3; but: X refuses"),
        (status("no state", lags=()), False, "waits: no state"),
        (status("no state", "b", "c", lags=()), False, "waits: no state (and 2 more: `tweetlake status`)"),
    ],
)
def test_a_person_can_read_what_it_does(found, is_ready, sentence):
    assert in_a_sentence(found, is_ready=is_ready) == sentence
