"""S3 over boto3: one attempt per call, every failure sorted by what the uploader does. The only file that imports boto3.

It does so in the first call, in a thread: that takes half a second, and a start with a state in its spool needs no S3.
"""

import asyncio
import base64
import contextlib
import hashlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ingester.errors import ChecksumRefused, KeyTaken, NeedsOperator, Transient
from ingester.ports import Destination, StoredObject, Versioned
from schemas.settings import Lake

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_T = TypeVar("_T")

_CHECKSUM_ERRORS = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidDigest"})
_TRANSIENT_ERRORS = frozenset(
    {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "InternalError", "ServiceUnavailable", "Throttling"}
)
_CREDENTIAL_ERRORS = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
"""Answered with 400; the others come with 401 or 403."""

CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 60.0
"""Seconds; the second one is between two pieces of an answer."""
THREADS = 16
"""Of its own: calls that hang for a minute in front of a silent S3 must not keep the spool from writing."""


class S3:
    """The ObjectStore that is S3. Credentials come by boto3's usual chain, and are looked for again once S3 refuses them."""

    def __init__(self, lake: Lake | Destination) -> None:
        self._lake = lake
        self._bucket = lake.bucket
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
        self._opening = threading.Lock()
        self._opened: S3Client | None = None

    @property
    def _client(self) -> "S3Client":
        """Opened by the first call; by the next one again when that failed, or when S3 refused the credentials."""
        with self._opening:
            self._opened = self._opened or open_client(self._lake)
            return self._opened

    async def open(self) -> None:
        with contextlib.suppress(Exception):  # the first call tells it better
            await asyncio.get_running_loop().run_in_executor(self._threads, lambda: self._client)

    async def put_new(self, key: str, file: Path, sha256: str, metadata: Mapping[str, str]) -> None:
        def put() -> None:
            with file.open("rb") as body:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=key,
                    Body=body,
                    IfNoneMatch="*",
                    ChecksumSHA256=base64.b64encode(bytes.fromhex(sha256)).decode(),
                    ContentType="application/avro",
                    Metadata=dict(metadata),
                )

        await self._call(put, key, "s3:PutObject")

    async def head(self, key: str) -> StoredObject | None:
        def head() -> StoredObject | None:
            from botocore.exceptions import ClientError

            try:
                found = self._client.head_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise
            return StoredObject(key, found["ContentLength"], found["Metadata"])

        return await self._call(head, key, "s3:GetObject")

    async def get(self, key: str) -> bytes:
        def get() -> bytes:
            return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()

        return await self._call(get, key, "s3:GetObject")

    async def list_keys(self, prefix: str) -> list[str]:
        def list_all() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            return [found["Key"] for page in pages for found in page.get("Contents", [])]

        return await self._call(list_all, prefix, "s3:ListBucket")

    async def list_folders(self, prefix: str) -> list[str]:
        def list_all() -> list[str]:
            paginator = self._client.get_paginator("list_objects_v2")
            pages = paginator.paginate(Bucket=self._bucket, Prefix=prefix, Delimiter="/")
            return [found["Prefix"] for page in pages for found in page.get("CommonPrefixes", [])]

        return await self._call(list_all, prefix, "s3:ListBucket")

    async def read(self, key: str) -> Versioned | None:
        def read() -> Versioned | None:
            from botocore.exceptions import ClientError

            try:
                found = self._client.get_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if _status(error) == 404 and _code(error) != "NoSuchBucket":
                    return None
                raise
            return Versioned(found["Body"].read(), found["ETag"])

        return await self._call(read, key, "s3:GetObject")

    async def replace(self, key: str, content: bytes, *, etag: str | None) -> str:
        def put() -> str:
            checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
            asked: Any = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
            answer = self._client.put_object(
                Bucket=self._bucket, Key=key, Body=content, ChecksumSHA256=checksum, **asked
            )
            return answer["ETag"]

        try:
            return await self._call(put, key, "s3:PutObject")
        except NeedsOperator as error:
            if etag is not None and _status(error.__cause__) == 404:
                raise KeyTaken(f"{key} is gone") from error  # S3 answers 404 to If-Match without an object
            raise
        except ChecksumRefused as error:  # the bytes changed on their way
            raise Transient(str(error)) from error

    async def delete(self, key: str) -> None:
        def delete() -> None:
            self._client.delete_object(Bucket=self._bucket, Key=key)

        await self._call(delete, key, "s3:DeleteObject")

    async def _call(self, call: Callable[[], _T], what: str, right: str) -> _T:
        """One attempt. `right` is what the caller must be allowed to do."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except Exception as error:
            if (meant := _sorted(error, f"s3://{self._bucket}/{what}", right)) is None:
                raise
            if _is_about_credentials(error):
                with self._opening:
                    self._opened = None
            raise meant from error


def open_client(lake: Lake | Destination) -> "S3Client":
    """A client without retries of its own: there is one layer of retries, the uploader's."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        s3={"addressing_style": "path" if lake.endpoint_url else "auto"},
    )
    session = boto3.Session()  # not the default one, which keeps the credentials it found first
    return session.client("s3", region_name=lake.region, endpoint_url=lake.endpoint_url or None, config=config)


def _sorted(error: Exception, what: str, right: str) -> Exception | None:
    """An error of the call as what the caller does about it (S3's list of error codes); None for what is a bug."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
    from urllib3.exceptions import HTTPError  # not wrapped by botocore when an error's body is cut off

    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return NeedsOperator(f"{what}: no AWS credentials were found (environment, profile or instance role)")
    if isinstance(error, BotoCoreError | HTTPError | OSError):
        return Transient(f"{what}: {error}")
    if not isinstance(error, ClientError):
        return None
    code, status = _code(error), _status(error)
    sentence = f"{what}: {status} {code}"
    if status == 412:
        return KeyTaken(sentence)
    if code in _CHECKSUM_ERRORS:
        return ChecksumRefused(sentence)
    if status in {409, 429} or status >= 500 or code in _TRANSIENT_ERRORS:
        return Transient(sentence)
    return NeedsOperator(f"{sentence}: {_hint(code, status, right)}")


def _is_about_credentials(error: Exception) -> bool:
    """Whether new ones may help: a file may hold others by now, a role expires."""
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return True
    return _status(error) in {401, 403} or _code(error) in _CREDENTIAL_ERRORS


def _status(error: BaseException | None) -> int:
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _response(error: BaseException | None) -> Any:
    return getattr(error, "response", None) or {}  # an HTTPClientError has one that is None


def _hint(code: str, status: int, right: str) -> str:
    hints = {
        "NoSuchBucket": "lake.bucket does not exist there; create it or mend the name",
        "ExpiredToken": "the credentials have expired; renew them",
        "InvalidAccessKeyId": "S3 does not know this access key",
        "SignatureDoesNotMatch": "the secret key is not the one of this access key, or the clock is off",
    }
    refused = (
        f"these credentials may not do that; grant {right}"
        if status in {401, 403}
        else "S3 refuses; its answer names why"
    )
    return hints.get(code, refused)
