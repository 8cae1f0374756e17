"""The contract between the programs: ids and times, names and keys, settings and secrets."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import raw, snowflake
from schemas.keys import LakeKeys, MicrobatchName, RawHour
from schemas.settings import SettingsError, load, load_health_token, load_x_secret

moments = st.datetimes(datetime(2011, 1, 1), datetime(2070, 1, 1), timezones=st.just(UTC))
MINIMAL = '[lake]\nbucket = "my-lake"\n[[query]]\nname = "python"\nrule = "python lang:en"\n'


def written(tmp_path, text):
    file = tmp_path / "tweetlake.toml"
    file.write_text(text)
    return file


@given(moments)
def test_an_id_is_a_time_to_the_millisecond(moment):
    assert moment - timedelta(milliseconds=1) < snowflake.time_of(snowflake.first_id_at(moment)) <= moment


@given(st.integers(0, 2**63 - 1), st.integers(-(10**9), 10**9))
def test_shifting_stays_in_int64(number, seconds):
    assert 0 <= snowflake.shift(number, timedelta(seconds=seconds)) <= snowflake.MAX_ID


def test_a_known_id_is_at_its_known_time():
    # The id that X itself suggested as the oldest allowed, with the time in its message (recorded error of Aug 2026).
    assert f"{snowflake.time_of(2083157183716917248):%Y-%m-%dT%H:%MZ}" == "2026-07-31T11:45Z"


@given(moments, st.integers(0, 10**12 - 1), st.integers(0, 2**32 - 1))
def test_a_name_and_its_key_say_the_same(moment, sequence, spool_id):
    name = MicrobatchName(sequence, RawHour.of(moment), f"{spool_id:08x}")
    key = LakeKeys("some/prefix/").microbatch(name)
    assert MicrobatchName.parse(str(name)) == name == MicrobatchName.parse(key)
    assert key.startswith(f"some/prefix/raw/date={moment:%Y-%m-%d}/hour={moment:%H}/")


@pytest.mark.parametrize(
    "text", ["", "x.avro", "2026-11-20T13-1-0123abcd.avro", "2026-13-20T13-000000000001-0123abcd.avro"]
)
def test_what_is_no_name_is_refused(text):
    with pytest.raises(ValueError, match="not"):
        MicrobatchName.parse(text)


def test_the_raw_schema_is_readable_everywhere_and_documented():
    schema = raw.load_schema()
    fastavro.parse_schema(schema)
    assert "namespace" not in schema
    for field in schema["fields"]:
        assert field.get("doc"), field["name"]
        kind = field["type"]
        assert not isinstance(kind, list) or (len(kind) == 2 and kind[0] == "null"), field["name"]


def test_minimal_settings_have_the_documented_defaults(tmp_path):
    settings = load(written(tmp_path, MINIMAL))
    assert settings.query[0].poll_every_seconds == 30
    assert settings.spool.directory == Path("/var/lib/tweetlake/spool")
    assert (settings.budget.usd_per_month, settings.health.port, settings.lake.lease_seconds) == (50.0, 9478, 20)


def test_environment_wins_over_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TWEETLAKE__SPOOL__SEAL_AFTER_SECONDS", "5")
    monkeypatch.setenv("TWEETLAKE__LAKE__PREFIX", "a/b")
    settings = load(written(tmp_path, MINIMAL + "[spool]\nseal_after_seconds = 60\nmax_bytes = 9000000\n"))
    assert settings.spool.seal_after_seconds == 5
    assert settings.spool.max_bytes == 9_000_000, "the rest of the section stays"
    assert settings.lake.prefix == "a/b/"


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("", "lake"),
        (MINIMAL + "[x]\nbase_ur = 'https://x'\n", "x.base_ur"),
        (MINIMAL + "[spool]\nseal_after_seconds = 0\n", "spool.seal_after_seconds"),
        (MINIMAL + "[[query]]\nname = 'python'\nrule = 'x'\n", "query"),
        (MINIMAL + "[[query]]\nname = 'No Good'\nrule = 'x'\n", "query[1].name"),
        (MINIMAL + "[transform]\nfunction = 'nonsense'\n", "transform.function"),
        (MINIMAL + "[budget]\nusd_per_month = -1\n", "budget.usd_per_month"),
        ("not toml", "settings file"),
        ('[lake]\nbucket = "Bad_Name"\n[[query]]\nname = "a"\nrule = "b"\n', "lake.bucket"),
    ],
)
def test_a_bad_setting_is_named_with_its_fix(tmp_path, text, setting):
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, text))
    named = {problem.setting: problem for problem in caught.value.problems}
    assert setting in named
    assert named[setting].what
    assert named[setting].fix


def test_every_problem_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TWEETLAKE__SPOL__X", "1")
    text = '[lake]\nbucket = "B"\n[[query]]\nname = "A"\nrule = ""\n[x]\nnope = 1\n'
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, text))
    assert {problem.setting for problem in caught.value.problems} >= {
        "lake.bucket", "query[0].name", "query[0].rule", "x.nope", "TWEETLAKE__SPOL__X",
    }  # fmt: skip


def test_the_secret_is_found_in_each_of_its_places_and_never_shown(tmp_path):
    file = tmp_path / "token"
    file.write_text("from-file\n")
    (tmp_path / "x-bearer-token").write_text("from-credential")
    found = load_x_secret(None, {"X_BEARER_TOKEN": "from-env"})
    assert found.bearer_token.get_secret_value() == "from-env"
    assert load_x_secret(file, {}).bearer_token.get_secret_value() == "from-file"
    credential = load_x_secret(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert credential.bearer_token.get_secret_value() == "from-credential"
    pair = load_x_secret(None, {"X_API_KEY": "k", "X_API_SECRET": "s"})
    assert pair.api_key.get_secret_value() == "k"
    assert "from-env" not in repr(found)


@pytest.mark.parametrize("prepare", [lambda p: None, lambda p: p.write_text(" \n")])
def test_a_secret_that_is_not_there_is_told(tmp_path, prepare):
    file = tmp_path / "token"
    prepare(file)
    with pytest.raises(SettingsError, match="bearer"):
        load_x_secret(file, {})
    with pytest.raises(SettingsError, match="X_BEARER_TOKEN"):
        load_x_secret(None, {})


@pytest.mark.parametrize("secret", ["AAAA\nBBBB", "Bearer AAAA", "AAAA\x00", "AAÄÄ", "AAAA\u200b"])
@pytest.mark.parametrize(
    "place", ["X_BEARER_TOKEN", "x.bearer_token_file", "x-bearer-token", "X_API_KEY", "X_API_SECRET"]
)
def test_a_secret_that_no_header_can_carry_is_refused_by_its_place_and_not_shown(tmp_path, place, secret):
    file = tmp_path / "x-bearer-token"
    file.write_text(secret)
    environments = {
        "X_BEARER_TOKEN": {"X_BEARER_TOKEN": secret},
        "x-bearer-token": {"CREDENTIALS_DIRECTORY": str(tmp_path)},
        "X_API_KEY": {"X_API_KEY": secret, "X_API_SECRET": "s"},
        "X_API_SECRET": {"X_API_KEY": "k", "X_API_SECRET": secret},
    }
    with pytest.raises(SettingsError) as caught:
        load_x_secret(file if place == "x.bearer_token_file" else None, environments.get(place, {}))
    [problem] = caught.value.problems
    assert place in problem.setting
    assert "AA" not in str(caught.value).replace(str(file), "")


def test_a_file_that_is_not_there_is_told_as_that_and_one_that_is_no_text_too(tmp_path):
    for load_it in (load_x_secret, load_health_token):
        with pytest.raises(SettingsError, match="does not exist"):
            load_it(tmp_path / "none", {})
        with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
            load_it(tmp_path, {})


@pytest.mark.parametrize(("there", "missing"), [("X_API_KEY", "X_API_SECRET"), ("X_API_SECRET", "X_API_KEY")])
def test_half_of_a_pair_says_which_half_is_missing(there, missing):
    with pytest.raises(SettingsError) as caught:
        load_x_secret(None, {there: "abc"})
    [problem] = caught.value.problems
    assert problem.setting == missing
    assert there in problem.what
