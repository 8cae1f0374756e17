"""The compaction's numbers for Prometheus are what the tables hold, and asking for them writes nothing to the lake."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from prometheus_client.parser import text_string_to_metric_families

from compaction_dags.compaction import metrics
from schemas.curated import TABLES
from schemas.settings import Query, Settings
from tests.compaction.collector import Collector, counts, gap, ids_within, window
from tests.compaction.conftest import Place, hours
from tests.compaction.pages import NOON
from tests.compaction.test_compact_command import run

ONE = hours(1)
NOW = NOON + hours(5)


def settings(place: Place) -> Settings:
    return place.settings().model_copy(update={"query": [Query(name="lake", rule="r"), Query(name="rain", rule="r")]})


def values(place: Place, now: datetime = NOW) -> dict[str, float]:
    """Every sample by its name, with the value of its only label, if it has one, behind a slash."""
    return {
        "/".join([sample.name, *sample.labels.values()]).removeprefix("tweetlake_"): sample.value
        for family in metrics.exposed(metrics.gather(settings(place), now)).collect()
        for sample in family.samples
    }


@pytest.fixture
def collected(place: Place) -> Place:
    """`lake` began at half past twelve and has all of the next two hours; `rain` lost an hour of two."""
    one = Collector(place)
    half = NOON + timedelta(minutes=30)
    end = NOON + 3 * ONE
    one.begin(half, "lake")
    one.begin(NOON, "rain")
    one.ship(
        [
            window("lake", half, end, ids_within(NOON + ONE, end, 8), at=end),
            window("rain", NOON, NOON + ONE, ids_within(NOON, NOON + ONE, 4), at=end),
            gap("rain", NOON + ONE, NOON + 2 * ONE),
            counts("lake", end, [(NOON + hour * ONE, NOON + (hour + 1) * ONE, 4) for hour in (-1, 0, 1, 2)]),
            counts("rain", end, [(NOON + hour * ONE, NOON + (hour + 1) * ONE, 5) for hour in (0, 1)]),
        ],
        NOON + 2 * ONE,
    )
    one.beat(NOON + 3 * ONE)
    place.compact(now=NOW)
    return place


def test_an_empty_lake_has_no_made_up_numbers(place: Place) -> None:
    found = values(place)
    assert found.pop("compaction_checked_timestamp_seconds") == NOW.timestamp()
    assert set(found.values()) == {0.0}
    assert not [name for name in found if "timestamp" in name or "completeness" in name or "table" in name]


def test_completeness_is_told_of_what_lies_after_a_query_began(collected: Place) -> None:
    found = values(collected)
    told = [found[f"completeness_{what}/lake"] for what in ("counted_seconds", "collected_posts", "counted_posts")]
    assert told == [7200, 8, 8], "neither the hours before it began, nor the one in which it did"
    told = [found[f"completeness_{what}/rain"] for what in ("counted_seconds", "collected_posts", "counted_posts")]
    assert told == [7200, 4, 10], "an hour that was lost counts"


def test_an_hour_that_waits_to_be_compacted_is_not_called_incomplete(collected: Place) -> None:
    collected.ship_tweets(ids_within(NOON + ONE, NOON + 2 * ONE, 1), NOON + ONE)
    found = values(collected)
    assert found["curated_stale_partitions"] >= 1
    assert found["curated_oldest_stale_timestamp_seconds"] == (NOON + ONE).timestamp()
    assert "completeness_counted_seconds/lake" not in found, "its only counted hours come after that"
    assert found["completeness_counted_seconds/rain"] == 3600


def test_only_the_newest_hours_that_x_counted_are_told_of(collected: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "COUNTED_HOURS", 1)
    assert values(collected)["completeness_counted_seconds/lake"] == 3600


def test_recent_runs_are_summed_and_older_ones_are_not(collected: Place) -> None:
    found = values(collected)
    assert (found["compaction_recent_rows"], found["compaction_recent_rejects"]) == (12, 0)
    assert found["compaction_last_run_timestamp_seconds"] == NOW.timestamp()
    later = values(collected, NOW + hours(48))
    assert later["compaction_recent_rows"] == 0
    assert "compaction_last_run_timestamp_seconds" not in later


def test_unknown_keys_are_counted_once_each(place: Place) -> None:
    place.ship_tweets(ids_within(NOON, NOON + ONE, 3), NOON, shiny=1, new=2)
    place.compact(now=NOW)
    assert values(place)["compaction_recent_unknown_keys"] == 2


def test_tables_are_told_with_their_files_bytes_and_rows(collected: Place) -> None:
    found = values(collected)
    assert found["curated_table_rows/tweets"] == len(collected.tweets()) == 12
    for name in TABLES:
        present = [file for files in collected.snapshot(name).files.values() for file in files]
        assert found[f"curated_table_files/{name}"] == len(present)
        assert found[f"curated_table_bytes/{name}"] == sum(file.size for file in present)


def test_the_command_prints_them_or_replaces_a_file_at_once(collected: Place, tmp_path: Path) -> None:
    before, versions = collected.objects(), collected.versions()
    printed = run("metrics", "--config", str(collected.config()))
    assert printed.exit_code == 0
    names = {family.name for family in text_string_to_metric_families(printed.stdout)}
    assert "tweetlake_curated_stale_partitions" in names
    output = tmp_path / "tweetlake.prom"
    output.write_text("old")
    done = run("metrics", "--config", str(collected.config()), "--output", str(output))
    assert (done.exit_code, done.stdout) == (0, "")
    assert {family.name for family in text_string_to_metric_families(output.read_text())} == names
    assert [file.name for file in tmp_path.glob("*.prom*")] == [output.name]
    assert (collected.objects(), collected.versions()) == (before, versions), "it only reads"


def test_a_lake_that_does_not_answer_leaves_the_file_as_it_is(place: Place, tmp_path: Path) -> None:
    output = tmp_path / "tweetlake.prom"
    output.write_text("old")
    done = run("metrics", "--config", str(place.config(endpoint_url="http://127.0.0.1:9")), "--output", str(output))
    assert done.exit_code == 75
    assert output.read_text() == "old"


def test_it_needs_no_right_but_to_list_and_to_read(collected: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = [
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{collected.s3.bucket}"},
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{collected.s3.bucket}/*"},
    ]
    iam = boto3.Session().client("iam", endpoint_url=collected.s3.endpoint_url, region_name=collected.s3.region)
    iam.create_user(UserName="monitor")
    iam.put_user_policy(
        UserName="monitor",
        PolicyName="reads",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": allowed}),
    )
    key = iam.create_access_key(UserName="monitor")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    mine = boto3.Session().client("s3", endpoint_url=collected.s3.endpoint_url, region_name=collected.s3.region)
    with pytest.raises(ClientError, match="AccessDenied"):
        mine.put_object(Bucket=collected.s3.bucket, Key=f"{collected.prefix}curated/x", Body=b"")
    done = run("metrics", "--config", str(collected.config()))
    assert done.exit_code == 0, done.stderr
    assert 'tweetlake_curated_table_rows{table="tweets"} 12.0' in done.stdout
