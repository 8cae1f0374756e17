"""What a soak found, as figures and as the report that people read: text on a terminal, Markdown in a file. Pure."""

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from sandbox.conservation import Conserved

POST_USD = 0.005
"""X's price of a post in late 2026."""

Section = tuple[str, list[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the soak was asked to do. Times in seconds."""

    minutes: float | None = 10.0
    kills: int | None = None
    kill_every: float = 5.0
    """Seconds from a process's first search to its kill, about; 0: never."""
    faults: bool = True
    collectors: int = 2
    seed: int = 1
    overlap: float = 0.0
    tweets_per_second: float = 20.0
    backlog_hours: float = 0.5
    poll_every: float = 2.0
    seal_after: float = 3.0

    @property
    def age_bound(self) -> float:
        """How old a post may be when S3 has it: poll, seal, and 15 s for X's index and the way."""
        return self.poll_every + self.seal_after + 15.0

    def __str__(self) -> str:
        until = f"{self.kills} kills" if self.kills else f"{self.minutes:g} minutes"
        kills = f"a SIGKILL about {self.kill_every:g} s after each first search" if self.kill_every else "no kills"
        faults = "faults of X and S3 on" if self.faults else "no faults"
        return (
            f"{self.collectors} collectors for {until}, {kills}, {faults}; {self.tweets_per_second:g} posts/s in X's world, "
            f"{self.backlog_hours:g} h of backlog, a poll every {self.poll_every:g} s, sealed after {self.seal_after:g} s, "
            f"overlap {self.overlap:g} s, seed {self.seed}"
        )


@dataclass(slots=True)
class Figures:
    """Everything that was counted."""

    asked: Asked
    found: Conserved
    seconds: float = 0.0
    """From the first start to the last stop."""
    ends: Counter[str] = field(default_factory=Counter)
    """How processes ended: `killed`, or the exit code."""
    first_requests: list[float] = field(default_factory=list)
    """Seconds from the start of a process until X had its first search; killed before that, it has none."""
    x_requests: Mapping[str, int] = field(default_factory=dict)
    """By outcome: a status, or the fault that met it."""
    s3_passed: Mapping[str, int] = field(default_factory=dict)
    s3_struck: Mapping[tuple[str, str], int] = field(default_factory=dict)
    paid_again_later: int = 0
    """Posts that X would bill a second time, because they were read on two UTC days."""
    problems: Counter[str] = field(default_factory=Counter)
    quarantined: int = 0
    left_in_spool: int = 0
    troubles: list[str] = field(default_factory=list)
    """What did not go as it must, beside the conservation."""

    @property
    def verdict(self) -> list[str]:
        """Every reason why the soak failed; none when it did not."""
        found, reasons = self.found, list(self.troubles)
        counts = {
            "posts lost": len(found.lost),
            "rows too many in curated": found.duplicated,
            "posts in curated that X never served": len(found.invented),
            "rows whose matched_queries are wrong": found.mislabelled,
            "recorded gaps that are not real": len(found.unreal_gaps),
            "files still in a spool after a clean stop": self.left_in_spool,
        }
        reasons += [f"{count:,} {what}" for what, count in counts.items() if count]
        if not found.served:
            reasons.append("X served nothing, so nothing is proved")
        is_quiet = not (self.asked.faults or self.asked.kill_every or self.asked.overlap)
        if is_quiet and found.served != found.distinct:
            reasons.append(f"without faults, kills and overlap {found.served - found.distinct:,} posts were paid twice")
        return reasons

    def sections(self) -> list[Section]:
        """The report's lines, in order."""
        found, again = self.found, self.found.served - self.found.distinct
        starts = sum(self.ends.values())
        struck = sum(self.s3_struck.values())
        return [
            (
                "Life",
                [
                    ("SIGKILLs", f"{self.ends['killed']:,}"),
                    ("restarts", f"{starts - self.asked.collectors:,}"),
                    ("how processes ended", _counts(self.ends)),
                    ("start to first request", _spread(self.first_requests, starts)),
                    ("wall time", f"{self.seconds / 60:.1f} min"),
                ],
            ),
            (
                "X",
                [
                    ("requests by outcome", _counts(self.x_requests)),
                    ("posts served", f"{found.served:,}"),
                    ("distinct posts", f"{found.distinct:,}"),
                    ("served / distinct", f"{found.served / max(1, found.distinct):.4f}"),
                    ("dollars wasted", f"${again * POST_USD:,.2f} ({again:,} posts served more than once)"),
                    (
                        "after X's same-day dedup",
                        f"${self.paid_again_later * POST_USD:,.2f} ({self.paid_again_later:,} posts billed again on another day)",
                    ),
                ],
            ),
            (
                "Conservation",
                [
                    ("posts lost", f"{len(found.lost):,}"),
                    ("indexed by X later than asked for", f"{len(found.indexed_late):,}"),
                    ("replaced in X's search before an answer could be kept", f"{len(found.withdrawn):,}"),
                    ("stored twice in raw", f"{found.stored_twice:,}"),
                    ("rows in curated", f"{found.curated:,}"),
                    ("duplicated in curated", f"{found.duplicated:,}"),
                    ("invented", f"{len(found.invented):,}"),
                    ("matched_queries wrong", f"{found.mislabelled:,}"),
                    ("recorded gaps", f"{len(found.gaps):,}, of which {len(found.unreal_gaps):,} not real"),
                    ("files in quarantine", f"{self.quarantined:,}"),
                    ("files left in a spool", f"{self.left_in_spool:,}"),
                ],
            ),
            (
                "S3",
                [
                    ("requests without a fault", _counts(self.s3_passed)),
                    ("requests met by a fault", f"{struck:,}"),
                    ("faults", _counts({f"{kind} ({call})": n for (kind, call), n in self.s3_struck.items()})),
                    (
                        "age of a post when S3 has it",
                        f"{_ages(found.ages)}; bound without faults {self.asked.age_bound:g} s",
                    ),
                ],
            ),
            ("What the service told", [("problems by event", _counts(self.problems))]),
        ]

    def print(self, console: Console) -> None:
        """On a terminal."""
        for title, lines in self.sections():
            table = Table(
                title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
            )
            table.add_column(min_width=34)
            table.add_column(overflow="fold")
            for line in lines:
                table.add_row(*line)
            console.print(table)
        for reason in self.verdict:
            console.print(f"[red]FAILED[/]: {reason}")
        if not self.verdict:
            console.print("[green]HOLDS[/]: nothing lost, nothing twice in curated, no gap that is not real")

    def markdown(self, made: str) -> str:
        """As a file. `made` says where and when."""
        text = [f"# Soak report\n\n{made}\n\n{self.asked}.\n"]
        if self.verdict:
            text.append("**FAILED**\n\n" + "".join(f"* {reason}\n" for reason in self.verdict))
        else:
            text.append("**HOLDS**: nothing lost, nothing twice in curated, no gap that is not real.\n")
        for title, lines in self.sections():
            rows = "".join(f"| {label} | {value} |\n" for label, value in lines)
            text.append(f"## {title}\n\n| figure | value |\n|---|---|\n{rows}")
        return "\n".join(text)


def _counts(counts: Mapping[str, int]) -> str:
    """The most frequent first."""
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{name} {count:,}" for name, count in ordered) or "none"


def _spread(seconds: list[float], starts: int) -> str:
    if not seconds:
        return "no process came to it"
    before = starts - len(seconds)
    killed = f"; {before:,} processes ended before" if before else ""
    return f"median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s{killed}"


def _ages(ages: list[float]) -> str:
    if not ages:
        return "no post was made since the queries began"
    ordered = sorted(ages)
    half, most = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.50, 0.95))
    return f"p50 {half:.1f} s, p95 {most:.1f} s"
