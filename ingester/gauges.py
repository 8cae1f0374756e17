"""The states of the service as Prometheus gauges: read off its status when somebody scrapes, never kept.

What happened is counted where it happens (`telemetry.py`). What is not known yet has no sample, rather than a made-up one.
`docs/metrics.md` has every metric, by type, labels and meaning.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from schemas.settings import Query, Settings

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
        yield from _queries(status["queries"], {query.name: query for query in self._settings.query})
        yield from _spool(status["spool"], self._settings)
        yield from _outside(status)
        yield from _budget(status["budget"], self._settings)


def _whole(status: Mapping[str, Any]) -> Iterator[GaugeMetricFamily]:
    standing = status["lease"]["standing"]
    components = [((part["name"],), part["ok"]) for part in status.get("components", [])]
    yield _gauge("build_info", "1, with the version of Tweetlake that runs.", [((status["version"],), 1)], "version")
    yield _one("healthy", "1 while /healthz answers 200: everything collects as it should.", status["healthy"])
    yield _gauge("component_healthy", "1 while this part is as it should be.", components, "component")
    yield _one("lease_held", "1 while this ingester may ask X for its lake.", standing in {"ours", "off"})
    yield _one("lease_waiting", "1 while another ingester has the lease, and this one waits.", standing == "theirs")


def _queries(found: Iterable[Mapping[str, Any]], queries: Mapping[str, Query]) -> Iterator[GaugeMetricFamily]:
    found = list(found)

    def each(name: str, doc: str, value: Callable[[Mapping[str, Any]], float | bool | None]) -> GaugeMetricFamily:
        return _gauge(f"query_{name}", doc, [((query["name"],), value(query)) for query in found], "query")

    yield _gauge(
        "query_poll_interval_seconds",
        "How often the query is to be polled, by the settings.",
        [((name,), query.poll_every_seconds) for name, query in queries.items()],
        "query",
    )
    yield each("lag_seconds", "How far behind X's now the query is planned.", lambda query: query["lag_seconds"])
    yield each(
        "last_page_timestamp_seconds",
        "When the last page of the query became durable, as Unix time.",
        lambda query: _unix(query["last_page_at"]),
    )
    yield each(
        "todo_intervals", "Intervals that are planned and not covered yet.", lambda query: query["todo_intervals"]
    )
    yield each(
        "paused",
        "1 while a cap of the query's own keeps it from being asked.",
        lambda query: str(query["problem"]).startswith(f"query {query['name']}.usd_per_"),
    )
    booked = {
        (query["name"], period): query.get(key)
        for query in found
        for period, key in (("day", "usd_today"), ("month", "usd_this_month"))
    }
    used = [
        ((query.name, f"usd_per_{period}"), _share(booked.get((query.name, period)), limit))
        for query in queries.values()
        for period, limit in (("day", query.usd_per_day), ("month", query.usd_per_month))
    ]
    yield _gauge(
        "query_booked_usd",
        "US dollars booked for the query this UTC day or month, over all lives of the service.",
        booked.items(),
        "query",
        "period",
    )
    yield _gauge(
        "query_budget_used_ratio", "Share of a cap of the query's own that is booked, from 0.", used, "query", "cap"
    )


def _spool(spool: Mapping[str, Any], settings: Settings) -> Iterator[GaugeMetricFamily]:
    yield _one("spool_bytes", "Bytes of everything in the spool.", spool["bytes"])
    yield _one("spool_limit_bytes", "Collecting stops when so much is in the spool.", settings.spool.max_bytes)
    yield _one("spool_free_bytes", "What the spool's disk has left.", spool.get("free_bytes"))
    yield _one("spool_min_free_bytes", "Collecting stops when the disk has less left.", settings.spool.min_free_bytes)
    yield _one("spool_waiting_files", "Sealed microbatches that wait to be shipped.", spool["waiting"])
    yield _one(
        "spool_oldest_waiting_timestamp_seconds",
        "When the oldest of them was begun, as Unix time; none without one.",
        _unix(spool.get("oldest_waiting_at")),
    )
    yield _one("spool_quarantine_files", "Files set aside for a person to look at.", spool["quarantine"])


def _outside(status: Mapping[str, Any]) -> Iterator[GaugeMetricFamily]:
    x, s3 = status["x"] or {}, status["s3"]
    reason = x.get("paused")
    paused: list[Sample] = [
        (("x",), reason is not None),
        (("budget",), str(reason).startswith("budget.")),
        (("s3",), s3.get("paused")),
    ]
    yield _gauge("paused", "1 while asking X, asking X for a budget cap, or shipping to S3 waits.", paused, "part")
    yield _one(
        "s3_last_shipped_timestamp_seconds",
        "When S3 last took a microbatch in this life of the service, as Unix time.",
        _unix(s3["last_shipped_at"]),
    )
    yield _one("x_rate_limit_requests", "Requests that X allows in its rate window.", x.get("rate_limit"))
    yield _one("x_rate_remaining_requests", "Requests that are left of it.", x.get("rate_remaining"))
    yield _one(
        "x_rate_reset_timestamp_seconds",
        "When the rate window begins anew, as Unix time.",
        _unix(x.get("rate_reset_at")),
    )
    yield _one("clock_skew_seconds", "X's clock less this machine's.", x.get("clock_skew_seconds"))


def _budget(budget: Mapping[str, Any] | None, settings: Settings) -> Iterator[GaugeMetricFamily]:
    booked = budget or {}
    caps = settings.budget
    usd = {
        "day": (booked.get("usd_today"), caps.usd_per_day),
        "month": (booked.get("usd_this_month"), caps.usd_per_month),
    }
    posts = {
        "day": (booked.get("posts_today"), caps.posts_per_day),
        "month": (booked.get("posts_this_month"), caps.posts_per_month),
    }
    used: list[Sample] = []
    for unit, words, figures in (("usd", "US dollars", usd), ("posts", "Posts", posts)):
        yield _gauge(
            f"budget_booked_{unit}",
            f"{words} booked this UTC day or month, over all lives of the service.",
            [((period,), found) for period, (found, _) in figures.items()],
            "period",
        )
        yield _gauge(
            f"budget_limit_{unit}",
            f"{words} that the settings allow in a UTC day or month; none without a cap.",
            [((period,), limit) for period, (_, limit) in figures.items()],
            "period",
        )
        used += [((f"{unit}_per_{period}",), _share(*figure)) for period, figure in figures.items()]
    yield _gauge("budget_used_ratio", "Share of a cap of [budget] that is booked, from 0.", used, "cap")
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


def _share(booked: float | None, limit: float | None) -> float | None:
    """A cap of nothing is used up from the start."""
    if booked is None or limit is None:
        return None
    return booked / limit if limit else 1.0


def _unix(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None
