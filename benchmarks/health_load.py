"""Asks the health endpoints so many times a second, as a crowd of monitors would, from a process of its own.

    python -m benchmarks.health_load URL REQUESTS_A_SECOND SECONDS

Prints one JSON object: how many were answered, how many not with 200, and how long the slowest hundredth took.
"""

import asyncio
import json
import sys
import time

import aiohttp

PATHS = ("/healthz", "/status", "/metrics", "/readyz", "/", "/livez")
CONNECTIONS = 50


async def load(url: str, rate: float, seconds: float) -> dict[str, float]:
    """Each connection asks on its own beat, so that a slow answer does not hold back the others."""
    began, took, failed = time.monotonic(), list[float](), 0

    async def ask(client: aiohttp.ClientSession, number: int) -> None:
        nonlocal failed
        beat, turn = CONNECTIONS / rate, 0
        while (due := number / rate + turn * beat) < seconds:
            await asyncio.sleep(began + due - time.monotonic())
            sent = time.monotonic()
            async with client.get(PATHS[(number + turn) % len(PATHS)]) as answer:
                await answer.read()
                failed += answer.status != 200
            took.append(time.monotonic() - sent)
            turn += 1

    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(url, connector=connector) as client:
        await asyncio.gather(*(ask(client, number) for number in range(CONNECTIONS)))
    spent = time.monotonic() - began
    return {"rate": len(took) / spent, "failed": failed, "p99": sorted(took)[int(len(took) * 0.99)]}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))))
