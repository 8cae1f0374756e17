"""The main job on real parts: the unchanged service in its own process, a simulated X over HTTP, a real S3 server, the
compaction; and the conservation oracle over all of it.

What X served is X's own ledger; what is curated is read from the Delta tables. Every id served in a complete answer must
be curated exactly once; nothing may be invented; every hole must be told. The stories are told side by side, once.
"""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from sandbox.leash import kill
from tests.scenarios.place import RULES, SideBySide, new_places

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(240)]

stories: SideBySide[SimpleNamespace] = SideBySide()


@pytest.fixture(scope="module")
def ended(s3, tmp_path_factory):
    """What came of a story, by its function: its place, what the oracle found, and what the story noted."""
    with new_places(s3, tmp_path_factory.mktemp("main"), "main-job") as new_place:

        def tell(story, _settings):
            told = SimpleNamespace(place=new_place(story.__name__))
            story(told)
            told.found = told.place.conserved()
            print(f"{story.__name__}: {told.found}")
            return told

        with stories.told(tell) as ended:
            yield ended


@stories.story()
def a_fifth_of_the_answers_is_429_and_503(told):
    told.place.x.set_faults(
        {"kind": "rate_429", "probability": 0.06, "seconds": 0},
        {"kind": "server_503_html", "probability": 0.07},
        {"kind": "server_503_json", "probability": 0.07},
    )
    told.place.collect(live_seconds=4)
    told.summary, told.again = told.place.compact(), told.place.compact()


def test_all_that_x_served_is_curated_once_with_a_fifth_of_the_answers_429_and_503(ended):
    told = ended(a_fifth_of_the_answers_is_429_and_503)
    requests = told.place.x.stats()["requests"]["search"]
    assert sum(count for outcome, count in requests.items() if outcome != "200") > 5, requests
    assert told.found.distinct > 1500
    assert told.found.holds
    assert not told.found.gaps
    assert not told.found.indexed_late
    assert not told.found.withdrawn
    assert told.summary.rows_in == told.summary.tweets_written + told.summary.duplicates + told.summary.filtered
    assert told.again.raw_hours == 0, "nothing is stale any more"


@stories.story()
def it_is_killed_again_and_again(told):
    place = told.place
    for patience in (0.6, 0.9, 1.3, 2.0, 2.8):
        posts, end = place.x.stats()["posts_served"], time.monotonic() + patience
        with place.running() as service:
            service.until(
                lambda posts=posts, end=end: place.x.stats()["posts_served"] > posts and time.monotonic() > end, 30
            )
            kill(service.process)
    place.collect(live_seconds=3)


def test_killed_again_and_again_it_loses_nothing_and_no_id_twice(ended):
    told = ended(it_is_killed_again_and_again)
    # A page whose answer was on its way when the process died was served, and is served again: not lost.
    assert told.found.holds
    assert told.place.status is None


@stories.story()
def answers_are_damaged(told):
    told.place.x.set_faults(
        {"kind": "html_200", "probability": 0.03}, {"kind": "not_json_200", "probability": 0.03},
        {"kind": "tweet_without_id", "probability": 0.2}, {"kind": "weird_id", "probability": 0.3},
        {"kind": "wrong_type_field", "probability": 0.1}, {"kind": "unknown_field", "probability": 0.1},
        {"kind": "empty_page_with_token", "probability": 0.1}, {"kind": "short_page", "probability": 0.2},
        {"kind": "repeat_next_token", "probability": 0.05}, {"kind": "ids_out_of_order", "probability": 0.2},
        {"kind": "cut_body", "probability": 0.03}, {"kind": "reset", "probability": 0.03},
    )  # fmt: skip
    told.place.collect(live_seconds=3)
    told.summary = told.place.compact()


def test_damaged_answers_are_kept_and_the_rest_goes_on(ended):
    told = ended(answers_are_damaged)
    assert told.found.holds
    assert told.summary.rejected > 0
    rejects = told.place.lake.rows("rejects", ["reason", "raw_key", "body"])
    assert len(rejects) == told.summary.rejected
    assert all(reject["reason"] and reject["raw_key"].startswith(f"{told.place.prefix}/raw/") for reject in rejects)


@stories.story()
def raw_comes_late_and_two_compact_at_once(told):
    place = told.place
    place.collect(live_seconds=2)
    place.compact()
    place.collect(live_seconds=4)  # the same raw hour grows: it is stale again
    command = [sys.executable, "-m", "compaction_dags.compaction", "--config", str(place.config)]
    pair = [
        subprocess.Popen(command, env=place.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told.outputs = [process.communicate(timeout=120) for process in pair]
    told.codes = [process.returncode for process in pair]
    told.again = place.compact()


def test_late_raw_and_two_compactions_at_once_leave_one_row_an_id(ended):
    told = ended(raw_comes_late_and_two_compact_at_once)
    assert told.codes == [0, 0], told.outputs
    for output, _ in told.outputs:
        assert set(json.loads(output.splitlines()[-1])) == {
            "raw_hours", "microbatches", "pages", "rows_in", "tweets_written", "duplicates", "filtered", "rejected",
            "unknown_keys", "misfits",
        }  # fmt: skip
    assert told.again.raw_hours == 0
    assert told.found.holds


@stories.story()
def the_token_is_wrong_at_first(told):
    place = told.place
    with place.running(place.environment | {"X_BEARER_TOKEN": "wrong"}) as service:
        service.until(lambda: "not_allowed" in json.dumps(place.status), 30)
    told.code = service.process.returncode
    told.asked = sum(len(place.x.asked_at(rule)) for rule in RULES.values())
    place.collect()


def test_a_wrong_token_waits_visibly_and_a_right_one_goes_on(ended):
    told = ended(the_token_is_wrong_at_first)
    assert told.code == 0
    assert told.asked <= 5, "no hot loop"
    assert told.found.holds


def test_the_health_endpoints_tell_the_truth(place):
    with place.running() as service:
        service.until(lambda: place.has_caught_up, 60)
        service.until(lambda: place.status["s3"]["last_shipped_at"], 30)
        assert place.get("/livez")[0] == 200
        assert place.get("/readyz")[0] == 200
        code, body = place.get("/healthz")
        assert (code, json.loads(body)["healthy"], json.loads(body)["reasons"]) == (200, True, [])
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
        assert "Collecting" in shown.stdout
        assert all(name in shown.stdout for name in RULES)
        place.x.set_faults({"kind": "credits_402"})
        service.until(lambda: place.get("/healthz")[0] == 503, 30)
        assert "no_credits" in place.get("/healthz")[1]
        assert place.get("/livez")[0] == 200
