"""What a raw hour says of the collection: whatever order records come in, everything is covered, to be done or a gap."""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compaction_dags.compaction.coverage import Account, Listener, rows_of_hour
from compaction_dags.compaction.raw_reader import read_microbatch
from schemas import snowflake
from schemas.keys import LakeKeys, RawHour
from schemas.raw import FORMAT, META_CHECKPOINT, META_FORMAT, META_SEQUENCE, META_SPOOL_ID
from schemas.records import Interval
from schemas.state import ON_TOP, State, apply, joined, to_checkpoint, without
from tests.compaction.pages import NOON, microbatch, page_record
from tests.ingester.simulation import MemoryStore, SimulatedX, VirtualClock, live, settings

Row = dict[str, Any]


# --- arithmetic ---

ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8)


def ids_in(stretches: Iterable[tuple[int, int]]) -> set[int]:
    return {number for low, high in stretches for number in range(low, high)}


@given(ranges)
def test_joined_stretches_hold_the_same_ids_and_touch_nowhere(stretches: list[tuple[int, int]]) -> None:
    found = joined(stretches)
    assert ids_in(found) == ids_in(stretches)
    assert all(low < high for low, high in found)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(found))


@given(ranges, ranges)
def test_what_is_taken_away_is_gone_and_nothing_else(
    stretches: list[tuple[int, int]], taken: list[tuple[int, int]]
) -> None:
    assert ids_in(without(stretches, taken)) == ids_in(stretches) - ids_in(taken)


# --- a stream of records, by chance, beside what it means ---


@dataclass
class Stream:
    """Writes records as the service does, and keeps by itself, id by id, what became of the query's line."""

    state: State = field(default_factory=State)
    files: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    covered: set[int] = field(default_factory=set)
    covered_by_file: list[set[int]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    regular: dict[tuple[int, int], int] = field(default_factory=dict)
    """What is planned of the regular collection: its bounds, and below which id it is missing."""
    on_top: dict[tuple[int, int], int] = field(default_factory=dict)
    start: int = 100
    frontier: int = 100

    def begin(self) -> None:
        self.cut()
        self.append({"kind": "rule", "rule": "r", "frontier_id": self.start})

    def cut(self) -> None:
        self.covered_by_file.append(set())
        self.files.append((to_checkpoint(self.state), []))

    def append(self, record: dict[str, Any]) -> None:
        record = {"at": NOON, "query": "q", "rule": "r"} | record
        self.files[-1][1].append(record)
        self.state = apply(self.state, record)  # type: ignore[arg-type]

    def poll(self, width: int, left: int) -> None:
        """A live window, of which the first page leaves ids below `left` of it."""
        since, until = self.frontier - 1, self.frontier + width
        self.frontier = until
        self._page(self.regular, (since, until), until, left, "live")

    def plan(self, width: int, parts: int) -> None:
        """Backlog above the frontier, in slices."""
        edges = [self.frontier - 1 + width * number for number in range(parts + 1)]
        slices = [(low, high + 1) for low, high in itertools.pairwise(edges)]
        self.frontier = slices[-1][1]
        self._planned("backlog", slices, self.frontier)
        self.regular |= {key: key[1] for key in slices}

    def again(self, low: int, width: int) -> None:
        """A stretch that was collected, once more."""
        since = max(self.start - 1, self.frontier - 1 - low)
        key = (since, min(since + 1 + width, self.frontier))
        if key[1] - key[0] > 1 and key not in self.regular and key not in self.on_top:
            self._planned("reread", [key], None)
            self.on_top[key] = key[1]

    def work(self, number: int, left: int, of_top: bool) -> None:
        """One more page of something planned."""
        planned = self.on_top if of_top else self.regular
        if planned:
            key = sorted(planned)[number % len(planned)]
            self._page(planned, key, planned[key], left, "reread" if of_top else "backlog")

    def give_up(self, number: int, of_top: bool) -> None:
        planned = self.on_top if of_top else self.regular
        if planned:
            key = sorted(planned)[number % len(planned)]
            upper = planned.pop(key)
            reason = "reread_given_up" if of_top else "out_of_reach"
            self.append({"kind": "gap", "reason": reason, "since_id": key[0], "until_id": upper})
            self.gone |= set() if of_top else set(range(key[0] + 1, upper))

    def miss(self) -> None:
        """A page that could not be followed."""
        self.append(self.page((self.frontier - 1, self.frontier + 9), self.frontier + 9, None) | {"problem": "html"})

    def _planned(self, reason: str, slices: Sequence[tuple[int, int]], frontier: int | None) -> None:
        intervals = [Interval(*key, "r", reason).to_record() for key in slices]
        self.append({"kind": "plan", "reason": reason, "intervals": intervals, "frontier_id": frontier})

    def _page(
        self, planned: dict[tuple[int, int], int], key: tuple[int, int], upper: int, left: int, reason: str
    ) -> None:
        below = max(key[0] + 1, upper - 1 - left) if left else None
        self.append(self.page(key, upper, below) | {"reason": reason})
        lowest = key[0] + 1 if below is None or not key[0] < below < upper else below
        if below is None:
            planned.pop(key, None)
        elif key[0] < below < upper:
            planned[key] = below
        self.covered |= set(range(lowest, upper))
        self.covered_by_file[-1] |= set(range(lowest, upper))

    @staticmethod
    def page(key: tuple[int, int], upper: int, below: int | None) -> dict[str, Any]:
        return {
            "kind": "page", "since_id": key[0], "until_id": key[1], "asked_below": upper, "resume_below": below,
            "is_last": below is None,
        }  # fmt: skip


small = st.integers(0, 12)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("poll"), st.integers(1, 12), small),
        st.tuples(st.just("plan"), st.integers(1, 6), st.integers(1, 3)),
        st.tuples(st.just("again"), small, small),
        st.tuples(st.just("work"), small, small, st.booleans()),
        st.tuples(st.just("give_up"), small, st.booleans()),
        st.tuples(st.just("miss")),
        st.tuples(st.just("cut")),
    ),
    max_size=30,
)


def streamed(chosen: Iterable[tuple[Any, ...]]) -> Stream:
    stream = Stream()
    stream.begin()
    for name, *arguments in chosen:
        getattr(stream, name)(*arguments)
    return stream


def account(number: int, checkpoint: str, records: Iterable[dict[str, Any]]) -> Account:
    listener = Listener(checkpoint)
    for record in records:
        listener.hear(record)
    return listener.account(number, "00000001")


def accounts(stream: Stream) -> list[Account]:
    return [account(number, *file) for number, file in enumerate(stream.files)]


def of_kind(rows: Iterable[Row], kind: str, *, regular_only: bool = False) -> set[int]:
    return ids_in(
        (row["since_id"] + 1, row["until_id"])
        for row in rows
        if row["kind"] == kind and not (regular_only and row["reason"] in ON_TOP)
    )


@given(steps)
def test_everything_up_to_the_frontier_is_covered_or_to_be_done_or_a_gap(chosen: list[tuple[Any, ...]]) -> None:
    stream = streamed(chosen)
    rows = rows_of_hour(accounts(stream), is_closed=True)
    covered, gaps = of_kind(rows, "covered"), of_kind(rows, "gap")
    todo = of_kind(rows, "todo", regular_only=True)
    assert covered == stream.covered
    assert gaps == stream.gone - stream.covered
    assert of_kind(rows, "frontier") == set(range(stream.start, stream.frontier))
    assert covered | todo | gaps == set(range(stream.start, stream.frontier))
    assert todo == ids_in((since + 1, upper) for (since, _), upper in stream.regular.items())


@given(steps, st.integers(0, 30))
def test_hours_together_tell_what_one_would(chosen: list[tuple[Any, ...]], cut: int) -> None:
    told = accounts(streamed(chosen))
    first, second = told[: cut % (len(told) + 1)], told[cut % (len(told) + 1) :]
    hours = [rows_of_hour(part, is_closed=True) for part in (first, second)]
    whole = rows_of_hour(told, is_closed=True)
    for kind in ("covered", "frontier"):
        assert of_kind(hours[0], kind) | of_kind(hours[1], kind) == of_kind(whole, kind)
    assert of_kind(hours[1] if second else hours[0], "todo") == of_kind(whole, "todo")


@given(steps, st.integers(0, 30))
def test_a_microbatch_that_never_came_covers_nothing(chosen: list[tuple[Any, ...]], lost: int) -> None:
    stream = streamed(chosen)
    told = accounts(stream)
    missing = lost % len(told)
    del told[missing], stream.covered_by_file[missing]
    covered = of_kind(rows_of_hour(told, is_closed=True), "covered")
    assert covered == set().union(*stream.covered_by_file)


@given(steps, st.randoms(use_true_random=False))
def test_the_order_in_which_microbatches_were_read_does_not_matter(chosen: list[tuple[Any, ...]], chance: Any) -> None:
    told = accounts(streamed(chosen))
    mixed = list(told)
    chance.shuffle(mixed)
    assert rows_of_hour(mixed, is_closed=False) == rows_of_hour(told, is_closed=False)


# --- cases ---


def row_of(rows: Iterable[Row], kind: str) -> Row:
    (found,) = [row for row in rows if row["kind"] == kind]
    return found


def test_rows_carry_the_times_of_their_ids() -> None:
    key = (snowflake.first_id_at(NOON) - 1, snowflake.first_id_at(NOON + timedelta(seconds=90)))
    told = account(
        1, to_checkpoint(State()), [{"at": NOON, "query": "q", "rule": "r"} | Stream.page(key, key[1], None)]
    )
    row = row_of(rows_of_hour([told], is_closed=True), "covered")
    assert (row["starts_at"], row["ends_at"]) == (NOON, NOON + timedelta(seconds=90))
    assert (row["rule"], row["reason"], row["is_closed"]) == ("r", None, True)


def test_changed_rules_are_told_from_the_frontier_on_and_covered_is_told_by_rule() -> None:
    stream = Stream()
    stream.begin()
    stream.poll(10, 0)
    stream.append({"kind": "rule", "rule": "new", "frontier_id": None})
    stream.append(Stream.page((109, 120), 120, None) | {"rule": "new"})
    stream.append({"kind": "rule", "rule": None})
    stream.append({"kind": "rule", "rule": None, "reason": "forgotten"})
    rows = rows_of_hour(accounts(stream), is_closed=True)
    rules = [(row["since_id"], row["until_id"], row["rule"], row["reason"]) for row in rows if row["kind"] == "rule"]
    assert sorted(rules, key=str) == sorted(
        [(99, None, "r", "added"), (109, None, "new", "changed"), (119, None, None, "removed"), (119, None, None, "forgotten")],
        key=str,
    )  # fmt: skip
    covered = [(row["since_id"], row["until_id"], row["rule"]) for row in rows if row["kind"] == "covered"]
    assert covered == [(99, 110, "r"), (109, 120, "new")]


def test_of_a_window_whose_first_page_was_lost_the_second_covers_only_its_own_part() -> None:
    stream = streamed([("cut",), ("poll", 10, 3), ("cut",), ("work", 0, 0, False)])
    first, _, last = accounts(stream)
    rows = rows_of_hour([first, last], is_closed=True)
    assert of_kind(rows, "covered") == set(range(100, 106))
    assert of_kind(rows, "frontier") - of_kind(rows, "covered") == set(range(106, 110)), "which is told to be lost"


def test_what_was_given_up_and_read_all_the_same_is_no_gap() -> None:
    stream = streamed(
        [("plan", 5, 2), ("again", 6, 3), ("work", 0, 0, True), ("give_up", 0, False), ("give_up", 0, False)]
    )
    rows = rows_of_hour(accounts(stream), is_closed=True)
    assert stream.covered
    assert of_kind(rows, "gap") == stream.gone - stream.covered
    assert not of_kind(rows, "gap") & of_kind(rows, "covered")


def test_a_microbatch_without_a_checkpoint_still_tells_what_its_pages_cover() -> None:
    told = account(1, "{}", [{"at": NOON, "query": "q", "rule": "r"} | Stream.page((99, 120), 120, None)])
    assert [row["kind"] for row in rows_of_hour([told], is_closed=True)] == ["covered"]


def test_a_record_that_is_none_of_ours_costs_what_is_left_to_do_and_no_more() -> None:
    stream = streamed([("poll", 10, 3)])
    checkpoint, records = stream.files[0]
    told = account(1, checkpoint, [*records, {"kind": "plan", "query": "q", "intervals": [{}]}])
    assert {row["kind"] for row in rows_of_hour([told], is_closed=True)} == {"rule", "covered"}


def test_a_page_whose_bytes_are_damaged_leaves_a_gap() -> None:
    record = page_record(b'{"meta": {}}', query="q") | Stream.page((99, 120), 120, None)
    header = {
        META_FORMAT: FORMAT,
        META_SEQUENCE: "1",
        META_SPOOL_ID: "00000001",
        META_CHECKPOINT: to_checkpoint(State()),
    }
    content = microbatch(
        [record, record | {"since_id": 119, "until_id": 140, "asked_below": 140, "body": b"{}"}], metadata=header
    )
    read = read_microbatch(content, "raw/date=2026-11-20/hour=12/2026-11-20T12-000000000001-00000001.avro")
    assert len(list(read.pages)) == 1
    gap = row_of(rows_of_hour([read.account], is_closed=True), "gap")
    assert (gap["since_id"], gap["until_id"], gap["reason"]) == (119, 140, "damaged")


# --- the service itself ---


def read_back(store: MemoryStore) -> dict[RawHour, list[Account]]:
    """What compaction reads of all that the service shipped, by raw hour."""
    hours: dict[RawHour, list[Account]] = {}
    for name in store.microbatches():
        key = LakeKeys().microbatch(name)
        found = read_microbatch(store.objects[key][0], key)
        list(found.pages)
        hours.setdefault(name.hour, []).append(found.account)
    return hours


@pytest.mark.parametrize("kill_after", [7, 40])
async def test_what_the_service_collected_through_outage_crash_and_lost_disk_is_told_id_by_id(
    tmp_path: Any, kill_after: int
) -> None:
    clock = VirtualClock()
    x, store = SimulatedX(clock), MemoryStore()
    configured = settings(tmp_path)
    await live(configured, clock, x, store, seconds=60)
    clock.seconds += 3 * 3600
    await live(configured, clock, x, store, seconds=kill_after, crash=True)
    await live(settings(tmp_path / "new-disk"), clock, x, store, seconds=200)
    clock.seconds += 9 * 24 * 3600
    run = await live(settings(tmp_path / "new-disk"), clock, x, store, seconds=30)
    state = run.service._work.journal.state.queries["one"]  # type: ignore[union-attr]
    rows = [row for told in read_back(store).values() for row in rows_of_hour(told, is_closed=True)]
    covered = joined((row["since_id"] + 1, row["until_id"]) for row in rows if row["kind"] == "covered")
    gaps = joined((row["since_id"] + 1, row["until_id"]) for row in rows if row["kind"] == "gap")
    newest = rows_of_hour(list(read_back(store).values())[-1], is_closed=True)
    todo = [(row["since_id"] + 1, row["until_id"]) for row in newest if row["kind"] == "todo"]
    assert joined([*covered, *todo, *gaps]) == [(state.start_id, state.frontier_id)]
    assert not without(gaps, [(state.start_id, state.frontier_id)])
    assert gaps
    assert todo
    stored = {int(number) for number in x.existing(state.start_id - 1, state.frontier_id)}
    held = {number for record in store.records() if record["kind"] == "page" for number in _ids(record)}
    assert held == {number for number in stored if any(low <= number < high for low, high in covered)}


def _ids(record: dict[str, Any]) -> list[int]:
    return [int(item["id"]) for item in json.loads(record["body"]).get("data", [])]
