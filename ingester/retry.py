"""How long to wait: back-off as a value, and a bound on one call."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ingester.ports import Clock

_T = TypeVar("_T")


class Backoff:
    """Counts failures in a row and says how long to wait. There is no last try: giving up would lose data."""

    def __init__(
        self, first_seconds: float = 0.5, cap_seconds: float = 60.0, chance: Callable[[], float] = random.random
    ) -> None:
        self._first = first_seconds
        self._cap = cap_seconds
        self._chance = chance
        self.failures = 0

    def next_wait(self) -> float:
        """Seconds until the next try; between a tenth of and the whole of the doubling bound, so never a hot loop."""
        bound = min(self._cap, self._first * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return bound * (0.1 + 0.9 * self._chance())

    def succeeded(self) -> None:
        self.failures = 0


async def within(clock: Clock, seconds: float, call: Awaitable[_T]) -> _T:
    """What the call returns or raises. Raises TimeoutError, and cancels it, after so many seconds of this clock."""
    task = asyncio.ensure_future(call)
    timer = asyncio.ensure_future(clock.sleep(seconds))
    either: set[asyncio.Future[Any]] = {task, timer}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:
        task.cancel()
        timer.cancel()
    raise TimeoutError(f"no answer within {seconds:g} s")
