"""Rules and dashboard against the real thing: a Prometheus that scrapes a running service and the compaction's numbers."""

import functools
import http.server
import json
import math
import re
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring import dashboard
from sandbox.leash import free_ports, leashed
from sandbox.s3 import RunningS3
from sandbox.world import WorldSettings
from tests.compaction import conftest as raw
from tests.compaction.collector import counts
from tests.compaction.test_compact_command import run
from tests.house.checkout import ROOT
from tests.scenarios.place import RULES, Place, new_places

pytestmark = pytest.mark.system

MONITORING = ROOT / "monitoring"
EXPRESSIONS = {
    f"{panel['title']}: {target['refId']}": (panel["title"], target["expr"])
    for panel in json.loads(dashboard.FILE.read_text())["panels"]
    for target in panel.get("targets", [])
}
RECORDED = [
    rule["record"]
    for group in yaml.safe_load((MONITORING / "recording.yml").read_text())["groups"]
    for rule in group["rules"]
]


@dataclass
class Watched:
    """A service that collects, its lake that is compacted, and a Prometheus that has watched both for a while."""

    place: Place
    text_file: Path
    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        """What the HTTP API of Prometheus answers."""
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=5
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def values(self, expression: str) -> list[float]:
        return [float(series["value"][1]) for series in self.ask("query", query=expression)["result"]]

    @property
    def has_looked_for_a_while(self) -> bool:
        """A rate takes two scrapes, and a rule is evaluated after that. Before it has its file, the exporter is down."""
        try:
            return len(self.values("sum_over_time(up[1m]) >= 4")) == 2
        except OSError:
            return False


@pytest.fixture(scope="module")
def watched(server: RunningS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("watched")
    world = WorldSettings(seed=7, tweets_per_second=0.5, backlog_hours=3)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in server.environment().items():
            patch.setenv(name, value)
        place = stack.enter_context(new_places(server, directory, "watched"))(world=world, hours=3.0, seal=1.0)
        service = stack.enter_context(place.running())
        service.until((place.spool / "http-address").exists, 20)
        target = (place.spool / "http-address").read_text().removeprefix("http://")
        text_file = directory / "textfile" / "metrics"
        text_file.parent.mkdir()
        exporter = stack.enter_context(serving(text_file.parent))
        url = stack.enter_context(prometheus(directory, {"tweetlake": target, "node": exporter}))
        service.until(lambda: place.has_caught_up, 60)
        before = place.shipped
        service.until(lambda: place.shipped >= before + 2, 30)  # what was open then is in S3
        tell_numbers(place, text_file)
        found = Watched(place, text_file, url)
        service.until(lambda: found.has_looked_for_a_while, 30)
        yield found


def tell_numbers(place: Place, text_file: Path) -> None:
    """Compact, let X's own count of a whole hour arrive, compact, and write the numbers.

    Not of the last one: at the turn of an hour that may wait to be compacted once more.
    """
    place.compact()
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    start = end - timedelta(hours=1)
    collected = {row["query"]: row["collected"] for row in place.lake.rows("completeness", ["query", "collected", "hour"])
                 if row["hour"] == start.hour}  # fmt: skip
    told = [counts(query, datetime.now(UTC), [(start, end, collected[query])]) for query in RULES]
    raw.Place(place.s3, f"{place.prefix}/", place.directory).ship(told, datetime.now(UTC))
    place.compact()
    done = run("metrics", "--config", str(place.config), "--output", str(text_file))
    assert done.exit_code == 0, done.output


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """What node_exporter does with a folder of text files, as far as Prometheus can tell."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def prometheus(directory: Path, targets: dict[str, str]) -> Iterator[str]:
    """A Prometheus by the example of its settings, only quicker, and with these targets."""
    settings = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(MONITORING / name) for name in settings["rule_files"]]
    for job in settings["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets.pop(job["job_name"])]}]
    assert not targets
    config = directory / "prometheus.yml"
    config.write_text(yaml.safe_dump(settings))
    (port,) = free_ports(1)
    command = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (directory / "prometheus.log").open("wb") as log, leashed(command, stderr=log, stdout=log):
        yield f"http://127.0.0.1:{port}"


def promtool(*arguments: str | Path, given: str = "") -> tuple[int, str]:
    done = subprocess.run(["promtool", *arguments], input=given, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


# The files alone.


@pytest.mark.parametrize("name", ["alerts.yml", "recording.yml"])
def test_the_rules_are_rules(name: str) -> None:
    code, said = promtool("check", "rules", MONITORING / name)
    assert (code, "SUCCESS" in said) == (0, True), said


def test_every_alert_fires_when_it_shall_and_is_silent_when_it_shall_not() -> None:
    code, said = promtool("test", "rules", MONITORING / "rules_test.yml")
    assert code == 0, said


def test_the_example_of_prometheus_settings_is_one() -> None:
    code, said = promtool("check", "config", MONITORING / "prometheus.yml")
    assert code == 0, said


# With a service.


def test_what_is_scraped_follows_the_conventions(watched: Watched) -> None:
    for scraped in (watched.place.get("/metrics")[1], watched.text_file.read_text()):
        assert promtool("check", "metrics", given=scraped) == (0, "")


def test_both_targets_are_up_and_every_rule_can_be_evaluated(watched: Watched) -> None:
    assert watched.values('up{job=~"tweetlake|node"}') == [1, 1]
    rules = [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule["health"] for rule in rules} == dict.fromkeys((rule["name"] for rule in rules), "ok")
    assert len(rules) > len(RECORDED)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_rule_has_values(watched: Watched, name: str) -> None:
    assert any(map(math.isfinite, watched.values(name)))


def test_no_alert_is_even_pending_while_all_is_well(watched: Watched) -> None:
    assert [alert["labels"]["alertname"] for alert in watched.ask("alerts")["alerts"]] == []


@pytest.mark.parametrize("panel", EXPRESSIONS)
def test_a_panel_has_something_to_show(watched: Watched, panel: str) -> None:
    title, expression = EXPRESSIONS[panel]
    values = watched.values(filled(expression))
    assert title in dashboard.MAY_BE_EMPTY or any(map(math.isfinite, values)), expression


def test_the_variables_of_the_dashboard_have_values(watched: Watched) -> None:
    found = {}
    for variable in json.loads(dashboard.FILE.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]).groups()
            series = watched.ask("query", query=filled(metric))["result"]
            found[variable["name"]] = {each["metric"][label] for each in series}
    assert found["query"] == set(RULES)
    assert len(found["instance"]) == 1


def filled(expression: str) -> str:
    """With everything chosen, as Grafana would ask it."""
    given = {"$__rate_interval": "30s", "$instance": ".*", "$query": ".*"}
    for name, value in given.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression
