"""Decoding yields what the reference says, whichever way a page takes; nothing a page holds stops it or is lost."""

import html
import json
import os
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compaction_dags.compaction.decode import (
    Asked,
    Decoded,
    Parser,
    RawPage,
    decode_pages,
    exact,
    fast,
    page_batches,
    parse_arro3,
    parse_pyarrow,
    sample,
)
from compaction_dags.compaction.decode.asked import EVERYTHING
from compaction_dags.compaction.rows import file_schema, whole
from schemas.curated import DECODED, TABLES
from schemas.snowflake import time_of
from tests.compaction import answers
from tests.compaction.pages import NOON, World, encode, raw_key, to_post_vocabulary
from tests.compaction.reference import rows_of

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
AT = int(NOON.timestamp()) * 1_000_000
some_examples = settings(
    max_examples=int(os.environ.get("TWEETLAKE_TEST_EXAMPLES", "80")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def page(body: bytes, index: int = 0, sequence: int = 1, query: str = "lake") -> RawPage:
    return RawPage(raw_key(sequence), index, query, AT + index, body)


def pages_of(bodies: list[bytes]) -> list[RawPage]:
    return [page(body, index) for index, body in enumerate(bodies)]


def rows(tables: dict[str, pa.Table]) -> dict[str, list[str]]:
    """Rows as text, sorted: the order of rows is not promised."""
    for table in tables.values():
        table.validate(full=True)
    return {name: sorted(map(told, whole(table, file_schema(name)).to_pylist())) for name, table in tables.items()}


def whole_rows(decoded: Decoded, table: str = "tweets") -> list[dict[str, Any]]:
    """Rows with all columns, those too that were left out."""
    found: list[dict[str, Any]] = whole(decoded.tables[table], file_schema(table)).to_pylist()
    return found


def told(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, default=lambda moment: moment.isoformat())


def expected(pages: list[RawPage]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in DECODED}
    for one in pages:
        for name, made in rows_of(one, json.loads(one.body)).items():
            found[name] += (told({column: row[column] for column in file_schema(name).names}) for row in made)
    return {name: sorted(made) for name, made in found.items()}


def said(decoded: Decoded) -> Any:
    rejects = sorted(
        (one.record_index or 0, one.reason, one.tweet_id or "", one.body or b"") for one in decoded.rejects
    )
    return rows(decoded.tables), rejects


def one_tweet(**fields: Any) -> bytes:
    return json.dumps({"data": [{"id": "1700000000000000000", "text": "x"} | fields], "meta": {}}).encode()


def only_row(body: bytes, table: str = "tweets") -> dict[str, Any]:
    return only_row_of(decode_pages([page(body)]), table)


def only_row_of(decoded: Decoded, table: str = "tweets") -> dict[str, Any]:
    (row,) = whole_rows(decoded, table)
    return row


# --- well-formed answers ---


@some_examples
@given(st.lists(answers.bodies, min_size=1, max_size=4))
def test_every_way_yields_what_the_reference_yields(bodies: list[bytes]) -> None:
    pages = pages_of(bodies)
    wanted = expected(pages)
    assert rows(fast.decode(pages, parse_pyarrow)) == wanted
    safe = [one for one in pages if fast.safe_for_arro3(one.body)]
    assert rows(fast.decode(safe, parse_arro3)) == expected(safe)
    assert rows(exact.decode(pages).tables()) == wanted
    assert not any(sample.has_unknown_keys(body) for body in bodies)
    decoded = decode_pages(pages)
    assert rows(decoded.tables) == wanted
    assert not decoded.rejects


@some_examples
@given(st.lists(answers.bodies, min_size=2, max_size=6))
def test_what_pages_before_held_changes_nothing(bodies: list[bytes]) -> None:
    for parse, wants_safe in ((parse_arro3, True), (parse_pyarrow, False)):
        asked = Asked()
        for one in pages_of(bodies):
            if not wants_safe or fast.safe_for_arro3(one.body):
                assert rows(fast.decode([one], parse, asked)) == expected([one])


@pytest.mark.parametrize("parse", [parse_arro3, parse_pyarrow])
def test_what_no_page_held_is_asked_for_once_one_does(parse: Parser) -> None:
    world = World()
    plain, asked = one_tweet(lang="en"), Asked()
    fast.decode([page(plain)], parse, asked)
    narrow = asked.narrow
    assert len(str(narrow)) < len(str(EVERYTHING)) / 5
    fast.decode([page(plain)], parse, asked)
    assert asked.narrow is narrow
    for body in (one_tweet(withheld={}), one_tweet(geo={"place_id": "1"}), world.body(), world.body(vocabulary="post")):
        wanted = expected([page(body)])
        assert rows(fast.decode([page(body)], parse, asked)) == wanted
        assert rows(fast.decode([page(plain)], parse, asked)) == expected([page(plain)])
        assert asked.narrow is not narrow
        narrow = asked.narrow
        assert rows(fast.decode([page(body)], parse, asked)) == wanted
        assert asked.narrow is narrow


@pytest.mark.parametrize("vocabulary", ["tweet", "post"])
def test_realistic_pages_take_the_fast_way(vocabulary: str) -> None:
    world = World()
    pages = pages_of([world.body(vocabulary=vocabulary) for _ in range(6)])
    wanted = expected(pages)
    assert len(wanted["tweets"]) == 600
    assert all(wanted.values())
    assert rows(fast.decode(pages, parse_arro3)) == wanted
    assert rows(fast.decode(pages, parse_pyarrow)) == wanted
    assert not any(sample.has_unknown_keys(one.body) for one in pages)


def test_every_table_has_columns_of_its_schema_and_all_that_hold_anything() -> None:
    both = pages_of([World().body(3), b'{"meta":{"result_count":0}}', b"[]", one_tweet(new=1)])
    for pages in (both, both[:1], both[1:2], both[3:], []):
        for name, table in decode_pages(pages).tables.items():
            schema = file_schema(name)
            assert {each.name: each.type for each in table.schema}.items() <= {
                each.name: each.type for each in schema
            }.items()
            assert whole(table, schema).schema.equals(schema, check_metadata=True)


def test_a_column_that_holds_nothing_is_left_out_until_it_holds_something() -> None:
    without, held = one_tweet(lang=None), one_tweet(lang="en")
    for parse in (parse_arro3, parse_pyarrow):
        assert "lang" not in decode_pages([page(without)], parse).tables["tweets"].schema.names
        both = decode_pages([page(without), page(held, 1)], parse).tables["tweets"]
        assert set(both["lang"].to_pylist()) == {"en", None}


# --- answers with something wrong in them ---


@some_examples
@given(st.lists(answers.spoiled(), min_size=1, max_size=3), st.booleans())
def test_what_the_fast_way_takes_it_reads_as_the_exact_way(spoiled: list[Any], ascii_only: bool) -> None:
    pages = pages_of([json.dumps(answer, ensure_ascii=True).encode() for answer in spoiled])
    for one in pages:
        truth = exact.decode([one])
        for parse in (parse_arro3, parse_pyarrow) if fast.safe_for_arro3(one.body) else (parse_pyarrow,):
            try:
                taken = rows(fast.decode([one], parse))
            except fast.Unfit:
                continue
            assert not truth.rejects
            assert not truth.misfits
            wanted = {name: [dict(row) for row in made] for name, made in truth.rows.items()}
            for made in wanted.values():
                for row in made:
                    row["extras"] = None  # the fast way does not see keys without a column
            tables = {name: pa.Table.from_pylist(made, schema=TABLES[name]) for name, made in wanted.items()}
            assert taken == rows(tables)
            assert sample.has_unknown_keys(one.body) or not truth.unknown_columns


@some_examples
@given(st.lists(answers.spoiled() | answers.answers, min_size=1, max_size=5))
def test_both_parsers_and_the_exact_way_agree_and_no_object_is_lost(found: list[Any]) -> None:
    pages = [page(json.dumps(answer).encode(), index, sequence=index + 1) for index, answer in enumerate(found)]
    truth = exact.decode(pages)
    wanted = said(Decoded(truth.tables(), truth.rejects))
    asked = Asked()
    decode_pages(pages[:1], parse_arro3, asked)
    assert said(decode_pages(pages, parse_arro3, asked)) == wanted
    assert said(decode_pages(pages, parse_pyarrow)) == wanted
    objects = sum(
        len(answer["data"]) for answer in found if isinstance(answer, dict) and isinstance(answer.get("data"), list)
    )
    refused = sum(one.detail.startswith("data[") for one in truth.rejects)
    assert len(truth.rows["tweets"]) + refused == objects


@some_examples
@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"", b"null", b"{}", b"[]", b"1", b'"x"']), max_size=6))
def test_bytes_that_are_no_answer_are_rejected_and_the_rest_goes_on(bodies: list[bytes]) -> None:
    good = World().body(2)
    pages = pages_of([*bodies, good])
    for parse in (parse_arro3, parse_pyarrow):
        decoded = decode_pages(pages, parse)
        assert decoded.tables["tweets"].num_rows == 2
        assert sorted(one.record_index for one in decoded.rejects) == list(range(len(bodies)))  # type: ignore[type-var]
        assert {one.body for one in decoded.rejects} == set(bodies)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "page_not_json"),
        (b"<html><body>Over capacity</body></html>", "page_not_json"),
        (b'{"data":[{"id":"1","text":"x"}],"meta":{}', "page_not_json"),
        (b'{"meta":{}}{"meta":{}}', "page_not_json"),
        (b'{"meta":{}},{"meta":{}}', "page_not_json"),
        (b'{"meta":{}}}\n{"i":1,"p":{"meta":{}}', "page_not_json"),
        (b"null", "page_not_object"),
        (b"[]", "page_not_object"),
        (b'"data"', "page_not_object"),
        (b'{"title":"Service Unavailable","status":503}', "page_not_search"),
        (b'{"\\ud800":1}', "page_not_search"),
        (b'{"\xff":1}', "page_not_search"),
        (b'{"data":{"id":"1"},"meta":{}}', "data_not_array"),
        (b'{"data":"none","meta":{}}', "data_not_array"),
        (b'{"meta":{},"includes":[]}', "includes_not_object"),
        (b'{"meta":{},"includes":{"users":{}}}', "includes_not_array"),
        (b'{"data":[null],"meta":{}}', "not_object"),
        (b'{"data":[["id","1"]],"meta":{}}', "not_object"),
        (b'{"data":[{"text":"x"}],"meta":{}}', "no_id"),
        (b'{"data":[{"id":null}],"meta":{}}', "no_id"),
        (b'{"data":[{"id":""}],"meta":{}}', "no_id"),
        (b'{"data":[{"id":"9223372036854775808"}],"meta":{}}', "id_out_of_range"),
        (b'{"data":[{"id":99999999999999999999999}],"meta":{}}', "id_out_of_range"),
        (b'{"data":[{"id":"-1"}],"meta":{}}', "id_negative"),
        (b'{"data":[{"id":"12a"}],"meta":{}}', "id_not_number"),
        (b'{"data":[{"id":" 12"}],"meta":{}}', "id_not_number"),
        (b'{"data":[{"id":"0x1F"}],"meta":{}}', "id_not_number"),
        ('{"data":[{"id":"\uff11\uff12"}],"meta":{}}'.encode(), "id_not_number"),
        (b'{"data":[{"id":1.5e18}],"meta":{}}', "id_wrong_type"),
        (b'{"data":[{"id":true}],"meta":{}}', "id_wrong_type"),
        (b'{"data":[{"id":{"value":"1"}}],"meta":{}}', "id_wrong_type"),
        (b'{"meta":{},"includes":{"media":[{"type":"photo"}]}}', "no_id"),
        (b'{"meta":{},"includes":{"places":[{"id":5}]}}', "id_wrong_type"),
    ],
)
@pytest.mark.parametrize("parse", [parse_arro3, parse_pyarrow])
def test_what_cannot_be_used_is_rejected_with_its_reason(body: bytes, reason: str, parse: fast.Parser) -> None:
    good = World().body(3)
    decoded = decode_pages([page(good, 0), page(body, 1), page(good, 2)], parse)
    (reject,) = decoded.rejects
    assert (reject.reason, reject.record_index, reject.raw_key) == (reason, 1, raw_key())
    assert reject.detail.encode()
    assert reject.body is not None
    assert reject.received_at_us == AT + 1
    assert decoded.tables["tweets"].num_rows == 6


def test_one_bad_tweet_costs_no_other() -> None:
    answer = World().page(10)
    answer["data"][4]["id"] = "99999999999999999999"
    decoded = decode_pages([page(encode(answer))])
    (reject,) = decoded.rejects
    assert decoded.tables["tweets"].num_rows == 9
    assert reject.tweet_id == "99999999999999999999"
    assert json.loads(reject.body or b"") == answer["data"][4]


# --- ids, numbers, times, text ---


@pytest.mark.parametrize(
    ("sent", "held"),
    [
        ("0", 0),
        ("007", 7),
        ("0000000000000000000000000000000000000000000012", 12),
        ("1700000000000000001", 1700000000000000001),
        ("9007199254740993", 9007199254740993),
        ("9223372036854775807", 9223372036854775807),
        (1700000000000000001, 1700000000000000001),
    ],
)
@pytest.mark.parametrize("parse", [parse_arro3, parse_pyarrow])
def test_ids_are_held_exactly(sent: Any, held: int, parse: fast.Parser) -> None:
    body = one_tweet(id=sent, author_id=sent, edit_history_tweet_ids=[sent])
    (row,) = whole_rows(decode_pages([page(body)], parse))
    assert (row["id"], row["author_id"], row["edit_history_tweet_ids"]) == (held, held, [held])


@pytest.mark.parametrize(
    ("sent", "held"),
    [
        (2**53 + 1, 2**53 + 1),
        (2**63 - 1, 2**63 - 1),
        (3.0, 3),
        ("12", 12),
        (0, 0),
        (-1, -1),
        (2**63, None),
        (1.5, None),
    ],
)
def test_counts_are_held_exactly_or_kept_as_they_are(sent: Any, held: int | None) -> None:
    row = only_row(one_tweet(public_metrics={"like_count": sent}))
    assert row["like_count"] == held
    if held is None:
        assert json.loads(row["extras"]) == {"public_metrics": {"like_count": sent}}
    else:
        assert row["extras"] is None


def test_a_value_that_does_not_fit_is_kept_and_counted() -> None:
    decoded = decode_pages([page(one_tweet(author_id="9223372036854775808", lang=["en"], created_at="yesterday"))])
    (row,) = whole_rows(decoded)
    assert json.loads(row["extras"]) == {
        "author_id": "9223372036854775808",
        "lang": ["en"],
        "created_at": "yesterday",
    }
    assert (row["author_id"], row["lang"]) == (None, None)
    assert row["created_at"] == time_of(1700000000000000000)
    assert decoded.misfits == Counter({"tweets.author_id": 1, "tweets.lang": 1, "tweets.created_at": 1})
    assert not decoded.unknown_keys
    assert not decoded.rejects


def test_creation_comes_from_the_id_where_x_left_it_out() -> None:
    row = only_row(one_tweet(created_at=None))
    assert row["created_at"] == time_of(1700000000000000000)
    said_otherwise = only_row(one_tweet(created_at="2001-01-01T00:00:00.000Z"))
    assert said_otherwise["created_at"].year == 2001


def test_text_is_whole_and_without_entities_and_the_sent_text_stays() -> None:
    row = only_row(one_tweet(text="cut &amp; …", note_tweet={"text": "cut &amp; more &amp;lt; &#9731;"}))
    assert row["text"] == "cut & more &lt; ☃"
    assert row["text_sent"] == "cut &amp; …"


@some_examples
@given(
    st.lists(
        st.lists(st.sampled_from(["&", "&amp;", "&lt;", "&gt;", "amp;", "lt;", "#39;", "&copy", "A", " "])).map(
            "".join
        ),
        min_size=1,
        max_size=5,
    )
)
def test_entities_are_decoded_once_whichever_they_are(texts: list[str]) -> None:
    pages = pages_of([one_tweet(id=str(number + 1), text=text) for number, text in enumerate(texts)])
    found = fast.decode(pages, parse_arro3)["tweets"].sort_by("id")
    assert found["text"].to_pylist() == [html.unescape(text) for text in texts]
    assert found["text_sent"].to_pylist() == texts


def test_a_long_post_has_the_entities_of_its_full_text() -> None:
    short = [{"start": 0, "end": 3, "url": "u1", "title": "known"}]
    full = [{"start": 0, "end": 3, "url": "u1"}, {"start": 9, "end": 12, "url": "u2"}]
    row = only_row(one_tweet(entities={"urls": short}, note_tweet={"text": "long", "entities": {"urls": full}}))
    assert [url["url"] for url in row["urls"]] == ["u1", "u2"]
    assert [url["title"] for url in row["urls_sent"]] == ["known"]
    assert only_row(one_tweet(entities={"urls": short}))["urls_sent"] is None


def test_lone_surrogates_and_bytes_that_are_no_utf8_become_the_replacement_character() -> None:
    escaped = b'{"data":[{"id":"1","text":"a\\ud800b"},{"id":"2","text":"\\udc00"},{"id":"3","text":"\\ud83d\\ude00"}],"meta":{}}'
    raw = b'{"data":[{"id":"4","text":"a\xff\xfeb"}],"meta":{}}'
    decoded = decode_pages(pages_of([escaped, raw]))
    assert {row["id"]: row["text"] for row in whole_rows(decoded)} == {
        1: "a\ufffdb",
        2: "\ufffd",
        3: "😀",
        4: "a\ufffd\ufffdb",
    }
    assert not decoded.rejects


def test_what_arro3_would_die_of_or_misread_is_not_given_to_it() -> None:
    deep = b"[" * 200_000 + b"]" * 200_000
    bad = [
        b'{"data":[{"id":"1","text":["\\u0000"]}],"meta":{}}',
        b'{"data":[{"id":"1","text":["\0"]}],"meta":{}}',
        b'{"data":[{"id":"1","text":' + deep + b'}],"meta":{}}',
        b'{"data":[{"id":"1","text":"\\ud840\\udc00"}],"meta":{}}',
        b'{"data":[{"id":"1","text":"\\uDBFF\\uDFFF"}],"meta":{}}',
    ]
    assert not any(map(fast.safe_for_arro3, bad))
    good = [World().body(), '{"data":[{"id":"1","text":"\\ud83d\\ude00 \U00020000"}],"meta":{}}'.encode()]
    good.append(b'{"data":[' + b",".join(b'{"id":"%d","withheld":{}}' % n for n in range(9_000)) + b'],"meta":{}}')
    assert all(map(fast.safe_for_arro3, good))


def test_characters_beyond_the_basic_plane_are_read_right_however_they_are_written() -> None:
    text = "😀\U00020000\U0002f800\U000e0067\U0010ffff"
    for body in (one_tweet(text=text), encode(json.loads(one_tweet(text=text)))):
        assert only_row(body)["text"] == text


def test_numbers_that_are_none_stop_nothing() -> None:
    body = (
        b'{"data":[{"id":"1","public_metrics":{"like_count":NaN,"reply_count":1e999,"quote_count":'
        + b"9" * 5_000
        + b'},"geo":{"coordinates":{"coordinates":[-Infinity,1]}}}],"meta":{}}'
    )
    row = only_row(body)
    assert (row["like_count"], row["reply_count"], row["quote_count"]) == (None, None, None)
    left = json.loads(row["extras"])
    assert left["public_metrics"] == {"like_count": "NaN", "reply_count": "1e999", "quote_count": "9" * 5_000}
    assert left["geo"] == {"coordinates": {"coordinates": ["-Infinity", 1]}}


def test_the_last_of_two_equal_keys_counts_whoever_reads() -> None:
    body = b'{"data":[{"id":"1","text":"a","id":"2","text":"b"}],"meta":{},"meta":{"result_count":1}}'
    for parse in (parse_arro3, parse_pyarrow):
        (row,) = whole_rows(decode_pages([page(body)], parse))
        assert (row["id"], row["text"]) == (2, "b")


@pytest.mark.parametrize("depth", [2_000, 200_000])
def test_deep_nesting_stops_nothing(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    beside = b'{"data":[{"id":"1","new":' + deep + b'}],"meta":{}}'
    inside = b'{"data":[{"id":"2","text":' + deep + b'}],"meta":{}}'
    decoded = decode_pages(pages_of([beside, inside, one_tweet(id="3")]))
    kept = {row["id"] for row in whole_rows(decoded)}
    assert kept == {1, 3}
    assert {one.record_index: one.reason for one in decoded.rejects} == {0: "keys_too_deep", 1: "page_too_deep"}


def test_nesting_that_is_just_too_deep_stops_nothing() -> None:
    """Reading it just fits Python's limit of recursion, and writing it down again goes a little deeper."""
    depths = range(900, 1001)
    bodies = [
        one_tweet(id=str(depth)).replace(b'"x"', b'"x","article":' + b"[" * depth + b"]" * depth) for depth in depths
    ]
    decoded = decode_pages(pages_of([*bodies, one_tweet(id="1")]))
    refused = {depths[one.record_index or 0] for one in decoded.rejects}
    assert {row["id"] for row in whole_rows(decoded)} == {1, *depths} - refused
    assert {one.reason for one in decoded.rejects} == {"page_too_deep"}
    assert refused == set(range(min(refused), 1001)), "from some depth on"


class PanicException(BaseException):
    """Named as a panic of Rust is."""


class OutOfTimeError(BaseException):
    """What Airflow raises in a task that takes too long is no Exception either, so that nobody takes it for one."""


@pytest.mark.parametrize("raised", [PanicException, RuntimeError])
def test_whatever_a_parser_dies_of_the_page_is_read_exactly(raised: type[BaseException]) -> None:
    def dies(*_: Any) -> Any:
        raise raised("the parser")

    assert only_row_of(decode_pages([page(one_tweet())], dies))["text"] == "x"


def test_what_is_not_the_parser_s_passes_through_it() -> None:
    def interrupted(*_: Any) -> Any:
        raise OutOfTimeError

    with pytest.raises(OutOfTimeError):
        decode_pages([page(one_tweet())], interrupted)


def test_empty_pages_have_no_rows_and_are_no_rejects() -> None:
    bodies = [b'{"meta":{"result_count":0}}', b'{"meta":{"result_count":0,"next_token":"x"}}', b'{"data":[],"meta":{}}']
    bodies += [b'{"data":null,"includes":null,"errors":null,"meta":{}}', b' \n\t{"meta"\n:\r\n{ } } \n']
    decoded = decode_pages(pages_of(bodies))
    assert [table.num_rows for table in decoded.tables.values()] == [0] * len(DECODED)
    assert not decoded.rejects


def test_newlines_between_and_in_values_do_not_part_a_page() -> None:
    body = json.dumps(World().page(3), indent=2).encode()
    torn = one_tweet(id="5").replace(b'"x"', b'"a\nb"')
    for parse in (parse_arro3, parse_pyarrow):
        decoded = decode_pages(pages_of([body, torn, body]), parse)
        assert decoded.tables["tweets"].num_rows == 7
        assert not decoded.rejects


# --- keys without a column ---


def test_unknown_keys_are_kept_at_their_own_paths_and_counted() -> None:
    body = one_tweet(
        new_key={"a": [1, "é"]},
        public_metrics={"like_count": 1, "share_count": 2},
        entities={"hashtags": [{"tag": "x"}, {"tag": "y", "color": "red"}]},
    )
    decoded = decode_pages([page(body)])
    (row,) = whole_rows(decoded)
    assert json.loads(row["extras"]) == {
        "new_key": {"a": [1, "é"]},
        "public_metrics": {"share_count": 2},
        "entities": {"hashtags": [{}, {"color": "red"}]},
    }
    assert row["like_count"] == 1
    assert [tag["tag"] for tag in row["hashtags"]] == ["x", "y"]
    assert decoded.unknown_keys == Counter(
        {"tweets.new_key": 1, "tweets.public_metrics.share_count": 1, "tweets.entities.hashtags.color": 1}
    )


def test_one_page_with_unknown_keys_sends_its_whole_microbatch_the_exact_way() -> None:
    def body(number: int, padding: int = 0) -> bytes:
        return one_tweet(id=str(number), new_key=number, text="x" * padding)

    def keys(decoded: Decoded) -> dict[int, str | None]:
        return {row["id"]: row["extras"] for row in whole_rows(decoded)}

    plain = one_tweet(id="9", text="y" * 50)
    sampled = [page(body(1), 0), page(body(2, 100), 1), page(plain, 0, sequence=2)]
    assert keys(decode_pages(sampled)) == {1: '{"new_key":1}', 2: '{"new_key":2}', 9: None}
    unsampled = [page(one_tweet(id="3", text="z" * 200), 0), page(body(4), 1)]
    assert keys(decode_pages(unsampled)) == {3: None, 4: None}  # the sample is the largest page: it saw nothing
    refused = [*unsampled, page(one_tweet(id="5", new_key=5, author_id=True), 2)]
    assert keys(decode_pages(refused))[4] == '{"new_key":4}'


def test_unknown_keys_of_the_page_itself_are_counted_and_cost_nothing() -> None:
    answer = World().page(2) | {"new_part": []}
    answer["includes"]["spaces"] = [{"id": "1"}]
    body = encode(answer)
    assert not sample.has_unknown_keys(body)
    assert exact.decode([page(body)]).unknown_keys == Counter({"new_part": 1, "includes.spaces": 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("article", {"title": "On lakes", "cover_media": "3_1"}),
        ("matched_media_notes", {"match_status": "matched"}),
        ("matched_media_notes", [{"match_status": "matched"}]),
        ("suggested_source_links", ["https://lake.example/"]),
        ("suggested_source_links", [{"start": 0, "end": 1, "url": "https://lake.example/"}]),
        ("organic_metrics", {"impression_count": 3}),
    ],
)
def test_fields_whose_shape_varies_are_kept_as_json(key: str, value: Any) -> None:
    row = only_row(one_tweet(**{key: value}))
    assert json.loads(row[key]) == value
    assert row["extras"] is None


def test_a_place_with_properties_keeps_them() -> None:
    place = {"id": "p", "geo": {"type": "Feature", "bbox": [1, 2, 3, 4], "properties": {"kind": "lake"}}}
    row = only_row(json.dumps({"meta": {}, "includes": {"places": [place]}}).encode(), "places")
    assert json.loads(row["extras"]) == {"geo": {"properties": {"kind": "lake"}}}
    assert row["bbox"] == [1.0, 2.0, 3.0, 4.0]


# --- vocabularies and references ---


def test_both_vocabularies_fold_into_the_same_columns() -> None:
    answer = World(seed=5).page(40)
    one = decode_pages([page(encode(answer))])
    other = decode_pages([page(encode(to_post_vocabulary(answer)))])
    assert rows(one.tables) == rows(other.tables)
    assert one.tables["tweets"]["retweet_count"].null_count == 0
    mixed = json.dumps(
        {
            "data": [
                {"id": "1", "referenced_tweets": [{"type": "quoted", "id": "7"}]},
                {"id": "2", "referenced_posts": [{"type": "quoted", "id": "8"}], "note_post": {"text": "long"}},
                {"id": "3", "note_tweet": {"text": "old"}, "edit_history_post_ids": ["3"]},
            ],
            "includes": {"tweets": [{"id": "7"}], "posts": [{"id": "8"}]},
            "meta": {},
        }
    ).encode()
    tables = fast.decode([page(mixed)], parse_arro3)
    assert tables["tweets"]["quoted_id"].to_pylist() == [7, 8, None]
    assert tables["tweets"]["text"].to_pylist() == [None, "long", "old"]
    assert tables["referenced_tweets"]["id"].to_pylist() == [7, 8]


def test_the_first_reference_of_each_kind_has_a_column_of_its_own() -> None:
    references = [
        {"type": "quoted"},
        {"type": "quoted", "id": "5"},
        {"type": "quoted", "id": "6"},
        {"type": "replied_to", "id": "7"},
    ]
    row = only_row(one_tweet(referenced_tweets=references))
    assert (row["quoted_id"], row["replied_to_id"], row["retweeted_id"]) == (5, 7, None)


# --- many pages at once ---


def test_rows_say_which_page_they_come_from() -> None:
    world = World()
    pages = [page(world.body(2), index, sequence, query) for sequence, index, query in ((1, 0, "a"), (2, 3, "b"))]
    by_page = {
        (row["raw_key"], row["record_index"], tuple(row["matched_queries"]), row["fetched_at"].microsecond)
        for row in whole_rows(decode_pages(pages))
    }
    assert by_page == {(raw_key(1), 0, ("a",), 0), (raw_key(2), 3, ("b",), 3)}


def test_a_few_bad_pages_among_many_are_found_without_losing_the_rest() -> None:
    world = World()
    pages = [page(world.body(2), index, sequence=index // 10) for index in range(60)]
    for index in (0, 17, 41, 59):
        pages[index] = page(b"<html>", index, sequence=index // 10)
    decoded = decode_pages(pages)
    assert decoded.tables["tweets"].num_rows == 112
    assert sorted(one.record_index or 0 for one in decoded.rejects) == [0, 17, 41, 59]


def test_batches_are_bounded_by_bytes_and_hold_every_page_in_order() -> None:
    pages = pages_of([b"x" * size for size in (5, 5, 1, 20, 3, 3, 3)])
    batches = list(page_batches(pages, max_bytes=10))
    assert [[one.record_index for one in batch] for batch in batches] == [[0, 1], [2], [3], [4, 5, 6]]
    assert list(page_batches([], max_bytes=10)) == []
