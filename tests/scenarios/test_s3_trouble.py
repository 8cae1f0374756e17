"""Every failure of every call to S3 while the unchanged service collects: it is told, asked again without haste, and no
post is lost or doubled by it.

The collections mostly wait, so they are told side by side, once: each has its own lake, its own proxy before S3 and its
own query. The tests look at what came of each.
"""

import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from sandbox.conservation import Conserved
from sandbox.leash import kill
from sandbox.s3_faults import KINDS, S3Fault, S3Proxy, running_s3_proxy
from sandbox.world import WorldSettings
from sandbox.x_api import ApiSettings, running_x_api
from schemas.keys import LakeKeys
from schemas.orders import Order
from tests.scenarios.place import Place, Service, SideBySide, busiest_second, new_places, runbook_events

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(240)]

HOURS = 0.15
RAW, LEASE, REQUESTS = "/raw/", "/control/lease", "/control/requests/"
NO_HASTE = 8
"""Requests that meet a failure within one second: all loops of a service together."""


@dataclass
class Trouble:
    """One collection behind its own proxy, and what came of it."""

    place: Place
    proxy: S3Proxy
    found: Conserved = field(default_factory=Conserved)
    failed_uploads: int = 0

    def strikes(self, service: Service, *faults: S3Fault) -> None:
        """Each fault strikes once, one after the other, each followed by a success of the same call."""
        for fault in faults:
            fault.next_n = 1
            self.proxy.set_faults(fault)
            service.until(lambda fault=fault: fault.struck, 30)
            passed = self.proxy.passed.get(fault.call, 0)
            service.until(lambda call=fault.call, passed=passed: self.proxy.passed.get(call, 0) > passed, 30)

    def refused(self) -> list[float]:
        """When requests met a fault."""
        return [one.at for one in self.proxy.requests() if one.outcome in KINDS and one.outcome != "slow"]


stories: SideBySide[Trouble] = SideBySide()


@pytest.fixture(scope="module")
def ended(s3, tmp_path_factory):
    """What came of a story, by its function."""
    world = WorldSettings(seed=7, tweets_per_second=10, backlog_hours=HOURS)
    with (
        running_x_api(world, ApiSettings(search_limit=100_000), process=True) as x,
        new_places(s3, tmp_path_factory.mktemp("trouble"), "s3-trouble") as new_place,
    ):

        def tell(story, settings):
            rule = settings["rule"]
            with running_s3_proxy(s3) as proxy:
                place = new_place(
                    rule, x=x, seen_s3=proxy.s3, rules={rule: rule}, hours=HOURS, seal=0.5, is_alone=False
                )
                trouble = Trouble(place, proxy)
                story(trouble)
                trouble.found = place.conserved()
                print(f"{story.__name__}: {trouble.found}; {dict(place.problems())}; {proxy.struck}")
                return trouble

        with stories.told(tell) as ended:
            yield ended


def check(trouble):
    """What holds whatever failed."""
    assert trouble.found.holds, trouble.found
    assert not trouble.found.gaps
    assert trouble.place.problems().keys() <= runbook_events()
    assert busiest_second(trouble.refused()) <= NO_HASTE


@stories.story(rule="python")
def uploads_that_fail(trouble):
    kinds = (
        "conflict_409",
        "error_500",
        "slow_down_503",
        "reset",
        "reset_in_request",
        "flip_request",
        "slow",
        "lose_answer",
    )
    with trouble.place.running() as service:
        trouble.strikes(service, *(S3Fault(kind, "put", RAW) for kind in kinds), S3Fault("hang", "put", RAW, seconds=2))
        service.settles()
        trouble.failed_uploads = trouble.place.met("upload_failed")


def test_an_upload_that_failed_is_tried_again(ended):
    trouble = ended(uploads_that_fail)
    check(trouble)
    assert trouble.failed_uploads >= 8
    assert not list(trouble.place.spool.glob("quarantine/*.avro"))


@stories.story(rule="coffee")
def keys_that_are_taken_already(trouble):
    with trouble.place.running() as service:
        for kind in ("error_500", "slow_down_503", "reset", "lose_answer"):
            head = S3Fault(kind, "head", RAW, next_n=1)
            trouble.proxy.set_faults(S3Fault("lose_answer", "put", RAW, next_n=1), head)
            service.until(lambda head=head: head.struck, 30)
            shipped = trouble.place.shipped
            service.until(lambda shipped=shipped: trouble.place.shipped > shipped, 30)
        service.settles()
        trouble.failed_uploads = trouble.place.met("upload_failed")


def test_a_key_that_is_taken_is_compared_until_s3_tells_what_lies_there(ended):
    trouble = ended(keys_that_are_taken_already)
    check(trouble)
    assert trouble.failed_uploads >= 8, "a lost answer and a lost look, four times"
    assert not list(trouble.place.spool.glob("quarantine/*.avro"))


@stories.story(rule="football")
def a_lease_that_cannot_be_renewed(trouble):
    kinds = ("conflict_409", "error_500", "reset", "reset_in_request", "flip_request", "denied_403", "lose_answer")
    with trouble.place.running() as service:
        trouble.strikes(service, *(S3Fault(kind, "put", LEASE) for kind in kinds))
        lost = S3Fault("lose_answer", "put", LEASE, next_n=1), S3Fault("reset_in_answer", "get", LEASE, next_n=1)
        trouble.proxy.set_faults(*lost)
        service.until(lambda: all(fault.struck for fault in lost), 30)
        service.settles()


def test_a_lease_that_cannot_be_renewed_for_a_moment_stops_nothing(ended):
    trouble = ended(a_lease_that_cannot_be_renewed)
    check(trouble)
    assert trouble.place.problems().keys() == {"lease_unreachable"}


@stories.story(rule="climate")
def an_order_that_cannot_be_read_or_taken_away(trouble):
    place = trouble.place
    with place.running() as service:
        service.settles()
    now = datetime.now(UTC)
    order = Order.new("climate", now - timedelta(minutes=5), now - timedelta(minutes=4), now)
    key = LakeKeys(f"{place.prefix}/").request(order.name)
    client = place.s3.client()
    client.put_object(Bucket=place.s3.bucket, Key=key, Body=order.to_json())
    for kind, call in (("error_500", "list"), ("reset_in_answer", "get"), ("slow_down_503", "delete")):
        trouble.proxy.set_faults(S3Fault(kind, call, REQUESTS))
        told = place.problems()["orders_unreachable"]
        with place.running() as service:
            service.until(lambda told=told: place.problems()["orders_unreachable"] > told, 30)
    trouble.proxy.set_faults(S3Fault("lose_answer", "delete", REQUESTS, next_n=1))
    with place.running() as service:
        service.until(lambda: ("lose_answer", "delete") in trouble.proxy.struck, 30)
        service.settles()
    assert "Contents" not in client.list_objects_v2(Bucket=place.s3.bucket, Prefix=key)


def test_an_order_is_carried_out_once_whatever_call_fails(ended):
    trouble = ended(an_order_that_cannot_be_read_or_taken_away)
    check(trouble)
    records = [record for microbatch in trouble.place.lake.microbatches() for record in microbatch.records]
    assert [record["reason"] for record in records if record["order"]] == ["backfill"]
    assert {record["is_last"] for record in records if record["kind"] == "page" and record["reason"] == "backfill"} == {
        True
    }


@stories.story(rule="rust")
def disks_that_are_lost_while_s3_fails(trouble):
    place = trouble.place
    for faults in (
        (),
        (S3Fault("error_500", "list", RAW), S3Fault("reset_in_answer", "get", RAW), S3Fault("reset", "get", LEASE)),
        (
            S3Fault("reset_in_answer", "list", RAW),
            S3Fault("denied_403", "get", RAW),
            S3Fault("flip_answer", "get", LEASE),
        ),
        (
            S3Fault("flip_answer", "list", RAW),
            S3Fault("slow_down_503", "get", RAW),
            S3Fault("expired_400", "get", LEASE),
        ),
    ):
        for fault in faults:
            fault.next_n = 1
        trouble.proxy.set_faults(*faults)
        shipped = place.shipped
        with place.running() as service:
            service.until(lambda shipped=shipped: place.shipped > shipped and place.has_caught_up, 60)
            assert all(fault.struck for fault in faults), faults
            kill(service.process)
        shutil.rmtree(place.spool)
    place.collect()


def test_a_disk_that_was_lost_is_made_up_for_by_s3_whatever_call_fails(ended):
    trouble = ended(disks_that_are_lost_while_s3_fails)
    check(trouble)
    assert trouble.place.problems()["state_unreachable"] >= 6


@stories.story(rule="cinema")
def an_outage_of_thirty_seal_ages(trouble):
    place = trouble.place
    with place.running() as service:
        service.until(lambda: place.shipped, 30)
        trouble.proxy.set_faults(S3Fault("outage", seconds=600))
        service.goes_on(5)
        kill(service.process)  # and started again while S3 is away
    pages = place.pages_served
    with place.running() as service:
        service.until(lambda: place.pages_served > pages, 20)
        service.goes_on(8)
        assert place.status["spool"]["waiting"] > 3, "what was collected meanwhile waits"
        trouble.proxy.set_faults()
        service.settles()


def test_collecting_goes_on_through_an_outage_and_a_restart_in_it(ended):
    trouble = ended(an_outage_of_thirty_seal_ages)
    check(trouble)
    assert {"upload_failed", "lease_unreachable", "state_unreachable"} <= trouble.place.problems().keys()
    puts = [one for one in trouble.proxy.requests("put", RAW) if one.outcome == "outage"]
    assert len(puts) <= 25, "tried less and less often"


def refused(trouble, kind):
    place = trouble.place
    with place.running() as service:
        service.until(lambda: place.shipped, 30)
        trouble.proxy.set_faults(S3Fault(kind))
        service.until(lambda: "upload_paused" in place.problems(), 20)
        tried, pages = len(trouble.proxy.requests("put", RAW)), place.pages_served
        service.goes_on(8)
        assert place.pages_served > pages, "collecting goes on"
        assert len(trouble.proxy.requests("put", RAW)) == tried, "an upload that was refused is tried every 30 s"
        trouble.proxy.set_faults()
        service.settles()


@stories.story(rule="music")
def rights_that_are_missing_for_a_while(trouble):
    refused(trouble, "denied_403")


@stories.story(rule="cycling")
def credentials_that_expired(trouble):
    refused(trouble, "expired_400")


@stories.story(rule="books")
def a_bucket_that_is_gone_for_a_while(trouble):
    refused(trouble, "no_bucket_404")


@pytest.mark.parametrize(
    "refusal", [rights_that_are_missing_for_a_while, credentials_that_expired, a_bucket_that_is_gone_for_a_while]
)
def test_a_refusal_is_waited_out_and_goes_on_by_itself(ended, refusal):
    trouble = ended(refusal)
    check(trouble)
    assert {"upload_paused", "lease_unreachable"} <= trouble.place.problems().keys()
