"""Money: reserved before, booked after, kept in the checkpoint; pauses at a cap and resumes at its reset."""

from datetime import UTC, datetime, timedelta

import pytest

from ingester.budget import Prices, Purse, ReadToday
from ingester.model import LEAN, RICH, PageFacts
from schemas.settings import Budget, Price
from schemas.state import Money
from tests.ingester.simulation import MemoryStore, SimulatedX, VirtualClock, live, pages, settings

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def page(count, *, posts=0, users=0, start=1):
    return PageFacts(count, tuple(range(start, start + count)), None, included_posts=posts, included_users=users)


def test_a_page_is_booked_by_what_came():
    prices = Prices(Price(), RICH)
    assert prices.bill(page(100, posts=38, users=97), repeats=0).microusd == (138 * 5000) + (97 * 10_000)
    assert prices.bill(page(100), repeats=40).microusd == 60 * 5000
    assert Prices(Price(bill_includes=False), RICH).bill(page(10, posts=5, users=5), 0).microusd == 50_000


def test_the_worst_case_is_never_below_what_a_page_of_single_mentions_costs():
    prices = Prices(Price(), RICH)
    assert prices.worst_case(100) >= prices.bill(page(100, posts=100, users=400), repeats=0).microusd
    assert Prices(Price(), LEAN).worst_case(100) == 500_000


def test_the_same_post_is_a_repeat_only_within_its_utc_day():
    read = ReadToday()
    assert read.repeats(page(10), NOON) == 0
    assert read.repeats(page(10, start=6), NOON) == 5
    assert read.repeats(page(10), NOON + timedelta(days=1)) == 0


def test_ids_read_long_ago_are_forgotten_and_booked_at_the_full_price():
    read = ReadToday()
    for start in range(0, 3 * ReadToday.GENERATION, 1000):
        assert read.repeats(page(1000, start=start), NOON) == 0
    assert read.repeats(page(1000, start=2 * ReadToday.GENERATION), NOON) == 1000
    assert read.repeats(page(1000, start=0), NOON) == 0
    assert len(read._growing) + len(read._before) <= 2 * ReadToday.GENERATION + 2000


@pytest.mark.parametrize(
    ("caps", "allowed", "named"),
    [
        ({"usd_per_day": 1.0}, 100, ""),
        ({"usd_per_day": 0.3}, 60, ""),
        ({"usd_per_day": 0.01}, 0, "usd_per_day"),
        ({"usd_per_month": 0.0}, 0, "usd_per_month"),
        ({"posts_per_day": 25, "usd_per_month": None}, 25, ""),
        ({"posts_per_month": 9}, 0, "posts_per_month"),
        ({"usd_per_month": None}, 100, ""),
    ],
)
def test_pages_shrink_to_what_is_left_and_stop_at_the_cap(caps, allowed, named):
    purse = Purse(Budget(**caps), Prices(Price(), LEAN))
    found = purse.page(Money(), NOON, 100)
    assert found.posts == allowed
    assert named in found.cap
    assert (found.reset is not None) == bool(found.cap)


def test_what_is_under_way_counts():
    purse = Purse(Budget(usd_per_day=1.0), Prices(Price(), LEAN))
    page_of_100 = purse.worst_case(100, 0)
    purse.reserve(page_of_100)
    purse.reserve(page_of_100)
    assert purse.page(Money(), NOON, 100).posts == 0
    assert "usd_per_day" in purse.request(Money(), NOON, 5_000).cap
    purse.release(page_of_100)
    assert purse.page(Money(), NOON, 100).posts == 100
    assert purse.request(Money(), NOON, 5_000).cap == ""


async def test_at_the_daily_cap_it_pauses_and_resumes_at_midnight_and_survives_a_restart(tmp_path):
    clock = VirtualClock()  # 12:00:30
    x, store = SimulatedX(clock), MemoryStore()
    configured = settings(tmp_path, budget={"usd_per_day": 2.0, "usd_per_month": None})
    run = await live(configured, clock, x, store, seconds=3600)
    money = run.service._work.journal.state.money
    assert 1.9 <= money.day.microusd / 1e6 <= 2.0
    assert "usd_per_day" in str(run.service.report.health()["reasons"])
    spent_requests = len(x.requests)
    await live(configured, clock, x, store, seconds=3600)
    assert len(x.requests) == spent_requests, "a restart does not empty the memory of what was spent"
    clock.seconds = 12 * 3600
    run = await live(configured, clock, x, store, seconds=300)
    assert len(x.requests) > spent_requests, "midnight UTC"
    assert run.service._work.journal.state.money.day.period == "2026-11-21"
    booked = sum(record["cost_microusd"] for record in pages(store.records()))
    assert booked == run.service._work.journal.state.money.month.microusd
    assert booked == len(x.served) * 5000


def many_queries(count):
    return [
        {"name": f"q{number}", "rule": f"r{number}", "poll_every_seconds": 10, "first_poll_hours": 20, "overlap_seconds": 0}
        for number in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("caps", [{"usd_per_day": 7.77}, {"posts_per_day": 1234}, {"usd_per_month": 0.6}])
async def test_many_requests_at_once_never_exceed_a_cap(tmp_path, caps):
    clock = VirtualClock()
    x, store = SimulatedX(clock), MemoryStore()
    configured = settings(
        tmp_path, query=many_queries(6), x={"fields": "lean", "concurrency": 8}, budget={"usd_per_month": None} | caps
    )
    run = await live(configured, clock, x, store, seconds=900)
    money = run.service._work.journal.state.money
    allowed = caps.get("posts_per_day", int(min(caps.get("usd_per_day", 9e9), caps.get("usd_per_month", 9e9)) * 200))
    assert allowed - 10 < money.day.posts <= allowed, "used up to the last whole page, and no post more"
    assert len(set(x.served)) == money.day.posts, "what several queries found today is billed once"
    assert next(iter(caps)) in str(run.service.report.health()["reasons"])


async def test_what_was_spent_is_known_after_the_disk_is_lost(tmp_path):
    clock = VirtualClock()
    x, store = SimulatedX(clock), MemoryStore()
    budget = {"usd_per_day": 2.0, "usd_per_month": None}
    await live(settings(tmp_path, budget=budget), clock, x, store, seconds=3600)
    before = len(x.requests)
    run = await live(settings(tmp_path / "new-disk", budget=budget), clock, x, store, seconds=3600)
    assert len(x.requests) == before
    assert run.service._work.journal.state.money.day.microusd > 1_900_000


async def test_what_the_overlap_reads_again_after_a_restart_is_booked_as_a_repeat(tmp_path):
    query = {"name": "one", "rule": "python", "poll_every_seconds": 10, "first_poll_hours": 0, "overlap_seconds": 10}
    configured, clock = settings(tmp_path, query=[query]), VirtualClock()
    x, store = SimulatedX(clock), MemoryStore()
    await live(configured, clock, x, store, seconds=100)
    run = await live(configured, clock, x, store, seconds=100)
    assert len(x.served) > len(set(x.served))
    assert run.service._work.journal.state.money.day.posts == len(set(x.served))
