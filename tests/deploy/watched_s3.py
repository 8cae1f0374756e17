"""A real S3 server with a user for each role of the template, and everything that was asked of it as IAM names it."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from sandbox.beside import in_thread
from sandbox.s3 import RunningS3
from sandbox.s3_faults import S3Proxy
from tests.deploy.template import enforceable, policy


@dataclass(frozen=True)
class Call:
    """One thing that was asked, as a policy speaks of it."""

    access_key: str
    action: str
    resource: str
    context: Mapping[str, str] = field(hash=False)
    """The condition keys that the request has."""
    status: str


class WatchedS3(S3Proxy):
    """Passes everything on, and keeps what was asked."""

    def __init__(self, s3: RunningS3) -> None:
        super().__init__(s3)
        self.calls: list[Call] = []

    async def _carry_out(self, request: web.Request, call: Any, key: str) -> tuple[str, Any]:
        outcome, answer = await super()._carry_out(request, call, key)
        self.calls += _calls(request, outcome, answer.content if answer else b"")
        return outcome, answer

    def of(self, user: RunningS3) -> list[Call]:
        return [call for call in self.calls if call.access_key == user.access_key]


def _calls(request: web.Request, status: str, answer: bytes) -> Iterator[Call]:
    bucket, _, key = request.path.removeprefix("/").partition("/")
    signed_by = re.search(r"Credential=([^/]+)/", request.headers.get("Authorization", ""))
    who = signed_by[1] if signed_by else ""
    arn, context = f"arn:aws:s3:::{bucket}", {}
    if "delete" in request.query:
        for deleted in re.findall(r"<Key>(.*?)</Key>", answer.decode()):
            yield Call(who, "s3:DeleteObject", f"{arn}/{deleted}", context, status)
        return
    if key:
        actions = {
            "GET": "GetObject",
            "HEAD": "GetObject",
            "PUT": "PutObject",
            "POST": "PutObject",
            "DELETE": "DeleteObject",
        }
        action = "AbortMultipartUpload" if request.method == "DELETE" and request.query else actions[request.method]
        context = {
            f"s3:{name}": request.headers[name] for name in ("if-none-match", "if-match") if name in request.headers
        }
        yield Call(who, f"s3:{action}", f"{arn}/{key}", context, status)
    elif request.method == "GET" and "list-type" in request.query:
        if prefix := request.query.get("prefix"):
            context = {"s3:prefix": prefix}
        yield Call(who, "s3:ListBucket", arn, context, status)
    else:
        yield Call(who, f"not known: {request.method} {request.path_qs}", arn, context, status)


@contextlib.contextmanager
def watched(s3: RunningS3) -> Iterator[WatchedS3]:
    proxy = WatchedS3(s3)
    with in_thread(proxy, "the watched S3"):
        yield proxy


def as_role(s3: RunningS3, role: str, prefix: str = "") -> RunningS3:
    """The server as a user sees it who may do what the role may, as far as SeaweedFS can hold him to it."""
    import boto3

    iam = boto3.client(
        "iam", endpoint_url=s3.endpoint_url, region_name=s3.region,
        aws_access_key_id=s3.access_key, aws_secret_access_key=s3.secret_key,
    )  # fmt: skip
    iam.create_user(UserName=role)
    document = json.dumps(enforceable(policy(role, bucket=s3.bucket, prefix=prefix)))
    iam.put_user_policy(UserName=role, PolicyName=role, PolicyDocument=document)
    keys = iam.create_access_key(UserName=role)["AccessKey"]
    return replace(s3, access_key=keys["AccessKeyId"], secret_key=keys["SecretAccessKey"])
