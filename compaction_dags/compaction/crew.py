"""The processes that share the work on one raw hour: this one, and helpers that it starts, deals tasks to and ends.

Helpers are plain programs, not children of multiprocessing: that starts none in a daemonic process, which a task of
Airflow may be, and would run the caller's main module again. They hold nothing that lasts, so ending them is killing them.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from typing import Any, Final, Generic, Self, TypeVar

from compaction_dags.compaction.errors import HelperLostError

Worker = TypeVar("Worker")
Task = TypeVar("Task")
Result = TypeVar("Result")

_PROGRAM: Final = "import sys; from compaction_dags.compaction.crew import serve; serve(int(sys.argv[1]))"


class Crew(Generic[Worker]):
    """A worker in this process, and one in each helper. What they do are methods of the worker's class."""

    def __init__(self, own: Worker, others: Iterable[Callable[[], Worker]] = ()) -> None:
        """`others`: what makes a worker in a helper; it is sent there by pickle, as are tasks and results."""
        self._own = own
        self._helpers = [_Helper(make) for make in others]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for helper in self._helpers:
            helper.end()

    def map(
        self,
        do: Callable[[Worker, Task], Result],
        tasks: Sequence[Task],
        done: Callable[[Result], None] = lambda _: None,
    ) -> list[Result]:
        """The results of all tasks, in their order. Whoever is free takes the next one; `done` is told of each as it
        ends. The first error of any of them is raised, and no task is begun after it. Raises HelperLostError.
        """
        waiting = deque(enumerate(tasks))
        results: dict[int, Result] = {}
        alone = threading.Lock()

        def work(call: Callable[..., Result]) -> None:
            while True:
                with alone:
                    if not waiting:
                        return
                    number, task = waiting.popleft()
                try:
                    result = call(do, task)
                except BaseException:
                    waiting.clear()
                    raise
                with alone:
                    results[number] = result
                    done(result)

        self._together(work)
        return [results[number] for number in range(len(tasks))]

    def everywhere(self, do: Callable[[Worker], Result]) -> list[Result]:
        """What every worker of the crew has to say."""
        results: list[Result] = []
        self._together(lambda call: results.append(call(do)))
        return results

    def _together(self, work: Callable[[Callable[..., Any]], None]) -> None:
        """Do this in all processes at once: here, and in a thread for each helper, which waits for it."""
        with ThreadPoolExecutor(len(self._helpers) or 1) as threads:
            try:
                others = [threads.submit(work, helper.call) for helper in self._helpers]
                work(self._call)
                for other in others:
                    other.result()
            except BaseException:
                self.__exit__()  # or the threads would wait for what they are doing
                raise

    def _call(self, do: Callable[..., Result], *task: Any) -> Result:
        return do(self._own, *task)


class _Helper:
    """A helper as its starter sees it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._line, theirs = Pipe()
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
            stdin=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._line.send(make)

    def call(self, do: Callable[..., Any], *task: Any) -> Any:
        """Have it done there. Raises what was raised there, and HelperLostError."""
        try:
            self._line.send((do, task))
            result, error = self._line.recv()
        except (EOFError, OSError) as lost:
            code = self._process.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise HelperLostError(
                f"a process that helped to compact {how}, most often for want of memory; nothing was committed. "
                "Run the hour again; compaction.processes = 1 needs the least memory"
            ) from lost
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def serve(line: int) -> None:
    """The life of a helper: make a worker, do what it is asked to, until nobody is there who asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the starter decides
    threading.Thread(target=_end_with_starter, daemon=True).start()
    with Connection(line) as starter:
        worker = starter.recv()()
        while True:
            do, task = starter.recv()
            answer: tuple[Any, BaseException | None]
            try:
                answer = (do(worker, *task), None)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the starter has to hear of it
                answer = (None, _sendable(error))
            starter.send(answer)


def _end_with_starter() -> None:
    os.read(0, 1)  # it writes nothing: this returns when it is gone, however it went
    os._exit(1)


def _sendable(error: BaseException) -> BaseException:
    """The error with the place where it was raised in words, as a traceback does not travel."""
    told = "".join(traceback.format_exception(error))
    error.add_note(f"It was raised in a helper:\n{told}")
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes; not every exception can be made again from its
    except Exception:  # noqa: BLE001 - pickling runs code of the error's class
        return RuntimeError(told)
    return error
