"""The command line as a person and a unit file meet it: what it prints where, and which exit code says what."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from compaction_dags.compaction import __main__ as command
from compaction_dags.compaction import job
from compaction_dags.compaction.commands.common import with_config
from compaction_dags.compaction.errors import (
    AccountingError,
    CompactionError,
    ConflictError,
    LakeUnreachableError,
    RawMissingError,
)
from tests.compaction.conftest import Place, hours
from tests.compaction.pages import NOON

TOLD = [
    "raw_hours", "microbatches", "pages", "rows_in", "tweets_written", "duplicates", "filtered", "rejected",
    "unknown_keys", "misfits",
]  # fmt: skip


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(command.main, [str(each) for each in arguments], prog_name="tweetlake-compact")


def summary(result: Result) -> dict[str, int]:
    line: dict[str, int] = json.loads(result.stdout.splitlines()[-1])
    assert list(line) == TOLD
    return line


def test_as_a_process_the_summary_is_all_of_standard_output_and_progress_is_on_standard_error(place: Place) -> None:
    place.ship_tweets([1, 2])
    place.ship_tweets([2, 3], NOON + hours(1))
    found = subprocess.run(
        [sys.executable, "-m", "compaction_dags.compaction", "--config", place.config(), "--full"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == dict(zip(TOLD, (2, 2, 2, 4, 4, 0, 0, 0, {}, {}), strict=True))
    assert found.stderr.splitlines() == [
        "2026-11-20T12: 1 microbatches read",
        "2026-11-20T13: 1 microbatches read",
    ]
    assert list(place.tweets([])) == [1, 2, 3]


def test_as_a_process_it_applies_the_transform_of_the_settings(place: Place) -> None:
    place.ship_tweets([1, 2])
    config = place.config("compaction_dags.examples:clean_and_filter")
    found = subprocess.run(
        [sys.executable, "-m", "compaction_dags.compaction", "--config", config, "--full"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["rows_in"] == 2 == told["tweets_written"] + told["filtered"]


def test_a_second_time_there_is_nothing_to_do(place: Place) -> None:
    place.ship_tweets([1])
    assert summary(run("--config", place.config(), "--full"))["raw_hours"] == 1
    again = run("--config", place.config(), "--full")
    assert again.exit_code == 0
    assert again.stderr == "nothing is stale\n"
    assert not any(summary(again).values())


def test_hours_by_name_are_done_stale_or_not(place: Place) -> None:
    for number in range(3):
        place.ship_tweets([number], NOON + hours(number))
    named = ["--raw-hour", "2026-11-20T14", "--raw-hour", "2026-11-20T12"]
    assert summary(run("--config", place.config(), *named))["raw_hours"] == 2
    assert summary(run("--config", place.config(), *named))["tweets_written"] == 2
    assert list(place.tweets([])) == [0, 2]


def test_hours_by_name_of_which_there_is_no_raw_are_told_of(place: Place) -> None:
    place.ship_tweets([1])
    named = [word for hour in (11, 12, 13) for word in ("--raw-hour", f"2026-11-20T{hour}")]
    found = run("--config", place.config(), *named)
    assert (found.exit_code, summary(found)["microbatches"]) == (0, 1)
    assert found.stderr.splitlines() == [
        "2026-11-20T12: 1 microbatches read", "no raw in 2026-11-20T11", "no raw in 2026-11-20T13",
    ]  # fmt: skip


def test_the_options_reach_the_plan(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(job, "plan_hours", lambda _, **options: asked.append(options) or [])
    run("--config", place.config())
    run("--config", place.config(), "--closed-only", "--full")
    assert asked == [
        {"include_open": True, "hours": None, "full": False},
        {"include_open": False, "hours": None, "full": True},
    ]


def test_a_bad_hour_is_a_wrong_usage(place: Place) -> None:
    found = run("--config", place.config(), "--raw-hour", "yesterday")
    assert found.exit_code == 2
    assert "write it as 2026-11-20T13 (UTC)" in found.stderr


@pytest.mark.parametrize("hour", ["0001-01-01T00", "9999-12-31T23"])
@pytest.mark.parametrize("command", [["--raw-hour"], ["rebuild", "--since", "2026-11-20T12", "--until"]])
def test_an_hour_that_x_had_no_posts_in_is_a_wrong_usage(place: Place, command: list[str], hour: str) -> None:
    found = run("--config", place.config(), *command, hour)
    assert (found.exit_code, f"X had no posts in the year {int(hour[:4])}" in found.stderr) == (2, True), found.stderr


def test_help_has_examples_and_exit_codes() -> None:
    found = run("--help")
    assert found.exit_code == 0
    assert "tweetlake-compact --raw-hour 2026-11-20T13" in found.stdout
    assert "Exit codes: 0 done, 78 settings, 75 S3 does not answer" in found.stdout


@pytest.mark.parametrize("name", ["", *command.main.commands])
def test_help_fits_into_a_terminal_and_has_an_example(name: str) -> None:
    text = CliRunner().invoke(command.main, [*name.split(), "--help"], terminal_width=100).stdout
    assert f"  tweetlake-compact {name}".rstrip() in text.split("Example")[1]
    assert "%Y" not in text
    assert [line for line in text.splitlines() if len(line) > 100 or line != line.rstrip()] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete_and_is_answered(shell: str) -> None:
    script = run("completion", shell)
    assert script.exit_code == 0
    assert f"_TWEETLAKE_COMPACT_COMPLETE={shell}_complete" in script.stdout
    asked = {"_TWEETLAKE_COMPACT_COMPLETE": "bash_complete", "COMP_WORDS": "tweetlake-compact fr", "COMP_CWORD": "1"}
    answer = CliRunner().invoke(command.main, [], prog_name="tweetlake-compact", env=asked)
    assert answer.stdout.split() == ["plain,freshness"]


def test_a_command_takes_its_settings_file_from_either_side_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[Path | None] = []

    @click.command("probe")
    @with_config
    def probe(config: Path | None) -> None:
        named.append(config)

    monkeypatch.setitem(command.main.commands, "probe", probe)
    for arguments in (
        ["--config", "a", "probe"],
        ["probe", "--config", "b"],
        ["--config", "a", "probe", "--config", "b"],
    ):
        assert run(*arguments).exit_code == 0
    assert run("probe").exit_code == 0
    assert named == [Path("a"), Path("b"), Path("b"), None]
    found = run("--full", "probe")
    assert found.exit_code == 2
    assert "--full are for compacting, without a command" in found.stderr


def test_settings_that_cannot_be_used_are_78(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text('[lake]\nbukket = "x"\n')
    found = run("--config", file)
    assert (found.exit_code, found.stdout) == (78, "")
    assert "lake.bukket" in found.stderr
    monkeypatch.setenv("TWEETLAKE_CONFIG", str(tmp_path / "none.toml"))
    found = run()
    assert found.exit_code == 78
    assert "does not exist" in found.stderr


def test_a_bucket_that_is_not_there_is_for_a_person(place: Place) -> None:
    found = run("--config", place.config(bucket="no-such-bucket"))
    assert (found.exit_code, found.stdout) == (1, "")
    assert "S3 refuses: 404 NoSuchBucket; create lake.bucket or mend its name" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_an_s3_that_does_not_answer_is_for_later(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    found = run("--config", place.config(endpoint_url="http://127.0.0.1:9"), "--raw-hour", "2026-11-20T12")
    assert (found.exit_code, found.stdout) == (75, "")
    assert "http://127.0.0.1:9" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_without_credentials_it_says_where_they_are_looked_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    found = run("--config", place.config())
    assert found.exit_code == 1
    assert "no AWS credentials were found (environment, profile or instance role)" in found.stderr


def test_an_hour_that_fails_is_told_and_the_others_are_done(place: Place) -> None:
    gone = place.ship_tweets([1])
    run("--config", place.config(), "--full")
    place.s3.client().delete_object(Bucket=place.s3.bucket, Key=gone)
    place.ship_tweets([2], NOON + hours(1))
    found = run("--config", place.config(), "--full")
    assert found.exit_code == 1
    assert summary(found)["raw_hours"] == 1
    assert f"missing in raw or changed: {gone}" in found.stderr
    assert list(place.tweets([])) == [1, 2]


def test_what_nobody_thought_of_is_told_with_its_place_and_the_other_hours_are_done(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compact_hour = job.compact_hour

    def fail(settings: Any, hour: str, *more: Any) -> Any:
        if hour == "2026-11-20T12":
            raise ZeroDivisionError("by what this hour holds")
        return compact_hour(settings, hour, *more)

    monkeypatch.setattr(job, "compact_hour", fail)
    place.ship_tweets([1])
    place.ship_tweets([2], NOON + hours(1))
    found = run("--config", place.config(), "--full")
    assert (found.exit_code, summary(found)["raw_hours"], list(place.tweets([]))) == (1, 1, [2])
    said = "raw hour 2026-11-20T12: ZeroDivisionError('by what this hour holds'); this is a bug, please report it"
    assert found.stderr.endswith(f"tweetlake-compact: {said}\n")
    assert "in fail" in caplog.text


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([ConflictError("others")], 75),
        ([ConflictError("others"), RawMissingError("gone")], 1),
        ([AccountingError("rows")], 1),
        ([LakeUnreachableError("silence")], 75),
        ([OSError(28, "No space left on device", "/tmp/tweetlake-x")], 1),
    ],
)
def test_exit_codes_say_whether_trying_again_helps(
    place: Place, monkeypatch: pytest.MonkeyPatch, errors: list[Exception], code: int
) -> None:
    named = [f"2026-11-20T{number:02}" for number in range(len(errors))]

    def fail(_: Any, hour: str, *__: Any) -> Any:
        raise errors[named.index(hour)]

    monkeypatch.setattr(job, "compact_hour", fail)
    found = run("--config", place.config(), *(word for hour in named for word in ("--raw-hour", hour)))
    assert found.exit_code == code
    assert found.stderr.splitlines()[-len(errors) :] == [f"tweetlake-compact: {error}" for error in errors]
    ended = not isinstance(errors[0], CompactionError) or isinstance(errors[0], LakeUnreachableError)
    assert bool(found.stdout) is not ended, "what was done is told, unless nothing can be"


def test_when_it_is_told_to_end_it_clears_up_behind_it(place: Place, tmp_path: Path) -> None:
    place.ship_tweets([1])
    work = tmp_path / "work"
    work.mkdir()
    code = (
        "import os, signal, sys\n"
        "from compaction_dags.compaction import __main__ as command, worker\n"
        "worker.decode_pages = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM) or signal.pause()\n"
        f"command.main(['--full', '--config', {str(place.config())!r}])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(work)}, check=False, timeout=60
    )
    assert found.returncode == 128 + signal.SIGTERM
    assert list(work.iterdir()) == []
