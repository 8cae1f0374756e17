"""Upgrades and the way back: a spool of format 1 goes on under today's program; what a newer one wrote is left alone.

`fixtures/spool-format-1` was written by the first version of the service (commit bb6db25) in its own simulation, with 0.02
tweets a second, pages of ten and a seal every two seconds: one second of life with S3 there; three hours away; then 3.3
seconds with S3 refusing every PUT, ended in the middle of paging the backlog. Afterwards the lock was removed and the
last 200 bytes of the open file were cut off. So it has one file of each folder, and a page that was paid and lost.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fastavro
import pytest

from ingester.errors import NewerFormat
from ingester.microbatch import Sealed, read_records
from ingester.spool import Spool
from schemas.keys import LakeKeys, MicrobatchName
from tests.ingester.simulation import MemoryStore, SimulatedX, VirtualClock, live, settings, stored_ids

FIXTURE = Path(__file__).parent / "fixtures/spool-format-1"
ENDED_AT = 10_804.3
"""Seconds after the start of the simulation."""
SPOOL_ID = "561e29ca"
SHIPPED, SEALED, TORN = (
    f"2026-11-20T{hour}-{sequence:012d}-{SPOOL_ID}.avro" for hour, sequence in ((12, 1), (15, 2), (15, 3))
)


@pytest.fixture
def world(tmp_path):
    """The settings, clock and X of the fixture, twenty seconds after its end, and S3 with what was shipped."""
    shutil.copytree(FIXTURE, tmp_path / "spool")
    clock = VirtualClock()
    clock.seconds = ENDED_AT + 20
    query = {"name": "one", "rule": "python", "poll_every_seconds": 30, "first_poll_hours": 0, "overlap_seconds": 0}
    configured = settings(tmp_path, query=[query], x={"fields": "lean", "max_results": 10})
    store = MemoryStore()
    shipped = tmp_path / "spool/shipped" / SHIPPED
    store.objects[key(SHIPPED)] = (shipped.read_bytes(), {})
    return configured, clock, SimulatedX(clock, tweets_per_second=0.02), store


def key(name):
    return LakeKeys().microbatch(MicrobatchName.parse(name))


def tree(folder):
    """Every file's bytes, but for the lock that a start leaves."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rewritten(path, *, metadata=None, extra_field=None, records=None):
    """Write the whole records anew with other header metadata, one more optional field, or other records; sidecar too."""
    found = list(read_records(path))
    with path.open("rb") as file:
        reader = fastavro.reader(file)
        kept = {name: value for name, value in reader.metadata.items() if name.startswith("tweetlake.")}
        schema = json.loads(json.dumps(reader.writer_schema))
    if extra_field is not None:
        schema["fields"].append({"name": extra_field, "type": ["null", "string"], "default": None})
    with path.open("wb") as file:
        fastavro.writer(
            file, schema, found if records is None else records(found), "zstandard", metadata=kept | (metadata or {})
        )
    sidecar = path.with_name(f"{path.name}.json")
    if sidecar.exists():
        described = json.loads(sidecar.read_text()) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        sidecar.write_text(json.dumps(described))


def refused(sentence):
    return pytest.RaisesGroup(pytest.RaisesExc(NewerFormat, match=sentence), flatten_subgroups=True)


def newer_checkpoint(path):
    with path.open("rb") as file:
        found = json.loads(fastavro.reader(file).metadata["tweetlake.checkpoint"])
    return {"tweetlake.checkpoint": json.dumps(found | {"format": 2})}


async def test_todays_program_goes_on_with_a_spool_of_format_1_and_loses_and_pays_nothing_twice(world):
    configured, clock, x, store = world
    sealed = (configured.spool.directory / "sealed" / SEALED).read_bytes()
    run = await live(configured, clock, x, store, seconds=120)
    names = [str(name) for name in store.microbatches()]
    assert names[:3] == [SHIPPED, SEALED, TORN], "old files keep their names"
    assert store.objects[key(SEALED)][0] == sealed, "and their bytes"
    assert [name.sequence for name in store.microbatches()] == list(range(1, len(names) + 1))
    assert {name.spool_id for name in store.microbatches()} == {SPOOL_ID}
    state = run.service._work.journal.state.queries["one"]
    assert not state.todo
    ids = stored_ids(store.records())
    assert sorted(ids) == x.existing(state.start_id, state.frontier_id)
    assert run.service._work.journal.state.money.day.posts == len(ids)


async def test_what_was_whole_in_the_torn_file_is_salvaged_and_not_asked_again(world):
    configured, clock, x, store = world
    whole = [record["oldest_id"] for record in read_records(configured.spool.directory / "open" / TORN)]
    assert len(whole) >= 2
    await live(configured, clock, x, store, seconds=120)
    salvaged = list(fastavro.reader(io.BytesIO(store.objects[key(TORN)][0])))
    assert [record["oldest_id"] for record in salvaged] == whole
    assert not set(stored_ids(salvaged)) & set(x.served)


@pytest.mark.parametrize(
    "metadata", [lambda _path: {"tweetlake.format": "2"}, newer_checkpoint], ids=["records", "checkpoint"]
)
@pytest.mark.parametrize("file", [f"open/{TORN}", f"sealed/{SEALED}"])
async def test_a_start_on_what_a_newer_program_wrote_is_refused_and_touches_nothing(world, file, metadata):
    configured, clock, x, store = world
    path = configured.spool.directory / file
    if file.startswith("sealed/"):
        (configured.spool.directory / "open" / TORN).unlink()
    rewritten(path, metadata=metadata(path))
    before, shipped = tree(configured.spool.directory), dict(store.objects)
    with refused(r"format 2, this one knows 1.*start that one again"):
        await live(configured, clock, x, store, seconds=120)
    assert tree(configured.spool.directory) == before
    assert [store.objects[key(str(name))] for name in store.microbatches()] == list(shipped.values())
    assert x.requests == []


async def test_a_sidecar_that_a_newer_program_wrote_its_own_way_does_not_hide_its_format(world):
    configured, clock, x, store = world
    (configured.spool.directory / "open" / TORN).unlink()
    path = configured.spool.directory / "sealed" / SEALED
    rewritten(path, metadata={"tweetlake.format": "2"})
    path.with_name(f"{path.name}.json").write_text('{"v": 2}')
    with refused("format 2"):
        await live(configured, clock, x, store, seconds=120)


async def test_a_start_from_s3_alone_on_what_a_newer_program_wrote_is_refused(world, tmp_path):
    configured, clock, x, store = world
    path = configured.spool.directory / "sealed" / SEALED
    rewritten(path, metadata={"tweetlake.format": "2"})
    store.objects[key(SEALED)] = (path.read_bytes(), {})
    shutil.rmtree(configured.spool.directory)
    with refused(SEALED):
        await live(configured, clock, x, store, seconds=120)
    assert x.requests == []


async def test_moved_out_of_the_way_by_hand_it_is_passed_over_and_its_number_is_not_given_again(world):
    configured, clock, x, store = world
    spool = configured.spool.directory
    (spool / "open" / TORN).unlink()
    rewritten(spool / "sealed" / SEALED, metadata={"tweetlake.format": "2"})
    (spool / "quarantine").mkdir(exist_ok=True)
    for name in (SEALED, f"{SEALED}.json"):
        (spool / "sealed" / name).rename(spool / "quarantine" / name)
    run = await live(configured, clock, x, store, seconds=120)
    state = run.service._work.journal.state.queries["one"]
    assert sorted(stored_ids(store.records())) == x.existing(state.start_id, state.frontier_id)
    assert [name.sequence for name in store.microbatches()][:2] == [1, 3]


def test_the_process_says_so_and_exits_78_so_that_nothing_restarts_it_in_vain(tmp_path):
    shutil.copytree(FIXTURE, tmp_path / "spool")
    (tmp_path / "spool/open" / TORN).unlink()
    rewritten(tmp_path / "spool/sealed" / SEALED, metadata={"tweetlake.format": "2"})
    config = tmp_path / "tweetlake.toml"
    config.write_text(
        f'[lake]\nbucket = "lake"\nendpoint_url = "http://127.0.0.1:9"\n[[query]]\nname = "one"\nrule = "python"\n'
        f'[spool]\ndirectory = "{tmp_path}/spool"\n[health]\nport = 0\n[x]\nbase_url = "http://127.0.0.1:9"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "ingester", "run", "--config", str(config)], capture_output=True, text=True, check=False,
        timeout=60, env=os.environ | {"X_BEARER_TOKEN": "t", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
    )  # fmt: skip
    assert done.returncode == 78, done.stderr
    assert "written by a newer tweetlake" in done.stderr


def test_unknown_kinds_and_unknown_optional_fields_change_nothing_and_survive_being_sealed(tmp_path):
    states = []
    for newer in (False, True):
        shutil.copytree(FIXTURE, tmp_path / f"{newer}")
        path = tmp_path / f"{newer}/open" / TORN
        whole = list(read_records(path))
        if newer:
            rewritten(path, extra_field="mood", records=with_moods)
        spool = Spool(tmp_path / f"{newer}")
        spool.acquire()
        (salvaged,) = spool.recover()
        records = list(read_records(spool.sealed_file(salvaged.sealed.name)))
        states.append(spool.newest(lambda *what: pytest.fail(str(what))).state)
        spool.release()
    assert states[0] == states[1]
    assert records == list(with_moods(whole)), "the old program dropped nothing of the newer one's"


def with_moods(records):
    for record in records:
        yield {**record, "mood": "good"}
        yield dict.fromkeys(record) | {"kind": "from the future", "at": record["at"], "intervals": [], "mood": "bad"}


def test_a_sidecar_with_more_in_it_is_read_as_far_as_it_is_known():
    text = (FIXTURE / "sealed" / f"{SEALED}.json").read_text()
    assert Sealed.from_json(json.dumps(json.loads(text) | {"mood": "good"})) == Sealed.from_json(text)
