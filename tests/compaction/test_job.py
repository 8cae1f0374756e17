"""Compacting raw hours on a real S3 server, held against a dictionary by id: in any order, again, late, twice at once,
killed at every durable step, damaged, transformed.
"""

import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from compaction_dags.compaction import job
from compaction_dags.compaction.checks import HourSummary
from compaction_dags.compaction.errors import ConflictError, RawMissingError, TransformError
from compaction_dags.compaction.lake import Lake
from compaction_dags.compaction.tables import CuratedTable
from schemas.curated import TABLES
from schemas.keys import RawHour
from schemas.snowflake import MAX_ID, first_id_at, time_of
from tests.compaction.conftest import Place
from tests.compaction.pages import NOON, encode, heartbeat, microbatch, page_record

ONE = timedelta(hours=1)
MIDNIGHT = NOON + timedelta(hours=12)
ROW = ["id", "like_count", "text_sent", "raw_key", "record_index", "fetched_at", "first_fetched_at", "matched_queries",
       "date", "hour"]  # fmt: skip
"""Columns of `tweets` that the dictionary knows."""


def tweet(moment: datetime, serial: int = 0, likes: int = 0, **more: Any) -> dict[str, Any]:
    number = str(first_id_at(moment) + serial)
    return {"id": number, "text": f"drop {number}", "lang": "en", "public_metrics": {"like_count": likes}} | more


@dataclass
class Sent:
    """A page in raw, and where it lies there."""

    raw_key: str
    record_index: int
    query: str
    at: datetime
    tweets: list[dict[str, Any]]


@dataclass
class Ledger:
    """Everything a test put into raw, and what must become of it."""

    place: Place
    sent: list[Sent] = field(default_factory=list)

    def ship(self, at: datetime, *pages: tuple[str, list[dict[str, Any]]], between: bool = False) -> str:
        """A microbatch of pages (query, tweets), fetched a second apart from `at` on."""
        records, sent = [], []
        for query, tweets in pages:
            if between:
                records.append(heartbeat(at))
            moment = at + timedelta(seconds=len(records))
            sent.append(Sent("", len(records), query, moment, tweets))
            body = encode({"data": tweets, "meta": {"result_count": len(tweets)}})
            records.append(page_record(body, moment, query))
        key = self.place.ship(records, at)
        for one in sent:
            one.raw_key = key
        self.sent += sent
        return key

    def expected(self) -> dict[int, dict[str, Any]]:
        """A dictionary by id, filled page by page, the latest last."""
        rows: dict[int, dict[str, Any]] = {}
        for page in sorted(self.sent, key=lambda one: (one.at, one.raw_key, one.record_index)):
            for sent in page.tweets:
                number = int(sent["id"])
                made = time_of(number)
                known = rows.get(number, {"matched_queries": [], "first_fetched_at": page.at})
                rows[number] = {
                    "id": number,
                    "like_count": sent["public_metrics"]["like_count"],
                    "text_sent": sent["text"],
                    "raw_key": page.raw_key,
                    "record_index": page.record_index,
                    "fetched_at": page.at,
                    "first_fetched_at": known["first_fetched_at"],
                    "matched_queries": sorted({*known["matched_queries"], page.query}),
                    "date": made.date().isoformat(),
                    "hour": made.hour,
                }
        return rows

    def holds(self) -> None:
        """The table is what the dictionary says, row for row."""
        assert self.place.tweets(ROW) == self.expected()


def stale(place: Place) -> list[str]:
    return job.plan_hours(place.settings(), include_open=True, full=True)


@pytest.fixture
def ledger(place: Place) -> Ledger:
    return Ledger(place)


# --- the normal case, duplicates, hours ---


def test_a_tweet_of_two_queries_and_two_microbatches_is_one_row_with_what_was_fetched_last(ledger: Ledger) -> None:
    twice = NOON - timedelta(minutes=3)
    ledger.ship(NOON, ("lake", [tweet(twice, 0, 1), tweet(twice, 1, 5)]), ("rain", [tweet(twice, 0, 2)]))
    ledger.ship(NOON + timedelta(minutes=1), ("storm", [tweet(twice, 0, 9, text="seen last")]))
    summary = ledger.place.compact()
    ledger.holds()
    assert summary.as_dict() == {
        "raw_hours": 1, "microbatches": 2, "pages": 3, "rows_in": 4, "tweets_written": 2, "duplicates": 2,
        "filtered": 0, "rejected": 0,
    }  # fmt: skip
    row = ledger.place.tweets(ROW)[int(tweet(twice)["id"])]
    assert (row["matched_queries"], row["like_count"], row["first_fetched_at"]) == (["lake", "rain", "storm"], 9, NOON)


def test_the_record_index_counts_every_record_and_the_table_keeps_it(ledger: Ledger) -> None:
    ledger.ship(NOON, ("lake", [tweet(NOON)]), ("lake", [tweet(NOON, 1)]), between=True)
    ledger.place.compact()
    assert {row["record_index"] for row in ledger.place.tweets(ROW).values()} == {1, 3}
    ledger.holds()


def test_a_late_microbatch_of_a_past_hour_is_folded_in_and_older_fetches_never_win(ledger: Ledger) -> None:
    about = NOON - timedelta(minutes=1)
    ledger.ship(NOON + ONE, ("lake", [tweet(about, 0, 50), tweet(about, 1, 1)]))
    ledger.place.compact()
    late = ledger.ship(NOON + timedelta(minutes=5), ("rain", [tweet(about, 0, 7), tweet(about, 2, 3)]))
    assert stale(ledger.place) == ["2026-11-20T12"]
    ledger.place.compact()
    ledger.holds()
    rows = ledger.place.tweets(ROW)
    assert rows[int(tweet(about)["id"])]["like_count"] == 50
    assert rows[int(tweet(about)["id"])]["matched_queries"] == ["lake", "rain"]
    assert rows[int(tweet(about, 2)["id"])]["raw_key"] == late


def test_tweets_go_to_the_hour_they_were_made_in_and_across_midnight_only_there(ledger: Ledger) -> None:
    corners = [MIDNIGHT - timedelta(hours=24), MIDNIGHT + timedelta(hours=23)]
    ledger.ship(corners[1] + ONE, ("lake", [tweet(corner) for corner in corners]))
    ledger.place.compact()
    assert {(row["date"], row["hour"]) for row in ledger.place.tweets(ROW).values()} == {
        ("2026-11-20", 0), ("2026-11-21", 23),
    }  # fmt: skip
    just = timedelta(milliseconds=1)
    ledger.ship(MIDNIGHT, ("lake", [tweet(MIDNIGHT - just), tweet(MIDNIGHT)]))
    ledger.place.compact()
    ledger.holds()
    assert len(ledger.place.tweets(ROW)) == 4, "d1/00 and d2/23 were not swept away by d1/23 and d2/00"


def test_the_least_and_the_greatest_ids_find_their_hours(ledger: Ledger) -> None:
    odd = [{"id": str(number), "text": "odd", "public_metrics": {"like_count": 1}} for number in (1, 20, MAX_ID)]
    ledger.ship(NOON, ("lake", odd))
    ledger.place.compact()
    ledger.holds()


@pytest.mark.parametrize("seed", range(3))
def test_any_hours_in_any_order_and_again_are_the_dictionary(ledger: Ledger, seed: int) -> None:
    """Random pages over hours around midnight, compacted in a random order in between, then some hours again."""
    chance = random.Random(seed)
    made = [MIDNIGHT + timedelta(minutes=minute) for minute in chance.sample(range(-90, 90), 40)]
    rounds: Iterator[int] = itertools.count()
    for _ in range(3):
        touched = []
        for _ in range(chance.randrange(1, 4)):
            hour = MIDNIGHT + chance.randrange(-1, 3) * ONE
            at = hour + timedelta(seconds=chance.randrange(3_000))
            pages = [
                (
                    chance.choice(["lake", "rain", "Zoë"]),
                    [tweet(moment, 0, next(rounds)) for moment in chance.sample(made, chance.randrange(0, 9))],
                )
                for _ in range(chance.randrange(1, 4))
            ]
            ledger.ship(at, *pages)
            touched.append(hour)
        chance.shuffle(touched)
        ledger.place.compact(*touched, chance.choice(touched))
    ledger.holds()
    versions = ledger.place.versions()
    ledger.place.compact(*{RawHour.of(one.at).start for one in ledger.sent})
    assert ledger.place.versions() == versions, "doing all of it again changes nothing"


# --- again ---


def test_a_run_with_nothing_new_has_no_hour_and_an_hour_again_commits_nothing(ledger: Ledger) -> None:
    ledger.ship(NOON, ("lake", [tweet(NOON, serial) for serial in range(5)]))
    first = ledger.place.compact(now=NOON + ONE)
    versions, objects = ledger.place.versions(), set(ledger.place.objects("curated/"))
    assert ledger.place.compact().raw_hours == 0
    again = ledger.place.compact(NOON, now=NOON + 9 * ONE)
    assert again == first
    assert ledger.place.versions() == versions
    assert set(ledger.place.objects("curated/")) == objects, "no file is left behind either"


def test_hours_without_tweets_are_consumed_too(place: Place) -> None:
    place.ship([heartbeat()])
    place.ship([], NOON + ONE)
    assert place.compact().as_dict() | {"raw_hours": 2, "microbatches": 2} == place.compact(NOON, NOON + ONE).as_dict()
    assert stale(place) == []
    assert len(place.rows("ingested_files")) == 2
    assert place.tweets() == {}


def test_an_hour_without_raw_that_was_never_consumed_is_no_error_and_leaves_no_row(place: Place) -> None:
    assert place.compact(NOON).as_dict() == dict.fromkeys(place.compact(NOON).as_dict(), 0) | {"raw_hours": 1}


def test_a_microbatch_that_is_gone_stops_its_hour_by_name_and_not_the_others(ledger: Ledger) -> None:
    gone = ledger.ship(NOON, ("lake", [tweet(NOON)]))
    ledger.place.compact()
    place = ledger.place
    content = place.s3.client().get_object(Bucket=place.s3.bucket, Key=gone)["Body"].read()
    place.s3.client().delete_object(Bucket=place.s3.bucket, Key=gone)
    ledger.ship(NOON + timedelta(minutes=9), ("lake", [tweet(NOON, 1)]))
    ledger.ship(NOON + ONE, ("lake", [tweet(NOON, 2)]))
    before = place.tweets(ROW)
    with pytest.raises(RawMissingError, match=gone):
        place.compact()
    assert before.items() < place.tweets(ROW).items()
    assert int(tweet(NOON, 2)["id"]) in place.tweets(ROW), "the hour after it was done all the same"
    assert int(tweet(NOON, 1)["id"]) not in place.tweets(ROW)
    place.s3.client().put_object(Bucket=place.s3.bucket, Key=gone, Body=content)
    place.compact()
    ledger.holds()


# --- the other tables ---


def test_side_tables_hold_one_row_a_key_and_raw_hour_and_are_replaced_whole(place: Place) -> None:
    def answer(name: str) -> bytes:
        user = {"id": "7", "username": "swimmer", "name": name}
        other = tweet(NOON - 9 * ONE, 3)
        includes = {
            "users": [user, user], "tweets": [other], "media": [{"media_key": "3_1", "type": "photo"}],
            "places": [{"id": "p", "full_name": name}], "polls": [{"id": "5", "options": []}],
        }  # fmt: skip
        return encode({"data": [tweet(NOON)], "includes": includes, "meta": {}})

    place.ship([page_record(answer("first")), page_record(answer("second"), NOON + timedelta(seconds=1))])
    place.ship([page_record(answer("next hour"), NOON + ONE)], NOON + ONE)
    place.compact()
    assert [(row["name"], row["hour"]) for row in place.rows("users")] == [("second", 12), ("next hour", 13)]
    assert [row["full_name"] for row in place.rows("places")] == ["second", "next hour"]
    for name in ("media", "polls", "referenced_tweets"):
        assert len(place.rows(name)) == 2, name
    place.ship([page_record(answer("third"), NOON + timedelta(minutes=2))])
    place.compact()
    assert [(row["name"], row["hour"]) for row in place.rows("users")] == [("third", 12), ("next hour", 13)]
    assert len(place.tweets()) == 1, "referenced posts matched no query"


def test_ingested_files_say_what_was_read_and_what_came_of_it(ledger: Ledger) -> None:
    key = ledger.ship(NOON, ("lake", [tweet(NOON), tweet(NOON, 1)]), ("rain", [tweet(NOON)]), between=True)
    moment = NOON + 2 * ONE
    ledger.place.compact(now=moment)
    (row,) = ledger.place.rows("ingested_files")
    client = ledger.place.s3.client()
    head = client.head_object(Bucket=ledger.place.s3.bucket, Key=key)
    assert (row["raw_key"], row["bytes"], row["etag"]) == (key, head["ContentLength"], head["ETag"].strip('"'))
    assert row["sha256"] == head["Metadata"]["sha256"]
    assert (row["records"], row["pages"], row["rows"], row["filtered"], row["rejects"]) == (4, 2, 3, 0, 0)
    assert (row["transform"], row["ingested_at"], row["date"], row["hour"]) == (None, moment, "2026-11-20", 12)


def test_commits_are_made_with_ingested_files_last_and_say_which_hour_they_are_of(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = CuratedTable.replace

    def noted(self: CuratedTable, *args: Any, **kwargs: Any) -> bool:
        order.append(self.name)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(CuratedTable, "replace", noted)
    ledger.ship(NOON, ("lake", [tweet(NOON)]))
    ledger.place.compact()
    assert (order[0], order[-1], sorted(order)) == ("tweets", "ingested_files", sorted(TABLES))
    assert ledger.place.delta("tweets").history(1)[0]["tweetlake.raw_hour"] == "2026-11-20T12"


# --- damage ---


def test_bad_objects_pages_and_files_are_rejects_with_reason_key_and_bytes_and_all_else_is_used(ledger: Ledger) -> None:
    place = ledger.place
    good = tweet(NOON, 9)
    bodies = [
        b"<html>busy</html>",
        b"[1, 2]",
        encode({"data": [{"text": "no id"}, good, {"id": "abc", "text": "x"}, {"id": "-4"}, {"id": str(2**63)}]}),
        encode({"data": 5}),
    ]
    key = place.ship([page_record(body, NOON + timedelta(seconds=index)) for index, body in enumerate(bodies)])
    torn = microbatch([page_record(encode({"data": [tweet(NOON, serial)]})) for serial in range(3)], 50)
    torn_key = place.put(torn[:-20], NOON, 50, records=3)
    noise_key = place.put(b"Obj\x01 this is no Avro", NOON, 51)
    summary = place.compact()
    rejects = place.rows("rejects")
    assert summary.rejected == len(rejects) >= 9
    assert set(place.tweets()) >= {int(good["id"]), first_id_at(NOON), first_id_at(NOON) + 1}
    by_key = {each: [row for row in rejects if row["raw_key"] == each] for each in (key, torn_key, noise_key)}
    assert all(row["reason"] and row["detail"] for row in rejects)
    assert {row["record_index"] for row in by_key[key]} == {0, 1, 2, 3}
    assert {bytes(row["body"]) for row in by_key[key]} >= {bodies[0], bodies[1]}
    assert {row["tweet_id"] for row in by_key[key]} >= {"abc", "-4", str(2**63)}
    assert by_key[torn_key]
    assert by_key[noise_key]
    versions = place.versions()
    assert place.compact(NOON) == summary
    assert place.versions() == versions


def test_a_file_whose_checksum_does_not_hold_is_told_and_its_good_pages_are_used(place: Place) -> None:
    data = microbatch([page_record(encode({"data": [tweet(NOON)]}))], 9)
    key = place.put(data, NOON, 9, sha256="0" * 64)
    place.compact()
    assert list(place.tweets()) == [first_id_at(NOON)]
    assert {row["raw_key"] for row in place.rows("rejects")} == {key}


# --- the user's transform ---

EXAMPLE = "compaction_dags.examples:clean_and_filter"


def test_what_the_shipped_example_drops_is_counted_as_filtered_and_stays_away(ledger: Ledger) -> None:
    place = ledger.place
    kept = tweet(NOON, 0, text="two\nlines \t and\x07 a bell  ")
    retweet = tweet(NOON, 1, referenced_tweets=[{"type": "retweeted", "id": "1"}])
    key = ledger.ship(NOON, ("lake", [kept, retweet, tweet(NOON, 2, lang="de"), tweet(NOON, 2, lang="de")]))
    summary = place.compact(function=EXAMPLE)
    assert (summary.rows_in, summary.tweets_written, summary.duplicates, summary.filtered) == (4, 1, 1, 2)
    (row,) = place.tweets(["text", "text_sent"]).values()
    assert (row["text"], row["text_sent"]) == ("two lines and a bell", kept["text"])
    (ingested,) = place.rows("ingested_files")
    assert (ingested["raw_key"], ingested["filtered"], ingested["rows"]) == (key, 2, 4)
    assert ingested["transform"] == "compaction_dags.examples:clean_and_filter"
    assert ingested["transform_version"]
    versions = place.versions()
    assert place.compact(NOON, function=EXAMPLE) == summary
    assert place.versions() == versions


def test_an_hour_whose_rows_are_all_filtered_is_done(ledger: Ledger) -> None:
    ledger.ship(NOON, ("lake", [tweet(NOON, lang="de")]))
    assert ledger.place.compact(function=EXAMPLE).filtered == 1
    assert ledger.place.tweets() == {}
    assert ledger.place.compact(function=EXAMPLE).raw_hours == 0


def test_a_tweet_curated_from_another_hour_stays_when_a_later_fetch_of_it_is_filtered(ledger: Ledger) -> None:
    about = NOON - ONE
    ledger.ship(NOON, ("lake", [tweet(about, likes=1)]))
    ledger.place.compact(function=EXAMPLE)
    ledger.ship(NOON + ONE, ("lake", [tweet(about, likes=2, lang="de")]))
    assert ledger.place.compact(function=EXAMPLE).filtered == 1
    assert ledger.place.tweets(["like_count"])[first_id_at(about)]["like_count"] == 1


def test_a_transform_that_fails_commits_nothing_and_the_hour_stays_stale(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "drizzle.py").write_text("def fails(tweets):\n    raise KeyError('rain')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    ledger.ship(NOON, ("lake", [tweet(NOON)]))
    with pytest.raises(TransformError, match=r"drizzle:fails failed: KeyError: 'rain'"):
        ledger.place.compact(function="drizzle:fails")
    assert not [key for key in ledger.place.objects("curated/") if key.endswith(".parquet")]
    assert ledger.place.compact().tweets_written == 1


# --- killed, and two at once ---


class Killed(BaseException):
    """As good as SIGKILL within a process: nothing in the code under test catches it."""


@contextmanager
def killed_before(number: int) -> Iterator[list[str]]:
    """Die before the durable step of that number, from 0. To die after one is to die before the next."""
    taken: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Lake, "put_file"), (CuratedTable, "_commit"), (CuratedTable, "_create")):
            real = getattr(owner, name)

            def step(*args: Any, _real: Any = real, _name: str = name) -> Any:
                taken.append(_name)
                if len(taken) > number:
                    raise Killed
                return _real(*args)

            patch.setattr(owner, name, step)
        yield taken


@pytest.mark.timeout(240)
def test_killed_before_every_durable_step_the_tables_are_whole_and_it_is_done_again(ledger: Ledger) -> None:
    """Hour after hour on one lake, each killed one step later and then made good, until one gets through."""
    place = ledger.place
    for number in itertools.count():
        before = ledger.expected()
        hour = NOON + number * ONE
        ledger.ship(hour, ("rain", [tweet(NOON, likes=number), tweet(NOON, number + 1)]), ("lake", [tweet(MIDNIGHT)]))
        place.put(b"no Avro", hour)
        try:
            with killed_before(number) as taken:
                place.compact(hour)
            break
        except Killed:
            assert stale(place) == [str(RawHour.of(hour))]
            if number:  # in the first hour there is no table yet
                assert place.tweets(ROW) in (before, ledger.expected()), "a whole version, the old or the new"
            assert place.compact().tweets_written == 3
            assert stale(place) == []
            ledger.holds()
            assert len(place.rows("rejects")) == number + 1
            assert len(place.rows("ingested_files")) == 2 * (number + 1)
    ledger.holds()
    assert Counter(taken) == {"_commit": 3, "put_file": 4}, "tweets (two event hours), rejects, ingested_files"


DYING = """
import os, signal
from compaction_dags.compaction import job, tables
from schemas.settings import load
real = tables.CuratedTable._commit
def commit(self, *args):
    if {after}: real(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)
tables.CuratedTable._commit = commit
job.compact_hour(load(), "2026-11-20T12")
"""


@pytest.mark.parametrize("after", [False, True])
def test_a_process_killed_before_or_after_its_first_commit_is_made_good_by_the_next(
    ledger: Ledger, after: bool
) -> None:
    place = ledger.place
    ledger.ship(NOON, ("lake", [tweet(NOON), tweet(NOON - ONE)]))
    environment = os.environ | {"TWEETLAKE_CONFIG": str(place.config())}
    script = DYING.format(after=after)
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == -9, ended.stderr
    assert len(place.tweets()) == (2 if after else 0)
    assert place.compact().raw_hours == 1
    ledger.holds()


def test_two_processes_on_the_same_hours_at_once_leave_what_one_leaves(ledger: Ledger) -> None:
    place = ledger.place
    for number in range(3):
        ledger.ship(
            NOON + number * ONE, ("lake", [tweet(NOON + number * ONE - timedelta(seconds=n)) for n in range(20)])
        )
        ledger.ship(NOON + number * ONE, ("rain", [tweet(NOON - timedelta(seconds=n), 0, number) for n in range(20)]))
    command = [sys.executable, "-m", "compaction_dags.compaction", "--config", str(place.config()), "--full"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=90) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    ledger.holds()
    assert len(place.rows("ingested_files")) == 6
    assert place.compact().raw_hours == 0
    for out, _ in told:
        assert json.loads(out.splitlines()[-1])["microbatches"] in (0, 2, 4, 6)


def test_two_raw_hours_with_the_same_tweets_at_once_lose_none(ledger: Ledger) -> None:
    """As mapped tasks of the DAG do: both want the same event hours, one of them has to merge again."""
    place = ledger.place
    hours = [NOON + number * ONE for number in range(4)]
    for number, hour in enumerate(hours):
        ledger.ship(hour, (f"q{number}", [tweet(NOON, serial, number) for serial in range(0, 40, number + 1)]))
    settings = place.settings()
    with ThreadPoolExecutor(len(hours)) as pool:
        summaries = list(pool.map(lambda hour: job.compact_hour(settings, str(RawHour.of(hour))), hours))
    ledger.holds()
    assert sum(summaries, HourSummary()).tweets_written == 40 + 20 + 14 + 10


def test_a_run_that_listed_before_another_microbatch_came_takes_nothing_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ledger.place
    ledger.ship(NOON, ("lake", [tweet(NOON)]))
    real = Lake.raw_of_hour

    def listing(self: Lake, hour: RawHour) -> list[Any]:
        listed = real(self, hour)
        if len(listed) == 1:  # between our listing and our first commit another run does the hour with one more
            ledger.ship(NOON + timedelta(minutes=1), ("rain", [tweet(NOON, 0, 9), tweet(NOON, 1)]))
            place.compact(NOON)
        return listed

    monkeypatch.setattr(Lake, "raw_of_hour", listing)
    with pytest.raises(ConflictError):
        place.compact(NOON)
    ledger.holds()
    assert len(place.rows("ingested_files")) == 2
    assert place.compact().raw_hours == 0
