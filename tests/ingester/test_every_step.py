"""Death at every durable step, one after another, and again at every step of the recovery: nothing is lost by any."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ingester.errors import Transient
from tests.ingester.moments import Account, Disk, Outside, WatchedStore, account, read_disk, write_disk
from tests.ingester.simulation import Crash, Run, SimulatedX, VirtualClock, live, settings

WORLD = {"tweets_per_second": 0.05}
PAGE = 50
"""Posts of a page: what a death may cost."""


@dataclass(frozen=True)
class Moment:
    """What a process that dies here leaves behind. The kernel keeps what was written, and no handler has a say in it."""

    step: str
    disk: Disk
    outside: Outside
    written: int
    """Records in the stream so far."""


class Watch:
    """Keeps the moment of every durable step; ends the life before one that is not of interest any more."""

    def __init__(self, directory: Path, x: SimulatedX, store: WatchedStore, *, until: str = "") -> None:
        self.moments: list[Moment] = []
        self._directory = directory
        self._x = x
        self._store = store
        self._until = until
        self._written = 0

    def __call__(self, step: str) -> None:
        if step == self._until:
            raise Crash
        self._written += step == "record_written"
        outside = Outside.of(self._x, self._store)
        self.moments.append(Moment(step, read_disk(self._directory), outside, self._written))


def dense(directory: Path):
    """Settings under which a few minutes show every kind of step: small files, sealed by size, age and hour."""
    query = {"name": "one", "rule": "python", "poll_every_seconds": 20, "first_poll_hours": 0.2, "overlap_seconds": 0}
    spool = {"directory": directory, "min_free_bytes": 0, "seal_after_seconds": 45, "seal_after_bytes": 10_000}
    return settings(
        directory, query=[query], spool=spool | {"codec": "null"}, x={"fields": "lean", "max_results": PAGE}
    )


@dataclass(frozen=True)
class Reference:
    """What happens when nobody dies."""

    moments: list[Moment]
    runs: list[Run]
    records: list[dict[str, Any]]


async def reference(directory: Path) -> Reference:
    """Two lives over the end of an hour, with an absence between them and an outage of S3 in the second."""
    clock = VirtualClock()
    clock.seconds = 58 * 60
    x, store = SimulatedX(clock, **WORLD), WatchedStore()
    watch = Watch(directory, x, store)
    runs = [await live(dense(directory), clock, x, store, seconds=120, on_step=watch)]
    clock.seconds += 2.5 * 3600
    outage = clock.seconds + 30  # and it may take a minute more until the uploader tries again
    store.faults.append(lambda verb, _key: Transient("503") if verb == "put" and clock.seconds < outage else None)
    runs.append(await live(dense(directory), clock, x, store, seconds=150, on_step=watch))
    assert account(runs[-1], store) == Account()
    assert len(x.served) == len(set(x.served)), "what nothing disturbs pays for nothing twice"
    return Reference(watch.moments, runs, store.records())


async def assert_nothing_is_lost(moment: Moment, written: list[dict[str, Any]], directory: Path, where: str) -> None:
    """Go on from a moment until all is settled, and draw up the account."""
    write_disk(moment.disk, directory)
    clock, x, store = moment.outside.again(**WORLD)
    run = await live(dense(directory), clock, x, store, seconds=45)
    assert account(run, store) == Account(), where
    assert len(x.served) - len(set(x.served)) <= PAGE, where
    assert store.records()[: len(written)] == written, f"{where}: the stream does not begin with what was written"


async def test_the_reference_has_every_kind_of_step_record_and_seal(tmp_path):
    undisturbed = await reference(tmp_path)
    assert {moment.step for moment in undisturbed.moments} == {
        "opened", "record_written", "record_durable", "sealed_file_written", "sidecar_written", "sealed_file_renamed",
        "sealed", "open_file_gone", "file_moved", "shipped_file_moved", "older_files_gone",
    }  # fmt: skip
    assert {record["kind"] for record in undisturbed.records} == {"rule", "page", "plan", "heartbeat"}
    seals = {
        sample.labels["reason"]
        for run in undisturbed.runs
        for metric in run.telemetry.registry.collect()
        for sample in metric.samples
        if sample.name == "tweetlake_microbatches_sealed_total"
    }
    assert seals == {"size", "age", "hour", "shutdown"}


async def test_death_at_any_step_loses_nothing_and_pays_at_most_the_page_under_way_twice(tmp_path):
    undisturbed = await reference(tmp_path / "reference")
    print(f"died at each of {len(undisturbed.moments)} steps")
    for number, moment in enumerate(undisturbed.moments):
        where = f"death at step {number}, {moment.step}"
        await assert_nothing_is_lost(moment, undisturbed.records[: moment.written], tmp_path / str(number), where)


async def test_death_at_any_step_of_the_recovery_from_death_at_any_step_loses_nothing(tmp_path):
    undisturbed = await reference(tmp_path / "reference")
    pairs = 0
    for number, moment in enumerate(undisturbed.moments):
        if number and replace(undisturbed.moments[number - 1], step=moment.step) == moment:
            continue  # an fsync changes nothing for whoever finds the folder after a mere death
        for again, second in enumerate(await moments_of_recovery(moment, tmp_path / str(number))):
            where = f"death at step {number}, {moment.step}, then at step {again} of the recovery, {second.step}"
            written = undisturbed.records[: moment.written]
            await assert_nothing_is_lost(second, written, tmp_path / f"{number}-{again}", where)
            pairs += 1
    print(f"died at {pairs} pairs of steps")


async def moments_of_recovery(moment: Moment, directory: Path) -> list[Moment]:
    """The steps of a restart up to the first new microbatch: what was found is sealed and shipped."""
    write_disk(moment.disk, directory)
    clock, x, store = moment.outside.again(**WORLD)
    watch = Watch(directory, x, store, until="opened")
    with pytest.raises(Crash):
        await live(dense(directory), clock, x, store, seconds=45, on_step=watch)
    return watch.moments
