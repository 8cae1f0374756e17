"""The S3 server of the sandbox: it keeps what it took, refuses what arrived damaged, and leaves nothing running."""

import base64
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from sandbox import leash
from sandbox import s3 as s3_module
from sandbox.leash import are_free, free_ports, kill, leashed
from sandbox.s3 import S3Failed, running_s3, seaweedfs

needs_seaweedfs = pytest.mark.skipif(seaweedfs() is None, reason="SeaweedFS has no wheel for this machine")


@pytest.fixture(scope="module", params=["seaweedfs", "moto"])
def server(request):
    if request.param == "seaweedfs" and seaweedfs() is None:
        pytest.skip("SeaweedFS has no wheel for this machine")
    with running_s3(kind=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server.client(retries={"total_max_attempts": 1})


def code(refused) -> int:
    return refused.value.response["ResponseMetadata"]["HTTPStatusCode"]


def test_the_bucket_is_there_and_empty(server, client):
    assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["lake"]
    assert "Contents" not in client.list_objects_v2(Bucket="lake", Prefix=".ready")


def test_a_missing_bucket_is_not_made_up(client):
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket="another-lake", Key="a", Body=b"1")
    assert code(refused) == 404


def test_one_of_sixteen_wins_the_race_to_create(client):
    def put(number):
        try:
            client.put_object(Bucket="lake", Key="race", Body=str(number).encode(), IfNoneMatch="*")
        except ClientError as error:
            return error.response["ResponseMetadata"]["HTTPStatusCode"]
        return number

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(put, range(16)))
    winners = [outcome for outcome in outcomes if outcome < 16]
    assert len(winners) == 1
    assert set(outcomes) - set(winners) == {412}
    assert client.get_object(Bucket="lake", Key="race")["Body"].read() == str(winners[0]).encode()


def test_metadata_comes_back(client):
    client.put_object(Bucket="lake", Key="raw/a=b/c", Body=b"x", Metadata={"sha256": "00", "records": "3"})
    assert client.head_object(Bucket="lake", Key="raw/a=b/c")["Metadata"] == {"sha256": "00", "records": "3"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's table of sockets")
def test_only_the_loopback_listens(server):
    ports = {int(server.endpoint_url.rpartition(":")[2])}
    if server.kind == "seaweedfs":
        ports |= set(json.loads((server.directory / "ports.json").read_text()).values())
    listening = [
        (fields[1].rpartition(":")[0], int(fields[1].rpartition(":")[2], 16))
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if (fields := line.split())[3] == "0A"
    ]
    ours = [address for address, port in listening if port in ports]
    assert ours, "the server listens somewhere"
    assert set(ours) == {"0100007F"}, "127.0.0.1, as the kernel writes it"


@needs_seaweedfs
@pytest.mark.parametrize("server", ["seaweedfs"], indirect=True)  # moto takes it, which is why it proves nothing here
def test_seaweedfs_refuses_a_wrong_checksum(server, client):
    wrong = base64.b64encode(hashlib.sha256(b"another body").digest()).decode()
    with pytest.raises(ClientError) as refused:
        client.put_object(Bucket="lake", Key="damaged", Body=b"a body", ChecksumSHA256=wrong)
    assert code(refused) == 400
    with pytest.raises(ClientError):
        client.head_object(Bucket="lake", Key="damaged")
    right = base64.b64encode(hashlib.sha256(b"a body").digest()).decode()
    client.put_object(Bucket="lake", Key="sound", Body=b"a body", ChecksumSHA256=right)
    assert client.head_object(Bucket="lake", Key="sound", ChecksumMode="ENABLED")["ChecksumSHA256"] == right


@needs_seaweedfs
@pytest.mark.parametrize("server", ["seaweedfs"], indirect=True)  # moto takes any
def test_seaweedfs_knows_its_keys(server):
    import boto3

    stranger = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key="wrong",
        region_name=server.region,
    )
    with pytest.raises(ClientError) as refused:
        stranger.list_objects_v2(Bucket="lake")
    assert code(refused) == 403


@needs_seaweedfs
def test_a_restart_keeps_the_objects_and_the_address(tmp_path):
    with running_s3(tmp_path / "kept", kind="seaweedfs") as first:
        first.client().put_object(Bucket="lake", Key="kept", Body=b"for ever")
    with running_s3(tmp_path / "kept", kind="seaweedfs") as second:
        assert second.endpoint_url == first.endpoint_url
        assert second.client().get_object(Bucket="lake", Key="kept")["Body"].read() == b"for ever"
        # The ports of a kept directory may be taken: then others do.
        occupied = urllib.parse.urlsplit(second.endpoint_url).port
        assert not are_free([occupied])
        assert s3_module._ports(tmp_path / "kept", 0)["s3.port"] != occupied


def test_moto_forgets_at_its_end():
    with running_s3(kind="moto") as first:
        first.client().put_object(Bucket="lake", Key="gone", Body=b"1")
    with running_s3(kind="moto", bucket="lake") as second:
        assert "Contents" not in second.client().list_objects_v2(Bucket="lake")


def test_moto_stands_in_where_seaweedfs_is_missing(monkeypatch):
    monkeypatch.setattr(s3_module, "seaweedfs", lambda: None)
    with running_s3() as server:
        assert server.kind == "moto"
    with pytest.raises(S3Failed, match="SeaweedFS is not installed"), running_s3(kind="seaweedfs"):
        pass


def test_a_server_that_ends_is_told_with_its_log(tmp_path, monkeypatch):
    broken = tmp_path / "weed"
    broken.write_text("#!/bin/sh\necho the volume is on fire >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(s3_module, "seaweedfs", lambda: broken)
    with pytest.raises(S3Failed, match=r"(?s)status 3.*the volume is on fire"), running_s3(tmp_path, kind="seaweedfs"):
        pass


_VICTIM = """
import sys
from sandbox.leash import kill, leashed, leashed
with leashed([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]) as keeper:
    print(keeper.pid, flush=True)
    keeper.wait()
"""


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_never_outlives_its_parent(blow):
    parent = subprocess.Popen([sys.executable, "-c", _VICTIM], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = {int(parent.stdout.readline()), int(parent.stdout.readline())}
    assert all(_lives(pid) for pid in pids)
    parent.send_signal(blow)
    parent.wait(10)
    # The pipe closes when the last of them has ended: nothing else to wait for.
    assert parent.stdout.read() == ""
    _await_end(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's death signal")
def test_a_child_never_outlives_its_keeper():
    parent = subprocess.Popen([sys.executable, "-c", _VICTIM], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    first, second = int(parent.stdout.readline()), int(parent.stdout.readline())
    keeper, child = (first, second) if Path(f"/proc/{second}/stat").read_text().split()[3] == str(first) else (second, first)  # fmt: skip
    os.kill(keeper, signal.SIGKILL)
    parent.wait(10)
    _await_end({child})


def test_a_child_can_be_killed_without_a_word():
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    )
    with leashed([sys.executable, "-c", stubborn], stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        keeper.stdout.readline()
        kill(keeper)
        assert keeper.returncode == 128 + signal.SIGKILL


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _await_end(pids: set[int]) -> None:
    deadline = time.monotonic() + 10
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.01)


def test_free_ports_are_free_and_different(monkeypatch):
    monkeypatch.setattr(leash, "_chosen", 0)
    ports, others = free_ports(20), free_ports(20)
    assert len({*ports, *others}) == 40, "who asks at the same time gets others"
    assert are_free(ports)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", ports[0]))
        taken.listen()
        assert not are_free(ports)
        monkeypatch.setattr(leash, "_chosen", 0)
        assert ports[0] not in free_ports(20)
