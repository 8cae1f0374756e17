"""The world: the same seed the same posts, rules that match what the text says, and the oddities of real answers."""

import html
import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox import words
from sandbox.objects import Objects
from sandbox.pages import ACCEPTED, Pages, known_fields
from sandbox.rules import All, Not, Term, parse, spaced_words
from sandbox.world import Kind, Lateness, Reference, Spot, World, WorldSettings
from schemas.snowflake import EPOCH_MS, MAX_ID, SHIFT, time_of
from tests.sandbox.conftest import NOW, WORLD, id_at

NOW_MS = int(NOW * 1000)
BEGINS_MS = NOW_MS - 3 * 3_600_000
EVERYTHING = known_fields(
    tuple(
        (name, ",".join(value for value in ACCEPTED[name] if "metrics" not in value or value == "public_metrics"))
        for name in ("tweet.fields", "user.fields", "media.fields", "poll.fields", "place.fields", "expansions")
    )
)


@pytest.fixture(scope="module")
def world():
    return World(WORLD, BEGINS_MS)


@pytest.fixture(scope="module")
def objects(world):
    return Objects(world)


def every(world, now_ms=NOW_MS):
    """All spots of the world, newest first."""
    return [
        Spot(stretch, slot)
        for stretch in range(world.stretch_at(now_ms), world.stretch_at(world.begins_ms) - 1, -1)
        for columns in [world.columns(stretch)]
        for slot in np.flatnonzero(world.findable(columns, now_ms))[::-1].tolist()
    ]


def test_two_worlds_of_one_seed_agree_whatever_was_asked_first(world):
    other = World(WORLD, BEGINS_MS - 86_400_000)
    stretch = world.stretch_at(NOW_MS)
    for number in (stretch, stretch - 7, stretch - 3):
        ours, theirs = world.columns(number), other.columns(number)
        for name in ours.__slots__:
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    spot = Spot(stretch - 7, 3)
    assert Objects(world).post(spot) == Objects(other).post(spot)


def test_another_seed_is_another_world(world):
    other = World(replace(WORLD, seed=8), BEGINS_MS)
    assert not set(world.columns(world.stretch_at(NOW_MS)).id) & set(other.columns(world.stretch_at(NOW_MS)).id)


def test_being_asked_twice_changes_nothing(world):
    stretch = world.stretch_at(NOW_MS) - 2
    before = {name: np.copy(getattr(world.columns(stretch), name)) for name in ("kind", "ref_id", "opening", "mention")}
    world.columns.cache_clear()
    after = world.columns(stretch)
    for name, column in before.items():
        assert np.array_equal(column, getattr(after, name)), name


@given(seed=st.integers(0, 2**32), rate=st.sampled_from([0.0, 0.001, 0.3, 7, 900, 30_000]))
@settings(max_examples=25, deadline=None)
def test_ids_are_snowflakes_of_their_millisecond(seed, rate):
    made = World(WorldSettings(seed=seed, tweets_per_second=rate, authors=50), 0)
    columns = made.columns(made.stretch_at(NOW_MS))
    assert np.all(np.diff(columns.id) > 0)
    assert np.array_equal((columns.id >> SHIFT) + EPOCH_MS, columns.ms)
    assert np.all(columns.ms // made.stretch_ms == columns.stretch)
    if rate >= 7:
        assert len(columns) == pytest.approx(rate * made.stretch_ms / 1000, rel=0.3)


def test_a_burst_uses_sequence_numbers():
    made = World(WorldSettings(tweets_per_second=100_000), 0)
    sequence = Counter((made.columns(made.stretch_at(NOW_MS)).id & 0xFFF).tolist())
    assert sequence[0] > sequence[1] > sequence[2] > 0


def test_a_good_share_matches_the_rule_of_the_demo(world):
    found = len(world.ids("python lang:en -is:retweet", 0, MAX_ID, NOW_MS))
    assert 0.06 < found / len(every(world)) < 0.15


# --- rules against text -----------------------------------------------------------------------------------------------


def reference_match(expression, post, base, world):
    """What a rule means, read off the finished objects: `base` is the retweeted post, or the post itself."""
    if isinstance(expression, Not):
        return not reference_match(expression.of, post, base, world)
    if not isinstance(expression, Term):
        return (all if isinstance(expression, All) else any)(
            reference_match(part, post, base, world) for part in expression.of
        )
    body, entities = base.body, base.body.get("note_tweet", base.body).get("entities", {})
    retweet = base is not post
    mentioned = {mention["username"].lower() for mention in entities.get("mentions", [])}
    if retweet:
        mentioned.add(world.username(base.author).lower())
    kinds = {reference["type"] for reference in post.body.get("referenced_tweets", [])}
    value = expression.value
    if expression.kind == "text":
        full = html.unescape(body.get("note_tweet", body)["text"])
        full = re.sub(r"https://t\.co/\w+", "", full) + "".join(f" @{name}" for name in mentioned)
        return expression.needle.occurs_in(full.lower(), spaced_words(full))
    if expression.kind == "hashtag":
        return value in {tag["tag"].lower() for tag in entities.get("hashtags", [])}
    if expression.kind == "cashtag":
        return value in {tag["tag"].lower() for tag in entities.get("cashtags", [])}
    return {
        "mention": lambda: value in mentioned,
        "from": lambda: world.username(post.author).lower() == value,
        "to": lambda: post.reply_to >= 0 and world.username(post.reply_to).lower() == value,
        "retweets_of": lambda: retweet and world.username(base.author).lower() == value,
        "lang": lambda: post.body["lang"] == value,
        "is:retweet": lambda: "retweeted" in kinds,
        "is:quote": lambda: "quoted" in kinds,
        "is:reply": lambda: "replied_to" in kinds,
        "is:verified": lambda: Objects(world).user(post.author, NOW_MS)["verified"],
        "has:links": lambda: bool(entities.get("urls")),
        "has:hashtags": lambda: bool(entities.get("hashtags")),
        "has:mentions": lambda: bool(mentioned),
        "has:media": lambda: "media_keys" in body.get("attachments", {}),
        "has:images": lambda: any(item.key.startswith("3_") for item in base.media),
        "has:videos": lambda: any(item.key[: item.key.index("_")] in {"7", "13"} for item in base.media),
        "has:geo": lambda: "geo" in post.body,
    }[expression.kind if expression.kind not in {"is", "has"} else f"{expression.kind}:{value}"]()


TERMS = [
    "python", "parquet", '"borrow checker"', '"an hour"', "coffee", "ai", "ethics", "cons", "tea", "コーヒー", "猫", "mañana",
    "#Python", "#news", "#noticias", "$SPY", "spy", "noticias", "🔥", "@FuzzyNight_0", "from:amberriver_3", "nobody123",
    "is:retweet", "is:quote", "is:reply", "is:verified", "has:links", "has:hashtags", "has:mentions", "has:media", "has:images",
    "has:videos", "has:geo", "lang:ja", "lang:en", "lang:xx", "interest", "endgame",
]  # fmt: skip
names = st.integers(0, 40).map(lambda author: World(WORLD, BEGINS_MS).username(author))
terms = st.one_of(
    st.sampled_from(TERMS),
    names.map(lambda name: f"from:{name}"),
    names.map(lambda name: f"@{name}"),
    names.map(lambda name: f"retweets_of:{name}"),
    names.map(lambda name: f"to:{name}"),
)
rules = st.recursive(
    terms,
    lambda inner: st.one_of(
        inner.map(lambda rule: f"-({rule})"),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({' '.join(parts)})"),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({' OR '.join(parts)})"),
    ),
    max_leaves=5,
)


class Sample:
    """A few thousand posts, each with what it repeats. A class for its short repr: Hypothesis prints arguments."""

    def __init__(self, world, objects):
        self.world = world
        self.spots = every(world)[:: max(1, len(every(world)) // 2_500)]
        self.posts = [objects.post(spot) for spot in self.spots]
        self.bases = [
            objects.post(post.reference)
            if post.body.get("referenced_tweets", [{}])[0].get("type") == "retweeted"
            else post
            for post in self.posts
        ]


@pytest.fixture(scope="module")
def various(world, objects):
    return Sample(world, objects)


@given(rule=rules)
@settings(max_examples=120, deadline=None)
def test_rules_match_what_the_text_says(various, rule):
    world = various.world
    rule = f"python OR ({rule})"  # X wants a term that stands alone
    try:
        expression = parse(rule)
    except ValueError:
        return
    matcher = world.matcher(rule)
    for spot, post, base in zip(various.spots, various.posts, various.bases, strict=True):
        hit = bool(matcher.hits(world.columns(spot.stretch))[spot.slot])
        if hit != reference_match(expression, post, base, world):
            pytest.fail(f"{rule!r} {'hits' if hit else 'misses'} {post.body} repeating {base.body}")


def test_keyword_searches_can_leave_retweets_out_as_x_does_since_2026():
    modern = World(replace(WORLD, keyword_search_has_retweets=False), BEGINS_MS)
    assert not len(modern.ids("python is:retweet", 0, MAX_ID, NOW_MS))
    assert len(modern.ids(f"from:{modern.username(0)} is:retweet", 0, MAX_ID, NOW_MS))


# --- what can be found, and when ----------------------------------------------------------------------------------------


def test_a_post_is_found_only_after_its_lag(world):
    born = {spot: int(world.columns(spot.stretch).ms[spot.slot]) for spot in every(world)[:400]}
    spot = max(born, key=lambda at: int(world.columns(at.stretch).lag_ms[at.slot]))
    columns = world.columns(spot.stretch)
    lag = int(columns.lag_ms[spot.slot])
    assert 0 < lag <= WORLD.late_seconds * 1000
    assert not world.findable(columns, born[spot] + lag - 1)[spot.slot]
    assert world.findable(columns, born[spot] + lag)[spot.slot]


def test_late_indexing_hits_its_share_and_ends():
    world = World(replace(WORLD, edited_share=0), BEGINS_MS)
    at_once = set(world.ids("python", id_at(NOW - 600), id_at(NOW - 300), NOW_MS - 290_000).tolist())
    world.lateness = Lateness(0.3, 3_600)
    late = set(world.ids("python", id_at(NOW - 600), id_at(NOW - 300), NOW_MS - 290_000).tolist())
    assert late < at_once
    assert 0.15 < 1 - len(late) / len(at_once) < 0.45
    assert set(world.ids("python", id_at(NOW - 600), id_at(NOW - 300), NOW_MS + 3_600_000).tolist()) == at_once


def test_an_edit_replaces_the_version_before_it():
    world = World(replace(WORLD, edited_share=0.2), BEGINS_MS)
    edits = [spot for spot in every(world) if world.columns(spot.stretch).previous[spot.slot] >= 0]
    assert len(edits) > 100
    lengths = Counter()
    for spot in edits:
        post = Objects(world).post(spot)
        history = [int(link) for link in post.body["edit_history_tweet_ids"]]
        lengths[len(history)] += 1
        assert history == sorted(history)
        assert history[-1] == post.id
        assert post.body["edit_controls"]["edits_remaining"] == 6 - len(history)
        columns = world.columns(spot.stretch)
        previous = int(columns.previous[spot.slot])
        indexed = int(columns.ms[spot.slot] + columns.lag_ms[spot.slot])
        assert not world.findable(columns, indexed)[previous]
        assert (
            world.findable(columns, indexed - 1)[previous]
            or columns.lag_ms[previous]
            or columns.ms[previous] < BEGINS_MS
        )
    assert lengths[3] > 0


def test_deleted_posts_vanish_for_good():
    doomed = World(replace(WORLD, deleted_share=0.3), BEGINS_MS)
    first = set(doomed.ids("python", id_at(NOW - 900), id_at(NOW - 840), NOW_MS - 835_000).tolist())
    later = set(doomed.ids("python", id_at(NOW - 900), id_at(NOW - 840), NOW_MS + 86_400_000).tolist())
    assert later < first
    assert 0.5 < len(later) / len(first) < 0.9


def test_nothing_older_than_the_backlog_is_found(world):
    ids = world.ids("python", 0, MAX_ID, NOW_MS)
    assert time_of(int(ids[0])).timestamp() * 1000 >= BEGINS_MS
    assert len(world.ids("python", 0, id_at(BEGINS_MS / 1000), NOW_MS)) == 0


# --- what the objects look like -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(world):
    """Twenty full pages of everything."""
    spots = every(world)[:2_000]
    pages = Pages(world)
    return [json.loads(pages.page(EVERYTHING, spots[at : at + 100], NOW_MS).body) for at in range(0, 2_000, 100)]


def test_every_rich_field_occurs(world):
    pages = Pages(world)
    seen: set[str] = set()
    spots = every(world)[:8_000]
    for at in range(0, len(spots), 100):
        page = json.loads(pages.page(EVERYTHING, spots[at : at + 100], NOW_MS).body)
        for kind, objects in [("tweet", page["data"]), *((kind, page["includes"].get(kind, [])) for kind in ("users", "media", "places", "polls"))]:  # fmt: skip
            seen |= {f"{kind}.{name}" for item in objects for name in item}
        seen |= {f"entities.{name}" for item in page["data"] for name in item.get("entities", {})}
    wanted = {
        *(f"tweet.{name}" for name in ACCEPTED["tweet.fields"]),
        *(f"users.{name}" for name in ACCEPTED["user.fields"]),
        *(f"media.{name}" for name in ACCEPTED["media.fields"]),
        *(f"places.{name}" for name in ACCEPTED["place.fields"]),
        *(f"polls.{name}" for name in ACCEPTED["poll.fields"]),
        *(f"entities.{name}" for name in ("annotations", "cashtags", "hashtags", "mentions", "urls")),
    }
    private = {name for name in wanted if name.endswith(("non_public_metrics", "organic_metrics", "promoted_metrics"))}
    beyond_an_app = {
        "tweet.note_request_suggestions", "tweet.suggested_source_links_with_counts", "users.confirmed_email",
        "users.connection_status", "users.receives_your_dm", "users.subscription", "users.most_recent_tweet_id",
        "users.most_recent_post_id", "users.pinned_post_id",
    }  # fmt: skip
    assert wanted - private - beyond_an_app <= seen


def test_entities_point_at_what_they_name(sample):
    checked = Counter()
    for post in (post for page in sample for post in page["data"]):
        for holder in filter(None, (post, post.get("note_tweet"))):
            for kind, entities in holder.get("entities", {}).items():
                for entity in entities:
                    shown = holder["text"][entity["start"] : entity["end"]]
                    if kind == "mentions":
                        assert shown == "@" + entity["username"]
                    elif kind in {"hashtags", "cashtags"}:
                        assert shown[1:] == entity["tag"]
                    elif kind == "urls":
                        assert shown == entity["url"]
                    checked[kind] += 1
    assert min(checked[kind] for kind in ("mentions", "hashtags", "cashtags", "urls")) > 20


def test_the_oddities_of_real_answers_are_there(sample):
    odd = Counter()
    for page in sample:
        included = [post["id"] for post in page["includes"].get("tweets", [])]
        odd["duplicates in includes"] += len(included) != len(set(included))
        odd["both in data and includes"] += bool(set(included) & {post["id"] for post in page["data"]})
        media = {item["media_key"] for item in page["includes"].get("media", [])}
        people = {user["id"] for user in page["includes"]["users"]}
        odd["protected user"] += any(user["protected"] for user in page["includes"]["users"])
        odd["withheld user"] += any("withheld" in user for user in page["includes"]["users"])
        odd["empty place properties"] += any(place["geo"]["properties"] == {} for place in page["includes"].get("places", []))  # fmt: skip
        for problem in page.get("errors", []):
            odd[f"{problem['title']} {problem['resource_type']} {problem['parameter']}"] += 1
        for post in page["data"]:
            odd["html entity"] += "&amp;" in post["text"] or "&lt;" in post["text"]
            odd["und"] += post["lang"] == "und"
            odd["note"] += "note_tweet" in post and len(post["note_tweet"]["text"]) > 280
            odd["mention without id"] += any("id" not in item for item in post.get("entities", {}).get("mentions", []))
            odd["point"] += "coordinates" in post.get("geo", {})
            odd["media not expanded"] += bool(set(post.get("attachments", {}).get("media_keys", [])) - media)
            odd["author absent"] += post["author_id"] not in people
            odd["withheld"] += "withheld" in post
            odd["absent reference"] += any(ref["id"] not in included for ref in post.get("referenced_tweets", []))
            odd["emoji"] += any(sign in post["text"] for sign in words.EMOJI)
            assert post["created_at"].endswith(".000Z")
            assert time_of(int(post["id"])).strftime("%Y-%m-%dT%H:%M:%S") == post["created_at"][:19]
    missing = [
        name
        for name in (
            "duplicates in includes", "both in data and includes", "protected user", "withheld user",
            "empty place properties", "Not Found Error tweet referenced_tweets.id",
            "Authorization Error tweet referenced_tweets.id", "Not Found Error user entities.mentions.username",
            "Forbidden user in_reply_to_user_id", "html entity", "und", "note", "mention without id", "point",
            "media not expanded", "author absent", "withheld", "absent reference", "emoji",
        )
        if not odd[name]
    ]  # fmt: skip
    assert not missing


def test_a_few_authors_write_most_and_languages_mix(world):
    authors = Counter(int(world.columns(spot.stretch).author[spot.slot]) for spot in every(world)[:8_000])
    assert sum(times for _, times in authors.most_common(200)) > 0.35 * authors.total()
    assert len(authors) > 2_000
    languages = Counter(int(world.columns(spot.stretch).language[spot.slot]) for spot in every(world)[:8_000])
    assert len(languages) == len(words.LANGUAGES)


def test_references_lead_to_posts_of_the_world(world):
    kinds = Counter()
    for spot in every(world)[:3_000]:
        columns = world.columns(spot.stretch)
        if columns.ref_state[spot.slot] != Reference.READABLE:
            continue
        target = world.columns(int(columns.ref_stretch[spot.slot]))
        at = int(columns.ref_slot[spot.slot])
        assert target.id[at] == columns.ref_id[spot.slot] < columns.id[spot.slot]
        assert target.author[at] == columns.ref_author[spot.slot]
        assert target.kind[at] != Kind.RETWEET
        kinds[int(columns.kind[spot.slot])] += 1
    assert set(kinds) == {Kind.RETWEET, Kind.QUOTE, Kind.REPLY}


def test_a_post_weighs_what_a_real_one_does(sample):
    weight = sum(len(json.dumps(page, ensure_ascii=False, separators=(",", ":")).encode()) for page in sample)
    assert 2_200 < weight / 2_000 < 3_400


def test_people_keep_their_ids_and_names(world, objects):
    ids, names = set(), set()
    for author in range(0, WORLD.authors, 37):
        user_id, name = objects.user_id(author), world.username(author)
        assert objects.author_of_id(int(user_id)) == author
        assert world.author_of(name.upper()) == author
        assert re.fullmatch(r"[A-Za-z0-9_]{1,15}", name)
        ids.add(user_id)
        names.add(name)
    assert len(ids) == len(names) == len(range(0, WORLD.authors, 37))
    assert world.author_of("nobody_1") == -1


@pytest.mark.parametrize(
    "wrong", [{"tweets_per_second": -1}, {"backlog_hours": 169}, {"authors": 3}, {"deleted_share": 2}, {"edited_share": 1}]
)  # fmt: skip
def test_settings_that_make_no_world_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        WorldSettings(**wrong)
