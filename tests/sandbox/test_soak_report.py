"""The soak's report: whatever went wrong makes it fail and is named; the figures are those that were counted."""

import io
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from sandbox.conservation import Conserved, Gap
from sandbox.soak_report import Asked, Figures

UNDER_FIRE = Asked()
QUIET = Asked(kill_every=0, faults=False)


def figures(asked=UNDER_FIRE, found=None, **changed):
    found = found or Conserved(served=1_020, distinct=1_000, curated=900, ages=[float(age) for age in range(1, 101)])
    ends = Counter({"killed": 8, "exit 0": asked.collectors})
    return replace(Figures(asked, found, ends=ends, first_requests=[0.5, 0.7, 1.9]), **changed)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"lost": {1, 2}}, "2 posts lost"),
        ({"duplicated": 1}, "1 rows too many in curated"),
        ({"invented": {3}}, "1 posts in curated that X never served"),
        ({"mislabelled": 1}, "1 rows whose matched_queries are wrong"),
        ({"gaps": [Gap("q", "out_of_reach", 1, 2, is_real=False)]}, "1 recorded gaps that are not real"),
        ({"served": 0}, "X served nothing, so nothing is proved"),
    ],
)
def test_what_the_oracle_found_wrong_fails_the_soak(wrong, reason):
    assert figures(found=replace(Conserved(served=10, distinct=10), **wrong)).verdict == [reason]


def test_what_is_no_loss_does_not_fail_it():
    found = Conserved(
        served=10, distinct=8, stored_twice=2, indexed_late={1}, gaps=[Gap("q", "out_of_reach", 1, 2, is_real=True)]
    )
    assert figures(found=found).verdict == []


def test_what_stays_in_a_spool_after_a_clean_stop_fails_it():
    assert figures(left_in_spool=1).verdict == ["1 files still in a spool after a clean stop"]
    assert figures(troubles=["lane 0 did not catch up"]).verdict == ["lane 0 did not catch up"]


def test_in_quiet_nothing_may_be_paid_twice():
    assert figures(QUIET).verdict == ["without faults, kills and overlap 20 posts were paid twice"]
    assert figures(QUIET, Conserved(served=10, distinct=10)).verdict == []
    assert figures(replace(QUIET, overlap=10.0)).verdict == []


def test_the_report_has_the_figures():
    found = figures(
        x_requests={"200": 90, "503": 7}, s3_passed={"put": 12}, s3_struck={("reset", "put"): 3}, paid_again_later=4,
        problems=Counter(upload_failed=3),
    )  # fmt: skip
    text = found.markdown("Made here.")
    assert text.startswith("# Soak report\n\nMade here.\n")
    for line in (
        "| SIGKILLs | 8 |", "| restarts | 8 |", "| how processes ended | killed 8, exit 0 2 |",
        "| start to first request | median 0.70 s, longest 1.90 s; 7 processes ended before |",
        "| requests by outcome | 200 90, 503 7 |", "| served / distinct | 1.0200 |",
        "| dollars wasted | $0.10 (20 posts served more than once) |",
        "| after X's same-day dedup | $0.02 (4 posts billed again on another day) |", "| posts lost | 0 |",
        "| faults | reset (put) 3 |", "| age of a post when S3 has it | p50 51.0 s, p95 96.0 s; bound without faults 20 s |",
        "| problems by event | upload_failed 3 |",
    ):  # fmt: skip
        assert line in text, line
    assert "**HOLDS**" in text
    assert "**FAILED**\n\n* 1 files" in figures(left_in_spool=1).markdown("")


def test_a_terminal_shows_the_same_figures():
    shown = io.StringIO()
    figures(left_in_spool=1).print(Console(file=shown, width=200))
    assert "SIGKILLs" in shown.getvalue()
    assert "FAILED: 1 files still in a spool" in shown.getvalue()
