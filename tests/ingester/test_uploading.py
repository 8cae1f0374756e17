"""Shipping through the real adapter, to SeaweedFS behind a proxy that refuses, breaks and changes: design section 6, row by row."""

import asyncio
import errno
import hashlib
import random
import shutil
from datetime import UTC, datetime, timedelta
from functools import cache
from io import BytesIO

import fastavro
import pytest
from aiohttp import web

from ingester import s3 as adapter
from ingester.errors import ChecksumRefused, NeedsOperator, Transient
from ingester.journal import Journal
from ingester.ports import Destination
from ingester.retry import Backoff
from ingester.s3 import S3
from ingester.spool import Spool
from ingester.telemetry import Telemetry
from ingester.uploader import PROBE_SECONDS, Uploader
from sandbox.s3 import running_s3
from sandbox.s3_faults import S3Fault, running_s3_proxy
from schemas.keys import LakeKeys, MicrobatchName, RawHour
from schemas.settings import Lake
from schemas.state import State, fold
from tests.ingester.simulation import MemoryStore, SimulatedX, VirtualClock, live, settings, stored_ids

AT = datetime(2026, 11, 20, 13, 5, tzinfo=UTC)
IN_TROUBLE = ("conflict_409", "error_500", "slow_down_503", "reset", "reset_in_request", "hang", "flip_request")
REFUSED = {"denied_403": "s3:PutObject", "expired_400": "expired", "no_bucket_404": "lake.bucket"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_s3(tmp_path_factory.mktemp("s3"), kind="seaweedfs") as s3:
        yield s3


@pytest.fixture
def proxy(server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    monkeypatch.setattr(adapter, "READ_TIMEOUT", 1.0)
    with running_s3_proxy(server) as between:
        yield between


@pytest.fixture
def lake(proxy, tmp_path):
    return Lake(bucket=proxy.s3.bucket, endpoint_url=proxy.s3.endpoint_url, prefix=tmp_path.name.replace("_", "-"))


@pytest.fixture
def store(lake):
    return S3(lake)


class HastyClock:
    """Waits for nothing and remembers how long it should have."""

    def __init__(self):
        self.waits = []

    def now(self):
        return AT + timedelta(seconds=len(self.waits))

    def monotonic(self):
        return float(len(self.waits))

    async def sleep(self, seconds):
        self.waits.append(seconds)
        await asyncio.sleep(0)


def page(index):
    body = random.Random(index).randbytes(900)
    since = 10_000 * index
    return {
        "kind": "page", "at": AT, "received_at": AT, "query": "q", "rule": "r", "reason": "live", "since_id": since,
        "until_id": since + 10_001, "asked_below": since + 10_001, "oldest_id": since + 5, "newest_id": since + 900,
        "is_last": True, "page_index": 0, "body": body, "body_sha256": hashlib.sha256(body).hexdigest(),
    }  # fmt: skip


def written(directory, records, *, sequence=1, state=None, codec="zstandard", spool_id="0123abcd"):
    """A spool whose open microbatch holds these records."""
    spool = Spool(directory, codec=codec, new_id=lambda: spool_id)
    spool.acquire()
    spool.recover()
    spool.open_microbatch(MicrobatchName(sequence, RawHour.of(AT), spool.spool_id), state or State())
    for record in records:
        spool.append(record)
    return spool


@pytest.fixture
def spool(tmp_path):
    """Three sealed microbatches of three pages each."""
    made, state = None, State()
    for sequence in (1, 2, 3):
        records = [page(3 * sequence + index) for index in range(3)]
        if made is not None:
            made.release()
        made = written(tmp_path / "spool", records, sequence=sequence, state=state)
        made.seal()
        state = fold(state, records)
    yield made
    made.release()


def uploader_of(spool, stores, lake, clock=None, backoff=None):
    clock, telemetry = clock or HastyClock(), Telemetry()
    newest = spool.newest(lambda *_what: None)
    journal = Journal(
        spool, clock, telemetry, state=newest.state, next_sequence=newest.name.sequence + 1, seal_after_seconds=60,
        seal_after_bytes=10**7, max_bytes=10**9, min_free_bytes=0,
    )  # fmt: skip
    if not callable(stores):
        stores = {Destination.of(lake): stores}.__getitem__
    uploader = Uploader(spool, stores, Destination.of(lake), journal, clock, telemetry, backoff=backoff)
    return uploader, clock, telemetry


async def shipped_all(uploader):
    async with asyncio.timeout(60):
        loop = asyncio.ensure_future(uploader.run())
        finish = asyncio.ensure_future(uploader.finish())
        await asyncio.wait({loop, finish}, return_when=asyncio.FIRST_COMPLETED)
        if loop.done():
            loop.result()
        loop.cancel()


def keys_of(lake, names):
    return [LakeKeys(lake.prefix).microbatch(name) for name in names]


def put_keys(proxy):
    """The keys of the PUTs, each told once, in their order."""
    return list(dict.fromkeys(asked.key for asked in proxy.requests("put")))


def told(telemetry, event):
    found = (problem for problem in telemetry.problems if problem.event == event)
    return [problem.detail for problem in found for _ in range(problem.times)]


async def test_what_is_stored_is_forgotten_but_for_the_newest_and_carries_what_is_known_of_it(
    spool, store, lake, server
):
    names = spool.waiting()
    described = [spool.describe(name) for name in names]
    uploader, clock, telemetry = uploader_of(spool, store, lake)
    await shipped_all(uploader)
    assert (spool.waiting(), spool.names("shipped")) == ([], names[-1:])
    for sealed, key in zip(described, keys_of(lake, names), strict=True):
        found = server.client().get_object(Bucket=lake.bucket, Key=key, ChecksumMode="ENABLED")
        assert hashlib.sha256(found["Body"].read()).hexdigest() == sealed.sha256 == found["Metadata"]["sha256"]
        assert found["Metadata"]["sequence"] == str(sealed.name.sequence)
    assert (clock.waits, list(telemetry.problems), uploader.last_problem) == ([], [], None)


@pytest.mark.parametrize("kind", IN_TROUBLE)
async def test_trouble_is_waited_out_and_everything_arrives_in_order(spool, store, lake, proxy, kind):
    names = spool.waiting()
    proxy.set_faults(S3Fault(kind, call="put", next_n=4, seconds=1.0))
    uploader, clock, telemetry = uploader_of(spool, store, lake)
    await shipped_all(uploader)
    assert proxy.struck == {(kind, "put"): 4}
    assert len(proxy.requests("put")) == 4 + 3, "one layer of retries: an attempt is one request"
    assert put_keys(proxy) == keys_of(lake, names)
    assert await store.list_keys(lake.prefix) == keys_of(lake, names)
    assert len(told(telemetry, "upload_failed")) == len(clock.waits) == 4
    assert spool.count("quarantine") == 0
    assert uploader.last_problem is None


async def test_it_never_gives_up_and_its_waits_grow_to_a_cap_and_differ(spool, store, lake, proxy):
    proxy.set_faults(S3Fault("slow_down_503", call="put", next_n=60))
    uploader, clock, _ = uploader_of(spool, store, lake)
    await shipped_all(uploader)
    for count, wait in enumerate(clock.waits):
        bound = min(60.0, 0.5 * 2**count)
        assert 0.1 * bound <= wait <= bound
    assert max(clock.waits) > 40
    assert len(set(clock.waits)) == 60


async def test_a_success_ends_the_back_off(spool, store, lake, proxy):
    first, second, _ = keys_of(lake, spool.waiting())
    proxy.set_faults(S3Fault("error_500", key=first, next_n=5), S3Fault("error_500", key=second, next_n=1))
    uploader, clock, _ = uploader_of(spool, store, lake, backoff=Backoff(0.5, 60.0, chance=lambda: 1.0))
    await shipped_all(uploader)
    assert clock.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 0.5]


@pytest.mark.parametrize("kind", REFUSED)
async def test_a_refusal_pauses_with_its_reason_keeps_everything_and_is_probed(spool, store, lake, proxy, kind):
    names = spool.waiting()
    proxy.set_faults(S3Fault(kind, call="put", next_n=3))
    uploader, clock, telemetry = uploader_of(spool, store, lake)
    held = []
    problems = telemetry.problems
    telemetry.problems = type(
        "Told", (type(problems),), {"append": lambda self, one: held.append((one, spool.waiting()))}
    )()
    await shipped_all(uploader)
    assert clock.waits == [PROBE_SECONDS] * 3
    assert [problem.event for problem, _ in held] == ["upload_paused"] * 3
    assert all(REFUSED[kind] in problem.detail and waiting == names for problem, waiting in held)
    assert put_keys(proxy) == keys_of(lake, names)


async def test_an_answer_that_was_lost_is_success(spool, store, lake, proxy):
    proxy.set_faults(S3Fault("lose_answer", call="put", next_n=2))
    uploader, clock, _ = uploader_of(spool, store, lake)
    await shipped_all(uploader)
    assert proxy.struck == {("lose_answer", "put"): 2}
    assert spool.count("quarantine") == 0
    assert len(clock.waits) == 2
    assert len(await store.list_keys(lake.prefix)) == 3


@pytest.mark.parametrize("more", [0, 2], ids=["the same pages", "S3 has a longer one"])
async def test_a_restored_disk_that_sealed_its_pages_anew_has_nothing_to_add(tmp_path, store, lake, more):
    """The same open file, sealed twice to other bytes; or copied, then gone on with, shipped, and the copy restored."""
    original = written(tmp_path / "original", [page(index) for index in range(4)])
    original.release()
    shutil.copytree(tmp_path / "original", tmp_path / "restored")
    name = MicrobatchName(1, RawHour.of(AT), "0123abcd")
    original = Spool(tmp_path / "original", codec="deflate")
    original.acquire()
    if more:
        (original.file(name, "open")).unlink()
        original = reopened(original, [page(index) for index in range(4 + more)])
    original.recover()
    restored = Spool(tmp_path / "restored")
    restored.acquire()
    restored.recover()
    assert original.describe(name).sha256 != restored.describe(name).sha256
    for spool in (original, restored):
        uploader, _, telemetry = uploader_of(spool, store, lake)
        await shipped_all(uploader)
        assert (spool.waiting(), spool.names("quarantine"), list(telemetry.problems)) == ([], [], [])
        spool.release()


def reopened(spool, records):
    spool.release()
    made = written(spool._directory, records, codec="deflate")
    made.release()
    made = Spool(spool._directory, codec="deflate")
    made.acquire()
    return made


async def test_a_restored_disk_with_pages_that_s3_does_not_have_is_told_and_kept(tmp_path, store, lake):
    for directory, indices in (("shorter", range(3)), ("longer", range(5))):
        spool = written(tmp_path / directory, [page(index) for index in indices])
        spool.seal()
        uploader, _, telemetry = uploader_of(spool, store, lake)
        await shipped_all(uploader)
        spool.release()
    assert spool.count("quarantine") == 1
    assert "holds other content" in told(telemetry, "quarantined")[0]


async def test_other_content_under_its_key_is_told_and_kept(spool, store, lake, server):
    names = spool.waiting()
    key = keys_of(lake, names)[1]
    server.client().put_object(Bucket=lake.bucket, Key=key, Body=b"somebody else's", Metadata={"sha256": "0" * 64})
    uploader, _, telemetry = uploader_of(spool, store, lake)
    await shipped_all(uploader)
    assert (spool.names("quarantine"), spool.names("shipped")) == (names[1:2], names[2:])
    assert await store.get(key) == b"somebody else's", "nothing is ever overwritten"
    assert len(told(telemetry, "quarantined")) == 1


async def test_a_file_that_is_not_what_was_sealed_is_found_by_s3s_checksum_and_kept(spool, store, lake):
    names = spool.waiting()
    file = spool.sealed_file(names[1])
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    uploader, _, telemetry = uploader_of(spool, store, lake)
    await shipped_all(uploader)
    assert (spool.names("quarantine"), spool.names("shipped")) == (names[1:2], names[2:])
    assert await store.list_keys(lake.prefix) == keys_of(lake, [names[0], names[2]])
    assert "not what was sealed" in told(telemetry, "quarantined")[0]


async def test_a_file_damaged_after_s3_had_it_is_success_also_where_the_checksum_is_looked_at_first(spool, lake):
    names, store = spool.waiting(), MemoryStore()
    sealed = spool.describe(names[0])
    key = keys_of(lake, names)[0]
    store.objects[key] = (spool.sealed_file(names[0]).read_bytes(), sealed.metadata)
    spool.sealed_file(names[0]).write_bytes(b"?")
    store.faults.append(lambda verb, of: ChecksumRefused(of) if (verb, of) == ("put", key) else None)
    uploader, _, telemetry = uploader_of(spool, store, lake)
    await shipped_all(uploader)
    assert (spool.names("quarantine"), list(telemetry.problems)) == ([], [])


async def test_a_forbidden_look_at_what_lies_there_pauses_and_names_the_right_it_needs(spool, store, lake, proxy):
    names = spool.waiting()
    proxy.set_faults(S3Fault("lose_answer", call="put", next_n=1), S3Fault("denied_403", call="head", next_n=2))
    uploader, clock, telemetry = uploader_of(spool, store, lake)
    await shipped_all(uploader)
    assert clock.waits[1:] == [PROBE_SECONDS] * 2
    assert all("s3:GetObject" in detail for detail in told(telemetry, "upload_paused"))
    assert spool.names("shipped") == names[-1:]


async def test_a_refusal_whose_explanation_is_cut_off_is_passing_trouble(store, proxy):
    proxy.set_faults(S3Fault("reset_in_answer", call="get", next_n=1))
    with pytest.raises(Transient, match="no-such-key"):
        await store.read("no-such-key")
    assert proxy.struck == {("reset_in_answer", "get"): 1}
    assert await store.read("no-such-key") is None


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        *((call, kind) for call in ("head", "get") for kind in ("error_500", "reset", "hang")),
        ("get", "reset_in_answer"),
    ],
)
async def test_trouble_while_comparing_is_waited_out_too(tmp_path, store, lake, proxy, call, kind):
    for codec in ("deflate", "zstandard"):
        spool = written(tmp_path / codec, [page(1)], codec=codec)
        spool.seal()
        if codec == "zstandard":
            proxy.set_faults(S3Fault(kind, call=call, next_n=2, seconds=1.0))
        uploader, clock, _ = uploader_of(spool, store, lake)
        await shipped_all(uploader)
        spool.release()
    assert proxy.struck == {(kind, call): 2}
    assert len(clock.waits) == 2
    assert spool.count("quarantine") == 0


async def test_no_room_to_set_a_file_aside_is_waited_out(spool, store, lake, monkeypatch):
    name = spool.waiting()[0]
    spool.sealed_file(name).write_bytes(b"?")
    real, failures = spool.set_aside, []

    def full(*what):
        if len(failures) < 2:
            failures.append(what)
            monkeypatch.setattr("ingester.spool.write_durably", no_room)
        else:
            monkeypatch.undo()
        real(*what)

    def no_room(*_what):
        raise OSError(errno.ENOSPC, "No space left on device")

    uploader, clock, telemetry = uploader_of(spool, store, lake)
    spool.set_aside = full
    await shipped_all(uploader)
    assert (len(clock.waits), spool.names("quarantine")) == (2, [name])
    assert "no room" in told(telemetry, "upload_failed")[0]


# Every answer there is, from a server that gives just that one.


@pytest.fixture
async def refusing(monkeypatch):
    """A server that answers everything with one status and code; set it by calling."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    answer = {}

    async def serve(request):
        await request.read()
        body = f"<Error><Code>{answer['code']}</Code><Message>so it is</Message></Error>"
        return web.Response(status=answer["status"], text=body, content_type="application/xml")

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"

    def set_to(status, code):
        answer.update(status=status, code=code)
        return S3(Lake(bucket="lake", endpoint_url=endpoint))

    yield set_to
    await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "RequestTimeout", Transient),
        (403, "RequestTimeTooSkewed", Transient),
        (409, "ConditionalRequestConflict", Transient),
        (409, "OperationAborted", Transient),
        (429, "TooManyRequests", Transient),
        (500, "InternalError", Transient),
        (501, "NotImplemented", Transient),
        (502, "BadGateway", Transient),
        (503, "SlowDown", Transient),
        (503, "ServiceUnavailable", Transient),
        (504, "GatewayTimeout", Transient),
        (400, "ExpiredToken", NeedsOperator),
        (400, "InvalidRequest", NeedsOperator),
        (400, "EntityTooLarge", NeedsOperator),
        (401, "Unauthorized", NeedsOperator),
        (403, "AccessDenied", NeedsOperator),
        (403, "InvalidAccessKeyId", NeedsOperator),
        (403, "SignatureDoesNotMatch", NeedsOperator),
        (403, "AccountProblem", NeedsOperator),
        (404, "NoSuchBucket", NeedsOperator),
        (405, "MethodNotAllowed", NeedsOperator),
        (451, "SomethingNew", NeedsOperator),
    ],
)
async def test_what_each_refusal_means(refusing, tmp_path, status, code, expected):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    with pytest.raises(expected, match=rf"s3://lake/key: {status} {code}"):
        await refusing(status, code).put_new("key", file, hashlib.sha256(b"content").hexdigest(), {})


@pytest.mark.parametrize(
    ("call", "right"),
    [
        (lambda s3, file: s3.put_new("key", file, "0" * 64, {}), "s3:PutObject"),
        (lambda s3, _file: s3.head("key"), "s3:GetObject"),
        (lambda s3, _file: s3.get("key"), "s3:GetObject"),
        (lambda s3, _file: s3.read("key"), "s3:GetObject"),
        (lambda s3, _file: s3.list_keys("raw/"), "s3:ListBucket"),
        (lambda s3, _file: s3.replace("key", b"", etag=None), "s3:PutObject"),
        (lambda s3, _file: s3.delete("key"), "s3:DeleteObject"),
    ],
    ids=["put_new", "head", "get", "read", "list_keys", "replace", "delete"],
)
async def test_a_refused_right_is_named(refusing, tmp_path, call, right):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    with pytest.raises(NeedsOperator, match=right):
        await call(refusing(403, "AccessDenied"), file)


# Credentials that rotate.


async def test_credentials_renewed_in_their_file_are_found_by_the_next_probe(
    spool, lake, server, tmp_path, monkeypatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    shared = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))

    def write(secret):
        shared.write_text(f"[default]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {secret}\n")

    class Renewing(HastyClock):
        async def sleep(self, seconds):
            await super().sleep(seconds)
            if len(self.waits) == 2:
                write(server.secret_key)

    write("wrong")
    uploader, clock, telemetry = uploader_of(spool, S3(lake), lake, clock=Renewing())
    await shipped_all(uploader)
    assert clock.waits == [PROBE_SECONDS] * 2
    assert all("403" in detail for detail in told(telemetry, "upload_paused"))
    assert spool.waiting() == []


async def test_credentials_that_appear_are_found_by_the_next_probe(spool, lake, server, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))

    class Given(HastyClock):
        async def sleep(self, seconds):
            await super().sleep(seconds)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)

    uploader, clock, telemetry = uploader_of(spool, S3(lake), lake, clock=Given())
    await shipped_all(uploader)
    assert clock.waits == [PROBE_SECONDS]
    assert "no AWS credentials" in told(telemetry, "upload_paused")[0]


# Settings that changed.


async def test_after_a_change_of_settings_each_goes_to_the_lake_it_was_opened_for_in_order(
    lake, proxy, server, tmp_path
):
    client = server.client()
    client.create_bucket(Bucket="another-lake")
    for bucket in (
        lake.bucket,
        "another-lake",
    ):  # the server makes room for a bucket at its first object: that takes time
        client.put_object(Bucket=bucket, Key=f"{lake.prefix}warm", Body=b"")
    endpoint = proxy.s3.endpoint_url
    lakes = [
        lake,
        Lake(bucket="another-lake", endpoint_url=endpoint),
        Lake(bucket="another-lake", endpoint_url=endpoint, prefix=lake.prefix),
        None,
    ]
    state = State()
    for sequence, belongs in enumerate(lakes, start=1):
        records = [page(sequence)]
        spool = Spool(tmp_path / "spool", destination=belongs and Destination.of(belongs), new_id=lambda: "0123abcd")
        spool.acquire()
        spool.open_microbatch(MicrobatchName(sequence, RawHour.of(AT), spool.spool_id), state)
        spool.append(records[0])
        if sequence != 2:
            spool.seal()
        spool.release()
        spool = Spool(tmp_path / "spool")  # under yet other settings
        spool.acquire()
        spool.recover()
        spool.release()
        state = fold(state, records)
    spool.acquire()
    names = spool.waiting()
    home = lake.model_copy(update={"prefix": f"{lake.prefix}home/"})
    uploader, _, telemetry = uploader_of(spool, cache(S3), home)
    await shipped_all(uploader)
    spool.release()
    assert list(telemetry.problems) == []
    belong = [*lakes[:3], home]
    expected = [LakeKeys(one.prefix).microbatch(name) for one, name in zip(belong, names, strict=True)]
    assert [asked.key for asked in proxy.requests("put")] == expected
    for one, key in zip(belong, expected, strict=True):
        assert await S3(one).head(key) is not None


class Lakes(MemoryStore):
    """S3 with several buckets."""

    def __init__(self):
        super().__init__()
        self.by_destination = {}

    def of(self, destination):
        return self.by_destination.setdefault((destination.bucket, destination.prefix), MemoryStore(faults=self.faults))


async def test_a_service_with_other_settings_ships_old_files_to_the_old_lake_and_new_ones_to_the_new(tmp_path):
    clock, lakes = VirtualClock(), Lakes()
    x = SimulatedX(clock)
    lakes.faults.append(lambda verb, _key: Transient("503") if verb == "put" and clock.seconds < 400 else None)
    first = await live(settings(tmp_path), clock, x, lakes, seconds=200)
    old = set(first.spool.waiting())
    assert len(old) >= 3
    changed = settings(tmp_path, lake={"bucket": "new-lake", "prefix": "tweets/"})
    run = await live(changed, clock, x, lakes, seconds=600)
    assert set(lakes.by_destination) == {("lake-bucket", ""), ("new-lake", "tweets/")}
    one, other = lakes.by_destination["lake-bucket", ""], lakes.by_destination["new-lake", "tweets/"]
    assert set(one.microbatches()) == old
    assert min(other.microbatches()) > max(old)
    records = [
        record for key in other.objects if "raw/" in key for record in fastavro.reader(BytesIO(other.objects[key][0]))
    ]
    state = run.service._work.journal.state.queries["one"]
    stored = stored_ids(one.records()) + stored_ids(records)
    assert sorted(stored) == x.existing(state.start_id, state.frontier_id), "once, in one of the two"


async def test_a_disk_restored_from_a_snapshot_adds_nothing_pays_nothing_and_goes_on_from_the_later_state(tmp_path):
    clock, store = VirtualClock(), MemoryStore()
    x, configured = SimulatedX(clock), settings(tmp_path)
    store.faults.append(lambda verb, _key: Transient("503") if verb == "put" and clock.seconds < 300 else None)
    await live(configured, clock, x, store, seconds=250, crash=True)
    shutil.copytree(tmp_path / "spool", tmp_path / "snapshot")
    assert len(list((tmp_path / "snapshot/sealed").iterdir())) >= 6
    assert len(list((tmp_path / "snapshot/open").iterdir())) == 1
    await live(configured, clock, x, store, seconds=300)
    shutil.rmtree(tmp_path / "spool")
    (tmp_path / "snapshot").rename(tmp_path / "spool")
    run = await live(configured, clock, x, store, seconds=200)
    state = run.service._work.journal.state.queries["one"]
    assert sorted(stored_ids(store.records())) == sorted(x.served) == x.existing(state.start_id, state.frontier_id)
    assert (run.spool.waiting(), run.spool.names("quarantine")) == ([], [])
