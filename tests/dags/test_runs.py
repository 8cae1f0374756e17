"""The DAG compact_tweets when it runs, by `dag.test()`: what it does with failures, parameters and nothing to do."""

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.dags import laboratory
from tests.dags.conftest import Laboratory
from tests.dags.laboratory import Run

pytestmark = pytest.mark.dag

NOW = datetime(2026, 11, 21, 4, 5, tzinfo=UTC)


def test_settings_that_cannot_be_used_fail_at_once(running: Laboratory, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('[lake]\nbucket = "NOT A BUCKET"\n', "utf-8")
    began = time.monotonic()
    run: Run = running(laboratory.run_retrying, {"TWEETLAKE_CONFIG": str(bad)}, NOW)
    assert run.state == "failed"
    assert run.states["stale_hours"] == "failed"
    assert run.tries["stale_hours"] == 1, "a person has to mend it; trying again only delays the word"
    assert time.monotonic() - began < 25, "shorter than the first delay between tries"


def test_an_hour_that_fails_fails_the_run_and_the_others_are_done_and_announced(
    running: Laboratory, settings_file: Path
) -> None:
    hours = ["2026-11-21T01", "2026-11-21T02", "2026-11-21T03"]
    run: Run = running(laboratory.run_with_failing_hour, "2026-11-21T02", hours, NOW, str(settings_file))
    assert run.state == "failed"
    assert run.states == {
        "stale_hours": "success",
        "compact[2026-11-21T01]": "success",
        "compact[2026-11-21T02]": "failed",
        "compact[2026-11-21T03]": "success",
        "announce": "success",
        "totals": "upstream_failed",
        "order_holes": "upstream_failed",
    }
    assert run.tries["compact[2026-11-21T02]"] == 1
    assert run.announced == ["2026-11-21T01", "2026-11-21T03"]
