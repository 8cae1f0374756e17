"""What can be made to go wrong in the simulated X: which faults exist, when each strikes, and how often it has.

A fault is a JSON object: `kind`; `probability` (0 to 1) or `next_n` (the next n chances it gets), always if neither;
`endpoint` (search, counts, usage, token; all if missing); and for some kinds `seconds`, `reset`, `id`, `field`, `value`.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

INSTEAD = {
    "rate_429": "429 Too Many Requests; reset in `seconds` (5), or without the header if `reset` is false",
    "cap_429": "429 UsageCapExceeded, with x-rate-limit-remaining: 39999",
    "credits_402": "402 CreditsDepleted",
    "unauthorized_401": "401, without rate-limit headers",
    "forbidden_403": "403 Client Forbidden, client-not-enrolled",
    "server_503_json": "503 with a JSON problem",
    "server_503_html": "503 with an HTML page",
    "server_500_empty": "500 without a body",
    "html_200": "200 with an HTML page",
    "not_json_200": "200 that says application/json and holds the first half of some",
}
"""Faults that take the place of the answer. They spend rate limit as any answer does, except 401."""
DELIVERY = {
    "hang": "no answer for `seconds` (3600) or until the client gives up",
    "slow": "the answer comes `seconds` (2) late",
    "reset": "the connection is reset before the answer",
    "cut_body": "the connection closes in the middle of the body",
}
"""Faults between a right answer and the client. A search cut short counts as not served."""
PAGE = {
    "repeat_next_token": "a later page hands out the token it was asked with, so following it never ends",
    "empty_page_with_token": "a page without posts, whose next_token goes on where it should have begun",
    "short_page": "half a page, with a next_token",
    "ids_out_of_order": "the posts of a page in random order",
    "tweet_without_id": "one more object in `data`, without id",
    "weird_id": "one more object, whose id is `id`: by turns beyond int64, negative, a word, empty",
    "wrong_type_field": "one more object, whose `field` is `value`: by turns several of the wrong type",
    "unknown_field": "a field nobody knows in every post of the page and at the top of the answer",
}
"""Faults in a page of search. They wait for a page that they can strike."""
STANDING = {
    "late_index": "`probability` of all posts (1) are found up to `seconds` (60) after their id's time",
    "clock_skew": "the Date header is `seconds` (300) off; negative is behind",
}
"""Faults that hold while they are set."""
KINDS = INSTEAD | DELIVERY | PAGE | STANDING

ENDPOINTS = ("search", "counts", "usage", "token")
_DEFAULT_SECONDS = {"rate_429": 5.0, "hang": 3600.0, "slow": 2.0, "late_index": 60.0, "clock_skew": 300.0}


@dataclass(slots=True)
class Fault:
    """One fault that is set. `next_n` counts down; `struck` counts up."""

    kind: str
    probability: float = 1.0
    next_n: int | None = None
    endpoint: str | None = None
    seconds: float = 0.0
    reset: bool = True
    id: str | None = None
    field: str | None = None
    value: Any = None
    struck: int = 0


class FaultError(ValueError):
    """A fault that does not exist or cannot be set so; the message says which and why."""


class Faults:
    """The faults that are set, with their own seeded chance."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._set: list[Fault] = []
        self.struck: dict[str, int] = {}

    @property
    def random(self) -> random.Random:
        """The chance that faults share."""
        return self._random

    def set(self, faults: Iterable[Mapping[str, Any]]) -> None:
        """Replace all faults. Raises FaultError and changes nothing if one of them is wrong."""
        self._set = [_fault(entry) for entry in faults]

    def take(self, kind: str, endpoint: str) -> Fault | None:
        """The fault of that kind if it strikes now; it is used up by that."""
        return next((fault for fault in self._set if fault.kind == kind and self._strikes(fault, endpoint)), None)

    def take_any(self, kinds: Mapping[str, str], endpoint: str) -> Fault | None:
        """The first fault of these kinds that strikes now, in the order they were set."""
        return next((fault for fault in self._set if fault.kind in kinds and self._strikes(fault, endpoint)), None)

    def standing(self, kind: str) -> Fault | None:
        """The fault of that kind if it is set; nothing is used up."""
        return next((fault for fault in self._set if fault.kind == kind), None)

    def show(self) -> list[dict[str, Any]]:
        """What is set, as JSON."""
        return [asdict(fault) for fault in self._set]

    def _strikes(self, fault: Fault, endpoint: str) -> bool:
        if fault.endpoint not in {None, endpoint} or fault.next_n == 0:
            return False
        if fault.probability < 1 and self._random.random() >= fault.probability:
            return False
        if fault.next_n is not None:
            fault.next_n -= 1
        fault.struck += 1
        self.struck[fault.kind] = self.struck.get(fault.kind, 0) + 1
        return True


def _fault(entry: Mapping[str, Any]) -> Fault:
    if not isinstance(entry, Mapping):
        raise FaultError(f"a fault is an object with a kind, not {entry!r}")
    kind = entry.get("kind")
    if kind not in KINDS:
        raise FaultError(f"no fault of kind {kind!r}; there are: {', '.join(KINDS)}")
    known = set(Fault.__dataclass_fields__) - {"struck"}
    if unknown := sorted(set(entry) - known):
        raise FaultError(f"{kind}: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    fault = Fault(**{"seconds": _DEFAULT_SECONDS.get(kind, 0.0), **entry})
    if not isinstance(fault.probability, int | float) or not 0 <= fault.probability <= 1:
        raise FaultError(f"{kind}: probability must lie between 0 and 1")
    if fault.next_n is not None and (not isinstance(fault.next_n, int) or fault.next_n < 0):
        raise FaultError(f"{kind}: next_n must be a whole number, 0 or more")
    if fault.endpoint is not None and fault.endpoint not in ENDPOINTS:
        raise FaultError(f"{kind}: endpoint must be one of {', '.join(ENDPOINTS)}")
    if not isinstance(fault.seconds, int | float):
        raise FaultError(f"{kind}: seconds must be a number")
    return fault
