"""What a log line looks like where it is read, and that a trouble which stays does not fill the log."""

import io
import json
import os
import subprocess
import sys

import pytest
import structlog

from ingester import logs
from ingester.logs import REPEAT_SECONDS, Repetition, configure_logging, is_journal
from ingester.telemetry import Telemetry


class Time:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def written(time):
    repetition = Repetition(time)

    def write(event="upload_paused", level="warning", **facts):
        try:
            return dict(repetition(None, "", {"event": event, "level": level, **facts}))
        except structlog.DropEvent:
            return None

    return write


def test_the_same_warning_is_written_once_and_then_with_how_often_it_was_met(written, time):
    assert written(detail="403", wait_seconds=1.0) == {
        "event": "upload_paused",
        "level": "warning",
        "detail": "403",
        "wait_seconds": 1.0,
    }
    for second in range(1, 10):
        time.now = second * 30.0
        assert written(detail="403", wait_seconds=second) is None
    time.now = REPEAT_SECONDS
    assert written(detail="403", wait_seconds=30)["repeated"] == 9
    time.now += REPEAT_SECONDS
    assert "repeated" not in written(detail="403", wait_seconds=30)


def test_another_detail_query_or_event_is_another_warning(written):
    assert written(detail="403")
    assert written(detail="500")
    assert written(detail="403", query="one")
    assert written("upload_failed", detail="403")
    assert written(detail="403") is None


def test_what_was_over_and_comes_back_is_written_again(written):
    assert written("request_failed", query="one", detail="reset")
    assert written("request_failed", query="two", detail="reset")
    assert written("page_stored", "info", query="one")
    assert written("request_failed", query="one", detail="reset")
    assert written("request_failed", query="two", detail="reset") is None
    assert written("asking_paused", detail="402")
    assert written("page_stored", "info", query="one")
    assert written("asking_paused", detail="402") is None
    assert written("asking_resumed", "info")
    assert written("asking_paused", detail="402")


def test_every_event_that_ends_or_is_ended_is_one_of_the_service():
    told = {name for name in vars(Telemetry) if not name.startswith("_")}
    assert logs._ENDS.keys() <= told
    assert {event for ended in logs._ENDS.values() for event in ended} <= told


@pytest.mark.parametrize("level", ["info", "error"])
def test_only_warnings_are_held_back(written, level):
    assert written("shipped", level)
    assert written("shipped", level)


def test_what_is_remembered_is_bounded(written):
    assert written(detail="first")
    for number in range(1_000):
        assert written(detail=number)
    assert written(detail="first"), "it was forgotten"


def test_the_journal_is_known_by_device_and_inode(tmp_path):
    with (tmp_path / "journal").open("w") as stream:
        found = os.fstat(stream.fileno())
        assert is_journal(stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not is_journal(stream, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        assert not is_journal(stream, {})
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:1"})


PROGRAM = """
from ingester import logs
from ingester.logs import configure_logging
from ingester.telemetry import Telemetry
configure_logging()
telemetry = Telemetry()
telemetry.started(version="1")
for _ in range(3):
    telemetry.upload_paused("a.avro", "403 AccessDenied\\nsecond line", 30.0)
"""


def test_a_line_is_json_with_its_time_and_level_first(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["started", "upload_paused"]
    assert [list(line)[:3] for line in lines] == [["timestamp", "level", "event"]] * 2
    assert done.stdout == ""


def test_in_the_journal_each_line_begins_with_its_priority(tmp_path):
    with (tmp_path / "journal").open("w+") as stream:
        found = os.fstat(stream.fileno())
        environment = os.environ | {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        subprocess.run([sys.executable, "-c", PROGRAM], stderr=stream, env=environment, check=True)
        stream.seek(0)
        lines = stream.read().splitlines()
    assert [line[:3] for line in lines] == ["<6>", "<4>"]
    assert json.loads(lines[1][3:])["microbatch"] == "a.avro"


def test_lines_for_people_have_no_json(capsys):
    configure_logging(human=True)
    try:
        Telemetry().started(version="1")
        assert "{" not in capsys.readouterr().err
    finally:
        structlog.reset_defaults()
