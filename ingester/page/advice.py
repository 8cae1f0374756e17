"""What to do about each problem event, in one sentence; docs/runbook.md has the long form."""

FOLLOWS = frozenset({"see why asking X is paused", "see the checks of lease, X and S3"})
"""What is to be done about a query that only waits for something else, which has a check of its own."""

ADVICE = {
    "state_unreachable": "Mend bucket, rights or network; it goes on by itself.",
    "lease_waiting": "Nothing, if this one shall stand by; else stop one of the two.",
    "lease_lost": "Run only one ingester on this lake; this one goes on by itself once the other stops.",
    "lease_unreachable": "Mend the network or the rights on control/ before a second ingester takes over.",
    "loop_hung": "Under systemd nothing: it is started anew and goes on where it stopped. Else restart it.",
    "request_failed": "Nothing for minutes; then look at the network and at X's status page.",
    "request_refused": "400: mend query.rule by what X says. 5xx: nothing, X is in trouble.",
    "asking_paused": "Rate window: nothing. Budget: wait, or raise the cap. Refusals: mend them at X.",
    "query_paused": "Wait for the reset of its cap, or raise the cap and restart.",
    "usage_differs": "If it comes every hour, look for what else uses the app's token.",
    "aside_failed": "If it goes on: does the app's plan have that endpoint? Else switch the audit or reconcile off.",
    "audit_problem": "Nothing, unless it goes on for days.",
    "order_refused": "Delete the object and order again with tweetlake backfill.",
    "orders_unreachable": "Mend rights or network; it goes on by itself.",
    "page_problem": "Nothing, unless it goes on for hours: then look at the body in raw.",
    "gap_recorded": "Know it: the curated tables cannot have these posts.",
    "clock_off": "Start time synchronisation; no post is missed meanwhile.",
    "spool_full": "Make room or let S3 recover; it resumes by itself.",
    "unreadable": "Keep the file for a look; tweetlake spool verify.",
    "upload_failed": "Nothing, it is tried again.",
    "upload_paused": "Mend credentials, rights or bucket; it goes on by itself, in order.",
    "quarantined": "Look at the disk; delete the file by hand only once you know.",
    "listening_openly": "Bind health.host to 127.0.0.1, or set health.token_file and encrypt the way there.",
    "answering_failed": "Restart is safe; report the log line.",
}
"""By event."""


BY_REASON = {
    "out_of_reach": ADVICE["gap_recorded"],
    "refused": "Order it anew by the rule of today: tweetlake-compact order-holes.",
    "query_removed": "Nothing, if it was removed on purpose; else put the query back and order the stretch with tweetlake backfill.",
    "reread_given_up": "Nothing: it was read before, only the second reading is left out.",
    "backfill_given_up": "Nothing: the regular collection lacks nothing by it; what X has no more of the order is left out.",
}
"""Of a gap, by its reason, which ends its detail."""


def advice(event: str, detail: str = "") -> str:
    """What to do about it."""
    if event == "gap_recorded" and (found := BY_REASON.get(detail.rsplit(": ", 1)[-1])):
        return found
    return ADVICE.get(event, "See docs/runbook.md.")
