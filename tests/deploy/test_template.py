"""The AWS template, statement by statement: what is made, who may do what, what is refused. cfn-lint and moto agree."""

import ast
import base64
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from schemas.curated import TABLES
from schemas.keys import LakeKeys
from schemas.settings import Lake as LakeSettings
from tests.deploy.iam import allows
from tests.deploy.template import ACCOUNT, FILE, NETWORK, REGION, Refused, policy, stack, template
from tests.house.checkout import ROOT, pyproject, text

LAKE = "arn:aws:s3:::lake"


def statements(role, **given):
    return {statement["Sid"]: statement for statement in policy(role, **given)["Statement"]}


# Who may do what. What is written here is all there is: another statement, or a wider one, fails.


def test_the_ingester_may_do_this_and_nothing_else():
    assert statements("IngesterRole") == {
        "ListRawAndControl": {
            "Sid": "ListRawAndControl",
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": LAKE,
            "Condition": {"StringLike": {"s3:prefix": ["raw/*", "control/*"]}},
        },
        "ReadRawAndControl": {
            "Sid": "ReadRawAndControl",
            "Effect": "Allow",
            "Action": "s3:GetObject",
            "Resource": [f"{LAKE}/raw/*", f"{LAKE}/control/*"],
        },
        "CreateInRawAndControl": {
            "Sid": "CreateInRawAndControl",
            "Effect": "Allow",
            "Action": "s3:PutObject",
            "Resource": [f"{LAKE}/raw/*", f"{LAKE}/control/*"],
            "Condition": {"Null": {"s3:if-none-match": "false"}},
        },
        "ReplaceWhatItHasSeenInControl": {
            "Sid": "ReplaceWhatItHasSeenInControl",
            "Effect": "Allow",
            "Action": "s3:PutObject",
            "Resource": f"{LAKE}/control/*",
            "Condition": {"Null": {"s3:if-match": "false"}},
        },
        "TakeAwayOrdersAndWhatCheckTried": {
            "Sid": "TakeAwayOrdersAndWhatCheckTried",
            "Effect": "Allow",
            "Action": "s3:DeleteObject",
            "Resource": [f"{LAKE}/control/requests/*", f"{LAKE}/control/check-*"],
        },
    }


def test_the_compaction_may_do_this_and_nothing_else():
    assert statements("CompactionRole") == {
        "ListTheLake": {
            "Sid": "ListTheLake",
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": LAKE,
            "Condition": {"StringLike": {"s3:prefix": ["raw/*", "curated/*", "control/*"]}},
        },
        "ReadTheLake": {
            "Sid": "ReadTheLake",
            "Effect": "Allow",
            "Action": "s3:GetObject",
            "Resource": [f"{LAKE}/raw/*", f"{LAKE}/curated/*", f"{LAKE}/control/*"],
        },
        "KeepTheTables": {
            "Sid": "KeepTheTables",
            "Effect": "Allow",
            "Action": ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            "Resource": f"{LAKE}/curated/*",
        },
        "LeaveOrders": {
            "Sid": "LeaveOrders",
            "Effect": "Allow",
            "Action": "s3:PutObject",
            "Resource": [f"{LAKE}/control/requests/*", f"{LAKE}/control/ordered/*"],
            "Condition": {"Null": {"s3:if-none-match": "false"}},
        },
    }


def test_the_machine_may_do_this_and_nothing_else():
    assert statements("InstanceRole") == {
        "BecomeIngesterOrCompaction": {
            "Sid": "BecomeIngesterOrCompaction",
            "Effect": "Allow",
            "Action": "sts:AssumeRole",
            "Resource": [f"arn:aws:iam::{ACCOUNT}:role/{role}" for role in ("IngesterRole", "CompactionRole")],
        },
        "ReadTheTokenForX": {
            "Sid": "ReadTheTokenForX",
            "Effect": "Allow",
            "Action": "secretsmanager:GetSecretValue",
            "Resource": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:BearerToken-a1b2c3",
        },
        "ReadReleases": {
            "Sid": "ReadReleases",
            "Effect": "Allow",
            "Action": "s3:GetObject",
            "Resource": f"{LAKE}/releases/*",
        },
        "BeReachedBySessionManager": {
            "Sid": "BeReachedBySessionManager",
            "Effect": "Allow",
            "Action": [
                "ssm:UpdateInstanceInformation",
                "ssmmessages:CreateControlChannel",
                "ssmmessages:CreateDataChannel",
                "ssmmessages:OpenControlChannel",
                "ssmmessages:OpenDataChannel",
            ],
            "Resource": "*",
        },
    }


def test_only_the_machine_becomes_ingester_or_compaction_and_only_ec2_the_machine():
    roles = stack().of_type("AWS::IAM::Role")
    assert {name: role["AssumeRolePolicyDocument"]["Statement"] for name, role in roles.items()} == {
        "InstanceRole": [
            {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
        ],
        **{
            name: [
                {
                    "Effect": "Allow",
                    "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:role/InstanceRole"},
                    "Action": "sts:AssumeRole",
                }
            ]
            for name in ("IngesterRole", "CompactionRole")
        },
    }
    assert not any("ManagedPolicyArns" in role for role in roles.values())
    assert stack().properties("InstanceProfile")["Roles"] == ["InstanceRole"]


def test_a_prefix_and_a_bucket_move_every_right_along():
    for role in ("IngesterRole", "CompactionRole"):
        plain, moved = (json.dumps(policy(role, **given)) for given in ({}, {"bucket": "other", "prefix": "prod/"}))
        places = r"(?<![\w-])(raw/|curated/|control/)"
        assert moved == re.sub(places, r"prod/\1", plain).replace(":::lake", ":::other")


@pytest.mark.parametrize("prefix", ["", "prod/", "a/b/"])
def test_rights_and_program_speak_of_the_same_keys(prefix):
    keys = LakeKeys(LakeSettings(bucket="lake", prefix=prefix).prefix)
    ingester, compaction = policy("IngesterRole", prefix=prefix), policy("CompactionRole", prefix=prefix)
    created = {"s3:if-none-match": "*"}
    for key in (keys.lease, keys.request("o"), keys.retired("9f86d081"), f"{keys.raw}date=2026-11-20/hour=13/a.avro"):
        assert allows(ingester, "s3:PutObject", f"{LAKE}/{key}", created)
        assert not allows(ingester, "s3:PutObject", f"{LAKE}/{key}", {}), "without a condition it could overwrite"
    assert allows(ingester, "s3:PutObject", f"{LAKE}/{keys.lease}", {"s3:if-match": '"e"'})
    assert not allows(ingester, "s3:PutObject", f"{LAKE}/{keys.raw}a", {"s3:if-match": '"e"'}), "raw never changes"
    assert not allows(ingester, "s3:GetObject", f"{LAKE}/{keys.table('tweets')}/a.parquet", {})
    assert allows(compaction, "s3:PutObject", f"{LAKE}/{keys.table('tweets')}/a.parquet", {})
    for key in (keys.request("o"), f"{keys.ordered}o.json"):
        assert allows(compaction, "s3:PutObject", f"{LAKE}/{key}", created)
        assert not allows(compaction, "s3:PutObject", f"{LAKE}/{key}", {})
    for key in (keys.lease, keys.retired("9f86d081"), f"{keys.raw}a"):
        assert not allows(compaction, "s3:PutObject", f"{LAKE}/{key}", created)
        assert not allows(compaction, "s3:DeleteObject", f"{LAKE}/{key}", {})


# The lake.


def test_the_bucket_is_private_encrypted_unversioned_and_outlives_the_stack():
    made = stack().resources["Lake"]
    assert made["DeletionPolicy"] == made["UpdateReplacePolicy"] == "Retain"
    bucket = made["Properties"]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    [rule] = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule["ServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    assert bucket["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    assert "VersioningConfiguration" not in bucket
    assert "BucketName" not in bucket
    assert stack(BucketName="my-lake").properties("Lake")["BucketName"] == "my-lake"


def test_nobody_speaks_to_the_bucket_without_tls():
    [statement] = stack(BucketName="lake").properties("LakeOnlyByTls")["PolicyDocument"]["Statement"]
    assert statement == {
        "Sid": "OnlyByTls",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [LAKE, f"{LAKE}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }


def lifecycle(**given):
    rules = stack(**given).properties("Lake")["LifecycleConfiguration"]["Rules"]
    assert all(rule["Status"] == "Enabled" for rule in rules)
    return {rule["Id"]: {key: value for key, value in rule.items() if key not in {"Id", "Status"}} for rule in rules}


def test_what_is_unfinished_or_passing_goes_and_raw_stays_unless_told_otherwise():
    always = {
        "end-unfinished-uploads": {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}},
        "forget-athena-results": {"Prefix": "athena-results/", "ExpirationInDays": 7},
    }
    assert lifecycle() == always
    assert lifecycle(RawInfrequentAccessDays="30", RawDays="365", LakePrefix="prod/") == always | {
        "move-raw": {"Prefix": "prod/raw/", "Transitions": [{"StorageClass": "STANDARD_IA", "TransitionInDays": "30"}]},
        "forget-raw": {"Prefix": "prod/raw/", "ExpirationInDays": "365"},
    }


# The machine.


def test_nothing_comes_in_unless_ssh_is_asked_for():
    assert "SecurityGroupIngress" not in stack().properties("SecurityGroup")
    [rule] = stack(SshCidr="198.51.100.7/32", KeyName="mine").properties("SecurityGroup")["SecurityGroupIngress"]
    assert rule == {
        "IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "198.51.100.7/32", "Description": "SSH",
    }  # fmt: skip


def test_only_web_traffic_goes_out():
    rules = stack().properties("SecurityGroup")["SecurityGroupEgress"]
    assert {(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in rules} == {
        ("tcp", 443, 443), ("tcp", 80, 80),
    }  # fmt: skip


def test_aws_takes_the_descriptions_of_the_security_group():
    """It refuses apostrophes and more, and only when the group is made."""
    group = stack(SshCidr="198.51.100.7/32", KeyName="mine").properties("SecurityGroup")
    rules = [*group["SecurityGroupIngress"], *group["SecurityGroupEgress"]]
    for words in [group["GroupDescription"], *(rule["Description"] for rule in rules)]:
        assert re.fullmatch(r"[A-Za-z0-9 ._\-:/()#,@\[\]+=&;{}!$*]{1,255}", words), words


def test_the_machine_gives_its_credentials_by_imds_v2_only_and_its_disks_are_encrypted():
    machine = stack().properties("Machine")
    options = stack().properties("OnlyImdsV2")["LaunchTemplateData"]["MetadataOptions"]
    assert options == {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    assert machine["LaunchTemplate"]["LaunchTemplateId"] == "OnlyImdsV2"
    [root] = machine["BlockDeviceMappings"]
    data = stack(DataVolumeGiB="50").resources["DataVolume"]
    assert root["Ebs"]["Encrypted"] is data["Properties"]["Encrypted"] is True
    assert root["Ebs"]["VolumeType"] == data["Properties"]["VolumeType"] == "gp3"
    assert data["Properties"]["Size"] == "50"
    assert data["DeletionPolicy"] == data["UpdateReplacePolicy"] == "Snapshot"
    assert machine["IamInstanceProfile"] == "InstanceProfile"
    [card] = machine["NetworkInterfaces"]
    assert (card["SubnetId"], card["GroupSet"]) == (NETWORK["SubnetId"], ["SecurityGroup"])


def test_the_image_has_the_architecture_of_every_allowed_type():
    declared = template()
    sizes = declared["Parameters"]["InstanceType"]["AllowedValues"]
    assert sizes == list(declared["Mappings"]["Architectures"])
    for size in sizes:
        debian = "arm64" if size.startswith("t4g.") else "amd64"
        made = stack(InstanceType=size)
        image = made.properties("Machine")["ImageId"]
        assert image == f"{{{{resolve:ssm:/aws/service/debian/release/12/latest/{debian}}}}}"
        assert f"/debian_{debian}/" in user_data(made)
    assert stack(ImageId="ami-0123456789abcdef0").properties("Machine")["ImageId"] == "ami-0123456789abcdef0"


def user_data(made):
    return base64.b64decode(made.properties("Machine")["UserData"]).decode()


def test_the_user_data_is_small_is_shell_and_tells_the_release_what_the_stack_is():
    made = stack(BucketName="my-lake", LakePrefix="prod/", ReleaseVersion="1.2.3")
    script = user_data(made)
    assert len(script) < 4_096  # 16,384 are allowed
    whole = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (whole.returncode, whole.stderr) == (0, "")
    inner = re.search(r"tweetlake-first-release <<'END'\n(.*?)\nEND\n", script, re.DOTALL)[1]
    assert subprocess.run(["bash", "-n"], input=inner, text=True, check=False).returncode == 0
    assert "${" not in script
    assert "s3://my-lake/releases/$release.tar.gz" in inner
    assert "release=tweetlake-1.2.3\n" in inner
    options = dict(re.findall(r"--([a-z-]+) (\S+)", inner.split("deploy/bootstrap")[1]))
    assert options == {
        "bucket": "my-lake",
        "prefix": "'prod/'",
        "region": REGION,
        "ingester-role": f"arn:aws:iam::{ACCOUNT}:role/IngesterRole",
        "compaction-role": f"arn:aws:iam::{ACCOUNT}:role/CompactionRole",
        "secret": f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:BearerToken-a1b2c3",
        "data-device": made.properties("DataVolumeAttachment")["Device"],
    }


def test_a_secret_is_made_without_a_value():
    assert stack().properties("BearerToken").keys() == {"Description"}


# Who is told.


def test_a_failing_machine_is_mended_by_aws_and_told_to_whom_it_concerns():
    for name, metric, action in (
        ("HostFails", "StatusCheckFailed_System", "recover"),
        ("MachineFails", "StatusCheckFailed_Instance", "reboot"),
    ):
        mended = f"arn:aws:automate:{REGION}:ec2:{action}"
        alarm = stack().properties(name)
        assert (alarm["Namespace"], alarm["MetricName"]) == ("AWS/EC2", metric)
        assert alarm["Dimensions"] == [{"Name": "InstanceId", "Value": "Machine"}]
        assert alarm["AlarmActions"] == [mended]
        told = stack(AlarmEmail="me@example.org")
        assert told.properties(name)["AlarmActions"] == [mended, "Notices"]
        assert told.properties(name)["OKActions"] == ["Notices"]
        assert told.properties("Notices")["Subscription"] == [{"Protocol": "email", "Endpoint": "me@example.org"}]
    assert "Notices" not in stack().resources


# Athena.


def test_athena_finds_every_curated_table_as_a_native_delta_table():
    made = stack(BucketName="my-lake", LakePrefix="prod/", AthenaDatabaseName="posts")
    tables = {each["TableInput"]["Name"]: each for each in made.of_type("AWS::Glue::Table").values()}
    assert tables.keys() == TABLES.keys()
    properties = re.search(r"TBLPROPERTIES \('(\w+)' = '(\w+)'\)", text("docs/analysis.md"))
    for name, table in tables.items():
        described = table["TableInput"]
        assert table["DatabaseName"] == "posts"
        assert described["TableType"] == "EXTERNAL_TABLE"
        assert described["Parameters"][properties[1]] == properties[2] == "DELTA"
        assert described["StorageDescriptor"] == {"Location": f"s3://my-lake/{LakeKeys('prod/').table(name)}/"}
        assert described["PartitionKeys"] == []


def test_a_query_has_a_place_for_its_results_and_cannot_cost_much():
    group = stack(BucketName="my-lake").properties("AthenaWorkGroup")["WorkGroupConfiguration"]
    assert group["ResultConfiguration"]["OutputLocation"] == "s3://my-lake/athena-results/"
    assert group["EnforceWorkGroupConfiguration"] is True
    assert group["BytesScannedCutoffPerQuery"] == 100_000_000_000


# Parameters and outputs.


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("InstanceType", ["t4g.small", "t3.xlarge"], ["t4g.nano", "m7g.large", ""]),
        ("DataVolumeGiB", ["8", "500"], ["7", "16385", "many"]),
        ("ReleaseVersion", ["0.1.0", "1.12.3rc1", "1.0.0.dev1"], ["1.0", "v1.0.0", "latest", "1.0.0; reboot", ""]),
        ("ImageId", ["", "ami-0123456789abcdef0", "ami-01234567"], ["debian-12", "ami-0123", "AMI-01234567"]),
        ("BucketName", ["", "my-lake", "a12"], ["My-Lake", "a", "my_lake", "-lake", "lake-", "my.lake", "a" * 64]),
        ("LakePrefix", ["", "prod/", "team/x=1/"], ["prod", "/prod/", "a//b/", "releases/", "athena-results/x/", "$/"]),
        ("RawInfrequentAccessDays", ["0", "30", "365"], ["29", "-1", "10000", "", "030"]),
        ("RawDays", ["0", "14", "3650"], ["7", "13", "forever", ""]),
        ("AthenaDatabaseName", ["tweetlake", "_x9"], ["Tweets", "9lives", "tweet-lake", ""]),
        (
            "SshCidr",
            ["", "198.51.100.7/32", "10.0.0.0/8"],
            ["0.0.0.0/0", "198.51.100.7", "256.1.1.1/32", "10.0.0.0/33", "1.2.3/24", "::/0"],
        ),
        ("KeyName", ["", "my key (2026)"], ["schlüssel", "a" * 256]),
        ("AlarmEmail", ["", "me@example.org"], ["me", "me@localhost", "a b@example.org"]),
    ],
)
def test_a_parameter_takes_what_is_right_and_names_what_it_wants_otherwise(name, taken, refused):
    for value in taken:
        stack(**{name: value})
    for value in refused:
        with pytest.raises(Refused, match=f"{name}: "):
            stack(**{name: value})


def test_every_parameter_has_a_description_and_its_rule_in_words():
    declared = template()
    for name, parameter in declared["Parameters"].items():
        assert parameter["Description"].endswith("."), name
        if not parameter["Type"].startswith("AWS::"):
            assert parameter["ConstraintDescription"], name
            assert {"AllowedPattern", "AllowedValues", "MinValue"} & parameter.keys(), name
    shown = declared["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    assert sorted(name for group in shown for name in group["Parameters"]) == sorted(declared["Parameters"])


def test_ssh_without_a_key_is_refused_by_a_rule():
    rule = template()["Rules"]["SshNeedsAKey"]
    assert rule["RuleCondition"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "SshCidr"}, ""]}]}
    [assertion] = rule["Assertions"]
    assert assertion["Assert"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "KeyName"}, ""]}]}


def test_the_release_by_default_is_this_one():
    assert template()["Parameters"]["ReleaseVersion"]["Default"] == pyproject()["project"]["version"]


def test_the_outputs_are_the_next_commands():
    outputs = stack(BucketName="my-lake", ReleaseVersion="1.2.3").outputs
    assert outputs["PutRelease"] == "aws s3 cp dist/tweetlake-1.2.3.tar.gz s3://my-lake/releases/"
    assert "put-secret-value" in outputs["StoreToken"]
    assert outputs["StoreToken"].endswith("file:///dev/stdin"), "the token must not lie in the shell's history"
    for name, port in (("SeeStatusPage", 9478), ("SeeAirflow", 8080)):
        assert f"portNumber={port},localPortNumber={port}" in outputs[name]
    assert outputs["OpenShell"] == f"aws ssm start-session --region {REGION} --target Machine"
    assert all(each["Description"] for each in template()["Outputs"].values())


# Others' opinion.


def test_cfn_lint_has_nothing_to_say():
    done = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), "--include-checks", "I", "--format", "parseable", "--", FILE],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def made(monkeypatch):
    """A stack that moto made of the template as it stands, and clients that look at what came of it.

    moto passes over what it does not know (the bucket's policy and lifecycle, the secret, alarms, Glue, a disk's encryption)
    and does not look at rules.
    """
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-moto")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    with mock_aws(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tried to parse", UserWarning)
        ec2, stacks = boto3.client("ec2"), boto3.client("cloudformation")
        subnet = ec2.describe_subnets()["Subnets"][0]
        image = ec2.describe_images(Filters=[{"Name": "architecture", "Values": ["x86_64"]}])["Images"][0]
        given = {
            "VpcId": subnet["VpcId"], "SubnetId": subnet["SubnetId"], "ImageId": image["ImageId"], "BucketName": "my-lake",
            "LakePrefix": "prod/", "RawDays": "365",
        }  # fmt: skip
        parameters = [{"ParameterKey": name, "ParameterValue": value} for name, value in given.items()]
        stacks.create_stack(StackName="tweetlake", TemplateBody=text(FILE), Parameters=parameters)
        yield stacks.describe_stacks(StackName="tweetlake")["Stacks"][0], boto3.client


def test_moto_makes_a_stack_of_it_and_understands_the_same(made):
    stacked, client = made
    assert stacked["StackStatus"] == "CREATE_COMPLETE"
    outputs = {each["OutputKey"]: each["OutputValue"] for each in stacked["Outputs"]}
    iam = client("iam")
    for role in ("IngesterRole", "CompactionRole"):
        name = outputs[f"{role}Arn"].rsplit("/", 1)[1]
        [inline] = iam.list_role_policies(RoleName=name)["PolicyNames"]
        document = iam.get_role_policy(RoleName=name, PolicyName=inline)["PolicyDocument"]
        understood = ast.literal_eval(document)  # moto keeps it as Python writes it
        assert understood == policy(role, bucket="my-lake", prefix="prod/")
    assert client("s3").get_bucket_encryption(Bucket="my-lake")["ServerSideEncryptionConfiguration"]["Rules"]
    [machine] = client("ec2").describe_instances()["Reservations"][0]["Instances"]
    assert machine["InstanceId"] == outputs["MachineId"]
    [volume] = client("ec2").describe_volumes(VolumeIds=[outputs["DataVolumeId"]])["Volumes"]
    assert volume["Size"] == 10
    assert [each["InstanceId"] for each in volume["Attachments"]] == [machine["InstanceId"]]
