"""Following an interval's pages by token: what a page adds, what is missing after it, when following must end. Pure.

X's pages run from new to old, so after a page everything below its lowest id is missing. X says of its ids that they are
roughly ordered by time; where they are not, the bound stays above what came late, so that going on by bounds leaves
nothing out and at most a page is asked again.
"""

from dataclasses import dataclass
from itertools import pairwise

from ingester.model import PageFacts
from schemas.records import Interval

MOST_IDLE_PAGES = 20
"""Pages in a row that reach no lower, with X saying each time that there is more."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Where following stands. Lost with the process: then the interval goes on by its bounds."""

    until_id: int
    """The upper bound that the chain was begun with; every request of it repeats it."""
    next_token: str
    next_index: int
    max_results: int
    ids: frozenset[int]
    """Of the page before."""
    lowest: int
    """The lowest id so far; the bound itself if there was none."""
    idle: int
    """Pages in a row that did not reach lower."""


@dataclass(frozen=True, slots=True)
class Following:
    """What a page means for its interval."""

    inside: tuple[int, ...]
    """Its ids within the bounds that were asked, in X's order."""
    missing_below: int | None
    """The interval's new resume_below; None leaves it."""
    chain: Chain | None
    """How to ask for the next page by token; None: the interval is done, or goes on by its bounds."""
    is_last: bool
    problem: str | None = None
    """Why the page covers nothing."""
    remark: str | None = None
    """What was odd, though the page counts."""

    @property
    def brings_news(self) -> bool:
        """Whether it had a post within the bounds."""
        return bool(self.inside)


def follow(
    interval: Interval, page: PageFacts, chain: Chain | None, *, max_results: int, problem: str | None = None
) -> Following:
    """What to make of a page that was asked for an interval, by a chain or else by its bounds."""
    until_id = chain.until_id if chain else interval.upper
    inside = tuple(number for number in page.post_ids if interval.since_id < number < until_id)
    lowest = min((chain.lowest if chain else until_id, *inside))
    idle = 0 if chain is None or lowest < chain.lowest else chain.idle + 1
    problem = problem or page.problem or _no_progress(page, inside, chain, idle)
    if problem is not None:
        return Following(inside, None, None, is_last=False, problem=problem)
    if page.next_token is None and page.tells_its_end:
        return Following(inside, None, None, is_last=True)
    missing_below = _missing_below(inside, interval.upper)
    if page.next_token is None:
        return Following(
            inside, missing_below, None, is_last=False, remark="the page does not say whether there is more"
        )
    if chain is not None and page.next_token == chain.next_token:
        return Following(inside, missing_below, None, is_last=False, remark="X repeats a next_token")
    index = chain.next_index + 1 if chain else 1
    further = Chain(until_id, page.next_token, index, max_results, frozenset(inside), lowest, idle)
    return Following(inside, missing_below, further, is_last=False)


def _missing_below(inside: tuple[int, ...], upper: int) -> int | None:
    """The lowest id as long as they descend from what was asked below; else the highest of those that came late."""
    late = next((place for place, (before, after) in enumerate(pairwise((upper, *inside))) if after >= before), None)
    if late is not None:
        return max(inside[late:])
    return min(inside, default=None)


def _no_progress(page: PageFacts, inside: tuple[int, ...], chain: Chain | None, idle: int) -> str | None:
    """Why following this page would go round in circles, if it would."""
    if page.next_token is None and page.tells_its_end:
        return None
    if page.post_ids and not inside:
        return "X says there is more, but the page has nothing within the bounds that were asked"
    if chain is not None and inside and chain.ids.issuperset(inside):
        return "X says there is more, but the page has nothing that the one before did not have"
    if chain is not None and not inside and page.next_token == chain.next_token:
        return "X repeats a next_token"
    if idle >= MOST_IDLE_PAGES:
        return f"{MOST_IDLE_PAGES} pages in a row reached no older post, and X says there is more"
    return None
