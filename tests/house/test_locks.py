"""The locks: every part installs alone, by hash, and the ingester brings neither Arrow nor Airflow."""

import re

import pytest

from tests.house.checkout import ROOT


def locked(name):
    text = (ROOT / f"requirements/{name}.lock").read_text("utf-8")
    return set(re.findall(r"^([a-z0-9._-]+)==", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("name", "needs", "must_not"),
    [
        ("ingester", {"tweepy", "aiohttp", "fastavro", "boto3"}, {"pyarrow", "pandas", "deltalake", "apache-airflow"}),
        ("compaction", {"pyarrow", "pandas", "deltalake", "boto3"}, {"tweepy", "aiohttp", "apache-airflow"}),
        ("airflow", {"apache-airflow", "pyarrow", "deltalake"}, {"tweepy", "moto"}),
        ("dev", {"apache-airflow", "tweepy", "moto", "pytest", "uv"}, set()),
        ("bootstrap", {"uv"}, set()),
    ],
)
def test_a_part_brings_what_it_needs_and_no_more(name, needs, must_not):
    assert needs <= locked(name)
    assert not locked(name) & must_not


@pytest.mark.parametrize("file", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda file: file.name)
def test_a_lock_names_version_and_hash_and_no_address(file):
    text = file.read_text("utf-8")
    assert "://" not in text
    assert text.count("--hash=sha256:") >= len(locked(file.stem)) > 0
