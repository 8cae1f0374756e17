"""Who hangs and who only waits: the pulse by itself, and of a whole service in virtual time, by what systemd hears."""

import asyncio
from pathlib import Path

import pytest

from ingester import service as service_module
from ingester.errors import SpoolFull, Transient
from ingester.journal import Journal
from ingester.lease import Claim
from ingester.notify import Notifier
from ingester.pulse import FOR_EVER, PATIENCE_SECONDS, Pulse
from ingester.spool import Spool
from ingester.uploader import Uploader
from ingester.windows import Windows
from schemas.keys import LakeKeys
from tests.ingester.simulation import MemoryStore, Run, SimulatedX, VirtualClock, settings

DAY = 86_400.0
AN_HOUR = 4_000.0


@pytest.fixture
def pulse():
    return Pulse(VirtualClock(), patience_seconds=60.0)


def after(pulse, seconds):
    pulse._clock.seconds += seconds
    return pulse.late()


def test_a_loop_that_is_not_heard_in_time_is_late_until_it_is_heard_again(pulse):
    beat = pulse.expect("one")
    assert after(pulse, 60.0) == {}
    assert after(pulse, 1.0) == {"one": 61.0}
    beat()
    assert after(pulse, 60.0) == {}


def test_a_loop_may_be_given_less_time(pulse):
    pulse.expect("one", within_seconds=5.0)
    assert after(pulse, 6.0) == {"one": 6.0}


def test_a_wait_that_was_announced_is_no_standstill_and_its_end_is_waited_for(pulse):
    pulse.expect("one")(wait=900.0)
    pulse.expect("two")(FOR_EVER)
    assert after(pulse, 960.0) == {}
    assert after(pulse, 1.0) == {"one": 961.0}
    assert after(pulse, 100 * DAY).keys() == {"one"}


def test_one_excuse_holds_for_all_and_takes_nothing_from_who_waits_longer(pulse):
    pulse.expect("one")
    pulse.expect("two")(FOR_EVER)
    after(pulse, 59.0)
    pulse.excuse(5.0)
    assert after(pulse, 65.0) == {}
    assert after(pulse, 1.0).keys() == {"one"}


def test_who_has_ended_is_not_waited_for_also_if_it_is_heard_once_more(pulse):
    beat = pulse.expect("one")
    pulse.forget("one")
    beat()
    assert after(pulse, DAY) == {}
    pulse.forget("one")


# A whole service.


class Listened(Notifier):
    """Keeps what systemd would hear."""

    def __init__(self) -> None:
        super().__init__("@unused", watchdog_seconds=60.0)
        self.heard: list[str] = []

    def _tell(self, state: str) -> None:
        self.heard.append(state)


class Watched:
    """A service under a systemd that listens, in virtual time."""

    def __init__(self, directory: Path, **changes) -> None:
        self.clock = VirtualClock()
        self.x, self.store = SimulatedX(self.clock), MemoryStore()
        self.configured = settings(directory, **changes)

    def begin(self) -> None:
        self.run = Run(self.configured, self.clock, self.x, self.store)
        self.notifier = self.run.service._notifier = Listened()

    async def hears_in(self, seconds: float) -> list[str]:
        self.notifier.heard.clear()
        await self.clock.drive(self.clock.seconds + seconds, self.run.task.done)
        assert not self.run.task.done()
        return list(self.notifier.heard)


@pytest.fixture
async def watched(tmp_path):
    made = []

    def make(**changes):
        made.append(Watched(tmp_path, **changes))
        return made[-1]

    yield make
    for each in made:
        await each.run.die()


async def test_it_is_ready_once_collects_in_words_and_says_when_it_stops(watched):
    it = watched()
    it.begin()
    heard = await it.hears_in(300)
    assert heard.count("READY=1") == 1
    assert 60 <= heard.count("WATCHDOG=1") <= 61, "one in 5 s"
    assert any(word.startswith("STATUS=collects 1 query, ") for word in heard)
    it.notifier.heard.clear()
    await it.run.stop()
    heard = it.notifier.heard
    assert heard[:2] == ["STOPPING=1", "STATUS=stops: finishes what it has begun and ships it"]
    assert not [word for word in heard[2:] if word.startswith("STATUS=")]


async def test_what_cannot_tell_how_it_goes_does_not_end_what_collects(watched, monkeypatch):
    it = watched()
    it.begin()
    await it.hears_in(60)

    def broken():
        raise RuntimeError("a bug")

    monkeypatch.setattr(it.run.service.report, "status", broken)
    heard = await it.hears_in(60)
    assert "WATCHDOG=1" in heard
    assert any("answering_failed" in word for word in heard)
    assert "answering_failed" in it.run.told()


def s3_is_down(it, _patch):
    it.store.faults = [lambda _verb, _key: Transient("503")]


def s3_is_silent(it, _patch):
    it.store.black_hole(it.clock)


def x_is_down(it, patch):
    async def probe():
        raise Transient("no route")

    patch.setattr(it.x, "probe", probe)


def x_refuses(it, _patch):
    it.x.faults = [lambda _request: it.x.answer(401, {"title": "Unauthorized"})]


def x_limits(it, _patch):
    def limited(_request):
        reset = it.clock.true_now().timestamp() + 900
        headers = {"x-rate-limit-limit": "1", "x-rate-limit-remaining": "0", "x-rate-limit-reset": f"{reset:.0f}"}
        return it.x.answer(429, {"title": "Too Many Requests"}, **headers)

    it.x.faults = [limited]


def another_has_the_lease(it, _patch):
    async def renewed():
        key = LakeKeys().lease
        claim = Claim("ffffffff", "elsewhere", 1, "", it.clock.now().isoformat(), 20.0, "0")
        it.store.objects[key] = (claim.to_json(), {})

    it.store.faults = [lambda verb, _key: renewed() if verb == "read" else None]


def the_disk_is_full(it, patch):
    def full(*_args):
        raise SpoolFull("no room")

    patch.setattr(Spool, "append", full)


def nothing(_it, _patch):
    """All is well."""


OUTSIDE = [nothing, s3_is_down, s3_is_silent, x_is_down, x_refuses, x_limits, another_has_the_lease, the_disk_is_full]


@pytest.mark.parametrize("trouble", OUTSIDE, ids=[trouble.__name__ for trouble in OUTSIDE])
@pytest.mark.parametrize("had_a_life", [False, True], ids=["first start", "later"])
async def test_waiting_for_something_outside_for_an_hour_is_no_standstill(watched, monkeypatch, trouble, had_a_life):
    queries = [
        {"name": name, "rule": name, "poll_every_seconds": 60, "first_poll_hours": 0, "overlap_seconds": 0}
        for name in ("one", "two")
    ]
    it = watched(query=queries, audit={"counts_daily": True}, budget={"usd_per_month": None, "reconcile": True})
    it.x.tweets_per_second = 0.05
    if had_a_life:
        it.begin()
        await it.hears_in(300)
    trouble(it, monkeypatch)
    if not had_a_life:
        it.begin()
    heard = await it.hears_in(AN_HOUR)
    assert "loop_hung" not in it.run.told()
    assert heard.count("WATCHDOG=1") >= AN_HOUR / 5 - 1
    assert had_a_life or "READY=1" in heard
    expected = set(it.run.service._pulse._due)
    assert {"lease", "time"} <= expected
    if trouble is nothing:
        loops = {"journal", "uploader", "gate", "poller one", "poller two", "orders", "audit", "reconciliation"}
        assert loops | {"lease", "time"} == expected, "and nobody else"


async def hangs(*_args, **_more):
    await asyncio.Event().wait()


HANGS = [
    ("uploader", Uploader, "_ship"),
    ("journal", Journal, "_seal_if_older"),
    ("poller one", SimulatedX, "search"),
    ("poller one", Windows, "live"),
    ("lease", MemoryStore, "replace"),
    ("orders", MemoryStore, "list_keys"),
]


@pytest.mark.parametrize(("name", "owner", "method"), HANGS, ids=[f"{hang[0]}, {hang[2]}" for hang in HANGS])
async def test_one_loop_that_hangs_is_told_and_ends_the_signs_of_life(watched, monkeypatch, name, owner, method):
    it = watched()
    it.begin()
    await it.hears_in(200)
    monkeypatch.setattr(owner, method, hangs)
    if name == "lease":
        monkeypatch.setattr("ingester.lease.within", lambda _clock, _seconds, call: call)
    where = {"_ship": "uploader.py", "search": "poller.py", "live": "poller.py", "replace": "lease.py"}.get(method)
    told = []
    monkeypatch.setattr(it.run.telemetry, "loop_hung", lambda *what: told.append(what))
    longest = PATIENCE_SECONDS + it.configured.x.timeout_seconds + 120
    await it.hears_in(longest)
    assert [found[0] for found in told] == [name]
    assert where is None or told[0][2].startswith(f"{where}:"), "the line where it waits"
    heard = await it.hears_in(60)
    assert "WATCHDOG=1" not in heard
    assert it.run.service._sentence(it.run.service._pulse.late()).startswith(f"hangs: {name}")
    assert it.run.service.report.pulse.late().keys() == {name}


async def test_a_start_that_takes_long_asks_for_more_time_and_is_not_ready_before(watched, monkeypatch):
    it = watched()

    def full(_spool):
        if it.clock.seconds < 1000:
            raise SpoolFull("no room")
        return []

    monkeypatch.setattr(Spool, "recover", full)
    it.begin()
    heard = await it.hears_in(900)
    assert "READY=1" not in heard
    assert heard.count(f"EXTEND_TIMEOUT_USEC={int(service_module.START_SECONDS * 1e6)}") >= 900 / 5
    assert "STATUS=starts: looks at what the spool holds" in heard
    heard = await it.hears_in(200)
    assert heard.count("READY=1") == 1
    assert not [word for word in heard[heard.index("READY=1") :] if word.startswith("EXTEND")]
