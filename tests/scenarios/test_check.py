"""`tweetlake check` against a real S3 server and X over HTTP: all good, a right missing, a running service beside it."""

import json
import re
import subprocess
import sys

import pytest

from sandbox.s3_faults import S3Fault, running_s3_proxy

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]


def check(place, *options, environment=None):
    command = [sys.executable, "-m", "ingester", "check", "--config", str(place.config), *options]
    return subprocess.run(
        command, env=environment or place.environment, capture_output=True, text=True, timeout=60, check=False
    )


def told(done):
    """The findings by subject, those of S3 without the bucket's name."""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {re.sub(r"^s3 \S+ ", "", each["subject"]): each for each in found}


def keys(place):
    listed = place.s3.client().list_objects_v2(Bucket=place.s3.bucket, Prefix=place.prefix)
    return [entry["Key"] for entry in listed.get("Contents", [])]


def test_all_is_good_and_nothing_stays_in_the_lake(place):
    place.spool.mkdir()
    before = keys(place)
    done = check(place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All good." in done.stdout
    for subject in ("spool ", "port ", "x credentials", "clock", "list raw/", "write raw/", "replace control/"):
        assert subject in done.stdout
    assert "checksums are verified" in done.stdout
    assert keys(place) == before
    assert list(place.spool.iterdir()) == []


def test_rights_that_are_missing_are_named(new_place, s3):
    with running_s3_proxy(s3) as proxy:
        place = new_place(seen_s3=proxy.s3)
        proxy.set_faults(S3Fault("denied_403", call="put", key="/raw/"), S3Fault("denied_403", call="delete"))
        done = check(place, "--json")
    found = told(done)
    assert done.returncode == 1
    assert {subject for subject, each in found.items() if each["outcome"] == "bad"} == {"write raw/", "delete control/"}
    assert "grant s3:PutObject" in found["write raw/"]["what"]
    assert "grant s3:DeleteObject" in found["delete control/"]["what"]


def test_wrong_secrets_are_told_without_showing_them(place):
    secrets = {"X_BEARER_TOKEN": "a-wrong-token", "AWS_SECRET_ACCESS_KEY": "a-wrong-key"}
    done = check(place, "--json", environment=place.environment | secrets)
    found = told(done)
    assert done.returncode == 1
    assert found["x credentials"]["outcome"] == "bad"
    assert "401" in found["x credentials"]["what"]
    assert found["list raw/"]["outcome"] == "bad"
    assert not any(secret in done.stdout + done.stderr for secret in secrets.values())


def test_beside_a_running_service(place):
    with place.running() as service:
        service.until(lambda: place.status, 30)
        port = int((place.spool / "http-address").read_text().rsplit(":", 1)[1])
        environment = place.environment | {"TWEETLAKE__HEALTH__PORT": str(port)}
        done = check(place, environment=environment)
    assert done.returncode == 0, done.stdout
    assert "the running service answers there" in done.stdout
