"""A world in virtual time for the ingester: clock, X and S3 in memory, a real spool on disk, and the oracle over them."""

import asyncio
import contextvars
import hashlib
import heapq
import io
import itertools
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fastavro

from ingester.errors import ChecksumRefused, KeyTaken, NeedsOperator, Transient
from ingester.model import LEAN, Answer, CountsRequest, SearchRequest
from ingester.ports import Destination, StoredObject, Versioned
from ingester.service import Service
from ingester.spool import Spool
from ingester.telemetry import Telemetry
from schemas import snowflake
from schemas.keys import LakeKeys, MicrobatchName
from schemas.records import SEARCH
from schemas.settings import Settings

START = datetime(2026, 11, 20, 12, 0, 30, tzinfo=UTC)


class Crash(BaseException):
    """The process dies here: nothing after it runs."""


class InlineExecutor(ThreadPoolExecutor):
    """Runs what is handed to a thread at once, so that virtual time knows when nothing more can happen."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - handed on, as a thread would
            future.set_exception(error)
        return future


class VirtualClock:
    """Time that moves only when everybody waits for it."""

    def __init__(self, start: datetime = START) -> None:
        self.start = start
        self.seconds = 0.0
        self.offset = timedelta()
        """What is added to the wall clock, for jumps."""
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    def now(self) -> datetime:
        return self.true_now() + self.offset

    def true_now(self) -> datetime:
        return self.start + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.seconds + max(0.0, seconds), next(self._count), future))
        await future

    async def drive(self, until: float, condition: Callable[[], bool] = lambda: False) -> None:
        """Let everything happen up to `until` seconds, or until the condition holds."""
        while True:
            for _ in range(60):  # enough turns of the loop for any chain of awaits to come to rest
                await asyncio.sleep(0)
            if condition():
                return
            self._sleepers = [sleeper for sleeper in self._sleepers if not sleeper[2].done()]
            heapq.heapify(self._sleepers)
            if not self._sleepers or self._sleepers[0][0] > until:
                self.seconds = max(self.seconds, until)
                return
            at, _, future = heapq.heappop(self._sleepers)
            self.seconds = max(self.seconds, at)
            future.set_result(None)


@dataclass
class SimulatedX:
    """Answers recent search from a list of ids, by X's rules for bounds, pages and tokens."""

    clock: VirtualClock
    tweets_per_second: float = 2.0
    page_size: int = 100
    faults: list[Callable[[SearchRequest], Answer | Exception | None]] = field(default_factory=list)
    """Called for every request; what is returned is sent, or raised, instead of the page. None: no fault."""
    requests: list[SearchRequest] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    read_on: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """What X bills: ids by UTC day."""
    counts_requests: list[CountsRequest] = field(default_factory=list)
    counts_faults: list[Callable[[CountsRequest], Answer | None]] = field(default_factory=list)
    served_elsewhere: int = 0
    """Posts that something else read with the same app today."""
    usage_answer: Callable[[], Answer] | None = None
    """What is sent instead of the usage."""
    headers: dict[str, str] = field(default_factory=dict)

    def existing(self, since_id: int, until_id: int) -> list[int]:
        """Ids of the world strictly between the bounds, ascending. Evenly spaced in time, with odd low bits."""
        step = int(1000 / self.tweets_per_second)
        first = (since_id >> snowflake.SHIFT) // step
        last = (until_id >> snowflake.SHIFT) // step + 1
        ids = ((number * step << snowflake.SHIFT) + number % 4096 for number in range(first, last + 1))
        return [number for number in ids if since_id < number < until_id]

    async def search(self, request: SearchRequest) -> Answer:
        self.requests.append(request)
        await self.clock.sleep(0.1)
        for fault in self.faults:
            found = fault(request)
            if isinstance(found, Exception):
                raise found
            if found is not None:
                return found
        reach = snowflake.first_id_at(self.clock.true_now() - timedelta(days=7))
        if request.since_id < reach:
            return self.answer(
                400,
                {"title": "Invalid Request", "errors": [{"message": "'since_id' must be a tweet id created after"}]},
            )
        if request.next_token and not request.next_token.isdigit():
            return self.answer(400, {"title": "Invalid Request", "errors": [{"message": "unknown next_token"}]})
        newest = snowflake.first_id_at(self.clock.true_now() - timedelta(seconds=10))
        below = int(request.next_token) if request.next_token else request.until_id
        ids = self.existing(request.since_id, min(below, newest))[::-1]
        page, rest = ids[: request.max_results], ids[request.max_results :]
        self.served += page
        self.read_on[f"{self.clock.true_now():%Y-%m-%d}"].update(page)
        meta: dict[str, Any] = {"result_count": len(page)}
        if page:
            meta |= {"newest_id": str(page[0]), "oldest_id": str(page[-1])}
        if rest:
            meta["next_token"] = str(page[-1])
        body: dict[str, Any] = {"meta": meta}
        if page:
            body["data"] = [{"id": str(number), "text": f"tweet {number}"} for number in page]
        answer = self.answer(200, body)
        await self.clock.sleep(0.1)  # billed, and on its way
        return answer

    async def counts(self, request: CountsRequest) -> Answer:
        self.counts_requests.append(request)
        await self.clock.sleep(0.2)
        for fault in self.counts_faults:
            if (found := fault(request)) is not None:
                return found
        hours = int((request.end - request.start) / timedelta(hours=1))
        edges = [request.start + timedelta(hours=number) for number in range(hours + 1)]
        ids = [snowflake.first_id_at(edge) for edge in edges]
        data = [
            {"start": f"{edges[k]:%Y-%m-%dT%H:00:00.000Z}", "end": f"{edges[k + 1]:%Y-%m-%dT%H:00:00.000Z}",
             "tweet_count": len(self.existing(ids[k] - 1, ids[k + 1]))}
            for k in range(hours)
        ]  # fmt: skip
        return self.answer(200, {"data": data, "meta": {"total_tweet_count": sum(b["tweet_count"] for b in data)}})

    async def usage(self, days: int) -> Answer:
        await self.clock.sleep(0.2)
        if self.usage_answer is not None:
            return self.usage_answer()
        today = f"{self.clock.true_now():%Y-%m-%d}"
        counts = {day: len(ids) for day, ids in self.read_on.items()}
        counts[today] = counts.get(today, 0) + self.served_elsewhere
        usage = [{"date": f"{day}T00:00:00.000Z", "usage": str(count)} for day, count in counts.items()]
        return self.answer(200, {"data": {"daily_client_app_usage": [{"client_app_id": "1", "usage": usage}]}})

    async def probe(self) -> Answer:
        await self.clock.sleep(0.1)
        return self.answer(401, {"title": "Unauthorized"})

    def answer(self, status: int, body: Any, **headers: str) -> Answer:
        now = self.clock.now()
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        date = self.clock.true_now().strftime("%a, %d %b %Y %H:%M:%S GMT")
        return Answer(status, {"date": date} | self.headers | headers, content, {"query": "q"}, now, now)


@dataclass
class MemoryStore:
    """S3 in memory, with faults by call."""

    objects: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    faults: list[Callable[[str, str], Exception | Awaitable[Any] | None]] = field(default_factory=list)
    """Called with verb and key before anything happens; an exception is raised, anything else is awaited."""
    lose_answers: bool = False
    """The next PUT of a microbatch happens, and its answer is lost."""
    lose_replies: int = 0
    """So many of the next replacements of a control object happen, and their answers are lost."""

    def of(self, _destination: Destination) -> "MemoryStore":
        """The store of a lake: here every lake is this one."""
        return self

    async def _check(self, verb: str, key: str) -> None:
        for fault in self.faults:
            found = fault(verb, key)
            if isinstance(found, BaseException):
                raise found
            if found is not None:
                await found

    async def open(self) -> None:
        """There is nothing to open."""

    async def put_new(self, key: str, file: Path, sha256: str, metadata: Mapping[str, str]) -> None:
        await self._check("put", key)
        if key in self.objects:
            raise KeyTaken(key)
        if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            raise ChecksumRefused(key)
        self.objects[key] = (file.read_bytes(), dict(metadata))
        if self.lose_answers:
            self.lose_answers = False
            raise Transient("the answer was lost")

    async def head(self, key: str) -> StoredObject | None:
        await self._check("head", key)
        found = self.objects.get(key)
        return StoredObject(key, len(found[0]), found[1]) if found else None

    async def get(self, key: str) -> bytes:
        await self._check("get", key)
        if key not in self.objects:
            raise NeedsOperator(key)
        return self.objects[key][0]

    async def list_keys(self, prefix: str) -> list[str]:
        await self._check("list", prefix)
        return sorted(key for key in self.objects if key.startswith(prefix))

    async def list_folders(self, prefix: str) -> list[str]:
        await self._check("list", prefix)
        below = (key.removeprefix(prefix) for key in self.objects if key.startswith(prefix))
        return sorted({f"{prefix}{rest.split('/')[0]}/" for rest in below if "/" in rest})

    async def read(self, key: str) -> Versioned | None:
        await self._check("read", key)
        return Versioned(self.objects[key][0], str(self._etag(key))) if key in self.objects else None

    async def replace(self, key: str, content: bytes, *, etag: str | None) -> str:
        await self._check("replace", key)
        if self._etag(key) != etag:
            raise KeyTaken(key)
        self.objects[key] = (content, {})
        if self.lose_replies:
            self.lose_replies -= 1
            raise Transient("the answer was lost")
        return str(self._etag(key))

    def _etag(self, key: str) -> str | None:
        return hashlib.md5(self.objects[key][0]).hexdigest() if key in self.objects else None

    async def delete(self, key: str) -> None:
        await self._check("delete", key)
        self.objects.pop(key, None)

    def black_hole(self, clock: VirtualClock) -> None:
        """From now on no call is answered; the client gives up after its time-out of a minute."""

        async def silence() -> None:
            await clock.sleep(60)
            raise Transient("no answer within 60 s")

        self.faults = [lambda _verb, _key: silence()]

    def microbatches(self) -> list[MicrobatchName]:
        """What lies below raw/, by sequence."""
        return sorted(MicrobatchName.parse(key) for key in self.objects if "raw/" in key)

    def records(self) -> list[dict[str, Any]]:
        """Every record in S3, by sequence."""
        contents = (self.objects[LakeKeys().microbatch(name)][0] for name in self.microbatches())
        return [record for content in contents for record in fastavro.reader(io.BytesIO(content))]


def settings(directory: Path, **changes: Any) -> Settings:
    """Settings for a simulation; sections given as dictionaries replace the defaults."""
    values: dict[str, Any] = {
        "lake": {"bucket": "lake-bucket"},
        "query": [
            {"name": "one", "rule": "python", "poll_every_seconds": 30, "first_poll_hours": 0, "overlap_seconds": 0}
        ],
        "spool": {"directory": directory / "spool", "min_free_bytes": 0},
        "x": {"fields": "lean"},
        "budget": {"usd_per_month": None, "reconcile": False},
        "audit": {"counts_daily": False},
    }
    return Settings(**(values | changes))


_RUN: contextvars.ContextVar["Run | None"] = contextvars.ContextVar("run", default=None)


def _task_of_a_run(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> "asyncio.Task[Any]":
    """Every task knows whose it is, so that all of a process can die, also what was shielded from cancellation."""
    task = asyncio.Task(coroutine, loop=loop, **more)
    if (run := _RUN.get()) is not None:
        run.tasks.append(task)
    return task


class Run:
    """One life of the real service on the simulated world: it begins at once, and ends by `stop` or `die`."""

    def __init__(
        self,
        configured: Settings,
        clock: VirtualClock,
        x: SimulatedX,
        store: MemoryStore,
        on_step: Callable[[str], None] = lambda _step: None,
    ) -> None:
        asyncio.get_running_loop().set_default_executor(InlineExecutor(1))
        asyncio.get_running_loop().set_task_factory(_task_of_a_run)
        self.clock, self.x, self.store = clock, x, store
        self.tasks: list[asyncio.Task[Any]] = []
        self.telemetry = Telemetry(now=clock.now)
        home = Destination.of(configured.lake)
        self.spool = Spool(configured.spool.directory, destination=home, on_step=on_step)
        self.spool.acquire()
        self.service = Service(
            configured,
            spool=self.spool,
            source=x,
            stores=store.of,
            clock=clock,
            telemetry=self.telemetry,
            fields=LEAN,
            version="0",
        )
        belongs_here = contextvars.copy_context()
        belongs_here.run(_RUN.set, self)
        self.task = belongs_here.run(asyncio.ensure_future, self.service.run())
        self._left = False

    async def stop(self) -> float:
        """As SIGTERM does; returns the seconds it took."""
        asked = self.clock.seconds
        self.service.stop("test")
        await self.clock.drive(asked + 60, self.task.done)
        self.task.result()
        seconds = self.clock.seconds - asked
        await self.die()
        return seconds

    async def die(self) -> None:
        """As SIGKILL does: nothing after this moment happens."""
        while left := [task for task in self.tasks if not task.done()]:
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        if not self._left:
            self.spool.release()
        self._left = True

    def told(self) -> list[str]:
        """The problems told so far, by event."""
        return [problem.event for problem in self.telemetry.problems for _ in range(problem.times)]


async def live(
    configured: Settings,
    clock: VirtualClock,
    x: SimulatedX,
    store: MemoryStore,
    *,
    seconds: float,
    on_step: Callable[[str], None] = lambda _step: None,
    crash: bool = False,
    during: Callable[[Run], None] | None = None,
) -> Run:
    """Run the service for so many virtual seconds, then stop it (or drop it dead).

    Raises Crash when a durable step of the spool did.
    """
    run = Run(configured, clock, x, store, on_step)
    try:
        await clock.drive(clock.seconds + seconds, run.task.done)
        if during is not None:
            during(run)
        if run.task.done():
            run.task.result()
        elif not crash:
            await run.stop()
    except BaseExceptionGroup as group:
        if group.subgroup(Crash):
            raise Crash from group
        raise
    finally:
        await run.die()
    return run


def pages(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == "page"]


def stored_ids(records: list[dict[str, Any]]) -> list[int]:
    """Every id in the stored pages, with repeats."""
    found = []
    for record in pages(records):
        if record["problem"] is None and record["endpoint"] == SEARCH:
            found += [int(item["id"]) for item in json.loads(record["body"]).get("data", [])]
    return found
