"""`tweetlake status` at the terminal: the same verdict as the page, in words that need no colour."""

import asyncio
import http.server
import io
import json
import re
import signal
import sys
import threading

import pytest
from click.testing import CliRunner
from rich.console import Console

from ingester.__main__ import main
from ingester.commands.status import shown
from ingester.errors import NeedsOperator
from tests.ingester.simulation import MemoryStore, Run, SimulatedX, VirtualClock, settings

QUERIES = [
    {"name": "one", "rule": "python", "first_poll_hours": 0, "overlap_seconds": 0},
    {"name": "two", "rule": "coffee", "first_poll_hours": 0, "overlap_seconds": 0},
]


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def x(clock):
    return SimulatedX(clock)


@pytest.fixture
def store():
    return MemoryStore()


async def status_after(seconds, tmp_path, clock, x, store, **changes):
    """What the service reports after so long, as it travels: JSON."""
    run = Run(settings(tmp_path, **({"query": QUERIES} | changes)), clock, x, store)
    try:
        await clock.drive(seconds)
        return json.loads(json.dumps(run.service.report.status()))
    finally:
        await run.die()


def words(status):
    console = Console(width=140, record=True, no_color=True, file=io.StringIO())
    console.print(shown(status))
    return console.export_text()


async def test_a_service_that_collects(tmp_path, clock, x, store):
    status = await status_after(200, tmp_path, clock, x, store)
    text = words(status)
    assert text.startswith("● Collecting")
    assert "one" in text
    assert "● up to date" in text
    assert "0 in quarantine" in text
    assert "fix:" not in text


async def test_s3_that_refuses_is_told_with_its_fix_and_the_advice(tmp_path, clock, x, store):
    denied = NeedsOperator("403 AccessDenied: grant s3:PutObject")
    store.faults.append(lambda verb, key: denied if verb == "put" else None)
    status = await status_after(400, tmp_path, clock, x, store)
    text = words(status)
    assert text.startswith("▲ Collecting, with something to mend")
    assert "✗ uploading" in text
    assert "fix: mend credentials, rights or bucket" in text
    assert "upload_paused" in text
    assert "times" in text, "what says the same stands once"
    assert text.count("upload_paused") == 1


async def test_x_that_refuses_the_credentials(tmp_path, clock, x, store):
    x.faults.append(lambda _request: x.answer(401, {"title": "Unauthorized"}))
    text = words(await status_after(300, tmp_path, clock, x, store))
    assert text.startswith("✗ Not collecting: X refuses the credentials")


async def test_a_budget_that_is_used_up(tmp_path, clock, x, store):
    budget = {"usd_per_month": 1.0, "reconcile": False}
    text = words(await status_after(600, tmp_path, clock, x, store, budget=budget))
    assert "the budget is used up" in text
    assert "of $1.00  usd_per_month" in text


async def test_a_cap_that_is_too_small_for_a_page_is_no_thing_of_waiting(tmp_path, clock, x, store):
    budget = {"usd_per_month": 0.04, "reconcile": False}
    text = words(await status_after(600, tmp_path, clock, x, store, budget=budget))
    assert text.startswith(
        "✗ Not collecting: a cap is too small for one page  It stays so until you raise budget.usd_per_month"
    )
    assert "waiting does not help" in text
    assert "goes on by itself in" not in text


async def test_an_own_cap_that_is_too_small_for_a_page_is_told_at_its_query(tmp_path, clock, x, store):
    queries = [QUERIES[0], {**QUERIES[1], "usd_per_day": 0.04}]
    text = words(await status_after(600, tmp_path, clock, x, store, query=queries))
    assert "✗ own cap too small" in text
    assert "waiting does not help" in text
    assert "wait for the reset" not in text


async def test_a_service_that_just_began(tmp_path, clock, x, store):
    store.black_hole(clock)
    text = words(await status_after(2, tmp_path, clock, x, store))
    assert text.startswith("▲ Starting")
    assert "no page yet" in text or "not asked" in text


async def test_nothing_that_a_terminal_would_obey_is_printed(tmp_path, clock, x, store):
    status = await status_after(200, tmp_path, clock, x, store)
    status["problems"] = [
        {"at": status["now"], "event": "request_refused", "detail": "\x1b[2J\x07[red]bad[/]\nline", "times": 2}
    ]
    text = words(status)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]bad[/] line" in text, "and no markup is taken for markup"


# How it is asked.


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.headers.get("Authorization") != self.server.wanted:
            self.send_response(401)
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.status).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.wanted, server.status = None, {"healthy": True}
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def config(tmp_path, server):
    def write(more=""):
        file = tmp_path / "tweetlake.toml"
        file.write_text(
            f'[lake]\nbucket = "my-lake"\n[[query]]\nname = "one"\nrule = "python"\n'
            f'[spool]\ndirectory = "{tmp_path}/spool"\n[health]\nport = {server.server_port}\n{more}'
        )
        return str(file)

    return write


def asked(*arguments):
    return CliRunner().invoke(main, ["status", *arguments])


@pytest.mark.parametrize(("healthy", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_tells_health(server, config, healthy, code):
    server.status = {"healthy": healthy}
    found = asked("--config", config(), "--json")
    assert found.exit_code == code
    assert json.loads(found.output) == {"healthy": healthy}


def test_the_token_is_sent_when_one_is_set(server, config, tmp_path):
    server.wanted = "Bearer 0123456789abcdef"
    refused = asked("--config", config(), "--json")
    assert refused.exit_code == 3
    assert "health.token_file" in refused.output
    (tmp_path / "token").write_text("0123456789abcdef\n")
    found = asked("--config", config(f'token_file = "{tmp_path}/token"'), "--json")
    assert found.exit_code == 0, found.output


def test_a_service_that_does_not_run(server, config):
    server.server_close()
    found = asked("--config", config())
    assert found.exit_code == 3
    assert re.search(r": Connection (refused|reset by peer)\. fix: start it with: tweetlake run", found.output)
    assert "urlopen" not in found.output
    assert "Errno" not in found.output


def test_any_free_port_is_told_by_the_log_when_nobody_left_it_here(server, config, tmp_path):
    file = config()
    settings = tmp_path / "tweetlake.toml"
    settings.write_text(settings.read_text().replace(f"port = {server.server_port}", "port = 0"))
    found = asked("--config", file)
    assert found.exit_code == 3
    assert "health.port is 0" in found.output
    assert "its log tells the address" in found.output
    assert "127.0.0.1:0" not in found.output


@pytest.mark.parametrize("said", [[], "nonsense", {"other": 1}])
def test_something_else_on_the_port_is_told(server, config, said):
    server.status = said
    found = asked("--config", config())
    assert found.exit_code == 3
    assert "something else answers there" in found.output
    assert "health.port" in found.output


async def test_a_watch_in_a_pipe_prints_one_screen_below_the_other(tmp_path, clock, x, store, server, config):
    screens = [await status_after(seconds, tmp_path / str(seconds), clock, x, store) for seconds in (100, 200)]
    server.status = screens[0]
    command = [sys.executable, "-m", "ingester", "status", "--config", config(), "--watch", "1"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        first = await asyncio.wait_for(process.stdout.readuntil(b"in quarantine"), 30)
        server.status = screens[1]
        second = await asyncio.wait_for(process.stdout.readuntil(screens[1]["now"].encode()), 30)
    finally:
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert screens[0]["now"] in first.decode()
    assert "Collecting" in first.decode()
    assert b"\x1b" not in first + second
