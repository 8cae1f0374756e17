"""The spool on a real disk: what append returned for survives torn tails and flipped bits; nothing else is believed."""

import errno
import hashlib
import io
import json
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ingester import microbatch
from ingester.errors import SpoolBroken, SpoolDamaged, SpoolFull, SpoolLocked
from ingester.microbatch import check_whole, hash_file, read_records
from ingester.spool import FOLDERS, Spool
from schemas.keys import MicrobatchName, RawHour
from schemas.state import State, fold

AT = datetime(2026, 11, 20, 13, 5, tzinfo=UTC)


def name(sequence=1, spool_id="0123abcd"):
    return MicrobatchName(sequence, RawHour.of(AT), spool_id)


def page(index, size=500):
    body = bytes(random.Random(index).choices(range(256), k=size))
    return {
        "kind": "page", "at": AT, "query": "q", "rule": "r", "reason": "live", "since_id": 10, "until_id": 10**9,
        "asked_below": 10**9 - index * 100, "oldest_id": 10**9 - (index + 1) * 100, "newest_id": 10**9 - index * 100 - 1,
        "is_last": False, "page_index": index, "body": body, "body_sha256": hashlib.sha256(body).hexdigest(),
    }  # fmt: skip


@pytest.fixture
def spool(tmp_path):
    made = Spool(tmp_path / "spool")
    made.acquire()
    yield made
    made.release()


def reopen(spool):
    spool.release()
    again = Spool(spool._directory)
    again.acquire()
    return again


@pytest.mark.parametrize("codec", ["zstandard", "deflate", "null"])
def test_sealed_holds_what_was_appended_byte_for_byte(tmp_path, codec):
    spool = Spool(tmp_path, codec=codec)
    spool.acquire()
    spool.open_microbatch(name(), State())
    records = [page(index) for index in range(20)]
    for record in records:
        spool.append(record)
    sealed = spool.seal()
    file = spool.sealed_file(sealed.name)
    assert [record["body"] for record in read_records(file)] == [record["body"] for record in records]
    assert (sealed.records, sealed.pages, sealed.bytes) == (20, 20, file.stat().st_size)
    assert (sealed.min_id, sealed.max_id) == (10**9 - 2000, 10**9 - 1)
    assert spool.describe(sealed.name) == sealed
    assert check_whole(file) == sealed
    assert sealed.sha256 == hash_file(file)
    spool.release()


def test_every_name_of_a_folder_is_its_state(spool):
    spool.open_microbatch(name(1), State())
    assert [spool.count(folder) for folder in FOLDERS] == [1, 0, 0, 0]
    spool.append(page(0))
    spool.seal()
    assert [spool.count(folder) for folder in FOLDERS] == [0, 1, 0, 0]
    spool.forget(name(1))
    assert [spool.count(folder) for folder in FOLDERS] == [0, 0, 1, 0]
    for sequence in (2, 3):
        spool.open_microbatch(name(sequence), State())
        spool.append(page(0))
        spool.seal()
    spool.forget(name(2))
    assert spool.names("shipped") == [name(2)], "only the newest is kept"
    spool.set_aside(name(3), "test")
    assert [spool.count(folder) for folder in FOLDERS] == [0, 0, 1, 1]


def torn(tmp_path, cut):
    """A spool whose open file was cut (negative: from the end); returns it and how many records were whole."""
    spool = Spool(tmp_path)
    spool.acquire()
    spool.open_microbatch(name(), State())
    ends = [spool.open_bytes]
    for index in range(6):
        spool.append(page(index))
        ends.append(spool.open_bytes)
    file = spool.file(name(), "open")
    size = int(cut * ends[-1])
    os.truncate(file, size)
    return spool, ends, size


@hypothesis_settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1))
def test_a_file_torn_anywhere_is_salvaged_to_its_last_whole_record(tmp_path_factory, cut):
    spool, ends, size = torn(tmp_path_factory.mktemp("spool"), cut)
    durable = sum(1 for end in ends[1:] if end <= size)
    again = reopen(spool)
    salvaged = again.recover()
    assert again.count("open") == 0
    found = [record["body"] for record in read_records(again.sealed_file(name()))] if again.waiting() else []
    # One more may be whole: a block of which only the end marker is torn. Its SHA-256 says so.
    assert durable <= len(found) <= durable + 1
    assert found == [page(index)["body"] for index in range(len(found))]
    assert [entry.sealed.records for entry in salvaged] == ([len(found)] if found else [])
    if salvaged and len(found) == durable:
        assert salvaged[0].lost_bytes == size - ends[durable]
    again.release()


@hypothesis_settings(max_examples=80, deadline=None)
@given(place=st.floats(0, 0.9999), bit=st.integers(0, 7), codec=st.sampled_from(["zstandard", "null", "deflate"]))
def test_flipped_bits_never_pass_for_data(tmp_path_factory, place, bit, codec):
    spool = Spool(tmp_path_factory.mktemp("spool"), codec=codec)
    spool.acquire()
    spool.open_microbatch(name(), State())
    records = [page(index) for index in range(5)]
    for record in records:
        spool.append(record)
    file = spool.file(name(), "open")
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    file.write_bytes(content)
    again = reopen(spool)
    again.recover()
    bodies = {record["body"] for record in records}
    for waiting in again.waiting():
        for position, record in enumerate(read_records(again.sealed_file(waiting))):
            assert record["body"] in bodies
            assert record["body"] == records[position]["body"], "a damaged record ends what is believed"
    assert again.count("open") == 0
    again.release()


@pytest.mark.parametrize("field", ["kind", "body_sha256", "query"])
def test_a_flipped_bit_in_a_fields_name_sets_the_file_aside_whole(spool, field):
    spool.open_microbatch(name(), State())
    spool.append(page(0))
    file = spool.file(name(), "open")
    content = file.read_bytes()
    wrong = field[:-1] + chr(ord(field[-1]) ^ 1)
    damaged = content.replace(f'"name": "{field}"'.encode(), f'"name": "{wrong}"'.encode())
    assert damaged != content
    file.write_bytes(damaged)
    again = reopen(spool)
    assert again.recover() == []
    assert again.file(name(), "quarantine").read_bytes() == damaged
    assert field in again.reason(name())
    again.release()


def test_a_damaged_sealed_file_is_no_state(spool):
    for sequence in (1, 2):
        spool.open_microbatch(name(sequence), State())
        spool.append(page(sequence))
        spool.seal()
    file = spool.sealed_file(name(2))
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    told = []
    found = spool.newest(lambda *what: told.append(what))
    assert found.name == name(1)
    assert len(told) == 1
    with pytest.raises(SpoolDamaged):
        check_whole(file)


def test_a_file_that_moves_while_the_newest_is_looked_for_is_found_where_it_comes_to_lie(tmp_path):
    moved, go_on = threading.Event(), threading.Event()

    def pause(step):
        if step == "file_moved":  # and its sidecar not yet
            moved.set()
            assert go_on.wait(10)

    spool = Spool(tmp_path, on_step=pause)
    spool.acquire()
    spool.open_microbatch(name(), State())
    spool.append(page(0))
    spool.seal()
    told = []
    with ThreadPoolExecutor(2) as threads:
        threads.submit(spool.forget, name())
        assert moved.wait(10)
        newest = threads.submit(spool.newest, lambda *what: told.append(what))
        looked = threading.Timer(0.05, go_on.set)
        looked.start()
        assert newest.result(10).name == name()
    assert told == []
    spool.release()


def test_the_state_of_a_file_is_its_checkpoint_and_its_records(spool):
    first = fold(State(), [page(0)])
    spool.open_microbatch(name(1), first)
    spool.append(page(1))
    spool.append(page(2))
    spool.seal()
    assert spool.newest(lambda *_: None).state == fold(State(), [page(0), page(1), page(2)])


def test_no_room_while_writing_leaves_a_whole_file_and_the_next_try_succeeds(spool, monkeypatch):
    spool.open_microbatch(name(), State())
    spool.append(page(0))
    real, calls = os.write, []

    def full(descriptor, data):
        calls.append(1)
        if len(calls) == 1:
            return real(descriptor, bytes(data[:100]))
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(microbatch.os, "write", full)
    with pytest.raises(SpoolFull):
        spool.append(page(1))
    spool.append(page(1))
    sealed = spool.seal()
    assert [r["page_index"] for r in read_records(spool.sealed_file(sealed.name))] == [0, 1]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("failing", range(1, 8))
def test_an_fsync_that_fails_ends_the_process_and_is_never_asked_for_again(spool, monkeypatch, failing, number):
    """In their order: the header, its folder, a record; sealing: the file, the sidecar, its folder, the folder again."""
    asked = []

    def broken(descriptor):
        asked.append(descriptor)
        if len(asked) == failing:
            raise OSError(number, "it may have dropped what it could not write")

    monkeypatch.setattr(os, "fdatasync", broken)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(SpoolBroken, match="fsync"):  # also for ENOSPC: what was written is unknown all the same
        open_append_seal(spool)
    assert len(asked) == failing


def open_append_seal(spool):
    spool.open_microbatch(name(), State())
    spool.append(page(0))
    spool.seal()


@pytest.mark.parametrize("failing", range(1, 8))
def test_after_a_failed_fsync_the_next_start_has_all_that_append_returned_for(spool, monkeypatch, failing):
    asked = []

    def broken(descriptor):
        asked.append(descriptor)
        if len(asked) == failing:
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(SpoolBroken):
        patch.setattr(os, "fdatasync", broken)
        patch.setattr(os, "fsync", broken)
        open_append_seal(spool)
    again = reopen(spool)
    again.recover()
    found = [r["page_index"] for waiting in again.waiting() for r in read_records(again.sealed_file(waiting))]
    assert found == ([0] if failing > 2 else [])
    again.release()


@pytest.mark.parametrize("step", ["write_sealed", "write_durably", "fsync_folder"])
def test_no_room_while_sealing_leaves_it_open_and_nothing_beside_it(spool, monkeypatch, step):
    spool.open_microbatch(name(), State())
    spool.append(page(0))

    def full(*_what):
        raise OSError(errno.ENOSPC, "No space left on device")

    for _ in range(3):
        with monkeypatch.context() as patch, pytest.raises(SpoolFull):
            patch.setattr(f"ingester.spool.{step}", full)
            spool.seal()
    assert spool.open_name == name()
    assert not list((spool._directory / "sealed").glob(".*"))
    spool.append(page(1))
    sealed = spool.seal()
    assert [r["page_index"] for r in read_records(spool.sealed_file(sealed.name))] == [0, 1]
    assert spool.describe(sealed.name) == sealed
    assert check_whole(spool.sealed_file(sealed.name)) == sealed


def test_no_room_for_a_header_leaves_no_file_and_the_name_free(spool, monkeypatch):
    def full(_descriptor, _data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SpoolFull):
        patch.setattr(os, "write", full)
        spool.open_microbatch(name(), State())
    assert spool.all_names() == []
    open_append_seal(spool)
    assert spool.waiting() == [name()]


def test_two_processes_cannot_have_one_spool(spool):
    second = Spool(spool._directory)
    with pytest.raises(SpoolLocked, match="stop it first"):
        second.acquire()


def test_the_spool_id_is_made_once(spool):
    again = reopen(spool)
    assert again.spool_id == spool.spool_id
    assert len(again.spool_id) == 8


def test_however_many_wait_the_folder_is_listed_once_and_never_read_as_a_whole(spool, monkeypatch):
    spool.open_microbatch(name(1), State())
    spool.append(page(0))
    sealed = spool.seal()
    file, described = spool.sealed_file(name(1)), json.loads(sealed.to_json())
    for sequence in range(2, 1001):
        copy = spool.sealed_file(name(sequence))
        copy.write_bytes(file.read_bytes())
        copy.with_name(f"{copy.name}.json").write_text(json.dumps(described | {"name": str(name(sequence))}))
    again = reopen(spool)
    looked, opened = [], []
    for module, function, calls in ((os, "scandir", looked), (os, "listdir", looked), (io, "open", opened)):
        watch(monkeypatch, module, function, calls)
    assert again.recover() == []
    assert again.newest(lambda *_: None).name == name(1000)
    assert 0 < len(opened) < 10, "of the waiting files only the newest was read"
    for waiting in again.waiting():
        again.describe(waiting)
        again.forget(waiting)
        again.used_bytes()
        assert again.count("sealed") == 1000 - waiting.sequence
    assert len([path for path in looked if str(path).endswith("sealed")]) <= 2
    again.release()


def watch(monkeypatch, module, function, calls):
    real = getattr(module, function)

    def watched(path, *more, **named):
        calls.append(path)
        return real(path, *more, **named)

    monkeypatch.setattr(module, function, watched)


def test_what_is_known_of_the_waiting_files_is_what_lies_in_the_folders(spool):
    for sequence in (1, 2, 3):
        spool.open_microbatch(name(sequence), State())
        spool.append(page(sequence))
        spool.used_bytes()
        spool.seal()
    spool.forget(name(1))
    spool.set_aside(name(2), "test")
    assert spool.waiting() == [name(3)] == spool.names("sealed")
    assert [spool.is_waiting(name(sequence)) for sequence in (1, 2, 3)] == [False, False, True]
    on_disk = sum(path.stat().st_size for folder in FOLDERS for path in (spool._directory / folder).iterdir())
    assert spool.used_bytes() == on_disk
