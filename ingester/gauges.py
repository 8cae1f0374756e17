"""The states of the service as Prometheus gauges: read off its status when somebody scrapes, never kept.

What happened is counted where it happens (`telemetry.py`). What is not known yet has no sample, rather than a made-up one.
`docs/metrics.md` has every metric, by type, labels and meaning.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ingester.pacing import PROBE_AFTER
from schemas.settings import Settings

HOLDS = ("rate", "backlog", "budget", "disk", *(meaning.value for meaning in PROBE_AFTER))
"""Why asking X may wait: `pacing.Hold.kind`."""

Status = Callable[[], Mapping[str, Any]]
Sample = tuple[tuple[str, ...], float | bool | None]
"""Values of the labels, and the value; None is left out."""


def expose(registry: CollectorRegistry, status: Status, settings: Settings) -> None:
    """Add to a registry what the status says, and what the client library says of the process."""
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the samples and tell nobody anything
    registry.register(States(status, settings))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)


class States(Collector):
    """Asks for the status once a scrape."""

    def __init__(self, status: Status, settings: Settings) -> None:
        self._status = status
        self._settings = settings

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All gauges, by the service's state at this moment."""
        status = self._status()
        yield from _whole(status)
        yield from _queries(status["queries"])
        yield from _spool(status["spool"], self._settings)
        yield from _outside(status)
        yield from _budget(status["budget"] or {}, self._settings)


def _whole(status: Mapping[str, Any]) -> Iterator[GaugeMetricFamily]:
    standing = status["lease"]["standing"]
    components = [((part["name"],), part["ok"]) for part in status["components"]]
    yield _gauge("build_info", "1, with the version of Tweetlake that runs.", [((status["version"],), 1)], "version")
    yield _one("healthy", "1 while /healthz answers 200: everything collects as it should.", status["healthy"])
    yield _gauge("component_healthy", "1 while this part is as it should be.", components, "component")
    yield _one("lease_held", "1 while this ingester may ask X for its lake.", standing in {"ours", "off"})
    yield _one("lease_waiting", "1 while another ingester has the lease, and this one waits.", standing == "theirs")


def _queries(queries: Sequence[Mapping[str, Any]]) -> Iterator[GaugeMetricFamily]:
    def each(name: str, doc: str, value: Callable[[Mapping[str, Any]], float | bool | None]) -> GaugeMetricFamily:
        return _gauge(f"query_{name}", doc, [((query["name"],), value(query)) for query in queries], "query")

    yield each("lag_seconds", "How long ago that is up to which the query is covered, by X's clock.", _lag)
    yield each(
        "last_page_timestamp_seconds",
        "When the last page of the query became durable, as Unix time.",
        lambda query: _unix(query["last_page_at"]),
    )
    yield each(
        "poll_interval_seconds", "How often the query is to be polled.", lambda query: query["poll_every_seconds"]
    )
    yield each(
        "todo_intervals",
        "Intervals that are planned and not covered yet.",
        lambda query: query["todo_intervals"] if _is_known(query) else None,
    )
    yield each("paused", "1 while a cap of the query's own keeps it from being asked.", _is_capped)
    booked = [
        ((query["name"], period), query[f"usd_{words}"])
        for query in filter(_is_known, queries)
        for period, words in (("day", "today"), ("month", "this_month"))
    ]
    used = [
        ((query["name"], cap), share)
        for query in filter(_is_known, queries)
        for cap, share in query["fractions"].items()
    ]
    yield _gauge(
        "query_booked_usd",
        "US dollars booked for the query this UTC day or month, over all lives of the service.",
        booked,
        "query",
        "period",
    )
    yield _gauge("query_budget_used_ratio", "Share of a cap of the query's own that is booked.", used, "query", "cap")


def _is_known(query: Mapping[str, Any]) -> bool:
    """Not so for who waits for the lease, or has not found its state yet."""
    return query["planned_until"] is not None


def _lag(query: Mapping[str, Any]) -> float | None:
    seconds: float | None = query["covered_lag_seconds"]
    return seconds


def _is_capped(query: Mapping[str, Any]) -> bool:
    return str(query["problem"]).startswith(f"query {query['name']}.usd_per_")


def _spool(spool: Mapping[str, Any], settings: Settings) -> Iterator[GaugeMetricFamily]:
    yield _one("spool_bytes", "Bytes of everything in the spool.", spool["bytes"])
    yield _one("spool_limit_bytes", "Collecting stops when so much is in the spool.", settings.spool.max_bytes)
    yield _one("spool_free_bytes", "What the spool's disk has left.", spool["free_bytes"])
    yield _one("spool_min_free_bytes", "Collecting stops when the disk has less left.", settings.spool.min_free_bytes)
    yield _one("spool_waiting_files", "Sealed microbatches that wait to be shipped to S3.", spool["waiting"])
    yield _one(
        "spool_oldest_waiting_timestamp_seconds",
        "When the oldest microbatch that waits was sealed, as Unix time; none without one.",
        _unix(spool["oldest_waiting_at"]),
    )
    yield _one("spool_quarantine_files", "Files set aside for a person to look at.", spool["quarantine"])


def _outside(status: Mapping[str, Any]) -> Iterator[GaugeMetricFamily]:
    x, s3 = status["x"] or {}, status["s3"]
    held = x.get("hold")
    holds = [((kind,), kind == held) for kind in dict.fromkeys([*HOLDS, *([held] if held else [])])]
    yield _gauge("x_paused", "1 while asking X waits for this reason.", holds, "reason")
    yield _one("s3_paused", "1 while nothing is shipped, as S3 refuses.", s3["paused"])
    yield _one(
        "s3_last_shipped_timestamp_seconds",
        "When S3 last took a microbatch in this life of the service, as Unix time.",
        _unix(s3["last_shipped_at"]),
    )
    yield _one("x_rate_limit_requests", "Requests that X allows in its rate window.", x.get("rate_limit"))
    yield _one("x_rate_remaining_requests", "Requests that are left in X's rate window.", x.get("rate_remaining"))
    yield _one(
        "x_rate_reset_timestamp_seconds",
        "When X's rate window begins anew, as Unix time.",
        _unix(x.get("rate_reset_at")),
    )
    yield _one("clock_skew_seconds", "X's clock less this machine's.", x.get("clock_skew_seconds"))


def _budget(booked: Mapping[str, Any], settings: Settings) -> Iterator[GaugeMetricFamily]:
    periods = (("day", "today"), ("month", "this_month"))
    for unit, words in (("usd", "US dollars"), ("posts", "Posts")):
        yield _gauge(
            f"budget_booked_{unit}",
            f"{words} booked this UTC day or month, over all lives of the service.",
            [((period,), booked.get(f"{unit}_{in_status}")) for period, in_status in periods],
            "period",
        )
        yield _gauge(
            f"budget_limit_{unit}",
            f"{words} that [budget] allows in a UTC day or month; none without a cap.",
            [((period,), getattr(settings.budget, f"{unit}_per_{period}")) for period, _ in periods],
            "period",
        )
    used = [((cap,), share) for cap, share in booked.get("fractions", {}).items()]
    yield _gauge("budget_used_ratio", "Share of a cap of [budget] that is booked.", used, "cap")
    yield _one(
        "x_counted_posts", "Posts that X counted as read today, when asked last.", booked.get("x_counted_posts_today")
    )


def _gauge(name: str, doc: str, samples: Iterable[Sample], *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"tweetlake_{name}", doc, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, float(value))
    return family


def _one(name: str, doc: str, value: float | bool | None) -> GaugeMetricFamily:
    return _gauge(name, doc, [((), value)])


def _unix(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None
