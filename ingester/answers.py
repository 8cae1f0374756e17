"""What an answer of X means: its verdict and, for a page, the facts the collector needs. Pure."""

import json
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from ingester.model import Answer, PageFacts
from schemas.snowflake import MAX_ID


class Meaning(Enum):
    """What the caller should make of an answer."""

    PAGE = "page"
    RATE_LIMITED = "rate_limited"
    CAP_REACHED = "cap_reached"
    NO_CREDITS = "no_credits"
    NOT_ALLOWED = "not_allowed"
    BAD_REQUEST = "bad_request"
    TROUBLE = "trouble"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The meaning of an answer, a sentence about it, and the page if it is one."""

    meaning: Meaning
    detail: str = ""
    page: PageFacts | None = None


class _Item(msgspec.Struct):
    id: str


class _Includes(msgspec.Struct):
    tweets: list[_Item] = []
    posts: list[_Item] = []
    users: list[_Item] = []


class _Meta(msgspec.Struct):
    result_count: int
    next_token: str | None = None


class _Page(msgspec.Struct):
    meta: _Meta
    data: list[_Item] = []
    includes: _Includes = msgspec.field(default_factory=_Includes)


_decode_page = msgspec.json.Decoder(_Page).decode


def judge(answer: Answer) -> Verdict:
    """Tell what an answer means. Never raises: whatever X sends has a verdict.

    The two kinds of 429 and 402 are told apart by the last path segment of the problem's `type`, then by its `title`,
    then by the status: X's hosts and prose change, those did not (recorded answers, 2023 to 2026).
    """
    if answer.status == 200:
        return Verdict(Meaning.PAGE, page=page_facts(answer.body))
    problem = _problem(answer.body)
    name = str(problem.get("type", "")).rsplit("/", 1)[-1]
    title = str(problem.get("title", ""))
    detail = _detail(answer.status, problem)
    if name == "usage-capped" or title == "UsageCapExceeded":
        return Verdict(Meaning.CAP_REACHED, detail)
    if name == "credits" or title == "CreditsDepleted" or answer.status == 402:
        return Verdict(Meaning.NO_CREDITS, detail)
    if answer.status == 429:
        return Verdict(Meaning.RATE_LIMITED, detail)
    if answer.status in {401, 403}:
        return Verdict(Meaning.NOT_ALLOWED, detail)
    if 400 <= answer.status < 500 and answer.status != 408:
        return Verdict(Meaning.BAD_REQUEST, detail)
    return Verdict(Meaning.TROUBLE, detail)


def page_facts(body: bytes) -> PageFacts:
    """Read the facts off a page. A body that is no page gives facts with a `problem` and nothing else."""
    try:
        page = _decode_page(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _page_facts_of_anything(body)
    if not page.data and page.meta.result_count:
        return _page_facts_of_anything(body)
    ids = tuple(number for item in page.data if (number := _id(item.id)) is not None)
    return PageFacts(
        result_count=len(page.data),
        post_ids=ids,
        next_token=page.meta.next_token or None,
        included_posts=len({item.id for item in page.includes.tweets} | {item.id for item in page.includes.posts}),
        included_users=len({item.id for item in page.includes.users}),
    )


@dataclass(frozen=True, slots=True)
class CountsFacts:
    """What the collector needs to know of an answer with counts."""

    buckets: int
    total: int
    next_token: str | None
    problem: str | None = None


def counts_facts(body: bytes) -> CountsFacts:
    """Read them off, in either vocabulary. A body without counts gives a `problem` and nothing else."""
    found = _problem(body)
    data, meta = found.get("data", []), found.get("meta")
    if not isinstance(data, list) or not isinstance(meta, dict):
        return CountsFacts(0, 0, None, "the body holds no counts")
    total = meta.get("total_tweet_count", meta.get("total_post_count"))
    token = meta.get("next_token")
    if not isinstance(total, int):
        return CountsFacts(0, 0, None, "the body holds no total")
    return CountsFacts(len(data), total, token if isinstance(token, str) and token else None)


def posts_by_day(body: bytes) -> dict[str, int] | None:
    """What X counted as read by this app on each UTC day (`2026-11-20`), off an answer of /2/usage/tweets.

    None if that cannot be told: no such answer, or several apps share the project, and X names them by numbers that
    nobody told us. Counts come as text or as numbers (X's OpenAPI 2.166 and 2.167 differ).
    """
    data = _problem(body).get("data")
    apps = data.get("daily_client_app_usage") if isinstance(data, dict) else None
    if not isinstance(apps, list) or len(apps) != 1 or not isinstance(apps[0], dict):
        return None
    days = apps[0].get("usage")
    try:
        return {str(day["date"])[:10]: int(day["usage"]) for day in days or []}
    except (TypeError, KeyError, ValueError):
        return None


def _page_facts_of_anything(body: bytes) -> PageFacts:
    """The slow way, for a page with something odd in it: use what can be used, name what cannot."""
    try:
        page = json.loads(body)
    except (ValueError, RecursionError):
        return _unusable("the body is not JSON")
    if not isinstance(page, dict):
        return _unusable("the body is not a JSON object")
    data = page.get("data") or []
    meta = page.get("meta") or {}
    if not isinstance(data, list) or not isinstance(meta, dict):
        return _unusable("data or meta is not what X documents")
    count = meta.get("result_count")
    token = meta.get("next_token") or None
    if not data and (count != 0 or isinstance(count, bool)):  # X says of an empty page that it is: `"result_count": 0`
        return _without_posts(count)
    ids = tuple(number for item in data if isinstance(item, dict) and (number := _id(item.get("id"))) is not None)
    includes = page.get("includes") if isinstance(page.get("includes"), dict) else {}
    is_text = isinstance(token, str) and _is_utf8(token)
    return PageFacts(
        result_count=len(data),
        post_ids=ids,
        next_token=token if is_text else None,
        included_posts=_distinct(includes, "tweets") + _distinct(includes, "posts"),
        included_users=_distinct(includes, "users"),
        problem=None if data or is_text or token is None else "X says there is more, and not how to ask for it",
        tells_its_end="meta" in page and (is_text or token is None),
    )


def _without_posts(count: Any) -> PageFacts:
    """A body without posts that does not say that there are none: it covers nothing."""
    told = count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else 0
    problem = f"X says that there are {told} posts and sends none" if told else "the body is not a page of posts"
    return PageFacts(told, (), None, 0, 0, problem)


def _is_utf8(text: str) -> bool:
    """JSON can hold half of a character, which no file of ours can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unusable(problem: str) -> PageFacts:
    return PageFacts(0, (), None, 0, 0, problem, is_countable=False)


def _distinct(includes: Any, name: str) -> int:
    items = includes.get(name)
    if not isinstance(items, list):
        return 0
    return len({str(item.get("id")) for item in items if isinstance(item, dict)})


def _id(value: Any) -> int | None:
    """An id as X documents it: up to 19 digits; beyond int64, negative or not a number is none."""
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > 19:
        return None
    number = int(value)
    return number if number <= MAX_ID else None


def _problem(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _detail(status: int, problem: dict[str, Any]) -> str:
    """A short sentence; X's error bodies echo our parameters, so they are cut."""
    errors = problem.get("errors")
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    said = first.get("message") or problem.get("detail") or problem.get("title") or "no JSON explanation"
    return f"{status}: {str(said)[:300]}".encode(errors="replace").decode()
