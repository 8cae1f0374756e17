"""What a run says of itself: in the summary, in the log, in the commit and in `ingested_files`."""

import json
import logging
from collections import Counter

import pytest

from compaction_dags.compaction.checks import HourSummary
from tests.compaction.conftest import Place, hours
from tests.compaction.pages import NOON, encode, page_record


def page(*tweets: dict[str, object]) -> bytes:
    return encode({"data": list(tweets), "meta": {}})


def test_rows_of_every_microbatch_are_accounted_for_where_they_can_be_read_afterwards(place: Place) -> None:
    one, again, late = {"id": "1", "lang": "en"}, {"id": "1", "lang": "en"}, {"id": "2", "lang": "de"}
    place.ship([page_record(page(one, again, late), NOON), page_record(b"<html>", NOON)])
    place.ship([page_record(page(one), NOON)])
    done = place.compact(function="compaction_dags.examples:clean_and_filter")
    rows = place.rows("ingested_files")
    assert [(row["rows"], row["duplicates"], row["filtered"], row["rejects"]) for row in rows] == [
        (3, 2, 1, 1),
        (1, 0, 0, 0),
    ]
    assert done.rows_in == done.tweets_written + done.duplicates + done.filtered == 4
    for table in ("rejects", "ingested_files"):
        (last, *_) = place.delta(table).history(1)
        assert HourSummary.of(json.loads(last["tweetlake.summary"])) == done


def test_unknown_keys_and_misfits_are_counted_by_key_and_the_hours_to_rebuild_are_named(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    plain, odd = {"id": "1", "lang": "en"}, {"id": "2", "karma": 3, "lang": 7}
    for number, tweets in enumerate([[plain], [plain], [odd], [odd, odd]]):
        at = NOON + hours(number)
        place.ship([page_record(page(*tweets), at)], at)
    with caplog.at_level(logging.WARNING, "tweetlake.compaction"):
        done = place.compact()
    assert done.unknown_keys == Counter({"tweets.karma": 3})
    assert done.misfits == Counter({"tweets.lang": 3})
    assert done.as_dict()["unknown_keys"] == {"tweets.karma": 3}
    first, second = caplog.messages
    assert first.startswith("2026-11-20T14")
    assert "tweets.karma 1" in first
    assert second.startswith("2026-11-20T15")
    assert "tweets.karma 2" in second
    assert all("until raw hour 2026-11-20T13" in message for message in (first, second))
    rows = place.rows("ingested_files", ["raw_key", "unknown_keys"])
    assert [row["unknown_keys"] for row in rows] == [None, None, '{"tweets.karma": 1}', '{"tweets.karma": 2}']


def test_keys_that_begin_within_an_hour_are_told_from_that_hour_on(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.ship([page_record(page({"id": "1"}), NOON)])
    place.ship([page_record(page({"id": "2", "karma": 3}), NOON)])
    place.compact()
    assert "until raw hour 2026-11-20T12" in caplog.text


def test_summaries_add_up_and_survive_json() -> None:
    one = HourSummary(raw_hours=1, rows_in=2, unknown_keys=Counter(a=1))
    other = HourSummary(raw_hours=1, rows_in=3, unknown_keys=Counter(a=1, b=1), misfits=Counter(c=4))
    both = HourSummary(raw_hours=2, rows_in=5, unknown_keys=Counter(a=2, b=1), misfits=Counter(c=4))
    assert one + other == both
    assert HourSummary.of({"hour": "x"} | json.loads(json.dumps(both.as_dict()))) == both
    assert set(both.counts) == {name for name in both.as_dict() if name not in ("unknown_keys", "misfits")}
