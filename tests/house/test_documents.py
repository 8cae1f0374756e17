"""The documents and the code say the same: settings, commands, decisions, locks."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from click import Option
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sandbox.__main__ import main as sandbox
from sandbox.s3 import ACCESS_KEY, SECRET_KEY
from schemas.settings import Settings
from tests.house.checkout import ROOT, files, pyproject, text

ROW = re.compile(r"^\| `(?P<setting>[\w.]+)` \| (?P<default>\S.*?) \| (?P<values>\S.*?) \|", re.MULTILINE)
DECISIONS = [file for file in files() if file.parts[:2] == ("docs", "adr")]
LOCKS = [file for file in files() if file.suffix == ".lock"]


def documented_settings() -> dict[str, str]:
    return {match["setting"]: match["default"].strip("`") for match in ROW.finditer(text("docs/settings.md"))}


def fields_of_the_model() -> dict[str, FieldInfo]:
    """Each setting by its dotted name."""
    found = {}
    for section, field in Settings.model_fields.items():
        model: Any = field.annotation
        model = model if isinstance(model, type) and issubclass(model, BaseModel) else model.__args__[0]
        found |= {f"{section}.{name}": setting for name, setting in model.model_fields.items()}
    return found


def as_toml(default: object) -> str:
    if default is PydanticUndefined:
        return "required"
    return "-" if default is None else json.dumps(default, default=str)


def test_every_setting_is_documented_with_its_default() -> None:
    assert documented_settings() == {name: as_toml(field.default) for name, field in fields_of_the_model().items()}


def range_in_words(field: FieldInfo) -> str:
    """What a setting's values are bound by, as docs/settings.md writes it; empty if by nothing."""
    bounds = {
        kind: getattr(bound, kind)
        for bound in field.metadata
        for kind in ("ge", "gt", "le", "lt", "min_length", "max_length")
        if getattr(bound, kind, None) is not None
    }
    match bounds:
        case {"ge": least, "le": most}:
            return f"{least} to {most}"
        case {"gt": least, "le": most}:
            return f"above {least}, up to {most}"
        case {"ge": least}:
            return f"from {least}"
        case {"min_length": least, "max_length": most}:
            return f"{least} to {most} characters"
        case {"max_length": most}:
            return f"up to {most} characters"
    assert not bounds, f"write here how docs/settings.md tells {bounds}"
    return ""


@pytest.mark.parametrize("name", sorted(fields_of_the_model()))
def test_the_values_that_a_setting_takes_are_those_of_the_documentation(name: str) -> None:
    [documented] = [match["values"] for match in ROW.finditer(text("docs/settings.md")) if match["setting"] == name]
    field = fields_of_the_model()[name]
    allowed, said = range_in_words(field), re.sub(r"`[^`]*`(, )?", "", documented)
    if re.search(r"\d", said):
        assert said.startswith(allowed or "nothing that binds")
    else:
        assert not allowed, "a bound that is not told"
    choices = [value for part in (field.annotation, *get_args(field.annotation)) for value in literals_of(part)]
    assert [f'`"{value}"`' for value in choices] == re.findall(r'`"\w+"`', documented)


def literals_of(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def test_the_smallest_settings_file_of_the_documentation_works() -> None:
    example = re.search(r"```toml\n(.*?)```", text("docs/settings.md"), re.DOTALL)
    assert example is not None
    assert Settings(**tomllib.loads(example[1])).query[0].name == "python"


def test_what_is_tried_by_hand_is_set_as_the_sandbox_is() -> None:
    page = text("docs/sandbox.md")
    example = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert example is not None
    settings = Settings(**tomllib.loads(example[1]))
    x, s3 = (
        {option.name: option.default for option in sandbox.commands[name].params if isinstance(option, Option)}
        for name in ("x-api", "s3")
    )
    assert settings.x.base_url == f"http://{x['host']}:{x['port']}"
    assert (settings.lake.bucket, settings.lake.endpoint_url) == (s3["bucket"], f"http://127.0.0.1:{s3['port']}")
    assert f"X_BEARER_TOKEN={x['token']}" in page
    assert f"AWS_ACCESS_KEY_ID={ACCESS_KEY} AWS_SECRET_ACCESS_KEY={SECRET_KEY}" in page
    assert f"http://{settings.health.host}:{settings.health.port}/" in page


def test_every_section_of_the_documentation_is_a_section_of_the_file() -> None:
    headings = re.findall(r"^## `\[+(\w+)\]+`", text("docs/settings.md"), re.MULTILINE)
    assert sorted(headings) == sorted(Settings.model_fields)


def commands() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", text("Makefile"), re.MULTILINE))


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    documented = set(re.findall(r"`make ([a-z-]+)", text("CONTRIBUTING.md")))
    assert documented == commands()


def test_pages_name_only_commands_that_exist() -> None:
    named = {
        command
        for file in files()
        if file.suffix == ".md"
        for block in re.findall(r"`(?:make )[^`\n]*`|^make .*$", text(file), re.MULTILINE)
        for command in re.findall(r"^`?make ([a-z-]+)", block)
    }
    assert named <= commands()


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([\w.]+)", text("Makefile")))))
def test_every_command_runs_a_module_that_exists(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("script", [".ci/run", ".ci/environment"])
def test_the_scripts_can_be_run(script: str) -> None:
    assert (ROOT / script).stat().st_mode & 0o111 == 0o111


def test_decisions_are_numbered_without_holes() -> None:
    assert [int(file.name[:4]) for file in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("file", DECISIONS, ids=lambda file: file.stem)
def test_a_decision_has_its_parts_and_is_short(file: Path) -> None:
    decision = text(file)
    assert re.match(rf"# {int(file.name[:4])}\. \S", decision)
    assert re.search(r"^(Proposed|Accepted|Superseded by \d+), \d{4}-\d{2}-\d{2}\.$", decision, re.MULTILINE)
    assert re.findall(r"^## (.+)$", decision, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    assert len(decision.split()) < 600


def locked(file: Path) -> dict[str, str]:
    return {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", text(file), re.MULTILINE)
    }


@pytest.mark.parametrize("file", LOCKS, ids=lambda file: file.stem)
def test_a_lock_pins_every_single_package_by_hash(file: Path) -> None:
    entries = re.split(r"\n(?=\S)", text(file).strip())
    assert all(re.match(r"[\w.-]+==\S+", entry) and "--hash=sha256:" in entry for entry in entries)


@pytest.mark.parametrize("extra", ["ingester", "compaction", "airflow", "dev"])
def test_the_locks_satisfy_pyproject(extra: str) -> None:
    versions = locked(Path(f"requirements/{extra}.lock"))
    for requirement in direct_requirements(extra):
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{requirement} is not locked: run `make lock`"
        assert requirement.specifier.contains(versions[name]), f"{requirement} is not what is locked: run `make lock`"


def direct_requirements(extra: str) -> list[Requirement]:
    project = pyproject()["project"]
    found, todo = list(project["dependencies"]), [extra]
    while todo:
        for entry in project["optional-dependencies"][todo.pop()]:
            requirement = Requirement(entry)
            if requirement.name == project["name"]:
                todo += requirement.extras
            else:
                found.append(entry)
    return [Requirement(entry) for entry in found]


def layers(container: str) -> list[list[str]]:
    """The rooms of a container, top to bottom, as import-linter is told them."""
    contracts = pyproject()["tool"]["importlinter"]["contracts"]
    [contract] = [contract for contract in contracts if contract.get("containers") == [container]]
    return [re.findall(r"\w+", layer) for layer in contract["layers"]]


def test_the_architecture_page_has_the_rooms_of_the_ingester_in_their_order() -> None:
    table = text("docs/architecture.md").split("`ingester/`, top to bottom")[1].split("\n\n")[1]
    rows = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in table.splitlines()]
    assert [sorted(row) for row in rows if row] == [sorted(layer) for layer in layers("ingester")]


def test_the_architecture_page_has_the_rooms_of_compaction_in_their_order() -> None:
    table = text("docs/architecture.md").split("runs without Airflow, top to bottom:")[1].split("\n\n")[1]
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines()]
    assert [sorted(row) for row in rows if row] == [sorted(layer) for layer in layers("compaction_dags.compaction")]
