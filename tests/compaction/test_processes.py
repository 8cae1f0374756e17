"""An hour that two processes share becomes what one makes of it; whatever happens to a helper is told, and nothing is committed."""

import functools
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from compaction_dags.compaction import crew as crews
from compaction_dags.compaction import job
from compaction_dags.compaction.crew import Crew
from compaction_dags.compaction.errors import HelperLostError, LakeRefusedError, TransformError, UnknownFormatError
from compaction_dags.compaction.worker import Worker
from schemas.keys import RawHour
from schemas.raw import META_FORMAT
from schemas.settings import Compaction, Settings
from tests.compaction.conftest import Place, page_of
from tests.compaction.pages import NOON, World, microbatch, page_record

HOUR = "2026-11-20T12"


def by(processes: int, settings: Settings) -> Settings:
    return settings.model_copy(update={"compaction": Compaction(processes=processes)})


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step a microbatch, and files of few tweets, so that there is something to share."""
    monkeypatch.setattr(job, "_BYTES_PER_STEP", 1)
    monkeypatch.setattr(job, "ROWS_PER_FILE", 50)


def ship(place: Place, files: int = 6, tweets: int = 40) -> None:
    world = World(seed=21)
    for number in range(files):
        at = NOON.replace(minute=number)
        damaged = page_record(b"<html>", at)
        place.ship([page_record(world.body(tweets), at), damaged, page_record(world.body(tweets), at)], NOON)


@pytest.mark.usefixtures("small_pieces")
def test_two_processes_make_the_same_files_byte_for_byte_as_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ship(place)
    helped = threading.Event()
    call, read = crews._Helper.call, Worker.read

    @functools.wraps(read)
    def wait_for_the_helper(*given: Any) -> Any:
        assert helped.wait(60)
        return read(*given)

    def note(*given: Any) -> Any:
        found = call(*given)
        helped.set()
        return found

    monkeypatch.setattr(Worker, "read", wait_for_the_helper)  # or one would be done before the other has started
    monkeypatch.setattr(crews._Helper, "call", note)
    shared = job.compact_hour(by(2, place.settings()), HOUR)
    assert (shared.microbatches, shared.rejected) == (6, 6)
    files = place.snapshot("tweets").files
    assert sum(len(each) for each in files.values()) > 5, "an hour with many tweets has several files"
    rejects = place.rows("rejects")
    before, objects = place.versions(), place.objects("curated/")
    alone = job.compact_hour(by(1, place.settings()), HOUR)
    assert alone == shared
    assert (place.versions(), place.objects("curated/")) == (before, objects), (
        "a file's name has the digest of its bytes"
    )
    assert place.rows("rejects") == rejects


def test_rows_of_every_file_stand_in_order_and_no_id_stands_in_two(place: Place, small_pieces: None) -> None:
    ship(place)
    job.compact_hour(by(1, place.settings()), HOUR)
    table = place.table("tweets")
    for files in place.snapshot("tweets").files.values():
        parts = sorted(table.read([file], ["id"])["id"].to_pylist() for file in files)
        assert [len(part) for part in parts[:-1]] == [50] * (len(parts) - 1)
        joined = [number for part in parts for number in part]
        assert joined == sorted(set(joined))


def compact_noon(settings: Settings) -> None:
    job.compact_hour(by(2, settings), HOUR)


def test_a_daemonic_process_has_helpers_too(place: Place) -> None:
    """As a task of Airflow may be one, in which multiprocessing would start none."""
    ship(place, 1)
    process = multiprocessing.get_context("forkserver").Process(
        target=compact_noon, args=(place.settings(),), daemon=True
    )
    process.start()
    process.join(100)
    assert process.exitcode == 0
    assert place.tweets([])


# --- what happens to a helper ---


ONLY_IN_A_HELPER = """
import os, signal
def f(frame):
    if os.getpid() == {starter}:
        open({fifo!r}).close()  # until the helper is at it too
        return frame
    open({fifo!r}, "w").close()
    {then}
"""


def hooked(place: Place, monkeypatch: pytest.MonkeyPatch, then: str) -> Settings:
    """Settings of two processes with a transform that does something in the helper; there are two shares of an hour."""
    ids = [int(one["id"]) for one in World(seed=21).page(80)["data"]]
    place.ship_tweets(ids)
    monkeypatch.setattr(job, "ROWS_PER_FILE", 40)
    fifo = str(place.directory / "fifo")
    os.mkfifo(fifo)
    name = f"hook_{Path(place.prefix).name}"
    (place.directory / f"{name}.py").write_text(ONLY_IN_A_HELPER.format(starter=os.getpid(), fifo=fifo, then=then))
    monkeypatch.syspath_prepend(str(place.directory))
    return by(2, place.settings(f"{name}:f"))


def nothing_committed(place: Place) -> bool:
    return not any("/date=" in key for key in place.objects("curated/"))


def test_a_helper_that_is_killed_is_a_clear_failure_and_nothing_is_committed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = hooked(place, monkeypatch, "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(HelperLostError, match="killed by signal 9.*nothing was committed"):
        job.compact_hour(settings, HOUR)
    assert nothing_committed(place)
    assert place.compact().tweets_written == 80, "the hour is still stale, and can be done again"


def test_what_the_users_function_raises_in_a_helper_is_raised_as_in_one_process(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = hooked(place, monkeypatch, "raise KeyError('lang')")
    with pytest.raises(TransformError, match="failed: KeyError: 'lang'"):
        job.compact_hour(settings, HOUR)
    assert nothing_committed(place)


def helped(place: Place, **lake: str) -> Crew[Worker]:
    settings = place.settings().lake.model_copy(update=lake)
    return Crew(
        Worker(place.lake(), None, place.directory / "own"),
        [functools.partial(Worker.made, settings, "", place.directory / "other")],
    )


def test_errors_of_a_helper_are_of_their_own_kind_and_name_the_key(place: Place) -> None:
    key = place.put(microbatch([page_record(page_of([1]))], metadata={META_FORMAT: "99"}), NOON)
    listed = place.lake().raw_of_hour(RawHour.of(NOON))
    with helped(place) as crew, pytest.raises(UnknownFormatError, match=key) as caught:
        crew._helpers[0].call(Worker.read, listed)
    assert any("read_microbatch" in note for note in caught.value.__notes__), "with the place where it was raised"


def test_a_helper_that_cannot_begin_says_why(place: Place) -> None:
    key = place.ship_tweets([1])
    listed = place.lake().raw_of_hour(RawHour.of(NOON))
    with helped(place, bucket="no-such-bucket") as crew, pytest.raises(LakeRefusedError, match=key):
        crew._helpers[0].call(Worker.read, listed)


class Odd(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def test_an_error_that_does_not_travel_arrives_in_words() -> None:
    found = crews._sendable(Odd("some", "thing"))
    assert isinstance(found, RuntimeError)
    assert "Odd: something" in str(found)


# --- the crew ---


class Counter:
    """A worker that tells who it is."""

    def who(self) -> int:
        return os.getpid()

    def double(self, number: int) -> int:
        return 2 * number

    def fail(self, number: int) -> int:
        raise ValueError(number)


def test_results_come_in_the_order_of_their_tasks_from_every_process() -> None:
    told: list[int] = []
    with Crew(Counter(), [Counter, Counter]) as crew:
        assert len(set(crew.everywhere(Counter.who))) == 3
        assert crew.map(Counter.double, range(50), told.append) == [2 * number for number in range(50)]
        assert sorted(told) == [2 * number for number in range(50)]
        assert crew.map(Counter.double, []) == []


def gone(pid: int) -> bool:
    """Whether a process ends within a minute."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 60)[0])
    finally:
        os.close(process)


def test_the_first_error_ends_the_work_and_the_helpers() -> None:
    with Crew(Counter(), [Counter]) as crew, pytest.raises(ValueError, match=r"^\d+"):
        pid = crew._helpers[0].call(Counter.who)
        crew.map(Counter.fail, range(10))
    assert gone(pid)


STARTER = """
import os, signal
from tests.compaction.test_processes import Counter
from compaction_dags.compaction.crew import Crew
with Crew(Counter(), [Counter]) as crew:
    print(crew._helpers[0].call(Counter.who), flush=True)
    signal.pause()
"""


def test_helpers_end_with_their_starter_however_it_ends() -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    with starter:
        pid = int(starter.stdout.readline())
        starter.kill()
    assert gone(pid)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_end_ends_its_helpers_and_clears_up(place: Place, told: signal.Signals) -> None:
    ship(place, 1)
    work = place.directory / "work"
    work.mkdir()
    code = (
        "import os, signal\n"
        "from compaction_dags.compaction import __main__ as command, crew\n"
        "def told(self, *_):\n"
        "    print(self._helpers[0]._process.pid, flush=True)\n"
        f"    os.kill(os.getpid(), {int(told)})\n"
        "    signal.pause()\n"
        "crew.Crew.map = told\n"
        f"command.main(['--full', '--config', {str(place.config())!r}])\n"
    )
    environment = os.environ | {"TMPDIR": str(work), "TWEETLAKE__COMPACTION__PROCESSES": "2"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode in (128 + told, 1), ended.stderr
    assert gone(int(ended.stdout.split()[0]))
    assert list(work.iterdir()) == []
    assert nothing_committed(place)


# --- how many ---


@pytest.mark.parametrize(
    ("setting", "cores", "size", "expected"),
    [(0, 1, 10**9, 1), (0, 8, 1_000, 1), (0, 8, 30_000_000, 2), (0, 2, 10**9, 2), (3, 1, 1_000, 3), (1, 8, 10**9, 1)],
)
def test_how_many_processes_share_an_hour(
    monkeypatch: pytest.MonkeyPatch, setting: int, cores: int, size: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert job.processes(setting, size) == expected
