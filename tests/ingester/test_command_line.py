"""The command line as a person meets it: real processes, real signals, exit codes that systemd understands."""

import json
import os
import select
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime

import click
import pytest
from click.testing import CliRunner

from ingester.__main__ import main
from ingester.spool import Spool
from schemas.keys import MicrobatchName, RawHour
from schemas.state import State

TOKEN = "AAAA-very-secret"


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "tweetlake.toml"
    file.write_text(
        f"""
        [x]
        base_url = "http://127.0.0.1:9"
        [lake]
        bucket = "my-lake"
        endpoint_url = "http://127.0.0.1:9"
        [[query]]
        name = "python"
        rule = "python lang:en"
        [spool]
        directory = "{tmp_path}/spool"
        [health]
        port = 0
        """
    )
    return file


@pytest.fixture
def environment(monkeypatch):
    for name in ("X_API_KEY", "X_API_SECRET", "CREDENTIALS_DIRECTORY", "TWEETLAKE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("X_BEARER_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def started(config):
    """A running service, once it has said so; its standard error goes on in the returned process."""
    command = [sys.executable, "-m", "ingester", "run", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert select.select([process.stderr], [], [], 20)[0], "it said nothing for 20 s"
    line = json.loads(process.stderr.readline())
    assert line["event"] == "started", line
    return process, line["url"]


@pytest.mark.parametrize(
    "command", [[], ["run"], ["check"], ["completion"], ["status"], ["spool"], ["spool", "list"], ["spool", "verify"]]
)
def test_every_command_explains_itself_with_an_example(command):
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert "--config" in result.output or command in ([], ["completion"])


def every_command(group=main, before=()):
    for name, command in sorted(group.commands.items()):
        yield (*before, name)
        if isinstance(command, click.Group):
            yield from every_command(command, (*before, name))


@pytest.mark.parametrize("command", list(every_command()), ids=" ".join)
def test_help_names_the_settings_file_and_has_no_stray_lines(command):
    told = CliRunner().invoke(main, [*command, "--help"]).output
    assert "--config" not in told or "/etc/tweetlake/tweetlake.toml" in told
    assert not [line for line in told.splitlines() if line != line.rstrip()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete_and_is_answered(shell):
    script = CliRunner().invoke(main, ["completion", shell])
    assert script.exit_code == 0
    assert f"_TWEETLAKE_COMPLETE={shell}_complete" in script.output
    asked = {"_TWEETLAKE_COMPLETE": "bash_complete", "COMP_WORDS": "tweetlake sp", "COMP_CWORD": "1"}
    assert CliRunner().invoke(main, [], prog_name="tweetlake", env=asked).output.split() == ["plain,spool"]


def test_check_is_quiet_about_secrets_and_tells_what_a_page_costs(config, environment):
    result = CliRunner().invoke(main, ["check", "--offline", "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert "$5.00" in result.output
    assert TOKEN not in result.output


def test_check_tells_offline_too_of_a_cap_that_no_page_fits(config, environment):
    config.write_text(config.read_text() + "[budget]\nusd_per_month = 0.1\n")
    result = CliRunner().invoke(main, ["check", "--offline", "--config", str(config)])
    assert result.exit_code == 1
    assert "BAD   budget.usd_per_month: is 0.1" in result.output
    assert "fix: raise it to $0.5 at least" in result.output


def test_check_tells_every_problem_and_exits_78(config, environment, monkeypatch):
    monkeypatch.delenv("X_BEARER_TOKEN")
    config.write_text(
        config.read_text().replace("my-lake", "B").replace('"python"', '"Not Good"') + "\n[nope]\na = 1\n"
    )
    result = CliRunner().invoke(main, ["check", "--offline", "--config", str(config)])
    assert result.exit_code == 78
    for expected in ("lake.bucket", "query[0].name", "nope", "X_BEARER_TOKEN", "fix:"):
        assert expected in result.output


def test_run_with_bad_settings_exits_78_with_the_setting(config, environment):
    config.write_text(config.read_text().replace("my-lake", "B"))
    result = CliRunner().invoke(main, ["run", "--config", str(config)])
    assert result.exit_code == 78
    assert "lake.bucket" in result.output


def test_the_spool_can_be_listed_and_verified_with_the_settings_in_either_place(config, environment, tmp_path):
    spool = Spool(tmp_path / "spool")
    spool.acquire()
    name = MicrobatchName(1, RawHour.parse("2026-11-20T13"), spool.spool_id)
    spool.open_microbatch(name, State())
    spool.append({"kind": "heartbeat", "at": datetime(2026, 11, 20, 13, tzinfo=UTC)})
    spool.seal()
    spool.release()
    for command in (["spool"], ["spool", "list"]):
        result = CliRunner().invoke(main, [*command, "--config", str(config)], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        assert str(name) in result.output
        assert "sealed" in result.output
    assert (
        str(name) in CliRunner().invoke(main, ["spool", "--config", str(config), "list"], env={"COLUMNS": "200"}).output
    )
    assert CliRunner().invoke(main, ["spool", "verify", "--config", str(config)]).exit_code == 0
    file = spool.sealed_file(name)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    result = CliRunner().invoke(main, ["spool", "verify", "--config", str(config)])
    assert result.exit_code == 1
    assert f"damaged: {name}" in result.output


def test_status_of_nothing_exits_3(config, environment):
    result = CliRunner().invoke(main, ["status", "--config", str(config)])
    assert result.exit_code == 3
    assert "does not run" in result.output


def test_an_unreachable_bucket_keeps_trying_visibly_and_sigterm_ends_it(config, environment):
    process, url = started(config)
    try:
        lines = (json.loads(process.stderr.readline()) for _ in range(5))  # X out of reach may be told before
        refused = next(line for line in lines if line["event"] == "lease_unreachable")
        assert "127.0.0.1:9" in refused["detail"]
        with urllib.request.urlopen(f"{url}/livez", timeout=5) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError) as unready:
            urllib.request.urlopen(f"{url}/readyz", timeout=5)
        assert unready.value.code == 503
        status = CliRunner().invoke(main, ["status", "--config", str(config), "--json"])
        assert status.exit_code == 1
        assert "waiting for S3" in str(json.loads(status.output)["reasons"])
        second = subprocess.run(
            [sys.executable, "-m", "ingester", "run", "--config", str(config)], capture_output=True, text=True, check=False,
            timeout=30,
        )  # fmt: skip
        assert second.returncode == 75
        assert "another process uses the spool" in second.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=30)[1]
    assert process.returncode == 0, rest
    assert "stopping" in rest
    assert TOKEN not in rest


def test_a_port_that_is_taken_is_named(config, environment):
    process, url = started(config)
    try:
        other = config.with_name("other.toml")
        port = url.rsplit(":", 1)[1]
        other.write_text(config.read_text().replace("/spool", "/spool2").replace("port = 0", f"port = {port}"))
        second = subprocess.run(
            [sys.executable, "-m", "ingester", "run", "--config", str(other)], capture_output=True, text=True, check=False,
            timeout=30,
        )  # fmt: skip
        assert second.returncode == 78
        assert f"health.port {port} of 127.0.0.1: is taken by another program" in second.stderr
        assert "fix: choose another health.port" in second.stderr
        assert "Errno" not in second.stderr
        checked = CliRunner().invoke(main, ["check", "--config", str(other)])
        assert "another service answers there, with the spool" in checked.output
        assert f"http://127.0.0.1:{port}" == url
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
