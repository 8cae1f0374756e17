"""Hypothesis strategies for answers of X: every field of the field lists, there, absent or null, in both vocabularies."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

from tests.compaction.pages import to_post_vocabulary

MAX_ID = 2**63 - 1

texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "a &amp; b", "&lt;3 &amp;amp; &#39;", "👩🏽‍🚀", "naïve ῥοή\u0000", "&", "שלום\u202e", "\ufeff"]
    ),
)
keys = st.sampled_from(["3_1", "7_1136048009270239232", "16_9", "k\u00e9y"])
numbers = st.integers(0, MAX_ID)
ids = st.builds(lambda number, zeros: "0" * zeros + str(number), numbers, st.sampled_from([0, 0, 0, 1, 4]))
snowflakes = st.builds(str, st.integers(2**50, MAX_ID))
counts = st.integers(0, 2**53 - 1)
smalls = st.integers(-(2**31), 2**31 - 1)
times = st.sampled_from(
    [
        "2026-11-20T13:14:15.000Z",
        "2026-11-20T13:14:15Z",
        "2026-11-20T13:14:15.678901Z",
        "2026-11-20T23:30:00+02:00",
        "1969-12-31T23:59:59.999Z",
        "0001-01-01T00:00:00.000Z",
        "9999-12-31T23:59:59.999Z",
    ]
)
degrees = st.one_of(st.floats(-180, 180, allow_nan=False), st.integers(-180, 180))


def some(**fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """An object in which each field may be there, absent or null."""
    return st.fixed_dictionaries({}, optional={name: st.none() | of for name, of in fields.items()})


def keyed(key: str, of: Any, fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Such an object with a key that is always there."""
    return st.builds(lambda value, rest: {key: value} | rest, of, fields)


def few(of: Any) -> st.SearchStrategy[list[Any]]:
    return st.lists(of, max_size=2)


def few_or_null(of: Any) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.none() | of, max_size=2)


span = {"start": smalls, "end": smalls}
tags = few_or_null(some(**span, tag=texts))
mentions = few_or_null(some(**span, username=texts, id=ids))
urls = few_or_null(
    some(
        **span,
        url=texts,
        expanded_url=texts,
        display_url=texts,
        unwound_url=texts,
        status=smalls,
        title=texts,
        description=texts,
        media_key=keys,
        images=few_or_null(some(url=texts, width=smalls, height=smalls)),
    )
)
annotations = few_or_null(some(**span, probability=st.floats(0, 1), type=texts, normalized_text=texts))
entities = some(hashtags=tags, cashtags=tags, mentions=mentions, urls=urls, annotations=annotations)
note = some(text=texts, entities=some(hashtags=tags, cashtags=tags, mentions=mentions, urls=urls))
concept = some(id=ids, name=texts, description=texts)
point = some(type=st.just("Point"), coordinates=st.tuples(degrees, degrees).map(list))

posts = keyed(
    "id",
    snowflakes,
    some(
        attachments=some(
            media_keys=few_or_null(keys), poll_ids=few_or_null(ids), media_source_tweet_id=few_or_null(ids)
        ),
        author_id=ids,
        card_uri=texts,
        community_id=ids,
        context_annotations=few_or_null(some(domain=concept, entity=concept)),
        conversation_id=ids,
        created_at=times,
        display_text_range=few(smalls),
        edit_controls=some(editable_until=times, edits_remaining=smalls, is_edit_eligible=st.booleans()),
        edit_history_tweet_ids=few_or_null(ids),
        entities=entities,
        geo=some(coordinates=point, place_id=texts),
        in_reply_to_user_id=ids,
        lang=texts,
        note_tweet=note,
        paid_partnership=st.booleans(),
        possibly_sensitive=st.booleans(),
        public_metrics=some(
            bookmark_count=counts,
            impression_count=counts,
            like_count=counts,
            quote_count=counts,
            reply_count=counts,
            retweet_count=counts,
        ),
        referenced_tweets=st.lists(
            st.none() | some(id=ids, type=st.sampled_from(["retweeted", "quoted", "replied_to", "new_kind"])),
            max_size=4,
        ),
        reply_settings=texts,
        scopes=some(followers=st.booleans()),
        source=texts,
        text=texts,
        username=texts,
        withheld=some(copyright=st.booleans(), country_codes=few_or_null(texts), scope=texts),
    ),
)
users = keyed(
    "id",
    ids,
    some(
        affiliation=some(badge_url=texts, description=texts, url=texts, user_id=few_or_null(ids)),
        confirmed_email=texts,
        connection_status=few_or_null(texts),
        created_at=times,
        description=texts,
        entities=some(description=entities, url=some(urls=urls)),
        is_identity_verified=st.booleans(),
        location=texts,
        most_recent_tweet_id=ids,
        name=texts,
        parody=st.booleans(),
        pinned_tweet_id=ids,
        profile_banner_url=texts,
        profile_image_url=texts,
        protected=st.booleans(),
        public_metrics=some(
            followers_count=counts,
            following_count=counts,
            like_count=counts,
            listed_count=counts,
            media_count=counts,
            tweet_count=counts,
        ),
        receives_your_dm=st.booleans(),
        subscribes_to_you=st.booleans(),
        subscription=some(subscribes_to_you=st.booleans()),
        subscription_type=texts,
        url=texts,
        username=texts,
        verified=st.booleans(),
        verified_followers_count=counts,
        verified_type=texts,
        withheld=some(country_codes=few_or_null(texts), scope=texts),
    ),
)
media = keyed(
    "media_key",
    keys,
    some(
        alt_text=texts,
        duration_ms=counts,
        height=smalls,
        preview_image_url=texts,
        public_metrics=some(view_count=counts),
        type=texts,
        url=texts,
        variants=few_or_null(some(bit_rate=counts, content_type=texts, url=texts)),
        width=smalls,
    ),
)
places = keyed(
    "id",
    keys,
    some(
        contained_within=few_or_null(texts),
        country=texts,
        country_code=texts,
        full_name=texts,
        geo=some(bbox=few(degrees), geometry=point, properties=st.just({}), type=texts),
        name=texts,
        place_type=texts,
    ),
)
polls = keyed(
    "id",
    ids,
    some(
        duration_minutes=smalls,
        end_datetime=times,
        options=few_or_null(some(label=texts, position=smalls, votes=counts)),
        voting_status=texts,
    ),
)

_answers = st.builds(
    lambda data, includes, rest: {"meta": {"result_count": len(data or [])}} | data_of(data) | includes | rest,
    st.none() | st.lists(posts, max_size=3),
    some(
        includes=some(
            users=few(users),
            tweets=few(posts),
            media=few(media),
            places=few(places),
            polls=few(polls),
            topics=few(concept),
        )
    ),
    some(errors=st.just([{"title": "Not Found Error", "resource_type": "tweet"}])),
)


def data_of(data: Any) -> dict[str, Any]:
    return {} if data is None else {"data": data}


answers = st.builds(lambda answer, post: to_post_vocabulary(answer) if post else answer, _answers, st.booleans())
"""Well-formed answers, as dictionaries."""


def written(answer: Any, ascii_only: bool, spread: bool) -> bytes:
    """The answer as JSON bytes: compact or over several lines, with or without escapes."""
    text = json.dumps(answer, ensure_ascii=ascii_only, indent=1 if spread else None)
    return text.encode("utf-8", errors="surrogatepass")


bodies = st.builds(written, answers, st.booleans(), st.booleans())

oddities = st.one_of(
    st.sampled_from(
        [
            None, True, False, 0, 1, -1, 1.0, 1.5, -0.0, 1e300, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**60,
            float("nan"), float("inf"), "", "x", "12", "+12", "-12", "0x1F", " 12", "1.", ".5", "1e5", "NaN", "inf", "\uff11\uff12",
            "9223372036854775807", "9223372036854775808", "00000000000000000000012", "true", "null", "2026-11-20",
            "2026-11-20T13:00:00", "2026-11-20T13:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-10:00",
            "2026-02-30T00:00:00Z", "\ud800", "a\udc00b", "\udc00\ud800", [], [None], [[]], ["x"], [1], {}, {"id": "1"},
            {"new": {"deep": [1, {"x": None}]}}, [{"start": "x"}],
        ]
    ),
    st.text(max_size=3),
)  # fmt: skip
"""Values that have no business where they are put."""

strange_keys = st.sampled_from(["new_key", "id", "data", "\ud800", "", "extras", "text", "a.b"])


@st.composite
def spoiled(draw: Any, of: Any = answers) -> Any:
    """An answer with up to three values replaced by oddities or keys added, anywhere in it."""
    answer = json.loads(json.dumps(draw(of)))
    for _ in range(draw(st.integers(1, 3))):
        _spoil(draw, answer)
    return answer


def _spoil(draw: Any, node: Any) -> None:
    while True:
        if isinstance(node, dict) and (not node or draw(st.integers(0, 9)) == 0):
            node[draw(strange_keys)] = copy.deepcopy(draw(oddities))
            return
        if not isinstance(node, dict | list) or not node:
            return
        place = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[place], dict | list) or draw(st.integers(0, 4)) == 0:
            node[place] = copy.deepcopy(draw(oddities))
            return
        node = node[place]
