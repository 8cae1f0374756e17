"""Servers on an event loop of their own beside synchronous code; and breaking a connection as a broken network does."""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_PATIENCE_SECONDS = 10.0


class Server(Protocol):
    """What can be started and stopped on an event loop."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


@contextmanager
def in_thread(server: Server, name: str) -> Iterator[asyncio.AbstractEventLoop]:
    """Run a server in a thread while the block lasts. Yields its event loop.

    Raises RuntimeError if it does not start.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=name, daemon=True)
    thread.start()
    try:
        try:
            asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        except Exception as error:
            raise RuntimeError(f"{name} did not start: {error}") from error
        try:
            yield loop
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(_PATIENCE_SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE_SECONDS)
        loop.close()


def reset_connection(transport: asyncio.BaseTransport | None) -> None:
    """Close a connection with RST, as a broken middlebox does."""
    if not isinstance(transport, asyncio.Transport) or transport.is_closing():
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
