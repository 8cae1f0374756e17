"""The key grammar of the bucket: where a raw microbatch lies, what its name says, and where the other prefixes are.

A microbatch is named once, when it is opened: `<raw hour>-<sequence>-<spool id>.avro`, for example
`2026-11-20T13-000000000042-9f86d081.avro`. Its S3 key is `raw/date=2026-11-20/hour=13/` + that name.
The sequence, not the hour, is the order: clocks jump.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Self

_NAME = re.compile(r"(\d{4}-\d{2}-\d{2}T\d{2})-(\d{12})-([0-9a-f]{8})\.avro")


@dataclass(frozen=True, order=True, slots=True)
class RawHour:
    """A UTC hour in which pages were fetched: the partition of the raw zone and the unit of compaction."""

    start: datetime
    """The aware UTC moment the hour begins."""

    @classmethod
    def of(cls, moment: datetime) -> Self:
        """The hour that `moment` (aware) lies in."""
        return cls(moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `2026-11-20T13`. Raises ValueError with the expected form."""
        try:
            return cls(datetime.strptime(text, "%Y-%m-%dT%H").replace(tzinfo=UTC))
        except ValueError as error:
            raise ValueError(f"not an hour: {text!r}; write it as 2026-11-20T13 (UTC)") from error

    def __str__(self) -> str:
        return self.start.isoformat()[: len("2026-11-20T13")]  # strftime writes early years with fewer digits

    @property
    def date(self) -> date:
        return self.start.date()

    @property
    def folder(self) -> str:
        """The partition folder below the raw prefix: `date=2026-11-20/hour=13/`."""
        return f"date={self.date}/hour={self.start.hour:02d}/"


@dataclass(frozen=True, order=True, slots=True)
class MicrobatchName:
    """What a microbatch's file name says. Ordered by sequence, the only order there is."""

    sequence: int
    hour: RawHour
    spool_id: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a file name or the last part of a key. Raises ValueError for anything else."""
        match = _NAME.fullmatch(text.rsplit("/", 1)[-1])
        try:
            if match is not None:  # not by strptime, which takes ten times as long: 10,000 may wait at a start
                hour = RawHour(datetime.fromisoformat(match[1]).replace(tzinfo=UTC))
                return cls(sequence=int(match[2]), hour=hour, spool_id=match[3])
        except ValueError:
            pass
        raise ValueError(f"not the name of a microbatch: {text!r}")

    def __str__(self) -> str:
        return f"{self.hour}-{self.sequence:012d}-{self.spool_id}.avro"


@dataclass(frozen=True, slots=True)
class LakeKeys:
    """Every prefix of the lake, below the bucket's own prefix (`""`, or a path that ends in a slash)."""

    prefix: str = ""

    @property
    def raw(self) -> str:
        return f"{self.prefix}raw/"

    @property
    def curated(self) -> str:
        return f"{self.prefix}curated/"

    @property
    def control(self) -> str:
        return f"{self.prefix}control/"

    @property
    def lease(self) -> str:
        """Who collects into this lake: owned by a spool id."""
        return f"{self.control}lease"

    @property
    def requests(self) -> str:
        """Below it lie the orders that commands and DAGs give to the ingester, one create-only object each."""
        return f"{self.control}requests/"

    def request(self, order: str) -> str:
        """The key of one order."""
        return f"{self.requests}{order}.json"

    @property
    def ordered(self) -> str:
        """Below it lies a copy of every order for a hole, which is never taken away: no hole is ordered twice."""
        return f"{self.control}ordered/"

    @property
    def all_retired(self) -> str:
        """Below it lies an object for each spool that will never write again."""
        return f"{self.control}retired/"

    def retired(self, spool_id: str) -> str:
        """Says that a spool will never write again, so that hours it wrote into can be closed."""
        return f"{self.all_retired}{spool_id}.json"

    def raw_hour(self, hour: RawHour) -> str:
        """The prefix under which every microbatch of one raw hour lies."""
        return self.raw + hour.folder

    def raw_date(self, day: date) -> str:
        """The prefix of a whole UTC day of raw."""
        return f"{self.raw}date={day:%Y-%m-%d}/"

    def microbatch(self, name: MicrobatchName) -> str:
        """The one key of a microbatch, for life."""
        return self.raw_hour(name.hour) + str(name)

    def table(self, name: str) -> str:
        """The root of a curated table."""
        return f"{self.curated}{name}"
