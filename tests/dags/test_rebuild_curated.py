"""The DAG rebuild_curated: its shape, its parameters, and runs on a real lake by `dag.test()`."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.dags import laboratory
from tests.dags.conftest import Laboratory
from tests.dags.laboratory import DagFacts, FolderFacts, Run
from tests.dags.place import FIVE_PAST_TWO, NOON, Lake

pytestmark = pytest.mark.dag

RANGE = {"since": "2026-11-20T12", "until": "2026-11-20T13"}


@pytest.fixture(scope="session")
def facts(folder: FolderFacts) -> DagFacts:
    return folder.dags["rebuild_curated"]


def test_hours_are_listed_rebuilt_one_by_one_announced_and_judged(facts: DagFacts) -> None:
    assert {name: task.upstream for name, task in facts.tasks.items()} == {
        "raw_hours": set(),
        "rebuild": {"raw_hours"},
        "out_of_turn": {"rebuild"},
        "once_more": {"out_of_turn"},
        "announce": {"rebuild"},
        "verdict": {"rebuild"},
    }
    assert facts.tasks["rebuild"].at_once == 1, "in order, newest first"


@pytest.mark.parametrize(
    "conf",
    [{}, {"since": "2026-11-20T12"}, RANGE | {"until": "2026-11-20"}, RANGE | {"check_only": 1}],
    ids=lambda conf: str(conf)[:40],
)
def test_a_range_that_is_none_is_refused_before_the_run(loading: Laboratory, conf: dict[str, object]) -> None:
    assert loading(laboratory.refusal_of, "rebuild_curated", conf) is not None


def test_a_range_is_taken(loading: Laboratory) -> None:
    assert loading(laboratory.refusal_of, "rebuild_curated", RANGE | {"check_only": True}) is None


def rebuild(running: Laboratory, lake: Lake, minutes: int = 0, **conf: Any) -> Run:
    moment = FIVE_PAST_TWO + timedelta(minutes=minutes)
    return running(laboratory.run_of, "rebuild_curated", lake.environment, RANGE | conf, moment)


def test_what_raw_gives_is_proved_and_a_changed_transform_takes_effect(
    running: Laboratory, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected = lake.collect(NOON) | lake.collect(NOON + timedelta(hours=1))
    running(laboratory.run, lake.environment, {}, FIVE_PAST_TWO)

    proof = rebuild(running, lake, check_only=True)
    assert proof.state == "success", proof.states
    assert proof.results["verdict"] is True
    assert (proof.states["announce"], proof.announced) == ("skipped", [])

    with_transform(lake, "compaction_dags.examples:clean_and_filter")
    refuted = rebuild(running, lake, 1, check_only=True)
    assert (refuted.state, refuted.states["verdict"], refuted.tries["verdict"]) == ("failed", "failed", 1)
    assert lake.tweets() == sorted(collected), "nothing was written"

    done = rebuild(running, lake, 2)
    assert done.state == "success", done.states
    assert done.announced == ["2026-11-20T12", "2026-11-20T13"]
    assert 0 < len(lake.tweets()) < len(collected)
    assert rebuild(running, lake, 3, check_only=True).results["verdict"] is True


def with_transform(lake: Lake, name: str) -> None:
    settings = Path(lake.settings)
    settings.write_text(f'{settings.read_text()}\n[transform]\nfunction = "{name}"\n')


def test_a_range_that_ends_before_it_begins_fails_at_once(running: Laboratory, lake: Lake) -> None:
    done = rebuild(running, lake, since="2026-11-20T14")
    assert done.state == "failed"
    assert done.tries["raw_hours"] == 1
