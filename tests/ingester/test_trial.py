"""What `check` finds when one thing is not as the service needs it; everything else is good meanwhile."""

import asyncio
import errno
import http.server
import socket
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from ingester import disk, trial
from ingester.errors import NeedsOperator, Transient
from ingester.trial import Outcome
from schemas.keys import LakeKeys
from schemas.settings import Health, Settings, Spool
from tests.ingester.simulation import MemoryStore, SimulatedX, VirtualClock

KEYS = LakeKeys("some/where/")
S3_SUBJECTS = [
    "s3 list raw/",
    "s3 read raw/",
    "s3 write raw/",
    "s3 list control/",
    "s3 write control/",
    "s3 read control/",
    "s3 replace control/",
    "s3 delete control/",
]
IN_WORDS = {
    ("list", "raw/"): "s3 list raw/",
    ("head", "raw/check"): "s3 read raw/",
    ("put", "raw/check"): "s3 write raw/",
    ("list", "control/"): "s3 list control/",
    ("replace", "control/check"): "s3 write control/",
    ("delete", "control/check"): "s3 delete control/",
}


async def found_in_s3(store):
    return [finding async for finding in trial.try_s3(store, KEYS, "s3")]


async def found_in_x(x):
    async def find():
        return [finding async for finding in trial.try_x(x)]

    finding = asyncio.ensure_future(find())
    await x.clock.drive(10, finding.done)
    return await finding


# S3.


async def test_every_call_of_the_service_is_tried_below_the_prefix_and_nothing_stays():
    store = MemoryStore()
    asked = Counter()
    store.faults.append(lambda verb, key: asked.update([verb]) or (None if key.startswith("some/where/") else 1 / 0))
    found = await found_in_s3(store)
    assert [finding.subject for finding in found] == S3_SUBJECTS
    assert {finding.outcome for finding in found} == {Outcome.GOOD}
    assert store.objects == {}
    assert set(asked) == {"list", "head", "put", "replace", "read", "delete"}


@pytest.mark.parametrize(("verb", "below"), IN_WORDS)
async def test_a_right_that_is_missing_is_named_alone(verb, below):
    store = MemoryStore()
    denied = NeedsOperator("403 AccessDenied: these credentials may not do that; grant s3:Something")
    store.faults.append(lambda did, key: denied if did == verb and f"where/{below}" in key else None)
    found = await found_in_s3(store)
    bad = [finding for finding in found if finding.outcome is Outcome.BAD]
    assert [finding.subject for finding in bad] == [IN_WORDS[verb, below]]
    assert "grant s3:Something" in bad[0].what
    assert bad[0].fix


@pytest.mark.parametrize(
    "error",
    [
        NeedsOperator("404 NoSuchBucket: lake.bucket does not exist there"),
        Transient("the connection was refused"),
        NeedsOperator("no AWS credentials were found"),
    ],
)
async def test_a_bucket_that_cannot_be_had_is_told_once(error):
    store = MemoryStore(faults=[lambda _verb, _key: error])
    (finding,) = await found_in_s3(store)
    assert finding.outcome is Outcome.BAD
    assert str(error) in finding.what


async def test_a_server_that_takes_a_wrong_checksum_is_told_of_and_left_clean():
    class Careless(MemoryStore):
        async def put_new(self, key, file, sha256, metadata):
            self.objects[key] = (file.read_bytes(), dict(metadata))

    store = Careless()
    found = {finding.subject: finding for finding in await found_in_s3(store)}
    assert found["s3 write raw/"].outcome is Outcome.NOTE
    assert "does not notice damage" in found["s3 write raw/"].what
    assert store.objects == {}


async def test_a_server_without_conditional_writes_is_refused():
    class Careless(MemoryStore):
        async def replace(self, key, content, *, etag):
            self.objects[key] = (content, {})
            return "etag"

    found = {finding.subject: finding for finding in await found_in_s3(Careless())}
    assert found["s3 replace control/"].outcome is Outcome.BAD
    assert "If-Match" in found["s3 replace control/"].what


# X and the clock.


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def x(clock):
    return SimulatedX(clock)


async def test_good_credentials_and_a_good_clock_cost_nothing(x):
    found = await found_in_x(x)
    assert [(finding.subject, finding.outcome) for finding in found] == [
        ("x credentials", Outcome.GOOD),
        ("clock", Outcome.GOOD),
    ]
    assert not x.requests  # no search


@pytest.mark.parametrize(
    ("status", "outcome", "word"),
    [
        (401, Outcome.BAD, "token"),
        (402, Outcome.BAD, "credits"),
        (403, Outcome.BAD, "app"),
        (429, Outcome.NOTE, "passes"),
        (503, Outcome.BAD, "again"),
    ],
)
async def test_what_x_answers_is_told_with_its_fix(x, status, outcome, word):
    x.usage_answer = lambda: x.answer(status, {"title": "told by X"})
    first = (await found_in_x(x))[0]
    assert first.outcome is outcome
    assert word in first.fix
    assert status == 429 or "told by X" in first.what


async def test_x_that_cannot_be_reached_is_one_finding(x):
    def no_answer():
        raise Transient("no route")

    x.usage_answer = no_answer
    (finding,) = await found_in_x(x)
    assert finding.outcome is Outcome.BAD
    assert "no route" in finding.what


@pytest.mark.parametrize(
    ("off", "outcome"), [(1, Outcome.GOOD), (-30, Outcome.NOTE), (30, Outcome.NOTE), (-1_000, Outcome.BAD)]
)
async def test_a_clock_that_is_off_is_told_with_its_sign(x, clock, off, outcome):
    clock.offset = timedelta(seconds=off)
    found = (await found_in_x(x))[1]
    assert found.outcome is outcome
    if outcome is not Outcome.GOOD:
        assert ("-" if off < 0 else "+") in found.what
        assert "synchronisation" in found.fix


# The caps.


def caps(query=None, **budget):
    settings = {"lake": {"bucket": "lake"}, "query": [{"name": "q", "rule": "r", **(query or {})}], "budget": budget}
    return {finding.subject: finding for finding in trial.try_caps(Settings(**settings))}


@pytest.mark.parametrize(
    ("changes", "subject", "fix"),
    [
        ({"usd_per_month": 0.49}, "budget.usd_per_month", "$0.5 at least"),
        ({"usd_per_day": 0.1}, "budget.usd_per_day", "$0.5 at least"),
        ({"posts_per_day": 9}, "budget.posts_per_day", "10 posts at least"),
        ({"query": {"usd_per_month": 0.3}}, "query q.usd_per_month", "$0.5 at least"),
    ],
)
def test_a_cap_that_no_page_fits_is_bad(changes, subject, fix):
    found = caps(**changes)
    assert [finding.outcome for finding in found.values()] == [Outcome.BAD]
    assert fix in found[subject].fix


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"usd_per_day": 60}, "budget.usd_per_day"),
        ({"posts_per_day": 60, "posts_per_month": 50}, "budget.posts_per_day"),
        ({"query": {"usd_per_day": 6, "usd_per_month": 5}}, "query q.usd_per_day"),
    ],
)
def test_a_day_that_may_cost_more_than_its_month_is_noted(changes, subject):
    found = caps(**changes)
    assert {name: finding.outcome for name, finding in found.items()} == {subject: Outcome.NOTE}


def test_caps_that_a_page_fits_are_no_finding():
    assert not caps(usd_per_month=0.5, usd_per_day=0.5, posts_per_day=10, query={"usd_per_day": 0.5})


# This machine.


def test_a_spool_that_can_be_written_is_left_as_it_was(tmp_path):
    (finding,) = trial.try_spool(Spool(directory=tmp_path / "a" / "spool", min_free_bytes=0, max_bytes=1_000_000))
    assert finding.outcome is Outcome.GOOD
    assert "will be made" in finding.what
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_cannot_be_written_is_bad(tmp_path, monkeypatch):
    def refuse(path, content):
        path.write_bytes(content)
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(trial, "write_durably", refuse)
    (finding,) = trial.try_spool(Spool(directory=tmp_path))
    assert finding.outcome is Outcome.BAD
    assert "Read-only" in finding.what
    assert "spool.directory" in finding.fix
    assert list(tmp_path.iterdir()) == []
    assert disk.write_durably is not refuse


@pytest.mark.parametrize("below", ["", "spool"])
def test_a_spool_that_names_a_file_is_bad_with_a_fix_that_fits(tmp_path, below):
    (tmp_path / "file").write_text("")
    (finding,) = trial.try_spool(Spool(directory=tmp_path / "file" / below))
    assert finding.outcome is Outcome.BAD
    assert f"{tmp_path / 'file'} is a file" in finding.what
    assert "name a folder by spool.directory" in finding.fix


def test_a_spool_where_this_user_may_not_look_is_bad(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    (finding,) = trial.try_spool(Spool(directory=tmp_path))
    assert finding.outcome is Outcome.BAD
    assert "user of the service" in finding.fix


@pytest.mark.parametrize(
    ("least", "most", "outcome", "setting"),
    [(1 << 60, 1_000_000, Outcome.BAD, "spool.min_free_bytes"), (0, 1 << 60, Outcome.NOTE, "spool.max_bytes")],
)
def test_too_little_room_is_told_with_its_setting(tmp_path, least, most, outcome, setting):
    (finding,) = trial.try_spool(Spool(directory=tmp_path, min_free_bytes=least, max_bytes=most))
    assert finding.outcome is outcome
    assert setting in finding.what + finding.fix


def test_a_port_is_free_or_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = trial.try_port(Health(port=port))
        assert taken.outcome is Outcome.BAD
        assert "health.port" in taken.fix
    assert trial.try_port(Health(port=0)).outcome is Outcome.GOOD


class Service(http.server.BaseHTTPRequestHandler):
    """As a running service answers, to whom has the token."""

    def do_GET(self):
        allowed = self.path == "/livez" or self.headers.get("Authorization") == "Bearer right"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(b'{"spool": {"id": "0123abcd"}}' if allowed else b"{}")

    def log_message(self, *args):
        pass


@pytest.fixture
def service():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Health(port=server.server_port)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("ours", "token", "outcome", "word"),
    [
        ("0123abcd", "right", Outcome.GOOD, "the running service answers"),
        ("ffffffff", "right", Outcome.BAD, "another service answers there, with the spool 0123abcd"),
        ("", "right", Outcome.BAD, "another service"),
        (None, "right", Outcome.NOTE, "could not be told"),
        ("0123abcd", "wrong", Outcome.NOTE, "could not be told"),
    ],
)
def test_a_service_on_the_port_is_ours_only_with_our_spool(service, ours, token, outcome, word):
    found = trial.try_port(service, ours, token)
    assert found.outcome is outcome
    assert word in found.what
    assert outcome is Outcome.GOOD or "choose another health.port" in found.fix


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (OSError(errno.EADDRINUSE, "error while attempting to bind on address ('::1', 1)"), "taken"),
        (PermissionError(errno.EACCES, "error while attempting"), "this user"),
        (OSError(errno.EADDRNOTAVAIL, "error while attempting"), "no address of this machine"),
        (socket.gaierror(-2, "Name or service not known"), "no address of this machine"),
    ],
)
def test_why_nobody_can_listen_there_is_a_sentence_of_ours(error, word):
    what, fix = trial.why_not_listening(Health(), error)
    assert word in what
    assert "attempting" not in what
    assert "health." in fix
