"""Upkeep makes tables smaller and never other: files, bytes, log; whatever else is being done to them."""

import json
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result
from deltalake import write_deltalake

from compaction_dags.compaction import upkeep
from compaction_dags.compaction.__main__ import main
from compaction_dags.compaction.errors import AccountingError, LakeUnreachableError
from compaction_dags.compaction.upkeep import Tended
from schemas.curated import TABLES
from schemas.snowflake import first_id_at
from tests.compaction.conftest import Place, hours
from tests.compaction.pages import NOON

FIRST = first_id_at(NOON)


def tend(place: Place, name: str = "tweets", grace: timedelta = upkeep.MOST_GRACE, **more: Any) -> Tended:
    return upkeep.tend(place.settings(), name, grace=grace, **more)


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> timedelta:
    """Everything that may be deleted is: what a week does, at once."""
    monkeypatch.setattr(upkeep, "LEAST_GRACE", timedelta())
    return timedelta()


def fill(place: Place, runs: int = 3) -> dict[int, dict[str, Any]]:
    """An hour that was compacted several times, so that most of its files are replaced ones."""
    for number in range(runs):
        place.ship_tweets(range(FIRST + number * 10, FIRST + number * 10 + 10))
        place.compact()
    return place.tweets()


def files_of(place: Place, name: str = "tweets") -> list[str]:
    return [key for key in place.objects(f"curated/{name}/") if "_delta_log" not in key]


def test_replaced_files_stay_for_the_grace(place: Place) -> None:
    fill(place)
    before = place.objects("curated/")
    done = tend(place)
    assert (done.files_deleted, done.bytes_freed) == (0, 0)
    assert set(before) <= set(place.objects("curated/"))


def test_after_the_grace_only_files_of_the_newest_version_are_left_and_the_bytes_are_told(
    place: Place, no_grace: timedelta
) -> None:
    rows = fill(place)
    sizes = place.lake().sizes(f"{place.keys.table('tweets')}/date=")
    told: list[str] = []
    done = tend(place, grace=no_grace, tell=told.append)
    left = files_of(place)
    assert len(left) == done.files == 1
    assert done.files_deleted == 2
    assert done.bytes_freed == sum(sizes.values()) - sizes[left[0]] > 0
    assert done.bytes == sizes[left[0]]
    assert told == [f"tweets: deleting 2 files, {done.bytes_freed:,} bytes"]
    assert place.tweets() == rows


def test_what_a_broken_run_left_is_deleted_too(place: Place, no_grace: timedelta) -> None:
    fill(place, runs=1)
    orphan = f"{place.keys.table('tweets')}/date=2026-11-20/hour=12/part-{'0' * 32}-0-12345678.parquet"
    place.s3.client().put_object(Bucket=place.s3.bucket, Key=orphan, Body=b"never committed")
    assert tend(place, grace=no_grace).files_deleted == 1
    assert orphan not in place.objects()


def test_a_second_time_there_is_nothing_to_do_and_no_new_version(place: Place, no_grace: timedelta) -> None:
    fill(place)
    tend(place, grace=no_grace)
    before, version = place.objects("curated/"), place.delta("tweets").version()
    again = tend(place, grace=no_grace)
    assert again == Tended(files=again.files, bytes=again.bytes)
    assert place.delta("tweets").version() == version
    assert place.objects("curated/") == before


@pytest.mark.parametrize("grace", [timedelta(hours=23), timedelta(days=8), timedelta(0)], ids=str)
def test_a_grace_that_would_take_files_of_a_run_or_that_delta_cannot_keep_is_refused(
    place: Place, grace: timedelta
) -> None:
    with pytest.raises(ValueError, match="grace must be from 1 day"):
        tend(place, grace=grace)


def test_a_table_that_is_not_there_yet_needs_nothing(place: Place) -> None:
    assert tend(place) == Tended()


def test_the_log_gets_a_checkpoint_of_the_newest_version_once(place: Place) -> None:
    fill(place)
    version = place.delta("tweets").version()
    tend(place)
    found = [key for key in place.objects("curated/tweets/_delta_log/") if "checkpoint.parquet" in key]
    assert [key.rsplit("/", 1)[1] for key in found] == [f"{version:020d}.checkpoint.parquet"]
    tend(place)
    assert place.delta("tweets").version() == version


def test_old_entries_of_the_log_are_deleted_and_the_table_is_as_it_was(place: Place) -> None:
    rows = fill(place)
    place.delta("tweets").alter.set_table_properties({"delta.logRetentionDuration": "interval 0 seconds"})
    version = place.delta("tweets").version()
    done = tend(place)
    assert done.log_entries_deleted == version
    assert done.log_bytes_freed > 0
    assert place.tweets() == rows
    place.ship_tweets([FIRST + 900], NOON)
    place.compact()
    assert place.tweets().keys() == rows.keys() | {FIRST + 900}


@pytest.mark.parametrize("name", ["tweets", "ingested_files"])
def test_files_of_another_engine_are_rolled_up_and_rows_stay_the_same(place: Place, name: str) -> None:
    fill(place, runs=1)
    rows = place.delta(name).to_pyarrow_table()
    column = "id" if name == "tweets" else "sequence"
    for number in range(1, 3):
        index = rows.schema.get_field_index(column)
        changed = rows.set_column(index, column, [[value + number * 1000 for value in rows[column].to_pylist()]])
        write_deltalake(place.delta(name), changed, mode="append")
    before = sorted(map(str, place.rows(name)))
    assert len(place.snapshot(name).of(next(iter(place.snapshot(name).files)))) == 3
    done = tend(place, name)
    assert (done.partitions_rolled_up, done.files) == (1, 1)
    assert sorted(map(str, place.rows(name))) == before
    assert tend(place, name).partitions_rolled_up == 0


def test_rows_that_another_engine_wrote_twice_become_one_when_their_hour_is_next_merged(place: Place) -> None:
    fill(place, runs=1)
    before = place.tweets()
    write_deltalake(place.delta("tweets"), place.delta("tweets").to_pyarrow_table(), mode="append")
    place.ship_tweets([FIRST + 900], NOON)
    place.compact()
    assert len(place.rows("tweets")) == len(before) + 1
    assert {number: row for number, row in place.tweets().items() if number != FIRST + 900} == before


def test_rolling_up_never_commits_fewer_rows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(place, runs=1)
    write_deltalake(place.delta("tweets"), place.delta("tweets").to_pyarrow_table(), mode="append")
    monkeypatch.setattr(upkeep, "_sorted", lambda *_: [])
    with pytest.raises(AccountingError, match="20 rows would become 0; nothing was committed"):
        tend(place)


def test_a_compaction_goes_on_after_upkeep_as_if_nothing_had_been(place: Place, no_grace: timedelta) -> None:
    fill(place)
    versions = place.versions()
    for name in versions:
        tend(place, name, no_grace)
    place.ship_tweets([FIRST], NOON + timedelta(minutes=1), text="later")
    place.compact()
    assert place.tweets()[FIRST]["text"] == "later"
    assert place.compact(NOON, now=NOON + hours(9)).microbatches == 4


def test_a_table_that_fails_does_not_hold_up_the_others_and_is_told_at_the_end(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(place, runs=1)
    tend_one = upkeep.tend

    def fails(settings: Any, name: str, **more: Any) -> Tended:
        if name == "users":
            raise LakeUnreachableError("users: S3 is away")
        return tend_one(settings, name, **more)

    monkeypatch.setattr(upkeep, "tend", fails)
    told: list[str] = []
    with pytest.raises(LakeUnreachableError, match="S3 is away"):
        upkeep.tend_all(place.settings(), tell=told.append)
    assert [line.split(":")[0] for line in told] == list(TABLES)


# --- the command ---


def maintain(place: Place, *arguments: str) -> Result:
    command = ["--config", str(place.config()), "maintain", *arguments]
    return CliRunner().invoke(main, command, prog_name="tweetlake-compact")


def test_the_command_compacts_hours_that_no_run_looks_at_any_more_and_tends_every_table(place: Place) -> None:
    long_ago = NOON - timedelta(days=15)
    place.ship_tweets([FIRST], long_ago)
    done = maintain(place)
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[0] == "stale raw hours: 2026-11-05T12"
    summary = json.loads(done.stdout)
    assert (summary["compacted"]["raw_hours"], summary["compacted"]["tweets_written"]) == (1, 1)
    assert summary["tended"]["files"] == sum(len(files_of(place, name)) for name in TABLES)
    assert list(place.tweets([])) == [FIRST]


def test_the_command_refuses_a_grace_that_is_no_grace(place: Place) -> None:
    assert maintain(place, "--grace-hours", "23").exit_code == 2


def test_an_hour_that_fails_does_not_keep_tables_from_being_tended(place: Place) -> None:
    fill(place, runs=1)
    place.s3.client().delete_object(Bucket=place.s3.bucket, Key=place.objects("raw/")[0])
    done = maintain(place)
    assert done.exit_code == 1
    assert "missing in raw" in done.stderr
    assert json.loads(done.stdout)["tended"]["files"] > 0
