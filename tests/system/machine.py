"""A machine of its own with a real systemd: a container over an overlay of this one, with no network but its own loopback.

Nothing of this machine changes: what is written lies in memory and goes with the container. Needs root and systemd-nspawn.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.house.checkout import ROOT

CLONE_NEWNET = 0x40000000
"""Of linux/sched.h."""
PYTHON = Path("/opt/python")
TWEETLAKE = Path("/opt/tweetlake")
_LOCK = Path("/run/lock/tweetlake-machine")
_CGROUPS = Path("/sys/fs/cgroup")
_BOOT_SECONDS = 20.0
_HALT_SECONDS = 15.0


@dataclass
class Machine:
    """A booted one. `root` is its file system as this machine sees it."""

    root: Path
    init: int
    """Its systemd's process."""
    nspawn: "subprocess.Popen[bytes]"
    command: list[str]
    console: Path

    def run(self, *command: str | Path, check: bool = True, seconds: float = 60.0) -> str:
        """Run a command in it as root; what it printed, errors too."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.init), "-a", "--", *map(str, command)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, timeout=seconds, check=False,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"},
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def write(self, path: str | Path, content: str, mode: int = 0o644) -> None:
        file = self.root / str(path).lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(mode)

    def remove(self, path: str | Path) -> None:
        file = self.root / str(path).lstrip("/")
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)

    def show(self, unit: str) -> dict[str, str]:
        """What systemd knows about a unit."""
        lines = self.run("systemctl", "show", unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def journal(self, unit: str, *options: str) -> list[str]:
        """What a unit, and systemd about it, has said."""
        return self.run("journalctl", "--unit", unit, "--no-pager", *options).splitlines()

    def reboot(self, seconds: float = 150.0) -> None:
        """Shut it down in good order and boot it again, with the same disk; returns once all that starts at boot has started."""
        self.run("systemctl", "reboot", check=False)
        self.nspawn.wait(seconds)  # it ends, to be started again by whoever started it
        _remove_cgroups()
        self.nspawn = _started(self.command, self.console)
        self.init = _init(self.nspawn, self.console)
        self.has_booted(seconds)

    def has_booted(self, seconds: float = _BOOT_SECONDS) -> None:
        self.run("systemctl", "is-system-running", "--wait", check=False, seconds=seconds)

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Sockets that this thread makes in the block, and processes that it starts, have the machine's network."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/self/ns/net").open() as home, Path(f"/proc/{self.init}/ns/net").open() as there:
            assert libc.setns(there.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(home.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


@contextlib.contextmanager
def booted(
    prepare: Callable[[Path], None] | None = None,
    binds: Mapping[Path, Path] | None = None,
    network: str | None = None,
    disk: Path | None = None,
) -> Iterator[Machine]:
    """A machine for as long as the block lasts. One at a time: nspawn's cgroups have fixed names.

    By default this checkout is installed in it. Else `prepare` gets its file system before it boots, and of this machine
    only `binds` are seen in it, read-only. `network` is the name of a network namespace that outlives a reboot; `disk` is a
    block device that it knows as /dev/sdf.
    """
    if os.geteuid() != 0:
        pytest.fail("booting a machine needs root: run `make test-system` as root")
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(_LOCK.open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tweetlake-machine-", dir=_memory())))
        root = stack.enter_context(_overlay(place))
        (prepare or _install_program)(root)
        seen = _binds() if binds is None else binds
        yield stack.enter_context(_running(root, place / "console.log", seen, network, disk))


@contextlib.contextmanager
def network_of_its_own(*addresses: str) -> Iterator[str]:
    """The name of a network that has a loopback and nothing else; these addresses lead to it too."""
    name = f"tweetlake-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        for address in addresses:
            subprocess.run(["ip", "-n", name, "address", "add", address, "dev", "lo"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@contextlib.contextmanager
def empty_disk(megabytes: int) -> Iterator[Path]:
    """A block device, in memory."""
    with tempfile.NamedTemporaryFile(prefix="tweetlake-disk-", dir=_memory()) as file:
        file.truncate(megabytes << 20)
        told = subprocess.run(["losetup", "--find", "--show", file.name], check=True, capture_output=True, text=True)
        device = Path(told.stdout.strip())
        try:
            yield device
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)


def _memory() -> str | None:
    """Where the overlay's own part lies: in memory, as it must not lie in an overlay itself."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextlib.contextmanager
def _overlay(place: Path) -> Iterator[Path]:
    upper, work, root = (place / name for name in ("upper", "work", "root"))
    for folder in (upper, work, root):
        folder.mkdir()
    place.chmod(0o755)
    options = f"lowerdir=/,upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, root], check=True)
    try:
        for wanted in ("multi-user", "timers", "sockets", "network-online", "sysinit"):  # what this machine would start
            shutil.rmtree(root / f"etc/systemd/system/{wanted}.target.wants", ignore_errors=True)
        yield root
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)


def _install_program(root: Path) -> None:
    """An installation as on a real machine: outside of homes, readable by everybody. Its packages are this environment's."""
    site = (
        root / str(TWEETLAKE).lstrip("/") / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    )
    for folder in (site, site.parents[2] / "bin", *(root / str(bind).lstrip("/") for bind in _binds().values())):
        folder.mkdir(parents=True, exist_ok=True)
    python = f"{PYTHON}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    (site.parents[2] / "bin/python").symlink_to(python)
    (site.parents[2] / "pyvenv.cfg").write_text(f"home = {PYTHON}/bin\ninclude-system-site-packages = false\n")
    (site / "packages.pth").write_text("/opt/checkout\n/opt/packages\n")
    script = site.parents[2] / "bin/tweetlake"
    script.write_text(f"#!{TWEETLAKE}/bin/python\nfrom ingester.__main__ import main\nmain()\n")
    script.chmod(0o755)
    (root / "etc/ld.so.conf.d").mkdir(exist_ok=True)
    (root / "etc/ld.so.conf.d/tweetlake-python.conf").write_text(f"{PYTHON}/lib\n")


def _binds() -> dict[Path, Path]:
    """What of this machine is seen elsewhere in the other: homes are hidden there from services."""
    import click

    return {
        Path(sys.base_prefix): PYTHON,
        Path(click.__file__).parents[1]: Path("/opt/packages"),
        ROOT: Path("/opt/checkout"),
    }


@contextlib.contextmanager
def _running(
    root: Path, console: Path, binds: Mapping[Path, Path], network: str | None, disk: Path | None
) -> Iterator[Machine]:
    command = ["systemd-nspawn", "--register=no", "--keep-unit", "--boot", "--quiet", "--directory", root]
    command += ["--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off"]
    if network is None:
        command += ["--private-network"]
    else:
        command += [f"--network-namespace-path=/run/netns/{network}", "--capability=CAP_NET_ADMIN"]
    command += [f"--bind-ro={here}:{there}" for here, there in binds.items()]
    command += [f"--bind={disk}:/dev/sdf"] if disk else []
    command = list(map(str, command))
    machine = Machine(root, 0, _started(command, console), command, console)
    try:
        machine.init = _init(machine.nspawn, console)
        machine.has_booted()
        machine.run("ldconfig")
        yield machine
    finally:
        _halt(machine.nspawn)


def _started(command: list[str], console: Path) -> "subprocess.Popen[bytes]":
    with console.open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )  # fmt: skip


def _init(nspawn: "subprocess.Popen[bytes]", console: Path) -> int:
    """The container's systemd, once it can be asked."""
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
    give_up = time.monotonic() + _BOOT_SECONDS
    while time.monotonic() < give_up and nspawn.poll() is None:
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n" and _answers(child):
                    return int(child)
        time.sleep(0.05)  # another process is watched; it has no event to await
    raise AssertionError(f"the machine did not boot: {console.read_text(errors='replace')[-2000:]}")


def _answers(init: str) -> bool:
    return subprocess.run(
        ["nsenter", "-t", init, "-a", "--", "systemctl", "show", "--property=Version"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=False,
    ).returncode == 0  # fmt: skip


def _halt(nspawn: "subprocess.Popen[bytes]") -> None:
    """SIGTERM halts it in good order. Never SIGKILL nspawn first: its container would live on."""
    children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
    try:
        inits = [int(child) for child in children.read_text().split()]
    except OSError:
        inits = []
    nspawn.send_signal(signal.SIGTERM)
    try:
        nspawn.wait(_HALT_SECONDS)
    except subprocess.TimeoutExpired:
        for init in inits:
            with contextlib.suppress(ProcessLookupError):
                os.kill(init, signal.SIGKILL)  # the container's init takes all of it along
        nspawn.wait(_HALT_SECONDS)
    _remove_cgroups()


def _remove_cgroups() -> None:
    for tree in (_CGROUPS, _CGROUPS / "unified", _CGROUPS / "systemd"):
        for name in ("payload/init.scope", "payload", "supervisor"):
            with contextlib.suppress(OSError):
                (tree / name).rmdir()
