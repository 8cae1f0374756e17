"""IAM as AWS decides it, for the few things that our policies say: what is not allowed is denied. Else it refuses to guess.

No S3 server that runs here knows the conditions `s3:if-none-match` and `s3:if-match`, on which "create-only" rests.
"""

import re
from collections.abc import Mapping
from typing import Any


def allows(policy: Mapping[str, Any], action: str, resource: str, context: Mapping[str, str]) -> bool:
    """Whether an identity policy lets its owner do it. `context` holds the condition keys that the request has."""
    return any(_grants(statement, action, resource, context) for statement in policy["Statement"])


def _grants(statement: Mapping[str, Any], action: str, resource: str, context: Mapping[str, str]) -> bool:
    if statement["Effect"] != "Allow" or not statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}:
        raise NotImplementedError(f"not decided here: {statement}")
    return (
        any(_is_like(action, each) for each in _listed(statement["Action"]))
        and any(_is_like(resource, each) for each in _listed(statement["Resource"]))
        and all(
            _holds(operator, key, _listed(wanted), context)
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
    )


def _holds(operator: str, key: str, wanted: list[str], context: Mapping[str, str]) -> bool:
    if operator == "StringLike":
        return key in context and any(_is_like(context[key], each) for each in wanted)
    if operator == "Null":
        return wanted == [str(key not in context).lower()]
    raise NotImplementedError(f"not decided here: {operator}")


def _is_like(text: str, pattern: str) -> bool:
    """With `*` for any characters, slashes too, and `?` for one."""
    expression = "".join({"*": ".*", "?": "."}.get(each, re.escape(each)) for each in pattern)
    return re.fullmatch(expression, text, re.DOTALL) is not None


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]
