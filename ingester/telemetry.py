"""What the service says about itself: every event once, as one log line and its metrics; and the last problems for people."""

from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


@dataclass(frozen=True, slots=True)
class Problem:
    """Something a person may want to know of, for /status."""

    at: datetime
    """When it was told last."""
    event: str
    detail: str
    times: int = 1
    first_at: datetime | None = None
    """When it was told first, if that was another time."""

    def again(self, at: datetime) -> "Problem":
        """The same told once more."""
        return Problem(at, self.event, self.detail, self.times + 1, self.first_at or self.at)


class Telemetry:
    """One method per event. Business code says what happened, once."""

    def __init__(self, registry: CollectorRegistry | None = None, now: Callable[[], datetime] | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.problems: deque[Problem] = deque(maxlen=50)
        self.posts: Tally[str] = Tally()
        """Posts stored in this life, repeats included, by query."""
        self.gaps: Tally[str] = Tally()
        """Intervals recorded in this life as not covered, by query."""
        self._now = now or (lambda: datetime.now(UTC))
        self._log = structlog.get_logger()
        self._told = self._counter("problems", "Problems told, by event; docs/runbook.md has each.", "event")
        self._requests = self._counter("requests", "Requests to X by what the answer meant.", "query", "meaning")
        self._pages = self._counter("pages_stored", "Pages of X made durable in the spool.", "query")
        self._posts = self._counter("posts_stored", "Posts in the pages stored, repeats included.", "query")
        self._bytes = self._counter("page_bytes", "Bytes of the page bodies stored, before compression.", "query")
        self._cost = self._counter("spent_usd", "US dollars booked for pages, by the settings' prices.", "query")
        self._page_problems = self._counter("page_problems", "Pages that could not be followed.", "query")
        self._gaps = self._counter("gaps", "Intervals recorded as not covered.", "query", "reason")
        self._gap_at = Gauge(
            "tweetlake_last_gap_timestamp_seconds",
            "When an interval was last recorded as not covered, as Unix time.",
            ["query", "reason"],
            registry=self.registry,
        )
        self._latency = Histogram(
            "tweetlake_request_duration_seconds",
            "From sending a request to X until its whole answer.",
            registry=self.registry,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self._sealed = self._counter("microbatches_sealed", "Microbatches sealed, by what made it.", "reason")
        self._shipped = self._counter("microbatches_shipped", "Microbatches stored in S3 and forgotten locally.")
        self._shipped_bytes = self._counter("shipped_bytes", "Bytes of the microbatches stored in S3.")
        self._upload_failures = self._counter("upload_failures", "Failed attempts to upload; each is tried again.")
        self._quarantined = self._counter("microbatches_quarantined", "Microbatches set aside for a person to look at.")

    def _counter(self, name: str, doc: str, *labels: str) -> Counter:
        return Counter(f"tweetlake_{name}", doc, labels, registry=self.registry)

    def expect(self, queries: Iterable[str]) -> None:
        """Begin every query's counters at 0: a rate does not see the first step of one that begins with it."""
        for query in queries:
            for counter in (self._pages, self._posts, self._bytes, self._cost, self._page_problems):
                counter.labels(query)
            self._requests.labels(query, "page")

    def _problem(self, event: str, detail: str, **facts: Any) -> None:
        self._told.labels(event).inc()
        told = next((each for each in self.problems if (each.event, each.detail) == (event, detail)), None)
        if told is not None:  # one that comes again and again does not push out the others
            self.problems.remove(told)
        self.problems.append(told.again(self._now()) if told else Problem(self._now(), event, detail))
        self._log.warning(event, detail=detail, **facts)

    # The life of the process.

    def started(self, **facts: Any) -> None:
        self._log.info("started", **facts)

    def listening_openly(self, detail: str) -> None:
        self._problem("listening_openly", detail)

    def answering_failed(self, path: str, detail: str) -> None:
        self._problem("answering_failed", detail, path=path)

    def stopping(self, reason: str) -> None:
        self._log.info("stopping", reason=reason)

    def stopped(self, **facts: Any) -> None:
        self._log.info("stopped", **facts)

    def died(self, reasons: list[str]) -> None:
        self._log.error("died", reasons=reasons)

    def loop_hung(self, name: str, silent_seconds: float, where: str | None) -> None:
        self._problem("loop_hung", f"{name} has made no progress for {silent_seconds:.0f} s", loop=name, where=where)

    def state_found(self, where: str, sequence: int, queries: int) -> None:
        self._log.info("state_found", where=where, sequence=sequence, queries=queries)

    def state_unreachable(self, detail: str, wait_seconds: float) -> None:
        self._problem("state_unreachable", detail, wait_seconds=round(wait_seconds, 1))

    # The lease.

    def lease_taken(self, term: int) -> None:
        self._log.info("lease_taken", term=term)

    def lease_released(self) -> None:
        self._log.info("lease_released")

    def lease_waiting(self, detail: str) -> None:
        self._problem("lease_waiting", detail)

    def lease_lost(self, detail: str) -> None:
        self._problem("lease_lost", detail)

    def lease_unreachable(self, detail: str) -> None:
        self._problem("lease_unreachable", detail)

    # X.

    def answered(self, query: str, meaning: str, seconds: float) -> None:
        self._requests.labels(query, meaning).inc()
        self._latency.observe(seconds)

    def page_stored(self, query: str, *, posts: int, size: int, microusd: int, interval: str, last: bool) -> None:
        self._pages.labels(query).inc()
        self._posts.labels(query).inc(posts)
        self.posts[query] += posts
        self._bytes.labels(query).inc(size)
        self._cost.labels(query).inc(microusd / 1e6)
        if posts:
            self._log.info(
                "page_stored", query=query, posts=posts, usd=round(microusd / 1e6, 4), interval=interval, last=last
            )

    def page_problem(self, query: str, detail: str, wait_seconds: float) -> None:
        self._page_problems.labels(query).inc()
        self._problem("page_problem", detail, query=query, wait_seconds=round(wait_seconds, 1))

    def planned(self, query: str, intervals: int, reason: str) -> None:
        self._log.info("planned", query=query, intervals=intervals, reason=reason)

    def rule_changed(self, query: str, rule: str | None) -> None:
        self._log.info("rule_changed", query=query, rule=rule)

    def gap_recorded(self, query: str, reason: str, interval: str) -> None:
        self._gaps.labels(query, reason).inc()
        self.gaps[query] += 1
        self._gap_at.labels(query, reason).set(self._now().timestamp())
        self._problem("gap_recorded", f"{interval} will not be covered: {reason}", query=query)

    def request_failed(self, query: str, detail: str, wait_seconds: float) -> None:
        self._requests.labels(query, "no_answer").inc()
        self._problem("request_failed", detail, query=query, wait_seconds=round(wait_seconds, 1))

    def request_refused(self, query: str, detail: str, wait_seconds: float) -> None:
        self._problem("request_refused", detail, query=query, wait_seconds=round(wait_seconds, 1))

    def asking_paused(self, reason: str, until: datetime | None) -> None:
        self._problem("asking_paused", reason, until=until.isoformat(timespec="seconds") if until else None)

    def query_paused(self, query: str, reason: str, until: datetime | None) -> None:
        self._problem("query_paused", reason, query=query, until=until.isoformat(timespec="seconds") if until else None)

    def aside_failed(self, endpoint: str, detail: str) -> None:
        self._problem("aside_failed", detail, endpoint=endpoint)

    def audited(self, query: str, start: datetime, end: datetime, posts: int, problem: str | None) -> None:
        if problem is not None:
            self._problem("audit_problem", problem, query=query)
        else:
            days = {"since": start.isoformat(timespec="hours"), "until": end.isoformat(timespec="hours")}
            self._log.info("audited", query=query, posts_counted=posts, **days)

    def reconciled(self, counted: int, booked: int) -> None:
        self._log.info("reconciled", x_counted=counted, booked=booked)

    def usage_differs(self, counted: int, booked: int) -> None:
        self._problem("usage_differs", f"X counted {counted:,} posts today, {booked:,} were booked; booked the rest")

    def order_taken(self, order: str, query: str, intervals: int) -> None:
        self._log.info("order_taken", order=order, query=query, intervals=intervals)

    def order_refused(self, order: str, detail: str) -> None:
        self._problem("order_refused", detail, order=order)

    def orders_unreachable(self, detail: str, wait_seconds: float) -> None:
        self._problem("orders_unreachable", detail, wait_seconds=round(wait_seconds, 1))

    def asking_resumed(self) -> None:
        self._log.info("asking_resumed")

    def clock_off(self, seconds: float) -> None:
        self._problem("clock_off", f"this machine's clock is {seconds:+.1f} s off X's; windows are planned by X's")

    # The spool.

    def salvaged(self, name: str, records: int, lost_bytes: int) -> None:
        self._log.warning("salvaged", microbatch=name, records=records, lost_bytes=lost_bytes)

    def sealed(self, name: str, reason: str, *, records: int, size: int) -> None:
        self._sealed.labels(reason).inc()
        self._log.info("sealed", microbatch=name, reason=reason, records=records, bytes=size)

    def spool_full(self, detail: str) -> None:
        self._problem("spool_full", detail)

    def unreadable(self, name: str, detail: str) -> None:
        self._problem("unreadable", detail, microbatch=name)

    # S3.

    def shipped(self, name: str, *, size: int, already: bool) -> None:
        self._shipped.inc()
        self._shipped_bytes.inc(size)
        self._log.info("shipped", microbatch=name, bytes=size, already_there=already)

    def upload_failed(self, name: str, detail: str, wait_seconds: float) -> None:
        self._upload_failures.inc()
        self._problem("upload_failed", detail, microbatch=name, wait_seconds=round(wait_seconds, 1))

    def upload_paused(self, name: str, detail: str, wait_seconds: float) -> None:
        self._problem("upload_paused", detail, microbatch=name, wait_seconds=wait_seconds)

    def quarantined(self, name: str, detail: str) -> None:
        self._quarantined.inc()
        self._problem("quarantined", detail, microbatch=name)
