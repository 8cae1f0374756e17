"""A rebuild gives what raw and today's code give, as if compacted from nothing; tells what differs; or touches nothing."""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

from compaction_dags.compaction import job, rebuild, worker
from compaction_dags.compaction.__main__ import main
from compaction_dags.compaction.checks import Merged, check_event_hour
from compaction_dags.compaction.decode import Decoded, RawPage
from compaction_dags.compaction.errors import AccountingError, RawMissingError
from compaction_dags.compaction.rebuild import Rebuilt
from compaction_dags.compaction.tables import Change, CuratedTable, DataFile, Partition
from schemas.keys import RawHour
from schemas.snowflake import first_id_at
from tests.compaction.conftest import Place, hours, page_of
from tests.compaction.pages import NOON, World, page_record

FIRST = first_id_at(NOON)
ONE = NOON + hours(1)


def rebuilt(place: Place, *wanted: Any, function: str = "", check_only: bool = False) -> list[Rebuilt]:
    """Rebuild these raw hours in this order; all that there are, in the order of a rebuild, if none is given."""
    settings = place.settings(function)
    names = [str(RawHour.of(hour)) for hour in wanted] or rebuild.hours_between(
        settings, "2026-11-01T00", "2026-12-01T00"
    )
    return [rebuild.rebuild_hour(settings, name, check_only=check_only) for name in names]


def content(place: Place) -> dict[str, list[str]]:
    """Every row that pages decide, as it would be in any lake: without the lake's prefix."""
    return {
        name: sorted(str(row).replace(place.prefix, "") for row in place.rows(name))
        for name in ("tweets", "referenced_tweets", "users", "media", "places", "polls", "rejects")
    }


def from_nothing(place: Place, function: str = "") -> dict[str, list[str]]:
    """What compacting the same raw into an empty lake gives."""
    other = Place(place.s3, f"{place.prefix[:-1]}-anew/", place.directory)
    client = place.s3.client()
    for key in place.objects("raw/"):
        copied = f"{other.prefix}{key.removeprefix(place.prefix)}"
        client.copy_object(Bucket=place.s3.bucket, Key=copied, CopySource={"Bucket": place.s3.bucket, "Key": key})
    other.compact(function=function)
    return content(other)


@pytest.fixture
def lake(place: Place) -> Place:
    """Two raw hours of realistic pages, with tweets that both have seen, and one reject."""
    world = World(seed=11)
    for hour in (NOON, NOON, ONE):
        place.ship(
            [page_record(world.body(25), hour), page_record(world.body(25), hour + timedelta(seconds=5), "rain")], hour
        )
    place.ship([page_record(b'{"data": [{"id": "no number"}]}', ONE)], ONE)
    place.compact()
    assert {row["raw_key"].split("hour=")[1][:2] for row in place.rows("tweets", ["raw_key"])} == {"12", "13"}
    return place


# A transform is a function in a module; these are for the settings of the tests.
def without_even_ids(rows: Any) -> Any:
    return rows[[number % 2 == 1 for number in rows["id"]]]


def quiet(rows: Any) -> Any:
    return rows[rows["text"] != "loud"]


WITHOUT_EVEN_IDS = f"{__name__}:without_even_ids"
QUIET = f"{__name__}:quiet"


# --- equal ---


@pytest.mark.parametrize("check_only", [True, False])
def test_a_lake_that_nobody_touched_is_equal_and_nothing_is_written(lake: Place, check_only: bool) -> None:
    before, versions, objects = content(lake), lake.versions(), lake.objects()
    done = rebuilt(lake, check_only=check_only)
    assert [one.hour for one in done] == ["2026-11-20T13", "2026-11-20T12"]
    assert all(one.is_equal for one in done)
    assert {len(one.differences) for one in done} == {7}
    assert done[0].differences["tweets"].same == len(before["tweets"])
    assert (lake.versions(), lake.objects()) == (versions, objects)


def test_a_raw_hour_that_was_never_compacted_is_all_new(place: Place) -> None:
    place.ship_tweets([FIRST, FIRST + 1])
    (checked,) = rebuilt(place, check_only=True)
    assert checked.differences["tweets"].added == 2
    assert place.objects("curated/") == []
    rebuilt(place)
    assert list(place.tweets([])) == [FIRST, FIRST + 1]


# --- other code ---


def test_a_transform_that_was_added_takes_effect_on_what_was_there(lake: Place) -> None:
    before = lake.tweets([])
    done = rebuilt(lake, function=WITHOUT_EVEN_IDS)
    removed = sum(one.differences["tweets"].removed for one in done)
    assert removed == len([number for number in before if number % 2 == 0]) > 0
    assert content(lake) == from_nothing(lake, WITHOUT_EVEN_IDS)
    assert all(one.is_equal for one in rebuilt(lake, function=WITHOUT_EVEN_IDS))


def test_a_transform_that_was_taken_away_gives_everything_back(lake: Place) -> None:
    whole = content(lake)
    rebuilt(lake, function=WITHOUT_EVEN_IDS)
    done = rebuilt(lake)
    assert content(lake) == whole
    assert sum(one.differences["tweets"].added for one in done) > 0


def changed(monkeypatch: pytest.MonkeyPatch, change: Callable[[Decoded], None]) -> None:
    """A decoder of another release."""
    decode = worker.decode_pages

    def other(pages: Sequence[RawPage], **how: Any) -> Decoded:
        decoded = decode(pages, **how)
        change(decoded)
        return decoded

    monkeypatch.setattr(worker, "decode_pages", other)


def in_capitals(decoded: Decoded) -> None:
    """Languages and user names are written otherwise."""
    for name, column in (("tweets", "lang"), ("users", "username")):
        rows = decoded.tables[name]
        index = rows.schema.get_field_index(column)
        values = [value and value.upper() for value in rows[column].to_pylist()]
        decoded.tables[name] = rows.set_column(index, rows.schema.field(index), [values])


def test_a_mended_decoder_changes_values_and_the_report_names_the_columns(
    lake: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, in_capitals)
    before = lake.tweets(["lang"])
    newest, older = rebuilt(lake)
    assert newest.differences["tweets"].columns.keys() == {"lang"}
    assert newest.differences["users"].columns.keys() == {"username"}
    assert newest.differences["places"].is_none
    together = newest.differences["tweets"].changed + older.differences["tweets"].changed
    assert together == len([row for row in before.values() if row["lang"]])
    assert {number: row["lang"] for number, row in lake.tweets(["lang"]).items()} == {
        number: row["lang"] and row["lang"].upper() for number, row in before.items()
    }


def test_objects_that_a_mended_decoder_refuses_are_removed_even_if_an_hour_gives_none_any_more(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.ship_tweets([FIRST, FIRST + 1, first_id_at(NOON - hours(30))])
    place.compact()

    def recent_only(decoded: Decoded) -> None:
        rows = decoded.tables["tweets"]
        decoded.tables["tweets"] = rows.filter([number > FIRST for number in rows["id"].to_pylist()])

    changed(monkeypatch, recent_only)
    (checked,) = rebuilt(place, check_only=True)
    assert len(place.tweets([])) == 3, "nothing is written"
    (done,) = rebuilt(place)
    assert done.differences == checked.differences
    assert (done.differences["tweets"].removed, done.differences["tweets"].same) == (2, 1)
    assert done.differences["tweets"].examples["removed"] == [str(first_id_at(NOON - hours(30))), str(FIRST)]
    assert list(place.tweets([])) == [FIRST + 1]


def test_a_row_whose_latest_page_does_not_give_it_any_more_becomes_what_the_page_before_says(place: Place) -> None:
    pages = [(NOON, "calm", "lake"), (NOON + timedelta(minutes=1), "loud", "rain")]
    place.ship([page_record(page_of([FIRST], text=text), at, query) for at, text, query in pages])
    place.compact()
    assert place.tweets()[FIRST]["text"] == "loud"
    original = worker.decode_pages
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            worker, "decode_pages", lambda pages, **_: original([page for page in pages if b"loud" not in page.body])
        )
        (done,) = rebuilt(place)
    row = place.tweets()[FIRST]
    assert (row["text"], row["record_index"]) == ("calm", 0)
    assert row["matched_queries"] == ["lake", "rain"], "what found it is never taken back"
    assert {"text", "fetched_at", "record_index"} <= done.differences["tweets"].columns.keys()


# --- several raw hours that saw the same tweet ---


@pytest.fixture
def seen_twice(place: Place) -> Place:
    """A tweet that was calm at noon and loud an hour later, and one that was loud and is calm."""
    place.ship([page_record(page_of([FIRST], text="calm"), NOON), page_record(page_of([FIRST + 1], text="loud"), NOON)])
    place.ship(
        [page_record(page_of([FIRST], text="loud"), ONE), page_record(page_of([FIRST + 1], text="calm"), ONE)], ONE
    )
    place.compact()
    return place


def texts(place: Place) -> dict[int, tuple[str, str]]:
    return {number: (row["text"], row["raw_key"].split("hour=")[1][:2]) for number, row in place.tweets().items()}


def test_newest_first_an_earlier_hour_puts_back_what_a_later_one_does_not_give_any_more(seen_twice: Place) -> None:
    assert texts(seen_twice) == {FIRST: ("loud", "13"), FIRST + 1: ("calm", "13")}
    done = rebuilt(seen_twice, function=QUIET)
    assert texts(seen_twice) == {FIRST: ("calm", "12"), FIRST + 1: ("calm", "13")}
    reports = [one.as_dict() for one in done]
    assert reports[0]["seen_before"] == "2026-11-20T12"
    assert rebuild.out_of_turn(reports) == []
    assert rebuild.advice(reports, "2026-11-20T12") is None


def test_hours_that_were_rebuilt_out_of_turn_are_named_and_compacting_them_once_more_heals(seen_twice: Place) -> None:
    reports = [one.as_dict() for one in rebuilt(seen_twice, NOON, ONE, function=QUIET)]
    assert texts(seen_twice) == {FIRST + 1: ("calm", "13")}
    assert rebuild.out_of_turn(reports) == ["2026-11-20T12"]
    seen_twice.compact(NOON, function=QUIET)
    assert texts(seen_twice) == {FIRST: ("calm", "12"), FIRST + 1: ("calm", "13")}


def test_an_hour_before_the_range_that_may_give_removed_tweets_is_named(seen_twice: Place) -> None:
    reports = [one.as_dict() for one in rebuilt(seen_twice, ONE, function=QUIET)]
    assert rebuild.out_of_turn(reports) == []
    assert "2026-11-20T12" in str(rebuild.advice(reports, "2026-11-20T13"))
    assert "2026-11-20T13: raw hours since 2026-11-20T12 had seen some" in rebuild.in_words(reports[0])[-1]


def test_rows_of_other_raw_hours_stay(seen_twice: Place) -> None:
    rebuilt(seen_twice, NOON, function=QUIET)
    assert texts(seen_twice) == {FIRST: ("loud", "13"), FIRST + 1: ("calm", "13")}


# --- raw is gone or changed ---


def test_a_missing_microbatch_of_any_hour_of_the_range_stops_it_before_anything_is_touched(lake: Place) -> None:
    key = next(key for key in lake.objects("raw/") if "hour=12" in key)
    versions = lake.versions()
    lake.s3.client().delete_object(Bucket=lake.s3.bucket, Key=key)
    with pytest.raises(RawMissingError, match=key):
        rebuilt(lake, function=WITHOUT_EVEN_IDS)
    assert lake.versions() == versions


def test_a_raw_hour_that_is_gone_as_a_whole_stops_it_too(lake: Place) -> None:
    for key in lake.objects("raw/"):
        if "hour=12" in key:
            lake.s3.client().delete_object(Bucket=lake.s3.bucket, Key=key)
    with pytest.raises(RawMissingError, match="2026-11-20T12"):
        rebuilt(lake)


def test_a_microbatch_that_is_not_what_was_consumed_stops_it(lake: Place) -> None:
    key = next(key for key in lake.objects("raw/") if "hour=12" in key)
    client, before = lake.s3.client(), content(lake)
    body = client.get_object(Bucket=lake.s3.bucket, Key=key)["Body"].read()
    client.put_object(Bucket=lake.s3.bucket, Key=key, Body=body[:-40] + bytes(40))
    with pytest.raises(RawMissingError, match=f"not what was consumed: {key}"):
        rebuilt(lake, NOON)
    assert content(lake) == before


# --- stopped, guarded ---


@pytest.mark.parametrize("name", ["tweets", "users", "ingested_files"])
def test_killed_before_a_commit_and_done_again_it_is_as_if_nothing_had_been(
    lake: Place, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    commit = CuratedTable._commit

    def killed(self: CuratedTable, *arguments: Any) -> None:
        if self.name == name:
            raise KeyboardInterrupt
        commit(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(CuratedTable, "_commit", killed)
        patch.setattr(job, "version", lambda _: "9.9")  # so that ingested_files differs too
        changed(patch, in_capitals)
        with pytest.raises(KeyboardInterrupt):
            rebuilt(lake, function=WITHOUT_EVEN_IDS)
    rebuilt(lake, function=WITHOUT_EVEN_IDS)
    assert content(lake) == from_nothing(lake, WITHOUT_EVEN_IDS)


def file(rows: int) -> tuple[DataFile, ...]:
    return (DataFile(f"{rows}", Partition("2026-11-20", 12), 1, rows),)


@pytest.mark.parametrize(("after", "removed", "holds"), [(8, 2, True), (8, 1, False), (7, 2, False), (10, 0, True)])
def test_the_shrink_guard_lets_nothing_go_but_what_was_counted_as_removed(
    after: int, removed: int, holds: bool
) -> None:
    counts = Merged(together=after, removed=removed)
    change = Change(file(10), file(after))
    if holds:
        check_event_hour(Partition("2026-11-20", 12), change, counts)
    else:
        with pytest.raises(AccountingError):
            check_event_hour(Partition("2026-11-20", 12), change, counts)


def test_a_plain_compaction_never_removes(lake: Place) -> None:
    before = lake.tweets([])
    lake.compact(NOON, ONE, function=WITHOUT_EVEN_IDS)
    assert lake.tweets([]).keys() == before.keys()


# --- the command ---


def command(place: Place, *arguments: str, function: str = "") -> Result:
    line = ["--config", str(place.config(function)), "rebuild", *arguments]
    return CliRunner().invoke(main, line, prog_name="tweetlake-compact")


RANGE = ("--since", "2026-11-20T12", "--until", "2026-11-20T13")


def test_the_command_proves_equality(lake: Place) -> None:
    done = command(lake, *RANGE, "--check-only")
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["is_equal"] for line in done.stdout.splitlines()] == [True, True]
    assert done.stderr.splitlines()[1].startswith("2026-11-20T12: equal, ")


def test_the_command_tells_of_hours_without_raw(lake: Place) -> None:
    one = command(lake, "--since", "2026-11-20T03", "--until", "2026-11-20T03", "--check-only")
    assert (one.exit_code, one.stdout, one.stderr) == (0, "", "no raw in 2026-11-20T03\n")
    some = command(lake, "--since", "2026-11-20T08", "--until", "2026-11-20T12", "--check-only")
    assert some.stderr.splitlines()[0] == "no raw in 2026-11-20T08, 2026-11-20T09, 2026-11-20T10 and 1 more"
    assert len(some.stdout.splitlines()) == 1


def test_the_command_tells_differences_and_fails_only_if_it_was_to_check(lake: Place) -> None:
    checked = command(lake, *RANGE, "--check-only", function=WITHOUT_EVEN_IDS)
    assert checked.exit_code == 1
    assert "2026-11-20T13 tweets: same " in checked.stderr
    assert "; for example removed: " in checked.stderr
    assert command(lake, *RANGE, function=WITHOUT_EVEN_IDS).exit_code == 0
    assert command(lake, *RANGE, "--check-only", function=WITHOUT_EVEN_IDS).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--since", "2026-11-20T12"),
        ("--since", "yesterday", "--until", "2026-11-20T13"),
        ("--since", "2026-11-20T13", "--until", "2026-11-20T12"),
    ],
    ids=str,
)
def test_a_range_that_is_none_is_refused(place: Place, arguments: Iterable[str]) -> None:
    assert command(place, *arguments).exit_code == 2
