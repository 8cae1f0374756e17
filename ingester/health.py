"""What the service answers about itself over HTTP, on loopback by default: /livez /readyz /healthz /metrics /status.

None of them waits for S3 or X. 200 means yes, 503 means no, with the reasons in the JSON body.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Report = Callable[[], dict[str, Any]]

GOODBYE_SECONDS = 1.0
"""What an answer under way gets at the end; it must not cost the grace time."""


class HealthServer:
    """Serves what three functions report."""

    def __init__(self, *, status: Report, readiness: Report, health: Report, registry: CollectorRegistry) -> None:
        self._status = status
        self._readiness = readiness
        self._health = health
        self._registry = registry
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> str:
        """Listen; returns the URL. Raises OSError when the address cannot be had."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/healthz", self._healthz),
                web.get("/metrics", self._metrics),
                web.get("/status", self._status_page),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=GOODBYE_SECONDS)
        await self._runner.setup()
        assert self._runner.server is not None
        self._server = await asyncio.get_running_loop().create_server(self._runner.server, host, port)
        bound = self._server.sockets[0].getsockname()
        return f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"

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

    async def _readyz(self, _request: web.Request) -> web.Response:
        return _verdict(self._readiness())

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _verdict(self._health())

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _status_page(self, _request: web.Request) -> web.Response:
        return web.json_response(self._status())


def _verdict(report: dict[str, Any]) -> web.Response:
    return web.json_response(report, status=503 if report["reasons"] else 200)
