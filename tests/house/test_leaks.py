"""The guard that every test runs under: a secret in what a program wrote for people fails it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.s3 import SECRET_KEY
from sandbox.x_api import ApiSettings
from tests.house.checkout import ROOT
from tests.house.leaks import SECRETS, leaking

STORY = f"""
import pytest

@pytest.fixture(scope="module")
def told(tmp_path_factory):
    (tmp_path_factory.mktemp("story") / "service.log").write_text("Bearer {SECRETS[0]}")

def test_one(told):
    pass
"""


def test_the_sandboxes_secrets_are_among_them() -> None:
    assert {SECRET_KEY, ApiSettings().token, ApiSettings().api_secret} <= set(SECRETS)


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_at_any_depth_in_what_people_read(tmp_path: Path, secret: str) -> None:
    told = tmp_path / "a" / "b" / "service.txt"
    told.parent.mkdir(parents=True)
    told.write_bytes(b"\xff Authorization: Bearer " + secret.encode())
    (tmp_path / "clean.log").write_text("all is well")
    (tmp_path / "x-bearer-token").write_text(secret)  # where it belongs
    found = leaking(tmp_path)
    told.unlink()  # or this very test would fail
    assert found == [told]


def test_the_guard_reads_folders_that_outlive_a_test(tmp_path: Path) -> None:
    story, base = tmp_path / "test_story.py", tmp_path / "base"
    story.write_text(STORY)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-c", ROOT / "pyproject.toml", "-p", "tests.conftest",
         "-p", "no:cacheprovider", "--basetemp", base, story],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    shutil.rmtree(base)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 passed, 1 error" in done.stdout
    assert f"a secret stands in {base / 'story0' / 'service.log'}" in done.stdout
