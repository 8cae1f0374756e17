"""The main job on real parts: the unchanged service in its own process, a simulated X over HTTP, a real S3 server, the
compaction; and the conservation oracle over all of it.

What X served is X's own ledger; what is curated is read from the Delta tables. Every id served in a complete answer must
be curated exactly once; nothing may be invented; every hole must be told.
"""

import json
import subprocess
import sys
import time

import pytest

from sandbox.leash import kill
from tests.scenarios.place import RULES

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(180)]


def test_all_that_x_served_is_curated_once_with_a_fifth_of_the_answers_429_and_503(place):
    place.x.set_faults(
        {"kind": "rate_429", "probability": 0.06, "seconds": 0},
        {"kind": "server_503_html", "probability": 0.07},
        {"kind": "server_503_json", "probability": 0.07},
    )
    place.collect(live_seconds=4)
    summary = place.compact()
    found = place.conserved()
    print(found)
    requests = place.x.stats()["requests"]["search"]
    assert sum(count for outcome, count in requests.items() if outcome != "200") > 5, requests
    assert found.distinct > 1500
    assert found.holds
    assert not found.gaps
    assert not found.indexed_late
    assert summary.rows_in == summary.tweets_written + summary.duplicates + summary.filtered
    assert place.compact().raw_hours == 0, "nothing is stale any more"


def test_killed_again_and_again_it_loses_nothing_and_no_id_twice(place):
    for patience in (0.6, 0.9, 1.3, 2.0, 2.8):
        posts, end = place.x.stats()["posts_served"], time.monotonic() + patience
        with place.running() as service:
            service.until(
                lambda posts=posts, end=end: place.x.stats()["posts_served"] > posts and time.monotonic() > end, 30
            )
            kill(service.process)
    place.collect(live_seconds=3)
    found = place.conserved()
    print(found)
    # A page whose answer was on its way when the process died was served, and is served again: not lost.
    assert found.holds
    assert place.status is None


def test_damaged_answers_are_kept_and_the_rest_goes_on(place):
    place.x.set_faults(
        {"kind": "html_200", "probability": 0.03}, {"kind": "not_json_200", "probability": 0.03},
        {"kind": "tweet_without_id", "probability": 0.2}, {"kind": "weird_id", "probability": 0.3},
        {"kind": "wrong_type_field", "probability": 0.1}, {"kind": "unknown_field", "probability": 0.1},
        {"kind": "empty_page_with_token", "probability": 0.1}, {"kind": "short_page", "probability": 0.2},
        {"kind": "repeat_next_token", "probability": 0.05}, {"kind": "ids_out_of_order", "probability": 0.2},
        {"kind": "cut_body", "probability": 0.03}, {"kind": "reset", "probability": 0.03},
    )  # fmt: skip
    place.collect(live_seconds=3)
    summary = place.compact()
    found = place.conserved()
    print(found)
    assert found.holds
    assert summary.rejected > 0
    rejects = place.lake.rows("rejects", ["reason", "raw_key", "body"])
    assert len(rejects) == summary.rejected
    assert all(reject["reason"] and reject["raw_key"].startswith(f"{place.prefix}/raw/") for reject in rejects)


def test_late_raw_and_two_compactions_at_once_leave_one_row_an_id(place):
    place.collect(live_seconds=2)
    place.compact()
    place.collect(live_seconds=4)  # the same raw hour grows: it is stale again
    command = [sys.executable, "-m", "compaction_dags.compaction", "--config", str(place.config)]
    pair = [
        subprocess.Popen(command, env=place.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outcomes = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outcomes
    for output, _ in outcomes:
        assert set(json.loads(output.splitlines()[-1])) == {
            "raw_hours", "microbatches", "pages", "rows_in", "tweets_written", "duplicates", "filtered", "rejected",
        }  # fmt: skip
    assert place.compact().raw_hours == 0
    assert place.conserved().holds


def test_a_wrong_token_waits_visibly_and_a_right_one_goes_on(place):
    with place.running(place.environment | {"X_BEARER_TOKEN": "wrong"}) as service:
        service.until(lambda: "not_allowed" in json.dumps(place.status), 30)
        assert sum(place.x.stats()["requests"]["search"].values()) < 20, "no hot loop"
    assert service.process.returncode == 0
    place.collect()
    assert place.conserved().holds


def test_the_health_endpoints_tell_the_truth(place):
    with place.running() as service:
        service.until(lambda: place.has_caught_up, 60)
        service.until(lambda: place.status["s3"]["last_shipped_at"], 30)
        assert place.get("/livez")[0] == 200
        assert place.get("/readyz")[0] == 200
        assert place.get("/healthz") == (200, '{"healthy": true, "reasons": []}')
        metrics = dict(
            line.rsplit(" ", 1) for line in place.get("/metrics")[1].splitlines() if not line.startswith("#")
        )
        stats = place.x.stats()["per_rule"]
        for name, rule in RULES.items():
            assert 0 < float(metrics[f'tweetlake_posts_stored_total{{query="{name}"}}']) <= stats[rule]["posts_served"]
            assert float(metrics[f'tweetlake_spent_usd_total{{query="{name}"}}']) > 0
        assert float(metrics["tweetlake_microbatches_shipped_total"]) >= 1
        shown = subprocess.run(
            [sys.executable, "-m", "ingester", "status", "--config", str(place.config)], capture_output=True, text=True,
            check=False, env=place.environment | {"COLUMNS": "200"},
        )  # fmt: skip
        assert shown.returncode == 0
        assert "collecting" in shown.stdout
        assert all(name in shown.stdout for name in RULES)
        place.x.set_faults({"kind": "credits_402"})
        service.until(lambda: place.get("/healthz")[0] == 503, 30)
        assert "no_credits" in place.get("/healthz")[1]
        assert place.get("/livez")[0] == 200
