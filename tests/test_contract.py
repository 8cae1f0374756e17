"""The contract between the programs: ids and times, names and keys, settings and secrets."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import raw, snowflake
from schemas.keys import LakeKeys, MicrobatchName, RawHour
from schemas.secrets import load_health_token, load_x_secret
from schemas.settings import SettingsError, load

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


@pytest.mark.parametrize(
    ("text", "setting", "said"),
    [
        (MINIMAL + "[x]\nfields = 'all'\n", "x.fields", '"rich", "lean", or a list'),
        (MINIMAL + "[x]\nfields = [1, 2]\n", "x.fields", "neither"),
        (MINIMAL + "[x]\nexpansions = 3\n", "x.expansions", "is no list"),
        (MINIMAL + "[spool]\ndirectory = 3\n", "spool.directory", "is no path"),
        (MINIMAL + "[budget]\nusd_per_month = inf\n", "budget.usd_per_month", "no finite number"),
        (MINIMAL + "[budget]\nusd_per_day = nan\n", "budget.usd_per_day", "no finite number"),
        (MINIMAL + "[price]\npost_usd = inf\n", "price.post_usd", "no finite number"),
        (MINIMAL + "poll_every_seconds = nan\n", "query[0].poll_every_seconds", "no finite number"),
        (MINIMAL.replace("my-lake", "s3://lake"), "lake.bucket", "name alone: lake"),
        (MINIMAL.replace("my-lake", "s3://lake/a/b"), "lake.bucket", 'lake.prefix = "a/b"'),
        (MINIMAL.replace("my-lake", "Lake"), "lake.bucket", "a-z, 0-9, dot and hyphen"),
        (MINIMAL.replace("[[query]]", "[query]"), "query", "write [[query]]"),
        (MINIMAL + "[budget]\nusd_per_mont = 3\n", "budget.usd_per_mont", "did you mean budget.usd_per_month?"),
        (MINIMAL + "[budgets]\nusd_per_month = 3\n", "budgets", "did you mean budget?"),
        (MINIMAL + "[x]\nbucket = 'lake'\n", "x.bucket", "did you mean lake.bucket?"),
        (MINIMAL + "rules = 'x'\n", "query[0].rules", "did you mean query.rule?"),
        (MINIMAL + "[spool]\nzzz = 1\n", "spool.zzz", "docs/settings.md"),
        ("budget = 3\n" + MINIMAL, "budget", "is no table"),
        ('"a[b]" = 3\n' + MINIMAL, "a[b]", "is no setting"),
    ],
)
def test_a_mistake_is_one_problem_in_words_of_ours(tmp_path, text, setting, said):
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, text))
    [problem] = caught.value.problems
    assert problem.setting == setting
    assert said in f"{problem.what}; {problem.fix}"
    for word in ("pathlib", "literal[", "list[", "^[a-z", "Input", "dictionary", "instance"):
        assert word not in str(problem)


@pytest.mark.parametrize(
    ("variables", "told", "fix"),
    [
        ({"TWEETLAKE__LAKE__BUCKET": "Bad"}, "lake.bucket, from TWEETLAKE__LAKE__BUCKET", "a-z"),
        ({"TWEETLAKE__X__FIELDS": "all"}, "x.fields, from TWEETLAKE__X__FIELDS", "rich"),
        ({"TWEETLAKE__SPOOL__MAX_BYTE": "5"}, "spool.max_byte, from TWEETLAKE__SPOOL__MAX_BYTE", "spool.max_bytes"),
        ({"TWEETLAKE__BUDGET": '{"usd_per_day": -1}'}, "budget.usd_per_day, from TWEETLAKE__BUDGET", "at least 0"),
        ({"TWEETLAKE__QUERY": '[{"name": "A", "rule": "r"}]'}, "query[0].name, from TWEETLAKE__QUERY", "only those"),
        ({"TWEETLAKE__QUERY": "[{]"}, "TWEETLAKE__QUERY", "JSON"),
        ({"TWEETLAKE__SPOL__X": "5"}, "TWEETLAKE__SPOL__X", "did you mean spool?"),
        (
            {"TWEETLAKE_BUDGET__USD_PER_DAY": "5"},
            "TWEETLAKE_BUDGET__USD_PER_DAY",
            "write TWEETLAKE__BUDGET__USD_PER_DAY",
        ),
        ({"TWEETLAKE_BUDGET_USD_PER_DAY": "5"}, "TWEETLAKE_BUDGET_USD_PER_DAY", "write TWEETLAKE__BUDGET__USD_PER_DAY"),
        (
            {"TWEETLAKE__BUDGET_USD_PER_DAY": "5"},
            "TWEETLAKE__BUDGET_USD_PER_DAY",
            "write TWEETLAKE__BUDGET__USD_PER_DAY",
        ),
        ({"TWEETLAKE_WHAT__EVER": "5"}, "TWEETLAKE_WHAT__EVER", "two underscores"),
    ],
)
def test_a_problem_of_the_environment_names_the_variable(tmp_path, monkeypatch, variables, told, fix):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, MINIMAL + "[budget]\nusd_per_month = 5\n"))
    [problem] = caught.value.problems
    assert problem.setting == told
    assert fix in f"{problem.what}; {problem.fix}"


def test_a_problem_of_the_file_names_no_variable_that_gives_something_else(tmp_path, monkeypatch):
    monkeypatch.setenv("TWEETLAKE__BUDGET", '{"usd_per_day": 5}')
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, MINIMAL + "[budget]\nusd_per_month = -5\n"))
    assert [problem.setting for problem in caught.value.problems] == ["budget.usd_per_month"]


def test_variables_that_are_no_settings_are_left_alone(tmp_path, monkeypatch):
    for name in ("TWEETLAKE_CONFIG", "TWEETLAKE_HOURS_AT_ONCE", "TWEETLAKE_COMPLETE", "TWEETLAKE_COMPACT_COMPLETE"):
        monkeypatch.setenv(name, "5")
    assert load(written(tmp_path, MINIMAL)).lake.bucket == "my-lake"


def test_relative_paths_count_from_the_folder_of_the_settings(tmp_path, monkeypatch):
    (tmp_path / "etc").mkdir()
    (tmp_path / "elsewhere").mkdir()
    text = '[spool]\ndirectory = "spool"\n[x]\nbearer_token_file = "../token"\n[health]\ntoken_file = "/run/token"\n'
    written(tmp_path / "etc", MINIMAL + text)
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = load(Path("../etc/tweetlake.toml"))
    assert settings.spool.directory.resolve() == tmp_path / "etc" / "spool"
    assert settings.spool.directory.is_absolute()
    assert settings.x.bearer_token_file.resolve() == tmp_path / "token"
    assert settings.health.token_file == Path("/run/token")


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
