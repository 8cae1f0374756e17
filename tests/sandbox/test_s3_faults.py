"""The proxy before S3: what no fault strikes passes unchanged, and each fault does to the client and to S3 what it says."""

import base64
import hashlib
import time

import pytest
from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError, HTTPClientError

from sandbox.s3 import running_s3
from sandbox.s3_faults import AFTERWARDS, KINDS, REFUSALS, S3Fault, running_s3_proxy

BODY = b"a page of posts " * 4_000
BROKEN = (HTTPClientError, ConnectionClosedError, BotoCoreError)


@pytest.fixture(scope="module")
def server():
    with running_s3(kind="seaweedfs") as s3:
        yield s3


@pytest.fixture
def proxy(server):
    with running_s3_proxy(server) as proxy:
        yield proxy


@pytest.fixture
def through(proxy):
    """A client that asks through the proxy, once."""
    return proxy.s3.client(retries={"total_max_attempts": 1}, read_timeout=5)


@pytest.fixture
def key(request):
    return f"{request.node.name}/date=2026-11-20/a b+c%20d.avro"


def put(client, proxy, key, body=BODY):
    checksum = base64.b64encode(hashlib.sha256(body).digest()).decode()
    client.put_object(
        Bucket=proxy.s3.bucket, Key=key, Body=body, ChecksumSHA256=checksum, IfNoneMatch="*", Metadata={"name": "x"}
    )


def stored(server, key):
    """What S3 itself holds."""
    client = server.client()
    try:
        return client.get_object(Bucket=server.bucket, Key=key)["Body"].read()
    except client.exceptions.NoSuchKey:
        return None


def refusal(error):
    return error.value.response["ResponseMetadata"]["HTTPStatusCode"], error.value.response["Error"]["Code"]


def test_every_call_passes_unchanged_and_is_counted(server, proxy, through, key):
    bucket = server.bucket
    put(through, proxy, key)
    assert stored(server, key) == BODY
    with pytest.raises(ClientError) as taken:
        put(through, proxy, key)
    assert refusal(taken)[0] == 412
    assert through.get_object(Bucket=bucket, Key=key)["Body"].read() == BODY
    head = through.head_object(Bucket=bucket, Key=key)
    assert (head["ContentLength"], head["Metadata"]) == (len(BODY), {"name": "x"})
    put(through, proxy, f"{key}.empty", b"")
    prefix = key.rsplit("/", 1)[0]
    listed = through.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    assert [found["Key"] for found in listed] == [key, f"{key}.empty"]
    through.delete_object(Bucket=bucket, Key=key)
    assert stored(server, key) is None
    assert proxy.passed == {"put": 3, "get": 1, "head": 1, "list": 1, "delete": 1}
    assert not proxy.struck
    outcomes = [(one.call, one.key, one.outcome) for one in proxy.requests()]
    assert outcomes[:2] == [("put", key, "200"), ("put", key, "412")]
    assert outcomes[4:] == [("put", f"{key}.empty", "200"), ("list", prefix, "200"), ("delete", key, "204")]
    assert len(proxy.requests("put", r"\.empty$")) == 1


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_names_its_code_and_nothing_is_carried_out(server, proxy, through, key, kind):
    proxy.set_faults(S3Fault(kind, call="put", next_n=1))
    with pytest.raises(ClientError) as refused:
        put(through, proxy, key)
    assert refusal(refused) == REFUSALS[kind][:2]
    assert stored(server, key) is None
    assert proxy.struck == {(kind, "put"): 1}
    put(through, proxy, key)
    proxy.set_faults(S3Fault(kind, call="head"))
    with pytest.raises(ClientError) as refused:
        through.head_object(Bucket=server.bucket, Key=key)
    assert refusal(refused)[0] == REFUSALS[kind][0]


@pytest.mark.parametrize("kind", ["reset", "reset_in_request", "outage"])
def test_a_reset_before_the_end_of_the_request_leaves_nothing_in_s3(server, proxy, through, key, kind):
    proxy.set_faults(S3Fault(kind, seconds=60))
    with pytest.raises(BROKEN):
        put(through, proxy, key)
    assert stored(server, key) is None
    assert proxy.struck == {(kind, "put"): 1}
    proxy.set_faults()
    put(through, proxy, key)
    assert stored(server, key) == BODY


def test_an_answer_can_be_lost_after_the_request_was_carried_out(server, proxy, through, key):
    proxy.set_faults(S3Fault("lose_answer", call="put", next_n=1))
    with pytest.raises(BROKEN):
        put(through, proxy, key)
    assert stored(server, key) == BODY
    with pytest.raises(ClientError) as taken:
        put(through, proxy, key)
    assert refusal(taken)[0] == 412


def test_a_byte_that_changes_on_its_way_to_s3_is_refused_by_its_checksum(server, proxy, through, key):
    proxy.set_faults(S3Fault("flip_request", next_n=1))
    with pytest.raises(ClientError) as refused:
        put(through, proxy, key)
    status, code = refusal(refused)
    assert status == 400
    assert code in {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
    assert stored(server, key) is None


def test_an_answer_can_break_or_change_in_the_middle_of_its_body(server, proxy, through, key):
    put(through, proxy, key)
    proxy.set_faults(S3Fault("reset_in_answer", call="get"))
    with pytest.raises(BROKEN):
        through.get_object(Bucket=server.bucket, Key=key)["Body"].read()
    proxy.set_faults(S3Fault("flip_answer", call="get"))
    through = proxy.s3.client(response_checksum_validation="when_required")
    changed = through.get_object(Bucket=server.bucket, Key=key)["Body"].read()
    assert sum(one != other for one, other in zip(changed, BODY, strict=True)) == 1
    proxy.set_faults(S3Fault("flip_answer", call="list"), S3Fault("flip_answer", call="head"))
    with pytest.raises(ClientError) as broken:  # what boto3 makes of XML that it cannot read
        for size in range(1, 50):  # the middle byte is in turn part of a tag and of a text
            through.list_objects_v2(Bucket=server.bucket, Prefix=key[:size])
    assert refusal(broken)[0] == 500
    head = through.head_object(Bucket=server.bucket, Key=key)
    assert head["ContentLength"] == len(BODY), "there is no body to strike"
    assert ("flip_answer", "head") not in proxy.struck


def test_an_answer_can_be_slow_or_never_come(server, proxy, through, key):
    proxy.set_faults(S3Fault("slow", next_n=1, seconds=0.5), S3Fault("hang"))
    began = time.monotonic()
    put(through, proxy, key)
    assert time.monotonic() - began >= 0.5
    impatient = proxy.s3.client(retries={"total_max_attempts": 1}, read_timeout=0.5)
    with pytest.raises(HTTPClientError):
        impatient.head_object(Bucket=server.bucket, Key=key)


def test_an_outage_ends_by_itself(server, proxy, through, key):
    proxy.set_faults(S3Fault("outage", seconds=0.3))
    with pytest.raises(BROKEN):
        put(through, proxy, key)
    ends = time.monotonic() + 5
    while proxy.passed.get("put", 0) == 0:
        assert time.monotonic() < ends
        try:
            put(through, proxy, key)
        except BROKEN:
            time.sleep(0.05)
    assert stored(server, key) == BODY


def test_a_fault_strikes_the_calls_and_keys_it_names_as_often_as_it_says(server, proxy, through, key):
    proxy.set_faults(S3Fault("error_500", call="put", key=r"/date=.*\.avro$", next_n=2))
    put(through, proxy, f"{key}.json")
    for _ in range(2):
        with pytest.raises(ClientError):
            put(through, proxy, key)
    put(through, proxy, key)
    through.head_object(Bucket=server.bucket, Key=key)
    assert proxy.struck == {("error_500", "put"): 2}


def test_chance_is_seeded(server, key):
    def struck(seed):
        with running_s3_proxy(server, seed=seed) as proxy:
            proxy.set_faults(S3Fault("error_500", probability=0.5))
            client = proxy.s3.client(retries={"total_max_attempts": 1})
            for _ in range(20):
                with pytest.raises(ClientError):  # 404 without a fault
                    client.head_object(Bucket=server.bucket, Key=key)
            return [one.outcome for one in proxy.requests()]

    assert struck(1) == struck(1) != struck(2)
    assert {"500", "error_500", "404"} & set(struck(1)) == {"error_500", "404"}


def test_an_unknown_kind_is_an_error_that_names_the_kinds():
    with pytest.raises(ValueError, match="lose_answer"):
        S3Fault("lose_everything")
    assert set(KINDS) >= AFTERWARDS
