"""X over HTTP: tweepy's AsyncClient with `request` replaced. The only file that imports tweepy.

tweepy builds the parameters; our `request` sends them on one shared session to a host of our choice, reads the body
inside the response's context and returns every status as a value. tweepy's own would ask api.twitter.com, open a
session per request, raise aiohttp's ContentTypeError on a 5xx with HTML, and sleep or recurse on 429 (tweepy 4.17).
"""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import aiohttp
import tweepy.asynchronous
from isal import isal_zlib
from pydantic import SecretStr

from ingester.errors import AnswerLost, NeedsOperator, Transient
from ingester.model import Answer, CountsRequest, SearchRequest
from ingester.ports import Clock
from schemas.secrets import XSecret

_SECONDS = "%Y-%m-%dT%H:%M:%SZ"
"""How X takes times; both bounds of counts stand on the hour, in UTC."""

aiohttp.set_zlib_backend(isal_zlib)  # X answers in gzip; ISA-L unpacks it in half the time


class _Client(tweepy.asynchronous.AsyncClient):  # type: ignore[misc] # tweepy has no types
    def __init__(self, token: SecretStr, base_url: str, session: aiohttp.ClientSession, clock: Clock) -> None:
        super().__init__(wait_on_rate_limit=False, return_type=aiohttp.ClientResponse)
        self.session = session
        self._token = token
        self._base_url = base_url
        self._clock = clock

    async def request(
        self,
        method: str,
        route: str,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        user_auth: bool = False,  # noqa: ARG002 - tweepy's signature; app-only is the only way here
    ) -> Answer:
        """Send it, return whatever came. Raises Transient when no whole answer came."""
        headers = {"Authorization": f"Bearer {self._token.get_secret_value()}", "User-Agent": self.user_agent}
        return await self._send(method, route, params or {}, json, headers)

    async def probe(self) -> Answer:
        """Ask without credentials: X answers 401, with its time."""
        return await self._send("GET", "/2/tweets/search/recent", {}, None, {"User-Agent": self.user_agent})

    async def _send(
        self, method: str, route: str, params: Mapping[str, Any], json: Any, headers: Mapping[str, str]
    ) -> Answer:
        parameters = {name: str(value) for name, value in params.items()}
        requested_at = self._clock.now()
        try:
            async with self.session.request(
                method, self._base_url + route, params=parameters, json=json, headers=headers
            ) as response:
                body = await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise Transient(_describe(error, self._base_url)) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise AnswerLost(_describe(error, self._base_url)) from error
        return Answer(
            status=response.status,
            headers={name.lower(): value for name, value in response.headers.items()},
            body=body,
            parameters=parameters,
            requested_at=requested_at,
            received_at=self._clock.now(),
        )


class XApi:
    """The Source that is X."""

    def __init__(self, client: _Client, session: aiohttp.ClientSession) -> None:
        self._client = client
        self._session = session

    @classmethod
    async def open(cls, secret: XSecret, base_url: str, clock: Clock, *, timeout_seconds: float) -> "XApi":
        """Open the shared session; exchange key and secret for a token if that is what was given.

        Raises Transient or NeedsOperator when the exchange fails.
        """
        timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=min(10.0, timeout_seconds))
        session = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=32, ttl_dns_cache=300))
        try:
            token = secret.bearer_token or await _exchange(session, base_url, secret)
        except BaseException:
            await session.close()
            raise
        return cls(_Client(token, base_url, session, clock), session)

    async def search(self, request: SearchRequest) -> Answer:
        """GET /2/tweets/search/recent. One page; every status is returned."""
        fields = request.fields
        answer: Answer = await self._client.search_recent_tweets(
            request.rule,
            since_id=request.since_id,
            until_id=request.until_id,
            next_token=request.next_token,
            max_results=request.max_results,
            tweet_fields=list(fields.tweet_fields) or None,
            expansions=list(fields.expansions) or None,
            user_fields=list(fields.user_fields) or None,
            media_fields=list(fields.media_fields) or None,
            place_fields=list(fields.place_fields) or None,
            poll_fields=list(fields.poll_fields) or None,
        )
        return answer

    async def counts(self, request: CountsRequest) -> Answer:
        """GET /2/tweets/counts/recent by hours. tweepy's own method does not know that the endpoint has pages."""
        parameters = {
            "query": request.rule,
            "start_time": request.start.strftime(_SECONDS),
            "end_time": request.end.strftime(_SECONDS),
            "granularity": "hour",
        }
        if request.next_token:
            parameters["next_token"] = request.next_token
        return await self._client.request("GET", "/2/tweets/counts/recent", parameters)

    async def usage(self, days: int) -> Answer:
        """GET /2/usage/tweets, which tweepy has no method for."""
        fields = "daily_client_app_usage,daily_project_usage"
        return await self._client.request("GET", "/2/usage/tweets", {"days": days, "usage.fields": fields})

    async def probe(self) -> Answer:
        """A 401 with X's Date header."""
        return await self._client.probe()

    async def close(self) -> None:
        await self._session.close()


async def _exchange(session: aiohttp.ClientSession, base_url: str, secret: XSecret) -> SecretStr:
    """OAuth 2.0 client credentials, as X's document on app-only tokens describes."""
    assert secret.api_key is not None
    assert secret.api_secret is not None
    pair = f"{secret.api_key.get_secret_value()}:{secret.api_secret.get_secret_value()}"
    headers = {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    url = f"{base_url}/oauth2/token"
    try:
        async with session.post(url, data={"grant_type": "client_credentials"}, headers=headers) as response:
            if response.status in {400, 401, 403}:
                raise NeedsOperator(f"X refused X_API_KEY and X_API_SECRET ({response.status})")
            if response.status != 200:
                raise Transient(f"the token exchange at {url} answered {response.status}")
            found = await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise Transient(_describe(error, base_url)) from error
    token = found.get("access_token") if isinstance(found, dict) else None
    if not isinstance(token, str) or not token:
        raise Transient(f"the token exchange at {url} answered without access_token")
    return SecretStr(token)


def _describe(error: BaseException, base_url: str) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return f"no whole answer from {base_url} in time (x.timeout_seconds)"
    return f"no answer from {base_url}: {type(error).__name__}: {error}"
