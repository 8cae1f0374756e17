"""A page of X's answer from posts: chosen fields and expansions, both vocabularies, `includes` and partial errors.

Encoded objects are kept, so that a page of known posts is little more than joining bytes.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Generic, TypeVar

import msgspec

from sandbox.objects import JsonObject, MediaItem, Objects, Post, poll_id, renamed
from sandbox.world import Reference, Spot, World

encode = msgspec.json.encode

PROBLEMS = "https://api.twitter.com/2/problems/"


def _words(text: str) -> list[str]:
    return text.split()


_TWEET_FIELDS = _words(
    "article attachments author_id card_uri community_id context_annotations conversation_id created_at display_text_range "
    "edit_controls edit_history_tweet_ids entities geo id in_reply_to_user_id lang matched_media_notes media_metadata "
    "non_public_metrics note_request_suggestions note_tweet organic_metrics paid_partnership possibly_sensitive "
    "promoted_metrics public_metrics referenced_tweets reply_settings scopes source suggested_source_links "
    "suggested_source_links_with_counts text withheld"
)
_POST_FIELDS = sorted(
    {"note_tweet": "note_post", "edit_history_tweet_ids": "edit_history_post_ids", "referenced_tweets": "referenced_posts"}.get(name, name)
    for name in _TWEET_FIELDS
)  # fmt: skip
_USER_FIELDS = _words(
    "affiliation confirmed_email connection_status created_at description entities id is_identity_verified location "
    "most_recent_tweet_id name parody pinned_tweet_id profile_banner_url profile_image_url protected public_metrics "
    "receives_your_dm subscription subscription_type url username verified verified_followers_count verified_type withheld"
)
_EXPANSIONS = _words(
    "article.cover_media article.media_entities attachments.media_keys attachments.media_source_tweet attachments.poll_ids "
    "author_id edit_history_tweet_ids entities.mentions.username geo.place_id in_reply_to_user_id "
    "entities.note.mentions.username referenced_tweets.id referenced_tweets.id.attachments.media_keys "
    "referenced_tweets.id.author_id"
)
ACCEPTED: dict[str, list[str]] = {
    "tweet.fields": _TWEET_FIELDS,
    "post.fields": _POST_FIELDS,
    "user.fields": sorted({*_USER_FIELDS, "most_recent_post_id", "pinned_post_id"}),
    "media.fields": _words(
        "alt_text duration_ms height media_key non_public_metrics organic_metrics preview_image_url promoted_metrics "
        "public_metrics type url variants width"
    ),
    "poll.fields": _words("duration_minutes end_datetime id options voting_status"),
    "place.fields": _words("contained_within country country_code full_name geo id name place_type"),
    "expansions": [
        *_EXPANSIONS,
        *(name.replace("tweets.id", "posts.id").replace("_tweet", "_post") for name in _EXPANSIONS if "tweet" in name),
    ],
}
"""What each parameter accepts, as X's OpenAPI 2.166 and 2.167 list it."""
_PRIVATE = ("non_public_metrics", "organic_metrics", "promoted_metrics")

_METRICS = b',"public_metrics":{"%s":%d,"reply_count":%d,"like_count":%d,"quote_count":%d,"bookmark_count":%d,"impression_count":%d}}'

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """A cache that forgets what has not been asked for the longest."""

    def __init__(self, size: int, make: Callable[[Key], Value]) -> None:
        self._size = size
        self._make = make
        self._known: OrderedDict[Key, Value] = OrderedDict()

    def __call__(self, key: Key) -> Value:
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._make(key)
            if len(self._known) > self._size:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return known


@dataclass(frozen=True, slots=True)
class Fields:
    """What a request asks for. Names are of the tweet vocabulary; `post_names` tells in which the answer is."""

    post_names: bool = False
    tweet: frozenset[str] = frozenset()
    user: frozenset[str] = frozenset()
    media: frozenset[str] = frozenset()
    poll: frozenset[str] = frozenset()
    place: frozenset[str] = frozenset()
    expansions: frozenset[str] = frozenset()

    def expands(self, name: str) -> bool:
        return name in self.expansions


def fields_of(parameters: tuple[tuple[str, str], ...]) -> Fields:
    """The fields that checked parameters (name, comma-separated values) ask for."""
    given = {name: frozenset(_tweet_name(value) for value in text.split(",") if value) for name, text in parameters}
    return Fields(
        post_names="post.fields" in given,
        tweet=given.get("tweet.fields", frozenset()) | given.get("post.fields", frozenset()),
        user=given.get("user.fields", frozenset()),
        media=given.get("media.fields", frozenset()),
        poll=given.get("poll.fields", frozenset()),
        place=given.get("place.fields", frozenset()),
        expansions=given.get("expansions", frozenset()),
    )


def _tweet_name(name: str) -> str:
    return (
        name.replace("posts.id", "tweets.id")
        .replace("_post_id", "_tweet_id")
        .replace("referenced_posts", "referenced_tweets")
        .replace("note_post", "note_tweet")
        .replace("source_post", "source_tweet")
    )


@dataclass(frozen=True, slots=True)
class Encoded:
    """A post, encoded for one set of fields; `head` lacks the metrics and the closing brace."""

    post: Post
    head: bytes

    def body(self, fields: Fields, now_ms: int) -> bytes:
        if "public_metrics" not in fields.tweet:
            return self.head + b"}"
        return self.head + _METRICS % (
            b"repost_count" if fields.post_names else b"retweet_count",
            *self.post.metrics(now_ms),
        )


@dataclass(frozen=True, slots=True)
class Page:
    """One answer: its bytes, and what was in it."""

    body: bytes
    ids: tuple[int, ...]
    included_posts: tuple[int, ...]
    users: tuple[int, ...]


class Pages:
    """Makes pages of the posts of a world."""

    def __init__(self, world: World) -> None:
        self._objects = Objects(world)
        self._world = world
        self._posts = Recent[Spot, Post](12_000, self._objects.post)
        self._encoded = Recent[tuple[Fields, Spot], Encoded](40_000, self._encode_post)
        self._users = Recent[tuple[Fields, int, int], bytes](60_000, self._encode_user)
        self._places = Recent[tuple[Fields, int], bytes](1_000, self._encode_place)

    def page(
        self,
        fields: Fields,
        spots: Sequence[Spot],
        now_ms: int,
        *,
        next_token: str | None = None,
        revise: Callable[[list[bytes]], list[bytes]] | None = None,
        extra: JsonObject | None = None,
    ) -> Page:
        """A page with these posts, in this order. `revise` may change the encoded posts, `extra` adds top-level keys."""
        found = [self._encoded((fields, spot)) for spot in spots]
        data = [encoded.body(fields, now_ms) for encoded in found]
        if revise is not None:
            data = revise(data)
        ids = [encoded.post.id for encoded in found]
        meta: JsonObject = {}
        if ids:
            meta = {"newest_id": str(max(ids)), "oldest_id": str(min(ids))}
        meta["result_count"] = len(data)
        if next_token is not None:
            meta["next_token"] = next_token
        parts = []
        includes = _Includes()
        if data:
            parts.append(b'"data":[' + b",".join(data) + b"]")
            self._expand(fields, [encoded.post for encoded in found], now_ms, includes)
            if written := includes.written():
                parts.append(b'"includes":{' + written + b"}")
            if includes.errors:
                parts.append(b'"errors":' + encode(includes.errors))
        if extra:
            parts.append(encode(extra)[1:-1])
        parts.append(b'"meta":' + encode(meta))
        return Page(
            body=b"{" + b",".join(parts) + b"}",
            ids=tuple(ids),
            included_posts=tuple(includes.post_ids),
            users=tuple(includes.authors),
        )

    # --- expansions -----------------------------------------------------------------------------------------------------

    def _expand(self, fields: Fields, posts: list[Post], now_ms: int, into: "_Includes") -> None:
        into.kind_of_posts = b"posts" if fields.post_names else b"tweets"
        for post in posts:
            self._expand_post(fields, post, now_ms, into)
        if self._private(fields):
            for post in posts:
                into.errors.extend(_private_field(str(post.id), name) for name in _PRIVATE if name in fields.tweet)
        for author in into.authors:
            # A few accounts cannot be expanded, and X does not say why.
            if author % 509 != 508:
                into.users.append(self._users((fields, author, now_ms // 3_600_000)))

    def _private(self, fields: Fields) -> bool:
        return any(name in fields.tweet for name in _PRIVATE)

    def _expand_post(self, fields: Fields, post: Post, now_ms: int, into: "_Includes") -> None:
        if fields.expands("author_id"):
            into.authors[post.author] = None
        if post.reply_to >= 0 and fields.expands("in_reply_to_user_id"):
            if post.suspended:
                into.error(_suspended(self._objects.user_id(post.reply_to)))
            else:
                into.authors[post.reply_to] = None
        if fields.expands("entities.mentions.username"):
            for author in post.mentions:
                if not (post.suspended and author == post.reply_to):
                    into.authors[author] = None
            for ghost in post.ghosts:
                into.error(_nobody(ghost))
        if fields.expands("attachments.media_keys"):
            for item in post.media:
                self._include_media(fields, item, into)
        if post.poll >= 0 and fields.expands("attachments.poll_ids") and poll_id(post.id) not in into.polls:
            body = self._objects.poll(post, now_ms)
            kept = {name: value for name, value in body.items() if name in fields.poll or name in {"id", "options"}}
            into.polls[poll_id(post.id)] = encode(kept)
        if post.place >= 0 and fields.expands("geo.place_id"):
            into.places[post.place] = self._places((fields, post.place))
        if post.earlier is not None and fields.expands("edit_history_tweet_ids"):
            self._include_post(fields, post.earlier, now_ms, into)
        self._refer(fields, post, now_ms, into)

    def _refer(self, fields: Fields, post: Post, now_ms: int, into: "_Includes") -> None:
        if post.reference_state == Reference.NONE or not fields.expands("referenced_tweets.id"):
            # X expands authors of references only along with the references.
            return
        if post.reference is None:
            protected = post.reference_state == Reference.PROTECTED
            into.error((_not_authorized if protected else _not_found)(str(post.reference_id), fields))
            return
        included = self._include_post(fields, post.reference, now_ms, into)
        if fields.expands("referenced_tweets.id.author_id"):
            into.authors[included.author] = None
        if fields.expands("referenced_tweets.id.attachments.media_keys"):
            for item in included.media:
                self._include_media(fields, item, into)

    def _include_post(self, fields: Fields, spot: Spot, now_ms: int, into: "_Includes") -> Post:
        encoded = self._encoded((fields, spot))
        # X sends some included posts twice; here those whose id ends in 0 or 1, binary.
        if encoded.post.id not in into.post_ids or encoded.post.id >> 12 & 3 == 0:
            into.posts.append(encoded.body(fields, now_ms))
        into.post_ids[encoded.post.id] = None
        return encoded.post

    def _include_media(self, fields: Fields, item: MediaItem, into: "_Includes") -> None:
        if item.body is not None and item.key not in into.media:
            kept = {
                name: value for name, value in item.body.items() if name in fields.media or name in {"media_key", "type"}
            }  # fmt: skip
            into.media[item.key] = encode(kept)

    # --- encoding -------------------------------------------------------------------------------------------------------

    def _encode_post(self, key: tuple[Fields, Spot]) -> Encoded:
        fields, spot = key
        post = self._posts(spot)
        always = ("id", "text", "edit_history_tweet_ids")
        kept = {name: value for name, value in post.body.items() if name in fields.tweet or name in always}
        if "entities.note.mentions.username" in fields.expansions and "note_tweet" in post.body:
            kept["note_tweet"] = post.body["note_tweet"]
        return Encoded(replace(post, body={}), encode(renamed(kept) if fields.post_names else kept)[:-1])

    def _encode_user(self, key: tuple[Fields, int, int]) -> bytes:
        fields, author, hour = key
        body = self._objects.user(author, hour * 3_600_000)
        always = ("id", "name", "username")
        kept = {name: value for name, value in body.items() if name in fields.user or name in always}
        return encode(renamed(kept) if fields.post_names else kept)

    def _encode_place(self, key: tuple[Fields, int]) -> bytes:
        fields, place = key
        body = self._objects.place(place)
        return encode(
            {name: value for name, value in body.items() if name in fields.place or name in {"id", "full_name"}}
        )


class _Includes:
    def __init__(self) -> None:
        self.kind_of_posts = b"tweets"
        self.authors: dict[int, None] = {}
        self.post_ids: dict[int, None] = {}
        self.posts: list[bytes] = []
        self.users: list[bytes] = []
        self.media: dict[str, bytes] = {}
        self.places: dict[int, bytes] = {}
        self.polls: dict[int, bytes] = {}
        self.errors: list[JsonObject] = []
        self._complained: set[tuple[str, str]] = set()

    def error(self, problem: JsonObject) -> None:
        """Note a partial error, once per resource."""
        key = (problem["parameter"], problem["resource_id"])
        if key not in self._complained:
            self._complained.add(key)
            self.errors.append(problem)

    def written(self) -> bytes:
        kinds: tuple[tuple[bytes, Iterable[bytes]], ...] = (
            (b"users", self.users),
            (self.kind_of_posts, self.posts),
            (b"media", self.media.values()),
            (b"places", self.places.values()),
            (b"polls", self.polls.values()),
        )
        return b",".join(b'"' + name + b'":[' + joined + b"]" for name, items in kinds if (joined := b",".join(items)))


def _not_found(post_id: str, fields: Fields) -> JsonObject:
    parameter = "referenced_posts.id" if fields.post_names else "referenced_tweets.id"
    return {
        "value": post_id,
        "detail": f"Could not find tweet with {parameter}: [{post_id}].",
        "title": "Not Found Error",
        "resource_type": "tweet",
        "parameter": parameter,
        "resource_id": post_id,
        "type": PROBLEMS + "resource-not-found",
    }


def _not_authorized(post_id: str, fields: Fields) -> JsonObject:
    parameter = "referenced_posts.id" if fields.post_names else "referenced_tweets.id"
    return {
        "value": post_id,
        "detail": f"Sorry, you are not authorized to see the Tweet with {parameter}: [{post_id}].",
        "title": "Authorization Error",
        "resource_type": "tweet",
        "section": "includes",
        "parameter": parameter,
        "resource_id": post_id,
        "type": PROBLEMS + "not-authorized-for-resource",
    }


def _nobody(username: str) -> JsonObject:
    return {
        "value": username,
        "detail": f"Could not find user with entities.mentions.username: [{username}].",
        "title": "Not Found Error",
        "resource_type": "user",
        "parameter": "entities.mentions.username",
        "resource_id": username,
        "type": PROBLEMS + "resource-not-found",
    }


def _suspended(user_id: str) -> JsonObject:
    return {
        "value": user_id,
        "detail": f"User has been suspended: [{user_id}].",
        "title": "Forbidden",
        "resource_type": "user",
        "parameter": "in_reply_to_user_id",
        "resource_id": user_id,
        "type": PROBLEMS + "resource-not-found",
    }


def _private_field(post_id: str, name: str) -> JsonObject:
    return {
        "resource_type": "tweet",
        "field": name,
        "title": "Field Authorization Error",
        "section": "data",
        "detail": f"Sorry, you are not authorized to access '{name}' on the Tweet with id : [{post_id}].",
        "resource_id": post_id,
        "parameter": "id",
        "value": post_id,
        "type": PROBLEMS + "not-authorized-for-field",
    }


known_fields = lru_cache(maxsize=512)(fields_of)
"""`fields_of`, remembered: equal requests share their encoded posts."""
