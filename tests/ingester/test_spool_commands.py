"""`tweetlake spool ...` as a person meets it: on real folders, against a real S3 server."""

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from ingester.__main__ import main
from ingester.commands.spool import _ship
from ingester.errors import Transient
from ingester.ports import Destination
from ingester.spool import Spool
from sandbox.s3 import running_s3
from sandbox.s3_faults import S3Fault, running_s3_proxy
from schemas.keys import LakeKeys, MicrobatchName, RawHour
from schemas.settings import Lake
from schemas.state import State
from tests.ingester.simulation import MemoryStore, SimulatedX, VirtualClock, live, settings, stored_ids
from tests.ingester.test_uploading import page

HOUR = RawHour(datetime(2026, 11, 20, 13, tzinfo=UTC))
RESCUED = "0123abcd"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_s3(tmp_path_factory.mktemp("s3"), kind="seaweedfs") as s3:
        s3.client().create_bucket(Bucket="another-lake")
        yield s3


@pytest.fixture
def proxy(server):
    with running_s3_proxy(server) as between:
        yield between


@pytest.fixture
def lake(proxy, tmp_path):
    return Lake(bucket=proxy.s3.bucket, endpoint_url=proxy.s3.endpoint_url, prefix=tmp_path.name.replace("_", "-"))


@pytest.fixture
def config(tmp_path, lake, server, monkeypatch):
    for variable, value in server.environment().items():
        monkeypatch.setenv(variable, value)
    file = tmp_path / "tweetlake.toml"
    file.write_text(
        f'[lake]\nbucket = "{lake.bucket}"\nprefix = "{lake.prefix}"\nendpoint_url = "{lake.endpoint_url}"\n'
        f'[[query]]\nname = "python"\nrule = "python"\n[spool]\ndirectory = "{tmp_path}/spool"\n'
    )
    return file


@pytest.fixture
def call(config):
    return lambda *words: CliRunner().invoke(main, ["spool", *map(str, words), "--config", str(config)])


def name(sequence, spool_id=RESCUED):
    return MicrobatchName(sequence, HOUR, spool_id)


def filled(directory, *, spool_id=RESCUED, shipped=1, sealed=2, opened=1, destination=None):
    """A spool with so many microbatches in each folder, by sequence, of two pages each. Released."""
    spool = Spool(directory, destination=destination, new_id=lambda: spool_id)
    spool.acquire()
    for sequence in range(1, shipped + sealed + opened + 1):
        spool.open_microbatch(name(sequence, spool_id), State())
        for index in (0, 1):
            spool.append(page(10 * sequence + index))
        if sequence <= shipped + sealed:
            spool.seal()
        if sequence <= shipped:
            spool.forget(name(sequence, spool_id))
    spool.release()
    return spool


def key(lake, sequence):
    return LakeKeys(lake.prefix).microbatch(name(sequence))


def stored(server, bucket, prefix):
    found = server.client().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return [entry["Key"] for entry in found]


def bytes_of(directory):
    return {path: path.read_bytes() for path in directory.rglob("*.avro*") if path.is_file()}


# list


def test_the_list_has_each_by_sequence_with_its_state_counts_and_what_is_worth_a_note(call, tmp_path):
    elsewhere = Destination("old-lake", "x/", "", "us-east-1")
    spool = filled(tmp_path / "spool", destination=elsewhere, sealed=4)
    spool.set_aside(name(3), "its SHA-256 [is] wrong")
    spool.sealed_file(name(4)).with_name(f"{name(4)}.json").unlink()
    found = call("list")
    assert found.exit_code == 0, found.output
    rows = found.output.splitlines()
    for row, sequence, state, note in (
        (rows[1], 1, "shipped", "for s3://old-lake/x/"),
        (rows[2], 2, "sealed", "for s3://old-lake/x/"),
        (rows[3], 3, "quarantine", "its SHA-256 [is] wrong"),
        (rows[4], 4, "sealed", "sidecar"),
        (rows[6], 6, "open", ""),
    ):
        assert row.startswith(str(name(sequence)))
        assert row.split()[1] == state
        assert note in row
    assert rows[2].split()[3:5] == ["2", "2"]
    assert rows[-1].startswith("3 waiting, 1 in quarantine, ")
    assert rows[-1].endswith(f"spool id {RESCUED}")


def test_an_empty_spool_and_a_missing_one_are_said_to_be_so(call, tmp_path):
    missing = call("list")
    assert (missing.exit_code, "does not exist yet" in missing.output) == (1, True)
    (tmp_path / "spool").mkdir()
    empty = call("list")
    assert (empty.exit_code, "The spool is empty." in empty.output) == (0, True)


# verify


def test_verify_reads_all_and_names_what_is_damaged_and_where(call, tmp_path):
    spool = filled(tmp_path / "spool", sealed=3)
    whole = call("verify")
    assert (whole.exit_code, whole.output.splitlines()[-1]) == (0, "5 microbatches are whole, 0 damaged")
    for path in (spool.file(name(1), "shipped"), spool.file(name(3), "sealed")):
        path.write_bytes(path.read_bytes()[:-9] + b"?" * 9)
    spool.file(name(5), "open").write_bytes(b"?")
    before = bytes_of(tmp_path)
    found = call("verify")
    assert found.exit_code == 1
    for sequence, state in ((1, "shipped"), (3, "sealed"), (5, "open")):
        assert f"damaged: {name(sequence)} ({state}): " in found.output
    assert found.output.splitlines()[-1] == "2 microbatches are whole, 3 damaged"
    assert bytes_of(tmp_path) == before


def test_verify_finds_a_page_that_was_damaged_before_it_was_sealed(call, tmp_path):
    spool = Spool(tmp_path / "spool")
    spool.acquire()
    spool.open_microbatch(name(1), State())
    spool.append(page(1))
    spool.append(page(2) | {"body_sha256": "0" * 64})
    sealed = spool.seal()
    spool.release()
    sidecar = spool.sealed_file(name(1)).with_name(f"{name(1)}.json")
    sidecar.write_text(json.dumps(json.loads(sealed.to_json()) | {"records": 2}))
    assert "1 of its 2 records can be read" in call("verify").output


def test_verify_tells_what_lies_behind_the_last_whole_record_of_the_open_one(call, tmp_path):
    spool = filled(tmp_path / "spool", shipped=0, sealed=0)
    path = spool.file(name(1), "open")
    path.write_bytes(path.read_bytes()[:-100])
    found = call("verify")
    assert found.exit_code == 0
    assert f"open: {name(1)}: 1 whole records, " in found.output
    assert " 0 bytes behind them" not in found.output


# salvage


def test_salvage_seals_what_was_open_and_tells_what_was_lost(call, tmp_path):
    spool = filled(tmp_path / "spool", sealed=0)
    path = spool.file(name(2), "open")
    path.write_bytes(path.read_bytes()[:-100])
    found = call("salvage")
    assert found.exit_code == 0, found.output
    assert f"salvaged: {name(2)}: 1 records (1 pages), the last " in found.output
    assert "were a torn record" in found.output
    assert spool.file(name(2), "sealed").exists()
    assert "Nothing was left open." in call("salvage").output


def test_salvage_tells_of_what_it_cannot_read(call, tmp_path):
    spool = filled(tmp_path / "spool", shipped=0, sealed=0)
    spool.file(name(1), "open").write_bytes(b"no header at all")
    assert "1 could not be read and went to quarantine/" in call("salvage").output


@pytest.mark.parametrize("command", ["salvage", "ship"])
def test_a_spool_in_use_is_left_alone(call, tmp_path, command):
    spool = filled(tmp_path / "spool")
    spool.acquire()
    found = call(command, *([tmp_path / "spool"] if command == "ship" else []))
    spool.release()
    assert found.exit_code == 75
    assert "stop it first" in found.output


# ship


def test_a_rescued_spool_is_shipped_by_sequence_and_kept(call, tmp_path, server, lake, proxy):
    filled(tmp_path / "rescued")
    found = call("ship", tmp_path / "rescued")
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    assert lines[0].startswith(f"salvaged: {name(4)}: 2 records (2 pages), nothing lost")
    assert [line.split(":")[0] for line in lines[1:5]] == ["stored"] * 4
    assert [asked.key for asked in proxy.requests("put")] == [key(lake, sequence) for sequence in (1, 2, 3, 4)]
    assert lines[5] == "4 stored, 0 already there, 0 refused"
    rescued = Spool(tmp_path / "rescued")
    assert (rescued.names("shipped"), rescued.waiting()) == ([name(1)], [name(2), name(3), name(4)])
    body = server.client().get_object(Bucket=lake.bucket, Key=key(lake, 4))["Body"].read()
    assert body == rescued.sealed_file(name(4)).read_bytes()


def test_shipped_again_everything_is_there_already(call, tmp_path):
    filled(tmp_path / "rescued")
    call("ship", tmp_path / "rescued")
    before = bytes_of(tmp_path / "rescued")
    found = call("ship", tmp_path / "rescued")
    assert found.exit_code == 0
    assert found.output.splitlines()[-1] == "0 stored, 4 already there, 0 refused"
    assert bytes_of(tmp_path / "rescued") == before


def test_what_cannot_be_stored_is_refused_with_its_reason_and_the_rest_goes_on(call, tmp_path, server, lake):
    spool = filled(tmp_path / "rescued", sealed=4, opened=0)
    spool.set_aside(name(5), "test")
    server.client().put_object(Bucket=lake.bucket, Key=key(lake, 2), Body=b"somebody else's")
    path = spool.sealed_file(name(3))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = bytes_of(tmp_path / "rescued")
    found = call("ship", tmp_path / "rescued")
    assert found.exit_code == 1
    assert f"refused: {name(2)}: s3 key {key(lake, 2)} holds other content" in found.output
    assert f"refused: {name(3)}: " in found.output
    assert "2 stored, 0 already there, 2 refused" in found.output
    assert "1 in quarantine were left alone" in found.output
    assert bytes_of(tmp_path / "rescued") == before, "nothing is moved or deleted"
    assert server.client().get_object(Bucket=lake.bucket, Key=key(lake, 2))["Body"].read() == b"somebody else's"


def test_each_goes_where_it_belongs(call, tmp_path, server, lake):
    belongs = Destination("another-lake", lake.prefix, lake.endpoint_url, lake.region)
    filled(tmp_path / "rescued", destination=belongs)
    assert call("ship", tmp_path / "rescued").exit_code == 0
    assert len(stored(server, "another-lake", lake.prefix)) == 4
    assert stored(server, lake.bucket, lake.prefix) == []


def test_trouble_at_s3_is_told_and_tried_again(call, tmp_path, proxy):
    filled(tmp_path / "rescued", sealed=0, opened=0)
    proxy.set_faults(S3Fault("slow_down_503", call="put", next_n=2))
    found = call("ship", tmp_path / "rescued")
    assert found.exit_code == 0
    assert found.output.count("trying again in") == 2


@pytest.mark.parametrize("kind", ["denied_403", "no_bucket_404"])
def test_a_refusal_of_s3_ends_it_with_the_reason_and_it_can_be_called_again(call, tmp_path, proxy, kind):
    filled(tmp_path / "rescued")
    proxy.set_faults(S3Fault(kind, call="put", key=str(name(3))))
    found = call("ship", tmp_path / "rescued")
    assert found.exit_code == 1
    assert {"denied_403": "s3:PutObject", "no_bucket_404": "lake.bucket"}[kind] in found.output
    proxy.set_faults()
    assert "2 stored, 2 already there, 0 refused" in call("ship", tmp_path / "rescued").output


def test_after_some_minutes_of_trouble_it_ends_with_the_reason(call, tmp_path, proxy, monkeypatch):
    filled(tmp_path / "rescued")
    monkeypatch.setattr("ingester.commands.spool.ATTEMPTS", 2)
    proxy.set_faults(S3Fault("error_500", call="put"))
    found = call("ship", tmp_path / "rescued")
    assert found.exit_code == 1
    assert "500 InternalError" in found.output.splitlines()[-1]


def test_a_folder_that_is_no_spool_is_refused_and_left_as_it_is(call, tmp_path):
    (tmp_path / "photos").mkdir()
    found = call("ship", tmp_path / "photos")
    assert found.exit_code == 2
    assert "is no spool" in found.output
    assert list((tmp_path / "photos").iterdir()) == []


def test_what_a_newer_program_left_open_is_refused(call, tmp_path):
    spool = filled(tmp_path / "rescued", shipped=0, sealed=0)
    path = spool.file(name(1), "open")
    path.write_bytes(path.read_bytes().replace(b"tweetlake.format\x021", b"tweetlake.format\x029"))
    before = bytes_of(tmp_path / "rescued")
    found = call("ship", tmp_path / "rescued")
    assert found.exit_code == 78
    assert "written by a newer tweetlake" in found.output
    assert bytes_of(tmp_path / "rescued") == before


def test_as_a_process_it_shows_a_bar_on_a_terminal_and_none_elsewhere(config, tmp_path):
    filled(tmp_path / "spool")
    command = [sys.executable, "-m", "ingester", "spool", "verify", "--config", str(config)]
    plain = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert plain.stderr == ""
    ours, theirs = os.openpty()
    shown = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        check=True,
        timeout=60,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(theirs)
    assert shown.stdout == plain.stdout
    assert b"verifying" in os.read(ours, 100_000)
    os.close(ours)


async def rescue(directory, store):
    """What `ship` does, into the simulated S3."""
    spool = Spool(directory)
    spool.acquire()
    spool.recover()
    outcomes = await _ship(spool, store.of, Destination.of(settings(directory).lake))
    spool.release()
    return outcomes


@pytest.mark.parametrize("first", ["rescue", "next machine"])
async def test_a_lost_machine_is_replaced_and_what_it_had_not_shipped_is_rescued(tmp_path, first):
    clock, store = VirtualClock(), MemoryStore()
    x = SimulatedX(clock)
    lost, new = settings(tmp_path / "lost"), settings(tmp_path / "new")
    await live(lost, clock, x, store, seconds=100)
    store.faults.append(lambda verb, _key: Transient("503") if verb == "put" and clock.seconds < 400 else None)
    await live(lost, clock, x, store, seconds=200, crash=True)
    clock.seconds = 500
    if first == "next machine":
        await live(new, clock, x, store, seconds=300)
    outcomes = await rescue(lost.spool.directory, store)
    assert outcomes[0] == "already there", "the one that was shipped"
    assert outcomes.count("stored") == len(outcomes) - 1 >= 3
    run = await live(new, clock, x, store, seconds=300)
    state = run.service._work.journal.state.queries["one"]
    assert sorted(set(stored_ids(store.records()))) == x.existing(state.start_id, state.frontier_id)
    times = Counter(x.served)
    if first == "rescue":
        assert max(times.values()) == 1, "nothing was paid twice"
    else:
        assert max(times.values()) == 2, "the stretch that was lost, and that once"
        assert all(name.spool_id == run.spool.spool_id for name in run.spool.names("shipped"))


# retire


def test_a_retired_spool_has_an_object_that_says_so_and_is_made_once(call, server, lake):
    found = call("retire", "9f86d081")
    assert found.exit_code == 0, found.output
    assert "9f86d081 is retired" in found.output
    at = LakeKeys(lake.prefix).retired("9f86d081")
    content = server.client().get_object(Bucket=lake.bucket, Key=at)["Body"].read()
    assert json.loads(content)["spool_id"] == "9f86d081"
    assert datetime.fromisoformat(json.loads(content)["retired_at"]).tzinfo is not None
    again = call("retire", "9f86d081")
    assert (again.exit_code, "was retired before" in again.output) == (0, True)
    assert server.client().get_object(Bucket=lake.bucket, Key=at)["Body"].read() == content


@pytest.mark.parametrize("wrong", ["9f86d08", "9F86D081", "9f86d081.avro", "../../../x"])
def test_what_is_no_spool_id_is_refused(call, server, lake, wrong):
    found = call("retire", wrong)
    assert found.exit_code == 2
    assert "eight of 0-9 and a-f" in found.output
    assert stored(server, lake.bucket, lake.prefix) == []


def test_the_spool_of_this_machine_is_not_retired(call, tmp_path, server, lake):
    filled(tmp_path / "spool", spool_id="9f86d081")
    found = call("retire", "9f86d081")
    assert found.exit_code == 2
    assert "is the spool of this machine" in found.output
    assert stored(server, lake.bucket, lake.prefix) == []


@pytest.mark.parametrize("command", ["list", "verify", "salvage", "ship", "retire"])
def test_every_command_explains_itself_with_an_example(command):
    found = CliRunner().invoke(main, ["spool", command, "--help"])
    assert found.exit_code == 0
    assert "Example" in found.output
    assert f"tweetlake spool {command}" in found.output
