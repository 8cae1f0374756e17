"""What the machine is told about its AWS account: checked, remembered, and found again by every later command."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.machine.shell import Trouble, write

FILE = Path("/etc/tweetlake/machine.json")
PROGRAMS = ("ingester", "compaction")
"""Each has a role of its own."""

_ROLE = r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+"
_VALID = {
    "bucket": (r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "a bucket's name, such as my-lake"),
    "region": (r"[a-z]{2}(-[a-z]+)+-\d", "a region's name, such as us-east-1"),
    "prefix": (r"|[\w.=-]+(/[\w.=-]+)*/?", "nothing, or a path without a leading slash, such as team/lake/"),
    "ingester_role": (_ROLE, "a role's ARN, such as arn:aws:iam::123456789012:role/lake-ingester"),
    "compaction_role": (_ROLE, "a role's ARN, such as arn:aws:iam::123456789012:role/lake-compaction"),
    "secret": (
        r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:[\w/+=.@-]+",
        "the secret's ARN, such as arn:aws:secretsmanager:us-east-1:123456789012:secret:lake-AbCdEf",
    ),
    "data_device": (
        r"|vol-[0-9a-f]{8,17}|/dev/[\w/.-]+",
        "nothing, a volume's id, such as vol-0123456789abcdef0, or a device, such as /dev/sdf",
    ),
}
"""What each may look like, and the same in words. What is optional may be empty."""


@dataclass(frozen=True, slots=True)
class Told:
    """Where the lake is, who the programs are there, where X's token is kept, and where the spool lies."""

    bucket: str
    region: str
    ingester_role: str
    compaction_role: str
    secret: str
    prefix: str = ""
    data_device: str = ""

    def __post_init__(self) -> None:
        wrong = [
            f"--{name.replace('_', '-')} {value!r} is not {words}"
            for name, value in asdict(self).items()
            for pattern, words in [_VALID[name]]
            if not re.fullmatch(pattern, value)
        ]
        if wrong:
            raise Trouble("\n".join(wrong))

    def role_of(self, program: str) -> str:
        return {"ingester": self.ingester_role, "compaction": self.compaction_role}[program]

    def remember(self) -> None:
        write(FILE, json.dumps(asdict(self), indent=2) + "\n")


def remembered() -> dict[str, str]:
    """What it was told before; nothing on a new machine."""
    try:
        found: dict[str, str] = json.loads(FILE.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Trouble(f"{FILE} is no JSON: {error}\n  fix: remove it and give `install` every parameter") from error
    return found


def told(given: dict[str, str | None]) -> Told:
    """What is given now, over what was remembered. Names all that is missing, and all that is wrong, in one go."""
    known = remembered() | {name: value for name, value in given.items() if value is not None}
    if missing := [
        name for name in ("bucket", "region", "ingester_role", "compaction_role", "secret") if name not in known
    ]:
        raise Trouble("\n".join(f"--{name.replace('_', '-')} is missing: {_VALID[name][1]}" for name in missing))
    return Told(**known)
