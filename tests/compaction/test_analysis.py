"""docs/analysis.md: every block of Python runs, in order, on a lake; what it says of plain Parquet and of Athena is so."""

import re
from datetime import timedelta

import matplotlib as mpl
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from deltalake import DeltaTable

from schemas.curated import TABLES
from schemas.snowflake import first_id_at
from tests.compaction.conftest import Place
from tests.compaction.pages import NOON, World, encode, page_record
from tests.house.checkout import ROOT

TEXT = (ROOT / "docs" / "analysis.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
FIRST = first_id_at(NOON - timedelta(minutes=30))


def posts(likes):
    """A page of forty posts of five authors, with their users."""
    tags = ["coffee", "python", "lake"]
    data = [
        {
            "id": str(FIRST + (number << 22) * 20_000), "text": f"post {number}", "author_id": str(number % 5 + 1),
            "lang": ["en", "de"][number % 2], "public_metrics": {"like_count": likes + number},
            "entities": {"hashtags": [{"start": 0, "end": 1, "tag": tags[number % 3]}]},
        }
        for number in range(40)
    ]  # fmt: skip
    users = [
        {"id": str(number), "username": f"user{number}", "name": "n", "public_metrics": {"followers_count": 10**number}}
        for number in range(1, 6)
    ]
    return encode({"data": data, "includes": {"users": users}, "meta": {}})


@pytest.fixture
def lake(place, tmp_path, monkeypatch):
    """A lake whose hour was brought up to date once."""
    place.ship([page_record(posts(likes=1), NOON)], NOON)
    place.compact(NOON)
    place.ship([page_record(posts(likes=9), NOON + timedelta(minutes=5), "python")], NOON)
    place.compact(NOON)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWEETLAKE_LAKE", place.uri("tweets").removesuffix("/tweets"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", place.s3.endpoint_url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    mpl.use("agg")
    return place


def test_every_block_runs_in_its_order_and_draws_its_picture(lake, tmp_path):
    known = {}
    for block in BLOCKS:
        exec(compile(block, "docs/analysis.md", "exec"), known)
    assert len(known["frame"]) == 40
    assert known["frame"]["like_count"].min() == 9
    assert set(known["top"]["hashtag"]) == {"coffee", "python", "lake"}
    assert known["top"]["posts"].sum() == 20
    assert known["languages"]["posts"].to_list() == [20, 20]
    assert len(known["authors"]) == 5
    assert set(known["counts"]["query"]) == {"lake", "python"}
    assert {path.name for path in tmp_path.glob("*.png")} == set(re.findall(r"\(plots/(\w+\.png)\)", TEXT))


def test_the_pictures_of_the_page_are_in_the_checkout():
    for name in re.findall(r"\((plots/\w+\.png)\)", TEXT):
        assert (ROOT / "docs" / name).read_bytes().startswith(b"\x89PNG"), name


def test_the_folder_read_as_plain_parquet_counts_posts_twice(lake, tmp_path):
    keys = [key for key in lake.objects("curated/tweets/") if key.endswith(".parquet")]
    for number, key in enumerate(keys):
        lake.lake().get_file(key, tmp_path / f"{number}.parquet")
    plain = pads.dataset([tmp_path / f"{number}.parquet" for number in range(len(keys))]).count_rows()
    assert plain > lake.delta("tweets").to_pyarrow_table(columns=["id"]).num_rows == 40


def test_athena_is_told_of_every_table_and_can_read_each(lake):
    sql = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
    assert "LOCATION 's3://my-lake/curated/tweets/'" in sql[0]
    section = TEXT[TEXT.index("## Athena") : TEXT.index("## What to know")]
    for name in TABLES:
        assert f"`{name}`" in section or f".{name}\n" in section, name
    for name in TABLES:
        table = DeltaTable(lake.uri(name), storage_options=lake.lake().delta_options())
        assert table.protocol().min_reader_version == 1, name
        for field in table.schema().fields:
            assert not re.search("variant|void|timestamp_ntz", str(field.type)), (name, field)


def test_a_filter_on_any_column_finds_every_row_it_should(place: Place) -> None:
    place.ship([page_record(World(apart_ms=60_000).body(), NOON), page_record(b"no JSON", NOON)], NOON)
    place.compact(NOON)
    looked_at = 0
    for name in TABLES:
        dataset = place.delta(name).to_pyarrow_dataset()
        rows = dataset.to_table().to_pylist()
        for column in dataset.schema:
            value = next((row[column.name] for row in rows if row[column.name] is not None), None)
            if pa.types.is_nested(column.type) or value is None:
                continue
            found = dataset.to_table(filter=pads.field(column.name) == value).num_rows
            assert found == sum(row[column.name] == value for row in rows), (name, column.name, value)
            looked_at += 1
    assert looked_at > 60
