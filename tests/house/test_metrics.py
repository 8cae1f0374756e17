"""docs/metrics.md has every metric with its type, labels and meaning, and no other; every alert has its section and its tests."""

import json
import re
from datetime import UTC, datetime

import pytest
import yaml
from prometheus_client import CollectorRegistry

from compaction_dags.compaction import metrics
from compaction_dags.compaction.freshness import Freshness
from ingester import gauges
from ingester.telemetry import Telemetry
from monitoring import dashboard as monitoring
from schemas.settings import Settings
from tests.house.checkout import ROOT, text

PAGE = text("docs/metrics.md")
RULES = (
    yaml.safe_load(text("monitoring/alerts.yml"))["groups"] + yaml.safe_load(text("monitoring/recording.yml"))["groups"]
)
ALERTS = {rule["alert"]: rule for group in RULES for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"] for group in RULES for rule in group["rules"] if "record" in rule}
TESTS = yaml.safe_load(text("monitoring/rules_test.yml"))["tests"]

NOTHING_KNOWN = {
    "version": "0",
    "healthy": True,
    "components": [],
    "spool": {"bytes": 0, "free_bytes": 0, "waiting": 0, "oldest_waiting_at": None, "quarantine": 0},
    "s3": {"last_shipped_at": None, "paused": False},
    "lease": {"standing": "unknown"},
    "x": None,
    "budget": None,
    "queries": [],
}


def in_code() -> dict[str, str]:
    """Every metric's row as docs/metrics.md has it, by name."""
    service = CollectorRegistry()
    telemetry = Telemetry(service)
    settings = Settings(lake={"bucket": "lake"}, query=[{"name": "one", "rule": "one"}])
    gauges.expose(service, lambda: NOTHING_KNOWN, settings)
    now = datetime.now(UTC)
    numbers = metrics.Numbers(
        Freshness(now, now, "2026-11-20T12", 1), {}, metrics.Recent(dict.fromkeys(metrics.SUMS, 0), 0, now), {}
    )
    compaction = metrics.exposed(numbers)
    labels = {}
    for registry in (telemetry.registry, compaction):
        for collector in list(registry._collector_to_names):
            for family in collector.collect():
                labels[family.name] = (
                    family,
                    getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", ()),
                )
    return dict(row_of(family, found) for family, found in labels.values())


def row_of(family, labels) -> tuple[str, str]:
    name = family.name + ("_total" if family.type == "counter" else "")
    seen = labels or sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    shown = ", ".join(f"`{label}`" for label in seen) or "-"
    return name, f"| `{name}` | {family.type} | {shown} | {family.documentation} |"


def test_every_metric_is_documented_as_it_is_and_no_other():
    documented = {row.split("`")[1]: row for row in PAGE.splitlines() if row.startswith("| `") and " | " in row}
    rules = {name for name in documented if ":" in name}
    assert {name: row for name, row in documented.items() if name not in rules} == in_code()


def test_every_recording_rule_is_documented_and_no_other():
    assert set(re.findall(r"^\| `([\w]*:[\w:]+)` \|", PAGE, re.MULTILINE)) == RECORDED


def test_rules_and_dashboard_name_only_metrics_that_exist():
    known = in_code()
    parts = (
        {f"{name}{end}" for name in known for end in ("", "_bucket", "_sum", "_count")} | RECORDED | {"up", "ALERTS"}
    )
    expressions = [rule["expr"] for group in RULES for rule in group["rules"]]
    expressions += [
        target["expr"]
        for panel in json.loads(monitoring.FILE.read_text())["panels"]
        for target in panel.get("targets", [])
    ]
    named = {
        name
        for expression in expressions
        for name in re.findall(r"(?:\w+:)?(?:tweetlake|process|python)_[\w:]+", expression.replace("Tweetlake", ""))
    }
    assert named
    assert named <= parts


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_its_section_in_the_runbook_and_links_to_it(alert):
    section = text("docs/runbook.md").split("\n## Alerts\n")[1].split("\n## ")[0]
    assert f"\n### {alert}\n" in section
    words = section.split(f"\n### {alert}\n")[1].split("\n### ")[0]
    assert re.findall(r"^- \*\*(.+?)\*\*", words, re.MULTILINE) == ["You see", "It means", "Do"]
    annotations = ALERTS[alert]["annotations"]
    assert annotations["runbook_url"] == f"docs/runbook.md#{alert.lower()}"
    assert annotations["summary"]
    assert annotations["description"]
    assert ALERTS[alert]["labels"]["severity"] in {"critical", "warning"}


def test_the_runbook_has_no_alert_that_does_not_exist():
    section = text("docs/runbook.md").split("\n## Alerts\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^### (\w+)$", section, re.MULTILINE)) == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tested_to_fire_and_not_to_fire(alert):
    fires = {
        bool(case["exp_alerts"])
        for test in TESTS
        for case in test.get("alert_rule_test", [])
        if case["alertname"] == alert
    }
    assert fires == {True, False}


@pytest.mark.parametrize("rule", sorted(RECORDED))
def test_a_recording_rule_is_tested(rule):
    assert any(
        case["expr"] == rule and case["exp_samples"] for test in TESTS for case in test.get("promql_expr_test", [])
    )


def test_the_committed_dashboard_is_what_its_builder_gives():
    assert monitoring.FILE.read_text() == monitoring.as_json(monitoring.build()), "run: python -m monitoring.dashboard"


def test_a_panel_has_a_number_of_its_own_and_a_title_of_its_own():
    panels = json.loads(monitoring.FILE.read_text())["panels"]
    for of in ("id", "title"):
        found = [panel[of] for panel in panels]
        assert len(found) == len(set(found))
    assert set(monitoring.MAY_BE_EMPTY) <= {panel["title"] for panel in panels}


def test_the_example_of_prometheus_settings_loads_all_rules():
    example = yaml.safe_load(text("monitoring/prometheus.yml"))
    assert sorted(example["rule_files"]) == sorted(
        file.name for file in (ROOT / "monitoring").glob("*.yml") if "groups" in yaml.safe_load(file.read_text())
    )
