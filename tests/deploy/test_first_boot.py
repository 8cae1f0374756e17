"""What a new machine does by itself: its user data's script, run here with stand-ins for what would change this machine."""

import base64
import os
import re
import subprocess
import tarfile
from types import SimpleNamespace

import pytest

from deploy.machine.__main__ import _options
from deploy.machine.told import Told
from tests.deploy.template import stack

STAND_IN = """\
#!/bin/sh
echo "{name} $*" >>"$CALLS"
{deed}
"""
NO_DEED = dict.fromkeys(("apt-get", "udevadm", "curl"), "")


@pytest.fixture
def machine(tmp_path):
    """A machine that runs the script: what it called, what it said, and how it ended."""
    programs, bucket = tmp_path / "programs", tmp_path / "bucket"
    programs.mkdir()
    bucket.mkdir()
    deeds = NO_DEED | {
        "systemctl": '[ "$2" != is-active ] || exit "$AGENT_IS_OFF"',
        "aws": f'cp "{bucket}/$(basename "$4")" "$5"',  # aws s3 cp --only-show-errors FROM TO
    }
    for name, deed in deeds.items():
        program = programs / name
        program.write_text(STAND_IN.format(name=name, deed=deed))
        program.chmod(0o755)

    def boots(*, agent_runs=False):
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(calls), "TMPDIR": str(tmp_path),
            "AGENT_IS_OFF": str(int(not agent_runs)),
        }  # fmt: skip
        done = subprocess.run(["bash", "-c", script()], env=environment, capture_output=True, text=True, check=False)
        return SimpleNamespace(status=done.returncode, said=done.stdout, calls=calls.read_text().splitlines())

    boots.bucket = bucket
    return boots


def script():
    made = stack(BucketName="my-lake", ReleaseVersion="1.2.3", InstanceType="t3.small")
    whole = base64.b64decode(made.properties("Machine")["UserData"]).decode()
    return re.search(r"tweetlake-first-release <<'END'\n(.*?)\nEND\n", whole, re.DOTALL)[1]


def put_release(bucket, status=0):
    """One whose bootstrap only says what it was given."""
    folder = bucket / "made/tweetlake-1.2.3/deploy"
    folder.mkdir(parents=True)
    (folder / "bootstrap").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"$CALLS.bootstrap"\nexit {status}\n')
    (folder / "bootstrap").chmod(0o755)
    with tarfile.open(bucket / "tweetlake-1.2.3.tar.gz", "w:gz") as release:
        release.add(bucket / "made", arcname=".")


def test_it_can_be_reached_before_the_release_is_there_and_says_what_it_waits_for(machine):
    boot = machine()
    assert boot.status == 1
    assert (
        "waiting for s3://my-lake/releases/tweetlake-1.2.3.tar.gz; the stack's output PutRelease says how" in boot.said
    )
    regional = "https://s3.eu-central-1.amazonaws.com/amazon-ssm-eu-central-1"
    agent = f"{regional}/latest/debian_amd64/amazon-ssm-agent.deb"
    assert any(call.startswith("curl") and call.endswith(agent) for call in boot.calls)
    assert "apt-get -qq install ./amazon-ssm-agent.deb" in boot.calls
    assert "systemctl --quiet enable --now amazon-ssm-agent" in boot.calls


def test_tried_again_it_does_not_install_twice(machine):
    boot = machine(agent_runs=True)
    assert boot.status == 1
    assert [call.split()[0] for call in boot.calls] == ["systemctl", "aws"]


def test_the_release_is_told_what_the_stack_is_in_words_that_it_takes(machine, tmp_path):
    put_release(machine.bucket)
    assert machine().status == 0
    options = vars(_options().parse_args((tmp_path / "calls.bootstrap").read_text().split("\n")[:-1]))
    assert options["command"] == "install"
    told = Told(**{name: options[name] for name in Told.__dataclass_fields__})
    assert (told.bucket, told.prefix, told.region) == ("my-lake", "", "eu-central-1")
    assert (told.role_of("ingester")[-12:], told.role_of("compaction")[-14:]) == ("IngesterRole", "CompactionRole")


def test_nothing_is_left_behind(machine, tmp_path):
    put_release(machine.bucket)
    assert machine().status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bucket", "calls", "calls.bootstrap", "programs"]


def test_an_installation_that_fails_is_a_failure_to_be_tried_again(machine):
    put_release(machine.bucket, status=1)
    assert machine().status == 1
