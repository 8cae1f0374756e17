"""What the service answers about itself: every component's check, 200 or 503, who may ask, and that nothing is waited for."""

import asyncio
import base64
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta

import aiohttp
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from ingester.clock import SystemClock
from ingester.commands.check import check
from ingester.errors import NeedsOperator, Transient
from ingester.health import HEADERS, HealthServer
from ingester.page import CONTENT_SECURITY_POLICY
from ingester.pulse import Pulse
from ingester.report import DISK_HANGS_AFTER, LOOK_SECONDS
from ingester.spool import Spool
from ingester.telemetry import Telemetry
from ingester.trial import Outcome, try_reach
from schemas.secrets import load_health_token
from schemas.settings import Health, SettingsError
from tests.ingester.simulation import MemoryStore, Run, SimulatedX, VirtualClock, settings
from tests.ingester.states import STATES, in_state

TOKEN = "a-token-of-a-test-0123456789"


def broken(status):
    return {check["name"]: check["reason"] for check in status["components"] if not check["ok"]}


# Every component's check.


async def test_when_all_is_well_every_component_says_so(tmp_path):
    async with in_state("normal", tmp_path) as place:
        status = place.status
    names = [check["name"] for check in status["components"]]
    queries = ["query:python", "query:coffee-and-tea", "query:climate"]
    assert names == ["lease", "x", "s3", "spool", "clock", *queries]
    assert [check["kind"] for check in status["components"]] == ["lease", "x", "s3", "spool", "clock"] + ["query"] * 3
    assert (status["healthy"], status["ready"], status["reasons"], broken(status)) == (True, True, [], {})


@pytest.mark.parametrize("name", STATES)
async def test_whatever_is_not_well_has_a_reason_and_a_fix(tmp_path, name):
    async with in_state(name, tmp_path) as place:
        status, health = place.status, place.run.service.report.health()
    assert status["healthy"] == (not broken(status)) == (not status["reasons"]) == (name in {"normal", "behind"})
    assert list(broken(status).values()) == status["reasons"] == health["reasons"]
    for each in status["components"]:
        assert (each["reason"] is None) == (each["fix"] is None) == each["ok"]
    json.dumps(status)


async def test_the_components_that_are_broken_are_named(tmp_path):
    async with in_state("broken", tmp_path) as place:
        found = broken(place.status)
        assert place.status["s3"]["paused"] is True
        assert (place.status["x"]["hold"], place.status["x"]["credentials"]) == ("not_allowed", "refused")
        assert place.status["spool"]["quarantine"] == 1
        assert place.status["spool"]["oldest_waiting_at"] is not None
    assert set(found) == {"x", "s3", "spool", "query:python", "query:coffee-and-tea", "query:climate"}
    assert found["s3"].startswith("uploading: 403 AccessDenied")


async def test_a_query_says_how_far_back_everything_is_covered(tmp_path):
    async with in_state("behind", tmp_path) as place:
        queries = {query["name"]: query for query in place.status["queries"]}
        assert place.status["healthy"], "working off a backlog is no trouble"
    new = queries["new"]
    assert new["lag_seconds"] < 120 < 3600 < new["covered_lag_seconds"]
    assert new["todo_intervals"] > 10
    assert queries["python"]["covered_lag_seconds"] == queries["python"]["lag_seconds"]
    assert queries["python"]["last_page_age_seconds"] <= 30


async def test_what_is_read_on_top_of_the_regular_collection_is_no_lag(tmp_path):
    clock, store = VirtualClock(), MemoryStore()
    x = SimulatedX(clock)
    query = {"name": "one", "rule": "python", "poll_every_seconds": 10, "first_poll_hours": 0, "reread_minutes": 60}
    run = Run(settings(tmp_path, query=[query]), clock, x, store)
    await clock.drive(3569)
    x.faults.append(lambda request: None if request.until_id - request.since_id < 1e12 else Transient("reset"))
    reread = lambda: any("reread" in each.reason for each in run.service._work.journal.state.queries["one"].todo)  # noqa: E731
    await clock.drive(clock.seconds + 120, reread)
    assert reread()
    [found] = run.service.report.status()["queries"]
    assert found["covered_lag_seconds"] == found["lag_seconds"] < 60
    await run.die()


async def test_gaps_and_shares_of_the_caps_are_counted(tmp_path):
    async with in_state("paused", tmp_path) as place:
        budget = place.status["budget"]
        assert budget["fractions"] == {"usd_per_month": 0.02, "usd_per_day": 1.0}
        assert place.status["x"]["hold"] == "budget"
        place.run.telemetry.gap_recorded("python", "out_of_reach", "then")
        assert [query["gaps"] for query in place.status["queries"]] == [1, 0, 0]
    own = {"name": "one", "rule": "python", "usd_per_day": 0.0, "usd_per_month": 10.0}
    run = Run(settings(tmp_path / "own", query=[own]), VirtualClock(), SimulatedX(VirtualClock()), MemoryStore())
    [query] = run.service.report.status()["queries"]
    assert query["fractions"] == {"usd_per_month": 0.0, "usd_per_day": 1.0}
    await run.die()


async def test_a_clock_that_is_off_is_told_with_its_sign(tmp_path):
    async with in_state("normal", tmp_path) as place:
        place.clock.offset = timedelta(seconds=4)
        assert broken(place.status) == {}
        place.clock.offset = timedelta(minutes=-2)
        assert list(broken(place.status)) == ["clock"]
        assert "clock is -120." in broken(place.status)["clock"]


async def test_a_rest_of_the_rate_window_kept_for_live_polls_is_no_trouble(tmp_path):
    async with in_state("behind", tmp_path) as place:
        place.x.headers["x-rate-limit-remaining"] = "20"
        await place.passes(25)
        assert place.status["x"]["hold"] == "backlog"
        assert place.status["healthy"]
        place.x.headers["x-rate-limit-remaining"] = "0"
        await place.passes(70)
        assert place.status["x"]["hold"] == "rate"
        assert list(broken(place.status)) == ["x"]


async def test_a_loop_that_is_silent_is_a_component_that_is_broken(tmp_path):
    async with in_state("normal", tmp_path) as place:
        pulse = place.run.service.report.pulse = Pulse(place.clock)
        pulse.expect("uploader", 10.0)
        place.clock.seconds += 100.0
        assert "loop:uploader" in broken(place.status)


async def test_s3_that_refuses_is_paused_and_s3_that_stumbles_is_not(tmp_path):
    async with in_state("normal", tmp_path) as place:
        place.store.faults = [lambda verb, _key: Transient("503") if verb == "put" else None]
        await place.passes(70)
        assert (place.status["s3"]["paused"], place.status["s3"]["problem"]) == (False, "503")
        place.store.faults = [lambda verb, _key: NeedsOperator("403") if verb == "put" else None]
        await place.passes(120)
        assert (place.status["s3"]["paused"], place.status["s3"]["problem"]) == (True, "403")
        place.store.faults = []
        await place.passes(120)
        assert (place.status["s3"]["paused"], place.status["s3"]["problem"]) == (False, None)


# Nothing is waited for.


async def test_what_was_seen_last_is_told_and_the_disk_is_not_asked(tmp_path, monkeypatch):
    async with in_state("broken", tmp_path) as place:
        before = place.status
        for name in ("_look", "free_bytes", "contents"):
            monkeypatch.setattr(Spool, name, lambda *_: pytest.fail("the disk was asked"))
        report = place.run.service.report
        assert report.status() == before
        assert report.health()["reasons"] == before["reasons"]
        assert place.page()


async def test_a_disk_that_hangs_or_fails_is_told(tmp_path, monkeypatch):
    async with in_state("normal", tmp_path) as place:
        report = place.run.service.report
        place.clock.seconds += DISK_HANGS_AFTER + 1  # and nobody looked meanwhile
        assert "the disk of the spool: no answer for" in broken(place.status)["spool"]

        def refuses(_spool):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(Spool, "contents", refuses)
        await report.look()
        assert "Input/output error" in broken(place.status)["spool"]
        monkeypatch.undo()
        await report.look()
        assert "spool" not in broken(place.status)


async def test_the_disk_is_looked_at_in_a_thread(tmp_path, monkeypatch):
    async with in_state("normal", tmp_path) as place:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(3))
        looking, go_on = threading.Event(), threading.Event()
        real = Spool.contents

        def slow(spool):
            looking.set()
            assert go_on.wait(20)
            return real(spool)

        monkeypatch.setattr(Spool, "contents", slow)
        look = asyncio.ensure_future(place.run.service.report.look())
        await asyncio.to_thread(looking.wait, 20)
        assert place.status["healthy"], "told while the disk has not answered yet"
        go_on.set()
        await look


async def test_watching_looks_every_few_seconds_and_keeps_the_history(tmp_path):
    clock = VirtualClock()
    run = Run(settings(tmp_path), clock, SimulatedX(clock), MemoryStore())
    report, looks = run.service.report, Counter()
    real = report.look

    async def look():
        looks["looks"] += 1
        await real()

    report.look = look
    watch = asyncio.ensure_future(report.watch())
    await clock.drive(301)
    assert looks["looks"] == 300 // LOOK_SECONDS + 1
    minutes = list(report.history.samples)
    assert len(minutes) == 5
    assert [minute.posts_per_minute for minute in minutes[2:]] == [120.0] * 3, "two posts a second"
    assert all(10 < minute.lag_seconds < 60 for minute in minutes[2:])
    assert minutes[-1].spool_bytes > 0
    watch.cancel()
    await run.die()


# Over HTTP.


def no_page():
    return "<!doctype html>\n"


@asynccontextmanager
async def serving(*, is_open=False, token=None, telemetry=None, clock=None, **told):
    """A server and a client on it; `told` is what it reports."""
    well = {
        "status": lambda: {"healthy": True},
        "readiness": lambda: {"ready": True, "reasons": []},
        "health": lambda: {"healthy": True, "reasons": [], "components": []},
        "page": no_page,
    }
    server = HealthServer(
        **(well | told),
        registry=CollectorRegistry(),
        clock=clock or SystemClock(),
        telemetry=telemetry or Telemetry(),
        token=SecretStr(token) if token else None,
    )
    url = await server.start("127.0.0.1", 0, is_open=is_open)
    running = asyncio.ensure_future(server.run())
    try:
        async with aiohttp.ClientSession(url) as client:
            yield client
    finally:
        running.cancel()
        await server.stop()


async def asked(client, path, method="GET", **headers):
    async with client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}) as answer:
        return answer.status, await answer.read(), answer.headers


PATHS = ["/", "/livez", "/readyz", "/healthz", "/metrics", "/status", "/favicon.svg", "/favicon.ico"]


async def test_well_is_200_and_not_well_is_503_with_the_reasons():
    unwell = {"reasons": ["it hurts"]}
    async with serving() as client:
        assert [(await asked(client, path))[0] for path in PATHS] == [200] * 8
    async with serving(readiness=lambda: unwell, health=lambda: unwell) as client:
        codes = {path: (await asked(client, path))[0] for path in PATHS}
        assert [path for path, code in codes.items() if code != 200] == ["/readyz", "/healthz"]
        assert (codes["/readyz"], codes["/healthz"]) == (503, 503)
        assert json.loads((await asked(client, "/healthz"))[1]) == unwell


async def test_other_methods_and_paths_are_answered_in_json():
    async with serving() as client:
        for path in PATHS:
            status, body, headers = await asked(client, path, "HEAD")
            assert (status, body) == (200, b"")
            assert int(headers.get("Content-Length", 0)) == len((await asked(client, path))[1])
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
                status, body, headers = await asked(client, path, method)
                assert (status, headers["Allow"]) == (405, "GET, HEAD")
                assert method in json.loads(body)["error"]
        status, body, _ = await asked(client, "/../etc/passwd")
        assert status == 404
        assert "/healthz" in json.loads(body)["error"]


async def test_every_answer_has_the_headers_that_keep_a_browser_safe():
    async with serving(token=TOKEN) as client:
        for path in [*PATHS, "/nowhere"]:
            for given in ("", f"Bearer {TOKEN}"):
                for method in ("GET", "POST"):
                    _, _, headers = await asked(client, path, method, Authorization=given)
                    missing = [name for name in HEADERS if name not in headers]
                    assert (missing, headers["Server"]) == ([], "tweetlake")
        _, _, headers = await asked(client, "/", Authorization=f"Bearer {TOKEN}")
        assert headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
        assert headers["Content-Type"] == "text/html; charset=utf-8"


def basic(password):
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


async def test_with_a_token_only_who_sends_it_is_answered_and_livez_is_for_all():
    async with serving(token=TOKEN) as client:
        assert (await asked(client, "/livez"))[0] == 200
        wrong = [
            "",
            TOKEN,
            f"Bearer {TOKEN}x",
            "Bearer",
            "Bearer ",
            f"Basic {TOKEN}",
            "Basic !",
            basic(""),
            basic(TOKEN[:-1]),
        ]
        wrong += [f"Digest {TOKEN}", "Bearer äöü"]
        for given in wrong:
            status, body, headers = await asked(client, "/status", Authorization=given)
            assert status == 401, given
            assert {word.split()[0] for word in headers.getall("WWW-Authenticate")} == {"Bearer", "Basic"}
            assert TOKEN.encode() not in body
        assert (await asked(client, "/nowhere"))[0] == 401, "nor is told what is there"
        for given in (f"Bearer {TOKEN}", f"bearer  {TOKEN} ", basic(TOKEN)):
            assert (await asked(client, "/status", Authorization=given))[0] == 200, given
        assert (await asked(client, "/status", Authorization=f"Bearer {TOKEN}", Host="status.example"))[0] == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:80", "localhost", "LOCALHOST:9478", "[::1]:9478", "[::1]"])
async def test_on_loopback_it_is_asked_by_address_or_as_localhost(host):
    async with serving() as client:
        assert (await asked(client, "/status", Host=host))[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9478", "127.0.0.1.evil.example", "localhost.evil.example:1"]
)
async def test_a_page_of_the_web_cannot_read_it_under_its_own_name(host):
    async with serving() as client:
        status, body, _ = await asked(client, "/status", Host=host)
        assert (status, "foreign name" in json.loads(body)["error"]) == (403, True)
        assert (await asked(client, "/livez", Host=host))[0] == 200
    async with serving(is_open=True) as client:
        assert (await asked(client, "/status", Host=host))[0] == 200, "others come by a name that we cannot know"


async def test_however_many_ask_it_is_told_once_a_second():
    told, clock = Counter(), VirtualClock()

    def status():
        told["status"] += 1
        return {"number": told["status"]}

    async with serving(status=status, clock=clock) as client:
        answers = await asyncio.gather(*(asked(client, "/status") for _ in range(200)))
        assert {body for _, body, _ in answers} == {b'{"number": 1}'}
        clock.seconds += 0.99
        assert (await asked(client, "/status"))[1] == b'{"number": 1}'
        clock.seconds += 0.01
        assert (await asked(client, "/status"))[1] == b'{"number": 2}'
        assert told["status"] == 2


async def test_a_bug_in_what_is_told_is_a_500_and_a_problem_and_the_next_answer_is_right():
    telemetry, said = Telemetry(), [RuntimeError("a bug of status")]

    def status():
        if said:
            raise said.pop()
        return {}

    async with serving(status=status, telemetry=telemetry) as client:
        status_code, body, _ = await asked(client, "/status")
        assert (status_code, b"a bug" in body) == (500, False)
        assert [(problem.event, problem.detail) for problem in telemetry.problems] == [
            ("answering_failed", "RuntimeError('a bug of status')")
        ]
        assert (await asked(client, "/status"))[0] == 200


# Who can reach it.


@pytest.mark.parametrize(
    ("host", "is_open"),
    [("127.0.0.1", False), ("127.8.8.8", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True),
     ("10.1.2.3", True), ("my-machine", True), ("", True)],
)  # fmt: skip
def test_what_is_not_loopback_is_open(host, is_open):
    assert Health(host=host).is_open is is_open


@pytest.mark.parametrize(("token", "says"), [(None, "may read names, rules"), (TOKEN, "unencrypted")])
async def test_to_listen_for_other_machines_is_told(token, says):
    telemetry = Telemetry()
    async with serving(is_open=True, token=token, telemetry=telemetry):
        [problem] = telemetry.problems
    assert problem.event == "listening_openly"
    assert says in problem.detail
    assert TOKEN not in problem.detail
    async with serving(telemetry=(telemetry := Telemetry())):
        assert not telemetry.problems


def test_check_notes_what_other_machines_may_reach():
    assert try_reach(Health(), has_token=False) is None
    found = try_reach(Health(host="0.0.0.0"), has_token=False)
    assert (found.outcome, "not loopback" in found.what, "health.token_file" in found.fix) == (Outcome.NOTE, True, True)
    found = try_reach(Health(host="0.0.0.0"), has_token=True)
    assert (found.outcome, "unencrypted" in found.what) == (Outcome.NOTE, True)


def test_check_tells_a_token_that_cannot_be_used_with_the_other_problems(tmp_path, monkeypatch):
    config = tmp_path / "tweetlake.toml"
    missing = tmp_path / "none"
    config.write_text(
        f'[lake]\nbucket = "lake-bucket"\n[[query]]\nname = "one"\nrule = "python"\n[health]\ntoken_file = "{missing}"\n'
    )
    monkeypatch.setenv("X_BEARER_TOKEN", "of-x")
    result = CliRunner().invoke(check, ["--config", str(config), "--offline"])
    assert result.exit_code == 78
    assert "health.token_file" in result.output


def test_the_token_comes_from_its_file_or_from_systemd(tmp_path):
    file = tmp_path / "token"
    file.write_text(f" {TOKEN}\n")
    (tmp_path / "health-token").write_text("the-token-of-systemd\n")
    credentials = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert load_health_token(None, {}) is None
    assert load_health_token(None, {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}) is None
    assert load_health_token(file, credentials).get_secret_value() == TOKEN
    assert load_health_token(None, credentials).get_secret_value() == "the-token-of-systemd"


@pytest.mark.parametrize(
    "content", [None, "", "short", "fifteen-letters", "x" * 16 + "ä", "two\nlines-of-a-token", b"\xff" * 20]
)
def test_a_token_that_protects_nothing_is_refused_and_not_shown(tmp_path, content):
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError) as found:
        load_health_token(file, {})
    [problem] = found.value.problems
    assert problem.setting == "health.token_file"
    if content and isinstance(content, str):
        assert content not in str(found.value)
