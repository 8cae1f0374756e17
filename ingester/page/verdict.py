"""The one look: a level, a word and a sentence for the service and for each query. Pure, off `Report.status()`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ingester.page.words import count, span

Level = Literal["good", "busy", "waiting", "attention", "bad"]
RANK: Mapping[Level, int] = {"bad": 0, "attention": 1, "waiting": 2, "busy": 3, "good": 4}
"""The worst first."""

Status = Mapping[str, Any]

BEHIND_AFTER_POLLS = 3
BEHIND_AFTER_SECONDS = 120.0
"""A query is behind when something older than three of its intervals, and at least this, is not covered yet."""
BEGINS_FOR = 60.0
"""Seconds in which a start is a start, and not a service that does not collect."""

_HOLDS: Mapping[str, tuple[Level, str]] = {
    "rate": ("waiting", "Paused: X's rate window is used up"),
    "budget": ("waiting", "Paused: the budget is used up"),
    "disk": ("bad", "Paused: no room on the disk"),
    "not_allowed": ("bad", "Not collecting: X refuses the credentials"),
    "no_credits": ("bad", "Not collecting: no credits left at X"),
    "cap_reached": ("bad", "Not collecting: X's own cap is reached"),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How it is: the level gives the symbol, the word the title, the sentence what a person asks next."""

    level: Level
    word: str
    sentence: str


def verdict(status: Status) -> Verdict:
    """Of the whole service."""
    kinds = _broken_kinds(status)
    if status["lease"]["standing"] == "theirs":
        return Verdict(
            "waiting", "Standing by: another ingester collects", "What this one has in its spool is shipped."
        )
    if (held := _held(status)) is not None:
        return held
    if "loop" in kinds:
        return Verdict("bad", "A part of the service hangs", "Everything that is durable stays so.")
    if not status["ready"]:
        return _beginning(status)
    return _collecting(status, kinds)


def _broken_kinds(status: Status) -> list[str]:
    return [check["kind"] for check in status["components"] if not check["ok"]]


def _held(status: Status) -> Verdict | None:
    if status["spool"]["lacks_room"]:
        return Verdict(*_HOLDS["disk"], "Nothing is asked until there is room; X keeps seven days.")
    x = status["x"] or {}
    if (held := _HOLDS.get(x.get("hold") or "")) is None:
        return None
    too_small = (status["budget"] or {}).get("too_small")
    if x["hold"] == "budget" and too_small:
        caps = " and ".join(f"budget.{cap}" for cap in too_small)
        return Verdict("bad", "Not collecting: a cap is too small for one page", f"It stays so until you raise {caps}.")
    if not x["paused_until"]:
        return Verdict(*held, "It goes on by itself.")
    left = (datetime.fromisoformat(x["paused_until"]) - datetime.fromisoformat(status["now"])).total_seconds()
    if x["hold"] in {"rate", "budget"}:
        return Verdict(*held, f"It goes on by itself in {span(left)}; X keeps seven days.")
    return Verdict(*held, f"It is tried again in {span(left)}; X keeps seven days.")


def _beginning(status: Status) -> Verdict:
    age = (datetime.fromisoformat(status["now"]) - datetime.fromisoformat(status["started_at"])).total_seconds()
    if age < BEGINS_FOR:
        return Verdict("waiting", "Starting", "No page has come yet.")
    return Verdict("bad", "Not collecting", f"No page has come in the {span(age)} since the start.")


def _collecting(status: Status, kinds: list[str]) -> Verdict:
    queries = status["queries"]
    late = kinds.count("query")
    if late == len(queries):
        return Verdict("bad", "Not collecting", "No query gets pages.")
    if late:
        words = f"No pages come for {late:,} of {count(len(queries), 'query', 'queries')}."
        return Verdict("bad", "Collecting in part", words)
    if kinds:
        words = f"{count(len(kinds), 'check is', 'checks are')} not well."
        return Verdict("attention", "Collecting, with something to mend", words)
    behind = [query for query in queries if _is_behind(query)]
    largest = max((query["covered_lag_seconds"] or 0.0 for query in queries), default=0.0)
    if behind:
        words = f"{len(behind):,} of {count(len(queries), 'query', 'queries')} behind, the furthest by {span(largest)}."
        return Verdict("busy", "Collecting, and catching up", words)
    queries_words = "The query is" if len(queries) == 1 else f"All {len(queries):,} queries are"
    return Verdict("good", "Collecting", f"{queries_words} up to date, {span(largest)} behind X at most.")


def of_query(query: Status, status: Status) -> Verdict:
    """Of one query. The sentence is the problem, if there is one."""
    problem = query["problem"] or ""
    x = status["x"] or {}
    if not status["x"]:
        return Verdict("waiting", "not asked", problem)
    if x["hold"] in _HOLDS:
        return Verdict("waiting", "paused", problem)
    if query.get("too_small"):
        return Verdict("bad", "own cap too small", problem)
    if problem.startswith(f"query {query['name']}."):
        return Verdict("waiting", "own cap reached", problem)
    if query.get("refused") or query["late_seconds"]:
        return Verdict("bad", "refused by X" if query.get("refused") else "late", problem)
    if query["last_page_at"] is None:
        return Verdict("waiting", "no page yet", problem)
    if _is_behind(query):
        return Verdict("busy", "catching up", problem)
    return Verdict("good", "up to date", problem)


def worst_first(queries: Iterable[Status], status: Status) -> list[tuple[Status, Verdict]]:
    """Queries with their verdicts; those in need of a look come first, otherwise in the order of the settings."""
    found = [(query, of_query(query, status)) for query in queries]
    return sorted(found, key=lambda pair: RANK[pair[1].level])


def _is_behind(query: Status) -> bool:
    lag = query["covered_lag_seconds"]
    return lag is not None and lag > max(BEHIND_AFTER_POLLS * query["poll_every_seconds"], BEHIND_AFTER_SECONDS)
