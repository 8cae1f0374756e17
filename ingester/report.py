"""What the service says about itself, for /readyz, /healthz, /status: read off its parts, never kept."""

from datetime import datetime
from typing import Any

from ingester.lease import Lease
from ingester.poller import Poller
from ingester.ports import Clock
from ingester.pulse import Pulse
from ingester.spool import Spool
from ingester.telemetry import Telemetry
from ingester.term import Term
from ingester.uploader import Uploader
from ingester.x_time import XTime
from schemas import snowflake
from schemas.records import SEARCH
from schemas.settings import Settings

LATE_AFTER_POLLS = 3
LATE_AFTER_SECONDS = 90.0
"""A query is late when it had no page for three of its intervals, and at least for this long."""


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
        self._settings = settings
        self._spool = spool
        self._lease = lease
        self._x_time = x_time
        self._clock = clock
        self._telemetry = telemetry
        self._version = version
        self._started_at = clock.now()

    def readiness(self) -> dict[str, Any]:
        """Why it cannot work, if so: the lease is somebody else's, no state yet, or X never accepted the credentials."""
        reasons = []
        if (waiting := self._lease.why_waiting()) is not None:
            reasons.append(waiting)
        elif self.uploader is None:
            reasons.append("the state has not been found yet (waiting for S3)")
        elif not self._x_time.known.is_set():
            reasons.append("X has not answered at all yet")
        elif self.term is None or not self.term.gate.allowed_once:
            reasons.append("X has not answered with a page yet")
        return {"ready": not reasons, "reasons": reasons}

    def health(self) -> dict[str, Any]:
        """Why it does not collect as it should, if so."""
        reasons = list(self.readiness()["reasons"])
        if self.term is not None:
            if self.term.gate.hold is not None:
                reasons.append(f"asking X is paused: {self.term.gate.hold.reason}")
            reasons += [
                f"query {poller.query.name} had no page for {late:.0f} s: {poller.last_problem or 'no reason known'}"
                for poller in self.term.pollers
                if (late := self._lateness(self.term, poller)) > 0
            ]
        if self._lease.problem is not None:
            reasons.append(f"the lease: {self._lease.problem}")
        if self.uploader is not None and self.uploader.last_problem is not None:
            reasons.append(f"uploading: {self.uploader.last_problem}")
        if quarantined := self._spool.count("quarantine"):
            reasons.append(f"{quarantined} files in quarantine")
        return {"healthy": not reasons, "reasons": reasons}

    def _lateness(self, term: Term, poller: Poller) -> float:
        since = term.began_seconds if poller.last_page_seconds is None else poller.last_page_seconds
        seconds = self._clock.monotonic() - since
        return seconds if seconds > max(LATE_AFTER_POLLS * poller.query.poll_every_seconds, LATE_AFTER_SECONDS) else 0.0

    def status(self) -> dict[str, Any]:
        """Everything a person may want to see, as JSON."""
        term, uploader = self.term, self.uploader
        return {
            "version": self._version,
            "started_at": _text(self._started_at),
            "now": _text(self._clock.now()),
            **self.health(),
            "spool": {
                "id": self._spool.spool_id,
                "waiting": self._spool.count("sealed"),
                "quarantine": self._spool.count("quarantine"),
                "bytes": self._spool.used_bytes(),
                "open_bytes": self._spool.open_bytes,
            },
            "s3": {
                "bucket": self._settings.lake.bucket,
                "last_shipped_at": _text(uploader.last_shipped_at) if uploader else None,
                "problem": uploader.last_problem if uploader else None,
            },
            "lease": self._lease.status(),
            "x": _x_status(term) if term else None,
            "budget": self._budget_status(term) if term else None,
            "queries": [_query_status(term, poller) for poller in term.pollers] if term else [],
            "problems": [
                {"at": _text(problem.at), "event": problem.event, "detail": problem.detail}
                for problem in reversed(self._telemetry.problems)
            ],
        }

    def _budget_status(self, term: Term) -> dict[str, Any]:
        money = term.journal.state.money.within(term.gate.x_time.now())
        return {
            "usd_today": money.day.microusd / 1e6,
            "usd_this_month": money.month.microusd / 1e6,
            "posts_today": money.day.posts,
            "posts_this_month": money.month.posts,
            "x_counted_posts_today": term.reconciliation.x_counted if term.reconciliation else None,
            "caps": self._settings.budget.model_dump(exclude={"reconcile"}),
        }


def _query_status(term: Term, poller: Poller) -> dict[str, Any]:
    name = poller.query.name
    state = term.journal.state.queries.get(name)
    now = term.gate.x_time.now()
    covered = snowflake.time_of(state.frontier_id) if state else None
    month = state.money.within(now).month if state else None
    return {
        "name": name,
        "rule": poller.query.rule,
        "planned_until": _text(covered),
        "lag_seconds": round((now - covered).total_seconds(), 1) if covered else None,
        "todo_intervals": len(state.todo) if state else 0,
        "todo": [str(interval) for interval in state.todo[:5]] if state else [],
        "last_page_at": _text(poller.last_page_at),
        "problem": poller.last_problem,
        "usd_this_month": month.microusd / 1e6 if month else 0.0,
    }


def _x_status(term: Term) -> dict[str, Any]:
    rate, hold = term.gate.rates[SEARCH], term.gate.hold
    return {
        "paused": hold.reason if hold else None,
        "paused_until": _text(hold.until) if hold else None,
        "rate_limit": rate.limit,
        "rate_remaining": rate.remaining,
        "rate_reset_at": _text(rate.reset_at),
        "clock_skew_seconds": term.gate.x_time.skew.total_seconds(),
    }


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None
