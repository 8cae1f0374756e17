"""The curated schemas: every field told, every key of X's field lists placed, every usual engine able to read them."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compaction_dags.compaction.decode import RawPage, decode_pages, exact
from compaction_dags.compaction.rows import file_schema, whole
from schemas.curated import DECODED, KEYS, TABLES
from tests.compaction.pages import NOON, World, encode, raw_key, to_post_vocabulary

README = Path(__file__).parents[2] / "schemas" / "README.md"

FIELD_LISTS = {
    "tweets": (
        "article article_title attachments author_id card_uri community_id context_annotations conversation_id created_at "
        "display_text_range edit_controls edit_history_tweet_ids entities geo id in_reply_to_user_id lang "
        "matched_media_notes media_metadata non_public_metrics note_request_suggestions note_tweet organic_metrics "
        "paid_partnership possibly_sensitive promoted_metrics public_metrics referenced_tweets reply_settings scopes "
        "source suggested_source_links suggested_source_links_with_counts text username withheld"
    ),
    "users": (
        "affiliation confirmed_email connection_status created_at description entities id is_identity_verified location "
        "most_recent_tweet_id name parody pinned_tweet_id profile_banner_url profile_image_url protected public_metrics "
        "receives_your_dm subscribes_to_you subscription subscription_type url username verified "
        "verified_followers_count verified_type withheld"
    ),
    "media": (
        "alt_text duration_ms height media_key non_public_metrics organic_metrics preview_image_url promoted_metrics "
        "public_metrics type url variants width"
    ),
    "places": "contained_within country country_code full_name geo id name place_type",
    "polls": "duration_minutes end_datetime id options voting_status",
}
"""The top-level keys of X's OpenAPI descriptions 2.166 and 2.167, in the tweet vocabulary."""
PLACES = {"tweets": "data", "users": "users", "media": "media", "places": "places", "polls": "polls"}


def _fields(parent: Any) -> list[pa.Field]:
    found = []
    for field in parent:
        found.append(field)
        inner = field.type.value_type if pa.types.is_list(field.type) else field.type
        if pa.types.is_struct(inner):
            found += _fields(inner)
    return found


@pytest.mark.parametrize("table", TABLES)
def test_every_field_says_what_it_means_and_where_it_comes_from(table: str) -> None:
    schema = TABLES[table]
    assert schema.metadata[b"doc"]
    for field in _fields(schema):
        assert field.metadata[b"doc"].decode().rstrip().endswith((".", "...")), field.name
        assert field.metadata[b"source"] or table == "rejects", field.name
    assert len(set(schema.names)) == len(schema.names)
    assert schema.names[-2:] == ["date", "hour"]
    assert schema.field("date").type == pa.string()
    assert schema.field("hour").type == pa.int32()


@pytest.mark.parametrize("table", DECODED)
def test_every_decoded_table_says_which_page_a_row_is_from(table: str) -> None:
    schema = TABLES[table]
    assert KEYS[table] in schema.names
    for name, type_ in (("raw_key", pa.string()), ("record_index", pa.int32())):
        assert schema.field(name).type == type_
    assert schema.field("fetched_at").type == pa.timestamp("us", tz="UTC")


def test_referenced_tweets_are_tweets_without_what_only_matches_have() -> None:
    own = {"matched_queries", "first_fetched_at"}
    assert [name for name in TABLES["tweets"].names if name not in own] == TABLES["referenced_tweets"].names


@pytest.mark.parametrize("vocabulary", ["tweet", "post"])
@pytest.mark.parametrize("table", FIELD_LISTS)
def test_every_key_of_the_field_lists_is_known_in_both_vocabularies(table: str, vocabulary: str) -> None:
    sent: dict[str, Any] = dict.fromkeys(FIELD_LISTS[table].split()) | {KEYS[table]: "1"}
    answer: dict[str, Any] = (
        {"meta": {}, "data": [sent]} if table == "tweets" else {"meta": {}, "includes": {table: [sent]}}
    )
    if vocabulary == "post":
        answer = to_post_vocabulary(answer)
    found = exact.decode([RawPage(raw_key(), 0, "lake", 0, json.dumps(answer).encode())])
    assert not found.rejects
    assert not found.unknown_keys


def test_a_column_with_a_source_is_filled_from_it() -> None:
    """No column is always null by a slip: what a realistic page holds arrives, and the rest is named here."""
    tables = _tables()
    never = (
        "author_username source paid_partnership scopes_followers community_id card_uri display_text_range "
        "withheld_copyright withheld_country_codes withheld_scope cashtags urls_sent media_source_tweet_ids retweeted_id"
    )
    for name in file_schema("tweets").names:
        column = TABLES["tweets"].field(name)
        is_json = column.metadata.get(b"form") == b"json"
        if not is_json and name != "extras" and name not in never.split():
            assert tables["tweets"][name].null_count < tables["tweets"].num_rows, name


def _tables() -> dict[str, pa.Table]:
    world = World()
    pages = [RawPage(raw_key(), n, "lake", int(NOON.timestamp()) * 1_000_000, world.body()) for n in range(12)]
    return {name: whole(table, file_schema(name)) for name, table in decode_pages(pages).tables.items()}


def test_duckdb_polars_and_pandas_read_what_is_written(tmp_path: Path) -> None:
    for name, table in _tables().items():
        path = str(tmp_path / f"{name}.parquet")
        pq.write_table(table, path)
        assert pl.read_parquet(path).height == table.num_rows
        assert len(pd.read_parquet(path)) == table.num_rows
        found = duckdb.sql(f"select * from '{path}'")
        assert found.columns == table.schema.names
        assert found.to_arrow_table().num_rows == table.num_rows
    path = tmp_path / "tweets.parquet"
    expected = sorted(
        tag["tag"] for tags in pq.read_table(path, columns=["hashtags"])["hashtags"].to_pylist() for tag in tags or []
    )
    assert expected
    tags = duckdb.sql(f"select unnest(hashtags).tag from '{path}' order by all").fetchall()
    assert [tag for (tag,) in tags] == expected
    exploded = pl.read_parquet(path).explode("hashtags").unnest("hashtags")["tag"].drop_nulls().sort()
    assert exploded.to_list() == expected
    frame = pd.read_parquet(path, columns=["hashtags", "created_at"])
    assert sorted(tag["tag"] for tags in frame["hashtags"].dropna() for tag in tags) == expected
    assert str(frame["created_at"].dtype) == "datetime64[us, UTC]"


def test_the_readme_names_every_table_and_every_reason_to_reject() -> None:
    text = README.read_text("utf-8")
    for table in TABLES:
        assert f"`{table}`" in text
    sources = [*Path(exact.__file__).parent.glob("*.py"), Path(exact.__file__).parents[1] / "raw_reader.py"]
    code = "".join(path.read_text("utf-8") for path in sources)
    reasons = [
        "page_not_json", "page_not_object", "page_not_search", "page_too_deep", "keys_too_deep", "data_not_array",
        "includes_not_object", "includes_not_array", "not_object", "no_id", "id_wrong_type", "id_not_number",
        "id_negative", "id_out_of_range", "file_header", "file_sha256", "file_damaged", "file_records", "no_body",
        "no_time", "body_sha256",
    ]  # fmt: skip
    for reason in reasons:
        assert f'"{reason}"' in code
        assert f"`{reason}`" in text


def test_a_page_in_post_names_fills_the_same_columns() -> None:
    answer = World().page(5)
    for body in (encode(answer), encode(to_post_vocabulary(answer))):
        tables = decode_pages([RawPage(raw_key(), 0, "lake", 0, body)]).tables
        row = whole(tables["tweets"], file_schema("tweets")).to_pylist()[0]
        assert row["edit_history_tweet_ids"] == [row["id"]]
