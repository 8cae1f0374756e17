"""The runbook has every problem event and every exit code of the service; none is missing, none is invented."""

import re

from ingester import __main__ as front_door
from schemas.settings import EXIT_CONFIG
from tests.house.checkout import ROOT

RUNBOOK = (ROOT / "docs/runbook.md").read_text("utf-8")


def test_every_problem_event_has_its_line_and_no_other():
    code = (ROOT / "ingester/telemetry.py").read_text("utf-8")
    problems = set(re.findall(r'self\._problem\(\s*"(\w+)"', code))
    section = RUNBOOK.split("## What the log")[1].split("\n## ")[0]
    assert problems
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == problems


def test_every_exit_code_has_its_line():
    codes = {0, front_door.EXIT_SOFTWARE, front_door.EXIT_IO, front_door.EXIT_BUSY, EXIT_CONFIG}
    section = RUNBOOK.split("## Exit codes")[1].split("\n## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == codes
