"""A short soak: real ingesters killed again and again while X and S3 fail, and one that is left in peace beside them."""

import io
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from rich.console import Console

from sandbox.soak import soak
from sandbox.soak_report import Asked
from tests.scenarios.place import SideBySide, until

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(300)]

stories = SideBySide()


@pytest.fixture(scope="module")
def ended():
    with stories.told(lambda story, _settings: story()) as ended:
        yield ended


@stories.story()
def under_fire():
    # As long as it takes: on a busy machine a minute is a few starts.
    asked = Asked(minutes=None, kills=24, kill_every=2.5, collectors=2, tweets_per_second=10.0, backlog_hours=0.2)
    return soak(asked, Console(file=io.StringIO()))


def test_two_dozen_kills_under_fire_loses_nothing(ended):
    figures = ended(under_fire)
    figures.print(Console(width=150))
    assert figures.verdict == []
    assert figures.ends["killed"] >= 20
    assert figures.found.distinct > 1_000
    assert len(figures.x_requests) > 4, "X failed in several ways"
    assert len(figures.s3_struck) > 4, "so did S3"
    assert not figures.found.gaps
    assert not figures.found.indexed_late
    assert not figures.quarantined
    # A kill costs a page that was on its way, not the pages before it.
    assert figures.found.served <= 1.3 * figures.found.distinct
    assert figures.found.stored_twice <= 0.02 * figures.found.distinct


@stories.story()
def in_peace():
    asked = Asked(minutes=0.6, kill_every=0.0, faults=False, collectors=1, tweets_per_second=10.0, backlog_hours=0.2)
    return soak(asked, Console(file=io.StringIO()))


def test_in_peace_nothing_is_paid_twice_and_s3_is_not_far_behind(ended):
    figures = ended(in_peace)
    figures.print(Console(width=150))
    assert figures.verdict == []
    assert figures.found.served == figures.found.distinct > 500
    assert figures.found.stored_twice == 0
    assert figures.ends == {"exit 0": 1}
    ages = sorted(figures.found.ages)
    assert ages[int(len(ages) * 0.95)] <= figures.asked.age_bound


@stories.story()
def interrupted():
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "sandbox", "soak", "--collectors", "2", "--kill-every", "2"]
    process = subprocess.Popen(
        command, env=os.environ | {"SOAK_MARK": mark}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    until(lambda: sum("ingester" in line for line in commands(mark)) >= 2, 60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    left = time.monotonic() + 10
    while commands(mark) and time.monotonic() < left:
        time.sleep(0.1)  # the keepers have no parent to tell any more
    return process.returncode, said.decode(), commands(mark)


def commands(mark):
    """The command lines of all processes that have the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"SOAK_MARK={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is not ours
            continue
    return found


def test_ctrl_c_leaves_nothing_running(ended):
    code, said, left = ended(interrupted)
    assert (code, left) == (130, [])
    assert said == "\nstopped; nothing is left running\n"
