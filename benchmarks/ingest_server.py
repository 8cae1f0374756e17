"""The server side of the ingest benchmark: pages of recent search, made beforehand and sent as X sends them, in gzip.

Its clock stands still at the end of the simulated world, so every client asks for the same window and gets the same
pages: ids descend, each page names the next one by `next_token`, and there is always one more than anybody asks for.
"""

import asyncio
import gzip
import json
import os
import random
import re
import string
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import click
import numpy as np
from aiohttp import web

from ingester.model import RICH
from sandbox.pages import Pages, fields_of
from sandbox.world import Spot, World, WorldSettings
from schemas import snowflake

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
"""X's now, in every Date header."""
NEWEST = NOW - timedelta(seconds=15)
"""Newer posts are not served: a client that leaves X's index time to settle asks for nothing newer."""
PAGE = 100
TWEETS_PER_SECOND = 40.0
GZIP_LEVEL = 6


def pages(count: int) -> Iterator[bytes]:
    """Bodies of `count` pages in their order, newest posts first, all fields, with includes."""
    end_ms = int(NOW.timestamp() * 1000)
    hours = 1.5 * count * PAGE / TWEETS_PER_SECOND / 3600
    settings = WorldSettings(tweets_per_second=TWEETS_PER_SECOND, backlog_hours=min(168.0, max(hours, 0.2)))
    world = World(settings, end_ms - int(settings.backlog_hours * 3_600_000))
    spots = _newest(world, count * PAGE, end_ms)
    maker = Pages(world)
    fields = fields_of(
        (
            ("tweet.fields", ",".join(RICH.tweet_fields)),
            ("expansions", ",".join(RICH.expansions)),
            ("user.fields", ",".join(RICH.user_fields)),
            ("media.fields", ",".join(RICH.media_fields)),
            ("place.fields", ",".join(RICH.place_fields)),
            ("poll.fields", ",".join(RICH.poll_fields)),
        )
    )
    for index in range(count):
        chosen = spots[index * PAGE : (index + 1) * PAGE]
        yield maker.page(fields, chosen, end_ms, next_token=str(index + 1)).body


def _newest(world: World, count: int, end_ms: int) -> list[Spot]:
    """The newest posts of the world, whatever they are about, newest first."""
    newest = snowflake.first_id_at(NEWEST)
    spots: list[Spot] = []
    for stretch in range(world.stretch_at(end_ms), world.stretch_at(world.begins_ms) - 1, -1):
        columns = world.columns(stretch)
        found = np.flatnonzero(world.findable(columns, end_ms) & (columns.id < newest))[::-1]
        spots += [Spot(stretch, int(slot)) for slot in found]
        if len(spots) >= count:
            return spots[:count]
    raise ValueError(f"the world has {len(spots)} posts, {count} are needed")


_WORDS = re.compile(rb'"(text|description|url)":"((?:[^"\\\\]|\\\\.)*)"')
_LETTERS = (string.ascii_letters + string.digits).encode()


def scrambled(body: bytes, chance: random.Random) -> bytes:
    """The page with random letters for its texts and addresses: as long as before, and harder to compress than real ones."""

    def letters(match: re.Match[bytes]) -> bytes:
        return b'"%s":"%s"' % (match[1], bytes(chance.choices(_LETTERS, k=len(match[2]))))

    return _WORDS.sub(letters, body)


def application(answers: list[bytes]) -> web.Application:
    """Serves the gzip'd pages by their token; 401 to whoever brings none, as X does."""
    headers = {
        "Date": NOW.strftime("%a, %d %b %Y %H:%M:%S GMT"),
        "Content-Type": "application/json; charset=utf-8",
        "x-rate-limit-limit": "1000000",
        "x-rate-limit-remaining": "999999",
        "x-rate-limit-reset": str(int(NOW.timestamp()) + 900),
        "x-response-time": "112",
        "x-transaction-id": "5c3b1f0a9d7e2468",
    }

    async def search(request: web.Request) -> web.Response:
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers=headers, body=b'{"title":"Unauthorized","status":401}')
        index = int(request.query.get("next_token", "0"))
        return web.Response(body=answers[index], headers={**headers, "Content-Encoding": "gzip"})

    app = web.Application()
    app.add_routes([web.get("/2/tweets/search/recent", search)])
    return app


async def _serve(answers: list[bytes], facts: dict[str, float]) -> None:
    """Serve until whoever started this process closes its standard input, or ends."""
    runner = web.AppRunner(application(answers), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(json.dumps({"url": f"http://{host}:{port}", **facts}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


@click.command()
@click.option("--pages", "count", type=int, required=True)
@click.option("--core", type=int, required=True)
@click.option("--hard", is_flag=True, help="Texts and addresses of random letters.")
def main(count: int, core: int, hard: bool) -> None:
    """Make the pages, tell the address and their mean sizes in bytes as a line of JSON, serve them on loopback."""
    os.sched_setaffinity(0, {core})
    answers, size = [], 0
    chance = random.Random(1)
    for made in pages(count):
        body = scrambled(made, chance) if hard else made
        size += len(body)
        answers.append(gzip.compress(body, GZIP_LEVEL, mtime=0))
    facts = {"json_bytes": size / count, "gzip_bytes": sum(map(len, answers)) / count}
    asyncio.run(_serve(answers, facts))


if __name__ == "__main__":
    main()
