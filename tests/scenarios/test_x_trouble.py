"""Every failure of X while the unchanged service collects: it is told, asked again without haste, and no post is lost,
doubled or given up by it.

The collections mostly wait, so they are told side by side, once: each has its own X, its own lake and one query. The
tests look at what came of each. The long waits that some refusals ask for are shown in virtual time by tests/ingester.
"""

import time
from dataclasses import dataclass, field

import pytest

from sandbox.conservation import Conserved
from sandbox.world import WorldSettings
from tests.scenarios.place import Place, Service, SideBySide, busiest_second, new_places, runbook_events

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(240)]

HOURS = 0.15
RULE = "python"


@dataclass
class Trouble:
    """One collection, and what came of it."""

    place: Place
    found: Conserved = field(default_factory=Conserved)
    asked: dict[str, list[float]] = field(default_factory=dict)
    """When X was asked while a fault stood, by its kind."""
    refusals: int = 0
    """Answers of which the service said that they were refusals or no pages, by its own count."""
    struck: dict[str, int] = field(default_factory=dict)
    """How often X did what it was told to do wrong."""

    def strikes(self, service: Service, *faults: dict) -> None:
        """Each fault strikes once, one after the other, each followed by a page."""
        x = self.place.x
        for fault in faults:
            x.set_faults({"next_n": 1, "endpoint": "search"} | fault)
            service.until(lambda: x.faults()[0]["struck"], 30)
            x.set_faults()
            pages = self.place.pages_served
            service.until(lambda pages=pages: self.place.pages_served > pages, 30)

    def stands(self, service: Service, seconds: float, fault: dict) -> None:
        """A fault stands for so long, and goes."""
        x = self.place.x
        began = time.time()
        x.set_faults(fault)
        service.until(lambda: x.faults()[0]["struck"], 30)
        service.goes_on(seconds)
        self.asked[fault["kind"]] = [at for at in x.asked_at(RULE) if at > began]
        x.set_faults()


stories: SideBySide[Trouble] = SideBySide()


@pytest.fixture(scope="module")
def ended(s3, tmp_path_factory):
    """What came of a story, by its function."""
    world = WorldSettings(seed=7, tweets_per_second=10, backlog_hours=HOURS)
    with new_places(s3, tmp_path_factory.mktemp("trouble"), "x-trouble") as new_place:

        def tell(story, settings):
            settings = {"rules": {RULE: RULE}, "hours": HOURS, "timeout": 2.0} | settings
            trouble = Trouble(new_place(story.__name__, world=world, **settings))
            story(trouble)
            trouble.found = trouble.place.conserved()
            trouble.struck = trouble.place.x.stats()["faults_struck"]
            print(f"{story.__name__}: {trouble.found}; {dict(trouble.place.problems())}; {trouble.struck}")
            return trouble

        with stories.told(tell) as ended:
            yield ended


def check(trouble):
    """What holds whatever failed."""
    assert trouble.found.holds, trouble.found
    assert not trouble.found.gaps
    assert trouble.place.problems().keys() <= runbook_events()


def refused(trouble, *kinds):
    """X refuses for a while; the service is started again when that is over, as an operator would."""
    for kind in kinds:
        with trouble.place.running() as service:
            service.settles()
            trouble.stands(service, 5, {"kind": kind, "endpoint": "search", "reset": False})
            assert trouble.place.status["x"]["paused"]
    trouble.place.collect()


@stories.story()
def money_that_is_spent(trouble):
    refused(trouble, "credits_402", "cap_429")


@stories.story()
def rights_that_are_missing(trouble):
    refused(trouble, "unauthorized_401", "forbidden_403", "rate_429")


@pytest.mark.parametrize("refusal", [money_that_is_spent, rights_that_are_missing])
def test_a_refusal_stops_asking_at_once_and_says_why(ended, refusal):
    trouble = ended(refusal)
    check(trouble)
    assert trouble.place.problems()["asking_paused"] >= len(trouble.asked)
    for kind, asked in trouble.asked.items():
        assert len(asked) <= 2, f"{kind}: one request meets it, and perhaps one that was under way"


@stories.story()
def windows_that_are_used_up(trouble):
    with trouble.place.running() as service:
        service.settles()
        trouble.strikes(service, *({"kind": "rate_429", "seconds": seconds} for seconds in (1, 2, 3)))
        service.settles()


def test_a_rate_limit_is_waited_out_by_its_reset(ended):
    trouble = ended(windows_that_are_used_up)
    check(trouble)
    assert trouble.place.problems()["asking_paused"] == 3


@stories.story()
def answers_that_do_not_come(trouble):
    with trouble.place.running() as service:
        kinds = ("server_503_json", "server_503_html", "server_500_empty", "reset", "cut_body", "slow")
        trouble.strikes(service, *({"kind": kind, "seconds": 0.5} for kind in kinds), {"kind": "hang", "seconds": 60})
        trouble.stands(service, 6, {"kind": "server_503_html"})
        trouble.stands(service, 4, {"kind": "reset"})
        service.settles()
        trouble.refusals = trouble.place.met("request_refused")


def test_an_answer_that_does_not_come_is_asked_for_again_without_haste(ended):
    trouble = ended(answers_that_do_not_come)
    check(trouble)
    assert trouble.refusals >= 4
    assert trouble.place.problems()["request_failed"] >= 3
    for kind, asked in trouble.asked.items():
        assert busiest_second(asked) <= 5, kind
        assert len(asked) <= 10, kind


@stories.story()
def pages_that_lead_nowhere(trouble):
    with trouble.place.running() as service:
        kinds = (
            "html_200",
            "not_json_200",
            "empty_page_with_token",
            "ids_out_of_order",
            "unknown_field",
            "wrong_type_field",
        )
        trouble.strikes(service, *({"kind": kind} for kind in kinds))
        for kind in ("html_200", "empty_page_with_token"):
            trouble.stands(service, 5, {"kind": kind})
        service.settles()
        trouble.refusals = trouble.place.met("page_problem")


def test_a_page_that_leads_nowhere_is_kept_and_asked_for_again_without_haste(ended):
    trouble = ended(pages_that_lead_nowhere)
    check(trouble)
    assert trouble.refusals >= trouble.struck["html_200"] + trouble.struck["not_json_200"] >= 4
    for kind, asked in trouble.asked.items():
        assert busiest_second(asked) <= 5, kind
        assert len(asked) <= 12, kind
    reasons = {reject["reason"] for reject in trouble.place.lake.rows("rejects", ["reason"])}
    assert reasons


def posts_that_are_indexed_late(trouble):
    trouble.place.x.set_faults({"kind": "late_index", "probability": 0.3, "seconds": 24})
    with trouble.place.running() as service:
        service.settles()
        service.goes_on(26)
        if trouble.place.overlap:
            trouble.place.x.set_faults()  # the newest ones too show up while they can be read again
            service.goes_on(3)


@stories.story(overlap=30.0)
def late_posts_with_an_overlap(trouble):
    posts_that_are_indexed_late(trouble)


@stories.story(overlap=0.0)
def late_posts_without_an_overlap(trouble):
    posts_that_are_indexed_late(trouble)


def test_a_post_that_x_indexes_late_is_found_within_the_overlap(ended):
    with_overlap, without = ended(late_posts_with_an_overlap), ended(late_posts_without_an_overlap)
    check(with_overlap)
    check(without)
    assert not with_overlap.found.indexed_late
    assert without.found.indexed_late, "else this shows nothing"
    assert without.found.served == without.found.distinct, "without faults, kills and overlap nothing is paid twice"
    assert with_overlap.found.stored_twice > 0


@stories.story()
def a_clock_that_is_off(trouble):
    trouble.place.x.set_faults({"kind": "clock_skew", "seconds": -100})
    with trouble.place.running() as service:
        service.settles()
        service.goes_on(4)


def test_a_clock_that_is_off_is_told_and_windows_go_by_x_s(ended):
    trouble = ended(a_clock_that_is_off)
    check(trouble)
    assert trouble.place.problems()["clock_off"] >= 1
