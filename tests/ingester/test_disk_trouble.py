"""The service on a disk that is full for a while, or fails: it waits and goes on, or ends and loses nothing."""

import errno
import os

import pytest

from ingester.disk import fsync_folder, write_durably
from ingester.errors import LoopDied
from ingester.microbatch import write_sealed
from tests.ingester.simulation import MemoryStore, SimulatedX, VirtualClock, live, settings, stored_ids

FULL = range(60, 200)
"""Seconds during which there is no room."""


@pytest.fixture
def world(tmp_path):
    clock = VirtualClock()
    return settings(tmp_path), clock, SimulatedX(clock), MemoryStore()


def all_is_stored_once(world, run):
    _, _, x, store = world
    state = run.service._work.journal.state.queries["one"]
    stored = stored_ids(store.records())
    assert sorted(stored) == x.existing(state.start_id, state.frontier_id) == sorted(x.served)
    assert run.spool.waiting() == run.spool.names("open") == []


def no_room(real, clock):
    def full(*what):
        if int(clock.seconds) in FULL:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*what)

    return full


@pytest.mark.parametrize(
    ("place", "real"),
    [
        ("os.write", os.write),
        ("ingester.spool.write_sealed", write_sealed),
        ("ingester.spool.write_durably", write_durably),
        ("ingester.spool.fsync_folder", fsync_folder),
    ],
    ids=["writing", "sealing", "sidecar", "renaming"],
)
async def test_no_room_is_told_and_waited_out_and_everything_goes_on_by_itself(world, monkeypatch, place, real):
    configured, clock, x, store = world
    monkeypatch.setattr(place, no_room(real, clock))
    run = await live(configured, clock, x, store, seconds=500)
    assert "spool_full" in run.told()
    all_is_stored_once(world, run)
    assert len(x.requests) < 25, "the page that could not be written stayed in memory; it was not asked again"


async def test_no_room_at_a_start_is_told_and_waited_out(world, monkeypatch):
    configured, clock, x, store = world
    await live(configured, clock, x, store, seconds=50, crash=True)
    clock.seconds = 60.0
    monkeypatch.setattr("ingester.spool.write_sealed", no_room(write_sealed, clock))
    run = await live(configured, clock, x, store, seconds=500)
    assert "spool_full" in run.told()
    all_is_stored_once(world, run)


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
async def test_an_fsync_that_fails_ends_the_service_with_its_reason_and_the_next_start_loses_nothing(
    world, monkeypatch, call
):
    configured, clock, x, store = world
    real, failed = getattr(os, call), []

    def broken(descriptor):
        if clock.seconds > 100:
            failed.append(descriptor)
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor)

    with (
        monkeypatch.context() as patch,
        pytest.RaisesGroup(
            pytest.RaisesExc(LoopDied, match="fsync of .* failed: Input/output error"), flatten_subgroups=True
        ),
    ):
        patch.setattr(os, call, broken)
        await live(configured, clock, x, store, seconds=500)
    assert len(failed) == 1, "not asked again, by anybody"
    run = await live(configured, clock, x, store, seconds=200)
    all_is_stored_once(world, run)
