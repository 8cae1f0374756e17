"""Where secrets are found, and that each is one: X's token, or key and secret; the token of the health endpoints.

What is wrong is told by the name of the place, never by what stands there.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from schemas.settings import Problem, SettingsError

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
