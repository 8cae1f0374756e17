"""`tweetlake install-service` into a folder: what it writes, that it may be called again, and what it refuses."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from ingester.__main__ import main
from ingester.commands import install
from tests.house.checkout import text

PROGRAM = "/opt/tweetlake/bin/tweetlake"
UNIT = "etc/systemd/system/tweetlake.service"
EXAMPLE = "etc/tweetlake/tweetlake.env.example"
GROWING_WAITS = "etc/systemd/system/tweetlake.service.d/10-growing-waits.conf"


@pytest.fixture(autouse=True)
def debian_12(monkeypatch):
    monkeypatch.setattr(install, "_systemd_version", lambda: 252)


@pytest.fixture
def root(tmp_path):
    program = tmp_path / PROGRAM.lstrip("/")
    program.parent.mkdir(parents=True)
    program.touch()
    return tmp_path


def called(root, *options, program=PROGRAM):
    return CliRunner().invoke(main, ["install-service", "--root", str(root), "--program", program, *options])


def written(root):
    return sorted(str(file.relative_to(root)) for file in (root / "etc").rglob("*") if file.is_file())


def test_it_writes_the_unit_and_the_example_as_they_are_shipped_and_says_what_comes_next(root):
    done = called(root)
    assert done.exit_code == 0, done.output
    assert written(root) == [UNIT, EXAMPLE]
    assert (root / UNIT).read_text() == text("systemd/tweetlake.service")
    assert (root / EXAMPLE).read_text() == text("systemd/tweetlake.env.example")
    assert (root / UNIT).stat().st_mode & 0o777 == 0o644
    assert "systemctl enable --now tweetlake" in done.output


def test_called_again_it_changes_nothing(root):
    called(root)
    before = {file: (root / file).stat().st_mtime_ns for file in written(root)}
    done = called(root)
    assert [line.split()[0] for line in done.output.splitlines()[:2]] == ["unchanged", "unchanged"]
    assert {file: (root / file).stat().st_mtime_ns for file in written(root)} == before


def test_an_older_unit_is_replaced_and_what_an_operator_wrote_stays(root):
    called(root)
    (root / UNIT).write_text("[Service]\n")
    mine = {f"{UNIT}.d/override.conf": "[Service]\nNice=5\n", "etc/tweetlake/tweetlake.env": "A=1\n"}
    for name, content in mine.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(content)
    done = called(root)
    assert f"replaced   {root / UNIT}" in done.output
    assert (root / UNIT).read_text() == text("systemd/tweetlake.service")
    assert {name: (root / name).read_text() for name in mine} == mine


def test_a_dry_run_writes_nothing(root):
    done = called(root, "--dry-run")
    assert done.output.count("would be written") == 2
    assert not (root / "etc").exists()


def test_the_unit_starts_the_program_that_is_named(root):
    shutil.copytree(root / "opt/tweetlake", root / "srv/lake")
    called(root, program="/srv/lake/bin/tweetlake")
    assert "\nExecStart=/srv/lake/bin/tweetlake run\n" in (root / UNIT).read_text()


@pytest.mark.parametrize(("version", "is_there"), [(252, False), (253, False), (254, True), (257, True), (None, False)])
def test_waits_grow_where_systemd_can(root, monkeypatch, version, is_there):
    monkeypatch.setattr(install, "_systemd_version", lambda: version)
    called(root)
    assert (root / GROWING_WAITS).exists() is is_there
    if is_there:
        assert "RestartSteps=8\nRestartMaxDelaySec=600\n" in (root / GROWING_WAITS).read_text()


@pytest.mark.parametrize("home", ["/home/me", "/root", "/run/user/1000"])
def test_a_program_in_a_home_is_refused_with_what_to_do(root, home):
    done = called(root, program=f"{home}/.venv/bin/tweetlake")
    assert done.exit_code == 1
    assert "people's homes are hidden" in done.output
    assert "fix: make the environment outside of homes" in done.output
    assert not (root / "etc").exists()


def test_an_environment_whose_python_lies_in_a_home_is_refused_too(root):
    (root / "opt/tweetlake/bin/python").symlink_to("/home/me/.pyenv/bin/python3")
    done = called(root)
    assert done.exit_code == 1
    assert "could not reach /home/me/.pyenv/bin/python3" in done.output


def test_a_program_that_is_not_there_is_refused_with_what_to_do(root):
    done = called(root, program="/opt/elsewhere/bin/tweetlake")
    assert done.exit_code == 1
    assert "fix: install tweetlake there, or name the program by --program" in done.output


def test_what_cannot_be_written_is_told_with_what_to_do(root, monkeypatch):
    def refuses(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuses)
    done = called(root)
    assert done.exit_code == 1
    assert "cannot be written: Permission denied\n  fix: run it as root" in done.output


def test_its_help_has_examples():
    told = CliRunner().invoke(main, ["install-service", "--help"]).output
    assert "Examples:" in told
    assert "sudo /opt/tweetlake/bin/tweetlake install-service" in told
