"""What a raw hour survives: killed before any durable step, other raw hours that want the same event hours, nothing to keep."""

import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from compaction_dags.compaction import job
from compaction_dags.compaction.checks import HourSummary
from compaction_dags.compaction.lake import Lake
from compaction_dags.compaction.tables import CuratedTable
from schemas.curated import TABLES
from schemas.keys import RawHour
from schemas.snowflake import first_id_at, time_of
from tests.compaction.conftest import Place
from tests.compaction.pages import NOON, encode, heartbeat, page_record

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

    def ship(self, at: datetime, *pages: tuple[str, list[dict[str, Any]]]) -> str:
        """A microbatch of pages (query, tweets), fetched a second apart from `at` on."""
        records, sent = [], []
        for query, tweets in pages:
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


def test_hours_without_tweets_are_consumed_too(place: Place) -> None:
    place.ship([heartbeat()])
    place.ship([], NOON + ONE)
    assert place.compact() == HourSummary(raw_hours=2, microbatches=2)
    assert stale(place) == []
    assert len(place.rows("ingested_files")) == 2
    assert place.tweets() == {}


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


EXAMPLE = "compaction_dags.examples:clean_and_filter"


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


def test_a_function_that_now_drops_a_row_does_not_take_it_out_of_the_table(ledger: Ledger) -> None:
    """As docs/transform.md says: no row leaves the table by a change of settings."""
    ledger.ship(NOON, ("lake", [tweet(NOON), tweet(NOON, 1, lang="de")]))
    ledger.place.compact()
    assert ledger.place.compact(NOON, function=EXAMPLE).filtered == 1
    assert len(ledger.place.tweets()) == 2


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
            assert stale(place)[-1] == str(RawHour.of(hour))
            if number:  # in the first hour there is no table yet
                assert place.tweets(ROW) in (before, ledger.expected()), "a whole version, the old or the new"
            assert place.compact(hour).tweets_written == 3
            place.compact()  # the hour before is closed by now
            assert stale(place) == []
            ledger.holds()
            assert len(place.rows("rejects")) == number + 1
            assert len(place.rows("ingested_files")) == 2 * (number + 1)
    ledger.holds()
    assert Counter(taken) == {"_commit": 4, "put_file": 5}, (
        "tweets (two event hours), rejects, completeness (of midnight there is nothing new to tell), ingested_files"
    )


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
