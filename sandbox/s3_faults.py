"""An HTTP proxy before a real S3 server, whose faults are switched while it runs; it keeps what struck and what passed.

Everything that no fault strikes is passed on as it came, the Host header too, because it is part of the signature.
"""

import asyncio
import contextlib
import random
import re
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

from sandbox.beside import in_thread, reset_connection
from sandbox.s3 import RunningS3

Call = Literal["put", "get", "head", "list", "delete"]

REFUSALS = {
    "conflict_409": (409, "ConditionalRequestConflict", "A conflicting operation occurred during this request."),
    "error_500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slow_down_503": (503, "SlowDown", "Please reduce your request rate."),
    "denied_403": (403, "AccessDenied", "Access Denied"),
    "expired_400": (400, "ExpiredToken", "The provided token has expired."),
    "no_bucket_404": (404, "NoSuchBucket", "The specified bucket does not exist"),
}
"""Answers in the place of S3's; the request is not carried out."""
KINDS = {
    **{kind: f"{status} {code}" for kind, (status, code, _) in REFUSALS.items()},
    "outage": "every connection is reset, for `seconds` from the moment it is set",
    "reset": "the connection is reset before the request is carried out",
    "reset_in_request": "the connection is reset when half of the request's body has gone to S3",
    "flip_request": "a byte of the request's body changes on its way; S3 has to refuse it",
    "slow": "the request is carried out `seconds` (1) late",
    "hang": "nothing happens for `seconds` (3600) or until the client gives up; then a reset",
    "lose_answer": "the request is carried out, and the connection is closed in the place of the answer",
    "reset_in_answer": "the connection is reset in the middle of the answer's body",
    "flip_answer": "a byte of the answer's body changes on its way",
}
AFTERWARDS = {"lose_answer", "reset_in_answer", "flip_answer"}
"""Faults of an answer, when S3 has done what it was asked."""
_NEEDS_BODY = {"reset_in_request", "flip_request", "reset_in_answer", "flip_answer"}
_DEFAULT_SECONDS = {"slow": 1.0, "hang": 3_600.0}
_HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding", "content-length"}
_AUTOMATIC = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


@dataclass(slots=True)
class S3Fault:
    """One fault that is set. It waits for requests that it can strike. `next_n` counts down; `struck` counts up."""

    kind: str
    call: Call | None = None
    """None: any."""
    key: str = ""
    """A regular expression, searched in the key, or in the prefix of a listing."""
    probability: float = 1.0
    next_n: int | None = None
    seconds: float | None = None
    struck: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault of kind {self.kind!r}; there are: {', '.join(KINDS)}")
        if self.seconds is None:
            self.seconds = _DEFAULT_SECONDS.get(self.kind, 0.0)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is over: when it came (monotonic seconds), what it wanted, and the status or fault that it met."""

    at: float
    call: Call
    key: str
    outcome: str


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes


class S3Proxy:
    """The proxy. `set_faults`, `requests` and the counts may be called from any thread."""

    def __init__(self, s3: RunningS3, *, seed: int = 1) -> None:
        self._origin = s3
        self._random = random.Random(seed)
        self._faults: list[S3Fault] = []
        self._outages_end: dict[int, float] = {}
        self._asked: deque[Asked] = deque(maxlen=200_000)
        self._passed: Counter[str] = Counter()
        self._struck: Counter[tuple[str, str]] = Counter()
        self._closing = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def s3(self) -> RunningS3:
        """The S3 server as it is seen through the proxy."""
        return replace(self._origin, endpoint_url=f"http://127.0.0.1:{self._port}")

    def set_faults(self, *faults: S3Fault) -> None:
        """Replace all faults by these; none clears them."""
        now = time.monotonic()
        self._outages_end = {id(fault): now + (fault.seconds or 0) for fault in faults if fault.kind == "outage"}
        self._faults = list(faults)

    def requests(self, call: Call | None = None, key: str = "") -> list[Asked]:
        """Those of the last 200,000 that were of this call, if given, and whose key holds the expression."""
        wanted = re.compile(key)
        asked = list(self._asked)
        return [one for one in asked if call in {None, one.call} and wanted.search(one.key)]

    @property
    def passed(self) -> dict[str, int]:
        """How many requests were answered by S3 without a fault, by call."""
        return dict(self._passed)

    @property
    def struck(self) -> dict[tuple[str, str], int]:
        """How often each kind of fault struck each call."""
        return dict(self._struck)

    async def start(self) -> None:
        """Listen on a free port."""
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=0),
        )
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close every connection and stop listening."""
        self._closing.set()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    # The way of a request.

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        at = time.monotonic()
        call, key = _told(request)
        try:
            outcome, answer = await self._carry_out(request, call, key)
        except (aiohttp.ClientError, OSError):
            outcome, answer = "gone", None  # the server has gone, or the client while it was sending
        if outcome in KINDS:
            self._struck[outcome, call] += 1
        else:
            self._passed[call] += 1
        self._asked.append(Asked(at, call, key, outcome))
        response = None
        if answer is not None:
            with contextlib.suppress(ConnectionResetError):  # the client was killed meanwhile
                response = await self._deliver(request, answer, whole=outcome != "reset_in_answer")
        if outcome == "lose_answer" and request.transport is not None:
            request.transport.close()
        elif response is None:
            reset_connection(request.transport)
        return response or web.Response(status=500)  # which nobody reads

    async def _carry_out(self, request: web.Request, call: Call, key: str) -> tuple[str, "_Answer | None"]:
        """What came of it, and the answer; none when the connection is to be broken."""
        fault = self._strikes(call, key, afterwards=False, has_body=(request.content_length or 0) > 1)
        kind = fault.kind if fault else ""
        if fault is not None and kind in {"slow", "hang"}:
            await self._linger(request, fault.seconds or 0)
        if kind in {"outage", "reset", "hang"}:
            return kind, None
        if kind == "reset_in_request":
            await self._send_half(request)
            return kind, None
        body = await request.content.read()
        if kind in REFUSALS:
            return kind, _refusal(kind)
        async with self._ask(request, _flipped(body) if kind == "flip_request" else body) as answered:
            content = await answered.read()
        after = self._strikes(call, key, afterwards=True, has_body=len(content) > 1)
        outcome = after.kind if after else kind or str(answered.status)
        if outcome == "lose_answer":
            return outcome, None
        if outcome == "flip_answer":
            content = _flipped(content)
        return outcome, _Answer(answered.status, answered.headers, content)

    def _ask(
        self, request: web.Request, body: "bytes | AsyncIterator[bytes]", length: int | None = None
    ) -> "aiohttp.client._RequestContextManager":
        assert self._session is not None
        headers = _passed_on(request.headers)
        headers.append(("Content-Length", str(len(body) if isinstance(body, bytes) else length)))
        url = URL(self._origin.endpoint_url + request.raw_path, encoded=True)
        return self._session.request(
            request.method, url, headers=headers, data=body, skip_auto_headers=_AUTOMATIC, allow_redirects=False
        )

    async def _send_half(self, request: web.Request) -> None:
        length = request.content_length or 0

        async def half() -> AsyncIterator[bytes]:
            yield await request.content.readexactly(length // 2)
            raise ConnectionResetError("as the fault wants it")

        with contextlib.suppress(aiohttp.ClientError, OSError, asyncio.IncompleteReadError):
            async with self._ask(request, half(), length):
                pass

    async def _deliver(self, request: web.Request, answer: "_Answer", *, whole: bool) -> web.StreamResponse | None:
        """Send the answer, or half of it: then the connection is to be reset."""
        response = web.StreamResponse(status=answer.status)
        response.headers.extend(_passed_on(answer.headers))
        content = b"" if request.method == "HEAD" else answer.content
        told = answer.headers.get("Content-Length", "0") if request.method == "HEAD" else str(len(content))
        response.content_length = int(told)
        await response.prepare(request)
        await response.write(content if whole else content[: len(content) // 2])
        if not whole:
            await asyncio.sleep(0.02)  # so that the first half is on its way before the connection breaks
            return None
        await response.write_eof()
        return response

    async def _linger(self, request: web.Request, seconds: float) -> None:
        """Wait, but not for a client that has gone, nor when the proxy stops."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0 and not self._closing.is_set():
            if request.transport is None or request.transport.is_closing():
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), min(left, 0.1))

    def _strikes(self, call: Call, key: str, *, afterwards: bool, has_body: bool) -> S3Fault | None:
        """The first fault that strikes now, in the order they were set; it is used up by that."""
        for fault in self._faults:
            if (fault.kind in AFTERWARDS) is not afterwards or fault.next_n == 0:
                continue
            if fault.call not in {None, call} or not re.search(fault.key, key):
                continue
            if fault.kind in _NEEDS_BODY and not has_body:
                continue
            if fault.kind == "outage" and time.monotonic() > self._outages_end.get(id(fault), 0):
                continue
            if fault.probability < 1 and self._random.random() >= fault.probability:
                continue
            if fault.next_n is not None:
                fault.next_n -= 1
            fault.struck += 1
            return fault
        return None


@contextlib.contextmanager
def running_s3_proxy(s3: RunningS3, *, seed: int = 1) -> Iterator[S3Proxy]:
    """Run a proxy before an S3 server, in a thread, while the block lasts."""
    proxy = S3Proxy(s3, seed=seed)
    with in_thread(proxy, "the proxy before S3"):
        yield proxy


def _told(request: web.Request) -> tuple[Call, str]:
    """Which call it is, and of which key (of which prefix, for a listing). Addressed path-style."""
    _, _, key = request.path.removeprefix("/").partition("/")
    if request.method == "GET" and not key:
        return "list", request.query.get("prefix", "")
    if request.method == "DELETE" or "delete" in request.query:
        return "delete", key
    calls: dict[str, Call] = {"GET": "get", "HEAD": "head"}
    return calls.get(request.method, "put"), key


def _passed_on(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP]


def _refusal(kind: str) -> _Answer:
    status, code, message = REFUSALS[kind]
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return _Answer(status, {"Content-Type": "application/xml"}, body.encode())


def _flipped(content: bytes) -> bytes:
    """With one bit of its middle byte changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
