"""The life of the process: every loop is missed, a stop at any moment is in time and loses nothing, a start needs no S3."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ingester.errors import LoopDied, NeedsOperator, SpoolFull, Transient
from ingester.journal import Journal
from ingester.lease import Claim, Lease
from ingester.pacing import Gate
from ingester.spool import Spool
from ingester.uploader import Uploader
from ingester.windows import Windows
from schemas.keys import LakeKeys
from tests.ingester.simulation import MemoryStore, Run, SimulatedX, VirtualClock, live, settings, stored_ids

GRACE = 20.0


@pytest.fixture
def world(tmp_path):
    clock = VirtualClock()
    return settings(tmp_path), clock, SimulatedX(clock), MemoryStore()


def covered(x, run):
    state = run.service._work.journal.state.queries["one"]
    assert not state.todo
    return x.existing(state.start_id, state.frontier_id)


# Every loop is missed.


def broken(*_args, **_more):
    raise RuntimeError("a bug")


async def ends_by_itself(*_args, **_more):
    return


LOOPS = [
    ("gate", Gate, "_may_ask"),
    ("journal", Journal, "_seconds_to_wait"),
    ("uploader", Uploader, "_try"),
    ("poller one", Windows, "live"),
    ("lease", Lease, "_write"),
    ("orders", MemoryStore, "list_keys"),
]


@pytest.mark.parametrize(("name", "owner", "method"), LOOPS, ids=[loop[0] for loop in LOOPS])
async def test_a_loop_that_dies_ends_the_process_with_its_name_and_reason_and_loses_nothing(
    world, monkeypatch, name, owner, method
):
    configured, clock, x, store = world
    run = Run(configured, clock, x, store)
    await clock.drive(200)
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, broken)
        await clock.drive(clock.seconds + 400, run.task.done)
        with pytest.raises(ExceptionGroup) as found:
            run.task.result()
    died = found.value.subgroup(LoopDied).exceptions
    assert [str(error) for error in died] == [f"{name}: a bug"]
    assert isinstance(died[0].__cause__, RuntimeError)
    await run.die()
    run = await live(configured, clock, x, store, seconds=200)
    ids = stored_ids(store.records())
    assert sorted(set(ids)) == covered(x, run)
    assert len(ids) == len(set(ids))
    assert len(x.served) - len(ids) <= x.page_size, "the page under way, as after any death"


@pytest.mark.parametrize(("owner", "name"), [(Gate, "gate"), (Journal, "journal"), (Uploader, "uploader")])
async def test_a_loop_that_ends_without_an_error_is_missed_too(world, monkeypatch, owner, name):
    configured, clock, x, store = world
    monkeypatch.setattr(owner, "run", ends_by_itself)
    with pytest.raises(ExceptionGroup) as found:
        await live(configured, clock, x, store, seconds=100)
    assert f"{name}: it ended by itself" in [str(error) for error in found.value.exceptions]


async def test_asking_for_the_time_is_missed_too(world, monkeypatch):
    configured, clock, x, store = world
    monkeypatch.setattr(x, "probe", broken)
    with pytest.raises(ExceptionGroup) as found:
        await live(configured, clock, x, store, seconds=100)
    assert [str(error) for error in found.value.exceptions] == ["time: a bug"]


# A stop at any moment.


@dataclass
class Scene:
    """What the world is like when the stop comes."""

    changes: dict = field(default_factory=dict)
    before: Callable = lambda world: None
    """Sets the faults; what was collected in an earlier, healthy life is there already."""
    earlier_life: bool = True
    away_seconds: float = 4000.0
    """How long nobody collected before."""
    wasted_pages: int = 0
    """Pages that were answered but could not be made durable."""
    tells: str | None = None
    """The problem that shows that it is so."""


def s3_refuses(world):
    world.store.faults = [lambda verb, _key: Transient("503")]


def s3_forbids(world):
    world.store.faults = [lambda verb, _key: NeedsOperator("403") if verb == "put" else None]


def s3_is_silent(world):
    world.store.black_hole(world.clock)


def s3_goes_silent_after_ten_seconds(world):
    begin = world.clock.seconds + 10

    async def silence():
        await world.clock.sleep(60)
        raise Transient("no answer within 60 s")

    world.store.faults = [lambda _verb, _key: silence() if world.clock.seconds > begin else None]


def s3_is_slow(world):
    world.store.faults = [lambda _verb, _key: world.clock.sleep(4.0)]


def x_limits(world):
    begin = world.clock.seconds

    def limited(_request):
        if world.clock.seconds < begin + 5:
            return None
        reset = world.clock.true_now().timestamp() + 600
        return world.x.answer(
            429,
            {"title": "Too Many Requests"},
            **{"x-rate-limit-limit": "1", "x-rate-limit-remaining": "0", "x-rate-limit-reset": f"{reset:.0f}"},
        )

    world.x.faults = [limited]


def x_is_slow(world):
    async def search(request, search=world.x.search):
        answer = await search(request)
        await world.clock.sleep(7.0)
        return answer

    world.x.search = search


def another_owns_the_lease(world):
    claim = Claim("ffffffff", "elsewhere", 1, "", "", 20.0, "0")
    world.store.objects[LakeKeys().lease] = (claim.to_json(), {})


def the_disk_is_full_after_five_seconds(world):
    begin = world.clock.seconds + 5

    def full(real):
        def method(*args):
            if world.clock.seconds > begin:
                raise SpoolFull("no room")
            return real(*args)

        return method

    for name in ("append", "seal", "open_microbatch"):
        world.monkeypatch.setattr(Spool, name, full(getattr(Spool, name)))


SCENES = {
    "live polls": Scene(away_seconds=20.0),
    "a backlog": Scene(),
    "sealing often": Scene(changes={"seal_after_seconds": 1.0}),
    "S3 refuses": Scene(before=s3_refuses, tells="state_unreachable"),
    "S3 forbids": Scene(before=s3_forbids, tells="upload_paused"),
    "S3 is silent": Scene(before=s3_is_silent, tells="lease_unreachable"),
    "S3 goes silent": Scene(before=s3_goes_silent_after_ten_seconds, changes={"seal_after_seconds": 2.0}),
    "S3 is slow": Scene(before=s3_is_slow, changes={"seal_after_seconds": 2.0}),
    "S3 refuses the first start": Scene(before=s3_refuses, earlier_life=False, tells="lease_unreachable"),
    "S3 is silent at the first start": Scene(before=s3_is_silent, earlier_life=False, tells="lease_unreachable"),
    "X limits": Scene(before=x_limits, tells="asking_paused"),
    "X is slow": Scene(before=x_is_slow),
    "the budget is spent": Scene(changes={"usd_per_day": 4.0}, tells="asking_paused"),
    "waiting for the lease": Scene(before=another_owns_the_lease, tells="lease_waiting"),
    "the disk is full": Scene(before=the_disk_is_full_after_five_seconds, wasted_pages=1, tells="spool_full"),
}


@dataclass
class World:
    """What a scene may change."""

    clock: VirtualClock
    x: SimulatedX
    store: MemoryStore
    monkeypatch: pytest.MonkeyPatch


def configured_for(directory, scene):
    changes = dict(scene.changes)
    budget = {"usd_per_month": None, "reconcile": False}
    if "usd_per_day" in changes:
        budget["usd_per_day"] = changes.pop("usd_per_day")
    spool = {"directory": directory / "spool", "min_free_bytes": 0, **changes}
    query = {"name": "one", "rule": "python", "poll_every_seconds": 10, "first_poll_hours": 0, "overlap_seconds": 0}
    return settings(directory, spool=spool, budget=budget, query=[query])


async def stopped_after(seconds, scene, directory, earlier):
    """The scene after an earlier life, a stop after so many seconds, and a healthy life afterwards."""
    clock = VirtualClock()
    x, store = SimulatedX(clock, tweets_per_second=0.5), MemoryStore()
    if earlier is not None:
        shutil.copytree(earlier.directory, directory)
        store.objects, x.served = dict(earlier.objects), list(earlier.served)
        clock.seconds = earlier.seconds + scene.away_seconds
    with pytest.MonkeyPatch.context() as monkeypatch:
        scene.before(World(clock, x, store, monkeypatch))
        run = Run(configured_for(directory, scene), clock, x, store)
        await clock.drive(clock.seconds + seconds)
        took = await run.stop()
    told = run.told()
    x.faults, store.faults = [], []
    vars(x).pop("search", None)
    store.objects.pop(LakeKeys().lease, None)
    run = await live(configured_for(directory, Scene()), clock, x, store, seconds=60)
    ids = stored_ids(store.records())
    assert sorted(set(ids)) == covered(x, run), f"stopped after {seconds} s"
    assert took <= GRACE + 0.01, f"stopped after {seconds} s"
    assert len(x.served) - len(set(ids)) <= scene.wasted_pages * x.page_size, f"stopped after {seconds} s"
    return told


@dataclass
class Earlier:
    """What an earlier life left."""

    directory: Path
    objects: dict
    served: list
    seconds: float


async def an_earlier_life(directory):
    clock = VirtualClock()
    x, store = SimulatedX(clock, tweets_per_second=0.5), MemoryStore()
    await live(configured_for(directory, Scene()), clock, x, store, seconds=20)
    return Earlier(directory, store.objects, x.served, clock.seconds)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SCENES)
async def test_a_stop_at_any_half_second_is_in_time_and_loses_nothing(tmp_path, name):
    scene = SCENES[name]
    earlier = await an_earlier_life(tmp_path / "earlier") if scene.earlier_life else None
    for half_seconds in range(40):
        told = await stopped_after(half_seconds / 2 + 0.1, scene, tmp_path / str(half_seconds), earlier)
    assert scene.tells is None or scene.tells in told


async def test_asked_a_second_time_it_leaves_at_once_and_loses_nothing(world):
    configured, clock, x, store = world
    await live(configured, clock, x, store, seconds=100)
    store.black_hole(clock)
    run = Run(configured, clock, x, store)
    await clock.drive(clock.seconds + 100)
    run.service.stop("SIGTERM")
    await clock.drive(clock.seconds + 3)
    assert not run.task.done(), "S3 is silent, the grace time runs"
    asked_again = clock.seconds
    assert await run.stop() == 0.0
    assert clock.seconds == asked_again
    store.faults = []
    run = await live(configured, clock, x, store, seconds=100)
    ids = stored_ids(store.records())
    assert sorted(ids) == covered(x, run)
    assert len(ids) == len(x.served)
