"""Child processes that never outlive their parent, whatever it dies of; and free ports to give them.

Between the two stands a small keeper, `python -m sandbox.leash COMMAND...`: it ends the command when the pipe to the
parent closes, and the kernel ends the command should the keeper itself be killed (Linux).
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_PATIENCE_SECONDS = 8.0
_PORTS = range(12_000, 32_000)


@contextlib.contextmanager
def leashed(
    command: Sequence[str | Path],
    *,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command while the block lasts, or until this process ends; then SIGTERM, and SIGKILL if that is ignored.

    Yields the keeper's process, whose output is the command's and which ends when the command does. SIGUSR1 to the
    keeper kills the command by SIGKILL, which `kill` does.
    """
    keeper = subprocess.Popen(
        [sys.executable, "-S", "-E", __file__, *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env=None if env is None else dict(env),
        cwd=cwd,
        start_new_session=True,  # Ctrl-C goes to the parent, which lets go of the leash in its own time
    )
    try:
        yield keeper
    finally:
        assert keeper.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.close()
        try:
            keeper.wait(_PATIENCE_SECONDS + 4)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()
        if keeper.stdout is not None:
            keeper.stdout.close()


def kill(keeper: "subprocess.Popen[bytes]") -> None:
    """SIGKILL for the command, and wait until it is gone."""
    keeper.send_signal(signal.SIGUSR1)
    keeper.wait()


def are_free(ports: Iterable[int]) -> bool:
    """Whether nothing listens on any of these ports of 127.0.0.1."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


_choosing = threading.Lock()
_chosen = 0


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that nothing listens on, below the range that the kernel hands out by itself.

    Where it begins to look depends on the process, and every call looks on from where the last one ended, so that
    two who start together do not choose the same.
    """
    global _chosen  # noqa: PLW0603 - a process has one set of ports
    found: list[int] = []
    with _choosing:
        for _ in _PORTS:
            port = _PORTS.start + (os.getpid() * 131 + _chosen) % len(_PORTS)
            _chosen += 1
            if are_free([port]):
                found.append(port)
            if len(found) == count:
                return found
    raise RuntimeError(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop}")


def _keep(command: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getpid()

    def follow() -> None:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=follow)  # noqa: PLW1509 - one thread so far

    def end(*_: object) -> None:
        child.terminate()

    def watch() -> None:
        while os.read(0, 4_096):
            pass
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_PATIENCE_SECONDS)
            return
        child.kill()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGUSR1, lambda *_: child.kill())
    threading.Thread(target=watch, daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    raise SystemExit(_keep(sys.argv[1:]))
