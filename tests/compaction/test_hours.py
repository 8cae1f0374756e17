"""A raw hour end to end, held against plain Python: every table, every column, whatever comes twice, late, broken or in
between.
"""

import io
import json
import multiprocessing
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import fastavro
import pyarrow as pa
import pytest

from compaction_dags.compaction import job, worker
from compaction_dags.compaction.checks import HourSummary
from compaction_dags.compaction.decode import RawPage
from compaction_dags.compaction.errors import AccountingError, ConflictError, UnknownFormatError
from schemas.curated import DECODED, KEYS, TABLES
from schemas.raw import META_FORMAT
from schemas.snowflake import MAX_ID, first_id_at
from tests.compaction.conftest import Place, hours, page_of
from tests.compaction.pages import NOON, World, heartbeat, microbatch, page_record
from tests.compaction.reference import rows_of

Row = dict[str, Any]


@dataclass
class Expected:
    """What must be in the tables, from the pages that were shipped, by dictionaries."""

    rows_in: int = 0
    tweets: dict[int, Row] = field(default_factory=dict)
    side: dict[str, dict[Any, Row]] = field(default_factory=lambda: {name: {} for name in DECODED if name != "tweets"})

    def read(self, place: Place, keys: Sequence[str]) -> "Expected":
        """Take in these raw objects, given in any order."""
        for key in keys:
            data = place.s3.client().get_object(Bucket=place.s3.bucket, Key=key)["Body"].read()
            for index, record in enumerate(fastavro.reader(io.BytesIO(data))):
                if record["kind"] == "page":
                    received = round(record["received_at"].timestamp() * 1_000_000)
                    below = key.removeprefix(place.prefix)
                    self._page(key, RawPage(below, index, record["query"], received, record["body"]))
        return self

    def _page(self, key: str, page: RawPage) -> None:
        for name, rows in rows_of(page, json.loads(page.body)).items():
            for made in rows:
                row = made | {"raw_key": key}
                if name == "tweets":
                    self.rows_in += 1
                    self._tweet(row)
                else:
                    known = self.side[name].setdefault((row["date"], row["hour"], row[KEYS[name]]), row)
                    self.side[name][row["date"], row["hour"], row[KEYS[name]]] = later(known, row)

    def _tweet(self, row: Row) -> None:
        known = self.tweets.setdefault(row["id"], row)
        self.tweets[row["id"]] = later(known, row) | {
            "matched_queries": sorted({*known["matched_queries"], *row["matched_queries"]}),
            "first_fetched_at": min(known["first_fetched_at"], row["first_fetched_at"]),
        }


def later(one: Row, other: Row) -> Row:
    def order(row: Row) -> tuple[Any, ...]:
        return (row["fetched_at"], row["raw_key"], row["record_index"])

    return other if order(other) > order(one) else one


def agrees(place: Place, keys: Sequence[str]) -> Expected:
    """Every decoded table is what the raw objects say, row by row and column by column."""
    expected = Expected().read(place, keys)
    assert_same(place.tweets(TABLES["tweets"].names[1:]), expected.tweets)
    for name, rows in expected.side.items():
        found = place.rows(name)
        by_key = {(row["date"], row["hour"], row[KEYS[name]]): row for row in found}
        assert len(by_key) == len(found), name
        assert_same(by_key, rows)
    return expected


def assert_same(found: dict[Any, Row], expected: dict[Any, Row]) -> None:
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert found[key] == row, key


def ship(place: Place, world: World, hour: datetime, *, files: int = 3, pages: int = 2, tweets: int = 25) -> list[str]:
    """Microbatches as the ingester makes them: pages of two queries, a page found by both, records of other kinds."""
    keys = []
    for number in range(files):
        at = hour + timedelta(minutes=number)
        records = [heartbeat(at)]
        for page in range(pages):
            body = world.body(tweets, vocabulary="post" if page % 2 else "tweet")
            received = at + timedelta(seconds=page)
            records.append(page_record(body, received, ("lake", "rain")[page % 2]))
        records.append(page_record(body, received + timedelta(milliseconds=5), "both"))
        keys.append(place.ship(records, hour, blocks=bool(number % 2)))
    return keys


# --- what comes twice ---


def test_duplicates_across_microbatches_and_queries_fold_into_one_row(place: Place) -> None:
    keys = ship(place, World(seed=3), NOON)
    done = place.compact()
    expected = agrees(place, keys)
    assert done == HourSummary(
        raw_hours=1,
        microbatches=3,
        pages=9,
        rows_in=expected.rows_in,
        tweets_written=len(expected.tweets),
        duplicates=expected.rows_in - len(expected.tweets),
    )
    assert expected.rows_in == 225
    assert any(len(row["matched_queries"]) > 1 for row in expected.tweets.values())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_same_tweets_in_several_raw_hours_whatever_is_compacted_first(place: Place, order: Sequence[int]) -> None:
    world = World(seed=4)
    keys = [ship(place, world, NOON + hours(number), files=1) for number in range(3)]
    for number in order:
        place.compact(NOON + hours(number))
    expected = agrees(place, [key for hour in keys for key in hour])
    assert len({row["raw_key"] for row in expected.tweets.values()}) == 3
    assert any(row["first_fetched_at"].hour < row["fetched_at"].hour for row in expected.tweets.values())


def test_done_again_it_changes_nothing_anywhere(place: Place) -> None:
    keys = ship(place, World(seed=5), NOON, files=2)
    first = place.compact()
    before, objects = place.versions(), place.objects("curated/")
    assert place.compact() == HourSummary(), "nothing is stale"
    assert place.compact(NOON, now=NOON + hours(100)) == first
    assert place.versions() == before
    assert place.objects("curated/") == objects, "nor is a file left behind"
    agrees(place, keys)


def test_a_late_microbatch_is_taken_in_and_the_side_tables_are_whole(place: Place) -> None:
    world = World(seed=6)
    keys = ship(place, world, NOON, files=1)
    place.compact()
    keys += ship(place, world, NOON, files=1)
    assert place.compact().microbatches == 2, "always the whole hour"
    agrees(place, keys)


def test_a_backlog_of_many_event_hours_and_ids_of_every_age(place: Place) -> None:
    spread = [first_id_at(NOON - hours(back)) + back for back in range(0, 168, 4)]
    odd = [0, 1, 20, 10**15, 2**53 + 1, MAX_ID - 1, MAX_ID]
    keys = [place.ship_tweets(spread + odd), place.ship_tweets([*spread[::2], MAX_ID], NOON + timedelta(minutes=1))]
    done = place.compact()
    assert (done.tweets_written, done.duplicates) == (len(spread) + len(odd), len(spread[::2]) + 1)
    agrees(place, keys)
    assert len(place.snapshot("tweets").files) == len({(r["date"], r["hour"]) for r in place.tweets(["date", "hour"]).values()})  # fmt: skip
    place.ship_tweets([first_id_at(NOON - hours(8)) + 1])
    before = place.snapshot("tweets").files
    place.compact()
    changed = [hour for hour, files in place.snapshot("tweets").files.items() if files != before.get(hour)]
    assert changed, "the microbatch was fetched later, so its rows moved"


# --- many runs ---


@pytest.fixture(scope="module")
def forking() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["compaction_dags.compaction.job"])
    return context


def compact_noon(settings: Any, together: Any) -> None:
    together.wait()
    job.compact_hour(settings, "2026-11-20T12")


def test_two_processes_that_compact_the_same_hour_at_once(place: Place, forking: Any) -> None:
    keys = ship(place, World(seed=8), NOON)
    together = forking.Barrier(2)
    pair = [forking.Process(target=compact_noon, args=(place.settings(), together)) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(100)
    assert [process.exitcode for process in pair] == [0, 0]
    agrees(place, keys)
    assert set(place.versions().values()) <= {0, 1}, "the second found everything as it would have made it"
    assert place.compact() == HourSummary()


def test_a_run_that_began_before_a_late_microbatch_takes_nothing_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(seed=9)
    keys = ship(place, world, NOON, files=1)
    decode, decoded = worker.decode_pages, []

    def another_run_is_faster(pages: Any, **how: Any) -> Any:
        decoded.append(1)
        if len(decoded) == 1:
            keys.extend(ship(place, world, NOON, files=1))
            place.compact(NOON)
        return decode(pages, **how)

    monkeypatch.setattr(worker, "decode_pages", another_run_is_faster)
    with pytest.raises(ConflictError, match="run the hour again"):
        place.compact(NOON)
    agrees(place, keys)
    assert place.compact() == HourSummary()


# --- what cannot be used ---


def test_damaged_raw_gives_its_good_pages_and_names_the_rest(place: Place) -> None:
    ids = range(100, 112)
    records = [page_record(page_of([number]), NOON + timedelta(seconds=number)) for number in ids]
    whole = microbatch(records, 1, codec="null")
    at = whole.index(b'"tweet 105"')
    flipped = whole[: at + 2] + b"X" + whole[at + 3 :]
    keys = {
        "flipped": place.put(flipped, NOON, 1, records=12, sha256="0" * 64),
        "cut": place.put(microbatch(moved(records, 100), 2)[:-300], NOON, 2, records=12),
        "no avro": place.put(b"PK\x03\x04 not Avro at all", NOON, 3),
        "empty": place.put(b"", NOON, 4),
    }
    done = place.compact()
    found = place.tweets([])
    assert set(range(100, 112)) - found.keys() == {105}
    assert 200 in found
    rejects = place.rows("rejects")
    by_key = {name: {row["reason"] for row in rejects if row["raw_key"] == key} for name, key in keys.items()}
    assert by_key["flipped"] == {"file_sha256", "body_sha256"}
    assert by_key["cut"] == {"file_damaged", "file_records"}
    assert by_key["no avro"] == by_key["empty"] == {"file_header"}
    assert done.rejected == len(rejects)
    (bad,) = (row for row in rejects if row["reason"] == "body_sha256")
    assert (bad["record_index"], bad["query"], b"tXeet" in bad["body"] or b"X" in bad["body"]) == (5, "lake", True)
    assert place.compact() == HourSummary(), "consumed, and not tried for ever"


def moved(records: list[Row], by: int) -> list[Row]:
    return [page_record(page_of([100 + by + number]), record["at"]) for number, record in enumerate(records)]


BAD_PAGES = {
    "page_not_json": b"<html><body>503</body></html>",
    "page_not_object": b'["data"]',
    "page_not_search": b'{"title":"Unauthorized","status":401}',
    "data_not_array": b'{"data":{"id":"1"},"meta":{}}',
}
BAD_TWEETS = {
    "no_id": {"text": "whose?"},
    "id_out_of_range": {"id": str(2**63), "text": "too big"},
    "id_negative": {"id": "-5", "text": "below"},
    "id_not_number": {"id": "abc", "text": "words"},
    "not_object": "a text",
}


def test_bad_pages_and_bad_tweets_are_rejects_with_reason_and_key_and_the_rest_is_used(place: Place) -> None:
    bodies = [*BAD_PAGES.values()]
    mixed = json.dumps({"data": [{"id": "7", "text": "good"}, *BAD_TWEETS.values(), {"id": "8"}], "meta": {}}).encode()
    key = place.ship([page_record(body, NOON + timedelta(seconds=n)) for n, body in enumerate([*bodies, mixed])])
    done = place.compact()
    assert sorted(place.tweets([])) == [7, 8]
    rejects = place.rows("rejects")
    assert Counter(row["reason"] for row in rejects) == Counter([*BAD_PAGES, *BAD_TWEETS])
    assert {row["raw_key"] for row in rejects} == {key}
    assert {row["record_index"] for row in rejects} == set(range(5))
    assert all(row["detail"] and row["body"] and row["fetched_at"] >= NOON for row in rejects)
    assert {row["tweet_id"] for row in rejects if row["reason"].startswith("id_")} == {str(2**63), "-5", "abc"}
    assert (done.rows_in, done.tweets_written, done.rejected) == (2, 2, len(rejects))
    (noted,) = place.rows("ingested_files")
    assert (noted["rejects"], noted["rows"], noted["pages"], noted["records"]) == (len(rejects), 2, 5, 5)
    assert (noted["date"], noted["hour"]) == ("2026-11-20", 12)


def test_pages_that_hold_no_search_results_are_no_rejects(place: Place) -> None:
    counts = page_record(b'{"data":[],"meta":{"total_tweet_count":0}}', endpoint="counts_recent")
    refused = page_record(b'{"title":"Too Many Requests"}', status=429)
    place.ship([heartbeat(), counts, refused, page_record(b'{"meta":{"result_count":0}}')])
    assert place.compact() == HourSummary(raw_hours=1, microbatches=1, pages=1)
    (noted,) = place.rows("ingested_files")
    assert (noted["records"], noted["pages"], noted["rows"]) == (4, 1, 0)
    assert place.rows("tweets") == place.rows("rejects") == []


def test_an_hour_without_microbatches_makes_empty_tables(place: Place) -> None:
    assert place.compact(NOON) == HourSummary(raw_hours=1)
    assert all(place.rows(name) == [] for name in TABLES)


def test_a_newer_format_stops_its_hour_only(place: Place) -> None:
    place.put(microbatch([page_record(page_of([1]))], metadata={META_FORMAT: "99"}), NOON)
    place.ship_tweets([2], NOON + hours(1))
    with pytest.raises(UnknownFormatError, match="format 99"):
        place.compact()
    assert sorted(place.tweets([])) == [2]


# --- what is noted ---


def test_where_every_row_came_from_is_noted(place: Place) -> None:
    keys = ship(place, World(seed=11), NOON, files=2)
    now = NOON + hours(1)
    place.compact(now=now)
    client = place.s3.client()
    for key, noted in zip(keys, place.rows("ingested_files"), strict=True):
        found = client.head_object(Bucket=place.s3.bucket, Key=key)
        assert noted["raw_key"] == key
        assert (noted["bytes"], noted["etag"]) == (found["ContentLength"], found["ETag"].strip('"'))
        assert noted["sha256"] == found["Metadata"]["sha256"]
        assert (noted["records"], noted["pages"], noted["rows"], noted["rejects"]) == (4, 3, 75, 0)
        assert (noted["sequence"], noted["spool_id"]) == (keys.index(key) + 1, "9f86d081")
        assert (noted["transform"], noted["transform_version"], noted["filtered"]) == (None, None, 0)
        assert noted["ingested_at"] == now
    history = place.delta("tweets").history(1)[0]
    assert history["tweetlake.raw_hour"] == "2026-11-20T12"


def test_progress_is_told_by_microbatch(place: Place) -> None:
    ship(place, World(seed=12), NOON, files=3, tweets=5)
    told: list[tuple[str, int, int]] = []
    job.compact_hour(place.settings(), "2026-11-20T12", lambda *step: told.append(step))
    assert told == [("2026-11-20T12", number, 3) for number in (1, 2, 3)]


# --- what may not happen ---


@pytest.mark.parametrize(
    "harm", ["a row is not read", "rows are lost in merging", "rows are lost beside the old ones", "rows are made up"]
)
def test_rows_that_do_not_add_up_are_found_before_anything_is_committed(
    place: Place, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    place.ship_tweets(range(10, 20))
    place.compact()
    before = place.versions()
    place.ship_tweets(range(15, 30))
    together, merged, calls = worker.together, worker.merged_tweets, []

    def merge_badly(rows: pa.Table) -> pa.Table:
        calls.append(rows)
        found = merged(rows)
        if harm == "rows are made up":
            return pa.concat_tables([found, found])
        return found if harm.endswith("beside the old ones") and len(calls) == 1 else found.slice(0, 12)

    if harm == "a row is not read":
        monkeypatch.setattr(worker, "together", lambda *given: together(*given).slice(1))
    else:
        monkeypatch.setattr(worker, "merged_tweets", merge_badly)
    with pytest.raises(AccountingError, match="nothing was committed"):
        place.compact()
    assert place.versions() == before
    assert sorted(place.tweets([])) == list(range(10, 20))


def test_in_small_pieces_and_large_ones_an_hour_is_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ship(place, World(seed=13), NOON, files=2, tweets=60)
    pages, pieces = worker.page_batches, worker.cut
    monkeypatch.setattr(worker, "page_batches", lambda found: pages(found, 100_000))
    monkeypatch.setattr(worker, "cut", lambda sources, *within: pieces(sources, *within, rows=32))
    small = place.compact()
    agrees(place, keys)
    before = place.versions()
    monkeypatch.undo()
    for name, value in place.s3.environment().items():
        monkeypatch.setenv(name, value)
    assert place.compact(NOON) == small
    assert place.versions() == before, "the same rows make the same files"


def test_any_mix_of_late_repeated_and_overlapping_pages(place: Place) -> None:
    """A small random history, compacted whenever it pleases, in any order of hours."""
    chance, world = random.Random(20), World(seed=14)
    keys: list[str] = []
    for _ in range(6):
        hour = NOON + hours(chance.randrange(3))
        keys += ship(place, world, hour, files=1, pages=1, tweets=chance.randrange(1, 30))
        if chance.random() < 0.5:
            place.compact(*chance.sample([NOON + hours(n) for n in range(3)], 2))
    place.compact()
    agrees(place, keys)
