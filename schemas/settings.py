"""The settings file that both programs read: its sections, defaults and checks, and what is wrong with it in words.

TOML, any value also by environment as `TWEETLAKE__SECTION__KEY`; environment wins. Unknown keys are errors, because a
misspelt cap is no cap. `load` reports every problem at once, each with the setting, the value and what to do.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as BrokenEnvironment

CONFIG_ENV = "TWEETLAKE_CONFIG"
DEFAULT_CONFIG = Path("/etc/tweetlake/tweetlake.toml")
ENV_PREFIX = "TWEETLAKE__"
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: systemd is told not to restart on it."""

MAX_RULE = 4096
"""Longest rule X's specification allows; self-serve access refuses more than 512 characters with a clear 400."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the settings: where, what was found, what is wrong and how to mend it."""

    setting: str
    value: str
    what: str
    fix: str

    def __str__(self) -> str:
        shown = f" = {self.value}" if self.value else ""
        return f"{self.setting}{shown}\n    {self.what}\n    fix: {self.fix}"


class SettingsError(Exception):
    """The settings cannot be used. Holds every problem found, not only the first."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {problem}" for problem in problems))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _folder_prefix(value: str) -> str:
    if value.startswith("/") or "//" in value:
        raise ValueError("a prefix has no leading and no double slash")
    return value if not value or value.endswith("/") else f"{value}/"


def _http_url(value: str) -> str:
    if value and not value.startswith(("https://", "http://")):
        raise ValueError("a URL starts with https:// or http://")
    return value.rstrip("/")


def _rich_lean_or_names(value: object) -> object:
    """Said once: pydantic would tell for each of the two kinds why it is not that one."""
    is_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    if is_names or value in ("rich", "lean"):
        return value
    raise ValueError('is neither "rich" nor "lean" nor a list of tweet fields')


Url = Annotated[str, AfterValidator(_http_url)]


class X(_Section):
    """How X is asked. What a page costs depends on `fields` and `expansions`: `tweetlake check` prints it."""

    base_url: Url = "https://api.x.com"
    bearer_token_file: Path | None = Field(None, description="A file with the app's bearer token, mode 0600.")
    fields: Annotated[Literal["rich", "lean"] | list[str], BeforeValidator(_rich_lean_or_names)] = Field(
        "rich", description="rich: everything an app may read; lean: posts only; or a list of tweet fields."
    )
    expansions: list[str] | None = Field(
        None, description="What to include beside the posts; not given: all with rich, none with lean or a list."
    )
    max_results: int = Field(100, ge=10, le=100, description="Posts per page.")
    concurrency: int = Field(4, ge=1, le=32, description="Requests under way at once.")
    timeout_seconds: float = Field(30.0, gt=0, le=300, description="For one whole answer.")


class Query(_Section):
    """A search rule that is polled for ever. Its name is its identity, in every table."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$", max_length=64)
    rule: str = Field(min_length=1, max_length=MAX_RULE, description="X's search syntax; self-serve: 512 characters.")
    poll_every_seconds: float = Field(30.0, ge=0.1, le=86_400)
    first_poll_hours: float = Field(1.0, ge=0, le=168, description="How far back a query with no history starts.")
    overlap_seconds: float = Field(30.0, ge=0, le=3_600, description="Re-read this much behind the frontier; 0: off.")
    reread_minutes: float = Field(0.0, ge=0, le=1_440, description="Once an hour, re-read the last so many; 0: off.")
    usd_per_month: float | None = Field(None, ge=0, description="This query's own cap, within the common one.")
    usd_per_day: float | None = Field(None, ge=0)


class Spool(_Section):
    """The durable local queue."""

    directory: Path = Path("/var/lib/tweetlake/spool")
    max_bytes: int = Field(5_000_000_000, ge=1_000_000, description="Polling stops when this much waits.")
    min_free_bytes: int = Field(500_000_000, ge=0, description="Polling stops when the disk has less left.")
    seal_after_seconds: float = Field(60.0, gt=0, le=3_600)
    seal_after_bytes: int = Field(16_000_000, ge=10_000, le=1_000_000_000)
    codec: Literal["zstandard", "deflate", "null"] = Field(
        "zstandard", description="deflate for people who query raw with DuckDB, Polars or Athena."
    )


class Lake(_Section):
    """The bucket where raw and curated lie."""

    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    prefix: Annotated[str, AfterValidator(_folder_prefix)] = ""
    endpoint_url: Url = Field("", description="Empty: AWS.")
    region: str = "us-east-1"
    lease_seconds: float = Field(20.0, ge=0, le=3_600, description="A second ingester waits three of these; 0: off.")
    raw_days: int = Field(
        0, ge=0, le=36_500, description="After so many days a rule of the bucket deletes raw; 0: it never does."
    )


class Budget(_Section):
    """What may be spent. A cap that is not given does not bind; without any, X's own limit is the only one."""

    usd_per_month: float | None = Field(50.0, ge=0)
    usd_per_day: float | None = Field(None, ge=0)
    posts_per_month: int | None = Field(None, ge=0)
    posts_per_day: int | None = Field(None, ge=0)
    reconcile: bool = Field(True, description="Ask X once an hour what it counted, and book what we missed.")


class Price(_Section):
    """X's pay-per-use prices of late 2026, in US dollars. Whether included objects are billed is unresolved at X, so
    the worst case is booked unless `bill_includes` says otherwise.
    """

    post_usd: float = Field(0.005, ge=0)
    user_usd: float = Field(0.010, ge=0)
    counts_request_usd: float = Field(0.005, ge=0)
    repeat_post_usd: float = Field(0.0, ge=0, description="The same post again within one UTC day.")
    bill_includes: bool = True


class Audit(_Section):
    """What proves that nothing is missing."""

    counts_daily: bool = Field(True, description="Ask once a day how many posts each hour had; one request per query.")


class Transform(_Section):
    """The user's own step on new rows: a pandas DataFrame in, a DataFrame out."""

    function: str = Field("", pattern=r"^$|^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description='"package.module:name"')


class Compaction(_Section):
    """How compaction uses its machine."""

    processes: int = Field(0, ge=0, le=64, description="For one raw hour; 0: one, or two if it is large; 400 MB each.")


class Health(_Section):
    """Where the service answers about itself."""

    host: str = "127.0.0.1"
    port: int = Field(9478, ge=0, le=65_535, description="0: any free port, printed in the log.")
    token_file: Path | None = Field(None, description="A file with the token that who asks must send; mode 0600.")

    @property
    def is_open(self) -> bool:
        """Whether it listens elsewhere than on loopback, so that other machines may reach it."""
        try:
            return not ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"


class Service(_Section):
    """The life of the process."""

    grace_seconds: float = Field(20.0, gt=0, le=300, description="To finish and ship after SIGTERM.")


class Settings(BaseSettings):
    """Everything both programs may be told."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    lake: Lake
    query: list[Query] = Field(min_length=1)
    x: X = X()
    spool: Spool = Spool()
    budget: Budget = Budget()
    price: Price = Price()
    audit: Audit = Audit()
    transform: Transform = Transform()
    compaction: Compaction = Compaction()
    health: Health = Health()
    service: Service = Service()

    @field_validator("query")
    @classmethod
    def _unique_names(cls, queries: list[Query]) -> list[Query]:
        names = [query.name for query in queries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"used twice: {', '.join(twice)}; the name is a query's identity")
        return queries

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings' own
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (env_settings, init_settings)


def config_path(given: Path | None = None) -> Path:
    """The settings file: `--config`, then `TWEETLAKE_CONFIG`, then /etc/tweetlake/tweetlake.toml."""
    return given or Path(os.environ.get(CONFIG_ENV) or DEFAULT_CONFIG)


def load(path: Path | None = None) -> Settings:
    """Read and check the settings. Raises SettingsError with every problem."""
    file = config_path(path)
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        fix = f"write one (docs/settings.md shows the smallest), or name it by --config or {CONFIG_ENV}"
        raise SettingsError(str(file), [Problem("settings file", str(file), "does not exist", fix)]) from error
    except (OSError, UnicodeDecodeError) as error:
        fix = "make it readable UTF-8 text for this user"
        raise SettingsError(
            str(file), [Problem("settings file", str(file), f"cannot be read: {error}", fix)]
        ) from error
    except tomllib.TOMLDecodeError as error:
        fix = "mend the TOML at that place; text values stand in quotes"
        raise SettingsError(str(file), [Problem("settings file", str(file), f"is not TOML: {error}", fix)]) from error
    problems = list(_problems_of_names(os.environ))
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(str(file), problems + [_problem(detail) for detail in error.errors()]) from error
    except BrokenEnvironment as error:  # a section's whole value that is no JSON
        broken = list(_problems_of_json(os.environ))
        untold = Problem(f"environment {ENV_PREFIX}*", "", str(error), "write lists and tables as JSON")
        raise SettingsError(str(file), problems + (broken or [untold])) from error
    if problems:
        raise SettingsError(str(file), problems)
    return _found_from(file.parent.absolute(), settings)


def _found_from(folder: Path, settings: Settings) -> Settings:
    """Relative paths count from the folder of the settings file, wherever a program was started."""

    def found(path: Path | None) -> Path | None:
        return None if path is None else folder / path

    return settings.model_copy(
        update={
            "x": settings.x.model_copy(update={"bearer_token_file": found(settings.x.bearer_token_file)}),
            "spool": settings.spool.model_copy(update={"directory": found(settings.spool.directory)}),
            "health": settings.health.model_copy(update={"token_file": found(settings.health.token_file)}),
        }
    )


# What is wrong, in words of ours.


def _names_of(section: str) -> list[str]:
    """The settings of a section."""
    annotation: Any = Settings.model_fields[section].annotation
    return list((Query if section == "query" else annotation).model_fields)


def _problems_of_names(environment: Mapping[str, str]) -> Iterator[Problem]:
    """Variables that were meant as settings, and are none: a cap that is not read is no cap."""
    sections = sorted(Settings.model_fields)
    flat = {f"{section}_{name}": f"{section}__{name}" for section in sections for name in _names_of(section)}
    for name in environment:
        rest = name.upper().removeprefix(ENV_PREFIX).lower()
        if name.upper().startswith(ENV_PREFIX):
            section = rest.split("__")[0]
            if section not in sections:
                meant = flat.get(rest.replace("__", "_"))
                fix = _did_you_mean(section, sections) or f"sections are {', '.join(sections)}"
                yield Problem(name, "", "no such section", f"write {_variable(meant)}" if meant else fix)
        elif name.upper().startswith(ENV_PREFIX.removesuffix("_")):
            rest = name.upper().removeprefix(ENV_PREFIX.removesuffix("_")).lower()
            meant = flat.get(rest.replace("__", "_"))
            if meant or "__" in rest:
                what = f"would not be read: settings begin with {ENV_PREFIX}, two underscores"
                yield Problem(name, "", what, f"write {_variable(meant or rest)}")


def _variable(setting: str) -> str:
    return f"{ENV_PREFIX}{setting.upper()}"


def _problems_of_json(environment: Mapping[str, str]) -> Iterator[Problem]:
    for name, value in environment.items():
        if name.upper() in {_variable(section) for section in Settings.model_fields}:
            try:
                json.loads(value)
            except ValueError as error:
                yield Problem(name, "", f"is not JSON: {error}", "write lists and tables as JSON")


def _problem(detail: Any) -> Problem:
    loc = detail["loc"]
    place = ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in loc).replace(".[", "[")
    variable = _variable_of(loc, os.environ)
    value = "" if detail["type"] == "missing" else json.dumps(detail["input"], default=str)
    what, fix = _words(detail, [part for part in loc if isinstance(part, str)])
    return Problem(f"{place}, from {variable}" if variable else place or "settings", value[:200], what, fix)


def _variable_of(loc: Sequence[str | int], environment: Mapping[str, str]) -> str | None:
    """The variable that gave the value there; None when it stands in the file."""
    for name, value in environment.items():
        parts = name.upper().removeprefix(ENV_PREFIX).lower().split("__")
        is_ours = name.upper().startswith(ENV_PREFIX) and parts == [str(part).lower() for part in loc[: len(parts)]]
        if is_ours and _holds(value, loc[len(parts) :]):
            return name
    return None


def _holds(value: str, rest: Sequence[str | int]) -> bool:
    """Whether a variable with a table or list has a value there; the file may give the others of a section."""
    if not rest:
        return True
    try:
        found = json.loads(value)
    except ValueError:
        return False
    return isinstance(found, list) or (isinstance(found, dict) and rest[0] in found)


def _words(detail: Any, names: list[str]) -> tuple[str, str]:
    """What is wrong with a value, and the fix."""
    kind, value, setting = detail["type"], detail["input"], ".".join(names)
    if kind == "extra_forbidden":
        return "is no setting", _meant(names)
    if names == ["query"] and isinstance(value, dict):
        return "is one table, and there may be several", "write [[query]], in two brackets; as JSON a list of tables"
    if setting == "lake.bucket" and (found := re.match(r"(?:s3a?://|arn:[\w-]+:s3:::)([^/]+)/?(.*)", str(value))):
        rest = f", and lake.prefix = {json.dumps(found[2])}" if found[2] else ""
        return "is more than a name", f"give the bucket's name alone: {found[1]}{rest}"
    if kind == "string_pattern_mismatch" and setting in _PATTERNS:
        return _PATTERNS[setting]
    if kind in _KINDS:
        return _KINDS[kind]
    what = str(detail["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    return what, _FIXES.get(setting) or _fix_from_bounds(detail)


_PATTERNS = {
    "lake.bucket": ("is no bucket's name", "give 3 to 63 of a-z, 0-9, dot and hyphen, without a slash"),
    "query.name": ("has other characters than a-z, 0-9, _ and -", "use only those"),
    "transform.function": ("names no function", 'write it as "package.module:name"'),
}
"""For each setting that has a pattern: what does not fit it."""
_FIXES = {
    "x.fields": 'give "rich", "lean", or a list such as ["lang", "geo"]',
    "x.base_url": "begin it with https:// or http://",
    "lake.endpoint_url": "begin it with https:// or http://",
    "lake.prefix": "write it as tweets/2026",
    "query": "give each query a name of its own",
}
"""For each setting with a check of ours."""
_NO_NUMBER = ("is no number", "give a number, without quotes and unit")
_NO_WHOLE_NUMBER = ("is no whole number", "give a whole number, without quotes and unit")
_NO_BOOL = ("is neither true nor false", "give true or false")
_KINDS = {
    "missing": ("is missing", "add it"),
    "too_short": ("is empty", "add at least one"),
    "string_too_short": ("is empty", "give at least one character"),
    "string_type": ("is no text", "write it in quotes"),
    "path_type": ("is no path", 'write a path in quotes, as "/var/lib/tweetlake/spool"'),
    "list_type": ("is no list", 'write a list of texts, as ["one", "two"]'),
    "model_type": ("is no table", "write a heading in brackets, its settings below; docs/settings.md shows each"),
    "finite_number": ("is no finite number", "give a number, a large one if nothing shall bind"),
    "float_type": _NO_NUMBER,
    "float_parsing": _NO_NUMBER,
    "int_type": _NO_WHOLE_NUMBER,
    "int_parsing": _NO_WHOLE_NUMBER,
    "int_from_float": _NO_WHOLE_NUMBER,
    "bool_type": _NO_BOOL,
    "bool_parsing": _NO_BOOL,
}
"""By pydantic's name of what is wrong; its own sentences name classes and kinds of Python."""


def _meant(names: list[str]) -> str:
    """What a name that is no setting was meant to be."""
    *section, name = names
    if elsewhere := [f"{other}.{name}" for other in Settings.model_fields if name in _names_of(other)]:
        return f"did you mean {' or '.join(elsewhere)}?"
    if section:
        close = _did_you_mean(name, _names_of(section[0]), before=f"{section[0]}.")
    else:
        close = _did_you_mean(name, Settings.model_fields)
    return close or "remove it; docs/settings.md lists every setting"


def _did_you_mean(name: str, names: Iterable[str], before: str = "") -> str | None:
    close = difflib.get_close_matches(name.lower(), list(names), n=1)
    return f"did you mean {before}{close[0]}?" if close else None


def _fix_from_bounds(detail: Any) -> str:
    bounds = detail.get("ctx") or {}
    parts = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "expected": "one of"}
    words = [f"{word} {bounds[key]}" for key, word in parts.items() if key in bounds]
    return f"give {' and '.join(words)}" if words else "give a value as docs/settings.md shows"
