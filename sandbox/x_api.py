"""The simulated X API over real HTTP: recent search, counts, usage and tokens, with X's rules, errors, limits and faults.

`XApi` is the server; `running_x_api` runs one beside synchronous code and hands out a `RunningXApi` to steer it. Beside
X's own routes there is `/_sandbox/`: faults (GET, POST, DELETE), stats, truth and served, for tests and the demo.
"""

import asyncio
import base64
import binascii
import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from typing import Any

import msgspec
import numpy as np
from aiohttp import web
from isal import isal_zlib

from sandbox.beside import in_thread, reset_connection
from sandbox.faults import DELIVERY, INSTEAD, Fault, FaultError, Faults
from sandbox.leash import leashed
from sandbox.pages import PROBLEMS, Page, Pages, encode
from sandbox.parameters import BadParameters, SearchAsked, counts_asked, search_asked, written
from sandbox.rules import RuleError
from sandbox.world import Lateness, Spot, World, WorldSettings
from schemas.snowflake import EPOCH_MS, MAX_ID, SHIFT

POST_USD = 0.005
USER_USD = 0.010
COUNTS_USD = 0.005
"""X's prices of late 2026."""

_MALFORMED = ("tweet_without_id", "weird_id", "wrong_type_field")
_WEIRD_IDS = ("9223372036854775808", "99999999999999999999999", "-42", "not-a-number", "", "12.5")
_WRONG_TYPES: tuple[tuple[str, Any], ...] = (
    ("text", 12345),
    ("public_metrics", "many"),
    ("created_at", 17),
    ("author_id", {"id": "1"}),
    ("entities", []),
    ("edit_history_tweet_ids", "none"),
    ("possibly_sensitive", "perhaps"),
)


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The account that the simulated X serves, and where it listens. Limits are requests per window of seconds."""

    host: str = "127.0.0.1"
    port: int = 0
    token: str = "sandbox-token"  # noqa: S105 - opens nothing but this sandbox
    api_key: str = "sandbox-key"
    api_secret: str = "sandbox-secret"  # noqa: S105 - as above
    search_limit: int = 450
    counts_limit: int = 300
    usage_limit: int = 50
    window_seconds: float = 900.0
    monthly_cap: int = 3_000_000
    gzip_level: int = 1


@dataclass(slots=True)
class _RateWindow:
    """X counts from the first request on; a window's length later it begins anew with the next request."""

    limit: int
    seconds: float
    ends: float = 0.0
    used: int = 0

    def spend(self, now: float) -> bool:
        """Count a request; False if there was none left."""
        if now >= self.ends:
            self.ends, self.used = now + self.seconds, 0
        if self.used >= self.limit:
            return False
        self.used += 1
        return True

    def headers(self) -> dict[str, str]:
        return {
            "x-rate-limit-limit": str(self.limit),
            "x-rate-limit-remaining": str(self.limit - self.used),
            "x-rate-limit-reset": str(int(self.ends) + 1),
        }


@dataclass(slots=True)
class _Bill:
    """What X would have billed: each post and each user once per UTC day."""

    posts: dict[str, set[int]] = field(default_factory=dict)
    included: dict[str, set[int]] = field(default_factory=dict)
    users: dict[str, set[int]] = field(default_factory=dict)
    counts_requests: int = 0

    def add(self, page: Page, ids: Sequence[int], day: str) -> int:
        """Book a page; returns how many of its posts were new that day."""
        posts = self.posts.setdefault(day, set())
        before = len(posts)
        posts.update(ids)
        self.included.setdefault(day, set()).update(page.included_posts)
        self.users.setdefault(day, set()).update(page.users)
        return len(posts) - before

    def usd(self) -> float:
        """Posts in `data` and counts requests, which X surely bills."""
        return round(sum(map(len, self.posts.values())) * POST_USD + self.counts_requests * COUNTS_USD, 6)

    def worst_usd(self) -> float:
        """With included posts and users, of which X's documents say both."""
        included = sum(len(ids - self.posts.get(day, set())) for day, ids in self.included.items())
        return round(self.usd() + included * POST_USD + sum(map(len, self.users.values())) * USER_USD, 6)


@dataclass(slots=True)
class _Tally:
    """What one rule has cost and brought."""

    requests: int = 0
    pages: int = 0
    posts: int = 0
    billed_posts: int = 0
    served: Counter[int] = field(default_factory=Counter)
    malformed: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is to be sent; `on_sent` runs when all of it has been written."""

    status: int
    body: bytes = b""
    content_type: str = "application/json; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    on_sent: Callable[[], None] = lambda: None


_Handler = Callable[[web.Request, float], _Answer]


class XApi:
    """A server that answers as X does, from a simulated world.

    `now` gives Unix seconds; the world's backlog ends, and its present begins, at the moment of construction. Not
    thread-safe: everything but the constructor belongs to the event loop that runs `start`.
    """

    def __init__(
        self,
        world: WorldSettings | None = None,
        api: ApiSettings | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.settings = api or ApiSettings()
        self._now = now
        world = world or WorldSettings()
        self.world = World(world, int((now() - world.backlog_hours * 3600) * 1000))
        self.faults = Faults(world.seed)
        self._pages = Pages(self.world)
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.port = 0
        self._windows = {
            "search": _RateWindow(self.settings.search_limit, self.settings.window_seconds),
            "counts": _RateWindow(self.settings.counts_limit, self.settings.window_seconds),
            "usage": _RateWindow(self.settings.usage_limit, self.settings.window_seconds),
        }
        self._requests: dict[str, Counter[str]] = {}
        self._tallies: dict[str, _Tally] = {}
        self._asked: dict[str, list[float]] = {}
        self._bill = _Bill()
        self._weird = 0
        self._serial = 0

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://{self.settings.host}:{self.port}"

    async def start(self) -> None:
        """Listen. Raises OSError if the port is taken."""
        app = web.Application()
        for route, endpoint, handler in (
            ("/2/tweets/search/recent", "search", self._search),
            ("/2/tweets/counts/recent", "counts", self._counts),
            ("/2/usage/tweets", "usage", self._usage),
        ):
            app.router.add_get(route, self._served(endpoint, handler), allow_head=False)
        app.router.add_post("/oauth2/token", self._served("token", self._token))
        app.router.add_get("/_sandbox/faults", self._show_faults)
        app.router.add_post("/_sandbox/faults", self._set_faults)
        app.router.add_delete("/_sandbox/faults", self._set_faults)
        app.router.add_get("/_sandbox/stats", self._show_stats)
        app.router.add_get("/_sandbox/truth", self._show_truth)
        app.router.add_get("/_sandbox/served", self._show_served)
        app.router.add_route("*", "/{rest:.*}", self._unknown)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.settings.host, self.settings.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close every connection and stop listening."""
        self._closing.set()
        if self._runner is not None:
            await self._runner.cleanup()

    # --- the way of a request -------------------------------------------------------------------------------------------

    def _served(self, endpoint: str, handler: _Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            if endpoint == "token":
                await request.read()
            now = self._now()
            self._serial += 1
            if endpoint == "search":
                self._asked.setdefault(request.query.get("query", ""), []).append(now)
            answer = self._answer(endpoint, handler, request, now)
            try:
                return await self._deliver(endpoint, request, answer, now)
            except ConnectionResetError:  # the client was killed meanwhile
                self._note(endpoint, "gone")
                return web.Response(status=500)

        return serve

    def _answer(self, endpoint: str, handler: _Handler, request: web.Request, now: float) -> _Answer:
        fault = self.faults.take_any(INSTEAD, endpoint)
        if fault is not None and fault.kind == "unauthorized_401":
            return _problem(401, "Unauthorized")
        window = self._windows.get(endpoint)
        if window is None:
            return _instead(fault, now) if fault is not None else handler(request, now)
        if request.headers.get("Authorization") != f"Bearer {self.settings.token}":
            return _problem(401, "Unauthorized")
        left = window.spend(now)
        if fault is not None:
            answer = _instead(fault, now)
        elif left:
            answer = handler(request, now)
        else:
            answer = _problem(429, "Too Many Requests")
        absent = {"x-rate-limit-reset": ""} if fault is not None and not fault.reset else {}
        headers = {name: value for name, value in {**window.headers(), **answer.headers, **absent}.items() if value}
        return _Answer(answer.status, answer.body, answer.content_type, headers, answer.on_sent)

    async def _deliver(self, endpoint: str, request: web.Request, answer: _Answer, now: float) -> web.StreamResponse:
        fault = self.faults.take_any(DELIVERY, endpoint)
        how = fault.kind if fault is not None else ""
        if fault is not None and how in {"hang", "slow"}:
            if how == "hang":
                self._note(endpoint, how)
            await self._linger(request, fault.seconds)
        transport = request.transport
        if how in {"hang", "reset"} or transport is None:
            if how != "hang":
                self._note(endpoint, how or "gone")
            reset_connection(transport)
            return web.Response(status=500)
        body, headers = answer.body, {**answer.headers, **self._common_headers(now)}
        if body:
            headers["Content-Type"] = answer.content_type
            if "gzip" in request.headers.get("Accept-Encoding", ""):
                body = isal_zlib.compress(body, self.settings.gzip_level, 31)
                headers["Content-Encoding"] = "gzip"
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.content_length = len(body)
        await response.prepare(request)
        if how == "cut_body":
            self._note(endpoint, how)
            await response.write(body[: len(body) // 2])
            transport.close()
            return response
        await response.write(body)
        await response.write_eof()
        self._note(endpoint, str(answer.status))
        answer.on_sent()
        return response

    def _note(self, endpoint: str, outcome: str) -> None:
        self._requests.setdefault(endpoint, Counter())[outcome] += 1

    async def _linger(self, request: web.Request, seconds: float) -> None:
        """Wait, but not for a client that has gone, nor when the server stops."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0 and not self._closing.is_set():
            if request.transport is None or request.transport.is_closing():
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), min(left, 0.1))

    def _common_headers(self, now: float) -> dict[str, str]:
        skew = self.faults.standing("clock_skew")
        serial = f"{self._serial:016x}"
        return {
            "Date": formatdate(now + (skew.seconds if skew else 0.0), usegmt=True),
            "Server": "tsa_sandbox",
            "api-version": "2.166",
            "x-access-level": "read",
            "x-request-id": serial,
            "x-transaction-id": serial,
            "x-response-time": "17",
        }

    # --- X's routes -----------------------------------------------------------------------------------------------------

    def _search(self, request: web.Request, now: float) -> _Answer:
        now_ms = int(now * 1000)
        try:
            asked = search_asked(dict(request.query), now_ms)
        except BadParameters as bad:
            return _invalid(bad)
        tally = self._tallies.setdefault(asked.rule, _Tally())
        tally.requests += 1
        self._let_lateness_hold()
        if self.faults.take("empty_page_with_token", "search"):
            position = asked.token_at(asked.window.until_id, asked.window.offset)
            return _Answer(200, encode({"meta": {"result_count": 0, "next_token": position}}))
        spots, token = self._find(asked, now_ms)
        malformed = self._malformed(spots)
        if malformed and len(spots) + len(malformed) > asked.max_results:
            spots = spots[: asked.max_results - len(malformed)]
            token = self._token_after(asked, spots)
        if asked.token is not None and self.faults.take("repeat_next_token", "search"):
            token = asked.token
        in_order = list(spots)
        if len(spots) > 1 and self.faults.take("ids_out_of_order", "search"):
            self.faults.random.shuffle(in_order)
        page = self._page(asked, in_order, now_ms, token, malformed)
        return _Answer(200, page.body, on_sent=lambda: self._book(tally, page, malformed, now))

    def _find(self, asked: SearchAsked, now_ms: int) -> tuple[list[Spot], str | None]:
        """The posts of a page, newest first (or by relevancy), and the token of the next one."""
        window = asked.window
        wanted = asked.max_results
        if asked.by_relevancy:
            everything = self.world.search(asked.rule, window.since_id, window.until_id, now_ms, 20_000)
            everything.sort(key=lambda spot: int(self.world.columns(spot.stretch).dice[spot.slot]) & 0xFFFF)
            end = window.offset + wanted
            token = asked.token_at(window.until_id, end) if len(everything) > end else None
            return everything[window.offset : end], token
        spots = self.world.search(asked.rule, window.since_id, window.until_id, now_ms, wanted + 1)
        if len(spots) > 1 and self.faults.take("short_page", "search"):
            wanted = min(wanted, len(spots) // 2)
        if len(spots) <= wanted:
            return spots, None
        return spots[:wanted], self._token_after(asked, spots[:wanted])

    def _token_after(self, asked: SearchAsked, spots: Sequence[Spot]) -> str:
        if asked.by_relevancy:
            return asked.token_at(asked.window.until_id, asked.window.offset + len(spots))
        oldest = int(self.world.columns(spots[-1].stretch).id[spots[-1].slot]) if spots else asked.window.until_id
        return asked.token_at(oldest)

    def _page(self, asked: SearchAsked, spots: list[Spot], now_ms: int, token: str | None, malformed: list[dict[str, Any]]) -> Page:  # fmt: skip
        unknown = bool(spots) and self.faults.take("unknown_field", "search") is not None

        def revise(data: list[bytes]) -> list[bytes]:
            if unknown:
                data = [body[:-1] + b',"sandbox_novelty":{"score":0.5,"labels":["new"]}}' for body in data]
            middle = len(data) // 2
            return [*data[:middle], *(_damaged(data[0], damage) for damage in malformed), *data[middle:]]

        return self._pages.page(
            asked.fields,
            spots,
            now_ms,
            next_token=token,
            revise=revise if unknown or malformed else None,
            extra={"sandbox_notice": {"text": "a key of the future"}} if unknown else None,
        )

    def _malformed(self, spots: Sequence[Spot]) -> list[dict[str, Any]]:
        """The objects to add to a page that has posts: what to change in a copy of its first one."""
        if not spots:
            return []
        added: list[dict[str, Any]] = []
        for kind in _MALFORMED:
            fault = self.faults.take(kind, "search")
            if fault is None:
                continue
            self._weird += 1
            damage: dict[str, Any] = {"kind": kind, "id": None}
            if kind == "weird_id":
                damage["id"] = fault.id if fault.id is not None else _WEIRD_IDS[self._weird % len(_WEIRD_IDS)]
            elif kind == "wrong_type_field":
                name, value = _WRONG_TYPES[self._weird % len(_WRONG_TYPES)]
                spot = spots[0]
                # Sequence numbers of the world are small: this id is nobody's.
                damage["id"] = str(int(self.world.columns(spot.stretch).id[spot.slot]) | 2_048 + self._weird % 1_024)
                damage["field"] = fault.field or name
                damage["value"] = fault.value if fault.field else value
            added.append(damage)
        return added

    def _book(self, tally: _Tally, page: Page, malformed: list[dict[str, Any]], now: float) -> None:
        tally.pages += 1
        tally.posts += len(page.ids)
        tally.served.update(page.ids)
        tally.malformed.extend(malformed)
        tally.billed_posts += self._bill.add(page, page.ids, _day(now))

    def _let_lateness_hold(self) -> None:
        late = self.faults.standing("late_index")
        self.world.lateness = Lateness(late.probability, late.seconds) if late else Lateness()

    def _counts(self, request: web.Request, now: float) -> _Answer:
        now_ms = int(now * 1000)
        try:
            asked = counts_asked(dict(request.query), now_ms)
        except BadParameters as bad:
            return _invalid(bad)
        self._let_lateness_hold()
        ids = self.world.ids(asked.rule, asked.window.since_id, asked.window.until_id, now_ms)
        times = (ids >> SHIFT) + EPOCH_MS
        first = (asked.start_ms // asked.bucket_ms + 1) * asked.bucket_ms
        edges = [asked.start_ms, *range(first, asked.end_ms, asked.bucket_ms), max(asked.start_ms, asked.end_ms)]
        at = np.searchsorted(times, edges, side="left")
        at[0], at[-1] = 0, len(ids)
        name = "post_count" if asked.post_names else "tweet_count"
        data = [
            {"end": written(end), "start": written(start), name: int(upper - lower)}
            for start, end, lower, upper in zip(edges, edges[1:], at, at[1:], strict=False)
        ]
        body = encode({"data": data, "meta": {f"total_{name}": len(ids)}})

        def book() -> None:
            self._bill.counts_requests += 1

        return _Answer(200, body, on_sent=book)

    def _usage(self, request: web.Request, now: float) -> _Answer:  # noqa: ARG002 - a handler's shape
        days = request.query.get("days", "7")
        if not days.isascii() or not days.isdigit() or not 1 <= int(days) <= 90:
            message = f"The `days` query parameter value [{days}] is not between 1 and 90"
            return _invalid(BadParameters(({"parameters": {"days": [days]}, "message": message},)))
        usage = [
            {"date": f"{day}T00:00:00.000Z", "usage": str(len(ids))} for day, ids in sorted(self._bill.posts.items())
        ][-int(days) :]
        total = str(sum(map(len, self._bill.posts.values())))
        data = {
            "cap_reset_day": 1,
            "project_cap": str(self.settings.monthly_cap),
            "project_id": "1700000000000000001",
            "project_usage": total,
            "daily_project_usage": {"project_id": "1700000000000000001", "usage": usage},
            "daily_client_app_usage": [{"client_app_id": "28000001", "usage": usage, "usage_result_count": len(usage)}],
        }
        return _Answer(200, encode({"data": data}))

    def _token(self, request: web.Request, now: float) -> _Answer:  # noqa: ARG002 - a handler's shape
        scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
        try:
            pair = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            pair = ""
        known = f"{self.settings.api_key}:{self.settings.api_secret}"
        if scheme != "Basic" or urllib.parse.unquote(pair) != known:
            return _code(403, 99, "Unable to verify your credentials", "authenticity_token_error")
        form = urllib.parse.parse_qs((request._read_bytes or b"").decode("utf-8", "replace"))  # noqa: SLF001 - read above
        if form.get("grant_type") != ["client_credentials"]:
            return _code(400, 170, "Missing required parameter: grant_type", "forbidden_missing_parameter")
        return _Answer(200, encode({"token_type": "bearer", "access_token": self.settings.token}))

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        self._serial += 1
        await request.read()
        return await self._deliver("unknown", request, _problem(404, "Not Found"), self._now())

    # --- the sandbox's own routes -----------------------------------------------------------------------------------------

    async def _set_faults(self, request: web.Request) -> web.Response:
        try:
            wanted = [] if request.method == "DELETE" else json.loads(await request.read())
            if not isinstance(wanted, list):
                raise FaultError("faults are a JSON list of objects")  # noqa: TRY301 - one way to complain
            self.faults.set(wanted)
        except (FaultError, ValueError) as error:
            return _json({"error": str(error)}, status=400)
        self._let_lateness_hold()
        return _json(self.faults.show())

    async def _show_faults(self, _: web.Request) -> web.Response:
        return _json(self.faults.show())

    async def _show_stats(self, _: web.Request) -> web.Response:
        return _json(self.stats())

    async def _show_truth(self, request: web.Request) -> web.Response:
        try:
            since, until = int(request.query.get("since_id", "0")), int(request.query.get("until_id", str(MAX_ID)))
            at = float(request.query["at"]) if "at" in request.query else None
            return _json(self.truth(request.query.get("query", ""), since, until, at))
        except (RuleError, ValueError) as error:
            return _json({"error": str(error)}, status=400)

    async def _show_served(self, request: web.Request) -> web.Response:
        rule = request.query.get("query", "")
        tally = self._tallies.get(rule, _Tally())
        ids = {str(key): times for key, times in tally.served.items()}
        return _json({"ids": ids, "malformed": tally.malformed, "asked_at": self._asked.get(rule, [])})

    def truth(self, rule: str, since_id: int = 0, until_id: int = MAX_ID, at: float | None = None) -> list[int]:
        """The ids between the exclusive bounds that match and that search knows now, or knew `at` a time, ascending.

        Raises RuleError.
        """
        self._let_lateness_hold()
        moment = self._now() if at is None else at
        found: list[int] = self.world.ids(rule, since_id, until_id, int(moment * 1000)).tolist()
        return found

    def stats(self) -> dict[str, Any]:
        """What was asked and served so far, and what X would have billed; sums in US dollars."""
        distinct: set[int] = set().union(*(tally.served for tally in self._tallies.values()))
        return {
            "url": self.url,
            "now": self._now(),
            "begins_ms": self.world.begins_ms,
            "world": asdict(self.world.settings),
            "requests": {endpoint: dict(outcomes) for endpoint, outcomes in self._requests.items()},
            "posts_served": sum(tally.posts for tally in self._tallies.values()),
            "distinct_posts": len(distinct),
            "users_served": len(set().union(*self._bill.users.values())),
            "posts_billed": sum(map(len, self._bill.posts.values())),
            "usd": self._bill.usd(),
            "usd_worst_case": self._bill.worst_usd(),
            "faults_struck": self.faults.struck,
            "per_rule": {
                rule: {
                    "requests": tally.requests,
                    "pages": tally.pages,
                    "posts_served": tally.posts,
                    "distinct_posts": len(tally.served),
                    "malformed": len(tally.malformed),
                    "usd": round(tally.billed_posts * POST_USD, 6),
                }
                for rule, tally in self._tallies.items()
            },
        }


def _day(now: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(now))


def _problem(status: int, title: str) -> _Answer:
    return _Answer(status, encode({"title": title, "type": "about:blank", "status": status, "detail": title}))


def _code(status: int, number: int, message: str, label: str) -> _Answer:
    return _Answer(status, encode({"errors": [{"code": number, "message": message, "label": label}]}))


def _invalid(bad: BadParameters) -> _Answer:
    body = {
        "errors": bad.errors,
        "title": "Invalid Request",
        "detail": "One or more parameters to your request was invalid.",
        "type": PROBLEMS + "invalid-request",
    }
    return _Answer(400, encode(body))


_HTML = b"<!DOCTYPE html><html><head><title>X / Error</title></head><body><h1>Something went wrong</h1></body></html>"


def _instead(fault: Fault, now: float) -> _Answer:
    """The answer that a fault puts in place of the right one."""
    if fault.kind == "rate_429":
        answer = _problem(429, "Too Many Requests")
        reset = str(int(now + fault.seconds) + 1)
        return _Answer(429, answer.body, headers={"x-rate-limit-remaining": "0", "x-rate-limit-reset": reset})
    if fault.kind == "cap_429":
        body = {
            "account_id": 1700000000000000001,
            "product_name": "standard-basic",
            "title": "UsageCapExceeded",
            "period": "Monthly",
            "scope": "Product",
            "detail": "Usage cap exceeded: Monthly product cap",
            "type": PROBLEMS + "usage-capped",
        }
        return _Answer(429, encode(body), headers={"x-rate-limit-limit": "40000", "x-rate-limit-remaining": "39999"})
    if fault.kind == "credits_402":
        body = {
            "title": "CreditsDepleted",
            "detail": "Your enrolled account [1700000000000000001] does not have any credits to fulfill this request.",
            "type": PROBLEMS + "credits",
        }
        return _Answer(402, encode(body))
    if fault.kind == "forbidden_403":
        body = {
            "client_id": "28000001",
            "detail": "When authenticating requests to the X API v2 endpoints, you must use keys and tokens from an App "
            "that is attached to a Project.",
            "reason": "client-not-enrolled",
            "registration_url": "https://developer.x.com/",
            "required_enrollment": "Appropriate Level of API Access",
            "title": "Client Forbidden",
            "type": PROBLEMS + "client-forbidden",
        }
        return _Answer(403, encode(body))
    if fault.kind == "server_503_json":
        return _problem(503, "Service Unavailable")
    if fault.kind == "server_503_html":
        return _Answer(503, _HTML, "text/html; charset=utf-8")
    if fault.kind == "html_200":
        return _Answer(200, _HTML, "text/html; charset=utf-8")
    if fault.kind == "not_json_200":
        return _Answer(200, b'{"data":[{"id":"1","text":"half a')
    return _Answer(500)


def _damaged(body: bytes, damage: Mapping[str, Any]) -> bytes:
    """A copy of an encoded post, damaged as told."""
    post: dict[str, Any] = msgspec.json.decode(body)
    post.pop("id", None)
    if damage["id"] is not None:
        post = {"id": damage["id"], **post}
    if "field" in damage:
        post[damage["field"]] = damage["value"]
    return encode(post)


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(body=encode(body), status=status, content_type="application/json")


# --- beside synchronous code ----------------------------------------------------------------------------------------------


class RunningXApi:
    """A simulated X that runs, in another thread or process; every call goes over HTTP and may come from any thread."""

    def __init__(self, url: str, api: ApiSettings) -> None:
        self.url = url
        self.token = api.token
        self.api_key = api.api_key
        self.api_secret = api.api_secret

    def set_faults(self, *faults: Mapping[str, Any]) -> None:
        """Replace all faults by these (see sandbox.faults); none clears them. Raises ValueError for a wrong one."""
        self._call("/_sandbox/faults", json.dumps(faults).encode())

    def faults(self) -> list[dict[str, Any]]:
        """The faults that are set, with how often each has struck."""
        found: list[dict[str, Any]] = self._call("/_sandbox/faults")
        return found

    def stats(self) -> dict[str, Any]:
        """See XApi.stats."""
        found: dict[str, Any] = self._call("/_sandbox/stats")
        return found

    def truth(self, rule: str, since_id: int = 0, until_id: int = MAX_ID, at: float | None = None) -> set[int]:
        """The ids between the exclusive bounds that match the rule and that search knows now, or knew `at` a time."""
        when = {} if at is None else {"at": at}
        query = urllib.parse.urlencode({"query": rule, "since_id": since_id, "until_id": until_id, **when})
        return set(self._call(f"/_sandbox/truth?{query}"))

    def asked_at(self, rule: str) -> list[float]:
        """When this rule was asked for, whatever the answer was: Unix seconds, ascending."""
        found: list[float] = self._call("/_sandbox/served?" + urllib.parse.urlencode({"query": rule}))["asked_at"]
        return found

    def served(self, rule: str) -> dict[int, int]:
        """The ids that went out in `data` of a complete answer to this rule, and how often each did."""
        found = self._call("/_sandbox/served?" + urllib.parse.urlencode({"query": rule}))
        return {int(key): times for key, times in found["ids"].items()}

    def malformed(self, rule: str) -> list[dict[str, Any]]:
        """The damaged objects that went out beside them: `kind`, `id` (or None), and `field` and `value` if wrong."""
        found: list[dict[str, Any]] = self._call("/_sandbox/served?" + urllib.parse.urlencode({"query": rule}))["malformed"]  # fmt: skip
        return found

    def _call(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(self.url + path, data=body)  # noqa: S310 - our own http address
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - as above
                return msgspec.json.decode(answer.read())
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode()) from None


@contextlib.contextmanager
def running_x_api(
    world: WorldSettings | None = None,
    api: ApiSettings | None = None,
    *,
    now: Callable[[], float] = time.time,
    process: bool = False,
) -> Iterator[RunningXApi]:
    """Run a simulated X while the block lasts: in a thread, or in a process of its own if its CPU must not be ours.

    A process ends with this one, whatever this one dies of; it takes about a second to start, and its clock is the
    machine's (`now` is for the thread alone). Raises RuntimeError if it does not start.
    """
    api = api or ApiSettings()
    if not process:
        server = XApi(world, api, now=now)
        with in_thread(server, "the simulated X"):
            yield RunningXApi(server.url, api)
        return
    wanted = json.dumps({"world": asdict(world or WorldSettings()), "api": asdict(api)})
    command = [sys.executable, "-m", "sandbox", "x-api", "--settings", wanted, "--quiet"]
    with leashed(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        line = child.stdout.readline().decode().strip()
        if not line.startswith("http://"):
            raise RuntimeError(f"the simulated X did not start: {line or 'no output'}")
        yield RunningXApi(line, api)
