"""`tweetlake estimate` and `tweetlake backfill` as a person meets them: against the simulated X and a real S3 server."""

import io
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from rich.console import Console

from ingester.__main__ import main
from ingester.budget import Prices
from ingester.commands import estimate
from ingester.commands.estimate import Forecast, forecast
from ingester.model import LEAN, RICH
from sandbox.s3 import running_s3
from sandbox.world import WorldSettings
from sandbox.x_api import ApiSettings, running_x_api
from schemas.orders import Order
from schemas.settings import Settings


@pytest.fixture(scope="module")
def x():
    with running_x_api(WorldSettings(seed=3, tweets_per_second=1, backlog_hours=24), ApiSettings()) as api:
        yield api


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with running_s3(tmp_path_factory.mktemp("s3"), kind="moto") as server:
        yield server


@pytest.fixture
def config(tmp_path, x, s3, monkeypatch):
    monkeypatch.setenv("X_BEARER_TOKEN", x.token)
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "tweetlake.toml"
    file.write_text(
        f'[[query]]\nname = "python"\nrule = "python"\n[[query]]\nname = "coffee"\nrule = "coffee"\n'
        f'[x]\nbase_url = "{x.url}"\n[lake]\nbucket = "{s3.bucket}"\nendpoint_url = "{s3.endpoint_url}"\n'
        f'[spool]\ndirectory = "{tmp_path}/spool"\n'
    )
    return file


def call(config, *words, **more):
    return CliRunner().invoke(main, [words[0], "--config", str(config), *words[1:]], **more)


def test_an_estimate_is_what_x_counted_at_our_prices(config, x):
    before = sum(x.stats()["requests"].get("counts", {}).values())
    found = call(config, "estimate", "--yes", "--json")
    assert found.exit_code == 0, found.output
    python, coffee = json.loads(found.output)
    assert (python["query"], coffee["query"]) == ("python", "coffee")
    assert sum(x.stats()["requests"].get("counts", {}).values()) - before == 2
    posts = sum(python["posts_per_hour"])
    assert posts > 100
    assert len(python["posts_per_hour"]) == 167
    assert python["posts_per_month"] == round(posts / 167 * 720)
    assert python["usd_posts_only"] == pytest.approx(python["posts_per_month"] * 0.005 + 0.15, abs=0.01)
    assert python["usd_worst_case"] > python["usd_posts_only"]


def test_an_estimate_for_people_has_bars_totals_and_what_the_cap_means(config):
    found = call(config, "estimate", "--yes")
    assert found.exit_code == 0, found.output
    assert any(bar in found.output for bar in "▃▄▅▆▇█")
    assert "All together" in found.output
    assert "budget.usd_per_month = 50" in found.output
    assert "Asking cost $0.010" in found.output


def test_rules_can_be_estimated_before_they_are_queries(config):
    found = call(config, "estimate", "--yes", "--json", "--rule", "python OR coffee")
    assert [row["query"] for row in json.loads(found.output)] == ["python OR coffee"]


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_nobody_is_asked_for_an_estimate_without_a_yes(config, x, answer):
    before = x.stats()["requests"].get("counts")
    found = call(config, "estimate", input=answer)
    assert found.exit_code == 1
    assert "X is asked 2 times, for $0.010" in found.output
    assert x.stats()["requests"].get("counts") == before


def test_a_question_does_not_stand_in_the_json(config):
    found = call(config, "estimate", "--json", input="y\n")
    assert len(json.loads(found.stdout)) == 2


@pytest.mark.parametrize("columns", [30, 60, 80, 100, 200])
def test_figures_of_an_estimate_are_whole_at_any_width(columns):
    found = Settings(lake={"bucket": "lake"}, query=[{"name": "a-name-of-some-length", "rule": "r"}])
    months = [
        Forecast(name, [1_000_000] * 167, 720_000_000, 3_600_000.15, 36_000_000.15, 2_500)
        for name in ("a-name-of-some-length", "x" * 64)
    ]
    out = io.StringIO()
    estimate._print(Console(width=columns, file=out, force_terminal=True, no_color=True), found, months, 0.005)
    shown = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    for figure in ("720,000,000", "3,600,000.15", "36,000,000.15", "2,500"):
        assert shown.count(figure) >= 2
    assert "…" not in shown
    assert ("█" in shown) == (columns == 200)


def test_an_estimate_in_a_pipe_is_wide(config):
    found = call(config, "estimate", "--yes", env={"COLUMNS": "40"})
    assert "…" not in found.output
    assert any(bar in found.output for bar in "▃▄▅▆▇█")


def test_a_refused_estimate_says_why(config, x):
    x.set_faults({"kind": "forbidden_403", "endpoint": "counts"})
    found = call(config, "estimate", "--yes")
    x.set_faults()
    assert found.exit_code == 1
    assert "403" in found.output


def test_the_same_post_again_and_the_audit_have_their_price():
    base = {"lake": {"bucket": "lake"}, "query": [{"name": "q", "rule": "r", "overlap_seconds": 30}]}
    hours = [3600] * 168  # one a second
    free = forecast(Settings(**base, audit={"counts_daily": False}), Prices(Settings(**base).price, LEAN), "q", hours)
    assert free.posts_per_month == 2_592_000
    assert free.usd_posts_only == free.usd_worst_case == 12_960.0
    priced = Settings(**base, price={"repeat_post_usd": 0.001})
    dear = forecast(priced, Prices(priced.price, RICH), "q", hours)
    assert dear.usd_posts_only == pytest.approx(12_960 + 2592 + 0.15)
    assert dear.requests_per_quarter_hour == 30


NOW = datetime.now(UTC)
"""Taken once: commands are told minutes, and two of them are to be so many hours apart."""


def hours_ago(hours):
    return f"{NOW - timedelta(hours=hours):%Y-%m-%dT%H:%M}"


def orders(s3):
    """What lies in the bucket; taken away, as the service does."""
    client, found = s3.client(), []
    for entry in client.list_objects_v2(Bucket=s3.bucket, Prefix="control/requests/").get("Contents", []):
        content = client.get_object(Bucket=s3.bucket, Key=entry["Key"])["Body"].read()
        found.append(Order.from_json(entry["Key"].rsplit("/", 1)[1].removesuffix(".json"), content))
        client.delete_object(Bucket=s3.bucket, Key=entry["Key"])
    return found


def test_a_backfill_is_an_order_in_the_bucket(config, s3):
    found = call(config, "backfill", "--query", "python", "--since", hours_ago(5), "--until", hours_ago(3), "--yes")
    assert found.exit_code == 0, found.output
    [order] = orders(s3)
    assert order.name in found.output
    assert order.query == "python"
    assert order.until - order.since == timedelta(hours=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--query", "nobody", "--since", hours_ago(5), "--until", hours_ago(3)], "python, coffee"),
        (["--query", "python", "--since", hours_ago(3), "--until", hours_ago(5)], "before --until"),
        (["--query", "python", "--since", "yesterday", "--until", hours_ago(5)], "2026-11-19T06:00"),
        (["--query", "python", "--since", hours_ago(-5), "--until", hours_ago(-6)], "future"),
        (["--query", "python", "--since", hours_ago(300), "--until", hours_ago(200)], "seven days"),
    ],
)
def test_a_backfill_that_cannot_be_carried_out_is_refused_with_the_reason(config, words, said):
    found = call(config, "backfill", *words)
    assert found.exit_code == 2
    assert said in found.output


def test_a_backfill_that_reaches_too_far_orders_what_x_still_has_and_says_so(config, s3):
    found = call(config, "backfill", "--query", "python", "--since", "2010-01-01", "--until", hours_ago(3), "--yes")
    assert found.exit_code == 0, found.output
    assert "left out" in found.output
    [order] = orders(s3)
    assert datetime.now(UTC) - timedelta(days=7) < order.since < datetime.now(UTC) - timedelta(days=7, minutes=-6)
    assert f"before {order.since:%Y-%m-%dT%H:%MZ}" in found.output


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 1), ("n\n", 1, 0), ("", 1, 0)])
def test_a_backfill_tells_price_and_caps_and_is_left_only_after_a_yes(config, s3, answer, code, left):
    config.write_text(config.read_text().replace('rule = "python"', 'rule = "python"\nusd_per_day = 2.5'))
    words = ("backfill", "--query", "python", "--since", hours_ago(5), "--until", hours_ago(3))
    found = call(config, *words, input=answer)
    assert found.exit_code == code, found.output
    assert len(orders(s3)) == left
    for expected in (
        "1,000 cost $5.00, or $50.00",
        "budget.usd_per_month = 50",
        "query python.usd_per_day = 2.5",
        "[y/N]",
    ):
        assert expected in found.output


def test_a_bucket_out_of_reach_is_named(config):
    config.write_text(config.read_text().replace('endpoint_url = "http', 'endpoint_url = "http://127.0.0.1:9/'))
    words = ("--query", "python", "--since", hours_ago(5), "--until", hours_ago(3), "--yes")
    found = call(config, "backfill", *words)
    assert found.exit_code == 1
    assert "could not be left" in found.output
