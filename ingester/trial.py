"""What `tweetlake check` tries: everything that the service will need, once, before it is needed. Changes nothing that stays.

Each part is asked for the very thing that the service asks of it later, so what is found holds for the service too, if it
runs as the same user with the same credentials.
"""

import contextlib
import errno
import hashlib
import json
import secrets
import shutil
import socket
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from enum import Enum
from http.client import HTTPException
from pathlib import Path

from ingester.budget import SMALLEST_PAGE
from ingester.disk import write_durably
from ingester.errors import ChecksumRefused, KeyTaken, NeedsOperator, SpoolBroken, Transient
from ingester.model import Answer
from ingester.ports import ObjectStore, Source
from ingester.report import owners_of_caps, smallest_page_microusd, too_small_caps
from ingester.x_time import date_of
from schemas.keys import LakeKeys
from schemas.settings import Health, Settings, Spool

CLOCK_TOLERANCE = 2.0
"""Seconds that this machine's clock may be off without a word: X tells its time in whole ones."""
CLOCK_LIMIT = 900.0
"""Seconds: S3 refuses a request that is signed more than 15 minutes away from its own time (S3's RequestTimeTooSkewed)."""
_GB = 1_000_000_000
_AS_THE_SERVICE = "run it as the user of the service"


class Outcome(Enum):
    """How a trial went."""

    GOOD = "good"
    NOTE = "note"
    """It will do, and a person should know of it."""
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one trial showed."""

    subject: str
    outcome: Outcome
    what: str
    fix: str = ""


# The caps.


def try_caps(settings: Settings) -> Iterator[Finding]:
    """Is there a cap within which nothing can ever be collected, or one that never binds?"""
    least = smallest_page_microusd(settings)
    for name, owner in owners_of_caps(settings).items():
        for cap in too_small_caps(owner, least):
            needed = f"${least / 1e6:g}" if cap.startswith("usd") else f"{SMALLEST_PAGE} posts"
            what = (
                f"is {getattr(owner, cap):g}: less than the smallest page can cost, {needed}, so none is ever asked for"
            )
            fix = f"raise it to {needed} at least"
            fix += ", or ask for less by x.fields and x.expansions" if cap.startswith("usd") else ""
            yield Finding(f"{name}.{cap}", Outcome.BAD, what, fix)
        for unit in ("usd", "posts"):
            day, month = (getattr(owner, f"{unit}_per_{span}", None) for span in ("day", "month"))
            if day is not None and month is not None and day > month:
                what = f"is {day:g}, more than {name}.{unit}_per_month = {month:g}: the month's cap ends it first"
                fix = f"raise {unit}_per_month, or lower {unit}_per_day"
                yield Finding(f"{name}.{unit}_per_day", Outcome.NOTE, what, fix)


# This machine.


def try_spool(settings: Spool) -> Iterator[Finding]:
    """Can a file be made durable in the spool folder, and is there room for what may wait?"""
    folder = settings.directory
    subject = f"spool {folder}"
    try:
        home = next(parent for parent in (folder, *folder.parents) if parent.exists())
    except OSError as error:  # a folder above it that this user may not look into
        yield Finding(subject, Outcome.BAD, f"cannot be looked at: {error.strerror}", _AS_THE_SERVICE)
        return
    if not home.is_dir():
        fix = "name a folder by spool.directory, or move that file away"
        yield Finding(subject, Outcome.BAD, f"{home} is a file, and no folder can be made of it", fix)
        return
    probe = home / f".tweetlake-check-{secrets.token_hex(4)}"
    try:
        write_durably(probe, b"durable\n")
    except (OSError, SpoolBroken) as error:
        fix = f"{_AS_THE_SERVICE}, or give this user the right to write in {home} (spool.directory)"
        yield Finding(subject, Outcome.BAD, f"cannot be written: {error}", fix)
        return
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    made = "" if folder.exists() else "; the folder will be made"
    free = shutil.disk_usage(home).free
    room = f"can be written, {free / _GB:,.1f} GB free{made}"
    if free < settings.min_free_bytes:
        fix = "make room, use another disk (spool.directory), or lower spool.min_free_bytes"
        least = settings.min_free_bytes / _GB
        yield Finding(subject, Outcome.BAD, f"{room}: less than spool.min_free_bytes, {least:,.1f} GB", fix)
    elif free < settings.min_free_bytes + settings.max_bytes:
        most = settings.max_bytes / _GB
        what = f"{room}: collecting would pause before the {most:,.1f} GB of spool.max_bytes wait"
        yield Finding(subject, Outcome.NOTE, what, "a larger disk, or a lower spool.max_bytes")
    else:
        yield Finding(subject, Outcome.GOOD, room)


def try_port(settings: Health, spool_id: str | None = "", token: str | None = None) -> Finding:
    """Can the service listen where it is to answer about itself, or does it do so already? `spool_id` is that of our spool:
    empty when it has none yet, None when this user may not read it.
    """
    subject = f"port {settings.host}:{settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.create_server((settings.host, settings.port), family=family):
            return Finding(subject, Outcome.GOOD, "free" if settings.port else "any free one will be taken")
    except OSError as error:
        if _asked_at(settings, "/livez") is not None:
            return _of_whom(subject, _spool_answering(settings, token), spool_id)
        return Finding(subject, Outcome.BAD, *why_not_listening(settings, error))


def why_not_listening(settings: Health, error: OSError) -> tuple[str, str]:
    """What is wrong with health.host and health.port, and the fix."""
    if error.errno == errno.EADDRINUSE:
        return "is taken by another program", "choose another health.port, or end what listens there"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return "may not be listened on by this user", "choose a health.port from 1024 on"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{settings.host} is no address of this machine", "set health.host to 127.0.0.1, or to one that it has"
    return f"cannot be listened on: {error.strerror or error}", "choose another health.host or health.port"


def _of_whom(subject: str, theirs: str | None, ours: str | None) -> Finding:
    """Whether the service that answers there is the one of these settings: a spool has one service."""
    if theirs is None or ours is None:
        what = "a running service answers there; whether it is the one of these settings could not be told"
        return Finding(
            subject, Outcome.NOTE, what, f"{_AS_THE_SERVICE}; if it is another one's, choose another health.port"
        )
    if theirs == ours:
        return Finding(subject, Outcome.GOOD, "the running service answers there")
    what = f"another service answers there, with the spool {theirs}"
    return Finding(subject, Outcome.BAD, what, "choose another health.port")


def try_reach(settings: Health, *, has_token: bool) -> Finding | None:
    """Who else may ask how the service is? None when nobody but this machine."""
    if not settings.is_open:
        return None
    subject = f"health.host {settings.host}"
    if has_token:
        fix = "see that the way there is encrypted, or bind it to 127.0.0.1 and come by ssh -L"
        return Finding(subject, Outcome.NOTE, "other machines may reach it; the token goes there unencrypted", fix)
    what = "whoever reaches it may read names, rules, figures and error texts: it is not loopback"
    return Finding(subject, Outcome.NOTE, what, "bind it to 127.0.0.1 and come by ssh -L, or set health.token_file")


def _spool_answering(settings: Health, token: str | None) -> str | None:
    """The id of the spool of the service that listens there; None when it does not tell, as with another token."""
    try:
        return str(json.loads(_asked_at(settings, "/status", token) or "")["spool"]["id"])
    except (ValueError, LookupError, TypeError):
        return None


def _asked_at(settings: Health, path: str, token: str | None = None) -> bytes | None:
    """What listens there answers; None when it does not."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        asked = urllib.request.Request(f"http://{host}:{settings.port}{path}", headers=headers)
        with urllib.request.urlopen(asked, timeout=2) as answer:  # noqa: S310 - http, to our own port
            return bytes(answer.read()) if answer.status == 200 else None
    except (OSError, ValueError, HTTPException):
        return None


# X.


async def try_x(source: Source) -> AsyncIterator[Finding]:
    """Does X know these credentials, and what time is it there? By asking for the app's usage, which costs nothing."""
    try:
        answer = await source.usage(1)
    except Transient as error:
        yield Finding("x", Outcome.BAD, f"did not answer: {error}", "look at the network, a proxy, x.base_url")
        return
    yield _credentials(answer)
    yield _clock(answer)


def _credentials(answer: Answer) -> Finding:
    if answer.status == 200:
        return Finding("x credentials", Outcome.GOOD, "accepted")
    if answer.status == 429:
        return Finding("x credentials", Outcome.NOTE, "accepted, and asked too often just now", "nothing: it passes")
    said = " ".join(answer.body[:200].decode("utf-8", "replace").split())
    fixes = {
        401: "X does not know this token: make a new one in X's developer console and put it where the old one was",
        403: "this app may not use the API: attach it to a project or a plan in X's developer console",
        402: "the account has no credits left, or its spending cap is reached: see X's developer console",
    }
    fix = fixes.get(answer.status, "try again in some minutes; if it stays, X's status page tells more")
    return Finding("x credentials", Outcome.BAD, f"X answered {answer.status}: {said}", fix)


def _clock(answer: Answer) -> Finding:
    date = date_of(answer)
    if date is None:
        return Finding("clock", Outcome.NOTE, "X did not tell its time, so it was not compared", "nothing")
    off = (answer.received_at - date).total_seconds() - 0.5
    if abs(off) <= CLOCK_TOLERANCE:
        return Finding("clock", Outcome.GOOD, "agrees with X's")
    fix = "start time synchronisation (chrony or systemd-timesyncd)"
    if abs(off) > CLOCK_LIMIT:
        return Finding("clock", Outcome.BAD, f"{off:+,.0f} s off X's; S3 will refuse what is signed by it", fix)
    what = f"{off:+,.0f} s off X's; windows are planned by X's, so nothing is missed, but times in raw are off"
    return Finding("clock", Outcome.NOTE, what, fix)


# S3.


async def try_s3(store: ObjectStore, keys: LakeKeys, subject: str) -> AsyncIterator[Finding]:
    """Is each call allowed that the service makes? In raw nothing is left behind; in control a small object for a moment."""
    mark = secrets.token_hex(4)
    raw, control = f"{keys.raw}check-{mark}", f"{keys.control}check-{mark}"
    first = await _asked(f"{subject} list raw/", store.list_folders(keys.raw))
    yield first
    if first.outcome is Outcome.BAD and "grant" not in first.what:
        return  # not there, not reached, or not known: the rest would say the same
    yield await _asked(f"{subject} read raw/", store.head(raw))
    yield await _put_into_raw(store, raw, f"{subject} write raw/")
    yield await _asked(f"{subject} list control/", store.list_keys(keys.requests))
    written = await _asked(f"{subject} write control/", store.replace(control, b"{}", etag=None))
    yield written
    yield await _asked(f"{subject} read control/", store.read(control))
    if written.outcome is Outcome.BAD:
        return
    yield await _replaced(store, control, f"{subject} replace control/")
    yield await _asked(f"{subject} delete control/", store.delete(control))


async def _asked(subject: str, call: Awaitable[object]) -> Finding:
    try:
        await call
    except NeedsOperator as error:
        return Finding(subject, Outcome.BAD, str(error), _S3_FIX)
    except Transient as error:
        return Finding(subject, Outcome.BAD, f"S3 did not do it: {error}", "look at the network and lake.endpoint_url")
    return Finding(subject, Outcome.GOOD, "allowed")


_S3_FIX = "mend lake.bucket, lake.endpoint_url, the credentials or their policy"


async def _put_into_raw(store: ObjectStore, key: str, subject: str) -> Finding:
    """With a checksum that is not the content's: S3 looks at rights first, then refuses it, so nothing is left in raw."""
    with tempfile.NamedTemporaryFile() as file:
        wrong = hashlib.sha256(b"not what the file holds").hexdigest()
        try:
            await store.put_new(key, Path(file.name), wrong, {})
        except ChecksumRefused:
            return Finding(subject, Outcome.GOOD, "allowed, and checksums are verified")
        except KeyTaken as error:
            return Finding(
                subject, Outcome.NOTE, f"S3 says the key exists: {error}", "nothing: it is a key of this check"
            )
        except (NeedsOperator, Transient) as error:
            return await _asked(subject, _again(error))
    what = "allowed, but a wrong checksum was accepted: this server does not notice damage on the way"
    try:
        await store.delete(key)
    except (NeedsOperator, Transient):
        what += f"; {key} was left there"
    return Finding(subject, Outcome.NOTE, what, "AWS verifies; a test double need not")


async def _again(error: Exception) -> None:
    raise error


async def _replaced(store: ObjectStore, key: str, subject: str) -> Finding:
    """By If-Match, as the lease is: the current version may be replaced, another one not."""

    async def replace() -> None:
        found = await store.read(key)
        await store.replace(key, b"{ }", etag=found.etag if found else None)

    finding = await _asked(subject, replace())
    if finding.outcome is Outcome.BAD:
        return finding
    try:
        await store.replace(key, b"{  }", etag='"no-such-version"')
    except KeyTaken:
        return Finding(subject, Outcome.GOOD, "allowed, and only the current version")
    except (NeedsOperator, Transient) as error:
        return await _asked(subject, _again(error))
    what = "S3 ignores If-Match: two ingesters would not notice one another"
    return Finding(subject, Outcome.BAD, what, "use S3, or a server with conditional writes")
