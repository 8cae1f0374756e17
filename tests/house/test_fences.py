"""The import rules of pyproject.toml are fences that hold: each is broken once, in a copy, and must say so."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.checkout import ROOT, pyproject

CONTRACTS = [contract["name"] for contract in pyproject()["tool"]["importlinter"]["contracts"]]

# One forbidden import per contract: the module that must not, and what it imports.
FORBIDDEN = {
    "The rooms of the ingester: a room imports only from rooms below it": ("ingester/errors.py", "ingester.poller"),
    "The two programs meet only in schemas and in the bucket": (
        "compaction_dags/compaction/errors.py",
        "ingester.errors",
    ),
    "schemas imports nothing of ours": ("schemas/keys.py", "sandbox"),
    "Nobody imports the sandbox": ("ingester/clock.py", "sandbox"),
    "The ingester needs neither Arrow nor Airflow; only s3.py knows boto3": ("ingester/model.py", "pyarrow"),
    "Only ingester.s3 knows boto3, only ingester.x_api knows tweepy": ("ingester/poller.py", "tweepy"),
    "The pure rooms know no clock, no chance and no outside": ("schemas/state.py", "time"),
    "The rooms of compaction": ("compaction_dags/compaction/errors.py", "compaction_dags.compact_tweets"),
    "The rooms of one compaction run": ("compaction_dags/compaction/errors.py", "compaction_dags.compaction.job"),
    "Compaction runs without Airflow and without tweepy": ("compaction_dags/compaction/errors.py", "airflow.sdk"),
}

EXHAUSTIVE = [
    (contract["name"], container)
    for contract in pyproject()["tool"]["importlinter"]["contracts"]
    if contract.get("exhaustive")
    for container in contract["containers"]
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages and of their rules."""
    copy = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in pyproject()["tool"]["importlinter"]["root_packages"]:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def verdicts(house: Path) -> dict[str, bool]:
    """Per contract, whether it was kept."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=house,
        env={"PATH": "", "COLUMNS": "500", "NO_COLOR": "1", "PYTHONPATH": str(house), "HOME": str(house)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = {
        name.strip(): verdict == "KEPT"
        for name, verdict in re.findall(r"^(.+?) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE)
    }
    assert found, done.stdout + done.stderr
    return found


def test_every_contract_has_its_forbidden_import() -> None:
    assert sorted(FORBIDDEN) == sorted(CONTRACTS)


def test_the_house_as_it_stands_keeps_every_contract(house: Path) -> None:
    assert verdicts(house) == dict.fromkeys(CONTRACTS, True)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_forbidden_import_breaks_its_contract(house: Path, contract: str) -> None:
    module, imported = FORBIDDEN[contract]
    file = house / module
    before = file.read_text("utf-8")
    file.write_text(f"{before}\nimport {imported}\n", "utf-8")
    try:
        assert verdicts(house)[contract] is False
    finally:
        file.write_text(before, "utf-8")


@pytest.mark.parametrize(("contract", "container"), EXHAUSTIVE)
def test_a_room_without_a_name_in_the_list_breaks_the_contract(house: Path, contract: str, container: str) -> None:
    room = house / container.replace(".", "/") / "cupboard.py"
    room.write_text('"""A room that nobody named."""\n', "utf-8")
    try:
        assert verdicts(house)[contract] is False
    finally:
        room.unlink()
