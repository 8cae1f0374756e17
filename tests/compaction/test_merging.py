"""Which row counts: any order and any grouping of the same rows gives what a dictionary gives."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from compaction_dags.compaction import parquet
from compaction_dags.compaction import spill as spilling
from compaction_dags.compaction.merge import latest_rows, merged_tweets
from compaction_dags.compaction.rows import file_schema
from compaction_dags.compaction.spill import (
    KeyRange,
    Opened,
    SortedRows,
    Spill,
    cut,
    event_hours,
    ids_of,
    read_unsorted,
    shares,
    together,
)
from compaction_dags.compaction.tables import Partition
from schemas.keys import RawHour
from schemas.snowflake import MAX_ID, first_id_at, time_of

Row = dict[str, Any]
SCHEMA = file_schema("tweets")
START = datetime(2026, 11, 20, 12, tzinfo=UTC)
many = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))

ids = st.one_of(
    st.sampled_from([0, 1, 20, MAX_ID, MAX_ID - 1, first_id_at(START), first_id_at(START) - 1]),
    st.integers(first_id_at(START), first_id_at(START + timedelta(hours=2))),
    st.integers(0, MAX_ID),
)


@st.composite
def sightings(draw: st.DrawFn, most: int = 40) -> list[Row]:
    """Rows of a few tweets, each from a page of its own, as decoding makes them: found by one query at one moment."""
    few = draw(st.lists(ids, min_size=1, max_size=8))
    rows = []
    for index in range(draw(st.integers(0, most))):
        moment = START + timedelta(microseconds=draw(st.integers(0, 3)))
        rows.append(
            {
                "id": draw(st.sampled_from(few)),
                "text": f"seen {index}",
                "raw_key": f"raw/{draw(st.integers(0, 2))}.avro",
                "record_index": index,
                "fetched_at": moment,
                "first_fetched_at": moment,
                "matched_queries": [draw(st.sampled_from(["lake", "rain", "ärger", "Z"]))],
            }
        )
    return rows


def table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def oracle(rows: Sequence[Row]) -> list[Row]:
    """One row an id, as plain Python says it."""
    found: dict[int, Row] = {}
    for row in rows:
        known = found.setdefault(row["id"], row)
        latest = max(known, row, key=lambda one: (one["fetched_at"], one["raw_key"], one["record_index"]))
        found[row["id"]] = latest | {
            "first_fetched_at": min(known["first_fetched_at"], row["first_fetched_at"]),
            "matched_queries": sorted({*known["matched_queries"], *row["matched_queries"]}),
        }
    return [found[number] for number in sorted(found)]


def told(rows: pa.Table) -> list[Row]:
    rows.validate(full=True)
    names = ["id", "text", "raw_key", "record_index", "fetched_at", "first_fetched_at", "matched_queries"]
    return rows.select(names).to_pylist()


@many
@given(sightings(), st.randoms(use_true_random=False))
def test_tweets_merge_as_a_dictionary_does_whatever_their_order(rows: list[Row], chance: Any) -> None:
    expected = oracle(rows)
    chance.shuffle(rows)
    assert told(merged_tweets(table(rows))) == expected


@many
@given(sightings(), st.data())
def test_merging_in_parts_and_again_is_the_same(rows: list[Row], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows)))
    first, second = merged_tweets(table(rows[:at])), merged_tweets(table(rows[at:]))
    whole = merged_tweets(table(rows))
    assert told(merged_tweets(pa.concat_tables([first, second]))) == told(whole)
    assert told(merged_tweets(pa.concat_tables([second, first]))) == told(whole)
    assert told(merged_tweets(pa.concat_tables([table(rows), whole]))) == told(whole)
    assert merged_tweets(whole).equals(whole)


@many
@given(sightings(), st.randoms(use_true_random=False))
def test_side_rows_keep_the_latest_of_every_key_and_none_without(rows: list[Row], chance: Any) -> None:
    keep = ("id", "text", "raw_key", "record_index", "fetched_at")
    expected = [{name: row[name] for name in keep} for row in oracle(rows)]
    keyless = [row | {"id": None, "record_index": 1_000 + row["record_index"]} for row in rows[:3]]
    mixed = [*rows, *keyless]
    chance.shuffle(mixed)
    assert latest_rows(table(mixed), "id").select(keep).to_pylist() == expected


def test_of_the_same_page_decoded_twice_what_is_given_first_counts() -> None:
    page = {"id": 7, "raw_key": "raw/a", "record_index": 0, "fetched_at": START, "first_fetched_at": START}
    now, before = ({**page, "text": text, "matched_queries": ["lake"]} for text in ("mended", "as it was"))
    assert merged_tweets(table([now, before]))["text"].to_pylist() == ["mended"]


def test_text_keys_are_merged_too() -> None:
    schema = file_schema("media")
    rows = [
        {"media_key": key, "type": kind, "raw_key": "raw/a", "record_index": index, "fetched_at": START}
        for index, (key, kind) in enumerate([("3_2", "old"), ("3_1", "one"), ("3_2", "new"), (None, "none")])
    ]
    found = latest_rows(pa.Table.from_pylist(rows, schema=schema), "media_key")
    assert found.select(["media_key", "type"]).to_pylist() == [
        {"media_key": "3_1", "type": "one"},
        {"media_key": "3_2", "type": "new"},
    ]


# --- runs, curated files and ranges of keys ---


def spilled(folder: Path, groups: Sequence[Sequence[Row]]) -> Spill:
    spill = Spill(folder, bytes_waiting=0)
    for rows in groups:
        spill.add("tweets", table(rows))
    return spill


def stored(folder: Path, rows: pa.Table, rows_per_group: int, **options: Any) -> SortedRows:
    file = folder / "stored.parquet"
    pq.write_table(rows, file, row_group_size=rows_per_group, **options)
    return spilling.stored(file, "tweets")


@many
@given(st.lists(sightings(most=60), min_size=1, max_size=4), st.integers(1, 90), st.integers(1, 20))
def test_ranges_of_runs_and_a_stored_file_give_every_row_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[Row]], rows_per_range: int, rows_per_group: int
) -> None:
    folder = tmp_path_factory.mktemp("spill")
    *new, old = groups
    everything = [row for rows in new for row in rows]
    spill = spilled(folder, new)
    runs = spill.runs("tweets")
    file = stored(folder, merged_tweets(table(old)), rows_per_group)
    hours = {hour for rows in new if rows for hour in event_hours(table(rows)["id"])}
    assert hours == {Partition(at.date().isoformat(), at.hour) for at in (time_of(row["id"]) for row in everything)}
    for hour in hours:
        opened_runs, opened_file = Opened(runs), Opened([file])
        mine = [row for row in [*oracle(old), *everything] if in_hour(row["id"], hour)]
        parts = [
            merged_tweets(pa.concat_tables([together(opened_runs, keys, SCHEMA), together(opened_file, keys, SCHEMA)]))
            for keys in cut([*runs, file], ids_of(hour), rows_per_range)
        ]
        assert told(pa.concat_tables(parts)) == oracle(mine)


@many
@given(st.lists(sightings(most=30), min_size=1, max_size=12), st.integers(2, 4), st.booleans())
def test_many_runs_are_joined_into_few_that_hold_the_same(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[Row]], together_at_most: int, folds: bool
) -> None:
    fold = {"tweets": partial(latest_rows, key="id")} if folds else {}
    spill = Spill(tmp_path_factory.mktemp("spill"), fold, bytes_waiting=0)
    for rows in groups:
        spill.add("tweets", table(rows))
    runs = spill.runs("tweets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spilling, "MOST_TOGETHER", together_at_most)
        patch.setattr(spilling, "ROWS_PER_PIECE", 4)
        joined = spill.joined("tweets", runs)
    assert len(joined) == len(runs) if len(runs) <= together_at_most else len(joined) <= together_at_most
    for one in joined:
        everything = together(Opened([one]), KeyRange(), SCHEMA)
        assert everything["id"].to_pylist() == sorted(everything["id"].to_pylist())
        assert len(one.sample) >= everything.num_rows // 32
    parts = [together(opened, keys, SCHEMA) for opened in [Opened(joined)] for keys in cut(joined, rows=5)]
    rows = [row for group in groups for row in group]
    found = pa.concat_tables([SCHEMA.empty_table(), *parts])
    if folds:
        assert told(latest_rows(found, "id")) == told(latest_rows(table(rows), "id"))
    else:
        assert found.num_rows == len(rows)
        assert told(merged_tweets(found)) == oracle(rows)


def without_what_holds_nothing(rows: pa.Table) -> pa.Table:
    return rows.select([name for name in rows.schema.names if rows[name].null_count < rows.num_rows])


@settings(many, max_examples=30)
@given(st.lists(sightings(most=30), min_size=1, max_size=6), st.data(), st.booleans())
def test_a_file_is_the_same_whichever_columns_were_left_out_on_the_way(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[Row]], data: st.DataObject, at_once: bool
) -> None:
    tags = [{"start": 0, "end": 5, "tag": "lake"}]
    for row in (row for group in groups for row in group):
        more = st.sampled_from([{}, {}, {}, {"lang": "en"}, {"hashtags": tags}, {"hashtags": [], "lang": "de"}])
        row.update(data.draw(more))
    written = []
    for leave_out in (without_what_holds_nothing, lambda rows: rows):
        folder = tmp_path_factory.mktemp("spill")
        spill = Spill(folder, bytes_waiting=10_000_000 if at_once else 0)
        for rows in groups:
            spill.add("tweets", leave_out(table(rows)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(spilling, "MOST_TOGETHER", 2)
            patch.setattr(parquet, "ROWS_PER_GROUP", 8)
            runs = spill.joined("tweets", spill.runs("tweets"))
            opened = Opened(runs)
            parts = (merged_tweets(together(opened, keys, SCHEMA)) for keys in cut(runs, rows=5))
            written.append([file.path.read_bytes() for file in parquet.write_file("tweets", parts, folder)])
    assert written[0] == written[1]
    read = [row for content in written[0] for row in pq.read_table(pa.BufferReader(content)).to_pylist()]
    expected = [{each: row.get(each) for each in ("id", "text", "lang", "hashtags")} for row in oracle_of(groups)]
    assert [{each: row[each] for each in ("id", "text", "lang", "hashtags")} for row in read] == expected


def test_runs_that_are_joined_keep_the_columns_that_only_some_of_them_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilling, "MOST_TOGETHER", 2)
    spill = Spill(tmp_path, bytes_waiting=0)
    for number, more in enumerate([{}, {"lang": "en"}, {"source": "app"}]):
        row = {"id": number, "raw_key": "a", "record_index": 0, "fetched_at": START, **more}
        spill.add("tweets", without_what_holds_nothing(table([row])))
    joined = spill.joined("tweets", spill.runs("tweets"))
    assert len(joined) == 2
    found = together(Opened(joined), KeyRange(), SCHEMA).sort_by("id")
    assert found["lang"].to_pylist() == [None, "en", None]
    assert found["source"].to_pylist() == [None, None, "app"]


def oracle_of(groups: Sequence[Sequence[Row]]) -> list[Row]:
    return oracle([row for group in groups for row in group])


def test_joining_within_a_range_keeps_what_lies_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spilling, "MOST_TOGETHER", 2)
    made = [{"id": number, "raw_key": "a", "record_index": 0, "fetched_at": START} for number in range(50)]
    spill = spilled(tmp_path, [made[start::5] for start in range(5)])
    within = KeyRange(10, 20)
    joined = spill.joined("tweets", spill.runs("tweets"), within)
    assert len(joined) == 2
    assert together(Opened(joined), within, SCHEMA).sort_by("id")["id"].to_pylist() == list(range(10, 20))
    nothing = spill.joined("tweets", spill.runs("tweets"), KeyRange(60, 70))
    assert together(Opened(nothing), KeyRange(60, 70), SCHEMA).num_rows == 0


def in_hour(number: int, hour: Partition) -> bool:
    made = time_of(number)
    return (made.date().isoformat(), made.hour) == (hour.date, hour.hour)


@many
@given(st.lists(st.integers(0, MAX_ID), max_size=400), st.integers(1, 200))
@example([], 1)
@example([5] * 300, 1)
def test_ranges_leave_no_hole_and_hold_about_as_many_rows_as_asked(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], rows: int
) -> None:
    made = [{"id": number, "raw_key": "a", "record_index": 0, "fetched_at": START} for number in numbers]
    runs = spilled(tmp_path_factory.mktemp("spill"), [made]).runs("tweets")
    ranges = list(cut(runs, KeyRange(None, None), rows))
    if not numbers:
        assert (runs, ranges) == ([], [])
        return
    assert (ranges[0].least, ranges[-1].beyond) == (None, None)
    assert [one.beyond for one in ranges[:-1]] == [one.least for one in ranges[1:]]
    opened = Opened(runs)
    found = [together(opened, keys, SCHEMA)["id"].to_pylist() for keys in ranges]
    assert [number for part in found for number in part] == sorted(numbers)
    for part in found:
        assert len(set(part)) <= rows + 3 * 16


@pytest.mark.parametrize("counted_at_once", [50, 300, 100_000])
def test_shares_are_cut_behind_so_many_keys_however_they_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted_at_once: int
) -> None:
    monkeypatch.setattr(spilling, "_KEYS_COUNTED_AT_ONCE", counted_at_once)
    spill = Spill(tmp_path, bytes_waiting=1)
    numbers = np.random.default_rng(7).integers(0, 5_000, size=(9, 400))
    for some in numbers:
        spill.add("tweets", pa.Table.from_pylist([{"id": int(each)} for each in some], schema=SCHEMA))
    keys = np.unique(numbers).tolist()
    found = shares(spill.runs("tweets"), KeyRange(), 300)
    assert [share.beyond for share in found] == [*keys[300::300], None]
    assert [share.least for share in found] == [None, *keys[300::300]]


def test_a_file_that_another_engine_rewrote_is_put_in_order(tmp_path: Path) -> None:
    numbers = [first_id_at(START) + n for n in (5, 3, 9, 1, 7, 2)]
    rows = [{"id": number, "raw_key": "a", "record_index": 0, "fetched_at": START} for number in numbers]
    file = stored(tmp_path, table(rows), 3, write_statistics=False)
    (keys,) = cut([file], ids_of(Partition("2026-11-20", 12)))
    assert sorted(together(Opened([file]), keys, SCHEMA)["id"].to_pylist()) == sorted(numbers)
    assert together(Opened([file]), KeyRange(numbers[4], None), SCHEMA)["id"].to_pylist() == [numbers[2], numbers[4]]


def test_a_file_of_an_older_release_has_nulls_where_it_lacks_columns(tmp_path: Path) -> None:
    rows = [{"id": 4, "raw_key": "a", "record_index": 0, "fetched_at": START, "text": "x", "lang": "en"}]
    file = stored(tmp_path, table(rows).drop_columns(["lang", "extras"]), 10)
    (row,) = together(Opened([file]), KeyRange(None, None), SCHEMA).to_pylist()
    assert (row["text"], row["lang"], row["extras"]) == ("x", None, None)


def test_runs_are_as_long_as_asked_in_every_table_and_rejects_keep_their_order(tmp_path: Path) -> None:
    spill, kept = Spill(tmp_path), []
    for reason in ("one", "two", "three"):
        rows = pa.Table.from_pylist([{"raw_key": "a", "reason": reason}], schema=file_schema("rejects"))
        kept.append(spill.keep_unsorted("rejects", rows))
    assert [read_unsorted(path)["reason"].to_pylist() for path in kept] == [["one"], ["two"], ["three"]]
    spill.add("tweets", table([]))
    assert spill.runs("tweets") == []


def test_the_hour_of_the_greatest_id_has_no_end_and_that_of_the_epoch_begins_at_0() -> None:
    last = RawHour.of(time_of(MAX_ID))
    assert ids_of(Partition.of(last)).beyond is None
    assert ids_of(Partition("2010-11-04", 1)).least == 0
