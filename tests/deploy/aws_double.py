"""What an instance asks of AWS beside S3, as far as our machine does: its metadata (IMDSv2), STS and Secrets Manager.

It holds who asks to the policy of the template, and knows the keys of the role that each can become.
"""

import contextlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sandbox.s3 import RunningS3
from tests.deploy.iam import allows
from tests.deploy.template import policy

METADATA = "169.254.169.254"
"""Where every instance asks for its metadata, at port 80."""
_TOKEN = "of-this-instance-and-session"
_CREDENTIALS = "/latest/meta-data/iam/security-credentials/"
_STS = "https://sts.amazonaws.com/doc/2011-06-15/"


@dataclass
class Account:
    """Who is who in it. The keys are users of the S3 server, so that one signature is good for both."""

    instance: RunningS3
    roles: Mapping[str, RunningS3]
    """By ARN."""
    secret: str
    """The ARN of the secret."""
    token: str = ""
    """Its value; empty, as the template makes it, until somebody puts one there."""
    assumed: list[str] = field(default_factory=list)
    """The ARN of each role that was assumed."""
    url: str = ""

    def assume(self, access_key: str, arn: str) -> RunningS3 | None:
        """The keys of a role; None for whoever may not have them."""
        if access_key != self.instance.access_key or not _may("sts:AssumeRole", arn):
            return None
        self.assumed.append(arn)
        return self.roles[arn]


def _may(action: str, resource: str) -> bool:
    return allows(policy("InstanceRole"), action, resource, {})


@contextlib.contextmanager
def running_aws(account: Account) -> Iterator[Account]:
    """Both servers for as long as the block lasts: the metadata at its own address, the rest at `account.url`."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_serving((METADATA, 80), _Metadata, account))
        port = stack.enter_context(_serving(("127.0.0.1", 0), _Services, account))
        account.url = f"http://127.0.0.1:{port}"
        yield account


@contextlib.contextmanager
def _serving(address: tuple[str, int], handler: type["_Handler"], account: Account) -> Iterator[int]:
    server = ThreadingHTTPServer(address, type("Bound", (handler,), {"account": account}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    account: Account

    def log_message(self, *_: Any) -> None:
        """pytest shows what fails."""

    def answer(self, status: int, content: str, kind: str = "text/plain") -> None:
        body = content.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Metadata(_Handler):
    """Of version 2 only, as the template has it."""

    def do_PUT(self) -> None:
        wanted = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self.answer(200, _TOKEN) if wanted else self.answer(400, "")

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != _TOKEN:
            self.answer(401, "")
        elif self.path == _CREDENTIALS:
            self.answer(200, "machine")
        elif self.path == f"{_CREDENTIALS}machine":
            keys = self.account.instance
            found = {"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": keys.access_key, "Token": ""}
            found |= {"SecretAccessKey": keys.secret_key, "LastUpdated": _later(0), "Expiration": _later(6)}
            self.answer(200, json.dumps(found))
        else:
            self.answer(404, "")


class _Services(_Handler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        signed_by = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        who = signed_by[1] if signed_by else ""
        if self.headers.get("X-Amz-Target") == "secretsmanager.GetSecretValue":
            self._secret(who, json.loads(body)["SecretId"])
        else:
            self._role(who, dict(urllib.parse.parse_qsl(body)))

    def _secret(self, who: str, arn: str) -> None:
        kind = "application/x-amz-json-1.1"
        if who != self.account.instance.access_key or not _may("secretsmanager:GetSecretValue", arn):
            self.answer(400, json.dumps({"__type": "AccessDeniedException", "Message": "not for you"}), kind)
        elif not self.account.token:
            said = "Secrets Manager can't find the specified secret value for staging label: AWSCURRENT"
            self.answer(400, json.dumps({"__type": "ResourceNotFoundException", "Message": said}), kind)
        else:
            self.answer(200, json.dumps({"ARN": arn, "SecretString": f"{self.account.token}\n"}), kind)

    def _role(self, who: str, asked: Mapping[str, str]) -> None:
        keys = self.account.assume(who, asked["RoleArn"]) if asked["Action"] == "AssumeRole" else None
        if keys is None:
            denied = "<Error><Type>Sender</Type><Code>AccessDenied</Code><Message>not for you</Message></Error>"
            self.answer(403, f'<ErrorResponse xmlns="{_STS}">{denied}</ErrorResponse>', "text/xml")
            return
        found = (
            f"<AccessKeyId>{keys.access_key}</AccessKeyId><SecretAccessKey>{keys.secret_key}</SecretAccessKey>"
            f"<SessionToken></SessionToken><Expiration>{_later(1)}</Expiration>"  # SeaweedFS knows users, and no sessions
        )
        result = f"<AssumeRoleResult><Credentials>{found}</Credentials></AssumeRoleResult>"
        self.answer(200, f'<AssumeRoleResponse xmlns="{_STS}">{result}</AssumeRoleResponse>', "text/xml")


def _later(hours: int) -> str:
    return f"{datetime.now(UTC) + timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}"
