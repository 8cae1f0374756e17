"""A commit is whole or not at all, takes nothing of others, and loses nothing to them."""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable
from deltalake.transaction import AddAction

from compaction_dags.compaction import parquet, tables
from compaction_dags.compaction.errors import (
    AccountingError,
    ConflictError,
    LakeRefusedError,
    LakeUnreachableError,
)
from compaction_dags.compaction.merge import merged_tweets
from compaction_dags.compaction.rows import file_schema
from compaction_dags.compaction.tables import Build, CuratedTable, DataFile, Partition
from sandbox.s3_faults import S3Fault, running_s3_proxy
from schemas.curated import TABLES
from schemas.snowflake import first_id_at
from tests.compaction.conftest import Place

NOW = datetime(2026, 11, 21, 6, tzinfo=UTC)
NOON = Partition("2026-11-20", 12)
SCHEMA = file_schema("tweets")


def tweets(numbers: Iterable[int], text: str = "x", at: datetime = NOW) -> pa.Table:
    rows = [
        {
            "id": number,
            "text": text,
            "raw_key": "raw/a",
            "record_index": 0,
            "fetched_at": at,
            "first_fetched_at": at,
            "matched_queries": ["lake"],
            "created_at": at,
        }
        for number in numbers
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def merging(table: CuratedTable, new: pa.Table, before: Callable[[], Any] = lambda: None) -> Build:
    """A build as compaction's: what is there and what is new. `before` happens between reading and committing."""

    def build(_partition: Partition, present: Sequence[DataFile]) -> list[pa.Table]:
        merged = merged_tweets(pa.concat_tables([new, table.read(present)]))
        before()
        return [merged]

    return build


def put(table: CuratedTable, work: Path, build: Build, *partitions: Partition, **more: Any) -> bool:
    return table.replace(partitions or [NOON], table.making(build, work), metadata={}, now=NOW, **more)


def add(place: Place, numbers: Iterable[int], *partitions: Partition, text: str = "x") -> bool:
    table = place.table("tweets")
    return put(table, place.directory, merging(table, tweets(numbers, text)), *partitions)


def ids(place: Place) -> list[int]:
    return sorted(place.tweets(["text"]))


# --- partitions ---


def test_around_midnight_no_bystander_is_taken(place: Place) -> None:
    corners = [Partition(date, hour) for date in ("2026-11-20", "2026-11-21") for hour in (0, 23)]
    for number, corner in enumerate(corners):
        add(place, [number], corner)
    before = place.snapshot("tweets")
    table = place.table("tweets")
    put(table, place.directory, merging(table, tweets([7])), corners[1], corners[2])
    after = place.snapshot("tweets")
    assert [after.of(corner) == before.of(corner) for corner in corners] == [True, False, False, True]
    assert sorted(place.delta("tweets").to_pyarrow_table(columns=["id"])["id"].to_pylist()) == [0, 1, 2, 3, 7, 7]
    assert after.version == before.version + 1


def test_a_partition_whose_rows_are_all_gone_has_no_file(place: Place) -> None:
    add(place, [1])
    assert put(place.table("tweets"), place.directory, lambda *_: [])
    assert place.snapshot("tweets").files == {}


# --- many writers ---


def test_the_second_writer_of_a_new_hour_merges_again_and_loses_nothing(place: Place) -> None:
    table, built = place.table("tweets"), []

    def somebody_is_faster() -> None:
        built.append(len(built))
        if len(built) == 1:
            add(place, [1, 2], text="first")

    put(table, place.directory, merging(table, tweets([2, 3], "second", NOW + timedelta(1)), somebody_is_faster))
    assert built == [0, 1]
    assert {number: row["text"] for number, row in place.tweets(["text"]).items()} == {
        1: "first",
        2: "second",
        3: "second",
    }
    assert place.snapshot("tweets").version == 2


def test_writers_of_other_hours_do_not_make_it_merge_again(place: Place) -> None:
    table, built = place.table("tweets"), []

    def somebody_writes_elsewhere() -> None:
        built.append(len(built))
        add(place, [9], Partition("2026-11-20", 13))

    put(table, place.directory, merging(table, tweets([1]), somebody_writes_elsewhere))
    assert built == [0]
    assert ids(place) == [1, 9]
    assert len(place.objects("curated/tweets/date=2026-11-20/hour=12/")) == 1


def write_one(settings: Any, number: int, together: Any, folder: str) -> None:
    """One of many writers, each with an id of its own."""
    table = CuratedTable(tables.Lake(settings.lake), "tweets")
    together.wait()
    work = Path(folder) / str(number)
    work.mkdir()
    put(table, work, merging(table, tweets([number])))


def test_eight_writers_at_once_in_threads(place: Place) -> None:
    together, settings = threading.Barrier(8), place.settings()
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(write_one, settings, number, together, str(place.directory)) for number in range(8)]
    for job in jobs:
        job.result()
    assert ids(place) == list(range(8))
    assert place.snapshot("tweets").version == 8, "one commit a writer, above that which made the table"


def test_eight_writers_at_once_in_processes(place: Place, forking: Any) -> None:
    together, settings = forking.Barrier(8), place.settings()
    writers = [
        forking.Process(target=write_one, args=(settings, number, together, str(place.directory)))
        for number in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 8
    assert ids(place) == list(range(8))
    assert place.snapshot("tweets").version == 8


def test_a_table_that_many_make_at_once_is_one_table(place: Place) -> None:
    together, lake = threading.Barrier(6), place.lake()

    def make(_: int) -> str:
        table = CuratedTable(lake, "users")
        together.wait()
        assert not table.replace([], lambda _: {}, metadata={}, now=NOW)
        return str(place.delta("users").metadata().id)

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(make, range(6)))) == 1
    assert place.delta("users").version() == 0


def test_a_writer_that_others_are_always_ahead_of_gives_up_by_the_clock(place: Place) -> None:
    seconds = iter(range(0, 10_000, 100))
    table = CuratedTable(place.lake(), "tweets", monotonic=lambda: next(seconds))
    count = iter(range(1, 100))

    def somebody_is_faster() -> None:
        add(place, [next(count)])

    with pytest.raises(ConflictError, match="tweets: other writers were ahead for 300 s; run the hour again"):
        put(table, place.directory, merging(table, tweets([1_000]), somebody_is_faster))
    assert ids(place) == [1, 2, 3, 4]


def test_what_was_made_from_more_microbatches_is_not_replaced_by_less(place: Place) -> None:
    table = place.table("tweets")
    rows = merging(table, tweets([1, 2]))
    put(table, place.directory, rows, sources=2)
    with pytest.raises(ConflictError, match="another run has used microbatches that came after this one began"):
        put(table, place.directory, lambda *_: [tweets([1])], sources=1)
    assert ids(place) == [1, 2]
    assert not put(table, place.directory, lambda *_: [tweets([1, 2])], sources=2)
    assert put(table, place.directory, lambda *_: [tweets([2])], sources=3)


# --- interrupted ---


@pytest.fixture(scope="module")
def forking() -> Any:
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["compaction_dags.compaction.job", "tests.compaction.test_committing"])
    return context


def write_and_die(settings: Any, after_commit: bool, folder: str) -> None:
    table = CuratedTable(tables.Lake(settings.lake), "tweets")
    commit = table._commit

    def last_words(*arguments: Any) -> None:
        if after_commit:
            commit(*arguments)
        os._exit(9)

    table._commit = last_words  # type: ignore[method-assign]
    put(table, Path(folder), merging(table, tweets([1, 2])))


@pytest.mark.parametrize("after_commit", [False, True])
def test_a_writer_killed_around_its_commit_leaves_a_whole_version_and_is_done_again(
    place: Place, forking: Any, after_commit: bool
) -> None:
    add(place, [0])
    killed = forking.Process(target=write_and_die, args=(place.settings(), after_commit, str(place.directory)))
    killed.start()
    killed.join(60)
    assert killed.exitcode == 9
    assert ids(place) == ([0, 1, 2] if after_commit else [0])
    assert add(place, [1, 2]) is not after_commit, "done again, it commits only what is not there"
    assert ids(place) == [0, 1, 2]
    assert place.snapshot("tweets").version == 2


@pytest.mark.parametrize("which", ["00000000000000000000", "00000000000000000002"], ids=["creation", "commit"])
def test_a_commit_whose_answer_is_lost_is_recognised(place: Place, which: str) -> None:
    with running_s3_proxy(place.s3) as proxy:
        if which.endswith("2"):
            add(place, [0])
        proxy.set_faults(S3Fault("lose_answer", "put", f"/tweets/_delta_log/{which}.json", next_n=1))
        place.endpoint_url = proxy.s3.endpoint_url
        table, built = place.table("tweets"), []
        put(table, place.directory, merging(table, tweets([1]), lambda: built.append(1)))
        assert proxy.struck == {("lose_answer", "put"): 1}
    place.endpoint_url = ""
    assert built == [1]
    assert 1 in ids(place)
    assert place.snapshot("tweets").version == (2 if which.endswith("2") else 1)
    assert len(place.objects("curated/tweets/date=")) == place.snapshot("tweets").version, "one file a commit"


def test_a_check_that_fails_stops_the_commit(place: Place) -> None:
    add(place, [1])

    def refuse(changes: Any) -> None:
        (change,) = changes.values()
        raise AccountingError(f"{change.rows_before} to {change.rows_after}")

    table = place.table("tweets")
    with pytest.raises(AccountingError, match="1 to 3"):
        put(table, place.directory, merging(table, tweets([2, 3])), check=refuse)
    assert place.snapshot("tweets").version == 1


# --- readers ---


def test_a_reader_during_rewrites_sees_whole_versions_only(place: Place) -> None:
    rows, rewrites = 200, 24  # past a checkpoint of the log
    add(place, range(rows), text="version 0")
    done = threading.Event()
    seen: list[set[tuple[int, str]]] = []

    def read() -> None:
        while not done.is_set() or not seen:
            found = place.delta("tweets").to_pyarrow_table(columns=["id", "text"])
            assert sorted(found["id"].to_pylist()) == list(range(rows))
            seen.append(set(found["text"].to_pylist()))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        table = place.table("tweets")
        for version in range(1, rewrites):
            put(table, place.directory, lambda *_, version=version: [tweets(range(rows), f"version {version}")])
        done.set()
        reader.result(60)
    assert all(len(texts) == 1 for texts in seen)
    assert len({next(iter(texts)) for texts in seen}) > 3
    assert any("checkpoint" in key for key in place.objects("curated/tweets/_delta_log/"))
    assert set(place.delta("tweets").to_pyarrow_table(columns=["text"])["text"].to_pylist()) == {"version 23"}


def test_engines_agree_on_what_the_table_holds(place: Place) -> None:
    number = first_id_at(datetime(2026, 11, 20, 12, tzinfo=UTC))
    add(place, range(number, number + 50))
    add(place, range(10), Partition("2026-11-20", 3))
    lake = place.delta("tweets")
    dataset = lake.to_pyarrow_dataset()
    expected = (60, number + 49)
    assert duckdb.sql("select count(*), max(id) from dataset where hour in (3, 12)").fetchall() == [expected]
    frame = pl.scan_delta(place.uri("tweets"), storage_options=place.lake().delta_options())
    assert frame.select(pl.len(), pl.col("id").max()).collect().row(0) == expected
    assert frame.filter(pl.col("hour") == 3).select("id").collect().height == 10
    assert (dataset.count_rows(), lake.to_pandas(columns=["id"])["id"].max()) == expected
    assert dataset.schema.field("hour").type == pa.int32()


def test_files_name_their_ranges_so_that_engines_can_skip_them(place: Place) -> None:
    table = place.table("tweets")
    at = datetime(2026, 11, 20, 12, 0, 0, 1_500, tzinfo=UTC)
    put(table, place.directory, lambda *_: [tweets([3, 5], at=at), tweets([8], at=at + timedelta(seconds=1))])
    (row,) = pa.table(place.delta("tweets").get_add_actions(flatten=True)).to_pylist()
    assert (row["num_records"], row["min.id"], row["max.id"], row["null_count.id"]) == (3, 3, 8, 0)
    assert row["min.created_at"].microsecond == 1_000
    assert row["max.created_at"].microsecond == 2_000, "rounded up: a reader may skip by it"


def test_what_a_column_means_is_in_the_log(place: Place) -> None:
    add(place, [1])
    lake = place.delta("tweets")
    fields = {field["name"]: field["metadata"] for field in json.loads(lake.schema().to_json())["fields"]}
    assert all(each["doc"] and each["source"] for each in fields.values())
    assert lake.metadata().description == TABLES["tweets"].metadata[b"doc"].decode()


# --- files ---


def test_the_same_rows_make_the_same_file_however_they_come(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 100)
    table = place.table("tweets")
    assert put(table, place.directory, lambda *_: [tweets(range(350))])
    stored = place.objects("curated/")
    for sizes in ([1, 349], [100, 250], [99, 2, 101, 148], [350, 0]):
        start, parts = 0, []
        for size in sizes:
            parts.append(tweets(range(start, start + size)))
            start += size
        assert not put(table, place.directory, lambda *_, parts=parts: parts)
    assert place.objects("curated/") == stored, "nor was anything stored for nothing"
    (file,) = place.snapshot("tweets").of(NOON)
    groups = pq.ParquetFile(table.fetch(file, place.directory)).metadata
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [100, 100, 100, 50]


def test_rejects_are_written_a_few_at_a_time_as_each_may_be_a_whole_page(place: Place) -> None:
    page = {"raw_key": "raw/x", "record_index": 0, "reason": "page_not_json", "body": b"<" * 300_000}
    rows = pa.Table.from_pylist([page] * 70, schema=place.table("rejects").file_schema)
    (file,) = parquet.write_file("rejects", [rows], place.directory)
    groups = pq.ParquetFile(file.path).metadata
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [64, 6]


def test_the_last_moment_there_is_has_a_range_too(place: Place) -> None:
    last = datetime.max.replace(tzinfo=UTC)
    (file,) = parquet.write_file("tweets", [tweets([1], at=last)], place.directory)
    assert json.loads(file.stats)["maxValues"]["created_at"] == "9999-12-31T23:59:59.999Z"


def test_vacuum_never_takes_a_file_in_use_even_when_old_rows_come_back(place: Place) -> None:
    table = place.table("tweets")
    for version in ("a", "b", "a"):
        put(table, place.directory, lambda *_, version=version: [tweets(range(5), version)])
    assert len(set(place.objects("curated/tweets/date="))) == 3, "a name is used once, for the same rows too"
    place.delta("tweets").vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
    assert len(place.objects("curated/tweets/date=")) == 1
    assert {row["text"] for row in place.tweets(["text"]).values()} == {"a"}


@pytest.mark.parametrize("name", ["plain.parquet", "ä b%20c+&=#?.parquet", "%C3%A4.parquet"])
def test_files_of_other_engines_are_read_and_replaced(place: Place, name: str) -> None:
    add(place, [1])
    path, local = f"{NOON.folder}/{name}", place.directory / "foreign"
    pq.write_table(tweets([2, 3]).drop_columns("extras"), local)
    place.lake().put_file(f"{place.keys.table('tweets')}/{path}", local)
    values = {"date": NOON.date, "hour": str(NOON.hour)}
    place.delta("tweets").create_write_transaction(
        [AddAction(path, local.stat().st_size, values, 0, True, "{}")],
        mode="append",
        schema=TABLES["tweets"],
        partition_by=["date", "hour"],
    )
    assert ids(place) == [1, 2, 3]
    assert add(place, [4])
    assert ids(place) == [1, 2, 3, 4]
    assert len(place.snapshot("tweets").of(NOON)) == 1


# --- tables of other releases ---


def made_by_another_release(place: Place, schema: pa.Schema, rows: pa.Table) -> None:
    table = DeltaTable.create(
        place.uri("tweets"), schema, partition_by=["date", "hour"], storage_options=place.lake().delta_options()
    )
    local = place.directory / "old.parquet"
    pq.write_table(rows, local)
    path = f"{NOON.folder}/old.parquet"
    place.lake().put_file(f"{place.keys.table('tweets')}/{path}", local)
    values = {"date": NOON.date, "hour": str(NOON.hour)}
    table.create_write_transaction(
        [AddAction(path, local.stat().st_size, values, 0, True, json.dumps({"numRecords": rows.num_rows}))],
        mode="append",
        schema=schema,
        partition_by=["date", "hour"],
        commit_properties=CommitProperties(max_commit_retries=0),
    )


def without(schema: pa.Schema, *names: str) -> pa.Schema:
    return pa.schema([each for each in schema if each.name not in names])


def with_fewer_hashtag_fields(schema: pa.Schema) -> pa.Schema:
    index = schema.get_field_index("hashtags")
    return schema.set(index, pa.field("hashtags", pa.list_(pa.struct([("tag", pa.string())]))))


def test_a_table_of_an_older_release_gets_the_new_columns_and_keeps_its_rows(place: Place) -> None:
    older = with_fewer_hashtag_fields(without(TABLES["tweets"], "extras", "card_uri"))
    old_file = with_fewer_hashtag_fields(without(SCHEMA, "extras", "card_uri"))
    rows = tweets([1, 2]).drop_columns(["extras", "card_uri", "hashtags"]).to_pylist()
    old_rows = pa.Table.from_pylist([row | {"hashtags": [{"tag": "lake"}]} for row in rows], schema=old_file)
    made_by_another_release(place, older, old_rows)
    together = threading.Barrier(3)

    def widen(number: int) -> bool:
        together.wait()
        return add(place, [number])

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(widen, [3, 4, 5]))
    assert ids(place) == [1, 2, 3, 4, 5]
    names = [each["name"] for each in json.loads(place.delta("tweets").schema().to_json())["fields"]]
    assert sorted(names) == sorted(TABLES["tweets"].names)
    row = place.tweets(["hashtags", "extras"])[1]
    assert row["hashtags"] == [{"start": None, "end": None, "tag": "lake"}]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (
            TABLES["tweets"].append(pa.field("mood", pa.string())),
            "does not know and would lose: mood; update Tweetlake",
        ),
        (
            TABLES["tweets"].set(TABLES["tweets"].get_field_index("lang"), pa.field("lang", pa.int64())),
            r"other types than this release: lang \(int64, not string\)",
        ),
    ],
    ids=["unknown column", "other type"],
)
def test_a_table_that_this_release_would_harm_is_refused(place: Place, schema: pa.Schema, words: str) -> None:
    DeltaTable.create(
        place.uri("tweets"), schema, partition_by=["date", "hour"], storage_options=place.lake().delta_options()
    )
    with pytest.raises(LakeRefusedError, match=words):
        add(place, [1])
    assert place.snapshot("tweets").version == 0


# --- a lake in trouble ---


def test_wrong_credentials_are_for_a_person_and_silence_is_for_later(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(place, [1])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for trouble in (place.table("tweets").open, lambda: place.lake().read(f"{place.prefix}anything")):
        with pytest.raises(LakeRefusedError, match="SignatureDoesNotMatch; the secret key is wrong"):
            trouble()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", place.s3.secret_key)
    place.endpoint_url = "http://127.0.0.1:9"
    monkeypatch.setattr(tables.Lake, "delta_options", impatient(tables.Lake.delta_options))
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(LakeUnreachableError, match="does not answer"):
        place.table("tweets").open()


def impatient(options: Callable[[Any], dict[str, str]]) -> Callable[[Any], dict[str, str]]:
    return lambda lake: options(lake) | {"max_retries": "0"}
