"""What is said of an hour's completeness is what the table holds, what X counted last, and what pages prove."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from compaction_dags.compaction import job
from compaction_dags.compaction.completeness import Ledger, hour_of
from compaction_dags.compaction.counts import counts_of
from schemas import snowflake
from schemas.keys import LakeKeys
from tests.compaction.collector import Collector, counts, gap, ids_within, window
from tests.compaction.conftest import Place, hours
from tests.compaction.pages import NOON, encode
from tests.ingester.simulation import MemoryStore, SimulatedX, VirtualClock, live, settings

HALF = timedelta(minutes=30)
ONE = hours(1)


def rows(place: Place) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["query"], row["hour"]): row for row in place.rows("completeness")}


def figures(place: Place) -> dict[tuple[str, int], tuple[Any, ...]]:
    return {
        key: (row["collected"], row["counted"], row["ratio"], row["is_covered"]) for key, row in rows(place).items()
    }


def test_an_hour_is_covered_when_the_pages_of_all_raw_hours_together_cover_it(place: Place) -> None:
    one = Collector(place)
    one.begin(NOON, "rain")
    one.ship([window("rain", NOON, NOON + HALF, ids_within(NOON, NOON + HALF, 3))], NOON)
    place.compact()
    assert figures(place) == {("rain", 12): (3, None, None, False)}
    one.ship([window("rain", NOON + HALF, NOON + ONE + HALF, ids_within(NOON + HALF, NOON + ONE, 2))], NOON + ONE)
    place.compact()
    assert figures(place) == {("rain", 12): (5, None, None, True), ("rain", 13): (0, None, None, False)}
    (stretch,) = rows(place)["rain", 12]["covered"]
    assert (stretch["since_id"] + 1, stretch["until_id"]) == (ids_within(NOON, NOON + ONE, 1)[0],
                                                             ids_within(NOON + ONE, NOON + 2 * ONE, 1)[0])  # fmt: skip


def test_collected_counts_every_file_of_an_hour(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "ROWS_PER_FILE", 4)
    one = Collector(place)
    one.begin(NOON, "rain")
    one.ship([window("rain", NOON, NOON + ONE, ids_within(NOON, NOON + ONE, 10))], NOON)
    place.compact()
    snapshot = place.table("tweets").open()
    assert snapshot is not None
    assert len(snapshot.of(hour_of(NOON))) == 3
    assert figures(place)["rain", 12][0] == 10


def test_a_gap_in_it_leaves_an_hour_uncovered_until_it_is_filled(place: Place) -> None:
    one = Collector(place)
    one.begin(NOON, "rain")
    one.ship([window("rain", NOON + HALF, NOON + ONE, []), gap("rain", NOON, NOON + HALF)], NOON)
    place.compact()
    assert figures(place) == {("rain", 12): (0, None, None, False)}
    one.ship([window("rain", NOON, NOON + HALF, ids_within(NOON, NOON + HALF, 1), reason="backfill")], NOON + ONE)
    place.compact()
    assert figures(place)["rain", 12] == (1, None, None, True)


def test_collected_is_what_each_query_has_in_the_table_whatever_raw_hour_it_came_with(place: Place) -> None:
    one = Collector(place)
    one.begin(NOON, "rain", "lake")
    shared, own = ids_within(NOON, NOON + HALF, 2)
    one.ship([window("rain", NOON, NOON + HALF, [shared, own]), window("lake", NOON, NOON + HALF, [shared])], NOON)
    place.compact()
    one.ship([window("rain", NOON, NOON + HALF, [shared, own, own + 1], reason="reread")], NOON + 3 * ONE)
    place.compact()
    assert {key: row["collected"] for key, row in rows(place).items()} == {("rain", 12): 3, ("lake", 12): 1}


@pytest.mark.parametrize("word", ["tweet_count", "post_count"])
def test_the_newest_count_of_x_counts_whichever_raw_hour_is_done_last(place: Place, word: str) -> None:
    one = Collector(place)
    one.begin(NOON, "rain")
    one.ship([window("rain", NOON, NOON + ONE, ids_within(NOON, NOON + ONE, 9))], NOON)
    one.ship([counts("rain", NOON + 2 * ONE, [(NOON, NOON + ONE, 12), (NOON + ONE, NOON + ONE + HALF, 4)], word)],
             NOON + 2 * ONE)  # fmt: skip
    one.ship([counts("rain", NOON + 3 * ONE, [(NOON, NOON + ONE, 10)], word)], NOON + 3 * ONE)
    place.compact(NOON + 3 * ONE, NOON, NOON + 2 * ONE)
    assert figures(place) == {("rain", 12): (9, 10, 0.9, True)}, "a part of an hour is no count of it"
    assert rows(place)["rain", 12]["counted_at"] == NOON + 3 * ONE
    before = place.versions()
    place.compact(NOON, NOON + 2 * ONE, NOON + 3 * ONE)
    assert place.versions() == before, "doing it again changes nothing"


def test_a_count_of_nothing_has_no_ratio(place: Place) -> None:
    one = Collector(place)
    one.ship([counts("rain", NOON + ONE, [(NOON, NOON + ONE, 0)])], NOON + ONE)
    place.compact()
    assert figures(place) == {("rain", 12): (0, 0, None, False)}


def test_what_the_transform_drops_is_not_collected(place: Place) -> None:
    one = Collector(place)
    one.begin(NOON, "rain")
    one.ship([window("rain", NOON, NOON + ONE, ids_within(NOON, NOON + ONE, 4))], NOON)
    place.compact(function="tests.compaction.test_completeness:first_two")
    assert figures(place) == {("rain", 12): (2, None, None, True)}


def first_two(tweets: Any) -> Any:
    return tweets.head(2)


def test_of_two_runs_that_write_an_hour_the_last_has_seen_what_both_merged(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Collector(place)
    one.begin(NOON, "rain")
    ids = ids_within(NOON, NOON + ONE, 4)
    one.ship([window("rain", NOON, NOON + HALF, ids[:2])], NOON)
    one.ship([window("rain", NOON + HALF, NOON + ONE, ids[2:])], NOON + ONE)
    counted, ahead, real = threading.Event(), threading.Event(), Ledger.make

    def slow(self: Ledger, present: Any) -> Any:
        made = real(self, present)
        if not counted.is_set():
            counted.set()
            assert ahead.wait(60)
        return made

    monkeypatch.setattr(Ledger, "make", slow)
    thread = threading.Thread(target=place.compact, args=(NOON,))
    thread.start()
    assert counted.wait(60)
    place.compact(NOON + ONE)
    ahead.set()
    thread.join(60)
    assert figures(place) == {("rain", 12): (4, None, None, True)}


def test_what_a_damaged_record_claims_touches_no_hour_out_of_reach(place: Place) -> None:
    one = Collector(place)
    one.ship([window("rain", NOON, NOON + ONE, [], since_id=0)], NOON)
    place.compact()
    assert len(place.rows("completeness")) == 8 * 24 + 1


@pytest.mark.parametrize(
    "body",
    [
        b"no JSON", b"[]", b'{"data": 1}', b'{"data": [1]}', b'{"data": [{}]}',
        *[encode({"data": [{"start": start, "end": "2026-11-20T13:00:00Z", "tweet_count": count}]})
          for start, count in (("noon", 1), ("2026-11-20T12:00:00", 1), ("2026-11-20T12:00:00Z", "1"),
                               ("2026-11-20T12:00:00Z", True), ("2026-11-20T12:00:00Z", -1), (12, 1),
                               ("0001-01-01T00:00:00+05:00", 1))],
    ],
)  # fmt: skip
def test_what_holds_no_counts_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        counts_of(body, "rain", NOON)


def test_a_page_of_counts_that_holds_none_is_a_reject_with_its_bytes(place: Place) -> None:
    one = Collector(place)
    one.ship([counts("rain", NOON, [(NOON, NOON + ONE, 1)], word="number")], NOON)
    assert place.compact().rejected == 1
    (row,) = place.rows("rejects")
    assert row["reason"] == "page_not_counts"
    assert b'"number"' in row["body"]


async def test_what_the_service_collected_of_a_simulated_x_is_proved_hour_by_hour(place: Place) -> None:
    """The service, killed and away for hours in between, beside what the simulated X really had."""
    clock = VirtualClock()
    x, store = SimulatedX(clock, tweets_per_second=0.05), MemoryStore()
    query = {"name": "one", "rule": "python", "poll_every_seconds": 30, "first_poll_hours": 30}
    configured = settings(place.directory, query=[query], audit={"counts_daily": True})
    await live(configured, clock, x, store, seconds=40, crash=True)
    await live(configured, clock, x, store, seconds=900)
    clock.seconds += 3 * 3600
    run = await live(configured, clock, x, store, seconds=900)
    state = run.service._work.journal.state.queries["one"]  # type: ignore[union-attr]
    assert not state.todo
    for name in store.microbatches():
        key = LakeKeys().microbatch(name)
        content, metadata = store.objects[key]
        place.s3.client().put_object(
            Bucket=place.s3.bucket, Key=f"{place.prefix}{key}", Body=content, Metadata=metadata
        )
    place.compact()
    told = place.rows("completeness")
    for row in told:
        start = datetime.fromisoformat(row["date"]).replace(hour=row["hour"], tzinfo=UTC)
        low, high = snowflake.first_id_at(start), snowflake.first_id_at(start + ONE)
        within = (max(low, state.start_id), min(high, state.frontier_id))
        assert row["collected"] == len(x.existing(within[0] - 1, within[1])), start
        assert row["is_covered"] == (within == (low, high)), start
        if row["counted"] is not None:
            assert row["counted"] == len(x.existing(low - 1, high)), start
    proved = [row for row in told if row["is_covered"] and row["counted"]]
    assert len(proved) >= 12
    assert {row["ratio"] for row in proved} == {1.0}
