"""The gate by itself: what happens between the look at who is first and the decision."""

import asyncio

import pytest

from ingester.budget import Prices, Purse
from ingester.errors import Stopping
from ingester.model import LEAN
from ingester.pacing import BACKLOG, LIVE, Gate
from ingester.telemetry import Telemetry
from ingester.x_time import XTime
from schemas.settings import Budget, Price
from schemas.state import State
from tests.ingester.simulation import VirtualClock


class Disk:
    """Answers whether there is room when the test says so."""

    def __init__(self):
        self.asked, self.answer = asyncio.Event(), asyncio.Event()
        self.lacks = None

    async def lacks_room(self):
        self.asked.set()
        await self.answer.wait()
        return self.lacks


@pytest.fixture
async def gate_and_disk():
    clock, disk = VirtualClock(), Disk()
    telemetry = Telemetry(now=clock.now)
    gate = Gate(
        clock,
        telemetry,
        x_time=XTime(clock, telemetry),
        purse=Purse(Budget(usd_per_month=1000), Prices(Price(), LEAN)),
        state=State,
        lacks_room=disk.lacks_room,
        polls_per_second=1.0,
        concurrency=1,
    )
    run = asyncio.ensure_future(gate.run())
    yield gate, disk, run
    run.cancel()


async def test_a_stop_while_the_disk_is_looked_at_ends_no_loop(gate_and_disk):
    gate, disk, run = gate_and_disk
    turn = asyncio.ensure_future(gate.turn(LIVE, 10))
    await disk.asked.wait()
    gate.stop()
    disk.answer.set()
    with pytest.raises(Stopping):
        await turn
    done, _ = await asyncio.wait({run}, timeout=0.01)
    assert not done


async def test_who_was_looked_at_gets_the_turn_and_who_came_meanwhile_the_next(gate_and_disk):
    gate, disk, _ = gate_and_disk
    backlog = asyncio.ensure_future(gate.turn(BACKLOG, 10))
    await disk.asked.wait()
    live = asyncio.ensure_future(gate.turn(LIVE, 10))
    await asyncio.sleep(0)
    disk.answer.set()
    held = await backlog
    assert not live.done()
    gate.give_back(held)
    assert (await live).max_results == 10
