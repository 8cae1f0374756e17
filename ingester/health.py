"""What the service answers about itself over HTTP, on loopback by default: /livez /readyz /healthz /metrics /status and /.

None of them waits for X, S3 or the disk. 200 means yes, 503 means no, with the reasons in the JSON body. What takes long to
tell is told at most once a second, however many ask: the answers share an event loop with what collects.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import SecretStr

from ingester.page import CONTENT_SECURITY_POLICY, FAVICON
from ingester.ports import Clock
from ingester.telemetry import Telemetry

Report = Callable[[], dict[str, Any]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

GOODBYE_SECONDS = 1.0
"""What an answer under way gets at the end; it must not cost the grace time."""
KEPT_SECONDS = 1.0
"""For so long an answer is given again as it was."""
IDLE_SECONDS = 15.0
"""Then a connection on which nothing is asked is closed."""
JSON, HTML, SVG = "application/json; charset=utf-8", "text/html; charset=utf-8", "image/svg+xml"

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""On every answer, also on errors. The page has a policy of its own."""
CHALLENGES = ('Bearer realm="tweetlake"', 'Basic realm="tweetlake, any name, the token as password", charset="UTF-8"')
"""Programs send the token as it is; a browser asks for a password and sends that (RFC 6750, RFC 7617)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, media type and body."""

    status: int
    media: str
    body: bytes


class HealthServer:
    """Serves what the functions report. With a `token`, whoever asks has to send it, but for /livez."""

    def __init__(
        self,
        *,
        status: Report,
        readiness: Report,
        health: Report,
        page: Callable[[], str],
        registry: CollectorRegistry,
        clock: Clock,
        telemetry: Telemetry,
        token: SecretStr | None = None,
    ) -> None:
        self._answers: dict[str, Callable[[], Answer]] = {
            "/": lambda: Answer(200, HTML, page().encode()),
            "/readyz": lambda: _verdict(readiness()),
            "/healthz": lambda: _verdict(health()),
            "/metrics": lambda: Answer(200, CONTENT_TYPE_LATEST, generate_latest(registry)),
            "/status": lambda: _json(200, status()),
            "/favicon.svg": lambda: Answer(200, SVG, FAVICON),
            "/favicon.ico": lambda: Answer(200, SVG, FAVICON),
        }
        self._clock = clock
        self._telemetry = telemetry
        self._kept: dict[str, tuple[float, Answer]] = {}
        self._token = _digest(token.get_secret_value()) if token else None
        self._is_open = False
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int, *, is_open: bool = False) -> str:
        """Listen; returns the URL. `is_open` says that others than this machine can come. Raises OSError when the address
        cannot be had.
        """
        self._is_open = is_open
        app = web.Application(middlewares=[self._guard])
        app.on_response_prepare.append(_add_headers)
        app.router.add_get("/livez", self._livez)
        for path in self._answers:
            app.router.add_get(path, self._answer)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=GOODBYE_SECONDS, keepalive_timeout=IDLE_SECONDS
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self._server = await asyncio.get_running_loop().create_server(self._runner.server, host, port)
        bound = self._server.sockets[0].getsockname()
        url = f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"
        if is_open:
            self._telemetry.listening_openly(_warning(url, has_token=self._token is not None))
        return url

    async def run(self) -> None:
        """Answer for ever, once started. Ends only by cancellation."""
        assert self._server is not None
        await self._server.serve_forever()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def _answer(self, request: web.Request) -> web.Response:
        """What the path tells, or what it told within the last second."""
        path, now = request.path, self._clock.monotonic()
        until, answer = self._kept.get(path, (now, None))
        if answer is None or now >= until:
            answer = self._answers[path]()
            self._kept[path] = (now + KEPT_SECONDS, answer)
        response = web.Response(status=answer.status, body=answer.body, headers={"Content-Type": answer.media})
        if answer.media is HTML:
            response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return response

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Whether it may be asked, and JSON for whatever goes wrong."""
        if request.path != "/livez" and (refusal := self._refusal(request)) is not None:
            return refusal
        try:
            return await handler(request)
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            return _refused(405, f"{request.method} is not answered here", Allow=allowed)
        except web.HTTPException as error:
            known = ", ".join(["/livez", *(path for path in self._answers if "favicon" not in path)])
            return _refused(error.status, f"nothing is here; there are {known}")
        except Exception as error:  # noqa: BLE001 - what tells must not end what collects
            self._telemetry.answering_failed(request.path, repr(error))
            return _refused(500, "this could not be told; the log has the reason")

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self._token is not None:
            given = _token_of(request.headers.get("Authorization", ""))
            if given is None or not hmac.compare_digest(_digest(given), self._token):
                response = _refused(401, "send the token of health.token_file as bearer token")
                response.headers.extend([("WWW-Authenticate", challenge) for challenge in CHALLENGES])
                return response
        elif not self._is_open and not _is_this_machine(request.host):
            return _refused(403, "asked under a foreign name; ask by address or as localhost, or set health.token_file")
        return None


def _token_of(authorization: str) -> str | None:
    """The token of a bearer, or what a browser was given as password."""
    scheme, _, rest = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            return rest.strip()
        case "basic":
            try:
                return base64.b64decode(rest, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return None
    return None


def _digest(token: str) -> bytes:
    """Of one length for every token, so that comparing takes one time."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _is_this_machine(host: str) -> bool:
    """Whether the Host header is an address or localhost. A page of the web that had its own name point here, to read what
    its visitor may read (DNS rebinding), asks by that name.
    """
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    try:
        ip_address(name)
    except ValueError:
        return name.lower() == "localhost"
    return True


def _warning(url: str, *, has_token: bool) -> str:
    if has_token:
        return f"other machines may reach {url}; the token goes there unencrypted: see that the way is encrypted"
    return f"whoever reaches {url} may read names, rules, figures and error texts: health.host is not loopback"


def _verdict(report: dict[str, Any]) -> Answer:
    return _json(503 if report["reasons"] else 200, report)


def _json(status: int, body: dict[str, Any]) -> Answer:
    return Answer(status, JSON, json.dumps(body).encode())


def _refused(status: int, error: str, **headers: str) -> web.Response:
    return web.json_response({"error": error}, status=status, headers=headers)


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "tweetlake"  # and no versions of what is underneath
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
