"""Back-off as a value: how long to wait before the next try, exponential with full jitter, capped."""

import random
from collections.abc import Callable


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
