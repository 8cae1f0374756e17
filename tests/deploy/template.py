"""deploy/tweetlake.yaml as AWS would take it: parameters checked, conditions decided, intrinsic functions resolved.

The one source of the policies for whoever proves them: `policy("IngesterRole", bucket=..., prefix=...)`.
"""

import base64
import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

from tests.house.checkout import text

FILE = "deploy/tweetlake.yaml"
ACCOUNT, REGION = "123456789012", "eu-central-1"
NETWORK = {"VpcId": "vpc-0a1b2c3d", "SubnetId": "subnet-0a1b2c3d"}
"""What has no default."""
NOT_KNOWN_TO_SEAWEEDFS = {"s3:if-none-match", "s3:if-match"}

_PSEUDO = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::StackName": "tweetlake",
    "AWS::URLSuffix": "amazonaws.com",
}
_NOTHING = object()
"""AWS::NoValue: whatever holds it does without."""


class Refused(Exception):
    """What CloudFormation itself says about a parameter, before it makes anything."""


# Reading.


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms: `!Sub x` is `{Fn::Sub: x}`."""


def _in_long_form(loader: Any, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if name == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {name if name in {"Ref", "Condition"} else f"Fn::{name}": value}


_Loader.add_multi_constructor("!", _in_long_form)


@cache
def _parsed() -> Any:
    return yaml.load(text(FILE), _Loader)


def template() -> dict[str, Any]:
    """The whole template in long form."""
    return copy.deepcopy(_parsed())


def refusal(name: str, value: str) -> str:
    """Why CloudFormation does not take a value of a parameter, in the words of the template; empty when it does."""
    declared = _parsed()["Parameters"][name]
    pattern = declared.get("AllowedPattern")
    taken = (
        (pattern is None or re.fullmatch(pattern, value, re.ASCII) is not None)
        and value in declared.get("AllowedValues", [value])
        and len(value) <= declared.get("MaxLength", len(value))
        and (declared["Type"] != "Number" or _is_within(value, declared))
    )
    return "" if taken else declared["ConstraintDescription"]


def _is_within(value: str, declared: Mapping[str, Any]) -> bool:
    return value.isdigit() and declared["MinValue"] <= int(value) <= declared["MaxValue"]


# Making.


@dataclass
class Stack:
    """A stack with these parameters. Raises Refused for those that CloudFormation refuses."""

    given: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        declared = _parsed()["Parameters"]
        assert self.given.keys() <= declared.keys(), f"no such parameter: {self.given.keys() - declared.keys()}"
        defaults = {name: str(each["Default"]) for name, each in declared.items() if "Default" in each}
        self._parameters = {**NETWORK, **defaults, **self.given}
        for name, value in self._parameters.items():
            if why := refusal(name, value):
                raise Refused(f"{name}: {why}")

    @property
    def resources(self) -> dict[str, Any]:
        """Those that are made, by their logical name, each with `Type` and resolved `Properties`."""
        return {
            name: self._resolved(each)
            for name, each in _parsed()["Resources"].items()
            if "Condition" not in each or self._holds(each["Condition"])
        }

    def of_type(self, kind: str) -> dict[str, Any]:
        """The properties of the resources of one type, such as `AWS::S3::Bucket`."""
        return {name: each["Properties"] for name, each in self.resources.items() if each["Type"] == kind}

    def properties(self, name: str) -> dict[str, Any]:
        properties: dict[str, Any] = self.resources[name]["Properties"]
        return properties

    @property
    def outputs(self) -> dict[str, str]:
        return {name: self._resolved(each["Value"]) for name, each in _parsed()["Outputs"].items()}

    # The intrinsic functions that the template uses; another one is an error.

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, list):
            return [each for each in map(self._resolved, value) if each is not _NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            [(name, argument)] = value.items()
            if name == "Ref":
                return self._ref(argument)
            if name.startswith("Fn::"):
                return getattr(self, f"_{name.removeprefix('Fn::').lower()}")(argument)
        resolved = {key: self._resolved(each) for key, each in value.items()}
        return {key: each for key, each in resolved.items() if each is not _NOTHING}

    def _ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return _NOTHING
        if name in self._parameters:
            return self._parameters[name]
        if name in _PSEUDO:
            return _PSEUDO[name]
        kind = _parsed()["Resources"][name]["Type"]
        if kind == "AWS::S3::Bucket":
            return self._parameters["BucketName"] or "named-by-aws"
        if kind == "AWS::SecretsManager::Secret":
            return f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{name}-a1b2c3"
        if kind == "AWS::Glue::Database":
            return self._parameters["AthenaDatabaseName"]
        return name

    def _getatt(self, path: list[str]) -> str:
        name, attribute = path
        kind = _parsed()["Resources"][name]["Type"]
        if attribute == "Arn":
            return {
                "AWS::S3::Bucket": f"arn:aws:s3:::{self._ref(name)}",
                "AWS::IAM::Role": f"arn:aws:iam::{ACCOUNT}:role/{name}",
            }[kind]
        return f"{name}.{attribute}"

    def _sub(self, argument: Any) -> str:
        pattern, own = (argument, {}) if isinstance(argument, str) else argument
        own = {name: self._resolved(each) for name, each in own.items()}

        def value(found: re.Match[str]) -> str:
            name = found[1]
            return str(
                own[name] if name in own else self._getatt(name.split(".", 1)) if "." in name else self._ref(name)
            )

        return re.sub(r"\$\{([\w:.]+)\}", value, pattern)

    def _if(self, argument: list[Any]) -> Any:
        condition, then, otherwise = argument
        return self._resolved(then if self._holds(condition) else otherwise)

    def _holds(self, condition: str) -> bool:
        return bool(self._resolved(_parsed()["Conditions"][condition]))

    def _equals(self, argument: list[Any]) -> bool:
        one, other = self._resolved(argument)
        return bool(one == other)

    def _not(self, argument: list[Any]) -> bool:
        return not self._resolved(argument[0])

    def _findinmap(self, argument: list[Any]) -> Any:
        name, first, second = self._resolved(argument)
        return _parsed()["Mappings"][name][first][second]

    def _base64(self, argument: Any) -> str:
        return base64.b64encode(self._resolved(argument).encode()).decode()


def stack(**given: str) -> Stack:
    return Stack(given)


# Policies.


def policy(role: str, *, bucket: str = "lake", prefix: str = "") -> dict[str, Any]:
    """All that a role may do, as one IAM policy of plain JSON."""
    made = stack(BucketName=bucket, LakePrefix=prefix)
    documents = [each["PolicyDocument"] for each in made.properties(role).get("Policies", [])]
    apart = made.of_type("AWS::IAM::Policy").values()
    documents += [each["PolicyDocument"] for each in apart if role in each["Roles"]]
    statements = [statement for document in documents for statement in document["Statement"]]
    return {"Version": "2012-10-17", "Statement": statements}


def enforceable(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The same policy without the conditions that SeaweedFS does not know; it would take them as never true."""
    weaker: dict[str, Any] = copy.deepcopy(dict(wanted))
    for statement in weaker["Statement"]:
        conditions = {
            operator: {key: value for key, value in keys.items() if key not in NOT_KNOWN_TO_SEAWEEDFS}
            for operator, keys in statement.pop("Condition", {}).items()
        }
        if kept := {operator: keys for operator, keys in conditions.items() if keys}:
            statement["Condition"] = kept
    return weaker
