"""The frozen nouns of the ingester: interval, request, answer, page facts, raw record. Pure values, no behaviour beyond them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime


@dataclass(frozen=True, slots=True)
class FieldSet:
    """What is asked of X beside ids and text, and so what a page may cost."""

    tweet_fields: tuple[str, ...]
    expansions: tuple[str, ...] = ()
    user_fields: tuple[str, ...] = ()
    media_fields: tuple[str, ...] = ()
    place_fields: tuple[str, ...] = ()
    poll_fields: tuple[str, ...] = ()

    @property
    def users_per_post(self) -> int:
        """Users that one post can bring along, as far as the request can tell (a post may mention more)."""
        return sum(1 for name in self.expansions if name in _USER_EXPANSIONS)

    @property
    def included_posts_per_post(self) -> int:
        """Posts that one post can bring along."""
        return sum(1 for name in self.expansions if name in _POST_EXPANSIONS)


_USER_EXPANSIONS = frozenset(
    {
        "author_id",
        "in_reply_to_user_id",
        "entities.mentions.username",
        "entities.note.mentions.username",
        "referenced_tweets.id.author_id",
    }
)
_POST_EXPANSIONS = frozenset({"referenced_tweets.id", "edit_history_tweet_ids", "attachments.media_source_tweet"})


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LEAN = FieldSet(
    tweet_fields=_words(
        "author_id conversation_id created_at edit_history_tweet_ids in_reply_to_user_id lang note_tweet "
        "public_metrics referenced_tweets text"
    )
)
"""Posts alone: no included object can be billed."""

RICH = FieldSet(
    tweet_fields=_words(
        "attachments author_id community_id context_annotations conversation_id created_at display_text_range "
        "edit_controls edit_history_tweet_ids entities geo id in_reply_to_user_id lang note_tweet possibly_sensitive "
        "public_metrics referenced_tweets reply_settings source text withheld"
    ),
    expansions=_words(
        "author_id referenced_tweets.id referenced_tweets.id.author_id in_reply_to_user_id "
        "entities.mentions.username attachments.media_keys attachments.poll_ids geo.place_id"
    ),
    user_fields=_words(
        "affiliation created_at description entities id is_identity_verified location name parody pinned_tweet_id "
        "profile_banner_url profile_image_url protected public_metrics subscription_type url username verified "
        "verified_followers_count verified_type withheld"
    ),
    media_fields=_words(
        "alt_text duration_ms height media_key preview_image_url public_metrics type url variants width"
    ),
    place_fields=_words("contained_within country country_code full_name geo id name place_type"),
    poll_fields=_words("duration_minutes end_datetime id options voting_status"),
)
"""Everything an app-only token may read (X's OpenAPI 2.166), without what needs a user's consent."""


def field_set(fields: str | list[str], expansions: list[str] | None) -> FieldSet:
    """The field set that the settings `x.fields` and `x.expansions` mean."""
    if isinstance(fields, list):
        base = replace(RICH, tweet_fields=tuple(fields), expansions=())
    else:
        base = RICH if fields == "rich" else LEAN
    if expansions is None:
        return base
    details = replace(RICH, tweet_fields=base.tweet_fields)  # included objects want their fields too
    return replace(details, expansions=tuple(expansions))


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One request for one page. `since_id` and `until_id` are exclusive; they never mix with times (X answers 400)."""

    query: str
    rule: str
    since_id: int
    until_id: int
    next_token: str | None
    max_results: int
    fields: FieldSet


@dataclass(frozen=True, slots=True)
class CountsRequest:
    """How many posts each hour had, from `start` (inclusive) to `end` (exclusive), both on the hour."""

    rule: str
    start: datetime
    end: datetime
    next_token: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What X sent back, whatever its status: body decoded from gzip and otherwise untouched."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    parameters: Mapping[str, str]
    """As sent, without the token."""
    requested_at: datetime
    received_at: datetime

    @property
    def kept_headers(self) -> dict[str, str]:
        """The headers that matter later, and none that identifies the account."""
        return {k: v for k, v in self.headers.items() if k in _KEPT_HEADERS or k.startswith("x-rate-limit-")}


_KEPT_HEADERS = ("date", "content-type", "x-request-id", "x-transaction-id", "x-response-time")


@dataclass(frozen=True, slots=True)
class PageFacts:
    """What the collector needs to know of a page: ids and counts, never the posts themselves."""

    result_count: int
    post_ids: tuple[int, ...]
    """Valid int64 ids in `data`, in X's order."""
    next_token: str | None
    included_posts: int
    included_users: int
    problem: str | None = None
    """Why the page cannot be followed; its body is kept all the same."""
    is_countable: bool = True
    """Whether the figures above can be told at all; otherwise X may have billed as many posts as were asked for."""
    tells_its_end: bool = True
    """Whether it says if there is more; otherwise its interval goes on below it by bounds."""

    @property
    def newest_id(self) -> int | None:
        return max(self.post_ids, default=None)

    @property
    def oldest_id(self) -> int | None:
        return min(self.post_ids, default=None)


@dataclass(frozen=True, slots=True)
class Bill:
    """What a page is booked at. Money is whole millionths of a US dollar, so sums are exact."""

    microusd: int
    posts: int
    repeats: int = 0
    users: int = 0
