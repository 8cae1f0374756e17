"""The import rules of pyproject.toml are fences that hold: each is broken once, in a copy, and must say so."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.checkout import ROOT, pyproject

CONTRACTS = [contract["name"] for contract in pyproject()["tool"]["importlinter"]["contracts"]]

ONLY_ONE_KNOWS = "Only ingester.s3 knows boto3, only ingester.x_api knows tweepy"
PURE = "The pure rooms know no clock, no chance and no outside"

# One forbidden import per contract: the module that must not, and what it imports.
FORBIDDEN = {
    "The rooms of the ingester: a room imports only from rooms below it": ("ingester/errors.py", "ingester.poller"),
    "The two programs meet only in schemas and in the bucket": (
        "compaction_dags/compaction/errors.py",
        "ingester.errors",
    ),
    "schemas imports nothing of ours": ("schemas/keys.py", "sandbox"),
    "Nobody imports the sandbox": ("ingester/clock.py", "sandbox"),
    "The ingester needs neither Arrow nor Airflow": ("ingester/model.py", "pyarrow"),
    ONLY_ONE_KNOWS: ("ingester/poller.py", "tweepy"),
    PURE: ("schemas/state.py", "time"),
    "The rooms of compaction": ("compaction_dags/compaction/errors.py", "compaction_dags.compact_tweets"),
    "The rooms of one compaction run": ("compaction_dags/compaction/errors.py", "compaction_dags.compaction.job"),
    "Compaction runs without Airflow and without tweepy": ("compaction_dags/compaction/errors.py", "airflow.sdk"),
}

# Where a list of rooms by hand had holes.
FORBIDDEN_TOO = [
    (ONLY_ONE_KNOWS, "ingester/orders.py", "boto3"),
    (ONLY_ONE_KNOWS, "ingester/page/words.py", "botocore"),
    (ONLY_ONE_KNOWS, "ingester/s3.py", "tweepy"),
    (PURE, "ingester/page/verdict.py", "socket"),
    (PURE, "compaction_dags/compaction/decode/fast.py", "random"),
]

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


def test_every_room_that_calls_itself_pure_is_held_to_it() -> None:
    [contract] = [found for found in pyproject()["tool"]["importlinter"]["contracts"] if found["name"] == PURE]
    called = {
        file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for package in pyproject()["tool"]["importlinter"]["root_packages"]
        for file in (ROOT / package).rglob("*.py")
        if re.search(r"\bpure\b", file.read_text("utf-8").split("\n\n")[0], re.IGNORECASE)
    }
    assert called <= set(contract["source_modules"])


@pytest.mark.parametrize(
    ("contract", "module", "imported"),
    [*((contract, *FORBIDDEN[contract]) for contract in CONTRACTS), *FORBIDDEN_TOO],
)
def test_a_forbidden_import_breaks_its_contract(house: Path, contract: str, module: str, imported: str) -> None:
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
