"""Whether every loop still moves: each says when it will be heard from again; one that stays silent for longer hangs.

What a loop waits for outside (X refuses, S3 is down, another has the lease, the disk is full) is no hang: it says so
beforehand, by how long it waits.
"""

import math
from functools import partial
from typing import Protocol

from ingester.ports import Clock

PATIENCE_SECONDS = 300.0
"""What a step of a loop may take beyond the waiting that it announced: more than any chain of calls that end by their own
time-outs, which are 30 s with X and up to 70 s with S3. A false alarm would cost a restart, a late one some minutes of X's
seven days.
"""
FOR_EVER = math.inf
"""The wait of a loop that has nothing to do until another one wakes it."""


class Beat(Protocol):
    """One loop's own way to be heard."""

    def __call__(self, wait: float = 0.0) -> None:
        """It made progress. Next it waits for a known reason, for up to `wait` seconds; 0: it works."""
        ...


def unheard(wait: float = 0.0) -> None:
    """The beat of a part that runs outside of a service, where nobody listens."""


class Pulse:
    """Hears the loops of one service."""

    def __init__(self, clock: Clock, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._patience: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        self._due: dict[str, float] = {}

    def expect(self, name: str, within_seconds: float | None = None) -> Beat:
        """From now on a loop has to be heard; a step of it may take so many seconds. Returns its beat."""
        self._patience[name] = self._patience_seconds if within_seconds is None else within_seconds
        self.beat(name)
        return partial(self.beat, name)

    def forget(self, name: str) -> None:
        """A loop has ended, as it may."""
        for known in (self._patience, self._heard, self._due):
            known.pop(name, None)

    def beat(self, name: str, wait: float = 0.0) -> None:
        """A loop made progress, and may wait for so many seconds now. Nothing happens when it is not expected any more."""
        if name in self._patience:
            self._heard[name] = self._clock.monotonic()
            self._due[name] = self._heard[name] + wait + self._patience[name]

    def excuse(self, wait: float = 0.0) -> None:
        """Nobody can go on for up to so many seconds, for one known reason, as a full disk."""
        earliest = self._clock.monotonic() + wait
        for name, patience in self._patience.items():
            self._due[name] = max(self._due[name], earliest + patience)

    def late(self) -> dict[str, float]:
        """The loops that should have been heard by now, and for how many seconds each has been silent."""
        now = self._clock.monotonic()
        return {name: now - self._heard[name] for name, due in self._due.items() if now > due}
