"""The bucket as compaction sees it: raw microbatches listed and read, files put, and the same credentials for delta-rs."""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, NoCredentialsError  # noqa: A004 - botocore's name
from botocore.loaders import create_loader
from urllib3.exceptions import HTTPError

from compaction_dags.compaction.errors import LakeRefusedError, LakeUnreachableError
from schemas.keys import LakeKeys, RawHour
from schemas.settings import Lake as LakeSettings

_REFUSALS = frozenset({400, 401, 403, 404})
_TAKEN = 412
_PASSING = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout"})
"""Codes that come with a 400 and yet say nothing but that the line was bad."""
_PIECE = 1 << 20
_LOADER = create_loader()
"""What botocore knows of AWS, read once: each session would read it anew, which is most of the time a client takes."""


@dataclass(frozen=True, slots=True, order=True)
class RawObject:
    """A raw microbatch as S3 lists it."""

    key: str
    size: int
    """Bytes."""
    etag: str
    """Without quotes; changes with the content."""

    @property
    def identity(self) -> tuple[str, int]:
        """What is compared with what was consumed: raw objects are create-only, so key and size say enough."""
        return (self.key, self.size)


@dataclass(frozen=True, slots=True)
class RawContent:
    """A raw microbatch's bytes and what its writer said of them."""

    data: bytes
    sha256: str | None
    records: int | None


class Lake:
    """Everything compaction asks of S3. Retries are botocore's own (standard mode): a GET or an immutable PUT may repeat.

    Every method raises LakeUnreachableError (trying later may help) or LakeRefusedError (a person has to mend it).
    """

    def __init__(self, settings: LakeSettings) -> None:
        self.settings = settings
        self.keys = LakeKeys(settings.prefix)
        self._session = _session()
        self._client = self._session.client(
            "s3",
            region_name=settings.region,
            endpoint_url=settings.endpoint_url or None,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": 5},
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=16,
                s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
            ),
        )

    def days(self) -> list[date]:
        """Every UTC day that has raw, oldest first."""
        prefix = f"{self.keys.raw}date="
        found = [
            entry["Prefix"].removeprefix(prefix).rstrip("/")
            for page in self._pages(prefix, delimiter="/")
            for entry in page.get("CommonPrefixes", [])
        ]
        return sorted(day for text in found if (day := _day(text)) is not None)

    def raw_of_day(self, day: date) -> dict[RawHour, list[RawObject]]:
        """The microbatches of a UTC day by raw hour, in the order of their keys. Other objects are passed over."""
        hours: dict[RawHour, list[RawObject]] = {}
        for found in self._listing(self.keys.raw_date(day)):
            hour = self._hour_of(found.key)
            if hour is not None:
                hours.setdefault(hour, []).append(found)
        return hours

    def raw_of_hour(self, hour: RawHour) -> list[RawObject]:
        """The microbatches of one raw hour, in the order of their keys, which is their sequence within a spool."""
        return [found for found in self._listing(self.keys.raw_hour(hour)) if self._hour_of(found.key) == hour]

    def raw_after(self, hour: RawHour) -> Iterator[RawObject]:
        """The microbatches of all later raw hours, as far as one reads on."""
        for found in self._listing(self.keys.raw, after=f"{self.keys.raw_hour(hour)}~"):
            if (later := self._hour_of(found.key)) is not None and later > hour:
                yield found

    def retired_spools(self) -> frozenset[str]:
        """The spools that never write again."""
        prefix = self.keys.all_retired
        return frozenset(found.key.removeprefix(prefix).removesuffix(".json") for found in self._listing(prefix))

    def get(self, found: RawObject) -> RawContent:
        """Read a raw microbatch whole (a sealed file, some 16 MB at most by default)."""
        with self._errors(found.key):
            answer = self._client.get_object(Bucket=self.settings.bucket, Key=found.key)
            data = answer["Body"].read()
        metadata = answer["Metadata"]
        records = metadata.get("records", "")
        return RawContent(data, metadata.get("sha256"), int(records) if records.isdigit() else None)

    def read(self, key: str) -> bytes:
        """A small object, whole."""
        with self._errors(key):
            content: bytes = self._client.get_object(Bucket=self.settings.bucket, Key=key)["Body"].read()
        return content

    def read_if_there(self, key: str) -> bytes | None:
        """The same, or None if there is no such object."""
        with self._errors(key):
            try:
                content: bytes = self._client.get_object(Bucket=self.settings.bucket, Key=key)["Body"].read()
            except self._client.exceptions.NoSuchKey:
                return None
        return content

    def open(self, key: str, size: int) -> io.RawIOBase:
        """An object of so many bytes as a file, of which every read is a request."""
        return _Remote(lambda start, end: self._range(key, start, end), size)

    def _range(self, key: str, start: int, end: int) -> bytes:
        with self._errors(key):
            answer = self._client.get_object(Bucket=self.settings.bucket, Key=key, Range=f"bytes={start}-{end - 1}")
            content: bytes = answer["Body"].read()
        return content

    def get_file(self, key: str, file: Path) -> None:
        """Copy an object to a local file."""
        with self._errors(key), file.open("wb") as copy:
            body = self._client.get_object(Bucket=self.settings.bucket, Key=key)["Body"]
            for piece in body.iter_chunks(_PIECE):
                copy.write(piece)

    def put_file(self, key: str, file: Path) -> None:
        """Store a local file under a key that was never used, so that storing it twice is the same."""
        with self._errors(key), file.open("rb") as content:
            self._client.put_object(Bucket=self.settings.bucket, Key=key, Body=content)

    def sizes(self, below: str) -> dict[str, int]:
        """Every object whose key begins so, with its bytes."""
        return {found.key: found.size for found in self._listing(below)}

    def put_new(self, key: str, content: bytes) -> bool:
        """Store a small object unless there is one of that key. Returns whether it was stored, as far as is known."""
        with self._errors(key):
            try:
                self._client.put_object(Bucket=self.settings.bucket, Key=key, Body=content, IfNoneMatch="*")
            except ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != _TAKEN:
                    raise
                return False
        return True

    def uri(self, key: str) -> str:
        return f"s3://{self.settings.bucket}/{key}"

    def delta_options(self) -> dict[str, str]:
        """What delta-rs needs to reach the same bucket with the same credentials, resolved anew at every call."""
        options = {
            "AWS_REGION": self.settings.region,
            "aws_conditional_put": "etag",  # S3's own put-if-absent makes a commit atomic; no lock table
            "timeout": "60s",
            "retry_timeout": "60s",
        }
        if self.settings.endpoint_url:
            options |= {
                "AWS_ENDPOINT_URL": self.settings.endpoint_url,
                "AWS_ALLOW_HTTP": str(self.settings.endpoint_url.startswith("http://")).lower(),
                "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
            }
        credentials = self._session.get_credentials()
        if credentials is None or (frozen := credentials.get_frozen_credentials()).access_key is None:
            raise LakeRefusedError("no AWS credentials were found (environment, profile or instance role)")
        options["AWS_ACCESS_KEY_ID"] = str(frozen.access_key)
        options["AWS_SECRET_ACCESS_KEY"] = str(frozen.secret_key)
        if frozen.token:
            options["AWS_SESSION_TOKEN"] = frozen.token
        return options

    def _listing(self, prefix: str, after: str = "") -> Iterator[RawObject]:
        for page in self._pages(prefix, after=after):
            for entry in page.get("Contents", []):
                yield RawObject(entry["Key"], entry["Size"], entry["ETag"].strip('"'))

    def _pages(self, prefix: str, delimiter: str = "", after: str = "") -> Iterator[Any]:
        """The pages of a listing. boto3 takes whatever is XML for an empty one, such as an HTML page with status 200."""
        with self._errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.settings.bucket, Prefix=prefix, Delimiter=delimiter, StartAfter=after
            )
            for page in pages:
                if "IsTruncated" not in page:
                    raise LakeRefusedError(f"{self.uri(prefix)}: what answers there is no S3; mend lake.endpoint_url")
                yield page

    def _hour_of(self, key: str) -> RawHour | None:
        """The raw hour of the folder a microbatch lies in; None for what is no microbatch."""
        parts = key.removeprefix(self.keys.raw).split("/")
        if len(parts) != 3 or not parts[2].endswith(".avro"):  # date=, hour=, name
            return None
        with contextlib.suppress(ValueError):
            hour = RawHour.parse(f"{parts[0].removeprefix('date=')}T{parts[1].removeprefix('hour=')}")
            return hour if key.startswith(self.keys.raw_hour(hour)) else None  # hour=7 is not hour=07
        return None

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        place = self.uri(what)
        try:
            yield
        except NoCredentialsError as error:
            raise LakeRefusedError(
                f"{place}: no AWS credentials were found (environment, profile or instance role)"
            ) from error
        except ClientError as error:
            status: Any = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = error.response.get("Error", {}).get("Code", "")
            if status in _REFUSALS and code not in _PASSING:
                raise LakeRefusedError(f"{place}: S3 refuses: {status} {code}; {_hint(code)}") from error
            raise LakeUnreachableError(f"{place}: S3 answered {status} {code}") from error
        except (ConnectionError, HTTPClientError, HTTPError) as error:  # botocore leaves a cut-off body to urllib3
            raise LakeUnreachableError(f"{place}: {self._no_answer(error)}") from error
        except BotoCoreError as error:
            raise LakeUnreachableError(f"{place}: {error}") from error

    def _no_answer(self, error: Exception) -> str:
        """In words; botocore tells the whole address, with what was asked."""
        kind = type(error).__name__
        if address := self.settings.endpoint_url:
            return f"S3 at {address} does not answer ({kind}); see that it runs there, or mend lake.endpoint_url"
        return f"S3 in {self.settings.region} does not answer ({kind}); see that this machine reaches it"


class _Remote(io.RawIOBase):
    """Bytes that are fetched as they are read."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch = fetch
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._position + size, self._size)
        content = self._fetch(self._position, end) if self._position < end else b""
        self._position += len(content)
        return content


def _session() -> boto3.Session:
    """Credentials are its own: the default session of boto3 keeps the first that it found."""
    session = botocore.session.get_session()
    session.register_component("data_loader", _LOADER)
    return boto3.Session(botocore_session=session)


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _hint(code: str) -> str:
    hints = {
        "NoSuchBucket": "create lake.bucket or mend its name",
        "AccessDenied": "grant ListBucket, GetObject on raw/ and control/, PutObject, GetObject and DeleteObject on curated/",
        "InvalidAccessKeyId": "this access key is not known there",
        "SignatureDoesNotMatch": "the secret key is wrong, or the clock is off",
        "ExpiredToken": "renew the credentials",
    }
    return hints.get(code, "its code says why")
