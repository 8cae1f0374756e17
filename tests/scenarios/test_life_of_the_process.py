"""Signals, silence and bugs against the real process on a real S3 server: it ends in time, says why, and loses nothing."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from sandbox.leash import leashed
from sandbox.s3_faults import S3Fault, running_s3_proxy
from schemas.keys import LakeKeys

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(180)]

GRACE = 3.0
AFTERWARDS = 2.0
"""What a process may take beyond its grace time to be gone, on a machine that is busy with other tests."""

BUG = """
import asyncio, importlib, sys
from ingester import __main__

async def broken(self):
    await asyncio.sleep(1)
    raise RuntimeError("a bug")

module, name = sys.argv[2].split(":")
getattr(importlib.import_module(module), name).run = broken
__main__.main(["run", "--config", sys.argv[1]])
"""


@pytest.fixture
def proxied(s3, new_place):
    with running_s3_proxy(s3) as proxy:
        place = new_place("proxied", seen_s3=proxy.s3)
        place.config.write_text(f"{place.config.read_text()}\n[service]\ngrace_seconds = {GRACE}\n")
        yield place, proxy


def ends(service, *signals):
    """Send the signals; returns the seconds from the last one until the process was gone, and its exit code."""
    keeper = service.process.pid
    process = int(Path(f"/proc/{keeper}/task/{keeper}/children").read_text())
    for number in signals[:-1]:
        os.kill(process, number)
        time.sleep(0.2)  # two signals of a kind at the same moment are one to the kernel
    asked = time.monotonic()
    os.kill(process, signals[-1])
    code = service.process.wait(60)
    return time.monotonic() - asked, code


def lease_of(place):
    client = place.s3.client()
    key = LakeKeys(f"{place.prefix}/").lease
    return json.loads(client.get_object(Bucket=place.s3.bucket, Key=key)["Body"].read())


def sealed_in(place):
    return len(list((place.spool / "sealed").glob("*.avro")))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_ships_what_it_has_lets_go_of_the_lease_and_ends_with_0(place, number):
    with place.running() as service:
        service.until(lambda: place.pages_served > 2, 60)
        seconds, code = ends(service, number)
    assert code == 0, service.last_words
    assert seconds < 20
    assert sealed_in(place) == 0
    assert not list((place.spool / "open").iterdir())
    assert not (place.spool / "http-address").exists()
    assert lease_of(place)["released"] is True
    place.collect()
    assert place.conserved().holds


def test_with_s3_silent_it_is_gone_within_the_grace_time_and_goes_on_later(proxied):
    place, proxy = proxied
    with place.running() as service:
        service.until(lambda: place.shipped > 1, 60)
        proxy.set_faults(S3Fault("hang"))
        service.until(lambda: place.status["spool"]["waiting"] > 0, 60)
        seconds, code = ends(service, signal.SIGTERM)
    assert code == 0, service.last_words
    assert seconds <= GRACE + AFTERWARDS, "threads that wait for S3 do not hold it"
    assert sealed_in(place) > 0
    proxy.set_faults()
    place.collect()
    assert place.conserved().holds


def test_told_twice_it_is_gone_at_once(proxied):
    place, proxy = proxied
    place.config.write_text(place.config.read_text().replace(f"grace_seconds = {GRACE}", "grace_seconds = 60"))
    with place.running() as service:
        service.until(lambda: place.shipped > 1, 60)
        proxy.set_faults(S3Fault("hang"))
        service.until(lambda: place.status["spool"]["waiting"] > 0, 60)
        seconds, code = ends(service, signal.SIGTERM, signal.SIGTERM)
    assert code == 0, service.last_words
    assert seconds <= AFTERWARDS
    proxy.set_faults()
    place.collect()
    assert place.conserved().holds


def test_with_an_empty_spool_and_s3_silent_it_waits_visibly_and_ends_when_told(proxied):
    place, proxy = proxied
    proxy.set_faults(S3Fault("hang"))
    with place.running() as service:
        service.until(lambda: place.status and place.get("/readyz")[0] == 503, 30)
        assert "waiting for S3" in place.get("/readyz")[1]
        service.until(lambda: "lease_unreachable" in place.problems(), 30)
        assert place.pages_served == 0
        seconds, code = ends(service, signal.SIGTERM)
    assert code == 0, service.last_words
    assert seconds <= GRACE + AFTERWARDS


@pytest.mark.parametrize("silence", ["hang", "reset", None])
def test_with_a_state_in_the_spool_it_asks_soon_whatever_s3_does(proxied, silence, capsys):
    place, proxy = proxied
    place.collect()
    if silence is not None:
        proxy.set_faults(S3Fault(silence))
    pages, began = place.pages_served, time.monotonic()
    with place.running() as service:
        service.until(lambda: place.pages_served > pages, 30)
        seconds = time.monotonic() - began
    with capsys.disabled():
        print(f"\n  S3: {silence or 'well'}; from the start of the process to the first page: {seconds:.2f} s")
    assert seconds < 6, "2 s on a machine that does nothing else"


@pytest.mark.parametrize(
    ("loop", "owner"), [("uploader", "ingester.uploader:Uploader"), ("health", "ingester.health:HealthServer")]
)
def test_a_bug_in_a_loop_ends_it_with_70_and_the_reason_and_a_restart_goes_on(place, loop, owner):
    with (
        place.log.open("ab") as log,
        leashed([sys.executable, "-c", BUG, place.config, owner], env=place.environment, stderr=log) as process,
    ):
        assert process.wait(60) == 70
    said = place.log.read_text()
    assert f"tweetlake: {loop}: a bug" in said
    assert "RuntimeError: a bug" in said, "the traceback"
    died = [line for line in place.lines() if line["event"] == "died"]
    assert [line["reasons"] for line in died] == [[f"{loop}: a bug"]]
    place.collect()
    assert place.conserved().holds


def test_two_on_one_lake_the_second_waits_and_goes_on_when_the_first_has_gone(new_place, capsys):
    first = new_place("lake")
    second = new_place("second", x=first.x)
    second.prefix = first.prefix
    second.config.write_text(first.config.read_text().replace(str(first.spool), str(second.spool)))
    with first.running() as one:
        one.until(lambda: first.has_caught_up, 60)
        with second.running() as two:
            two.until(lambda: "lease_waiting" in second.problems(), 30)
            assert "another ingester has the lease" in second.get("/readyz")[1]
            one.goes_on(4)  # longer than three times lake.lease_seconds
            assert all(query["last_page_at"] is None for query in second.status["queries"])
            ends(one, signal.SIGKILL)
            killed = time.monotonic()
            two.until(lambda: second.has_caught_up, 60)
            with capsys.disabled():
                print(f"\n  taken over and caught up {time.monotonic() - killed:.1f} s after the first one was killed")
            first_again = first.running()
            with first_again as back:
                back.until(lambda: "lease_waiting" in first.problems(), 30)
                ends(two, signal.SIGTERM)
                back.until(lambda: first.has_caught_up, 60)
    assert first.conserved().holds
