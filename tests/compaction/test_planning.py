"""What is to be done is what raw holds and the tables have not consumed, as sets; time only bounds how far one looks."""

from datetime import datetime
from typing import Any

import pytest

from compaction_dags.compaction import job, plan
from compaction_dags.compaction.errors import RawMissingError
from compaction_dags.compaction.lake import Lake
from schemas.keys import MicrobatchName, RawHour
from tests.compaction.conftest import Place, hours
from tests.compaction.pages import NOON, heartbeat, microbatch

NOW = NOON + hours(2.5)


def stale(place: Place, now: datetime = NOW, *, include_open: bool = False, full: bool = False) -> list[str]:
    """The hours of 2026-11-20 as their number, others whole."""
    found = job.plan_hours(place.settings(), include_open=include_open, now=now, full=full)
    return [hour.removeprefix("2026-11-20T") for hour in found]


def test_an_empty_lake_has_nothing_to_do(place: Place) -> None:
    assert stale(place, full=True) == []


def test_every_hour_before_the_current_one_is_stale_until_it_is_consumed(place: Place) -> None:
    for number in range(4):
        place.ship_tweets([number], NOON + hours(number))
    assert stale(place) == ["12", "13"]
    assert stale(place, include_open=True) == ["12", "13", "14", "15"], "a clock may be ahead"
    place.compact(NOON)
    assert stale(place) == ["13"]
    place.compact()
    assert stale(place, include_open=True) == []


def test_a_late_microbatch_makes_its_hour_stale_again(place: Place) -> None:
    place.ship_tweets([1])
    place.compact()
    place.ship([heartbeat()])
    assert stale(place) == ["12"]
    place.compact()
    assert stale(place) == []


def test_older_hours_than_three_days_are_found_by_a_full_sweep_only(place: Place) -> None:
    for back in (71, 73 + 24, 24 * 400):
        place.ship_tweets([back], NOW - hours(back))
    assert stale(place) == ["2026-11-17T15"]
    assert stale(place, full=True) == ["2025-10-16T14", "2026-11-16T13", "2026-11-17T15"]
    place.compact()
    assert stale(place, full=True) == []
    assert stale(place) == []


def test_what_was_consumed_out_of_reach_is_not_missed(place: Place) -> None:
    place.ship_tweets([1], NOON + hours(24 * 365))
    place.ship_tweets([2], NOON - hours(24 * 365))
    place.compact()
    assert stale(place, include_open=True) == []


def test_an_hour_whose_raw_is_gone_is_refused_with_its_keys_and_holds_up_no_other(place: Place) -> None:
    gone = [place.ship_tweets([number]) for number in range(5)]
    place.ship_tweets([7])
    place.compact()
    before = place.versions()
    for key in gone:
        place.s3.client().delete_object(Bucket=place.s3.bucket, Key=key)
    late = place.ship_tweets([8])
    other = place.ship_tweets([9], NOON + hours(1))
    assert stale(place) == ["12", "13"]
    found = plan.find_stale(place.lake(), place.table("ingested_files"), now=NOW, include_open=False)
    assert found.hours == (RawHour.of(NOON + hours(1)),)
    assert found.refused == {RawHour.of(NOON): tuple(gone)}
    told: list[tuple[str, str]] = []
    done = job.compact(place.settings(), stale(place) and ["2026-11-20T12", "2026-11-20T13"],
                       failed=lambda hour, error: told.append((hour, str(error))))  # fmt: skip
    assert (done.raw_hours, done.tweets_written) == (1, 1)
    ((hour, words),) = told
    assert hour == "2026-11-20T12"
    assert words.startswith("raw hour 2026-11-20T12: 5 microbatches that were consumed are missing in raw or changed: ")
    assert gone[0] in words
    assert "and 2 more" in words
    assert "restore the objects" in words
    assert late not in words
    assert sorted(place.tweets([])) == [0, 1, 2, 3, 4, 7, 9]
    assert {key for key in (row["raw_key"] for row in place.rows("ingested_files")) if key not in gone} >= {other}
    with pytest.raises(RawMissingError):
        place.compact(NOON)
    assert {name: version - before[name] for name, version in place.versions().items() if version != before[name]} == {
        "tweets": 1, "completeness": 1, "ingested_files": 1,
    }, "only the other hour's rows came"  # fmt: skip


def test_raw_that_a_rule_of_the_bucket_deleted_is_not_missed(place: Place) -> None:
    ages = {days: place.ship_tweets([days], NOW - hours(24 * days)) for days in (29, 31, 40)}
    place.compact()
    for days in (29, 40):
        place.s3.client().delete_object(Bucket=place.s3.bucket, Key=ages[days])
    assert stale(place, full=True) == ["2026-10-11T14", "2026-10-22T14"], (
        "unless it is told of the rule, it misses both"
    )
    settings = place.settings()
    told = settings.model_copy(update={"lake": settings.lake.model_copy(update={"raw_days": 30})})
    assert job.plan_hours(told, include_open=False, now=NOW, full=True) == ["2026-10-22T14"], "no rule deletes that yet"
    place.ship_tweets([1], NOW - hours(24 * 31))
    assert job.plan_hours(told, include_open=False, now=NOW, full=True) == ["2026-10-22T14"], "half an hour is no hour"


def test_an_object_that_is_not_the_one_that_was_consumed_is_missing(place: Place) -> None:
    key = place.ship_tweets([1])
    place.compact()
    place.s3.client().put_object(Bucket=place.s3.bucket, Key=key, Body=b"something else")
    with pytest.raises(RawMissingError, match="missing in raw or changed"):
        place.compact(NOON)
    assert stale(place) == ["12"], "it stays to be seen"


def test_objects_that_are_no_microbatches_are_passed_over(place: Place) -> None:
    good = place.ship_tweets([1])
    folder, name = good.rsplit("/", 1)
    raw = place.keys.raw
    others = [
        f"{folder}/notes.txt", f"{folder}/{name}.tmp", f"{folder}/deeper/{name}", f"{raw}{name}", f"{raw}date=2026-11-20/{name}",
        f"{raw}date=2026-11-20/hour=7/{name}", f"{raw}date=2026-11-20/hour=77/{name}", f"{raw}date=today/hour=12/{name}",
        f"{raw}date=20261120/hour=12/{name}",
    ]  # fmt: skip
    for key in others:
        place.s3.client().put_object(Bucket=place.s3.bucket, Key=key, Body=b"not for us")
    assert stale(place, full=True) == ["12"]
    done = place.compact()
    assert (done.microbatches, done.rejected) == (1, 0)
    assert stale(place, full=True) == []


def test_what_another_run_consumes_meanwhile_is_not_missed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.ship_tweets([1])
    place.compact()
    listing, listings = Lake.raw_of_hour, []

    def late_one_arrives_and_is_consumed(lake: Lake, hour: RawHour) -> Any:
        listings.append(hour)
        if len(listings) == 1:
            place.ship_tweets([2])
            place.compact(NOON)
        return listing(lake, hour)

    monkeypatch.setattr(Lake, "raw_of_hour", late_one_arrives_and_is_consumed)
    assert place.compact(NOON).microbatches == 2


def test_hours_that_are_named_are_taken_as_they_are(place: Place) -> None:
    named = ["2026-11-20T14", "2026-11-20T12", "2026-11-20T14"]
    assert job.plan_hours(place.settings(), include_open=False, hours=named) == ["2026-11-20T12", "2026-11-20T14"]
    with pytest.raises(ValueError, match="write it as 2026-11-20T13"):
        job.plan_hours(place.settings(), include_open=False, hours=["yesterday"])


# --- closed and provisional ---


def is_closed(place: Place) -> dict[str, set[bool]]:
    """What the tables say of every raw hour."""
    told: dict[str, set[bool]] = {}
    for row in place.rows("ingested_files", ["raw_key", "date", "hour", "is_closed"]):
        told.setdefault(f"{row['hour']:02}", set()).add(row["is_closed"])
    return told


def test_an_hour_that_was_provisional_is_done_once_more_when_its_spool_has_gone_on(place: Place) -> None:
    place.ship_tweets([1])
    place.ship([heartbeat()])
    place.compact()
    assert is_closed(place) == {"12": {False}}
    assert stale(place) == []
    place.ship([heartbeat(NOON + hours(1))], NOON + hours(1))
    assert stale(place) == ["12", "13"]
    place.compact()
    assert is_closed(place) == {"12": {True}, "13": {False}}
    assert stale(place, include_open=True, full=True) == [], "and only once"


def test_an_hour_stays_provisional_until_every_spool_that_wrote_into_it_has_gone_on_or_is_retired(
    place: Place,
) -> None:
    place.ship_tweets([1])
    elsewhere = place.keys.microbatch(MicrobatchName(9, RawHour.of(NOON), "0badcafe"))
    place.s3.client().put_object(Bucket=place.s3.bucket, Key=elsewhere, Body=microbatch([heartbeat()], 9))
    place.ship_tweets([3], NOON + hours(1))
    place.compact()
    assert is_closed(place) == {"12": {False}, "13": {False}}
    assert stale(place) == []
    place.s3.client().put_object(Bucket=place.s3.bucket, Key=place.keys.retired("0badcafe"), Body=b"{}")
    assert stale(place) == ["12"]
    place.compact()
    assert is_closed(place) == {"12": {True}, "13": {False}}
    assert stale(place, include_open=True) == []


def test_an_hour_is_closed_by_a_microbatch_of_days_later(place: Place) -> None:
    place.ship_tweets([1])
    for number in range(3):
        place.put(b"", NOON + hours(80 + number))
    place.compact(NOON)
    assert is_closed(place) == {"12": {True}}


def test_what_was_consumed_before_releases_looked_is_not_done_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.ship_tweets([1])
    monkeypatch.setattr(plan, "is_closed", lambda *_: None)
    place.compact()
    monkeypatch.undo()
    for name, value in place.s3.environment().items():
        monkeypatch.setenv(name, value)
    place.ship_tweets([2], NOON + hours(1))
    assert stale(place) == ["13"]
