"""A real S3 server on this machine: SeaweedFS, which persists and verifies checksums; moto where its wheel is missing.

Everything listens on 127.0.0.1, on free ports; nothing is left behind. moto keeps objects in memory and accepts a wrong
checksum, so a test about either must ask for SeaweedFS (`kind="seaweedfs"`).
"""

import contextlib
import json
import os
import shutil
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sandbox.leash import are_free, free_ports, leashed

Kind = Literal["seaweedfs", "moto"]

ACCESS_KEY = "sandbox"
SECRET_KEY = "sandbox-secret"  # noqa: S105 - opens nothing but this sandbox
REGION = "us-east-1"

_LOG_LINES = 25
_PROBE = ".sandbox-is-ready"
_START_SECONDS = 60.0


class S3Failed(Exception):
    """The server did not start; the message ends with the last lines of its log."""


@dataclass(frozen=True, slots=True)
class RunningS3:
    """An S3 server that runs, and one bucket in it. Address it path-style."""

    kind: Kind
    endpoint_url: str
    bucket: str
    directory: Path | None
    """Where the objects are kept; None if in memory."""
    pid: int | None
    """The server's keeper; None if it runs in this process."""
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    region: str = REGION

    def client(self, **config: Any) -> Any:
        """A boto3 client of it; `config` goes to botocore's Config."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(**{"s3": {"addressing_style": "path"}, **config}),
        )

    def environment(self) -> dict[str, str]:
        """The credentials, as boto3 and delta-rs look for them in the environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
        }


def seaweedfs() -> Path | None:
    """The `weed` program of this environment, or of the PATH; None if there is none."""
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    if beside.is_file() and os.access(beside, os.X_OK):
        return beside
    found = shutil.which("weed")
    return Path(found) if found else None


@contextlib.contextmanager
def running_s3(
    directory: Path | None = None,
    *,
    kind: Kind | None = None,
    bucket: str = "lake",
    port: int = 0,
) -> Iterator[RunningS3]:
    """Run an S3 server while the block lasts, with an empty or the kept `bucket` in it.

    `directory` keeps the objects for the next time (SeaweedFS only); without it they go when the block ends. `kind` is
    SeaweedFS where it is installed, else moto. `port` 0 is any free one. Raises S3Failed if the server does not start,
    with the end of its log.
    """
    chosen: Kind = kind or ("seaweedfs" if seaweedfs() else "moto")
    if chosen == "moto":
        with _moto(port, bucket) as server:
            yield server
        return
    weed = seaweedfs()
    if weed is None:
        raise S3Failed("SeaweedFS is not installed: there is no `weed` beside this Python nor on the PATH")
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tweetlake-s3-")))
        directory.mkdir(parents=True, exist_ok=True)
        yield stack.enter_context(_weed(weed, directory.resolve(), port, bucket))


_PORTS = (
    "s3.port", "s3.port.grpc", "s3.port.lance", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc",
    "filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc", "webdav.port",
)  # fmt: skip
"""Every port that `weed mini` would open at a number of its own choice."""


@contextlib.contextmanager
def _weed(weed: Path, directory: Path, port: int, bucket: str) -> Iterator[RunningS3]:
    ports = _ports(directory, port)
    log = directory / "weed.log"
    command = [
        str(weed), "mini", f"-dir={directory}", f"-bucket={bucket}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        *(f"-{name}={number}" for name, number in ports.items()),
        "-s3.port.iceberg=0", "-s3.autoCreateBucket=false", "-s3.iam.readOnly=false", "-webdav=false", "-admin.ui=false",
        "-master.telemetry=false", "-volume.preStopSeconds=0",
    ]  # fmt: skip
    if len(str(directory)) < 90:  # a socket's path has room for 107 characters
        command += [f"-s3.localSocket={directory}/s3.sock", f"-filer.localSocket={directory}/filer.sock"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "WEED_", "S3_"))}
    environment |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    with (
        log.open("wb") as output,
        leashed(command, stdout=output, stderr=output, env=environment, cwd=directory) as keeper,
    ):
        server = RunningS3("seaweedfs", f"http://127.0.0.1:{ports['s3.port']}", bucket, directory, keeper.pid)
        _await_bucket(server, keeper.poll, log)
        yield server


def _ports(directory: Path, port: int) -> dict[str, int]:
    """The ports of the last time if they are free, for SeaweedFS names its folders after them; else others."""
    kept = directory / "ports.json"
    with contextlib.suppress(OSError, ValueError):
        ports: dict[str, int] = json.loads(kept.read_text())
        if set(ports) == set(_PORTS) and port in {0, ports["s3.port"]} and are_free(ports.values()):
            return ports
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    if port:
        ports["s3.port"] = port
    kept.write_text(json.dumps(ports))
    return ports


def _await_bucket(server: RunningS3, ended: Callable[[], int | None], log: Path) -> None:
    """Wait until the bucket takes an object and gives kept ones: the S3 port answers before it finds its volumes."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = server.client(connect_timeout=1, read_timeout=3, retries={"total_max_attempts": 1})
    deadline = time.monotonic() + _START_SECONDS
    trouble = "no answer"
    while time.monotonic() < deadline:
        if ended() is not None:
            raise S3Failed(f"SeaweedFS ended while starting (status {ended()})\n{_tail(log)}")
        try:
            _try_out(client, server.bucket)
        except ClientError as error:
            trouble = str(error)
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                with contextlib.suppress(ClientError, BotoCoreError):
                    client.create_bucket(Bucket=server.bucket)
        except BotoCoreError as error:
            trouble = str(error)
        else:
            return
        time.sleep(0.05)
    raise S3Failed(f"SeaweedFS did not become ready in {_START_SECONDS:.0f} s: {trouble}\n{_tail(log)}")


def _try_out(client: Any, bucket: str) -> None:
    """Read what is kept, write, read and delete. An empty object would prove nothing: no volume holds it."""
    for kept in client.list_objects_v2(Bucket=bucket, MaxKeys=5).get("Contents", []):
        if kept["Size"]:
            client.get_object(Bucket=bucket, Key=kept["Key"], Range="bytes=0-0")["Body"].read()
    client.put_object(Bucket=bucket, Key=_PROBE, Body=b"is anybody there?")
    client.get_object(Bucket=bucket, Key=_PROBE)["Body"].read()
    client.delete_object(Bucket=bucket, Key=_PROBE)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:])


@contextlib.contextmanager
def _moto(port: int, bucket: str) -> Iterator[RunningS3]:
    try:
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        raise S3Failed(f"moto's server is not installed: {error}") from error
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    _, bound = server.get_host_and_port()
    url = f"http://127.0.0.1:{bound}"
    running = RunningS3("moto", url, bucket, None, None)
    try:
        running.client().create_bucket(Bucket=bucket)
        yield running
    finally:
        # moto's objects belong to the process, not to the server: without this the next server would have them.
        with contextlib.suppress(OSError):
            reset = urllib.request.Request(f"{url}/moto-api/reset", method="POST")  # noqa: S310 - our own http address
            urllib.request.urlopen(reset, timeout=10).close()  # noqa: S310 - as above
        server.stop()
