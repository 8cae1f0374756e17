"""Raw microbatches are read over any damage: pages whose hash holds are used, everything else is told."""

import hashlib
import json
import random
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from compaction_dags.compaction.errors import CompactionError, UnknownFormatError
from compaction_dags.compaction.raw_reader import Microbatch, read_microbatch
from schemas.raw import FORMAT, META_FORMAT, load_schema
from tests.compaction.pages import NOON, SPOOL_ID, World, heartbeat, microbatch, page_record, raw_key

KEY = raw_key(7)


def body(number: int) -> bytes:
    return json.dumps({"data": [{"id": str(number), "text": "drop " * 200}], "meta": {"result_count": 1}}).encode()


def records(count: int = 12) -> list[dict[str, Any]]:
    return [page_record(body(number), NOON + timedelta(seconds=number), f"q{number}") for number in range(count)]


def read(data: bytes | Path, **expected: Any) -> tuple[Microbatch, list[bytes]]:
    found = read_microbatch(data, KEY, **expected)
    return found, [page.body for page in found.pages]


def reasons(found: Microbatch) -> Counter[str]:
    return Counter(reject.reason for reject in found.rejects)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("codec", ["zstandard", "deflate", "null"])
@pytest.mark.parametrize("blocks", [True, False])
def test_every_page_comes_back_as_it_went_in(codec: str, blocks: bool, tmp_path: Path) -> None:
    data = microbatch(records(), 7, codec=codec, blocks=blocks)
    path = tmp_path / "microbatch.avro"
    path.write_bytes(data)
    for source in (data, path):
        found, bodies = read(source, expected_sha256=sha256(data).upper(), expected_records=12)
        assert bodies == [body(number) for number in range(12)]
        assert (found.sequence, found.spool_id, found.records, found.bytes) == (7, SPOOL_ID, 12, len(data))
        assert found.sha256 == sha256(data)
        assert not found.rejects


def test_a_page_says_where_and_when_it_comes_from() -> None:
    found = read_microbatch(microbatch([heartbeat(), *records(2)], 7), KEY)
    last = list(found.pages)[-1]
    assert (last.raw_key, last.record_index, last.query) == (KEY, 2, "q1")
    assert last.received_at_us == int((NOON + timedelta(seconds=1)).timestamp()) * 1_000_000


def test_only_search_pages_are_handed_on_and_the_others_are_counted() -> None:
    given = [
        heartbeat(),
        page_record(body(0)),
        page_record(b"{}", endpoint="counts_recent"),
        page_record(body(1), problem="repeats its next_token"),
        page_record(b"busy", status=503),
        {"kind": "gap", "at": NOON, "query": "q", "intervals": []},
    ]
    found, bodies = read(microbatch(given, 7))
    assert bodies == [body(0), body(1)]
    assert found.records == 6
    assert found.skipped == {"heartbeat": 1, "page counts_recent 200": 1, "page search_recent 503": 1, "gap": 1}
    assert not found.rejects


def test_an_empty_microbatch_has_no_pages_and_no_rejects() -> None:
    found, bodies = read(microbatch([], 7), expected_records=0)
    assert (bodies, found.records, found.rejects) == ([], 0, [])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"body_sha256": "0" * 64}, "body_sha256"),
        ({"body_sha256": None}, "body_sha256"),
        ({"body": None}, "no_body"),
    ],
)
def test_a_page_that_is_not_what_was_written_is_rejected_with_its_place(change: dict[str, Any], reason: str) -> None:
    given = records(3)
    given[1] |= change
    found, bodies = read(microbatch(given, 7))
    assert bodies == [body(0), body(2)]
    (reject,) = found.rejects
    assert (reject.reason, reject.raw_key, reject.record_index, reject.query) == (reason, KEY, 1, "q1")
    assert reject.body == given[1]["body"]


def test_a_changed_file_is_told_and_its_good_pages_are_used() -> None:
    found, bodies = read(microbatch(records(), 7), expected_sha256="0" * 64)
    assert len(bodies) == 12
    assert reasons(found) == {"file_sha256": 1}


def test_a_file_cut_between_two_blocks_is_noticed_by_its_count() -> None:
    whole = microbatch(records(), 7)
    (*_, last) = _block_starts(whole)
    found, bodies = read(whole[:last], expected_records=12)
    assert len(bodies) == 11
    assert reasons(found) == {"file_records": 1}


@pytest.mark.parametrize("codec", ["zstandard", "deflate", "null"])
@pytest.mark.parametrize("blocks", [True, False])
def test_of_a_file_cut_anywhere_every_page_in_front_of_the_cut_is_used(codec: str, blocks: bool) -> None:
    whole = microbatch(records(), 7, codec=codec, blocks=blocks)
    header = _block_starts(whole)[0]
    most = 0
    for cut in random.Random(1).sample(range(header + 1, len(whole) - 17), 60):
        found, bodies = read(whole[:cut], expected_sha256=sha256(whole), expected_records=12)
        assert bodies == [body(number) for number in range(len(bodies))]
        assert reasons(found)["file_sha256"] == 1
        assert reasons(found)["file_records"] == (1 if len(bodies) < 12 else 0)
        most = max(most, len(bodies))
        if blocks:
            assert len(bodies) >= sum(start <= cut for start in _block_starts(whole)[1:])
    assert most >= 9 or codec == "zstandard"


@pytest.mark.parametrize("codec", ["zstandard", "deflate", "null"])
@pytest.mark.parametrize("blocks", [True, False])
def test_no_flipped_bit_passes_a_wrong_page_or_goes_unnoticed(codec: str, blocks: bool) -> None:
    whole = microbatch(records(), 7, codec=codec, blocks=blocks)
    good = {body(number) for number in range(12)}
    header = _block_starts(whole)[0]
    chance = random.Random(2)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        found, bodies = read(bytes(damaged), expected_sha256=sha256(whole), expected_records=12)
        assert set(bodies) <= good
        assert reasons(found)["file_sha256"] == 1
        indexes = [reject.record_index for reject in found.rejects if reject.record_index is not None]
        assert len(indexes) == len(set(indexes))
        if blocks and bytes(damaged[:header]) == whole[:header]:
            assert len(bodies) >= 10  # a flipped bit costs its block, or two when it hits the marker between them


def test_a_file_cut_in_front_of_its_last_marker_is_used_whole_and_told() -> None:
    found, bodies = read(microbatch(records(), 7)[:-16], expected_records=12)
    assert len(bodies) == 12
    assert reasons(found) == {"file_damaged": 1}


@pytest.mark.parametrize("codec", ["zstandard", "deflate", "null"])
def test_of_a_damaged_sealed_file_the_pages_in_front_of_the_damage_are_used(codec: str) -> None:
    chance = random.Random(3)
    given = [page_record(chance.randbytes(30_000).hex().encode()) for _ in range(12)]
    whole = bytearray(microbatch(given, 7, codec=codec, blocks=False))
    middle = len(whole) // 2
    whole[middle : middle + 100_000] = b"\xff" * 100_000  # over the head of a block of the codec, which gives up
    found, bodies = read(bytes(whole), expected_records=12)
    assert bodies[:4] == [record["body"] for record in given[:4]]
    assert len(bodies) < 12
    assert found.rejects


def test_damage_in_the_middle_costs_only_its_own_block_and_positions_stay() -> None:
    whole = microbatch(records(), 7, codec="zstandard")
    starts = _block_starts(whole)
    damaged = bytearray(whole)
    damaged[starts[4] + 20 : starts[5] - 16] = bytes(starts[5] - starts[4] - 36)
    found = read_microbatch(bytes(damaged), KEY)
    assert [page.record_index for page in found.pages] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    (reject,) = found.rejects
    assert (reject.reason, reject.raw_key, reject.record_index) == ("file_damaged", KEY, None)
    assert f"bytes {starts[4]} to" in reject.detail


def test_a_damaged_marker_in_the_header_costs_nothing() -> None:
    whole = bytearray(microbatch(records(), 7))
    whole[_block_starts(bytes(whole))[0] - 3] ^= 0xFF
    _, bodies = read(bytes(whole))
    assert len(bodies) == 12


@pytest.mark.parametrize("data", [b"", b"Obj", b"<html>", b"Obj\x01" + b"\xff" * 40, bytes(200)])
def test_a_file_without_a_header_is_one_reject(data: bytes) -> None:
    found, bodies = read(data)
    assert bodies == []
    assert found.records == 0
    assert (found.sequence, found.spool_id) == (7, SPOOL_ID)  # as its key says
    (reject,) = found.rejects
    assert (reject.reason, reject.raw_key, reject.record_index) == ("file_header", KEY, None)


def test_a_newer_format_is_refused_in_words() -> None:
    newer = {META_FORMAT: str(int(FORMAT) + 1)}
    with pytest.raises(UnknownFormatError, match=rf"{KEY} is written in format 2; .* update"):
        read_microbatch(microbatch(records(1), 7, metadata=newer), KEY)
    assert issubclass(UnknownFormatError, CompactionError)


@pytest.mark.parametrize("metadata", [{}, {META_FORMAT: ""}, {META_FORMAT: "one"}])
def test_an_avro_file_that_is_no_microbatch_is_one_reject(metadata: dict[str, str]) -> None:
    found, bodies = read(microbatch(records(2), 7, metadata=metadata))
    assert bodies == []
    assert reasons(found) == {"file_header": 1}


def test_fields_that_a_later_release_adds_do_not_matter() -> None:
    schema = load_schema()
    schema["fields"].append({"name": "weather", "type": ["null", "string"], "default": None})
    found, bodies = read(microbatch([record | {"weather": "rain"} for record in records(2)], 7, schema=schema))
    assert bodies == [body(0), body(1)]
    assert not found.rejects


def test_pages_are_read_as_they_are_asked_for() -> None:
    found = read_microbatch(microbatch(records(), 7), KEY)
    next(found.pages)
    assert found.records == 1
    assert len(list(found.pages)) == 11
    assert found.records == 12


def test_realistic_pages_survive_sealing() -> None:
    world = World()
    bodies = [world.body() for _ in range(6)]
    _, read_back = read(microbatch([page_record(each) for each in bodies], 7, blocks=False))
    assert read_back == bodies


def _block_starts(data: bytes) -> list[int]:
    """Where the blocks begin. The marker stands once in the header and once behind each block."""
    marker = data[-16:]
    starts = []
    position = data.find(marker)
    while position >= 0:
        starts.append(position + 16)
        position = data.find(marker, position + 16)
    return starts[:-1]
