"""`tweetlake status`: ask the running service how it is; what its page shows, at the terminal."""

import contextlib
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import datetime
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ingester.commands.common import (
    ADDRESS_FILE,
    EXIT_NOT_RUNNING,
    console_of_output,
    settings_problems_told,
    with_config,
)
from ingester.page.advice import advice
from ingester.page.verdict import Level, verdict, worst_first
from ingester.page.words import UNKNOWN, count, percent, size, span, usd
from schemas.secrets import load_health_token
from schemas.settings import Settings, load

Status = Mapping[str, Any]

_STYLES: Mapping[Level, tuple[str, str]] = {
    "good": ("●", "bold green"),
    "busy": ("◐", "bold cyan"),
    "waiting": ("▲", "bold yellow"),
    "attention": ("▲", "bold yellow"),
    "bad": ("✗", "bold red"),
}
"""A symbol beside the colour: not everybody sees colours, and a pipe has none."""
ANSWERS_WITHIN = 5
"""Seconds."""
_MOST_PROBLEMS = 8
_FULL = 0.8
"""From this share of a cap on it is shown in yellow, as the alert does."""


@click.command()
@with_config
@click.option("--json", "as_json", is_flag=True, help="The whole status as JSON.")
@click.option("--watch", "every", type=click.FloatRange(min=1), metavar="SECONDS", help="Show it again and again.")
def status(config: Path | None, as_json: bool, every: float | None) -> None:
    """Ask the running service how it is. Exits 0 when healthy, 1 when not, 3 when it does not run.

    \b
    Examples:
      tweetlake status
      tweetlake status --watch 5
      tweetlake status --json | jq '.queries[] | {name, covered_lag_seconds}'
    """
    with settings_problems_told():
        settings = load(config)
        token = load_health_token(settings.health.token_file)
    ask = _Asking(settings, token.get_secret_value() if token else None)
    found = ask()
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif every is None:
        console_of_output().print(shown(found))
    else:
        _watch(ask, found, every)
    sys.exit(0 if found["healthy"] else 1)


def _watch(ask: "_Asking", found: Status, every: float) -> None:
    """Until Ctrl-C, or until the service is gone. At a terminal in place, elsewhere one below the other."""
    console = console_of_output()
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        if console.is_terminal:
            live = stack.enter_context(Live(shown(found), console=console, screen=True, auto_refresh=False))
        while True:
            if console.is_terminal:
                live.update(shown(found), refresh=True)
            else:
                console.print(f"{found['now']}", shown(found))
            time.sleep(every)
            found = ask()


class _Asking:
    """Where the service answers, and with which token it is asked."""

    def __init__(self, settings: Settings, token: str | None) -> None:
        self._address = _address(settings)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def __call__(self) -> Status:
        """Its status; ends the program with what is wrong and what to do when there is none."""
        try:
            asked = urllib.request.Request(f"{self._address}/status", headers=self._headers)  # noqa: S310 - http
            with urllib.request.urlopen(asked, timeout=ANSWERS_WITHIN) as answer:  # noqa: S310
                found: Status = json.load(answer)
                found["healthy"]
        except urllib.error.HTTPError as error:
            _end(*_refused(self._address, error.code))
        except (urllib.error.URLError, OSError) as error:
            _end(f"does not run at {self._address}: {_reason(error)}", "start it with: tweetlake run")
        except (HTTPException, ValueError, LookupError, TypeError):
            _end(f"does not run at {self._address}: something else answers there", "choose another health.port")
        return found


def _address(settings: Settings) -> str:
    """As the running service left it beside its spool; else as the settings have it. Ends the program when both do not."""
    file = settings.spool.directory / ADDRESS_FILE
    try:
        return file.read_text().strip()
    except OSError as error:  # not running, or the folder is another user's, as under systemd
        if settings.health.port:
            host = settings.health.host
            return f"http://{f'[{host}]' if ':' in host else host}:{settings.health.port}"
        words = "does not run here, or as another user: health.port is 0, so its address is known from"
        _end(
            f"{words} {file} alone: {error.strerror}",
            "start it with tweetlake run; if it runs, its log tells the address: url of the event started",
        )


def _refused(address: str, code: int) -> tuple[str, str]:
    if code == HTTPStatus.UNAUTHORIZED:
        return f"at {address} answered 401", "health.token_file has to hold the token that the service was started with"
    return f"at {address} answered {code}", "see whether it is tweetlake that listens there, and its log"


def _reason(error: OSError) -> str:
    """Without the wrapping of the library."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {ANSWERS_WITHIN} s"
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause)


def _end(what: str, fix: str) -> NoReturn:
    click.echo(f"tweetlake {what}. fix: {fix}", err=True)
    sys.exit(EXIT_NOT_RUNNING)


def shown(status: Status) -> RenderableType:
    """The status as a person reads it, worst first."""
    now = datetime.fromisoformat(status["now"])
    parts = [_headline(status, now), _checks(status), _queries(status, now), _rest(status, now), _lately(status, now)]
    return Group(*(part for part in parts if part is not None))


def _headline(status: Status, now: datetime) -> RenderableType:
    found = verdict(status)
    symbol, style = _STYLES[found.level]
    line = Text.assemble((f"{symbol} {_plain(found.word)}", style), f"  {_plain(found.sentence)}\n")
    running = span((now - datetime.fromisoformat(status["started_at"])).total_seconds())
    return line.append(f"  tweetlake {status['version']}, running for {running}\n", "dim")


def _checks(status: Status) -> RenderableType | None:
    """What is not well, each with what to do."""
    bad = [check for check in status["components"] if not check["ok"]]
    if not bad:
        return None
    lines = Text()
    for check in bad:
        lines.append("✗ ", "red").append(_plain(check["reason"])).append("\n")
        if check["fix"]:
            lines.append(f"  fix: {_plain(check['fix'])}\n", "dim")
    return lines


def _queries(status: Status, now: datetime) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("query")
    table.add_column("state")
    for heading in ("behind", "to do", "gaps", "last page", "today", "this month"):
        table.add_column(heading, justify="right", no_wrap=True)
    for query, found in worst_first(status["queries"], status):
        symbol, style = _STYLES[found.level]
        table.add_row(
            _plain(query["name"]),
            Text(f"{symbol} {found.word}", style),
            span(query["covered_lag_seconds"]),
            f"{query['todo_intervals']:,}",
            f"{query['gaps']:,}",
            _ago(query["last_page_at"], now),
            usd(query["usd_today"]),
            usd(query["usd_this_month"]),
        )
    return Padding(table, (0, 0, 1, 0))


def _rest(status: Status, now: datetime) -> RenderableType:
    """Spool, S3, X and the budget, a line each."""
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim")
    lines.add_column()
    spool, s3 = status["spool"], status["s3"]
    waiting = f"{count(spool['waiting'], 'file')} waiting"
    waiting += f", the oldest {_age(spool['oldest_waiting_at'], now)} old" if spool["oldest_waiting_at"] else ""
    room = f"{size(spool['bytes'])} of {size(spool['max_bytes'])}, {size(spool['free_bytes'])} free on the disk"
    lines.add_row("spool", f"{waiting}; {room}; {spool['quarantine']:,} in quarantine")
    lines.add_row("s3", f"{_plain(s3['bucket'])}, last shipped {_ago(s3['last_shipped_at'], now)}")
    if (x := status["x"]) is not None and x["rate_limit"] is not None:
        lines.add_row("x", f"{x['rate_remaining']:,} of {x['rate_limit']:,} requests left in this window")
    for row in _budget(status):
        lines.add_row(*row)
    return Padding(lines, (0, 0, 1, 0))


def _budget(status: Status) -> Iterator[tuple[str, RenderableType]]:
    budget = status["budget"]
    if budget is None:
        return
    posts = f"{budget['posts_today']:,} and {budget['posts_this_month']:,} posts"
    yield "spent", f"{usd(budget['usd_today'])} today, {usd(budget['usd_this_month'])} this month; {posts}"
    for cap, share in budget["fractions"].items():
        limit = budget["caps"][cap]
        words = f"{percent(share)} of {usd(limit) if cap.startswith('usd') else f'{limit:,} posts'}  {cap}"
        style = "red" if share >= 1 else "yellow" if share >= _FULL else "green"
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=1.0, completed=min(share, 1.0), width=20, complete_style=style), words)
        yield "", bar


def _lately(status: Status, now: datetime) -> RenderableType | None:
    """The newest problems, each with what to do."""
    problems = status["problems"]
    if not problems:
        return None
    lines = Text("lately\n", "dim")
    for problem in problems[:_MOST_PROBLEMS]:
        often = f", {problem['times']:,} times" if problem["times"] > 1 else ""
        lines.append(f"  {_ago(problem['at'], now)}{often}  ", "dim")
        lines.append(f"{problem['event']}: {_plain(problem['detail'])}\n")
        lines.append(f"    {advice(problem['event'], problem['detail'])}\n", "dim")
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"  and {len(problems) - _MOST_PROBLEMS:,} more: tweetlake status --json\n", "dim")
    return lines


def _ago(moment: str | None, now: datetime) -> str:
    return UNKNOWN if moment is None else f"{_age(moment, now)} ago"


def _age(moment: str, now: datetime) -> str:
    return span((now - datetime.fromisoformat(moment)).total_seconds())


def _plain(text: str) -> str:
    """Text of others without what a terminal would obey: what X or S3 answers stands in it."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
