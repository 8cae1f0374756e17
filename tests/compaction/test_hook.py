"""The user's own step in an hour: what it drops is counted where it came from, and a new version of it reaches old rows."""

import sys
from pathlib import Path

import pytest

from compaction_dags.compaction.checks import HourSummary
from compaction_dags.compaction.errors import TransformError
from tests.compaction.conftest import Place, hours
from tests.compaction.pages import NOON, encode, page_record


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the user's module `hook_a`, which is forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "hook_a", raising=False)
    return tmp_path


def module(folder: Path, source: str) -> None:
    sys.modules.pop("hook_a", None)
    (folder / "hook_a.py").write_text(source)


def test_what_it_drops_is_counted_by_file_and_in_the_summary(place: Place, folder: Path) -> None:
    module(folder, "def f(frame): return frame[frame['id'].isin(range(0, 99, 2))]")
    place.ship_tweets(range(10))
    place.ship_tweets([1, 2, 3, 11], query="rain")
    now = NOON + hours(1)
    done = place.compact(function="hook_a:f", now=now)
    assert done == HourSummary(
        raw_hours=1, microbatches=2, pages=2, rows_in=14, tweets_written=5, duplicates=3, filtered=6
    )
    assert sorted(place.tweets([])) == [0, 2, 4, 6, 8]
    assert place.tweets(["matched_queries"])[2]["matched_queries"] == ["lake", "rain"], "merged before it is asked"
    noted = place.rows("ingested_files")
    assert [row["filtered"] for row in noted] == [3, 3]
    assert {row["transform"] for row in noted} == {"hook_a:f"}
    assert place.compact(function="hook_a:f") == HourSummary()
    before = place.versions()
    assert place.compact(NOON, function="hook_a:f") == done
    assert place.versions() == before


def test_a_changed_function_reaches_an_hour_that_is_done_again(place: Place, folder: Path) -> None:
    place.ship_tweets(range(3))
    module(folder, "def f(frame): return frame.assign(text=frame['text'] + '!')")
    place.compact(function="hook_a:f")
    (version,) = {row["transform_version"] for row in place.rows("ingested_files")}
    module(folder, "def f(frame): return frame.assign(text=frame['text'] + '?')")
    assert place.compact(function="hook_a:f") == HourSummary(), "it does not make an hour stale"
    place.compact(NOON, function="hook_a:f")
    assert {row["text"] for row in place.tweets(["text"]).values()} == {"tweet 0?", "tweet 1?", "tweet 2?"}
    assert {row["transform_version"] for row in place.rows("ingested_files")} != {version}


def test_a_failing_function_leaves_the_tables_as_they_were(place: Place, folder: Path) -> None:
    place.ship_tweets([1])
    place.compact()
    before = place.versions()
    place.ship_tweets([2])
    module(folder, "def f(frame): return frame['mood']")
    with pytest.raises(TransformError, match=r"hook_a:f failed: KeyError: 'mood'"):
        place.compact(function="hook_a:f")
    assert place.versions() == before
    assert place.compact().tweets_written == 2


def test_the_shipped_example_is_counted_too(place: Place) -> None:
    tweets = [
        {"id": "1", "text": " a\tlake\n", "lang": "en"},
        {"id": "2", "text": "ein See", "lang": "de"},
        {"id": "3", "text": "RT", "lang": "en", "referenced_tweets": [{"type": "retweeted", "id": "1"}]},
        {"id": "4", "text": "no language"},
    ]
    place.ship([page_record(encode({"data": tweets, "meta": {}}))])
    done = place.compact(function="compaction_dags.examples:clean_and_filter")
    assert (done.rows_in, done.tweets_written, done.filtered) == (4, 1, 3)
    assert place.tweets(["text", "text_sent"]) == {1: {"id": 1, "text": "a lake", "text_sent": " a\tlake\n"}}
