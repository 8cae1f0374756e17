"""Faults: each strikes as it says, as often as it says, where it says; and none of them loses a post for good."""

import http.client
import json
from collections import Counter

import pytest

from sandbox.faults import FaultError, Faults
from sandbox.x_api import ApiSettings, running_x_api
from tests.sandbox.conftest import NOW, WORLD, Caller, Clock, id_at

BOUNDS = {"since_id": id_at(NOW - 900), "until_id": id_at(NOW - 60)}


def whole(api, rule="python"):
    return api.truth(rule, *BOUNDS.values())


@pytest.mark.parametrize(
    ("kind", "status", "check"),
    [
        ("credits_402", 402, lambda reply: reply.body["type"].endswith("/problems/credits") and reply.body["title"] == "CreditsDepleted"),
        ("forbidden_403", 403, lambda reply: reply.body["reason"] == "client-not-enrolled" and "errors" not in reply.body),
        ("unauthorized_401", 401, lambda reply: "x-rate-limit-limit" not in reply.headers),
        ("server_503_json", 503, lambda reply: reply.body["status"] == 503),
        ("server_503_html", 503, lambda reply: reply.headers["content-type"].startswith("text/html") and b"<html" in reply.raw),
        ("server_500_empty", 500, lambda reply: reply.raw == b""),
        ("html_200", 200, lambda reply: reply.body is None and b"<html" in reply.raw),
        ("not_json_200", 200, lambda reply: reply.body is None and reply.headers["content-type"].startswith("application/json")),
        ("cap_429", 429, lambda reply: reply.body["title"] == "UsageCapExceeded" and reply.headers["x-rate-limit-remaining"] == "39999"),
        ("rate_429", 429, lambda reply: reply.headers["x-rate-limit-reset"] == str(int(NOW) + 6)),
    ],
)  # fmt: skip
def test_faults_in_place_of_an_answer(api, caller, kind, status, check):
    api.set_faults({"kind": kind, "next_n": 2, "endpoint": "search"})
    assert caller.get("/2/tweets/counts/recent", query="python").status == 200
    for _ in range(2):
        reply = caller.search("python")
        assert reply.status == status
        assert check(reply)
    assert caller.search("python").status == 200
    assert api.faults()[0]["struck"] == 2
    assert api.faults()[0]["next_n"] == 0


def test_a_429_can_lack_its_reset(api, caller):
    api.set_faults({"kind": "rate_429", "reset": False, "next_n": 1})
    reply = caller.search("python")
    assert reply.status == 429
    assert "x-rate-limit-reset" not in reply.headers
    assert reply.headers["x-rate-limit-remaining"] == "0"


def test_a_cut_body_was_not_served():
    with running_x_api(WORLD, now=Clock()) as api:
        caller = Caller(api)
        api.set_faults({"kind": "cut_body", "next_n": 1})
        with pytest.raises(http.client.IncompleteRead):
            caller.search("python", max_results=100)
        assert not api.served("python")
        assert caller.search("python", max_results=100).status == 200
        assert len(api.served("python")) == 100
        assert api.stats()["requests"]["search"] == {"cut_body": 1, "200": 1}
        caller.close()


def test_a_reset_connection(api, caller):
    api.set_faults({"kind": "reset", "next_n": 1})
    with pytest.raises(ConnectionResetError):
        caller.search("python")
    assert caller.search("python").status == 200


def test_hanging_ends_when_the_client_gives_up(api):
    address = api.url.removeprefix("http://")
    api.set_faults({"kind": "hang", "next_n": 1})
    impatient = http.client.HTTPConnection(address, timeout=0.3)
    impatient.request("GET", "/2/tweets/search/recent?query=python", headers={"Authorization": f"Bearer {api.token}"})
    with pytest.raises(TimeoutError):
        impatient.getresponse()
    impatient.close()
    assert "hang" in api.stats()["requests"]["search"]


def test_slow_is_late_but_whole(api, caller):
    import time

    api.set_faults({"kind": "slow", "seconds": 0.4, "next_n": 1})
    began = time.monotonic()
    assert caller.search("python").status == 200
    assert time.monotonic() - began >= 0.4


@pytest.mark.parametrize("kind", ["empty_page_with_token", "short_page", "ids_out_of_order"])
def test_odd_pages_lose_nothing(api, caller, kind):
    api.set_faults({"kind": kind, "probability": 0.5})
    got = caller.ids("python", max_results=[30], **BOUNDS)
    assert Counter(got) == Counter(whole(api))
    assert api.faults()[0]["struck"] > 0
    if kind == "ids_out_of_order":
        assert got != sorted(got, reverse=True)


def test_an_empty_page_with_a_token_looks_as_seen(api, caller):
    api.set_faults({"kind": "empty_page_with_token", "next_n": 1})
    page = caller.search("python", **BOUNDS).body
    assert set(page) == {"meta"}
    assert page["meta"].keys() == {"result_count", "next_token"}


def test_disorder_keeps_newest_and_oldest_true(api, caller):
    api.set_faults({"kind": "ids_out_of_order", "next_n": 1})
    page = caller.search("python", max_results=100, **BOUNDS).body
    ids = [int(post["id"]) for post in page["data"]]
    assert ids != sorted(ids, reverse=True)
    assert (page["meta"]["newest_id"], page["meta"]["oldest_id"]) == (str(max(ids)), str(min(ids)))


def test_a_repeated_token_leads_in_a_circle(api, caller):
    api.set_faults({"kind": "repeat_next_token"})
    first = caller.search("python", **BOUNDS).body
    token = first["meta"]["next_token"]
    second = caller.search("python", next_token=token, **BOUNDS).body
    assert second["meta"]["next_token"] == token
    assert second["data"] != first["data"]


@pytest.mark.parametrize("kind", ["tweet_without_id", "weird_id", "wrong_type_field"])
def test_damaged_objects_come_beside_the_good_ones(kind):
    with running_x_api(WORLD, now=Clock()) as api:
        caller = Caller(api)
        api.set_faults({"kind": kind})
        pages = [page.body for page in caller.pages("python", max_results=[50], tweet__fields="created_at,public_metrics", **BOUNDS)]  # fmt: skip
        assert all(len(page["data"]) == page["meta"]["result_count"] <= 50 for page in pages)
        posts = [post for page in pages for post in page["data"]]
        good = [post for post in posts if post.get("id", "").isdigit() and int(post["id"]) in whole(api)]
        assert {int(post["id"]) for post in good} == set(api.served("python")) == whole(api)
        assert len(good) == len(whole(api))
        damaged = [post for post in posts if post not in good]
        told = api.malformed("python")
        assert [post.get("id") for post in damaged] == [damage["id"] for damage in told]
        assert len(damaged) == len(pages)
        if kind == "wrong_type_field":
            assert all(post[damage["field"]] == damage["value"] for post, damage in zip(damaged, told, strict=True))
            assert len({damage["id"] for damage in told}) == len(told)
        caller.close()


def test_weird_ids_take_turns_or_are_chosen(api, caller):
    api.set_faults({"kind": "weird_id"})
    seen = {post["id"] for _ in range(6) for post in caller.search("python", **BOUNDS).body["data"]}
    assert {"9223372036854775808", "-42", "not-a-number", ""} <= seen
    api.set_faults({"kind": "weird_id", "id": "007x"})
    assert "007x" in {post["id"] for post in caller.search("python", **BOUNDS).body["data"]}


def test_unknown_fields_everywhere(api, caller):
    api.set_faults({"kind": "unknown_field", "next_n": 1})
    page = caller.search("python", **BOUNDS).body
    assert "sandbox_notice" in page
    assert all(post["sandbox_novelty"]["score"] == 0.5 for post in page["data"])
    assert "sandbox_notice" not in caller.search("python", **BOUNDS).body


def test_late_posts_turn_up_in_the_end(api, caller, clock):
    all_of_them = whole(api)
    api.set_faults({"kind": "late_index", "probability": 0.4, "seconds": 1_800})
    now = set(caller.ids("python", **BOUNDS))
    assert now < all_of_them | now
    assert len(all_of_them - now) > len(all_of_them) / 10
    clock.seconds += 1_800
    assert set(caller.ids("python", **BOUNDS)) == all_of_them
    assert api.truth("python", *BOUNDS.values(), at=NOW) == now, "what search knew then can be asked for later"


def test_every_search_is_noted_whatever_its_answer_was():
    clock = Clock()
    with running_x_api(WORLD, now=clock) as api:
        caller = Caller(api)
        caller.search("python")
        clock.seconds += 2
        api.set_faults({"kind": "server_503_html"})
        caller.search("python")
        assert api.asked_at("python") == [NOW, NOW + 2]
        assert not api.asked_at("coffee")


def test_a_skewed_clock_shows_in_the_date_alone(api, caller):
    api.set_faults({"kind": "clock_skew", "seconds": -7_200})
    reply = caller.search("python")
    assert reply.headers["date"] == "Fri, 20 Nov 2026 10:00:00 GMT"
    assert int(reply.body["meta"]["newest_id"]) > id_at(NOW - 60)


def test_faults_share_their_chance_by_seed():
    def sequence(seed):
        faults = Faults(seed)
        faults.set([{"kind": "rate_429", "probability": 0.3}])
        return [faults.take("rate_429", "search") is not None for _ in range(200)]

    assert sequence(1) == sequence(1) != sequence(2)
    assert 30 < sum(sequence(1)) < 90


def test_conservation_under_a_fifth_of_trouble():
    with running_x_api(WORLD, ApiSettings(search_limit=10**6), now=Clock()) as api:
        caller = Caller(api)
        api.set_faults({"kind": "rate_429", "probability": 0.1}, {"kind": "server_503_html", "probability": 0.1}, {"kind": "cut_body", "probability": 0.1})  # fmt: skip
        got: list[int] = []
        token: dict[str, str] = {}
        troubles = 0
        while True:
            try:
                reply = caller.search("python", max_results=20, **BOUNDS, **token)
            except http.client.HTTPException:
                troubles += 1
                continue
            if reply.status != 200:
                troubles += 1
                continue
            got += [int(post["id"]) for post in reply.body["data"]]
            if "next_token" not in reply.body["meta"]:
                break
            token = {"next_token": reply.body["meta"]["next_token"]}
        assert troubles > 3
        assert Counter(got) == Counter(api.served("python")) == Counter(whole(api))
        caller.close()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "meteor"}, "no fault of kind 'meteor'"),
        ({"kind": "slow", "chance": 1}, "unknown chance"),
        ({"kind": "slow", "probability": 2}, "probability must lie"),
        ({"kind": "slow", "next_n": -1}, "next_n must be"),
        ({"kind": "slow", "endpoint": "stream"}, "endpoint must be one of"),
        ({"kind": "slow", "seconds": "long"}, "seconds must be a number"),
        ("slow", "an object with a kind"),
    ],
)
def test_a_wrong_fault_is_refused_and_changes_nothing(api, wrong, words):
    api.set_faults({"kind": "slow", "next_n": 0})
    with pytest.raises(ValueError, match="error") as refused:
        api.set_faults({"kind": "reset", "next_n": 0}, wrong)
    assert words in json.loads(str(refused.value))["error"]
    assert [fault["kind"] for fault in api.faults()] == ["slow"]
    with pytest.raises(FaultError):
        Faults(1).set([wrong])
