"""Each program under its role of the template, on a real S3 server: all that it does is allowed, what it must not do is not.

SeaweedFS enforces the policies less two conditions that it does not know. So every request is also held against the whole
policies, as AWS would decide.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError

from compaction_dags.compaction.holes import Hole, leave_orders
from sandbox.conservation import check
from sandbox.s3 import running_s3
from sandbox.world import WorldSettings
from schemas.orders import Order
from schemas.settings import load
from tests.deploy.iam import allows
from tests.deploy.template import policy
from tests.deploy.watched_s3 import as_role, watched
from tests.scenarios.place import new_places

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(240)]

ROLES = ("IngesterRole", "CompactionRole")
PREFIX = "prod/lake/"
WORLD = WorldSettings(seed=7, tweets_per_second=1, backlog_hours=1)


def run(place, user, module, *arguments):
    """A command of one of the programs, as its user."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=place.environment | user.environment() | {"TWEETLAKE_CONFIG": str(place.config)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{module} {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def collect(place, user):
    with place.running(place.environment | user.environment()) as service:
        service.settles()
    assert service.process.returncode == 0


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The life of both programs, told once: the tests look at what came of it."""
    with (
        running_s3(kind="seaweedfs") as s3,
        watched(s3) as proxy,
        new_places(s3, tmp_path_factory.mktemp("roles"), "prod") as new_place,
    ):
        place = new_place("lake", seen_s3=proxy.s3, world=WORLD)
        users = {role: as_role(s3, role, PREFIX) for role in ROLES}
        told = SimpleNamespace(place=place, s3=s3, proxy=proxy, users=users)
        ingester, compaction = users["IngesterRole"], users["CompactionRole"]
        lives_of_the_ingester(told, place, ingester)
        lives_of_the_compaction(told, place, compaction)
        yield told


def lives_of_the_ingester(told, place, user):
    """Checked, run, ordered to, run on its spool, run on a new disk, the old spool retired."""
    place.spool.mkdir()
    told.checked = run(place, user, "ingester", "check")
    collect(place, user)
    now = datetime.now(UTC)
    since, until = (f"{now - timedelta(minutes=minutes):%Y-%m-%dT%H:%M}" for minutes in (30, 20))
    run(place, user, "ingester", "backfill", "--query", "python", "--since", since, "--until", until, "--yes")
    told.ordered = keys(told, "control/requests/")
    collect(place, user)
    told.left = keys(told, "control/requests/")
    [lost] = {key.rsplit("-", 1)[-1].removesuffix(".avro") for key in keys(told, "raw/")}
    shutil.rmtree(place.spool)
    collect(place, user)
    run(place, user, "ingester", "spool", "retire", lost)


def lives_of_the_compaction(told, place, user):
    """Every command that asks S3."""
    module = "compaction_dags.compaction"
    told.summary = json.loads(run(place, user, module).splitlines()[-1])
    raw = {re.search(r"date=([\d-]+)/hour=(\d\d)/", key) for key in keys(told, "raw/")}
    hours = sorted(f"{found[1]}T{found[2]}" for found in raw)
    readers = (
        ["freshness"],
        ["metrics"],
        ["report", "--output", str(place.directory / "report.html")],
        ["order-holes", "--yes"],
    )
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda arguments: run(place, user, module, *arguments), readers))
    leave_an_order(place, user)
    run(place, user, module, "maintain")
    run(place, user, module, "rebuild", "--since", hours[0], "--until", hours[-1])


def leave_an_order(place, user):
    """As `order-holes` does where there is a hole; there is none here."""
    now = datetime.now(UTC)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in user.environment().items():
            patch.setenv(name, value)
        leave_orders(load(place.config), [Hole(Order.of_hole("python", now - timedelta(hours=1), now), None)])


def keys(told, below):
    found = told.s3.client().list_objects_v2(Bucket=told.s3.bucket, Prefix=PREFIX + below)
    return [each["Key"].removeprefix(PREFIX) for each in found.get("Contents", [])]


# What they do.


def test_the_ingester_and_the_compaction_do_all_their_work_under_their_roles(told):
    assert "All good." in told.checked
    assert len(told.ordered) == 1
    assert told.left == [], "the order was taken"
    assert told.summary["tweets_written"] > 300
    found = check(told.place.lake, told.place.x, told.place.rules)
    assert found.holds
    assert not found.gaps
    assert told.place.problems().keys() <= {"lease_waiting"}, "nothing was refused meanwhile"


@pytest.mark.parametrize("role", ROLES)
def test_nothing_was_asked_that_the_whole_policy_denies(told, role):
    whole = policy(role, bucket=told.s3.bucket, prefix=PREFIX)
    calls = told.proxy.of(told.users[role])
    denied = [call for call in calls if not allows(whole, call.action, call.resource, call.context)]
    assert not denied
    print(role, Counter(call.action for call in calls))


@pytest.mark.parametrize("role", ROLES)
def test_what_is_not_there_is_said_not_to_be_there(told, role):
    """S3 says 404 only to who may list the key's own prefix; to others 403, which would stop both programs."""
    whole, lake = policy(role, bucket=told.s3.bucket, prefix=PREFIX), f"arn:aws:s3:::{told.s3.bucket}"
    missed = [call for call in told.proxy.of(told.users[role]) if call.status == "404"]
    assert missed
    for call in missed:
        assert allows(whole, "s3:ListBucket", lake, {"s3:prefix": call.resource.removeprefix(f"{lake}/")}), call


def test_no_statement_is_there_for_nothing(told):
    """Each statement, and each of its actions, was needed by something that was asked; deletions are tried below."""
    for role in ROLES:
        calls = told.proxy.of(told.users[role])
        for statement in policy(role, bucket=told.s3.bucket, prefix=PREFIX)["Statement"]:
            assert any(
                allows({"Statement": [statement]}, call.action, call.resource, call.context) for call in calls
            ), statement["Sid"]


# What they must not do. Asked of SeaweedFS directly, with objects that are there.


@pytest.fixture(scope="module")
def asked(told):
    """Asks S3 for something as a role; whether it was done."""
    admin, bucket = told.s3.client(), told.s3.bucket
    for key in (
        "elsewhere",
        "releases/tweetlake-1.2.3.tar.gz",
        f"{PREFIX}control/lease",
        f"{PREFIX}control/ordered/o.json",
    ):
        admin.put_object(Bucket=bucket, Key=key, Body=b"{}")

    def ask(role, call, key="", **more):
        try:
            client = told.users[role].client()
            getattr(client, call)(Bucket=bucket, **({"Key": key} if key else {}), **more)
        except ClientError as error:
            if error.response["Error"]["Code"] not in {"AccessDenied", "403"}:
                raise
            return False
        return True

    return ask


def an_object(told, below):
    return PREFIX + keys(told, below)[0]


def test_the_ingester_cannot_see_or_touch_the_tables_nor_change_raw(told, asked):
    role, table, raw = "IngesterRole", an_object(told, "curated/tweets/"), an_object(told, "raw/")
    assert asked(role, "get_object", raw)
    assert asked(role, "list_objects_v2", Prefix=f"{PREFIX}raw/")
    for call in ("get_object", "head_object", "delete_object"):
        assert not asked(role, call, table)
    assert not asked(role, "list_objects_v2", Prefix=f"{PREFIX}curated/")
    assert not asked(role, "put_object", f"{PREFIX}curated/tweets/mine.parquet", Body=b"mine")
    assert not asked(role, "delete_object", raw)
    assert not asked(role, "delete_object", f"{PREFIX}control/lease")
    assert not asked(role, "delete_object", f"{PREFIX}control/ordered/o.json")


def test_the_compaction_cannot_touch_raw_nor_the_lease_nor_take_orders_away(told, asked):
    role, raw = "CompactionRole", an_object(told, "raw/")
    assert asked(role, "get_object", raw)
    assert not asked(role, "put_object", f"{PREFIX}raw/date=2026-11-20/hour=13/mine.avro", Body=b"mine")
    assert not asked(role, "delete_object", raw)
    assert not asked(role, "put_object", f"{PREFIX}control/lease", Body=b"mine")
    assert not asked(role, "put_object", f"{PREFIX}control/retired/9f86d081.json", Body=b"{}")
    assert asked(role, "put_object", f"{PREFIX}control/requests/mine.json", Body=b"{}")
    assert not asked(role, "delete_object", f"{PREFIX}control/requests/mine.json")
    assert asked("IngesterRole", "delete_object", f"{PREFIX}control/requests/mine.json")


def test_the_compaction_can_take_files_of_the_tables_away(told, asked):
    role, key = "CompactionRole", f"{PREFIX}curated/tweets/of-a-broken-run.parquet"
    assert asked(role, "put_object", key, Body=b"left over")
    assert asked(role, "delete_object", key)
    assert asked(role, "put_object", key, Body=b"left over")
    assert asked(role, "delete_objects", Delete={"Objects": [{"Key": key}]})
    assert key.removeprefix(PREFIX) not in keys(told, "curated/tweets/")


@pytest.mark.parametrize("role", ROLES)
def test_neither_sees_or_touches_anything_beside_the_lake(told, asked, role):
    for key in ("elsewhere", "releases/tweetlake-1.2.3.tar.gz", "raw/date=2026-11-20/hour=13/other.avro"):
        assert not asked(role, "get_object", key)
        assert not asked(role, "put_object", key, Body=b"mine", IfNoneMatch="*")
        assert not asked(role, "delete_object", key)
    assert not asked(role, "list_objects_v2")
    assert not asked(role, "list_objects_v2", Prefix="releases/")
    assert not asked(role, "delete_bucket")
    assert not asked(role, "put_bucket_policy", Policy="{}")
    assert not asked(role, "get_bucket_lifecycle_configuration")
    assert not asked(role, "put_bucket_versioning", VersioningConfiguration={"Status": "Enabled"})
