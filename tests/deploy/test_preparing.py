"""What `tweetlake-machine` decides without changing a machine: what it is told, which release counts, what it remarks on."""

import base64
import json
import re
import shlex
import subprocess
import sys
import tarfile

import pytest

from deploy.machine import __main__ as command
from deploy.machine import parts, releases, told
from deploy.machine.shell import Trouble, write
from deploy.release import build
from schemas.settings import load
from tests.deploy.template import stack
from tests.house.checkout import ROOT

ARN = "arn:aws:iam::123456789012:role/"
GOOD = {
    "bucket": "my-lake", "region": "eu-central-1", "ingester_role": f"{ARN}tweetlake-IngesterRole-1A2B",
    "compaction_role": f"{ARN}path/CompactionRole", "secret": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:x-AbCdEf",
}  # fmt: skip


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine that was told nothing, and has nothing installed."""
    monkeypatch.setattr(told, "FILE", tmp_path / "machine.json")
    place = tmp_path / "releases"
    place.mkdir()
    for name, value in {"RELEASES": place, "CURRENT": place / "current", "PREVIOUS": place / "previous"}.items():
        monkeypatch.setattr(releases, name, value)
    monkeypatch.setattr(releases, "LINKS", {tmp_path / "opt": place / "current/ingester"})
    return tmp_path


# What it is told.


def test_what_was_told_once_need_not_be_told_again(machine):
    told.told(GOOD).remember()
    assert told.told({}) == told.Told(**GOOD)
    assert told.told({"prefix": "prod/", "bucket": None}) == told.Told(**GOOD, prefix="prod/")


def test_all_that_is_missing_is_named_in_one_go():
    with pytest.raises(Trouble) as trouble:
        told.told({"bucket": "my-lake"})
    lines = str(trouble.value).splitlines()
    assert [line.split()[0] for line in lines] == ["--region", "--ingester-role", "--compaction-role", "--secret"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bucket", "My_Lake"), ("bucket", "-lake"), ("bucket", "ab"), ("region", "Frankfurt"), ("prefix", "/prod"),
        ("prefix", "a//b"), ("prefix", "a b"), ("ingester_role", "IngesterRole"), ("compaction_role", "arn:aws:iam::1:role/x"),
        ("secret", "x-bearer-token"), ("data_device", "sdf"), ("data_device", "/dev/sdf; reboot"), ("data_device", "vol-xyz"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_an_example(name, value):
    with pytest.raises(Trouble, match=rf"^--{name.replace('_', '-')} '{value}' is not .* such as ") as trouble:
        told.told(GOOD | {name: value})
    assert len(str(trouble.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prefix", ""), ("prefix", "prod/"), ("prefix", "team/lake"), ("region", "us-gov-west-1"), ("data_device", "/dev/sdf"),
        ("data_device", "vol-0123456789abcdef0"), ("ingester_role", "arn:aws-cn:iam::123456789012:role/x"),
    ],
)  # fmt: skip
def test_what_can_be_is_taken(name, value):
    assert getattr(told.told(GOOD | {name: value}), name) == value


def test_a_file_that_was_harmed_is_told(machine):
    (machine / "machine.json").write_text("{")
    with pytest.raises(Trouble, match=r"is no JSON(.|\n)*fix: remove it"):
        told.told({})


@pytest.mark.parametrize(
    ("lake", "remark"),
    [
        ('bucket = "my-lake"', None),
        ('bucket = "my-lake"\nprefix = "/"', None),
        ('bucket = "another"', "the lake is 'another/', but the programs may only reach 'my-lake/'"),
        ('bucket = "my-lake"\nprefix = "dev"', "the lake is 'my-lake/dev', but the programs may only reach 'my-lake/'"),
        ("bucket =", "is not TOML"),
    ],
)
def test_settings_of_which_the_roles_know_nothing_are_remarked_on(lake, remark):
    found = parts._remark(told.Told(**GOOD), f"[lake]\n{lake}\n")
    assert (found or "").startswith(remark or "")
    assert bool(found) == bool(remark)


def test_the_starter_loads_once_its_query_is_not_a_comment_any_more(machine):
    file = machine / "tweetlake.toml"
    starter = parts._STARTER.format(bucket="my-lake", prefix="prod/", region="eu-central-1")
    file.write_text(starter.replace("\n#", "\n").replace("\n What", "\n# What"))
    settings = load(file)
    assert (settings.lake.bucket, settings.lake.prefix, settings.lake.region) == ("my-lake", "prod/", "eu-central-1")
    assert [query.name for query in settings.query] == ["python"]


def test_the_user_data_of_the_template_calls_it_with_what_it_takes():
    made = stack(BucketName="my-lake", LakePrefix="prod/")
    script = base64.b64decode(made.properties("Machine")["UserData"]).decode().replace("\\\n", " ")
    [call] = re.findall(r'/deploy/bootstrap" (install .*)', script)
    options = command._options().parse_args(shlex.split(call))
    found = told.told({name: getattr(options, name) for name in told.Told.__dataclass_fields__})
    assert (found.bucket, found.prefix, found.data_device) == ("my-lake", "prod/", "/dev/sdf")
    assert found.ingester_role != found.compaction_role


# Which release counts.


def release(version, *, ready=True):
    folder = releases.RELEASES / version
    folder.mkdir()
    (folder / f"tweetlake-{version}-py3-none-any.whl").write_text(version)
    if ready:
        (folder / ".ready").touch()
    return releases.Release(folder)


def test_only_a_volume_that_was_never_written_to_is_made_anew(machine):
    volume = machine / "volume"
    volume.write_bytes(bytes(1 << 20))
    assert parts.is_blank(volume)
    volume.write_bytes(bytes(1080) + b"\x53\xef" + bytes(1 << 20))  # where ext4 has its number
    assert not parts.is_blank(volume)
    with pytest.raises(Trouble, match="cannot be read"):
        parts.is_blank(machine)


def test_a_switch_remembers_the_one_before_and_back_is_a_switch_too():
    one, two = release("0.1.0"), release("0.2.0")
    releases.switch(one)
    assert (releases.current(), releases.previous()) == (one, None)
    releases.switch(two)
    assert (releases.current(), releases.previous()) == (two, one)
    releases.switch(two)
    assert releases.previous() == one, "to be installed again is no switch"
    releases.switch(one)
    assert (releases.current(), releases.previous()) == (one, two)


def test_only_the_current_and_the_one_before_are_kept():
    for version in ("0.1.0", "0.2.0", "0.3.0"):
        releases.switch(release(version))
    (releases.RELEASES / ".cache").mkdir()
    releases.forget_older_ones()
    assert sorted(path.name for path in releases.RELEASES.iterdir()) == [
        ".cache",
        "0.2.0",
        "0.3.0",
        "current",
        "previous",
    ]


def test_what_an_operator_installed_there_is_not_overwritten(machine):
    (machine / "opt").mkdir()
    with pytest.raises(Trouble, match=r"is there already, and not by this command"):
        releases.switch(release("0.1.0"))
    assert releases.current() is None


def test_a_release_that_was_copied_by_half_is_copied_anew(machine):
    source = machine / "unpacked"
    source.mkdir()
    (source / "tweetlake-0.1.0-py3-none-any.whl").write_text("all of it")
    half = release("0.1.0", ready=False)
    assert releases.settled(source) == half
    assert half.wheel.read_text() == "all of it"


def test_another_build_of_an_installed_version_is_refused(machine):
    source = machine / "unpacked"
    source.mkdir()
    (source / "tweetlake-0.1.0-py3-none-any.whl").write_text("another")
    release("0.1.0")
    with pytest.raises(Trouble, match=r"another build of that version(.|\n)*fix: give the new one a version"):
        releases.settled(source)


# The rest.


def test_nobody_else_can_read_a_secret_on_its_way(machine):
    file = machine / "etc/secret"
    assert write(file, "x", 0o600)
    assert file.stat().st_mode & 0o777 == 0o600
    assert not write(file, "x", 0o600), "as it was"
    assert [path.name for path in file.parent.iterdir()] == ["secret"]


def test_an_environment_file_is_read_as_systemd_reads_it(machine):
    file = machine / "a.env"
    file.write_text("# A comment\n\nPLAIN=a=b\nQUOTED='[{\"a\": 1}]'\n")
    assert command._variables(file) == {"PLAIN": "a=b", "QUOTED": '[{"a": 1}]'}
    assert command._variables(machine / "none.env") == {}


def test_the_help_has_an_example_of_every_command():
    done = subprocess.run(
        [sys.executable, "-m", "deploy.machine", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    for name in ("install", "upgrade", "rollback", "status", "airflow"):
        assert f"\n  tweetlake-machine {name}" in done.stdout


def test_it_runs_before_anything_is_installed():
    """All that it imports, but what root runs by the release's own Python, is Python's or its own."""
    hidden = "import sys; sys.path[:] = [path for path in sys.path if 'site-packages' not in path]; import deploy.machine.__main__"
    subprocess.run([sys.executable, "-S", "-c", hidden], cwd=ROOT, check=True)


def test_a_release_holds_what_installs_it_and_is_the_same_each_time(machine):
    first, again = build(ROOT, machine / "a"), build(ROOT, machine / "b")
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes()[4:8] == bytes(4), "gzip's time of making"
    with tarfile.open(first) as tar:
        modes = {member.name.partition("/")[2]: member.mode for member in tar}
        assert {name.partition("/")[0] for name in tar.getnames()} == {first.name.removesuffix(".tar.gz")}
    assert modes["deploy/bootstrap"] == 0o755
    assert {"requirements/ingester.lock", "requirements/airflow.lock", "requirements/bootstrap.lock"} <= modes.keys()
    assert "deploy/files/etc/systemd/system/airflow-scheduler.service" in modes
    assert not [name for name in modes if "pycache" in name]


def test_the_bundle_of_airflow_is_where_a_release_has_its_dags():
    environment = command._variables(ROOT / "deploy/files/etc/tweetlake/airflow.env")
    [bundle] = json.loads(environment["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"])
    assert bundle["kwargs"] == {"path": "/opt/tweetlake-releases/current/dags"}
    socket = f"host={parts.SOCKETS}&port={parts.PORT}"
    wanted = f"postgresql+psycopg2://{parts.AIRFLOW_USER}@/{parts.DATABASE}?{socket}"
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == wanted
