"""How a log line looks to whoever reads it, and how often the same one is written.

One line an event, to stderr: for people on a terminal, JSON otherwise. What systemd's journal takes in gets a priority in
front, so that `journalctl -p warning` finds it. A trouble that stays is not written each time it is met again.
"""

import logging
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TextIO

import structlog

REPEAT_SECONDS = 300.0
"""The same warning is written once in so long; then it says how often it was met meanwhile."""
_MOST_KNOWN = 500
"""Different warnings that are remembered."""
_CHANGING = frozenset({"timestamp", "level", "wait_seconds", "until"})
"""What differs between two lines that say the same."""
_ENDS: Mapping[str, frozenset[str]] = {
    "asking_resumed": frozenset({"asking_paused"}),
    "page_stored": frozenset({"request_failed", "request_refused", "page_problem", "query_paused"}),
    "shipped": frozenset({"upload_failed", "upload_paused"}),
    "lease_taken": frozenset({"lease_waiting", "lease_lost", "lease_unreachable"}),
    "state_found": frozenset({"state_unreachable"}),
}
"""What shows that a trouble is over; of the same query, if it is one of a query. If it comes back, it is another one."""
_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6}
"""syslog's; sd-daemon(3) has how they stand in front of a line."""


def configure_logging(*, human: bool | None = None) -> None:
    """Decide it by where stderr goes. tweepy's and botocore's own logs stay at warning: their debug lines hold the token."""
    human = sys.stderr.isatty() if human is None else human
    renderers: list[Any] = [structlog.dev.ConsoleRenderer()] if human else [structlog.processors.JSONRenderer()]
    if is_journal(sys.stderr, os.environ):
        renderers.append(_Prioritised(renderers.pop()))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            Repetition(time.monotonic),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _event_first,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether the stream ends in systemd's journal: $JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


@dataclass(slots=True)
class _Warning:
    """One that was written."""

    event: str
    query: str | None
    written: float
    dropped: int = 0
    """How often it was met since."""


class Repetition:
    """Drops a warning that was written lately and is not over; the next that is written tells how many were not, as
    `repeated`.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._known: OrderedDict[str, _Warning] = OrderedDict()

    def __call__(self, _logger: Any, _name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if line.get("level") != "warning":
            self._end(line)
            return line
        said = repr(sorted((key, value) for key, value in line.items() if key not in _CHANGING))
        now, known = self._monotonic(), self._known.get(said)
        if known is not None and now - known.written < REPEAT_SECONDS:
            known.dropped += 1
            raise structlog.DropEvent
        self._known[said] = _Warning(str(line.get("event")), line.get("query"), now)
        self._known.move_to_end(said)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return {**line, "repeated": known.dropped} if known is not None and known.dropped else line

    def _end(self, line: Mapping[str, Any]) -> None:
        if (over := _ENDS.get(str(line.get("event")))) is None:
            return
        for said, known in list(self._known.items()):
            if known.event in over and known.query in {None, line.get("query")}:
                del self._known[said]


class _Prioritised:
    """Puts the priority in front of what another renderer makes of a line."""

    def __init__(self, render: Callable[..., str]) -> None:
        self._render = render

    def __call__(self, logger: Any, name: str, line: MutableMapping[str, Any]) -> str:
        priority = _PRIORITIES.get(str(line.get("level")), _PRIORITIES["info"])
        return f"<{priority}>{self._render(logger, name, line)}"


def _event_first(_logger: Any, _name: str, line: MutableMapping[str, Any]) -> dict[str, Any]:
    """Time, level and event lead every line, so that a column of them can be read down."""
    leading = ("timestamp", "level", "event")
    return {name: line[name] for name in leading if name in line} | {k: v for k, v in line.items() if k not in leading}
