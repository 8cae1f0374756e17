"""The spool under power cuts: whatever is gone of the unsynced, what was acknowledged is there, and nothing is made up."""

import asyncio
import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ingester.errors import Transient
from ingester.microbatch import read_records
from ingester.spool import Spool
from tests.ingester.moments import Account, Disk, Outside, account, all_records, write_disk
from tests.ingester.power_cuts import Recording, UnknownOperation, purpose, recorded
from tests.ingester.simulation import live, stored_ids
from tests.ingester.test_every_step import PAGE, WORLD, Watch, dense

Identity = tuple[Any, ...]
CHANCES = int(os.environ.get("TWEETLAKE_POWER_CUTS", "100"))
"""Cuts by chance."""
FULL_AT = 9
"""The write that finds no room; a record in the middle of a microbatch."""


@dataclass(frozen=True)
class Seen:
    """What the world had seen of the process when the power went."""

    outside: Outside
    acknowledged: tuple[Identity, ...]
    """The records whose append had returned, in their order."""

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.outside.seconds, len(self.outside.served), tuple(self.outside.objects), len(self.acknowledged))


def identity(record: Any) -> Identity:
    names = ("kind", "at", "query", "since_id", "until_id", "asked_below", "frontier_id", "body_sha256")
    return tuple(record.get(name) for name in names)


@contextmanager
def noted(before: tuple[Identity, ...] = ()) -> Iterator[list[Identity]]:
    """The records whose append returned, then those for which it does while the block lasts."""
    found = list(before)
    append = Spool.append

    def noting(spool: Spool, record: Any) -> None:
        append(spool, record)
        found.append(identity(record))

    with mock.patch.object(Spool, "append", noting):
        yield found


async def record_life(root: Path, begun: Seen, seconds: float) -> Recording:
    """A life of the service, with every file operation of its spool."""
    clock, x, store = begun.outside.again(**WORLD)
    with (
        noted(begun.acknowledged) as records,
        recorded(root, lambda: Seen(Outside.of(x, store), tuple(records))) as recording,
    ):
        await live(dense(root / "spool"), clock, x, store, seconds=seconds)
    return recording


# What is cut.


@dataclass(frozen=True)
class Scenario:
    """A recorded life, and what it may come to when it is cut."""

    recording: Recording
    paid_twice: int = PAGE
    """Posts at most."""
    wrong: Account = field(default_factory=Account)


NOTHING_YET = Seen(Outside(58 * 60.0, (), {}, {}), ())
"""Shortly before the end of an hour, when nothing was collected ever."""


async def first_start(root: Path) -> Scenario:
    """Sealed by age and hour, shipped, forgotten."""
    root.mkdir(parents=True)
    return Scenario(await record_life(root, NOTHING_YET, seconds=120))


async def killed_while_s3_was_away(root: Path) -> tuple[Disk, Seen]:
    """Three sealed microbatches wait, and the open one ends with half a record."""
    root.mkdir(parents=True)
    clock, x, store = NOTHING_YET.outside.again(**WORLD)
    store.faults.append(lambda verb, _key: Transient("503") if verb == "put" else None)
    watch = Watch(root, x, store)
    with noted() as records:
        await live(dense(root / "spool"), clock, x, store, seconds=150, on_step=watch, crash=True)
    moment = next(moment for moment in reversed(watch.moments) if moment.step == "record_written")
    [torn] = [path for path in moment.disk if path.startswith("spool/open/")]
    disk = {**moment.disk, torn: moment.disk[torn][:-100]}
    assert sum(path.startswith("spool/sealed/") for path in disk) == 6, "three files and their sidecars"
    return disk, Seen(moment.outside, tuple(records[: moment.written - 1]))


async def salvage(root: Path) -> Scenario:
    """The restart of a killed process: what it left open is sealed, all that waits is shipped."""
    disk, seen = await killed_while_s3_was_away(root / "killed")
    write_disk(disk, root / "again")
    return Scenario(await record_life(root / "again", seen, seconds=5))


async def quarantine(root: Path) -> Scenario:
    """The same, when the first of those that wait was damaged."""
    disk, seen = await killed_while_s3_was_away(root / "killed")
    damaged = next(path for path in sorted(disk) if path.startswith("spool/sealed/"))
    write_disk({**disk, damaged: disk[damaged][:-1]}, root / "again")
    lost = len(stored_ids(read_records(root / "killed" / damaged)))
    recording = await record_life(root / "again", replace(seen, acknowledged=()), seconds=5)
    return Scenario(recording, PAGE + lost, Account(not_shipped={"quarantine": 1}))


async def full_disk(root: Path) -> Scenario:
    """There is no room for the second half of a record; a little later there is."""
    root.mkdir(parents=True)
    real, sizes = os.write, []

    def write(descriptor: int, content: Any) -> int:
        sizes.append(len(content))
        if len(sizes) == FULL_AT:
            return real(descriptor, bytes(content)[: len(content) // 2])
        if len(sizes) == FULL_AT + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content)

    with mock.patch.object(os, "write", write):
        return Scenario(await record_life(root, NOTHING_YET, seconds=30))


# The cuts.


@dataclass(frozen=True)
class Verdict:
    """What came of cutting the power everywhere."""

    disks: int
    problems: list[str]


async def cut_everywhere(scenario: Scenario, root: Path, *, most: int = 10**9) -> Verdict:
    """Cut the power before, between and after all operations; go on from every disk that this may leave."""
    recording = scenario.recording
    tried: set[Any] = set()
    problems: list[str] = []
    for cut, wreck in enumerate(recording.wrecks()):
        moments = recording.after[cut - 1 : cut] if cut else []
        moments += recording.before[cut : cut + 1]  # a PUT in between is done or not
        for disk in wreck.likely_disks():
            for moment in moments:
                key = (frozenset(disk.items()), moment.key)
                if key in tried:
                    continue
                tried.add(key)
                found = await problems_after(disk, moment, root / str(len(tried)), scenario)
                problems += [
                    f"{problem}: cut {cut}, before {recording.operations[cut : cut + 1]!s:.120}" for problem in found
                ]
                if len(problems) >= most:
                    return Verdict(len(tried), problems)
    return Verdict(len(tried), problems)


async def problems_after(disk: Disk, seen: Seen, root: Path, scenario: Scenario) -> list[str]:
    """Start from what a cut left; what is wrong once all has settled, in words."""
    write_disk(disk, root)
    clock, x, store = seen.outside.again(**WORLD)
    try:
        with mock.patch.multiple(os, fsync=lambda _: None, fdatasync=lambda _: None):  # no cut follows
            run = await live(dense(root / "spool"), clock, x, store, seconds=5)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the service did not start or did not stop
        return [f"it ended with {error!r}"]
    if run.service._journal is None:
        return ["it did not find a state to go on from"]
    found = []
    stream = iter([identity(record) for record in all_records(run, store)])
    if not all(record in stream for record in seen.acknowledged):
        found.append("an acknowledged record is gone, or out of its order")
    if (wrong := replace(account(run, store), stored_twice=[])) != scenario.wrong:
        found.append(str(wrong))
    if (twice := len(x.served) - len(set(x.served))) > scenario.paid_twice:
        found.append(f"{twice} posts were paid for twice")
    return found


SCENARIOS = [first_start, salvage, quarantine, full_disk]


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_power_cut_anywhere_loses_nothing_acknowledged_and_makes_nothing_up(tmp_path, scenario):
    recorded_life = await scenario(tmp_path / "reference")
    verdict = await cut_everywhere(recorded_life, tmp_path / "cuts")
    print(f"{scenario.__name__}: {len(recorded_life.recording.operations)} operations, {verdict.disks} disks")
    assert verdict.problems == []


MISSED = {
    first_start: [
        ". after mkdir spool",
        "first content of spool/.spool-id.tmp",
        "spool after rename spool/spool-id",
        "spool/open after create spool/open/*.avro",
        "later content of spool/open/*.avro",
        "first content of spool/sealed/.*.avro.tmp",
        "first content of spool/sealed/.*.avro.json.tmp",
        "spool/sealed after rename spool/sealed/*.avro.json",
        "spool/sealed after rename spool/sealed/*.avro",
        "spool/shipped after rename spool/shipped/*.avro",
    ],
    quarantine: ["spool after mkdir spool/quarantine"],
}
"""Each fsync in the scenario that shows what it is good for."""
SPARE = {
    "first content of spool/open/*.avro": "the header; it is durable with the first record, and alone it is worth nothing",
    "spool/open after unlink spool/open/*.avro": "the next microbatch is opened before this one is forgotten",
    "spool/open as it was": "there was nothing to salvage",
    "first content of spool/quarantine/.*.avro.reason.tmp": "the reason is for people",
    "spool/quarantine after rename spool/quarantine/*.avro.reason": "the reason is for people",
    "spool/quarantine after rename spool/quarantine/*.avro": "it would be set aside again, and planned only once",
    "spool/quarantine after rename spool/quarantine/*.avro.json": "as above",
}
"""Fsyncs without which no cut does any harm, and why."""


@pytest.mark.parametrize(
    ("scenario", "left_out"), [(scenario, name) for scenario, names in MISSED.items() for name in names]
)
async def test_without_this_fsync_a_cut_does_harm(tmp_path, scenario, left_out):
    whole = await scenario(tmp_path / "reference")
    recording = whole.recording
    lacking = recording.without(lambda number: purpose(recording, number) == left_out)
    assert len(lacking.operations) < len(recording.operations)
    verdict = await cut_everywhere(replace(whole, recording=lacking), tmp_path / "cuts", most=1)
    print(f"without the fsync of {left_out}: {verdict.problems}")
    assert verdict.problems


async def test_every_fsync_is_one_that_would_be_missed_or_one_that_is_known_to_be_spare(tmp_path):
    found = set()
    for scenario in SCENARIOS:
        recording = (await scenario(tmp_path / scenario.__name__)).recording
        found |= {purpose(recording, number) for number in range(len(recording.operations))}
    assert found - {None} == {name for names in MISSED.values() for name in names} | set(SPARE)


@pytest.mark.parametrize(
    "do",
    [
        lambda file: os.truncate(file, 0),
        lambda file: os.link(file, file.with_name("another")),
        lambda file: file.with_name("link").symlink_to(file),
        lambda file: os.pwrite(os.open(file, os.O_WRONLY), b"x", 0),
    ],
)
def test_an_operation_that_the_recorder_does_not_know_is_told(tmp_path, do):
    (tmp_path / "file").write_bytes(b"1234")
    with pytest.raises(UnknownOperation), recorded(tmp_path, lambda: None):
        do(tmp_path / "file")


# Chance.


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    return {scenario: asyncio.run(scenario(tmp_path_factory.mktemp("lives") / "one")) for scenario in SCENARIOS}


@hypothesis_settings(max_examples=CHANCES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_cut_after_any_cut_loses_nothing_acknowledged(lives, tmp_path_factory, data):
    scenario = lives[data.draw(st.sampled_from(SCENARIOS), label="scenario")]
    disk, seen = draw_cut(data, scenario.recording)
    if data.draw(st.booleans(), label="twice"):
        root = tmp_path_factory.mktemp("again")
        write_disk(disk, root)
        recovery = asyncio.run(record_life(root, seen, seconds=5))
        scenario = replace(scenario, paid_twice=scenario.paid_twice + PAGE)
        disk, seen = draw_cut(data, recovery)
    assert asyncio.run(problems_after(disk, seen, tmp_path_factory.mktemp("after"), scenario)) == []


def draw_cut(data: st.DataObject, recording: Recording) -> tuple[Disk, Seen]:
    cut = data.draw(st.integers(1, len(recording.operations) - 1), label="cut")
    wreck = next(itertools.islice(recording.wrecks(), cut, None))
    count = len(wreck.pending)
    kept = data.draw(st.lists(st.booleans(), min_size=count, max_size=count), label="names kept")
    share = st.floats(0, 1)
    contents = {
        file: data.draw(st.builds(partial(wreck.torn, file), share, share) | st.sampled_from(wreck.contents(file)))
        for file in wreck.names(kept).values()
        if wreck.is_uncertain(file)
    }
    moment = data.draw(st.sampled_from([recording.after[cut - 1], recording.before[cut]]), label="PUT in between")
    return wreck.disk(kept, contents), moment
