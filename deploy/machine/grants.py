"""What the machine's own role is good for: each program's credentials, X's token, and releases. Root runs it.

The one part that needs boto3, so the current release's Python runs it: `python -m deploy.machine.grants role ingester`.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from deploy.machine.shell import Trouble, say
from deploy.machine.told import PROGRAMS, Told, told

CREDENTIALS = Path("/run/tweetlake-credentials")
SECRETS = Path("/run/tweetlake-secrets")
HOUR = 3600
"""The longest that a role may be assumed for by another role."""
_PATIENCE = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 3})


def role(machine: Told, program: str) -> None:
    """Assume a program's role for an hour, and leave the credentials where that program alone can read them."""
    sts = boto3.client("sts", region_name=machine.region, config=_PATIENCE)
    with _errors(f"the role of the {program} cannot be assumed"):
        answer = sts.assume_role(
            RoleArn=machine.role_of(program), RoleSessionName=f"tweetlake-{program}", DurationSeconds=HOUR
        )["Credentials"]
    credentials = {
        "Version": 1,
        "AccessKeyId": answer["AccessKeyId"],
        "SecretAccessKey": answer["SecretAccessKey"],
        "SessionToken": answer["SessionToken"],
        "Expiration": answer["Expiration"].isoformat(),
    }
    _leave(CREDENTIALS / program / "credentials.json", json.dumps(credentials), 0o640)
    say(f"credentials of the {program} until {answer['Expiration']:%H:%M} UTC")


def secret(machine: Told) -> None:
    """Leave X's token where systemd reads it for the ingester. The one from before will do if it cannot be asked for."""
    file = SECRETS / "x-bearer-token"
    try:
        _leave(file, _token(machine), 0o600)
        say("X's token is there")
    except Trouble as trouble:
        if not file.is_file():
            raise
        say(f"the token that was fetched before is used: {trouble}")


def _token(machine: Told) -> str:
    secrets = boto3.client("secretsmanager", region_name=machine.region, config=_PATIENCE)
    with _errors("X's token cannot be fetched"):
        try:
            found = secrets.get_secret_value(SecretId=machine.secret)
        except secrets.exceptions.ResourceNotFoundException:
            found = {}
    token = str(found.get("SecretString", "")).strip()
    if not token:
        raise Trouble(
            "X's token was not put into the secret yet; it is looked for again every 30 s\n"
            f"  fix: aws secretsmanager put-secret-value --region {machine.region} --secret-id {machine.secret}"
            " --secret-string file://token"
        )
    return token


def release(machine: Told, version: str, file: Path) -> None:
    """Fetch a release from the lake's bucket."""
    s3 = boto3.client("s3", region_name=machine.region, config=_PATIENCE)
    key = f"releases/tweetlake-{version}.tar.gz"
    with _errors(f"s3://{machine.bucket}/{key} cannot be fetched"):
        s3.download_file(machine.bucket, key, str(file))


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise Trouble(f"{what}: {error}") from error


def _leave(file: Path, content: str, mode: int) -> None:
    """In one step, for the group that its folder has."""
    handle, name = tempfile.mkstemp(dir=file.parent)  # mode 0600
    with os.fdopen(handle, "w", encoding="utf-8") as new:
        new.write(content)
    os.chown(name, 0, file.parent.stat().st_gid)
    Path(name).chmod(mode)
    Path(name).replace(file)


def main(arguments: list[str]) -> int:
    deeds: dict[str, Any] = {
        "role": lambda program: role(told({}), program),
        "secret": lambda: secret(told({})),
        "release": lambda version, file: release(told({}), version, Path(file)),
    }
    if (
        not arguments
        or arguments[0] not in deeds
        or (arguments[0] == "role" and arguments[1:] not in [[p] for p in PROGRAMS])
    ):
        say("usage: grants role ingester|compaction, grants secret, grants release VERSION FILE")
        return 2
    try:
        deeds[arguments[0]](*arguments[1:])
    except Trouble as trouble:
        say(str(trouble))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
