"""X over real HTTP: every status is a value, a broken answer is Transient, bodies are exact, the token stays inside."""

import asyncio
import base64
import gzip
import json
import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web
from pydantic import SecretStr

from ingester.clock import SystemClock
from ingester.errors import NeedsOperator, Transient
from ingester.model import LEAN, RICH, CountsRequest, SearchRequest
from ingester.x_api import XApi
from schemas.secrets import XSecret

TOKEN = "AAAA-secret-token"
REQUEST = SearchRequest("q", 'a "b c" -is:retweet #ü', 10, 2**62, None, 100, RICH)


@asynccontextmanager
async def x_that(handler, *, secret=None, timeout=5.0, token_handler=None):
    app = web.Application()
    for path in ("/2/tweets/search/recent", "/2/tweets/counts/recent", "/2/usage/tweets"):
        app.router.add_get(path, handler)
    if token_handler:
        app.router.add_post("/oauth2/token", token_handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    secret = secret or XSecret(bearer_token=SecretStr(TOKEN))
    try:
        x = await XApi.open(secret, url, SystemClock(), timeout_seconds=timeout)
        try:
            yield x
        finally:
            await x.close()
    finally:
        await runner.cleanup()


async def test_the_request_is_what_x_documents_and_the_body_is_exact():
    seen = {}
    body = '{"data": [{"id": "5",  "text": "ä \\ud83d\\ude00 "}],\n "meta": {}}'.encode()

    async def handler(request):
        seen.update(request.query)
        seen["authorization"] = request.headers["Authorization"]
        seen["encoding"] = request.headers["Accept-Encoding"]
        headers = {"Content-Encoding": "gzip", "x-rate-limit-remaining": "7"}
        return web.Response(body=gzip.compress(body), headers=headers, content_type="application/json")

    async with x_that(handler) as x:
        answer = await x.search(REQUEST)
    assert answer.body == body
    assert (answer.status, answer.headers["x-rate-limit-remaining"]) == (200, "7")
    assert seen["authorization"] == f"Bearer {TOKEN}"
    assert "gzip" in seen["encoding"]
    assert seen["query"] == REQUEST.rule
    assert (seen["since_id"], seen["until_id"], seen["max_results"]) == ("10", str(2**62), "100")
    assert "next_token" not in seen
    assert "start_time" not in seen
    assert set(seen["tweet.fields"].split(",")) == set(RICH.tweet_fields)
    assert set(seen["expansions"].split(",")) == set(RICH.expansions)
    assert TOKEN not in json.dumps(dict(answer.parameters))
    assert answer.requested_at <= answer.received_at


async def test_counts_and_usage_are_asked_as_x_documents():
    seen = []

    async def handler(request):
        seen.append((request.path, dict(request.query), request.headers["Authorization"]))
        return web.json_response({})

    start = datetime(2026, 11, 20, tzinfo=UTC)
    async with x_that(handler) as x:
        await x.counts(CountsRequest("a b", start, start + timedelta(hours=24)))
        await x.counts(CountsRequest("a b", start, start + timedelta(hours=24), next_token="more"))
        await x.usage(2)
    bounds = {"start_time": "2026-11-20T00:00:00Z", "end_time": "2026-11-21T00:00:00Z", "granularity": "hour"}
    assert [query for _, query, _ in seen] == [
        {"query": "a b"} | bounds,
        {"query": "a b", "next_token": "more"} | bounds,
        {"days": "2", "usage.fields": "daily_client_app_usage,daily_project_usage"},
    ]
    assert [path for path, _, _ in seen] == ["/2/tweets/counts/recent"] * 2 + ["/2/usage/tweets"]
    assert {authorization for _, _, authorization in seen} == {f"Bearer {TOKEN}"}


async def test_lean_asks_for_no_expansion():
    seen = {}

    async def handler(request):
        seen.update(request.query)
        return web.json_response({})

    async with x_that(handler) as x:
        await x.search(SearchRequest("q", "r", 1, 2, "token", 10, LEAN))
    assert "expansions" not in seen
    assert "user.fields" not in seen
    assert seen["next_token"] == "token"


@pytest.mark.parametrize("status", [200, 400, 401, 402, 403, 404, 429, 500, 503])
@pytest.mark.parametrize(
    ("body", "kind"), [(b"<html>x</html>", "text/html"), (b"", "text/plain"), (b"{}", "application/json")]
)
async def test_every_status_is_a_value_whatever_the_body(status, body, kind):
    async def handler(_request):
        return web.Response(status=status, body=body, content_type=kind)

    async with x_that(handler) as x:
        answer = await x.search(REQUEST)
    assert (answer.status, answer.body) == (status, body)


async def test_a_cut_body_is_no_answer():
    async def handler(request):
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"data"')
        request.transport.abort()
        return response

    async with x_that(handler) as x:
        with pytest.raises(Transient, match="no answer"):
            await x.search(REQUEST)


async def test_broken_gzip_is_no_answer():
    async def handler(_request):
        return web.Response(body=gzip.compress(b"x" * 1000)[:-20] + b"garbage", headers={"Content-Encoding": "gzip"})

    async with x_that(handler) as x:
        with pytest.raises(Transient):
            await x.search(REQUEST)


async def test_a_hanging_answer_is_given_up_in_time():
    release = asyncio.Event()

    async def handler(_request):
        await release.wait()
        return web.Response()

    async with x_that(handler, timeout=0.3) as x:
        with pytest.raises(Transient, match="x.timeout_seconds"):
            await x.search(REQUEST)
        release.set()


async def test_nobody_listening_is_no_answer():
    x = await XApi.open(XSecret(bearer_token=SecretStr(TOKEN)), "http://127.0.0.1:9", SystemClock(), timeout_seconds=2)
    with pytest.raises(Transient, match="no answer"):
        await x.search(REQUEST)
    await x.close()


async def test_the_probe_sends_no_credentials():
    seen = []

    async def handler(request):
        seen.append("Authorization" in request.headers)
        return web.Response(status=401)

    async with x_that(handler) as x:
        answer = await x.probe()
    assert seen == [False]
    assert "date" in answer.headers


async def test_key_and_secret_are_exchanged_for_a_token():
    async def token(request):
        assert request.headers["Authorization"] == "Basic " + base64.b64encode(b"key:secret").decode()
        assert (await request.post())["grant_type"] == "client_credentials"
        return web.json_response({"token_type": "bearer", "access_token": "exchanged"})

    seen = []

    async def handler(request):
        seen.append(request.headers["Authorization"])
        return web.json_response({})

    secret = XSecret(api_key=SecretStr("key"), api_secret=SecretStr("secret"))
    async with x_that(handler, secret=secret, token_handler=token) as x:
        await x.search(REQUEST)
    assert seen == ["Bearer exchanged"]


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (403, "{}", NeedsOperator),
        (503, "", Transient),
        (200, "<html>", Transient),
        (200, "{}", Transient),
        (200, "[]", Transient),
    ],
)
async def test_a_failing_exchange_says_so_without_the_secret(status, body, error):
    async def token(_request):
        return web.Response(status=status, text=body)

    secret = XSecret(api_key=SecretStr("key"), api_secret=SecretStr("hush-hush"))
    with pytest.raises(error) as caught:
        async with x_that(token, secret=secret, token_handler=token):
            pass
    assert "hush-hush" not in str(caught.value)


async def test_the_token_is_in_no_log_at_any_level(caplog):
    async def handler(_request):
        return web.Response(status=503, text="no")

    with caplog.at_level(logging.DEBUG):
        async with x_that(handler) as x:
            answer = await x.search(REQUEST)
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(answer)
