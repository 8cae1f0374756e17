"""The main job on real parts: the unchanged service in its own process, a simulated X over HTTP with faults on, a real
S3 server, the compaction; and the conservation oracle over all of it.

What X served is X's own ledger; what is curated is read from the Delta tables. Every id served in a complete answer must
be curated exactly once or be dropped by the transform; nothing may be invented; every hole must be told.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import fastavro
import pytest
from deltalake import DeltaTable

from compaction_dags.compaction import job
from sandbox.leash import leashed
from sandbox.s3 import RunningS3, running_s3
from sandbox.world import WorldSettings
from sandbox.x_api import ApiSettings, RunningXApi, running_x_api
from schemas.settings import load

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(180)]

RULES = {"python": "python", "coffee": "coffee OR espresso", "both": "(python OR coffee) lang:en"}


@pytest.fixture(scope="module")
def s3():
    with running_s3(kind="seaweedfs") as server:
        yield server


@dataclass
class Place:
    """One collection: its settings file, its world, its bucket prefix."""

    config: Path
    x: RunningXApi
    s3: RunningS3
    prefix: str

    def environment(self):
        return os.environ | self.s3.environment() | {"X_BEARER_TOKEN": self.x.token}

    def status(self):
        address = self.config.parent / "spool" / "http-address"
        try:
            with urllib.request.urlopen(f"{address.read_text()}/status", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return None

    def command(self):
        return [sys.executable, "-m", "ingester", "run", "--config", str(self.config)]

    def raw_records(self):
        client = self.s3.client()
        listed = client.get_paginator("list_objects_v2").paginate(Bucket=self.s3.bucket, Prefix=f"{self.prefix}/raw/")
        keys = [found["Key"] for page in listed for found in page.get("Contents", [])]
        for key in sorted(keys, key=lambda key: key.rsplit("/", 1)[1][14:26]):
            content = client.get_object(Bucket=self.s3.bucket, Key=key)["Body"].read()
            yield from fastavro.reader(io.BytesIO(content))

    def table(self, name, columns):
        options = self.s3.environment() | {
            "AWS_ENDPOINT_URL": self.s3.endpoint_url, "AWS_ALLOW_HTTP": "true", "aws_conditional_put": "etag",
        }  # fmt: skip
        table = DeltaTable(f"s3://{self.s3.bucket}/{self.prefix}/curated/{name}", storage_options=options)
        return table.to_pyarrow_table(columns=columns)


@pytest.fixture
def place(s3, tmp_path, monkeypatch, request):
    world = WorldSettings(seed=7, tweets_per_second=3, backlog_hours=1)
    with running_x_api(world, ApiSettings(search_limit=100_000), process=True) as x:
        prefix = request.node.name.split("[")[0].replace("_", "-")
        config = tmp_path / "tweetlake.toml"
        queries = "".join(
            f'[[query]]\nname = "{name}"\nrule = "{rule}"\npoll_every_seconds = 2\nfirst_poll_hours = 1\noverlap_seconds = 5\n'
            for name, rule in RULES.items()
        )
        config.write_text(
            f'{queries}[x]\nbase_url = "{x.url}"\ntimeout_seconds = 5\n'
            f'[spool]\ndirectory = "{tmp_path}/spool"\nseal_after_seconds = 2\n'
            f'[lake]\nbucket = "{s3.bucket}"\nendpoint_url = "{s3.endpoint_url}"\nprefix = "{prefix}"\n'
            "[budget]\nusd_per_month = 100000\n[health]\nport = 0\n"
        )
        for name, value in s3.environment().items():
            monkeypatch.setenv(name, value)
        yield Place(config, x, s3, prefix)


def until(condition, seconds, process=None):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        assert process is None or process.poll() is None, "the service ended"
        time.sleep(0.1)  # another process is watched; it has no event to await
    raise AssertionError(f"did not come true within {seconds} s")


def caught_up(place):
    status = place.status()
    return bool(
        status and status["queries"]
        and all(q["last_page_at"] and not q["todo_intervals"] and q["lag_seconds"] < 30 for q in status["queries"])
    )  # fmt: skip


def collect(place, *, live_seconds=4.0, log=None):
    with leashed(place.command(), env=place.environment(), stdout=log, stderr=log) as service:
        until(lambda: caught_up(place), 120, service)
        end = time.monotonic() + live_seconds
        until(lambda: time.monotonic() > end, live_seconds + 5, service)
    assert service.returncode == 0


def compact(place):
    settings = load(place.config)
    return job.compact(settings, job.plan_hours(settings, include_open=True))


@dataclass
class Conservation:
    """The figures of the oracle."""

    served: int
    curated: int
    lost: int
    duplicated: int
    invented: int
    requests: dict


def conserve(place, capsys) -> Conservation:
    """Compare X's ledger with the curated table; prints the figures."""
    rows = place.table("tweets", ["id", "matched_queries"])
    curated = dict(zip(rows["id"].to_pylist(), rows["matched_queries"].to_pylist(), strict=True))
    served = {name: set(place.x.served(rule)) for name, rule in RULES.items()}
    odd = {
        item["id"] for rule in RULES.values() for item in place.x.malformed(rule)
    }  # served too, with something wrong
    every = set().union(*served.values())
    found = Conservation(
        served=len(every), curated=len(curated), lost=len(every - curated.keys()),
        duplicated=rows.num_rows - len(curated), invented=len({number for number in curated if number not in every and str(number) not in odd}),
        requests=place.x.stats()["requests"]["search"],
    )  # fmt: skip
    with capsys.disabled():
        print(f"\n  {found}")
    for number, queries in curated.items():
        if str(number) in odd:
            continue
        assert set(queries) == {name for name, ids in served.items() if number in ids}, "every query that found it"
    return found


def told_holes(place):
    """Ids of the world below the frontier that were not stored, and whether the records say so."""
    frontier, start, covered_not = {}, {}, {}
    for record in place.raw_records():
        if record["kind"] == "rule" and record["frontier_id"]:
            start[record["query"]] = record["frontier_id"]
        if record["kind"] == "page" and not record["problem"]:
            name = record["query"]
            frontier[name] = max(frontier.get(name, 0), record["until_id"])
        if record["kind"] == "gap":
            covered_not.setdefault(record["query"], []).append((record["since_id"], record["until_id"]))
    return start, frontier, covered_not


def test_all_that_x_served_is_curated_once_with_a_fifth_of_the_answers_429_and_503(place, capsys):
    place.x.set_faults(
        {"kind": "rate_429", "probability": 0.06, "seconds": 0},
        {"kind": "server_503_html", "probability": 0.07},
        {"kind": "server_503_json", "probability": 0.07},
    )
    collect(place)
    summary = compact(place)
    found = conserve(place, capsys)
    refused = sum(count for outcome, count in found.requests.items() if outcome != "200" and outcome != 200)
    assert refused > 5, found.requests
    assert found.served > 1500
    assert (found.lost, found.duplicated, found.invented) == (0, 0, 0)
    assert summary.rows_in == summary.tweets_written + summary.duplicates + summary.filtered
    start, frontier, gaps = told_holes(place)
    assert not gaps
    for name, rule in RULES.items():
        exists = place.x.truth(rule, start[name], frontier[name])
        late = exists - set(place.x.served(rule))
        assert len(late) <= 3, "below the frontier only what X indexed late is missing"
    again = compact(place)
    assert again.raw_hours == 0, "nothing is stale any more"


def test_killed_again_and_again_it_loses_nothing_and_no_id_twice(place, capsys):
    for patience in (0.6, 0.9, 1.3, 2.0, 2.8):
        process = subprocess.Popen(place.command(), env=place.environment(), stderr=subprocess.DEVNULL)
        posts = place.x.stats()["posts_served"]
        end = time.monotonic() + patience
        until(lambda posts=posts, end=end: place.x.stats()["posts_served"] > posts and time.monotonic() > end, 30)
        process.send_signal(signal.SIGKILL)
        process.wait()
    collect(place, live_seconds=3)
    compact(place)
    found = conserve(place, capsys)
    # A page whose answer was on its way when the process died was served, and is served again: not lost.
    assert (found.lost, found.duplicated, found.invented) == (0, 0, 0)
    assert place.status() is None


def test_damaged_answers_are_kept_and_the_rest_goes_on(place, capsys):
    place.x.set_faults(
        {"kind": "html_200", "probability": 0.03}, {"kind": "not_json_200", "probability": 0.03},
        {"kind": "tweet_without_id", "probability": 0.2}, {"kind": "weird_id", "probability": 0.3},
        {"kind": "wrong_type_field", "probability": 0.1}, {"kind": "unknown_field", "probability": 0.1},
        {"kind": "empty_page_with_token", "probability": 0.1}, {"kind": "short_page", "probability": 0.2},
        {"kind": "repeat_next_token", "probability": 0.05}, {"kind": "ids_out_of_order", "probability": 0.2},
        {"kind": "cut_body", "probability": 0.03}, {"kind": "reset", "probability": 0.03},
    )  # fmt: skip
    collect(place, live_seconds=3)
    summary = compact(place)
    found = conserve(place, capsys)
    assert (found.lost, found.duplicated, found.invented) == (0, 0, 0)
    assert summary.rejected > 0
    rejects = place.table("rejects", ["reason", "raw_key", "body"]).to_pylist()
    assert len(rejects) == summary.rejected
    assert all(reject["reason"] and reject["raw_key"].startswith(f"{place.prefix}/raw/") for reject in rejects)


def test_late_raw_and_two_compactions_at_once_leave_one_row_an_id(place, capsys):
    collect(place, live_seconds=2)
    compact(place)
    collect(place, live_seconds=4)  # the same raw hour grows: it is stale again
    command = [sys.executable, "-m", "compaction_dags.compaction", "--config", str(place.config)]
    pair = [
        subprocess.Popen(command, env=place.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outcomes = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outcomes
    for output, _ in outcomes:
        assert set(json.loads(output.splitlines()[-1])) == {
            "raw_hours", "microbatches", "pages", "rows_in", "tweets_written", "duplicates", "filtered", "rejected",
        }  # fmt: skip
    found = conserve(place, capsys)
    assert (found.lost, found.duplicated, found.invented) == (0, 0, 0)
    assert compact(place).raw_hours == 0


def test_a_wrong_token_waits_visibly_and_a_right_one_goes_on(place):
    wrong = place.environment() | {"X_BEARER_TOKEN": "wrong"}
    with leashed(place.command(), env=wrong, stderr=subprocess.DEVNULL) as service:
        until(lambda: "not_allowed" in json.dumps(place.status() or {}), 30, service)
        asked = sum(place.x.stats()["requests"]["search"].values())
        assert asked < 20, "no hot loop"
    assert service.returncode == 0


def get(place, path):
    address = (place.config.parent / "spool" / "http-address").read_text()
    try:
        with urllib.request.urlopen(address + path, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_health_endpoints_tell_the_truth(place):
    with leashed(place.command(), env=place.environment(), stderr=subprocess.DEVNULL) as service:
        until(lambda: caught_up(place), 60, service)
        until(lambda: place.status()["s3"]["last_shipped_at"], 30, service)
        assert get(place, "/livez")[0] == 200
        assert get(place, "/readyz")[0] == 200
        assert get(place, "/healthz") == (200, '{"healthy": true, "reasons": []}')
        metrics = dict(
            line.rsplit(" ", 1) for line in get(place, "/metrics")[1].splitlines() if not line.startswith("#")
        )
        stats = place.x.stats()["per_rule"]
        for name, rule in RULES.items():
            assert 0 < float(metrics[f'tweetlake_posts_stored_total{{query="{name}"}}']) <= stats[rule]["posts_served"]
            assert float(metrics[f'tweetlake_spent_usd_total{{query="{name}"}}']) > 0
        assert float(metrics["tweetlake_microbatches_shipped_total"]) >= 1
        shown = subprocess.run(
            [sys.executable, "-m", "ingester", "status", "--config", str(place.config)], capture_output=True, text=True,
            check=False, env=place.environment() | {"COLUMNS": "200"},
        )  # fmt: skip
        assert shown.returncode == 0
        assert "collecting" in shown.stdout
        assert all(name in shown.stdout for name in RULES)
        place.x.set_faults({"kind": "credits_402"})
        until(lambda: get(place, "/healthz")[0] == 503, 30, service)
        assert "no_credits" in get(place, "/healthz")[1]
        assert get(place, "/livez")[0] == 200
