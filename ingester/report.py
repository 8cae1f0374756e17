"""What the service says about itself, for /readyz, /healthz, /status and the page: read off its parts, never kept.

Nothing here asks X, S3 or the disk: `watch` looks at the disk in a thread, and what it saw last is told.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from ingester.budget import SMALLEST_PAGE, Prices, microusd
from ingester.history import History
from ingester.lease import Lease, Standing
from ingester.model import field_set
from ingester.poller import Poller, Rest
from ingester.ports import Clock
from ingester.pulse import Pulse
from ingester.spool import Contents, Spool
from ingester.telemetry import Telemetry
from ingester.term import Term
from ingester.uploader import Uploader
from ingester.x_time import XTime
from schemas import snowflake
from schemas.records import SEARCH
from schemas.settings import Budget, Query, Settings
from schemas.state import ON_TOP, Money, QueryState

LATE_AFTER_POLLS = 3
LATE_AFTER_SECONDS = 90.0
"""A query is late when it had no page for three of its intervals, and at least for this long."""
CLOCK_OFF_AFTER = timedelta(seconds=5)
"""Between this machine and X. Windows are planned by X's clock all the same; the times in raw are this machine's."""
LOOK_SECONDS = 5.0
"""Between two looks at the disk."""
DISK_HANGS_AFTER = 30.0
"""Seconds without an answer of the disk."""

CAPS = {
    "usd_per_month": "usd_this_month",
    "usd_per_day": "usd_today",
    "posts_per_month": "posts_this_month",
    "posts_per_day": "posts_today",
}
"""Each cap of the settings with the figure that it bounds."""

TOO_SMALL_FIX = (
    "raise it to what a page of 10 posts can cost (tweetlake check tells), and restart: waiting does not help"
)
"""What to do about a cap within which no page can ever be asked for."""

HOLD_FIXES = {
    "rate": "nothing, it goes on at the reset; if it comes back, poll less often (query.poll_every_seconds)",
    "budget": "wait for the reset, or raise the cap in [budget] and restart",
    "not_allowed": "mend the token or the app's rights at X; one request a minute tries again by itself",
    "no_credits": "buy credits at X; one request every 5 minutes tries again by itself",
    "cap_reached": "raise the app's cap at X or wait until it resets; one request every 15 minutes tries again",
}
"""What to do about each kind of hold that stops live polls. One that lacks room on the disk is the spool's."""
REFUSALS = frozenset({"not_allowed", "no_credits", "cap_reached"})


@dataclass(frozen=True, slots=True)
class Check:
    """How one component is. `kind`: query, spool, s3, x, clock, lease or loop."""

    name: str
    kind: str
    reason: str | None = None
    """Why it is not as it should be; None when it is."""
    fix: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.reason is None}


class Report:
    """Looks at the parts; the service tells it of those that begin later."""

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        lease: Lease,
        x_time: XTime,
        clock: Clock,
        telemetry: Telemetry,
        version: str,
    ) -> None:
        self.term: Term | None = None
        self.uploader: Uploader | None = None
        self.pulse: Pulse | None = None
        self.history = History()
        self._settings = settings
        self._spool = spool
        self._lease = lease
        self._x_time = x_time
        self._clock = clock
        self._telemetry = telemetry
        self._version = version
        self._started_at = clock.now()
        least = smallest_page_microusd(settings)
        self._too_small = {name: too_small_caps(owner, least) for name, owner in owners_of_caps(settings).items()}
        self._seen: Contents | None = None
        self._seen_seconds = 0.0
        self._look_problem: str | None = None

    # Looking at the disk.

    async def watch(self) -> None:
        """Keep the history and look at the spool every few seconds. Ends only by cancellation."""
        if self._seen is None:
            await self.look()
        while True:
            lags = [lag for query in self._queries() if (lag := query["covered_lag_seconds"]) is not None]
            self.history.note(
                self._clock.now(),
                self._clock.monotonic(),
                posts=self._telemetry.posts.total(),
                lag=max(lags, default=None),
                spool_bytes=self._contents().used_bytes,
            )
            await self._clock.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Look at the spool in a thread: a disk that hangs holds up nobody."""
        try:
            self._seen, self._look_problem = await asyncio.to_thread(self._spool.contents), None
        except OSError as error:
            self._look_problem = str(error)
        else:
            self._seen_seconds = self._clock.monotonic()

    def _contents(self) -> Contents:
        """What was seen last; seen now if nobody has looked yet."""
        if self._seen is None:
            try:
                return self._spool.contents()
            except OSError as error:
                self._look_problem = str(error)
                return Contents(waiting=0, oldest_waiting_at=None, quarantine=0, used_bytes=0, free_bytes=0)
        return self._seen

    def _lacks_room(self) -> str | None:
        contents, bounds = self._contents(), self._settings.spool
        return None if self._look_problem else contents.lacks_room(bounds.max_bytes, bounds.min_free_bytes)

    # The verdicts.

    def readiness(self) -> dict[str, Any]:
        """Why it cannot work, if so: the lease is somebody else's, no state yet, or X never accepted the credentials."""
        reason = self._why_not_ready()
        return {"ready": reason is None, "reasons": [] if reason is None else [reason]}

    def _why_not_ready(self) -> str | None:
        if (waiting := self._lease.why_waiting()) is not None:
            return waiting
        if self.uploader is None:
            return "the state has not been found yet (waiting for S3)"
        if not self._x_time.known.is_set():
            return "X has not answered at all yet"
        if self.term is None or not self.term.gate.allowed_once:
            return "X has not answered with a page yet"
        return None

    def health(self) -> dict[str, Any]:
        """Whether it collects as it should: every component's check, with the reason and what to do if it is not well."""
        checks = list(self._checks())
        reasons = [check.reason for check in checks if check.reason is not None]
        return {"healthy": not reasons, "reasons": reasons, "components": [check.as_dict() for check in checks]}

    def _checks(self) -> Iterator[Check]:
        yield self._check_lease()
        yield self._check_x()
        yield self._check_s3()
        yield self._check_spool()
        yield self._check_clock()
        pollers = self._pollers()
        for query in self._settings.query:
            yield self._check_query(query, pollers.get(query.name))
        for name, seconds in (self.pulse.late() if self.pulse else {}).items():
            yield Check(
                f"loop:{name}",
                "loop",
                f"the loop {name} has been silent for {seconds:.0f} s",
                "under systemd the watchdog restarts the service; else restart it; nothing durable is lost",
            )

    def _check_lease(self) -> Check:
        if (waiting := self._lease.why_waiting()) is not None:
            fix = "nothing, if this one shall stand by; else stop one of the two"
            return Check("lease", "lease", waiting, fix)
        if self._lease.problem is not None:
            meanwhile = "nothing is asked before" if self.term is None else "asking goes on meanwhile"
            fix = f"mend the network or the rights on control/ (GetObject, PutObject); {meanwhile}"
            return Check("lease", "lease", f"the lease: {self._lease.problem}", fix)
        return Check("lease", "lease")

    def _check_x(self) -> Check:
        if not self._x_time.known.is_set():
            fix = "look at the network, proxy and x.base_url; it is tried again by itself"
            return Check("x", "x", "X has not answered at all yet", fix)
        if self.term is None:
            return Check("x", "x")
        hold = self.term.gate.hold
        if hold is not None and hold.kind in HOLD_FIXES:
            for_ever = hold.kind == "budget" and self._too_small["budget"]
            fix = TOO_SMALL_FIX if for_ever else HOLD_FIXES[hold.kind]
            return Check("x", "x", f"asking X is paused: {hold.reason}", fix)
        if not self.term.gate.allowed_once:
            fix = "nothing in the first minute; then see the log for what X answers"
            return Check("x", "x", "X has not answered with a page yet", fix)
        return Check("x", "x")

    def _check_s3(self) -> Check:
        if self.uploader is None:
            if self._lease.standing is Standing.THEIRS:
                return Check("s3", "s3")
            fix = "mend bucket, rights or network; it goes on by itself"
            return Check("s3", "s3", "the state has not been found yet (waiting for S3)", fix)
        if self.uploader.last_problem is None:
            return Check("s3", "s3")
        fix = "nothing for minutes, it is tried again; then look at the network and at S3's status page"
        if self.uploader.is_paused:
            fix = "mend credentials, rights or bucket; it tries again every 30 s and goes on by itself, in order"
        return Check("s3", "s3", f"uploading: {self.uploader.last_problem}", fix)

    def _check_spool(self) -> Check:
        problem = self._look_problem
        if self._seen is not None and (age := self._clock.monotonic() - self._seen_seconds) > DISK_HANGS_AFTER:
            problem = problem or f"no answer for {age:.0f} s"
        if problem is not None:
            return Check("spool", "spool", f"the disk of the spool: {problem}", "look at dmesg and at the disk")
        if (full := self._lacks_room()) is not None:
            fix = "make room, or let S3 recover: shipping makes room; collecting goes on by itself"
            return Check("spool", "spool", f"asking X is paused: {full}", fix)
        if quarantined := self._contents().quarantine:
            fix = "look at the disk and at the .reason files in quarantine/; delete them by hand once you know"
            return Check("spool", "spool", f"{quarantined:,} file{'' if quarantined == 1 else 's'} in quarantine", fix)
        return Check("spool", "spool")

    def _check_clock(self) -> Check:
        if not self._x_time.known.is_set() or abs(self._x_time.skew) <= CLOCK_OFF_AFTER:
            return Check("clock", "clock")
        off = -self._x_time.skew.total_seconds()
        fix = "start time synchronisation (timedatectl set-ntp true); no post is missed meanwhile"
        return Check("clock", "clock", f"this machine's clock is {off:+.1f} s off X's", fix)

    def _check_query(self, query: Query, poller: Poller | None) -> Check:
        name = f"query:{query.name}"
        if self.term is None or poller is None:
            reason = f"query {query.name} is not asked: {self._why_not_ready() or 'the collection begins'}"
            return Check(name, "query", reason, "see the checks of lease, X and S3")
        if poller.refused is not None:
            fix = "mend query.rule by what X says, and restart"
            return Check(name, "query", f"query {query.name}: X refuses it: {poller.refused}", fix)
        if (late := self._lateness(self.term, poller)) <= 0:
            return Check(name, "query") if poller.stuck is None else _check_stuck(name, query, poller.stuck)
        reason = f"query {query.name} had no page for {late:.0f} s: {poller.last_problem or 'no reason known'}"
        fix = TOO_SMALL_FIX if self._too_small[f"query {query.name}"] else _query_fix(self.term, poller)
        return Check(name, "query", reason, fix)

    def _pollers(self) -> dict[str, Poller]:
        return {poller.query.name: poller for poller in self.term.pollers} if self.term else {}

    def _lateness(self, term: Term, poller: Poller) -> float:
        since = term.began_seconds if poller.last_page_seconds is None else poller.last_page_seconds
        seconds = self._clock.monotonic() - since
        return seconds if seconds > max(LATE_AFTER_POLLS * poller.query.poll_every_seconds, LATE_AFTER_SECONDS) else 0.0

    # Everything.

    def status(self) -> dict[str, Any]:
        """Everything a person may want to see, as JSON."""
        return {
            "version": self._version,
            "started_at": _text(self._started_at),
            "now": _text(self._clock.now()),
            "ready": self._why_not_ready() is None,
            **self.health(),
            "spool": self._spool_status(),
            "s3": self._s3_status(),
            "lease": self._lease.status(),
            "x": _x_status(self.term) if self.term else None,
            "budget": self._budget_status(self.term) if self.term else None,
            "queries": self._queries(),
            "problems": [
                {
                    "at": _text(problem.at),
                    "event": problem.event,
                    "detail": problem.detail,
                    "times": problem.times,
                    "first_at": _text(problem.first_at),
                }
                for problem in reversed(self._telemetry.problems)
            ],
        }

    def _spool_status(self) -> dict[str, Any]:
        contents, bounds = self._contents(), self._settings.spool
        waiting = self._spool.waiting_now
        waiting = contents.waiting if waiting is None else waiting
        return {
            "id": self._spool.spool_id,
            "waiting": waiting,
            "oldest_waiting_at": _text(contents.oldest_waiting_at) if waiting else None,
            "quarantine": contents.quarantine,
            "bytes": contents.used_bytes,
            "open_bytes": self._spool.open_bytes,
            "max_bytes": bounds.max_bytes,
            "free_bytes": contents.free_bytes,
            "lacks_room": self._lacks_room(),
        }

    def _s3_status(self) -> dict[str, Any]:
        uploader = self.uploader
        return {
            "bucket": self._settings.lake.bucket,
            "last_shipped_at": _text(uploader.last_shipped_at) if uploader else None,
            "problem": uploader.last_problem if uploader else None,
            "paused": bool(uploader and uploader.is_paused),
        }

    def _budget_status(self, term: Term) -> dict[str, Any]:
        spent = _spent(term.journal.state.money, term.gate.x_time.now())
        caps = self._settings.budget.model_dump(exclude={"reconcile"})
        return {
            **spent,
            "x_counted_posts_today": term.reconciliation.x_counted if term.reconciliation else None,
            "caps": caps,
            "too_small": self._too_small["budget"],
            "fractions": _fractions(caps, spent),
        }

    def _queries(self) -> list[dict[str, Any]]:
        """Every query of the settings; what is not known of it is None."""
        pollers = self._pollers()
        return [self._query_status(query, pollers.get(query.name)) for query in self._settings.query]

    def _query_status(self, query: Query, poller: Poller | None) -> dict[str, Any]:
        term, name = self.term, query.name
        state = term.journal.state.queries.get(name) if term else None
        now = self._x_time.now()
        planned = snowflake.time_of(state.frontier_id) if state else None
        covered = _covered_until(state) if state else None
        spent = _spent(state.money if state else Money(), now)
        caps = {cap: limit for cap in ("usd_per_month", "usd_per_day") if (limit := getattr(query, cap)) is not None}
        last = poller.last_page_seconds if poller else None
        return {
            "name": name,
            "rule": query.rule,
            "planned_until": _text(planned),
            "lag_seconds": _seconds_since(planned, now),
            "covered_until": _text(covered),
            "covered_lag_seconds": _seconds_since(covered, now),
            "todo_intervals": len(state.todo) if state else 0,
            "todo": [str(interval) for interval in state.todo[:5]] if state else [],
            "gaps": self._telemetry.gaps[name],
            "last_page_at": _text(poller.last_page_at) if poller else None,
            "last_page_age_seconds": None if last is None else round(self._clock.monotonic() - last, 1),
            "late_seconds": round(self._lateness(term, poller), 1) if term and poller else 0.0,
            "poll_every_seconds": query.poll_every_seconds,
            "problem": poller.last_problem if poller else None,
            "refused": poller is not None and poller.refused is not None,
            "usd_today": spent["usd_today"],
            "usd_this_month": spent["usd_this_month"],
            "too_small": self._too_small[f"query {name}"],
            "fractions": _fractions(caps, spent),
        }


def _check_stuck(name: str, query: Query, stuck: Rest) -> Check:
    reason = f"query {query.name}: X answers, but not for {stuck.interval}: {stuck.problem}"
    fix = (
        "nothing else waits for it; it is tried again for as long as X has it and becomes a gap then, which "
        f"tweetlake-compact order-holes --query {query.name} orders anew"
    )
    return Check(name, "interval", reason, fix)  # the query itself gets pages


def owners_of_caps(settings: Settings) -> dict[str, Budget | Query]:
    """Who has caps, by the name that stands before them."""
    return {"budget": settings.budget, **{f"query {query.name}": query for query in settings.query}}


def smallest_page_microusd(settings: Settings) -> int:
    """What the smallest page that X gives can cost: without as much left of a cap, none is asked for."""
    return Prices(settings.price, field_set(settings.x.fields, settings.x.expansions)).worst_case(SMALLEST_PAGE)


def too_small_caps(owner: Budget | Query, least_microusd: int) -> list[str]:
    """The caps that no page can ever be within, not even with nothing spent."""
    limits = {cap: limit for cap in CAPS if (limit := getattr(owner, cap, None)) is not None}
    return [
        cap
        for cap, limit in limits.items()
        if (microusd(limit) < least_microusd if cap.startswith("usd") else limit < SMALLEST_PAGE)
    ]


def _query_fix(term: Term, poller: Poller) -> str:
    """What to do about a query that had no page for long."""
    problem = poller.last_problem or ""
    if term.gate.hold is not None and term.gate.hold.kind != "backlog":
        return "see why asking X is paused"
    if problem.startswith(f"query {poller.query.name}."):
        return "wait for the reset of its cap, or raise the cap and restart"
    if problem.startswith("400"):
        return "mend query.rule by what X says, and restart"
    return "look at the network and at X's status page; it is tried again by itself"


def _covered_until(state: QueryState) -> datetime:
    """Everything older was asked for, or told as a gap. What is read on top of the regular collection does not count."""
    missing = (interval.since_id for interval in state.todo if interval.reason not in ON_TOP)
    return snowflake.time_of(min((state.frontier_id, *missing)))


def _spent(money: Money, now: datetime) -> dict[str, Any]:
    within = money.within(now)
    return {
        "usd_today": within.day.microusd / 1e6,
        "usd_this_month": within.month.microusd / 1e6,
        "posts_today": within.day.posts,
        "posts_this_month": within.month.posts,
    }


def _fractions(caps: dict[str, Any], spent: dict[str, Any]) -> dict[str, float]:
    """How much of each cap that is set was spent: 1.0 is all of it. A cap of nothing is always spent."""
    return {
        cap: round(spent[figure] / limit, 4) if limit else 1.0
        for cap, figure in CAPS.items()
        if (limit := caps.get(cap)) is not None
    }


def _x_status(term: Term) -> dict[str, Any]:
    rate, hold = term.gate.rates[SEARCH], term.gate.hold
    return {
        "paused": hold.reason if hold else None,
        "paused_until": _text(hold.until) if hold else None,
        "hold": hold.kind if hold else None,
        "credentials": _credentials(term),
        "rate_limit": rate.limit,
        "rate_remaining": rate.remaining,
        "rate_reset_at": _text(rate.reset_at),
        "clock_skew_seconds": term.gate.x_time.skew.total_seconds(),
    }


def _credentials(term: Term) -> str:
    if term.gate.hold is not None and term.gate.hold.kind == "not_allowed":
        return "refused"
    return "accepted" if term.gate.allowed_once else "unknown"


def _seconds_since(moment: datetime | None, now: datetime) -> float | None:
    return round((now - moment).total_seconds(), 1) if moment else None


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None
