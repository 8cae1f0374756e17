"""One lane of the soak: what becomes of a collector that does not run as it should. tests/scenarios has the whole of it."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from sandbox import soak
from sandbox.s3 import RunningS3
from sandbox.soak_report import Asked


@pytest.fixture
def lane(tmp_path, monkeypatch):
    """Its settings are wrong: every process ends at once with 78."""
    monkeypatch.setattr(soak, "_SETTINGS", "[x]\nbase_url = 17\n")
    monkeypatch.setattr(soak, "RESTART_SECONDS", 0.0)
    s3 = RunningS3("seaweedfs", "http://127.0.0.1:9", "lake", None, None)
    x = SimpleNamespace(url="", token="t", asked_at=lambda _rule: [], stats=lambda: {"per_rule": {}})
    return soak.Lane(0, Asked(), tmp_path, x, s3)


def test_a_process_that_ends_by_itself_is_told_and_not_started_for_ever(lane):
    lane.run()
    assert len(lane.troubles) == len(lane.lives) == soak.MOST_TROUBLES
    assert all("exit 78" in trouble and "fix:" in trouble for trouble in lane.troubles)
    assert not lane.kills
    assert lane.first_requests() == []


def test_a_soak_whose_every_lane_has_given_up_is_over_before_its_time(lane, monkeypatch):
    monkeypatch.setattr(soak._Bar, "show", lambda *_shown: None)
    nowhere = SimpleNamespace(set_faults=lambda *_faults: None)
    soak._live(Asked(minutes=None, kills=500), [lane], nowhere, nowhere, Console(quiet=True))
    assert len(lane.troubles) == soak.MOST_TROUBLES


def test_the_last_process_too_is_told_if_it_ends_by_itself(lane):
    lane.over.set()
    lane.run()
    assert [life.end for life in lane.lives] == ["exit 78"]
    assert len(lane.troubles) == 1


def test_lanes_beyond_the_topics_ask_for_rules_of_their_own(tmp_path, lane):
    rules = [
        rule
        for number in range(20)
        for rule in soak.Lane(number, Asked(), tmp_path / "more", lane.x, lane.s3).rules.values()
    ]
    assert len(set(rules)) == 40
