"""Moments of a simulated world, to begin a life from any of them; and the account that says whether all was conserved."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro

from ingester.microbatch import read_records
from ingester.spool import Spool
from schemas.keys import MicrobatchName
from schemas.state import QueryState
from tests.ingester.simulation import MemoryStore, Run, SimulatedX, VirtualClock, stored_ids

Disk = Mapping[str, bytes]
"""The files of a spool folder, by their path in it."""


@dataclass
class WatchedStore(MemoryStore):
    """S3 in memory that remembers every content that was ever sent whole under a name."""

    sent: dict[str, set[str]] = field(default_factory=dict)

    async def put_new(self, key: str, file: Path, sha256: str, metadata: Mapping[str, str]) -> None:
        if hashlib.sha256(file.read_bytes()).hexdigest() == sha256:  # anything else is refused
            self.sent.setdefault(key, set()).add(sha256)
        await super().put_new(key, file, sha256, metadata)


@dataclass(frozen=True)
class Outside:
    """Everything but the disk: the time, what X served, what S3 has."""

    seconds: float
    served: tuple[int, ...]
    objects: Mapping[str, tuple[bytes, dict[str, str]]]
    sent: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, x: SimulatedX, store: WatchedStore) -> "Outside":
        sent = {key: frozenset(contents) for key, contents in store.sent.items()}
        return cls(x.clock.seconds, tuple(x.served), dict(store.objects), sent)

    def again(self, **world: Any) -> tuple[VirtualClock, SimulatedX, WatchedStore]:
        """A world that goes on from here."""
        clock = VirtualClock()
        clock.seconds = self.seconds
        x = SimulatedX(clock, served=list(self.served), **world)
        sent = {key: set(contents) for key, contents in self.sent.items()}
        return clock, x, WatchedStore(objects=dict(self.objects), sent=sent)


def read_disk(directory: Path) -> Disk:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def write_disk(disk: Disk, directory: Path) -> None:
    for name, content in disk.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)


@dataclass(frozen=True)
class Account:
    """What is wrong in a settled world; the default is a world in which everything was conserved."""

    lost: list[tuple[str, int]] = field(default_factory=list)
    """Ids of stretches that count as covered, which no record holds."""
    stored_twice: list[tuple[str, int]] = field(default_factory=list)
    names_of_two_contents: list[str] = field(default_factory=list)
    sequences_used_twice: list[int] = field(default_factory=list)
    out_of_order: bool = False
    """S3 got a microbatch after one with a higher sequence."""
    not_shipped: dict[str, int] = field(default_factory=dict)
    """How many microbatches lie in open, sealed or quarantine. One that never held a record does not count."""
    unfinished: list[str] = field(default_factory=list)
    """Queries that still have something to do."""
    state_is_ahead: bool = False
    """The state in memory is not what the durable data lead to."""


def account(run: Run, store: WatchedStore) -> Account:
    """Compare what the world has, what the state claims and what S3 holds."""
    state = run.service._journal.state
    lost, twice = [], []
    for name, query in state.queries.items():
        records = [record for record in all_records(run, store) if record["query"] == name]
        ids = stored_ids(records)
        kept = set(ids)
        lost += [(name, number) for number in covered(run.x, query, records) if number not in kept]
        seen: set[int] = set()
        twice += [(name, number) for number in ids if number in seen or seen.add(number)]
    sequences = [MicrobatchName.parse(key).sequence for key in store.objects if "raw/" in key]
    newest = run.spool.newest(lambda *_: None)
    return Account(
        lost=lost,
        stored_twice=twice,
        names_of_two_contents=[key for key, contents in store.sent.items() if len(contents) > 1],
        sequences_used_twice=sorted(number for number in set(sequences) if sequences.count(number) > 1),
        out_of_order=sequences != sorted(sequences),
        not_shipped={folder: n for folder in ("open", "sealed", "quarantine") if (n := held(run.spool, folder))},
        unfinished=[name for name, query in state.queries.items() if query.todo],
        state_is_ahead=newest is None or newest.state != state,
    )


def held(spool: Spool, folder: str) -> int:
    """How many microbatches of a folder have a record."""
    return sum(any(True for _ in read_records(spool.file(name, folder))) for name in spool.names(folder))


def covered(x: SimulatedX, query: QueryState, records: list[dict[str, Any]]) -> list[int]:
    """Ids of the world that the state claims: below the frontier, in no todo and in no gap that was told."""
    holes = [(interval.since_id, interval.upper) for interval in query.todo]
    holes += [(record["since_id"], record["until_id"]) for record in records if record["kind"] == "gap"]
    ids = x.existing(query.start_id, query.frontier_id)
    return [number for number in ids if not any(since < number < until for since, until in holes)]


def all_records(run: Run, store: WatchedStore) -> list[dict[str, Any]]:
    """Every record of the stream, in S3 or only in the spool yet, by sequence."""
    found = {MicrobatchName.parse(key): content for key, (content, _) in store.objects.items() if "raw/" in key}
    streams = {name: list(fastavro.reader(io.BytesIO(content))) for name, content in found.items()}
    for folder in ("shipped", "sealed", "open"):
        for name in run.spool.names(folder):
            streams.setdefault(name, list(read_records(run.spool.file(name, folder))))
    return [record for name in sorted(streams) for record in streams[name]]
