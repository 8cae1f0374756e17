"""Gauges are the status of a running service as numbers: read once a scrape, and nothing is made up."""

from datetime import UTC, datetime

from prometheus_client import generate_latest

from ingester import gauges
from ingester.telemetry import Telemetry
from tests.ingester.simulation import MemoryStore, Run, SimulatedX, VirtualClock, settings

BOTH = [
    {"name": "one", "rule": "one", "first_poll_hours": 0, "overlap_seconds": 0, "usd_per_day": 1.0},
    {"name": "two", "rule": "two", "first_poll_hours": 0, "overlap_seconds": 0},
]


def of(status, configured):
    """Every sample, by its name and the values of its labels."""
    return {
        "/".join([sample.name.removeprefix("tweetlake_"), *sample.labels.values()]): sample.value
        for family in gauges.States(lambda: status, configured).collect()
        for sample in family.samples
    }


async def after(seconds, directory, **changes):
    """What the gauges and the status say of a service that has run for so long."""
    clock = VirtualClock()
    configured = settings(directory, query=BOTH, **changes)
    run = Run(configured, clock, SimulatedX(clock), MemoryStore())
    try:
        await clock.drive(seconds)
        await run.service.report.look()
        status = run.service.report.status()
    finally:
        await run.die()
    return of(status, configured), status


async def test_they_say_what_the_status_says(tmp_path):
    found, status = await after(600, tmp_path, budget={"usd_per_month": 1000.0, "reconcile": False})
    one, two = status["queries"]
    assert found["query_lag_seconds/two"] == two["covered_lag_seconds"] > 0
    assert found["query_booked_usd/one/day"] == one["usd_today"] > 0
    assert found["query_budget_used_ratio/one/usd_per_day"] == one["fractions"]["usd_per_day"]
    assert found["budget_used_ratio/usd_per_month"] == status["budget"]["fractions"]["usd_per_month"] > 0
    assert (found["budget_limit_usd/month"], "budget_limit_usd/day" in found) == (1000.0, False)
    assert found["spool_bytes"] == status["spool"]["bytes"]
    assert found.get("x_rate_limit_requests") == status["x"]["rate_limit"]
    assert (found["lease_held"], found["lease_waiting"]) == (1, 0)
    assert found[f"build_info/{status['version']}"] == 1
    assert found["component_healthy/spool"] == 1
    assert not [name for name in found if name.startswith("x_paused/") and found[name]]


async def test_a_cap_of_all_and_a_querys_own_are_told_apart(tmp_path):
    own, status = await after(600, tmp_path / "own")
    assert "query one.usd_per_day" in status["queries"][0]["problem"]
    assert (own["query_paused/one"], own["query_paused/two"], own["x_paused/budget"]) == (1, 0, 0)
    common, _ = await after(600, tmp_path / "common", budget={"usd_per_day": 0.5, "usd_per_month": None})
    assert (common["query_paused/two"], common["x_paused/budget"], common["x_paused/rate"]) == (0, 1, 0)


async def test_what_is_not_known_yet_has_no_sample(tmp_path):
    found, status = await after(0, tmp_path)
    assert status["x"] is None
    known = {name for name in found if name.startswith(("query_", "x_", "budget_booked", "clock", "s3_last"))}
    assert known == {
        *(f"query_poll_interval_seconds/{name}" for name in ("one", "two")),
        *(f"query_paused/{name}" for name in ("one", "two")),
        *(f"x_paused/{reason}" for reason in gauges.HOLDS),
    }


async def test_a_scrape_asks_for_the_status_once_and_has_no_created_samples(tmp_path):
    _, status = await after(100, tmp_path)
    asked = []
    telemetry = Telemetry()
    telemetry.expect(["one"])
    registry = telemetry.registry
    gauges.expose(registry, lambda: asked.append(1) or status, settings(tmp_path, query=BOTH))
    assert asked == [], "registering asks for nothing"
    text = generate_latest(registry).decode()
    assert asked == [1]
    assert 'tweetlake_posts_stored_total{query="one"} 0.0' in text, "a rate sees its first step"
    assert "_created" not in text
    assert "process_resident_memory_bytes" in text


def test_a_gap_leaves_its_time_so_that_one_found_before_the_first_scrape_is_seen():
    at = datetime(2026, 11, 20, 12, tzinfo=UTC)
    telemetry = Telemetry(now=lambda: at)
    telemetry.gap_recorded("one", "out_of_reach", "11-12T12:00:00..13:00:00Z")
    labels = {"query": "one", "reason": "out_of_reach"}
    assert telemetry.registry.get_sample_value("tweetlake_last_gap_timestamp_seconds", labels) == at.timestamp()
    assert telemetry.registry.get_sample_value("tweetlake_gaps_total", labels) == 1
