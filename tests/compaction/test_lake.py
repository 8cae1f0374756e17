"""The bucket as compaction sees it: what is listed, whose credentials are used, and what each refusal means."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from compaction_dags.compaction.errors import LakeRefusedError, LakeUnreachableError
from compaction_dags.compaction.lake import Lake, RawObject
from sandbox.s3_faults import S3Fault, running_s3_proxy
from schemas.keys import RawHour
from schemas.settings import Lake as LakeSettings
from tests.compaction.conftest import Place
from tests.compaction.pages import NOON, heartbeat

HOUR = RawHour.of(NOON)


@pytest.fixture
def bare(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment in which boto3 finds no credentials, whatever `place` put there."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


@contextmanager
def answering(answer: Callable[[str], tuple[int, str]]) -> Iterator[str]:
    """An HTTP server on loopback that answers every GET; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


# --- listing and reading ---


def test_microbatches_are_listed_by_hour_and_day_in_the_order_of_their_sequence(place: Place) -> None:
    first, second = place.ship([heartbeat()]), place.ship([heartbeat()])
    next_hour = place.ship([heartbeat()], NOON + timedelta(hours=1))
    next_day = place.ship([heartbeat()], NOON + timedelta(days=1))
    lake = place.lake()
    assert [found.key for found in lake.raw_of_hour(HOUR)] == [first, second]
    day = lake.raw_of_day(NOON.date())
    assert {hour: [found.key for found in listed] for hour, listed in day.items()} == {
        HOUR: [first, second],
        RawHour.of(NOON + timedelta(hours=1)): [next_hour],
    }
    assert lake.days() == [date(2026, 11, 20), date(2026, 11, 21)]
    assert [found.key for found in lake.raw_of_hour(RawHour.of(NOON + timedelta(days=1)))] == [next_day]


def test_a_lake_in_the_same_bucket_whose_prefix_begins_alike_is_another_one(place: Place) -> None:
    twin = replace(place, prefix=place.prefix.rstrip("/") + "-twin/")
    twin.ship([heartbeat()])
    mine, other = Lake(place.settings().lake), Lake(twin.settings().lake)
    assert (mine.days(), mine.raw_of_hour(HOUR)) == ([], [])
    assert len(other.raw_of_hour(HOUR)) == 1


@pytest.mark.parametrize(
    "key",
    [
        "raw/date=2026-11-20/hour=12/notes.txt",
        "raw/date=2026-11-20/hour=12/deeper/2026-11-20T12-000000000001-9f86d081.avro",
        "raw/date=2026-11-20/hour=99/x.avro",
        "raw/date=2026-11-20/hour=7/2026-11-20T07-000000000001-9f86d081.avro",
        "raw/date=2026-11-20/2026-11-20T12-000000000001-9f86d081.avro",
        "raw/date=someday/hour=12/x.avro",
        "raw/lost.avro",
    ],
)
def test_what_lies_in_raw_and_is_no_microbatch_is_passed_over(place: Place, key: str) -> None:
    place.s3.client().put_object(Bucket=place.s3.bucket, Key=place.prefix + key, Body=b"x")
    lake = place.lake()
    assert lake.raw_of_day(NOON.date()) == {}
    assert lake.raw_of_hour(HOUR) == []
    assert lake.days() in ([], [NOON.date()])


def test_more_objects_than_one_answer_of_s3_holds_are_all_listed(place: Place) -> None:
    client = place.s3.client(max_pool_connections=16)
    folder = place.keys.raw_hour(HOUR)

    def put(number: int) -> None:
        key = f"{folder}{HOUR}-{number:012d}-9f86d081.avro"
        client.put_object(Bucket=place.s3.bucket, Key=key, Body=b"x" * (1 + number % 7))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, range(1_007)))
    listed = place.lake().raw_of_hour(HOUR)
    assert [found.key for found in listed] == [f"{folder}{HOUR}-{number:012d}-9f86d081.avro" for number in range(1_007)]
    assert [found.size for found in listed[:8]] == [1, 2, 3, 4, 5, 6, 7, 1]
    assert place.lake().raw_of_day(NOON.date())[HOUR] == listed


def test_a_microbatch_comes_with_what_its_writer_said_of_it(place: Place) -> None:
    key = place.put(b"content", NOON, sha256="ab" * 32, records=3)
    (found,) = place.lake().raw_of_hour(HOUR)
    content = place.lake().get(found)
    assert (content.data, content.sha256, content.records) == (b"content", "ab" * 32, 3)
    assert (found.key, found.size, len(found.etag) >= 32, '"' in found.etag) == (key, 7, True, False)


@pytest.mark.parametrize("metadata", [{}, {"records": "many"}, {"records": "-1"}])
def test_metadata_that_is_missing_or_odd_is_none(place: Place, metadata: dict[str, str]) -> None:
    key = place.keys.raw_hour(HOUR) + f"{HOUR}-000000000001-9f86d081.avro"
    place.s3.client().put_object(Bucket=place.s3.bucket, Key=key, Body=b"x", Metadata=metadata)
    content = place.lake().get(RawObject(key, 1, ""))
    assert (content.sha256, content.records) == (None, None)


def test_files_go_there_and_back_in_pieces(place: Place, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    (tmp_path / "there").write_bytes(content)
    place.lake().put_file(f"{place.prefix}curated/x", tmp_path / "there")
    place.lake().get_file(f"{place.prefix}curated/x", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


# --- credentials: boto3's chain, the same for delta-rs ---


def opens_with(options: dict[str, str], place: Place) -> bool:
    return DeltaTable.is_deltatable(place.uri("tweets"), storage_options=options)


def test_delta_gets_the_credentials_of_the_environment_with_their_token(bare: pytest.MonkeyPatch, place: Place) -> None:
    bare.setenv("AWS_ACCESS_KEY_ID", "key")
    bare.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    lake = Lake(place.settings().lake)
    assert "AWS_SESSION_TOKEN" not in lake.delta_options()
    bare.setenv("AWS_SESSION_TOKEN", "token")
    options = Lake(place.settings().lake).delta_options()
    assert [options[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")] == [
        "key", "secret", "token",
    ]  # fmt: skip
    assert options["aws_conditional_put"] == "etag", "commits are made by S3's own put-if-absent"
    assert options["AWS_ENDPOINT_URL"] == place.s3.endpoint_url
    assert options["AWS_ALLOW_HTTP"] == "true"


def test_a_profile_is_enough(bare: pytest.MonkeyPatch, place: Place, tmp_path: Path) -> None:
    place.ship([heartbeat()])
    (tmp_path / "credentials").write_text(
        f"[swimmer]\naws_access_key_id = {place.s3.access_key}\naws_secret_access_key = {place.s3.secret_key}\n"
    )
    bare.setenv("AWS_PROFILE", "swimmer")
    lake = Lake(place.settings().lake)
    assert len(lake.raw_of_hour(HOUR)) == 1
    assert lake.delta_options()["AWS_ACCESS_KEY_ID"] == place.s3.access_key
    assert not opens_with(lake.delta_options(), place)


def test_credentials_of_a_role_are_those_of_now_at_every_call(bare: pytest.MonkeyPatch, place: Place) -> None:
    """A role's keys change while a long run goes on. The source is the one that EC2's sister services offer."""
    asked = []

    def credentials(_: str) -> tuple[int, str]:
        asked.append(1)
        soon = datetime.now(UTC) + timedelta(minutes=5)  # within boto3's reach of renewal
        keys = {"AccessKeyId": f"key-{len(asked)}", "SecretAccessKey": "s", "Token": f"token-{len(asked)}"}
        return 200, json.dumps({**keys, "Expiration": soon.strftime("%Y-%m-%dT%H:%M:%SZ")})

    with answering(credentials) as address:
        bare.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", address)
        lake = Lake(place.settings().lake)
        first, second = lake.delta_options(), lake.delta_options()
    assert first["AWS_SESSION_TOKEN"].startswith("token-")
    assert first["AWS_SESSION_TOKEN"] != second["AWS_SESSION_TOKEN"]
    assert second["AWS_ACCESS_KEY_ID"] == second["AWS_SESSION_TOKEN"].replace("token", "key")


def test_aws_itself_is_reached_by_https_without_an_endpoint(place: Place) -> None:
    options = Lake(LakeSettings(bucket="some-lake", region="eu-central-1")).delta_options()
    assert options["AWS_REGION"] == "eu-central-1"
    assert not {"AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP"} & options.keys()


# --- refusals: a person has to mend it ---


def test_no_credentials_anywhere_is_said_so(bare: pytest.MonkeyPatch, place: Place) -> None:
    lake = Lake(place.settings().lake)
    for ask in (lake.delta_options, lake.days, lambda: lake.raw_of_hour(HOUR)):
        with pytest.raises(LakeRefusedError, match="no AWS credentials were found"):
            ask()


def test_wrong_keys_and_a_bucket_that_is_not_there_say_what_to_mend(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LakeRefusedError, match=r"s3://no-such-lake/.*create lake\.bucket or mend its name"):
        Lake(place.settings().lake.model_copy(update={"bucket": "no-such-lake"})).days()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(LakeRefusedError, match="the secret key is wrong, or the clock is off"):
        Lake(place.settings().lake).raw_of_hour(HOUR)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(LakeRefusedError, match="this access key is not known there"):
        Lake(place.settings().lake).raw_of_hour(HOUR)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without boto3's pauses between its tries."""
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "ExpiredToken", LakeRefusedError),
        (400, "RequestTimeout", LakeUnreachableError),
        (403, "AccessDenied", LakeRefusedError),
        (404, "NoSuchBucket", LakeRefusedError),
        (429, "SlowDown", LakeUnreachableError),
        (500, "InternalError", LakeUnreachableError),
        (503, "SlowDown", LakeUnreachableError),
    ],
)
@pytest.mark.usefixtures("hurried", "place")
def test_each_answer_of_s3_is_for_a_person_or_for_later(status: int, code: str, kind: type[Exception]) -> None:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
    with answering(lambda _: (status, body)) as address:
        lake = Lake(LakeSettings(bucket="lake", endpoint_url=address))
        with pytest.raises(kind, match=f"s3://lake/raw/.*{status} {code}"):
            lake.days()


@pytest.mark.usefixtures("hurried", "place")
def test_nobody_there_is_for_later() -> None:
    with answering(lambda _: (200, "")) as address:
        pass
    with pytest.raises(LakeUnreachableError, match="s3://lake/raw/") as raised:
        Lake(LakeSettings(bucket="lake", endpoint_url=address)).days()
    assert f"S3 at {address} does not answer" in str(raised.value)
    assert "lake.endpoint_url" in str(raised.value)
    assert "?" not in str(raised.value), "what was asked is nothing to a reader"


@pytest.mark.usefixtures("hurried", "place")
def test_an_answer_that_is_no_s3_is_no_empty_lake() -> None:
    with answering(lambda _: (200, "<html>Welcome to the guest network</html>")) as address:
        lake = Lake(LakeSettings(bucket="lake", endpoint_url=address))
        for ask in (lake.days, lambda: lake.raw_of_day(NOON.date()), lambda: lake.raw_of_hour(HOUR)):
            with pytest.raises(LakeRefusedError, match=r"no S3; mend lake\.endpoint_url"):
                ask()


@pytest.mark.usefixtures("hurried")
def test_an_answer_that_fails_once_is_asked_for_again(place: Place) -> None:
    answers = iter([(503, ""), (500, "")])
    body = '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated></ListBucketResult>'
    with answering(lambda _: next(answers, (200, body))) as address:
        assert Lake(LakeSettings(bucket="lake", endpoint_url=address)).days() == []


def test_a_refusal_whose_explanation_is_cut_off_is_for_later(place: Place) -> None:
    with running_s3_proxy(place.s3) as proxy:
        place.endpoint_url = proxy.s3.endpoint_url
        proxy.set_faults(S3Fault("reset_in_answer", call="get"))
        with pytest.raises(LakeUnreachableError, match="no-such-key"):
            place.lake().read("no-such-key")
        proxy.set_faults()
        with pytest.raises(LakeRefusedError, match="no-such-key"):
            place.lake().read("no-such-key")


def test_of_a_large_file_only_the_columns_that_are_asked_for_are_fetched(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.ship_tweets(range(600))
    place.compact()
    table, (file,) = (
        place.table("tweets"),
        [file for files in place.snapshot("tweets").files.values() for file in files],
    )
    whole = table.read([file])
    fetched: list[int] = []
    real = Lake._range
    monkeypatch.setattr(Lake, "_range", lambda *a: fetched.append(a[3] - a[2]) or real(*a))
    monkeypatch.setattr("compaction_dags.compaction.tables._WHOLE_UP_TO", 0)
    monkeypatch.setattr(Lake, "read", None)
    assert table.read([file], ["id", "matched_queries"]).equals(whole.select(["id", "matched_queries"]))
    assert fetched
    assert len(fetched) < 12
