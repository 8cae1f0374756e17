"""Holes that X still has are ordered again, each once, and nothing that was or will be collected is."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from compaction_dags.compaction import holes as rooms
from compaction_dags.compaction.errors import StaleHoursError
from compaction_dags.compaction.freshness import freshness
from compaction_dags.compaction.lake import Lake
from schemas.orders import Order
from schemas.records import Interval
from schemas.settings import Query, Settings
from tests.compaction.collector import Collector, bounds, counts, gap, ids_within, window
from tests.compaction.conftest import Place, hours
from tests.compaction.pages import NOON
from tests.compaction.test_compact_command import run

ONE = hours(1)
MINUTE = timedelta(minutes=1)
NOW = NOON + hours(5)


def settings(place: Place) -> Settings:
    return place.settings().model_copy(update={"query": [Query(name="lake", rule="r"), Query(name="rain", rule="r")]})


def order(place: Place, now: datetime = NOW, **options: Any) -> list[tuple[str, datetime, datetime]]:
    """Order all holes; returns their queries and bounds."""
    found = rooms.order_holes(settings(place), now, **options)
    return [(hole.order.query, hole.order.since, hole.order.until) for hole in found]


def requests(place: Place) -> list[Order]:
    """What lies there for the ingester."""
    prefix = place.keys.requests
    return [
        Order.from_json(key.removeprefix(prefix).removesuffix(".json"), place.lake().read(key))
        for key in place.objects("control/requests/")
    ]


def take_away(place: Place) -> None:
    """What the ingester does with orders."""
    for key in place.objects("control/requests/"):
        place.s3.client().delete_object(Bucket=place.s3.bucket, Key=key)


@pytest.fixture
def one(place: Place) -> Collector:
    """Two queries; a gap of twenty minutes in one of them, all else covered."""
    one = Collector(place)
    one.begin(NOON, "lake", "rain")
    one.ship([window("lake", NOON, NOON + ONE, ids_within(NOON, NOON + ONE, 4)),
              gap("rain", NOON, NOON + 20 * MINUTE),
              window("rain", NOON + 20 * MINUTE, NOON + ONE, [])], NOON)  # fmt: skip
    return one


def test_a_gap_is_ordered_as_backfill_would_order_it_and_only_once(place: Place, one: Collector) -> None:
    place.compact()
    assert order(place) == [("rain", NOON, NOON + 20 * MINUTE)]
    (asked,) = requests(place)
    assert (asked.query, asked.since, asked.until) == ("rain", NOON, NOON + 20 * MINUTE)
    assert order(place) == [], "as long as it lies there"
    take_away(place)
    assert order(place) == [], "and for ever"
    assert requests(place) == []


def test_a_hole_that_grew_is_ordered_by_what_it_grew(place: Place, one: Collector) -> None:
    place.compact()
    order(place)
    take_away(place)
    one.ship([gap("rain", NOON + ONE, NOON + ONE + MINUTE), window("rain", NOON + ONE + MINUTE, NOON + 2 * ONE, [])],
             NOON + ONE)  # fmt: skip
    place.compact()
    assert order(place) == [("rain", NOON + ONE, NOON + ONE + MINUTE)]


def test_an_order_by_hand_counts_while_it_lies_there(place: Place, one: Collector) -> None:
    place.compact()
    by_hand = Order.new("rain", NOON, NOON + 15 * MINUTE, NOW)
    key = place.keys.request(by_hand.name)
    place.s3.client().put_object(Bucket=place.s3.bucket, Key=key, Body=by_hand.to_json())
    place.s3.client().put_object(Bucket=place.s3.bucket, Key=place.keys.request("a-note"), Body=b"no order")
    assert order(place) == [("rain", NOON + 15 * MINUTE, NOON + 20 * MINUTE)]


def test_what_will_be_asked_and_what_was_covered_later_is_no_hole(place: Place, one: Collector) -> None:
    planned = Interval(*bounds(NOON, NOON + 5 * MINUTE), "r", "backfill")
    one.ship(
        [{"kind": "plan", "at": NOON, "query": "rain", "rule": "r", "reason": "backfill",
          "intervals": [planned.to_record()]},
         window("rain", NOON + 10 * MINUTE, NOON + 20 * MINUTE, [], reason="backfill")],
        NOON + ONE,
    )  # fmt: skip
    place.compact()
    assert order(place) == [("rain", NOON + 5 * MINUTE, NOON + 10 * MINUTE)]


def test_what_a_microbatch_had_covered_that_never_came_is_a_hole(place: Place) -> None:
    one = Collector(place)
    one.begin(NOON, "rain")
    edges = [NOON + number * 10 * MINUTE for number in range(4)]
    for number in range(3):
        one.ship([window("rain", edges[number], edges[number + 1], [])], NOON, is_lost=number == 1)
    place.compact()
    assert order(place) == [("rain", edges[1], edges[2])]


def test_what_x_has_forgotten_and_what_is_no_query_any_more_is_left(place: Place, one: Collector) -> None:
    place.compact()
    far = NOON + timedelta(days=7) - ONE
    assert order(place, far + 10 * MINUTE) == [("rain", NOON + 10 * MINUTE, NOON + 20 * MINUTE)]
    assert order(place, far + 30 * MINUTE) == []
    without = settings(place).model_copy(update={"query": [Query(name="lake", rule="r")]})
    assert rooms.find_holes(without, NOW) == []
    assert order(place, queries=["lake"]) == []


def test_nothing_is_ordered_while_raw_hours_wait(place: Place, one: Collector) -> None:
    with pytest.raises(StaleHoursError, match=r"1 raw hours wait to be compacted, the first is 2026-11-20T12"):
        order(place)
    assert requests(place) == []


def test_killed_between_the_order_and_its_copy_the_same_order_is_left_again(
    place: Place, one: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.compact()
    put, stored = Lake.put_new, list[str]()

    def dying(self: Lake, key: str, content: bytes) -> bool:
        if stored:
            raise KeyboardInterrupt
        stored.append(key)
        return put(self, key, content)

    monkeypatch.setattr(Lake, "put_new", dying)
    with pytest.raises(KeyboardInterrupt):
        order(place)
    monkeypatch.setattr(Lake, "put_new", put)
    (first,) = requests(place)
    take_away(place)
    assert len(order(place)) == 1
    assert requests(place) == [first], "under its old name, which the ingester answers once"


def test_what_it_costs_at_most_is_x_s_count_or_the_fullest_hour(place: Place, one: Collector) -> None:
    one.ship([gap("lake", NOON + ONE, NOON + 3 * ONE), window("lake", NOON + 3 * ONE, NOON + 4 * ONE, []),
              counts("lake", NOON + 4 * ONE, [(NOON + ONE, NOON + 2 * ONE, 3)])], NOON + 4 * ONE)  # fmt: skip
    place.compact()
    rain, lake = rooms.find_holes(settings(place), NOW)
    assert (lake.most_posts, lake.most_usd(settings(place))) == (3 + 4, 7 * 0.005)
    assert (rain.most_posts, rain.order.query) == (0, "rain")
    assert rooms.Hole(rain.order, None).most_usd(settings(place)) is None


# --- the commands ---


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return cls.fromtimestamp(NOW.timestamp(), tz)

    for room in ("holes", "freshness"):
        monkeypatch.setattr(f"compaction_dags.compaction.{room}.datetime", Clock)


def config(place: Place) -> str:
    file = place.config()
    file.write_text(file.read_text() + '[[query]]\nname = "rain"\nrule = "rain"\n')
    return str(file)


@pytest.mark.usefixtures("today", "one")
def test_the_command_says_what_it_would_cost_and_asks_first(place: Place) -> None:
    file = config(place)
    waiting = run("order-holes", "--config", file)
    assert (waiting.exit_code, "wait to be compacted" in waiting.stderr) == (75, True)
    place.compact()
    declined = run("order-holes", "--config", file)
    assert declined.exit_code == 1
    assert "rain: 2026-11-20T12:00:00Z to 2026-11-20T12:20:00Z; at most 0 posts, $0.00" in declined.stdout
    assert "together at most $0.00 for the posts" in declined.stdout
    assert requests(place) == []
    typo = run("--config", file, "order-holes", "--yes", "--query", "rian")
    assert (typo.exit_code, "the settings have no query rian; there are: " in typo.stderr) == (2, True)
    done = run("--config", file, "order-holes", "--yes", "--query", "rain")
    assert (done.exit_code, "ordered 1" in done.stdout) == (0, True)
    assert len(requests(place)) == 1
    again = run("order-holes", "--config", file)
    assert (again.exit_code, again.stdout) == (0, "no holes that X still has and that were not ordered before\n")


@pytest.mark.usefixtures("today")
def test_freshness_is_the_newest_tweet_and_the_oldest_hour_that_waits(place: Place, one: Collector) -> None:
    nothing = freshness(settings(place), NOW)
    assert (nothing.newest_tweet_at, nothing.oldest_stale_hour, nothing.stale_hours) == (None, "2026-11-20T12", 1)
    place.compact()
    one.ship([window("lake", NOON + ONE, NOON + 2 * ONE, [])], NOON + ONE)
    told = run("freshness", "--config", config(place))
    assert json.loads(told.stdout) == {
        "checked_at": "2026-11-20T17:00:00+00:00",
        "newest_tweet_at": "2026-11-20T12:45:00.000+00:00",
        "newest_tweet_age_seconds": 4 * 3600 + 900,
        "oldest_stale_hour": "2026-11-20T12",
        "stale_hours": 2,
    }, "the first hour is closed by now and waits to be told so"
    place.compact()
    place.ship_tweets([2**63 - 1], NOON + 2 * ONE)
    place.compact()
    found = freshness(settings(place), NOW)
    assert (found.newest_tweet_at, found.stale_hours) == (datetime(2026, 11, 20, 12, 45, tzinfo=UTC), 0)
