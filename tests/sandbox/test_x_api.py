"""The simulated X over HTTP: paging loses nothing, counts and truth agree, every refusal has X's shape."""

import asyncio
import base64
import gzip
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime

import aiohttp
import pytest
import tweepy
import tweepy.asynchronous
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingester.model import RICH
from sandbox.pages import ACCEPTED
from sandbox.world import WorldSettings
from sandbox.x_api import ApiSettings, running_x_api
from schemas.snowflake import first_id_at, time_of
from tests.sandbox.conftest import NOW, WORLD, Caller, Clock, id_at

RULE = "python lang:en -is:retweet"
RICH_FIELDS = {
    "tweet__fields": ",".join(RICH.tweet_fields),
    "expansions": ",".join(RICH.expansions),
    "user__fields": ",".join(RICH.user_fields),
    "media__fields": ",".join(RICH.media_fields),
    "place__fields": ",".join(RICH.place_fields),
    "poll__fields": ",".join(RICH.poll_fields),
}
SEARCH = "/2/tweets/search/recent"
COUNTS = "/2/tweets/counts/recent"
WEEK_AGO = id_at(NOW - 7 * 86_400)


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- search -----------------------------------------------------------------------------------------------------------


@given(
    since=st.floats(10, 9_000),
    length=st.floats(0, 2_000),
    sizes=st.lists(st.integers(10, 100), min_size=1, max_size=4),
    rule=st.sampled_from(["python", RULE, "coffee OR football", "#rust", "from:nobody_3", "is:quote python"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_paging_conserves_every_id_exactly(api, caller, since, length, sizes, rule):
    lower, upper = id_at(NOW - since), id_at(NOW - since + length)
    got = caller.ids(rule, since_id=lower, until_id=upper, max_results=sizes)
    truth = {number for number in api.truth(rule, lower, upper) if number < id_at(NOW - 10)}
    assert got == sorted(truth, reverse=True)


def test_bounds_are_exclusive_and_the_newest_comes_first(api, caller):
    ids = caller.ids("python", since_id=id_at(NOW - 600))
    assert ids == sorted(ids, reverse=True)
    assert caller.ids("python", since_id=ids[20], until_id=ids[10]) == ids[11:20]


def test_start_is_inclusive_and_end_exclusive(api, caller):
    start, end = NOW - 1_200, NOW - 900
    got = caller.ids("python", start_time=moment(start), end_time=moment(end))
    assert set(got) == api.truth("python", id_at(start) - 1, id_at(end))


def test_search_ends_ten_seconds_before_now(api, caller):
    newest = caller.ids("python", since_id=id_at(NOW - 60))[0]
    assert time_of(newest).timestamp() < NOW - 10
    beyond = caller.ids("python", since_id=id_at(NOW - 60), until_id=id_at(NOW + 3_600))
    assert beyond[0] == newest


def test_what_paging_began_with_does_not_move(api, caller, clock):
    first = caller.search("python", since_id=id_at(NOW - 900), max_results=50).body
    clock.seconds += 120
    token, rest = first["meta"]["next_token"], []
    while token:
        page = caller.search("python", since_id=id_at(NOW - 900), max_results=100, next_token=token).body
        rest += page["data"]
        token = page["meta"].get("next_token")
    got = [int(post["id"]) for post in first["data"] + rest]
    clock.seconds = NOW
    assert got == caller.ids("python", since_id=id_at(NOW - 900))


def test_pagination_token_is_another_name(caller):
    token = caller.search("python").body["meta"]["next_token"]
    assert caller.search("python", pagination_token=token).body == caller.search("python", next_token=token).body


def test_new_posts_turn_up_as_time_goes_by(api, caller, clock):
    before = caller.ids("python", since_id=id_at(NOW - 10))
    clock.seconds += 60
    after = caller.ids("python", since_id=id_at(NOW - 10))
    assert not before
    assert after
    assert set(after) == {number for number in api.truth("python", id_at(NOW - 10)) if number < id_at(NOW + 50)}


def test_a_page_has_meta_and_an_empty_one_nothing_else(caller):
    page = caller.search("python", max_results=30).body
    ids = [int(post["id"]) for post in page["data"]]
    assert page["meta"] == {
        "newest_id": str(ids[0]),
        "oldest_id": str(ids[-1]),
        "result_count": 30,
        "next_token": page["meta"]["next_token"],
    }
    assert caller.search("from:nobody_3").body == {"meta": {"result_count": 0}}


def test_only_what_was_asked_for_comes(caller):
    plain = caller.search("python", max_results=20).body
    assert set(plain) == {"data", "meta"}
    assert all(set(post) == {"id", "text", "edit_history_tweet_ids"} for post in plain["data"])
    some = caller.search("python", tweet__fields="author_id,lang", expansions="author_id", user__fields="verified").body
    assert all(set(post) == {"id", "text", "edit_history_tweet_ids", "author_id", "lang"} for post in some["data"])
    assert all(set(user) == {"id", "name", "username", "verified"} for user in some["includes"]["users"])


def test_every_expansion_brings_its_objects(caller):
    full = [
        page.body for page in caller.pages("python OR coffee OR football", since_id=id_at(NOW - 1_800), **RICH_FIELDS)
    ]
    for page in full:
        users = {user["id"] for user in page["includes"]["users"]}
        posts = {post["id"] for post in page["includes"].get("tweets", [])}
        absent = {problem["resource_id"] for problem in page.get("errors", [])}
        for post in page["data"]:
            assert {link["id"] for link in post.get("referenced_tweets", [])} <= posts | absent
            if "poll_ids" in post.get("attachments", {}):
                assert set(post["attachments"]["poll_ids"]) <= {poll["id"] for poll in page["includes"]["polls"]}
            if "geo" in post:
                assert post["geo"]["place_id"] in {place["id"] for place in page["includes"]["places"]}
        assert len({post["author_id"] for post in page["data"]} - users) <= 3
        assert len(users) == len(page["includes"]["users"])


def test_both_vocabularies(caller):
    asked = {"since_id": id_at(NOW - 600), "max_results": [100]}
    old = [page.body for page in caller.pages("python", **asked, **RICH_FIELDS)]
    names = {"edit_history_tweet_ids": "edit_history_post_ids", "referenced_tweets": "referenced_posts", "note_tweet": "note_post"}  # fmt: skip
    renamed = {**RICH_FIELDS, "post__fields": ",".join(names.get(name, name) for name in RICH.tweet_fields)}
    renamed["expansions"] = RICH_FIELDS["expansions"].replace("referenced_tweets", "referenced_posts")
    del renamed["tweet__fields"]
    new = [page.body for page in caller.pages("python", **asked, **renamed)]
    assert len(old) == len(new) > 1

    def translated(post):
        post = {names.get(name, name): value for name, value in post.items()}
        post["public_metrics"] = {("repost_count" if name == "retweet_count" else name): value for name, value in post["public_metrics"].items()}  # fmt: skip
        if post.get("withheld", {}).get("scope") == "tweet":
            post["withheld"] = post["withheld"] | {"scope": "post"}
        return post

    for before, after in zip(old, new, strict=True):
        assert [translated(post) for post in before["data"]] == after["data"]
        assert [translated(post) for post in before["includes"]["tweets"]] == after["includes"]["posts"]
        assert "tweets" not in after["includes"]
        assert all("tweet_count" not in user["public_metrics"] for user in after["includes"]["users"])
        assert not any("pinned_tweet_id" in user for user in after["includes"]["users"])


def test_relevancy_pages_conserve_too(api, caller):
    bounds = {"since_id": id_at(NOW - 900), "until_id": id_at(NOW - 60)}
    got = caller.ids("python", sort_order="relevancy", max_results=[40], **bounds)
    assert len(got) == len(set(got))
    assert set(got) == api.truth("python", *bounds.values())
    assert got != sorted(got, reverse=True)


def test_private_metrics_come_as_partial_errors(caller):
    page = caller.search("python", tweet__fields="non_public_metrics,lang").body
    assert len(page["data"]) == len(page["errors"]) == 10
    assert {problem["title"] for problem in page["errors"]} == {"Field Authorization Error"}


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"max_results": 9}, "The `max_results` query parameter value [9] is not between 10 and 100"),
        ({"max_results": 101}, "is not between 10 and 100"),
        ({"max_results": "ten"}, "The `max_results` query parameter value [ten] is not between 10 and 100"),
        ({"query": ""}, "can not be empty"),
        ({"query": "x" * 513}, "max limit of 512"),
        ({"query": "url:x python"}, "There were errors processing your request: Reference to invalid operator 'url'"),
        ({"sort_order": "oldest"}, "is not one of [recency,relevancy]"),
        ({"sinceid": "1"}, "The query parameter [sinceid] is not one of [query,"),
        ({"since_id": "abc"}, "does not match ^[0-9]{1,19}$"),
        ({"since_id": "-5"}, "does not match ^[0-9]{1,19}$"),
        ({"until_id": "1" * 20}, "does not match ^[0-9]{1,19}$"),
        ({"since_id": WEEK_AGO - 1}, f"'since_id' must be a tweet id created after 2026-11-13T12:00Z. Please use a 'since_id' that is larger than {WEEK_AGO}"),
        ({"since_id": 0}, "'since_id' must be a tweet id created after"),
        ({"until_id": WEEK_AGO - 1}, "'until_id' must be a tweet id created after"),
        ({"start_time": moment(NOW - 8 * 86_400)}, "Invalid 'start_time':'2026-11-12T12:00Z'. 'start_time' must be on or after 2026-11-13T12:00Z"),
        ({"end_time": moment(NOW - 9)}, "'end_time' must be a minimum of 10 seconds prior to the request time."),
        ({"start_time": "yesterday"}, "is not a valid RFC3339 date-time"),
        ({"start_time": "2026-13-40T00:00:00Z"}, "is not a valid RFC3339 date-time"),
        ({"start_time": moment(NOW - 60), "end_time": moment(NOW - 60)}, "'start_time' must be before 'end_time'"),
        ({"since_id": WEEK_AGO + 9, "end_time": moment(NOW - 60)}, "Invalid use of 'since_id' or 'until_id' in conjunction with 'start_time' or 'end_time'."),
        ({"until_id": WEEK_AGO + 9, "start_time": moment(NOW - 60)}, "Invalid use of 'since_id' or 'until_id' in conjunction"),
        ({"next_token": "b26v89c19zqg8o3f"}, "is not valid for this request"),
        ({"next_token": "x", "pagination_token": "y"}, "At most one of [next_token, pagination_token]"),
        ({"tweet.fields": "text,bogus"}, "The `tweet.fields` query parameter value [bogus] is not one of [article,attachments,"),
        ({"user.fields": "bogus"}, "The `user.fields` query parameter value [bogus] is not one of [affiliation,"),
        ({"expansions": "bogus"}, "The `expansions` query parameter value [bogus] is not one of ["),
        ({"post_fields": "text"}, "The query parameter [post_fields] is not one of"),
        ({"tweet.fields": "text", "post.fields": "text"}, "cannot be used together"),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_a_400_that_names_it(caller, asked, words):
    reply = caller.get(SEARCH, **{"query": "python", **asked})
    assert reply.status == 400
    assert set(reply.body) == {"errors", "title", "detail", "type"}
    assert reply.body["title"] == "Invalid Request"
    assert reply.body["detail"] == "One or more parameters to your request was invalid."
    assert reply.body["type"].endswith("/2/problems/invalid-request")
    complaint = next(error for error in reply.body["errors"] if words in error["message"])
    ((name, values),) = complaint["parameters"].items()
    assert values in ([str(asked.get(name))], [])
    assert "x-rate-limit-remaining" in reply.headers


def test_a_refusal_lists_every_accepted_value(caller):
    for name, accepted in ACCEPTED.items():
        reply = caller.get(SEARCH, query="python", **{name: "bogus"})
        assert f"[{','.join(accepted)}]" in reply.body["errors"][0]["message"]
        assert caller.get(SEARCH, query="python", **{name: ",".join(accepted)}).status == 200


def test_a_token_belongs_to_its_request(caller):
    token = caller.search("python", since_id=id_at(NOW - 900)).body["meta"]["next_token"]
    assert caller.search("python", since_id=id_at(NOW - 901), next_token=token).status == 400
    assert caller.search("coffee", since_id=id_at(NOW - 900), next_token=token).status == 400
    assert caller.search("python", since_id=id_at(NOW - 900), next_token=token, max_results=77).status == 200


@pytest.mark.parametrize("path", [SEARCH, COUNTS, "/2/usage/tweets"])
@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Basic c2FuZGJveC10b2tlbg=="])
def test_without_the_token_there_is_nothing(caller, path, authorization):
    reply = caller.get(path, headers={"Authorization": authorization}, query="python")
    assert reply.status == 401
    assert reply.body == {"title": "Unauthorized", "type": "about:blank", "status": 401, "detail": "Unauthorized"}
    assert not any(name.startswith("x-rate-limit") for name in reply.headers)


def test_an_unknown_route_is_a_404_in_json(caller):
    reply = caller.get("/2/tweets/search/all", query="python")
    assert (reply.status, reply.body["title"]) == (404, "Not Found")


def test_the_token_endpoint_exchanges_key_and_secret(api):
    def exchange(pair, form):
        request = urllib.request.Request(f"{api.url}/oauth2/token", data=urllib.parse.urlencode(form).encode())
        if pair is not None:
            request.add_header("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    right, form = f"{api.api_key}:{api.api_secret}", {"grant_type": "client_credentials"}
    assert exchange(right, form) == (200, {"token_type": "bearer", "access_token": api.token})
    assert exchange("someone:else", form)[0] == 403
    assert exchange(None, form)[0] == 403
    status, body = exchange(right, {"grant_type": "password"})
    assert (status, body["errors"][0]["code"]) == (400, 170)


# --- limits, headers, compression ---------------------------------------------------------------------------------------


def test_the_window_is_spent_told_and_renewed():
    clock = Clock()
    with running_x_api(WORLD, ApiSettings(search_limit=3, window_seconds=60), now=clock) as api:
        caller = Caller(api)
        replies = [caller.search("python") for _ in range(4)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429]
        assert [reply.headers["x-rate-limit-remaining"] for reply in replies] == ["2", "1", "0", "0"]
        assert {reply.headers["x-rate-limit-limit"] for reply in replies} == {"3"}
        assert replies[3].body == {"title": "Too Many Requests", "detail": "Too Many Requests", "type": "about:blank", "status": 429}  # fmt: skip
        reset = int(replies[3].headers["x-rate-limit-reset"])
        assert NOW + 60 <= reset <= NOW + 61
        assert caller.get(COUNTS, query="python").status == 200  # its own window
        assert caller.get(SEARCH, headers={"Authorization": ""}).status == 401
        clock.seconds = reset
        assert caller.search("python").status == 200
        caller.close()


def test_headers_of_every_answer(caller):
    first, second = caller.search("python"), caller.search("python", max_results=1)
    assert first.headers["date"] == second.headers["date"] == "Fri, 20 Nov 2026 12:00:00 GMT"
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["x-transaction-id"]
    assert first.headers["content-type"] == "application/json; charset=utf-8"


def test_gzip_when_asked(caller):
    plain = caller.search("python", max_results=100, **RICH_FIELDS)
    packed = caller.search("python", max_results=100, headers={"Accept-Encoding": "gzip, deflate"}, **RICH_FIELDS)
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.raw) == plain.raw
    assert len(packed.raw) < len(plain.raw) / 3


# --- counts, usage, truth, bill -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["hour", "minute", "day"])
def test_counts_are_the_truth_per_bucket(api, caller, granularity):
    start, end = NOW - 7_000, NOW - 100
    reply = caller.get(COUNTS, query="python", granularity=granularity, start_time=moment(start), end_time=moment(end))
    buckets = reply.body["data"]
    assert buckets[0]["start"] == datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    assert [bucket["end"] for bucket in buckets[:-1]] == [bucket["start"] for bucket in buckets[1:]]
    for bucket in buckets:
        bounds = [first_id_at(datetime.fromisoformat(bucket[name])) for name in ("start", "end")]
        assert bucket["tweet_count"] == len(api.truth("python", bounds[0] - 1, bounds[1]))
    assert reply.body["meta"]["total_tweet_count"] == sum(bucket["tweet_count"] for bucket in buckets) > 500


def test_counts_over_the_whole_reach(api, caller):
    reply = caller.get(COUNTS, query="python")
    assert len(reply.body["data"]) == 169  # first and last are partial
    assert reply.body["data"][-1]["end"] == "2026-11-20T11:59:50.000Z"
    assert reply.body["data"][0]["start"] == "2026-11-13T11:59:50.000Z"
    truth = {number for number in api.truth("python") if number < id_at(NOW - 10)}
    assert reply.body["meta"]["total_tweet_count"] == len(truth)


def test_counts_between_ids(api, caller):
    lower, upper = id_at(NOW - 5_000), id_at(NOW - 700)
    reply = caller.get(COUNTS, query="python", since_id=lower, until_id=upper)
    assert reply.body["meta"]["total_tweet_count"] == len(api.truth("python", lower, upper))


def test_counts_in_the_post_vocabulary(caller):
    reply = caller.get(COUNTS, query="python", **{"search_count.fields": "post_count,start,end"})
    assert "post_count" in reply.body["data"][0]
    assert "total_post_count" in reply.body["meta"]


@pytest.mark.parametrize("asked", [{"granularity": "week"}, {"query": "lang:en"}, {"max_results": 10}])
def test_counts_refuses(caller, asked):
    assert caller.get(COUNTS, **{"query": "python", **asked}).status == 400


def test_the_bill_counts_a_post_once_a_day_and_the_ledger_every_time():
    clock = Clock()
    with running_x_api(WORLD, now=clock) as api:
        caller = Caller(api)
        for _ in range(3):
            page = caller.search("python", since_id=id_at(NOW - 600), until_id=id_at(NOW - 60), max_results=100)
        ids = {int(post["id"]) for post in page.body["data"]}
        assert api.served("python") == dict.fromkeys(ids, 3)
        stats = api.stats()
        assert (stats["posts_served"], stats["distinct_posts"]) == (3 * len(ids), len(ids))
        assert stats["usd"] == stats["per_rule"]["python"]["usd"] == pytest.approx(len(ids) * 0.005)
        assert stats["requests"] == {"search": {"200": 3}}
        clock.seconds += 86_400
        caller.search("python", since_id=id_at(NOW - 600), until_id=id_at(NOW - 60), max_results=100)
        caller.get(COUNTS, query="python")
        assert api.stats()["usd"] == pytest.approx(2 * len(ids) * 0.005 + 0.005)
        full = caller.search("python", max_results=100, since_id=id_at(NOW - 600), until_id=id_at(NOW - 60), **RICH_FIELDS).body  # fmt: skip
        stats = api.stats()
        assert stats["users_served"] >= len(full["includes"]["users"])
        worst = stats["usd"] + 0.01 * stats["users_served"]
        assert stats["usd_worst_case"] > worst - 1e-9
        usage = caller.get("/2/usage/tweets", days=30).body["data"]
        assert usage["project_usage"] == str(2 * len(ids))
        assert [day["date"][:10] for day in usage["daily_project_usage"]["usage"]] == ["2026-11-20", "2026-11-21"]
        assert caller.get("/2/usage/tweets", days=91).status == 400
        caller.close()


def test_truth_refuses_a_wrong_rule(api):
    with pytest.raises(ValueError, match="invalid operator"):
        api.truth("url:x python")


# --- as programs see it -------------------------------------------------------------------------------------------------


async def test_tweepy_reads_it(api):
    """tweepy's own client with its own error handling, only sent to another host."""

    class Session:
        def __init__(self, session):
            self._session = session

        def request(self, method, url, **rest):
            return self._session.request(method, url.replace("https://api.twitter.com", api.url), **rest)

    async with aiohttp.ClientSession() as session:
        client = tweepy.asynchronous.AsyncClient(api.token, wait_on_rate_limit=False)
        client.session = Session(session)
        found = await client.search_recent_tweets(
            "python OR coffee",
            max_results=100,
            tweet_fields=list(RICH.tweet_fields),
            expansions=list(RICH.expansions),
            user_fields=list(RICH.user_fields),
            media_fields=list(RICH.media_fields),
            place_fields=list(RICH.place_fields),
            poll_fields=list(RICH.poll_fields),
        )
        assert len(found.data) == found.meta["result_count"] == 100
        assert all(tweet.created_at == time_of(tweet.id).replace(microsecond=0) for tweet in found.data)
        assert {type(user) for user in found.includes["users"]} == {tweepy.User}
        assert {type(item) for item in found.includes["media"]} == {tweepy.Media}
        assert found.errors
        counts = await client.get_recent_tweets_count("python", granularity="hour")
        assert counts.meta["total_tweet_count"] == sum(bucket["tweet_count"] for bucket in counts.data)
        with pytest.raises(tweepy.BadRequest, match="not between 10 and 100"):
            await client.search_recent_tweets("python", max_results=5)
        for kind, error in (
            ("unauthorized_401", tweepy.Unauthorized),
            ("forbidden_403", tweepy.Forbidden),
            ("rate_429", tweepy.TooManyRequests),
            ("server_503_json", tweepy.TwitterServerError),
            ("server_503_html", aiohttp.ContentTypeError),
            ("credits_402", tweepy.HTTPException),
        ):
            await asyncio.to_thread(api.set_faults, {"kind": kind, "next_n": 1})
            with pytest.raises(error):
                await client.search_recent_tweets("python")


def test_a_known_page_is_cheap(api, caller):
    bounds = {"since_id": id_at(NOW - 900), "until_id": id_at(NOW - 60)}
    headers = {"Accept-Encoding": "gzip"}
    caller.search("python", max_results=100, headers=headers, **bounds, **RICH_FIELDS)
    began = time.process_time()  # server, client and test together
    for _ in range(40):
        caller.search("python", max_results=100, headers=headers, **bounds, **RICH_FIELDS)
    assert (time.process_time() - began) / 40 < 0.015


def test_a_server_in_a_process_of_its_own_is_the_same():
    world = WorldSettings(seed=7, tweets_per_second=4.0, backlog_hours=0.2)
    with running_x_api(world, ApiSettings(token="t", search_limit=1), process=True) as api:
        caller = Caller(api)
        assert caller.search("python").status == 200
        assert caller.search("python").status == 429
        assert len(api.served("python")) == 10
        assert api.stats()["world"]["seed"] == 7
        caller.close()
    with pytest.raises(OSError, match=r"[Rr]efused"):
        api.stats()


def test_a_taken_port_is_said(api):
    port = int(api.url.rpartition(":")[2])
    with pytest.raises(RuntimeError, match="did not start"), running_x_api(WORLD, ApiSettings(port=port)):
        pass
