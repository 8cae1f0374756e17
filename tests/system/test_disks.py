"""The unchanged service on disks that really are full for a while or lose their power: it goes on and loses nothing."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.leash import kill
from sandbox.s3 import RunningS3
from tests.scenarios.place import Place, new_places
from tests.system.disks import disk, lose_power, new_disk, small_disk

pytestmark = [pytest.mark.system, pytest.mark.timeout(200)]


def fill(ballast: Path) -> None:
    """Take all the room that there is."""
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.fixture
def place(
    server: RunningS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Place]:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TWEETLAKE__SPOOL__MIN_FREE_BYTES", "0")  # or it would stop asking before the disk is full
    with new_places(server, tmp_path, request.node.name) as make:
        yield make(hours=0.2)


def test_a_disk_that_is_full_is_told_and_waited_out_and_nothing_is_lost(place: Place) -> None:
    ballast = place.spool / "ballast"

    def is_told() -> bool:
        fill(ballast)  # again and again: what is shipped makes room
        return any(
            line["event"] == "spool_full" and "No space left on device" in line["detail"] for line in place.lines()
        )

    with small_disk(place.spool, 24):
        with place.running() as service:
            service.until(lambda: place.shipped, 60)
            service.until(is_told, 60)
            ballast.unlink()
            before = place.shipped
            service.until(lambda: place.shipped > before, 60)
            service.settles()
        assert service.process.returncode == 0
    found = place.conserved()
    assert found.holds, str(found)


def test_a_disk_whose_power_is_cut_again_and_again_loses_nothing(place: Place, tmp_path: Path) -> None:
    """Each time the next start finds what was on the disk, and nothing that was in the kernel's memory only."""
    image, rest = tmp_path / "disk.img", tmp_path / "rest.img"
    new_disk(image, 64)
    for _ in range(3):
        with disk(place.spool, image), place.running() as service:
            before = place.pages_served
            service.until(lambda before=before: place.pages_served >= before + 5, 60)
            kill(service.process)  # before, so that it changes nothing while the disk is copied
            lose_power(image, rest)
        rest.replace(image)
    with disk(place.spool, image), place.running() as service:
        service.settles()
    assert service.process.returncode == 0
    found = place.conserved()
    assert found.holds, str(found)
