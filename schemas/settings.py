"""The settings file that both programs read: its sections, defaults and checks, and the one place secrets come from.

TOML, any value also by environment as `TWEETLAKE__SECTION__KEY`; environment wins. Unknown keys are errors, because a
misspelt cap is no cap. `load` reports every problem at once, each with the setting, the value and what to do.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

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
    model_config = ConfigDict(extra="forbid", frozen=True)


def _folder_prefix(value: str) -> str:
    if value.startswith("/") or "//" in value:
        raise ValueError("a prefix has no leading and no double slash")
    return value if not value or value.endswith("/") else f"{value}/"


def _http_url(value: str) -> str:
    if value and not value.startswith(("https://", "http://")):
        raise ValueError("a URL starts with https:// or http://")
    return value.rstrip("/")


Url = Annotated[str, AfterValidator(_http_url)]


class X(_Section):
    """How X is asked. What a page costs depends on `fields` and `expansions`: `tweetlake check` prints it."""

    base_url: Url = "https://api.x.com"
    bearer_token_file: Path | None = Field(None, description="A file with the app's bearer token, mode 0600.")
    fields: Literal["rich", "lean"] | list[str] = Field(
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
    problems = _unknown_environment(os.environ)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(str(file), problems + [_problem(detail) for detail in error.errors()]) from error
    except Exception as error:  # pydantic-settings raises its own kind when JSON in the environment is broken
        if type(error).__name__ != "SettingsError":
            raise
        problems.append(Problem(f"environment {ENV_PREFIX}*", "", str(error), "lists and tables are written as JSON"))
        raise SettingsError(str(file), problems) from error
    if problems:
        raise SettingsError(str(file), problems)
    return settings


def _unknown_environment(environment: Mapping[str, str]) -> list[Problem]:
    known = sorted(Settings.model_fields)
    return [
        Problem(name, "", "no such section", f"sections are {', '.join(known)}")
        for name in environment
        if name.startswith(ENV_PREFIX) and name.removeprefix(ENV_PREFIX).split("__")[0].lower() not in known
    ]


_FIXES = {
    "missing": "add it",
    "extra_forbidden": "remove it or mend its spelling; docs/settings.md lists every setting",
    "string_pattern_mismatch": "use only the characters that the pattern allows",
    "too_short": "add at least one",
}


def _problem(detail: Any) -> Problem:
    place = ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in detail["loc"]).replace(".[", "[")
    kind = detail["type"]
    value = "" if kind == "missing" else json.dumps(detail["input"], default=str)
    what = str(detail["msg"]).removeprefix("Value error, ")
    return Problem(place or "settings", value[:200], what, _FIXES.get(kind) or _fix_from_bounds(detail))


def _fix_from_bounds(detail: Any) -> str:
    bounds = detail.get("ctx") or {}
    parts = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "expected": "one of"}
    words = [f"{word} {bounds[key]}" for key, word in parts.items() if key in bounds]
    return f"give {' and '.join(words)}" if words else "give a value as docs/settings.md shows"


SHORTEST_HEALTH_TOKEN = 16
"""Characters: who can reach the port may guess as often as the machine answers."""


def load_health_token(token_file: Path | None, environment: Mapping[str, str] | None = None) -> SecretStr | None:
    """The token that the health endpoints ask for: `health.token_file`, then the systemd credential health-token.

    None when neither is there: then nothing is asked for. Raises SettingsError when it cannot be read or is too short.
    """
    env = os.environ if environment is None else environment
    file = token_file
    if file is None and (credentials := env.get("CREDENTIALS_DIRECTORY")):
        found = Path(credentials) / "health-token"
        file = found if found.exists() else None
    if file is None:
        return None
    token = _secret_of("health.token_file", file, "openssl rand -hex 24 makes one")
    if len(token) < SHORTEST_HEALTH_TOKEN or not token.isascii() or not token.isprintable():
        what = f"does not hold a token of {SHORTEST_HEALTH_TOKEN} or more printable ASCII characters"
        raise SettingsError("secret", [Problem("health.token_file", str(file), what, "openssl rand -hex 24 makes one")])
    return SecretStr(token)


@dataclass(frozen=True, slots=True)
class XSecret:
    """What proves to X who asks: a bearer token, or a key and secret to be exchanged for one at /oauth2/token."""

    bearer_token: SecretStr | None = None
    api_key: SecretStr | None = None
    api_secret: SecretStr | None = None


def load_x_secret(bearer_token_file: Path | None, environment: Mapping[str, str] | None = None) -> XSecret:
    """Find the secret: env X_BEARER_TOKEN, then x.bearer_token_file, then the systemd credential x-bearer-token, then
    X_API_KEY with X_API_SECRET. Raises SettingsError naming all four when none is there, or what is wrong with the one
    that is.
    """
    env = os.environ if environment is None else environment
    if token := env.get("X_BEARER_TOKEN", "").strip():
        return XSecret(bearer_token=_checked("X_BEARER_TOKEN", "", token))
    setting, file = "x.bearer_token_file", bearer_token_file
    if file is None and (credentials := env.get("CREDENTIALS_DIRECTORY")):
        found = Path(credentials) / "x-bearer-token"
        setting, file = "systemd credential x-bearer-token", found if found.exists() else None
    if file is not None:
        token = _secret_of(setting, file, "put the app's bearer token into it")
        if not token:
            raise _bad_secret(setting, file, "is empty", "put the app's bearer token into it")
        return XSecret(bearer_token=_checked(setting, file, token))
    if (pair := _key_and_secret(env)) is not None:
        return pair
    fix = (
        "set X_BEARER_TOKEN, or x.bearer_token_file, or the systemd credential x-bearer-token, "
        "or X_API_KEY with X_API_SECRET"
    )
    raise SettingsError("secret", [Problem("X's bearer token", "", "was not found", fix)])


def _key_and_secret(env: Mapping[str, str]) -> XSecret | None:
    """Both or neither: one of them alone was meant to be a pair."""
    pair = {name: env.get(name, "").strip() for name in ("X_API_KEY", "X_API_SECRET")}
    there = [name for name, value in pair.items() if value]
    if not there:
        return None
    for name, value in pair.items():
        if not value:
            raise _bad_secret(name, "", f"is missing beside {there[0]}", f"set {name} too: X needs both")
    key, secret = (_checked(name, "", value) for name, value in pair.items())
    return XSecret(api_key=key, api_secret=secret)


def _secret_of(setting: str, file: Path, how: str) -> str:
    """What stands in the file. Raises SettingsError when it is not there or cannot be read."""
    try:
        return file.read_text("utf-8").strip()
    except FileNotFoundError as error:
        raise _bad_secret(
            setting, file, "does not exist", f"name the file that holds it, or make this one: {how}"
        ) from error
    except PermissionError as error:
        raise _bad_secret(
            setting, file, "cannot be read by this user", "give this user the right to read it"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        why = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise _bad_secret(setting, file, f"cannot be read: {why}", f"name a text file that holds it: {how}") from error


def _checked(setting: str, file: Path | str, secret: str) -> SecretStr:
    """Raises SettingsError when no HTTP header can carry it; says nothing of what it is."""
    if not _fits_a_header(secret):
        what = "holds a line break, a space or another character that no token has"
        raise _bad_secret(setting, file, what, "copy it once more, alone and on one line")
    return SecretStr(secret)


def _fits_a_header(secret: str) -> bool:
    return all("!" <= character <= "~" for character in secret)


def _bad_secret(setting: str, file: Path | str, what: str, fix: str) -> SettingsError:
    return SettingsError("secret", [Problem(setting, str(file), what, fix)])
