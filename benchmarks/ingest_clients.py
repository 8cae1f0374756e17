"""The clients of the ingest benchmark, each run in a process of its own: the project's path, a floor, two ways with tweepy,
and twarc.

Every client fetches the same pages one after the other. What it costs to start and to warm up is not counted: the meter
begins when the warm-up pages are durable and ends when the measured ones are. Afterwards, off the meter, each client
reads back what it wrote and tells its ids, so that nobody is fast by leaving something out.
"""

import asyncio
import hashlib
import itertools
import json
import os
import resource
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click

TOKEN = "not-a-secret"
RULE = "lake"


@dataclass(frozen=True, slots=True)
class Reading:
    """What the process has used so far: CPU (user and system) and wall in seconds."""

    cpu: float
    wall: float

    @classmethod
    def now(cls) -> "Reading":
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(usage.ru_utime + usage.ru_stime, time.perf_counter())


@dataclass(frozen=True, slots=True)
class Result:
    """What one run used, from the first measured page on."""

    cpu: float
    wall: float
    sealed_cpu: float | None
    """CPU seconds with sealing, for the client that seals."""
    peak_rss: int
    """Bytes, of the whole process since its start."""
    bytes_written: int | None
    bytes_sealed: int | None
    tweets: int
    ids: str
    """SHA-256 over the sorted ids that were read back."""


def _peak_rss() -> int:
    """Bytes. Not ru_maxrss: a child takes over its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


@dataclass(frozen=True, slots=True)
class Job:
    """What a client is to do: `warm_up` pages that do not count, then `pages` that do."""

    url: str
    directory: Path
    warm_up: int
    pages: int

    def result(
        self,
        begin: Reading,
        end: Reading,
        ids: Callable[[], Iterable[int]],
        *,
        sealed: Reading | None = None,
        bytes_written: int | None = None,
        bytes_sealed: int | None = None,
    ) -> Result:
        peak = _peak_rss()
        found = sorted(ids())
        digest = hashlib.sha256(",".join(map(str, found)).encode()).hexdigest()
        return Result(
            cpu=end.cpu - begin.cpu,
            wall=end.wall - begin.wall,
            sealed_cpu=sealed.cpu - begin.cpu if sealed else None,
            peak_rss=peak,
            bytes_written=bytes_written,
            bytes_sealed=bytes_sealed,
            tweets=len(found),
            ids=digest,
        )


# The project's own path.


async def tweetlake(job: Job) -> Result:
    """The parts of the service as `service.py` joins them, without uploader and health server: no page leaves the spool."""
    from pydantic import SecretStr

    from ingester.budget import Prices, Purse, ReadToday
    from ingester.clock import SystemClock
    from ingester.errors import Stopping
    from ingester.journal import Journal
    from ingester.logs import configure_logging
    from ingester.model import RICH, Answer, SearchRequest
    from ingester.pacing import Gate
    from ingester.poller import Poller
    from ingester.spool import Spool
    from ingester.telemetry import Telemetry
    from ingester.x_api import XApi
    from ingester.x_time import XTime
    from schemas.secrets import XSecret
    from schemas.settings import Budget, Price, Query
    from schemas.state import State

    configure_logging(human=False)
    clock = SystemClock()
    telemetry = Telemetry(now=clock.now)
    spool = Spool(job.directory / "spool")
    spool.acquire()
    journal = Journal(
        spool,
        clock,
        telemetry,
        state=State(),
        next_sequence=1,
        seal_after_seconds=3600,
        seal_after_bytes=1_000_000_000,
        max_bytes=5_000_000_000,
        min_free_bytes=0,
    )
    prices = Prices(Price(), RICH)
    gate = Gate(
        clock,
        telemetry,
        x_time=XTime(clock, telemetry),
        purse=Purse(Budget(usd_per_month=None), prices),
        state=lambda: journal.state,
        lacks_room=journal.lacks_room,
        polls_per_second=1 / 30,
        concurrency=4,
    )
    readings: list[Reading] = []
    asked = 0

    class Watched:
        """X, with an eye on which page is asked for. When the next one is, all before it are durable."""

        async def search(self, request: SearchRequest) -> Answer:
            nonlocal asked
            if asked == job.warm_up:
                await journal.seal("warm-up")
                readings.append(Reading.now())
            if asked == job.warm_up + job.pages:
                readings.append(Reading.now())
                raise Stopping("every page is durable")
            asked += 1
            return await x.search(request)

        async def probe(self) -> Answer:
            return await x.probe()

    x = await XApi.open(XSecret(bearer_token=SecretStr(TOKEN)), job.url, clock, timeout_seconds=30)
    poller = Poller(
        Query(name="bench", rule=RULE, poll_every_seconds=30),
        source=Watched(),
        journal=journal,
        gate=gate,
        clock=clock,
        telemetry=telemetry,
        fields=RICH,
        prices=prices,
        read_today=ReadToday(),
        max_results=100,
        stop=asyncio.Event(),
    )
    granting = asyncio.create_task(gate.run())
    gate.x_time.learn(await x.probe())
    await poller.run()
    granting.cancel()
    written = spool.open_bytes
    await journal.seal("end")
    sealed = Reading.now()
    await x.close()
    name = spool.waiting()[-1]

    def ids() -> Iterator[int]:
        from ingester.microbatch import read_records

        for record in read_records(spool.sealed_file(name)):
            yield from _ids_of_body(record["body"] or b"{}")

    begin, end = readings
    return job.result(begin, end, ids, sealed=sealed, bytes_written=written, bytes_sealed=spool.describe(name).bytes)


def _ids_of_body(body: bytes) -> Iterator[int]:
    yield from (int(tweet["id"]) for tweet in json.loads(body).get("data", []))


# What no client can do without.


async def floor(job: Job) -> Result:
    """Fetch and unpack with ISA-L on one connection; nothing is read or kept."""
    import aiohttp
    from isal import isal_zlib

    aiohttp.set_zlib_backend(isal_zlib)
    address = f"{job.url}/2/tweets/search/recent"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    begin = Reading.now()
    async with aiohttp.ClientSession() as session:
        for index in range(job.warm_up + job.pages):
            if index == job.warm_up:
                begin = Reading.now()
            async with session.get(address, params={"next_token": str(index)}, headers=headers) as response:
                await response.read()
        end = Reading.now()
    return job.result(begin, end, list)


# With tweepy as its documentation shows it.


class _Redirected:
    """tweepy's host cannot be set, its session can: the same requests, to the benchmark's server.

    One session for all requests; left alone, tweepy opens one, with its connection, for each.
    """

    def __init__(self, session: Any, url: str) -> None:
        self._session = session
        self._url = url

    def request(self, method: str, url: str, **given: Any) -> Any:
        return self._session.request(method, url.replace("https://api.twitter.com", self._url), **given)


Keep = Callable[[Any], None]
Sink = Callable[[Path], AbstractContextManager[Keep]]


async def _with_tweepy(job: Job, return_type: Any, sink: Sink, ids: Callable[[Path], Iterable[int]]) -> Result:
    """Page through search with a paginator and hand each page to the sink, which makes it durable."""
    import aiohttp
    from tweepy.asynchronous import AsyncClient, AsyncPaginator

    from ingester.model import RICH

    client = AsyncClient(TOKEN, return_type=return_type)
    async with aiohttp.ClientSession() as session:
        client.session = _Redirected(session, job.url)
        found = AsyncPaginator(
            client.search_recent_tweets,
            RULE,
            max_results=100,
            tweet_fields=list(RICH.tweet_fields),
            expansions=list(RICH.expansions),
            user_fields=list(RICH.user_fields),
            media_fields=list(RICH.media_fields),
            place_fields=list(RICH.place_fields),
            poll_fields=list(RICH.poll_fields),
        )
        answers = aiter(found)
        with sink(job.directory / "warm-up") as keep:
            for _ in range(job.warm_up):
                keep(await anext(answers))
        file = job.directory / "measured"
        with sink(file) as keep:
            begin = Reading.now()
            for _ in range(job.pages):
                keep(await anext(answers))
            end = Reading.now()
    return job.result(begin, end, lambda: ids(file), bytes_written=file.stat().st_size)


async def tweepy_avro(job: Job) -> Result:
    """tweepy with dictionaries, one typed Avro record a tweet by fastavro, flush and fdatasync a page."""
    import fastavro

    def ids(path: Path) -> Iterator[int]:
        with path.open("rb") as file:
            records: Iterable[Any] = fastavro.reader(file)
            yield from (record["id"] for record in records)

    return await _with_tweepy(job, dict, _avro_sink, ids)


@contextmanager
def _avro_sink(path: Path) -> Iterator[Keep]:
    import fastavro
    from fastavro.write import Writer

    with path.open("wb") as file:
        writer = Writer(file, fastavro.parse_schema(_tweet_schema()), codec="zstandard")

        def keep(answer: dict[str, Any]) -> None:
            authors = {user["id"]: user for user in answer.get("includes", {}).get("users", [])}
            for tweet in answer.get("data", []):
                writer.write(_row(tweet, authors.get(tweet.get("author_id"), {})))
            writer.flush()
            file.flush()
            os.fdatasync(file.fileno())

        yield keep


def _optional(kind: Any) -> dict[str, Any]:
    return {"type": ["null", kind], "default": None}


def _fields(**kinds: Any) -> list[dict[str, Any]]:
    return [
        {"name": name, **kind} if isinstance(kind, dict) else {"name": name, "type": kind}
        for name, kind in kinds.items()
    ]


def _list_of(name: str, **kinds: Any) -> dict[str, Any]:
    items = {"type": "record", "name": name, "fields": _fields(**kinds)}
    return {"type": {"type": "array", "items": items}, "default": []}


def _tweet_schema() -> dict[str, Any]:
    """The main fields of a tweet; what is included beside it is left out, but for its author's name."""
    text, number = _optional("string"), _optional("long")
    metrics = ("retweet_count", "reply_count", "like_count", "quote_count", "bookmark_count", "impression_count")
    words = {"type": {"type": "array", "items": "string"}, "default": []}
    return {
        "type": "record",
        "name": "tweet",
        "fields": _fields(
            id="long",
            text="string",
            note=text,
            created_at=_optional({"type": "long", "logicalType": "timestamp-millis"}),
            author_id=number,
            author_username=text,
            author_name=text,
            conversation_id=number,
            in_reply_to_user_id=number,
            lang=text,
            source=text,
            possibly_sensitive=_optional("boolean"),
            reply_settings=text,
            place_id=text,
            edit_history={"type": {"type": "array", "items": "long"}, "default": []},
            media_keys=words,
            hashtags=words,
            public_metrics=_optional(
                {"type": "record", "name": "metrics", "fields": _fields(**dict.fromkeys(metrics, number))}
            ),
            referenced_tweets=_list_of("reference", type="string", id="long"),
            mentions=_list_of("mention", username="string", id=number),
            urls=_list_of("url", url="string", expanded_url=text, display_url=text, title=text),
            context=_list_of("context", domain_id=text, domain=text, entity_id=text, entity=text),
        ),
    }


def _row(tweet: dict[str, Any], author: dict[str, Any]) -> dict[str, Any]:
    entities = tweet.get("entities", {})
    created = tweet.get("created_at")
    return {
        "id": int(tweet["id"]),
        "text": tweet["text"],
        "note": tweet.get("note_tweet", {}).get("text"),
        "created_at": datetime.fromisoformat(created) if created else None,
        "author_id": _number(tweet.get("author_id")),
        "author_username": author.get("username"),
        "author_name": author.get("name"),
        "conversation_id": _number(tweet.get("conversation_id")),
        "in_reply_to_user_id": _number(tweet.get("in_reply_to_user_id")),
        "lang": tweet.get("lang"),
        "source": tweet.get("source"),
        "possibly_sensitive": tweet.get("possibly_sensitive"),
        "reply_settings": tweet.get("reply_settings"),
        "place_id": tweet.get("geo", {}).get("place_id"),
        "edit_history": [int(number) for number in tweet.get("edit_history_tweet_ids", [])],
        "media_keys": tweet.get("attachments", {}).get("media_keys", []),
        "hashtags": [found["tag"] for found in entities.get("hashtags", [])],
        "public_metrics": tweet.get("public_metrics"),
        "referenced_tweets": [
            {"type": found["type"], "id": int(found["id"])} for found in tweet.get("referenced_tweets", [])
        ],
        "mentions": [
            {"username": found["username"], "id": _number(found.get("id"))} for found in entities.get("mentions", [])
        ],
        "urls": entities.get("urls", []),
        "context": [
            {
                "domain_id": found.get("domain", {}).get("id"),
                "domain": found.get("domain", {}).get("name"),
                "entity_id": found.get("entity", {}).get("id"),
                "entity": found.get("entity", {}).get("name"),
            }
            for found in tweet.get("context_annotations", [])
        ],
    }


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


async def tweepy_json(job: Job) -> Result:
    """tweepy's own Response and Tweet objects, one JSON line a tweet, fsync a page. Includes are left out."""
    import tweepy

    def ids(path: Path) -> Iterator[int]:
        with path.open() as file:
            yield from (int(json.loads(line)["id"]) for line in file)

    return await _with_tweepy(job, tweepy.Response, _json_sink, ids)


@contextmanager
def _json_sink(path: Path) -> Iterator[Keep]:
    with path.open("w") as file:

        def keep(answer: Any) -> None:
            for tweet in answer.data or []:
                file.write(json.dumps(tweet.data, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())

        yield keep


# twarc, which archivists use, by its own command line.


async def twarc(job: Job) -> Result:
    """`twarc2 search`: requests, a JSON line a page with all that X sent, log file and progress bar; no fsync, no checksum.

    Patched is where its session connects to. That is also the eye on which page is asked for.
    """
    import twarc
    from requests.adapters import HTTPAdapter
    from twarc.command2 import twarc2

    readings: list[Reading] = []
    asked = 0

    class ToTheBenchmark(HTTPAdapter):
        def send(self, request: Any, *given: Any, **named: Any) -> Any:
            nonlocal asked
            if asked == job.warm_up:
                readings.append(Reading.now())
            asked += 1
            request.url = request.url.replace("https://api.twitter.com", job.url)
            return super().send(request, *given, **named)

    connect = twarc.Twarc2.connect

    def connect_redirected(self: Any) -> None:
        connect(self)
        self.client.mount("https://api.twitter.com", ToTheBenchmark())

    twarc.Twarc2.connect = connect_redirected
    file = job.directory / "measured"
    command = ["--bearer-token", TOKEN, "--log", str(job.directory / "twarc.log"), "search"]
    limit = str((job.warm_up + job.pages) * 100)
    twarc2.main([*command, "--limit", limit, RULE, str(file)], prog_name="twarc2", standalone_mode=False)
    readings.append(Reading.now())
    begin, end = readings

    def measured() -> Iterator[str]:
        with file.open() as lines:
            yield from itertools.islice(lines, job.warm_up, None)

    def ids() -> Iterator[int]:
        for line in measured():
            yield from _ids_of_body(line.encode())

    return job.result(begin, end, ids, bytes_written=sum(map(len, measured())))


Client = Callable[[Job], Coroutine[Any, Any, Result]]

CLIENTS: dict[str, Client] = {
    "tweetlake": tweetlake,
    "floor": floor,
    "tweepy-avro": tweepy_avro,
    "tweepy-json": tweepy_json,
    "twarc": twarc,
}


@click.command()
@click.argument("client", type=click.Choice(list(CLIENTS)))
@click.option("--url", required=True)
@click.option("--directory", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--warm-up", type=int, required=True)
@click.option("--pages", type=int, required=True)
@click.option("--core", type=int, required=True)
def main(client: str, url: str, directory: Path, warm_up: int, pages: int, core: int) -> None:
    """Run one client on one core and tell its result as a line of JSON."""
    os.sched_setaffinity(0, {core})
    result = asyncio.run(CLIENTS[client](Job(url, directory, warm_up, pages)))
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
