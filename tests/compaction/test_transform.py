"""The user's own function: everything passes through pandas as it went in, and every misuse is told in one sentence."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from compaction_dags.compaction import transform
from compaction_dags.compaction.decode import RawPage, decode_pages
from compaction_dags.compaction.errors import TransformError
from compaction_dags.compaction.merge import merged_tweets
from compaction_dags.compaction.rows import file_schema, whole
from compaction_dags.compaction.transform import Transform
from compaction_dags.examples import clean_and_filter
from schemas.snowflake import MAX_ID
from tests.compaction.pages import World, encode, raw_key

SCHEMA = file_schema("tweets")


def decoded(*bodies: bytes) -> pa.Table:
    pages = [
        RawPage(raw_key(), index, "lake", 1_795_000_000_000_000 + index, body) for index, body in enumerate(bodies)
    ]
    return merged_tweets(whole(decode_pages(pages).tables["tweets"], SCHEMA))


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    world = World(seed=3)
    return decoded(
        world.body(60), world.body(60, vocabulary="post"), encode({"data": [{"id": str(MAX_ID)}, {"id": "1"}]})
    )


def applied(rows: pa.Table, function: Any) -> pa.Table:
    return Transform("mine:step", "0", function).apply(rows)


# --- what passes ---


def test_every_column_comes_back_as_it_went_in(rows: pa.Table) -> None:
    assert any(pa.types.is_list(column.type) and rows[column.name].null_count < rows.num_rows for column in SCHEMA)
    assert any(pa.types.is_int64(column.type) and 0 < rows[column.name].null_count < rows.num_rows for column in SCHEMA)
    back = applied(rows, lambda tweets: tweets)
    assert back.schema == rows.schema
    assert back.equals(rows)
    back.validate(full=True)


@pytest.mark.parametrize(
    "way",
    [
        lambda tweets: tweets.sample(frac=1, random_state=1),
        lambda tweets: tweets[tweets.columns[::-1]],
        lambda tweets: tweets.reset_index(drop=True).set_index(pd.Index(["same"] * len(tweets))),
        lambda tweets: tweets.assign(text=tweets["text"].astype(object)),
        lambda tweets: tweets.assign(hashtags=tweets["hashtags"].astype(object)),
        lambda tweets: tweets.assign(lang=tweets["lang"].astype("category")),
        lambda tweets: tweets.assign(fetched_at=tweets["fetched_at"].astype("datetime64[us, UTC]")),
        lambda tweets: tweets.assign(like_count=tweets["like_count"].astype("Float64")),
        lambda tweets: tweets.assign(like_count=tweets["like_count"].astype("float64")),
    ],
    ids=[
        "shuffled",
        "columns shuffled",
        "index",
        "objects",
        "nested objects",
        "category",
        "datetime64",
        "Float64",
        "NaN",
    ],
)
def test_order_index_and_the_usual_dtypes_of_pandas_make_no_difference(rows: pa.Table, way: Any) -> None:
    assert applied(rows, way).equals(rows)


def test_rows_may_be_dropped_and_values_changed(rows: pa.Table) -> None:
    kept = applied(rows, lambda tweets: tweets[tweets["lang"] == "en"].assign(text="wet", like_count=pd.NA))
    assert 0 < kept.num_rows < rows.num_rows
    assert set(kept["lang"].to_pylist()) == {"en"}
    assert set(kept["text"].to_pylist()) == {"wet"}
    assert kept["like_count"].null_count == kept.num_rows
    assert kept["id"].to_pylist() == sorted(kept["id"].to_pylist())


def test_all_rows_may_be_dropped_and_a_function_is_not_bothered_with_none(rows: pa.Table) -> None:
    nothing = applied(rows, lambda tweets: tweets.head(0))
    assert (nothing.num_rows, nothing.schema) == (0, rows.schema)
    assert applied(nothing, None).num_rows == 0


# --- what does not ---

TAKEN_FOR_GRANTED = ("id", "raw_key", "record_index", "fetched_at", "first_fetched_at", "matched_queries")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda tweets: None, "returned NoneType, not a DataFrame"),
        (lambda tweets: tweets["text"], "returned Series, not a DataFrame"),
        (lambda tweets: tweets.drop(columns=["lang", "text"]), "must return the columns it got; missing: text, lang"),
        (lambda tweets: tweets.assign(mood="wet"), "not known to the table: mood"),
        (lambda tweets: tweets.rename(columns={"lang": "language"}), "missing: lang; not known to the table: language"),
        (lambda tweets: tweets.assign(like_count="many"), "column like_count cannot be read as int64"),
        (lambda tweets: tweets.assign(like_count=0.5), "column like_count cannot be read as int64"),
        (lambda tweets: tweets.assign(text=7), "column text cannot be read as string"),
        (lambda tweets: tweets.assign(created_at="yesterday"), "column created_at cannot be read as timestamp"),
        (lambda tweets: tweets.assign(hashtags="#lake"), "column hashtags cannot be read as list"),
        (lambda tweets: pd.concat([tweets, tweets.tail(1)]), "returned an id twice"),
        (lambda tweets: tweets.assign(id=tweets["id"] - 2), "returned an id that it was not given"),
        (lambda tweets: tweets.assign(id=pd.NA), "returned an id"),
        (lambda tweets: tweets.assign(id=tweets["id"].iloc[::-1].array), "changed the column"),
        (lambda tweets: pd.concat([tweets, tweets["lang"]], axis=1), "; there twice: lang"),
        (lambda tweets: tweets.loc[:, "no such column"], "failed: KeyError"),
        (lambda tweets: sys.exit("done"), "failed: SystemExit: done"),
        *(
            (lambda tweets, name=name: tweets.assign(**{name: tweets[name].shift(1)}), name)
            for name in TAKEN_FOR_GRANTED
        ),
    ],
)
def test_whatever_else_comes_back_is_refused_by_name(function: Any, words: str, rows: pa.Table) -> None:
    with pytest.raises(TransformError, match=re.escape(words)) as told:
        applied(rows, function)
    assert str(told.value).startswith("transform.function mine:step")


# --- loading ---


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """Writes a module and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def make(source: str) -> str:
        name = f"made_for_{abs(hash(request.node.name))}_{len(made)}"
        made.append(name)
        (tmp_path / f"{name}.py").write_text(source)
        return name

    yield make
    for name in made:
        sys.modules.pop(name, None)


def test_no_name_is_no_transform() -> None:
    assert transform.load("") is None


def test_a_function_is_found_by_its_name(module: Any, rows: pa.Table) -> None:
    name = module("def step(tweets):\n    return tweets.head(3)\n")
    found = transform.load(f"{name}:step")
    assert found is not None
    assert (found.name, found.apply(rows).num_rows) == (f"{name}:step", 3)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("step = 5\n", "has no function step"),
        ("def other(tweets): ...\n", "has no function step"),
        ("import no_such_thing_anywhere\n", "cannot be imported: No module named 'no_such_thing_anywhere'"),
        ("def step(tweets:\n", "cannot be imported"),
        ("raise RuntimeError('rain')\n", "cannot be imported: rain"),
        ("import sys\nsys.exit('a script, no module')\n", "cannot be imported: a script, no module"),
    ],
)
def test_what_cannot_be_loaded_is_told_with_its_name(module: Any, source: str, words: str) -> None:
    name = module(source)
    with pytest.raises(TransformError, match=re.escape(words)) as told:
        transform.load(f"{name}:step")
    assert str(told.value).startswith(f"transform.function {name}:step: ")


def test_a_module_that_is_not_there_says_how_to_make_it_found() -> None:
    with pytest.raises(TransformError, match="put its folder on PYTHONPATH"):
        transform.load("no_such_package.module:step")


def test_the_version_is_of_the_source_and_of_the_name(module: Any) -> None:
    body = "def step(tweets):\n    return tweets{}\ndef twin(tweets):\n    return tweets{}\n"
    one, other = module(body.format("", "")), module(body.format("", ".head(1)"))
    versions = {
        place: found.version
        for place in (f"{one}:step", f"{one}:twin", f"{other}:step")
        if (found := transform.load(place)) is not None
    }
    assert len(set(versions.values())) == 3
    again = transform.load(f"{one}:step")
    assert again is not None
    assert again.version == versions[f"{one}:step"]
    assert re.fullmatch(r"[0-9a-f]{16}", again.version)


# --- the shipped example ---


def test_the_example_keeps_english_posts_that_are_no_retweets_and_cleans_their_text() -> None:
    def post(number: int, **more: Any) -> dict[str, Any]:
        return {"id": str(number), "text": "as it is", "lang": "en", **more}

    given = decoded(
        encode(
            {
                "data": [
                    post(1, text="\t two\n\nlines\x00 and\x7f  a bell\x07 "),
                    post(2, lang="de"),
                    post(3, lang=None),
                    post(4, referenced_tweets=[{"type": "retweeted", "id": "9"}]),
                    post(5, referenced_tweets=[{"type": "quoted", "id": "9"}, {"type": "replied_to", "id": "8"}]),
                    post(6, text=None),
                    post(7, text="湖 は 静か &amp; 🌊"),
                ]
            }
        )
    )
    kept = applied(given, clean_and_filter)
    assert dict(zip(kept["id"].to_pylist(), kept["text"].to_pylist(), strict=True)) == {
        1: "two lines and a bell",
        5: "as it is",
        6: None,
        7: "湖 は 静か & 🌊",
    }
    sent = dict(zip(given["id"].to_pylist(), given["text_sent"].to_pylist(), strict=True))
    assert kept["text_sent"].to_pylist() == [sent[number] for number in kept["id"].to_pylist()]


def test_the_example_leaves_what_it_was_given_untouched(rows: pa.Table) -> None:
    before = rows.to_pylist()
    applied(rows, clean_and_filter)
    assert rows.to_pylist() == before


def test_the_function_in_the_documentation_works_as_it_stands(rows: pa.Table) -> None:
    document = (Path(__file__).parents[2] / "docs" / "transform.md").read_text("utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    made: dict[str, Any] = {}
    exec(compile(source, "docs/transform.md", "exec"), made)
    kept = applied(rows, made["only_liked_and_lower"])
    liked = [row for row in rows.to_pylist() if (row["like_count"] or 0) >= 10]
    assert 0 < len(liked) < rows.num_rows
    assert kept.to_pylist() == [row | {"text": row["text"].lower()} for row in liked]
    for name in transform._KEPT:
        assert f"`{name}`" in document


# --- pandas where it is needed only ---

WITHOUT_PANDAS = """
import sys
import pyarrow as pa
from compaction_dags.compaction import job, transform
from compaction_dags.compaction.errors import TransformError
from compaction_dags.compaction.memory import leave_pandas_out

if not {first!r}:
    leave_pandas_out()
pa.array([1, None])
print("pandas" in sys.modules)
try:
    print(transform.load("compaction_dags.examples:clean_and_filter").name)
except TransformError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("compaction_dags.examples:clean_and_filter", ["True", "compaction_dags.examples:clean_and_filter"]),
        ("", ["False", "transform.function .*: this process was set up for none; use another process"]),
    ],
)
def test_pandas_is_imported_for_a_transform_and_else_left_out(function: str, told: list[str]) -> None:
    script = WITHOUT_PANDAS.format(first=function)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    for said, words in zip(done.stdout.splitlines(), told, strict=True):
        assert re.fullmatch(words, said)
