"""Anything may happen at any time, in any order: whatever it was, once it has settled nothing is lost.

The machine deals out what design and runbook know: crashes at any durable step, kills between them, S3 and X away, lost
answers, late and disordered posts, clock jumps, absences, lost, restored and damaged disks, queries that come and go.
It runs the real service in virtual time, and after each story it compares the world with what S3 holds.
"""

import asyncio
import io
import json
import logging
import os
import random
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from unittest import mock

import fastavro
import pytest
import structlog
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from ingester.errors import NeedsOperator, Transient
from ingester.model import Answer, SearchRequest
from ingester.spool import Spool
from ingester.windows import CLIP_MARGIN, REACH
from schemas import snowflake
from tests.ingester.moments import Disk, WatchedStore, account, all_records, read_disk, write_disk
from tests.ingester.simulation import Crash, Run, SimulatedX, VirtualClock, settings, stored_ids

NAMES = ("plain", "overlapping", "guest")
PAGE = 10
OVERLAP = 60.0
LATEST = 55.0
"""Seconds after its creation until a late post can be found: less than the overlap and X's own lag cover together."""
LONG_ABSENCE = 7.5 * 86_400
"""Seconds; X forgets after seven days."""
MEANWHILE = st.sampled_from(
    [
        "nothing", "nothing", "nothing", "hours pass", "hours pass", "days pass", "the disk is lost",
        "the copy of the disk is put back", "the guest comes or goes",
    ]
)  # fmt: skip
"""What happens while no process runs."""
EXAMPLES = int(os.environ.get("TWEETLAKE_STORIES", "0"))
"""So many stories by chance; without it a few, always the same."""

T = TypeVar("T")


@dataclass
class OddX(SimulatedX):
    """X as it is on a bad day: some posts can be found late, pages are in disorder, some requests are refused."""

    chance: random.Random = field(default_factory=lambda: random.Random(1))
    late: dict[int, float] = field(default_factory=dict)
    """Ids, and the second from which each can be found."""
    is_disordered: bool = False
    is_away: bool = False
    served_to: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _asking: bool = False

    def __post_init__(self) -> None:
        self.faults.append(self._trouble)

    def _trouble(self, _request: SearchRequest) -> Answer | None:
        self._asking = not self.is_away
        return self.answer(503, {"title": "Service Unavailable"}) if self.is_away else None

    def existing(self, since_id: int, until_id: int) -> list[int]:
        late = [
            number
            for number, found_from in self.late.items()
            if since_id < number < until_id and not (self._asking and self.clock.seconds < found_from)
        ]
        return sorted([*super().existing(since_id, until_id), *late])

    async def search(self, request: SearchRequest) -> Answer:
        answer = await super().search(request)
        self._asking = False
        body = json.loads(answer.body)
        if "data" in body:
            self.served_to[request.query] += [int(item["id"]) for item in body["data"]]
            if self.is_disordered:
                self.chance.shuffle(body["data"])
        return replace(answer, body=json.dumps(body).encode())


class Collection(RuleBasedStateMachine):
    """One collection with three queries, one spool folder and one bucket."""

    happened: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda *_: None)  # what a death leaves unheard is no news
        self.root = Path(tempfile.mkdtemp(prefix="tweetlake-stories-"))
        self.clock = VirtualClock()
        self.x = OddX(self.clock, tweets_per_second=0.005)
        self.store = WatchedStore(faults=[self._s3_trouble])
        self.s3 = "up"
        self.life: Run | None = None
        self.queries = set(NAMES)
        self.steps_to_live: int | None = None
        self.wreck: tuple[Disk, dict[str, Any]] | None = None
        self.copied_disk: tuple[Disk, int] | None = None
        self.shipped: dict[str, dict[str, set[int]]] = {}
        """By key and query, the ids in S3."""
        self.forfeit: set[tuple[str, int]] = set()
        """What two faults at once may cost without a word: see where it grows."""
        self.may_pay_twice = 0
        """Posts of the plain query."""
        self.had_second_disk = self.had_damage = self.was_disordered = False
        self.was_removed = self.had_absence = False
        self.patches = [
            mock.patch.object(Spool, "append", _checked_append(self.clock, Spool.append)),
            mock.patch.multiple(os, fsync=mock.DEFAULT, fdatasync=mock.DEFAULT),
        ]
        for patch in self.patches:
            patch.start()

    # What happens inside.

    def do(self, step: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(step)

    def _s3_trouble(self, verb: str, _key: str) -> Any:
        match self.s3:
            case "transient":
                return Transient("503")
            case "forbidden":
                return NeedsOperator("403")
            case "slow":
                return self.clock.sleep(0.7)
        return None

    def _on_step(self, _step: str) -> None:
        if self.steps_to_live is not None:
            self.steps_to_live -= 1
            if self.steps_to_live == 0:
                self.happened["death at a durable step"] += 1
                self._remember_wreck()
                raise Crash

    def _remember_wreck(self) -> None:
        """What a dead process leaves: the folder as it is now, and no call after this."""
        self.wreck = (read_disk(self.directory), dict(self.store.objects))

    @property
    def directory(self) -> Path:
        return self.root / "spool"

    def _settings(self) -> Any:
        common = {"rule": "python", "poll_every_seconds": 60, "first_poll_hours": 2, "overlap_seconds": 0}
        own = {"overlapping": {"overlap_seconds": OVERLAP, "reread_minutes": 10}}
        queries = [common | own.get(name, {}) | {"name": name} for name in sorted(self.queries)]
        spool = {
            "directory": self.directory,
            "min_free_bytes": 0,
            "seal_after_seconds": 100,
            "seal_after_bytes": 40_000,
        }
        return settings(self.root, query=queries, spool=spool, x={"fields": "lean", "max_results": PAGE})

    async def _begin(self) -> Run:
        return Run(self._settings(), self.clock, self.x, self.store, self._on_step)

    async def _pass(self, seconds: float) -> None:
        assert self.life is not None
        task = self.life.task
        await self.clock.drive(self.clock.seconds + seconds, lambda: task.done() or self.wreck is not None)

    def _die(self) -> None:
        """After it the folder and the bucket are what they were when the process died."""
        assert self.life is not None
        assert self.wreck is not None
        self.do(self.life.die())
        self.life = None
        disk, self.store.objects = self.wreck
        self._replace_disk(disk)
        self.wreck = self.steps_to_live = None
        self.may_pay_twice += PAGE
        self._chains_are_lost()

    def _chains_are_lost(self) -> None:
        if self.was_disordered:  # the page before may be asked again by its bounds
            self.may_pay_twice += PAGE

    def _replace_disk(self, disk: Disk) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        write_disk(disk, self.directory)

    def _only_here(self, query: str = "plain") -> set[int]:
        """The posts of a query that were paid for and are not in S3 yet."""
        for key, (content, _) in self.store.objects.items():
            if "raw/" in key and key not in self.shipped:
                records = list(fastavro.reader(io.BytesIO(content)))
                self.shipped[key] = {
                    name: set(stored_ids([record for record in records if record["query"] == name])) for name in NAMES
                }
        return set(self.x.served_to[query]).difference(*(ids[query] for ids in self.shipped.values()))

    def _forfeit_what_is_only_here(self) -> None:
        self.forfeit |= {(query, number) for query in NAMES for number in self._only_here(query)}

    def _has(self, folder: str) -> bool:
        return any((self.directory / folder).glob("*.avro"))

    # The life of the process. Every rule leaves it running.

    @initialize()
    def start(self) -> None:
        self.life = self.do(self._begin())

    @rule(seconds=st.sampled_from([1, 10, 60, 300, 900]))
    def time_passes(self, seconds: float) -> None:
        self.do(self._pass(seconds))

    @rule(meanwhile=MEANWHILE)
    def it_is_stopped_and_started(self, meanwhile: str) -> None:
        self._stop()
        self._meanwhile(meanwhile)

    @rule(meanwhile=MEANWHILE)
    def it_is_killed_and_started(self, meanwhile: str) -> None:
        self._remember_wreck()
        self._die()
        self._meanwhile(meanwhile)

    @rule(steps=st.integers(1, 25), meanwhile=MEANWHILE)
    def it_dies_at_a_durable_step_and_is_started(self, steps: int, meanwhile: str) -> None:
        self.steps_to_live = steps
        self.do(self._pass(300))
        if self.wreck is None:
            self._remember_wreck()
        self._die()
        self._meanwhile(meanwhile)

    def _meanwhile(self, what: str) -> None:
        self.happened[what] += 1
        match what:
            case "hours pass":
                self.clock.seconds += 3 * 3600
            case "days pass" if not self.had_absence:
                self.clock.seconds += LONG_ABSENCE
                self.had_absence = True
            case "the disk is lost":
                self._lose_disk({})
            case "the copy of the disk is put back" if self.copied_disk is not None:
                disk, served = self.copied_disk
                self._lose_disk(disk)
                if self.s3 != "up":  # else the later state is taken from there
                    self.may_pay_twice += len(self.x.served_to["plain"]) - served
            case "the guest comes or goes":
                self.queries ^= {"guest"}
                self.was_removed = True
        self.start()

    def _stop(self) -> None:
        assert self.life is not None
        self.do(self.life.stop())
        self.life = None
        self._chains_are_lost()

    def _lose_disk(self, found: Disk) -> None:
        """What only it held must be paid for again."""
        self.may_pay_twice += len(self._only_here())
        if self._has("quarantine") and (self._has("open") or self._has("sealed")):
            # What follows a damaged file was shipped, the plan to ask for it again was on this disk alone.
            self._forfeit_what_is_only_here()
        self._replace_disk(found)
        self.had_second_disk = True

    # The world outside.

    @rule(how=st.sampled_from(["up", "up", "transient", "forbidden", "slow"]))
    def s3_changes(self, how: str) -> None:
        self.s3 = how

    @rule()
    def the_answer_to_the_next_upload_is_lost(self) -> None:
        self.store.lose_answers = True

    @rule(away=st.booleans())
    def x_changes(self, away: bool) -> None:
        self.x.is_away = away

    @rule(ago=st.floats(0, 5), delay=st.floats(15, LATEST))
    def a_post_can_be_found_late(self, ago: float, delay: float) -> None:
        created = self.clock.true_now() - timedelta(seconds=ago)
        number = snowflake.first_id_at(created) + 4_000_000 + len(self.x.late)
        self.x.late[number] = self.clock.seconds - ago + delay

    @rule()
    def pages_are_in_disorder(self) -> None:
        self.x.is_disordered = self.was_disordered = True

    @rule(minutes=st.sampled_from([-180, -61, -5, 0, 2, 61, 180]))
    def the_clock_jumps(self, minutes: int) -> None:
        self.clock.offset = timedelta(minutes=minutes)
        self.may_pay_twice += PAGE  # a window that was ahead of X's index is asked again

    # The disk.

    @rule()
    def somebody_copies_the_disk(self) -> None:
        self.copied_disk = (read_disk(self.directory), len(self.x.served_to["plain"]))

    @rule(which=st.integers(0, 100), place=st.floats(0, 0.999))
    def a_sealed_file_is_damaged(self, which: int, place: float) -> None:
        before, self.s3 = self.s3, "transient"
        self.do(self._pass(150))
        self.s3 = before
        if files := sorted((self.directory / "sealed").glob("*.avro")):
            file = files[which % len(files)]
            self.may_pay_twice += len(self._only_here())
            content = bytearray(file.read_bytes())
            content[int(place * len(content))] ^= 1
            file.write_bytes(content)
            self.had_damage = True
            if self.was_disordered:
                # The page behind a disordered one says it covers all below the bound, which that one reached deeper than.
                self._forfeit_what_is_only_here()
            self.happened["a sealed file is damaged"] += 1

    # What must hold.

    @invariant()
    def the_service_did_not_end_by_itself(self) -> None:
        if self.life is not None and self.life.task.done():
            self.life.task.result()
            raise AssertionError("it ended without a word")

    def teardown(self) -> None:
        try:
            if self.life is not None:
                self._settle()
        finally:
            if self.life is not None:
                self.do(self.life.die())
            for patch in reversed(self.patches):
                patch.stop()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
            shutil.rmtree(self.root)

    def _settle(self) -> None:
        """Everything outside is well again; the service gets its time, stops, and the account is drawn up."""
        self.s3, self.x.is_away, self.x.is_disordered, self.clock.offset = "up", False, False, timedelta()
        life = self.life
        assert life is not None
        self.do(self._pass(120))
        for _ in range(100):
            self.the_service_did_not_end_by_itself()
            journal = life.service._journal
            if journal and not any(query.todo for query in journal.state.queries.values()) and not life.spool.waiting():
                break
            self.do(self._pass(60))
        else:
            raise AssertionError("it does not come to rest")
        self._stop()
        self._check(life)

    def _check(self, life: Run) -> None:
        found = account(life, self.store)
        late = set(self.x.late)
        lost = {each for each in found.lost if each[0] == "overlapping" or each[1] not in late}
        assert lost - self.forfeit == set()
        assert not found.state_is_ahead
        assert set(found.not_shipped) <= ({"quarantine"} if self.had_damage or self.had_second_disk else set())
        if not self.had_second_disk:
            assert found.names_of_two_contents == []
            assert found.sequences_used_twice == []
            assert not found.out_of_order
        served = self.x.served_to["plain"]
        assert len(served) - len(set(served)) <= self.may_pay_twice, "paid twice without need"
        gaps = {record["reason"] for record in all_records(life, self.store) if record["kind"] == "gap"}
        assert gaps <= ({"query_removed"} if self.was_removed else set()) | {"out_of_reach"}


def _checked_append(clock: VirtualClock, append: Any) -> Any:
    """Every gap that X's reach is the reason of must be out of it at that moment."""

    def checked(spool: Spool, record: Any) -> None:
        if record["kind"] == "gap" and record["reason"] == "out_of_reach":
            reach = clock.true_now() - REACH + CLIP_MARGIN + timedelta(seconds=5)
            assert record["until_id"] <= snowflake.first_id_at(reach), "a gap that X still has"
        append(spool, record)

    return checked


@pytest.fixture
def without_log():
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.mark.timeout(120 + 5 * EXAMPLES)
def test_whatever_happens_nothing_is_lost_and_nothing_is_paid_twice_without_need(without_log):
    chosen = hypothesis_settings(
        max_examples=EXAMPLES or 16,
        stateful_step_count=20,
        derandomize=not EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    Collection.happened.clear()
    run_state_machine_as_test(Collection, settings=chosen)
    print(dict(Collection.happened))
