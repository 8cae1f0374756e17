"""Talks to systemd: ready, alive, stopping, and the sentence that `systemctl status` shows. Says nothing where nobody listens."""

import contextlib
import socket
from collections.abc import Mapping
from typing import Any, Self

MICROSECONDS = 1e6


class Notifier:
    """sd_notify(3): one datagram to the socket that systemd names; and what sd_watchdog_enabled(3) tells."""

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        self.watchdog_seconds = watchdog_seconds
        """How soon after a sign of life the next one must come; None: nobody waits for any."""
        self._address = address
        self._sentence: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], pid: int) -> Self:
        """As systemd set NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID for the process `pid`."""
        address = environment.get("NOTIFY_SOCKET") or None
        microseconds = environment.get("WATCHDOG_USEC", "")
        is_meant = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        is_on = address is not None and is_meant and microseconds.isdigit() and int(microseconds) > 0
        return cls(address, int(microseconds) / MICROSECONDS if is_on else None)

    @property
    def is_heard(self) -> bool:
        """Whether somebody listens; else nobody needs to find words."""
        return self._address is not None

    def ready(self) -> None:
        """The start is over."""
        self._tell("READY=1")

    def starts_longer(self, seconds: float) -> None:
        """The start goes on: systemd shall wait at least for so many seconds from now."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(seconds * MICROSECONDS)}")

    def alive(self) -> None:
        """A sign of life, if one is waited for."""
        if self.watchdog_seconds is not None:
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """The stop has begun."""
        self._tell("STOPPING=1")

    def says(self, sentence: str) -> None:
        """What it does now, for people; the same again is not sent."""
        if sentence != self._sentence:
            self._sentence = sentence
            self._tell(f"STATUS={' '.join(sentence.split())}")

    def _tell(self, state: str) -> None:
        """Never waits and never raises: who cannot be told must not stop the collection."""
        if self._address is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line,
        ):
            line.setblocking(False)
            line.sendto(state.encode(), address)


def in_a_sentence(status: Mapping[str, Any], *, is_ready: bool) -> str:
    """What the service does, or what it waits for, from what /status says."""
    first, *others = status["reasons"] or [None]
    more = f" (and {len(others)} more: `tweetlake status`)" if others else ""
    if not is_ready:
        return f"waits: {first}{more}"
    queries, waiting = status["queries"], status["spool"]["waiting"]
    lags = [query["lag_seconds"] for query in queries if query["lag_seconds"] is not None]
    behind = f", {max(lags):.0f} s behind at most" if lags else ""
    work = f"collects {_count(len(queries), 'query', 'queries')}{behind}; {_count(waiting, 'file waits', 'files wait')} for S3"
    return f"{work}; but: {first}{more}" if first else work


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
