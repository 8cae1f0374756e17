"""`python -m sandbox`: it says where it listens and how to use it, and ends cleanly when told to."""

import signal
import subprocess
import sys
import urllib.request

import pytest
from click.testing import CliRunner

from sandbox.__main__ import main


def run(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "sandbox", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    """What it said after what was read already; communicate() would lose the lines that are buffered."""
    with process.stdout, process.stderr:
        rest = process.stdout.read(), process.stderr.read()
    process.wait(10)
    return rest


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM])
def test_x_api_runs_and_ends_cleanly(blow):
    process = run("x-api", "--port", "0", "--backlog-hours", "0.5", "--token", "abc")
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    request = urllib.request.Request(
        f"{url}/2/tweets/search/recent?query=python", headers={"Authorization": "Bearer abc"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    process.send_signal(blow)
    said, complained = finish(process)
    assert (process.returncode, complained) == (0, "")
    assert "curl" in said
    assert "tweetlake.toml" in said


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM])
def test_s3_runs_and_ends_cleanly(blow):
    process = run("s3", "--port", "0", "--kind", "moto")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    while "tweetlake.toml" not in process.stdout.readline():
        pass
    process.send_signal(blow)
    _, complained = finish(process)
    assert (process.returncode, complained) == (0, "")


@pytest.mark.parametrize("command", ["x-api", "s3", "demo", "soak"])
def test_help_has_examples(command):
    shown = CliRunner().invoke(main, [command, "--help"])
    assert shown.exit_code == 0
    assert f"python -m sandbox {command}" in shown.output


def test_a_wrong_world_is_one_clear_line():
    refused = CliRunner().invoke(main, ["x-api", "--backlog-hours", "200"])
    assert refused.exit_code == 2
    assert "backlog_hours must lie between 0 and 168" in refused.output


def test_a_taken_port_is_one_clear_line():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = CliRunner().invoke(main, ["x-api", "--port", str(taken.getsockname()[1])])
    assert refused.exit_code == 1
    assert "cannot listen" in refused.output


def test_a_soak_that_cannot_end_or_would_mix_with_another_is_refused(tmp_path):
    endless = CliRunner().invoke(main, ["soak", "--kills", "5", "--kill-every", "0"])
    assert (endless.exit_code, "--kill-every above 0" in endless.output) == (2, True)
    (tmp_path / "lane-0").mkdir()
    mixed = CliRunner().invoke(main, ["soak", "--keep", str(tmp_path)])
    assert (mixed.exit_code, "is not empty" in mixed.output) == (2, True)


@pytest.mark.parametrize(
    "options",
    [
        ("--hours", "999"), ("--hours", "-1"), ("--hours", "0"), ("--rate", "0"), ("--rate", "-3"), ("--seed", "-1"),
        ("--live-seconds", "-1"), ("--hours", "nan"), ("--hours", "168"),
    ],
)  # fmt: skip
def test_a_demo_that_cannot_be_is_refused_before_the_last_one_is_removed(tmp_path, monkeypatch, options):
    def never(*_):
        raise AssertionError("a demo was begun")

    monkeypatch.setattr("sandbox.demo.running_x_api", never)
    (tmp_path / ".tweetlake-demo").touch()
    (tmp_path / "lake").mkdir()
    refused = CliRunner().invoke(main, ["demo", "--directory", str(tmp_path), *options])
    assert refused.exit_code == 2, refused.output
    assert options[0] in refused.output
    assert (tmp_path / "lake").is_dir()


@pytest.mark.parametrize(("hours", "past"), [(3.0, "3 hours"), (1.0, "1 hour of"), (0.5, "0.5 hours")])
def test_the_demo_says_how_much_of_the_past_it_has(tmp_path, hours, past):
    from sandbox.demo import DemoSettings, _banner

    assert past in _banner(DemoSettings(tmp_path, hours), tmp_path)
