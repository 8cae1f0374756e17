"""One suite over every object store: SeaweedFS and moto through the real adapter, and the double of the simulation."""

import asyncio
import hashlib

import pytest

from ingester.errors import ChecksumRefused, KeyTaken, NeedsOperator
from ingester.s3 import S3
from sandbox.s3 import running_s3
from schemas.settings import Lake
from tests.ingester.simulation import MemoryStore

KINDS = ("seaweedfs", "moto")


@pytest.fixture(scope="module", params=KINDS)
def server(request, tmp_path_factory):
    with running_s3(tmp_path_factory.mktemp("s3"), kind=request.param) as s3:
        yield s3


@pytest.fixture
def lake(server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    return Lake(bucket=server.bucket, endpoint_url=server.endpoint_url)


@pytest.fixture
def store(lake):
    return S3(lake)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "microbatch.avro"
    path.write_bytes(b"Obj\x01" + bytes(range(256)) * 100)
    return path


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


async def creates_reads_and_lists(store, file, prefix):
    key = f"{prefix}/raw/date=2026-11-20/hour=13/a.avro"
    assert await store.head(key) is None
    await store.put_new(key, file, sha256(file), {"sha256": sha256(file), "min-id": ""})
    found = await store.head(key)
    assert found.size == file.stat().st_size
    assert found.metadata["sha256"] == sha256(file)
    assert await store.get(key) == file.read_bytes()
    with pytest.raises(KeyTaken):
        await store.put_new(key, file, sha256(file), {})
    other = f"{prefix}/raw/date=2026-11-20/hour=14/b.avro"
    await store.put_new(other, file, sha256(file), {})
    assert await store.list_keys(f"{prefix}/raw/date=2026-11-20/") == [key, other]
    assert await store.list_keys(f"{prefix}/raw/date=2026-11-21/") == []
    next_day = f"{prefix}/raw/date=2026-11-21/"
    await store.put_new(f"{next_day}hour=00/c.avro", file, sha256(file), {})
    assert await store.list_folders(f"{prefix}/raw/") == [f"{prefix}/raw/date=2026-11-20/", next_day]
    assert await store.list_folders(f"{prefix}/nothing/") == []
    with pytest.raises(NeedsOperator):
        await store.get(f"{prefix}/nothing-here")


async def test_a_store_creates_reads_and_lists(store, file, tmp_path):
    await creates_reads_and_lists(store, file, tmp_path.name.replace("_", "-"))


async def test_the_double_behaves_as_the_stores_do(file):
    await creates_reads_and_lists(MemoryStore(), file, "double")


async def changes_only_what_it_has_seen(store, prefix):
    key = f"{prefix}/control/lease"
    assert await store.read(key) is None
    with pytest.raises(KeyTaken):
        await store.replace(key, b"nobody", etag='"0123"')
    first = await store.replace(key, b"one", etag=None)
    with pytest.raises(KeyTaken):
        await store.replace(key, b"two", etag=None)
    found = await store.read(key)
    assert (found.content, found.etag) == (b"one", first)
    second = await store.replace(key, b"three", etag=first)
    assert second != first
    with pytest.raises(KeyTaken):
        await store.replace(key, b"four", etag=first)
    await store.delete(key)
    await store.delete(key)
    assert await store.read(key) is None


async def test_a_store_changes_only_what_its_caller_has_seen(store, tmp_path):
    await changes_only_what_it_has_seen(store, tmp_path.name.replace("_", "-"))


async def test_the_double_changes_only_what_its_caller_has_seen():
    await changes_only_what_it_has_seen(MemoryStore(), "double")


async def test_of_many_who_create_one_key_one_wins(store, file, tmp_path):
    key = f"{tmp_path.name}/race.avro"
    outcomes = await asyncio.gather(
        *(store.put_new(key, file, sha256(file), {}) for _ in range(8)), return_exceptions=True
    )
    assert sum(outcome is None for outcome in outcomes) == 1
    assert all(isinstance(outcome, KeyTaken | None) for outcome in outcomes)


@pytest.mark.parametrize("server", ["seaweedfs"], indirect=True)  # moto stores what it gets, whatever the checksum
async def test_a_wrong_checksum_is_refused(store, file, tmp_path):
    with pytest.raises(ChecksumRefused):
        await store.put_new(f"{tmp_path.name}/wrong.avro", file, "0" * 64, {})
    assert await store.head(f"{tmp_path.name}/wrong.avro") is None


async def test_a_missing_bucket_and_wrong_keys_need_an_operator(lake, server, file, monkeypatch):
    elsewhere = S3(lake.model_copy(update={"bucket": "no-such-bucket"}))
    with pytest.raises(NeedsOperator, match="no-such-bucket"):
        await elsewhere.list_keys("raw/")
    if server.kind == "seaweedfs":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(NeedsOperator, match="403"):
            await S3(lake).list_keys("raw/")
