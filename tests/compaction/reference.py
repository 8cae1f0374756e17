"""What decoding must yield, written down once more, slowly and by hand, from X's field lists and not from the model."""

import html
from datetime import UTC, datetime, timedelta
from typing import Any

from compaction_dags.compaction.decode import RawPage

X_EPOCH = datetime(2010, 11, 4, 1, 42, 54, 657_000, tzinfo=UTC)


def rows_of(page: RawPage, answer: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of one well-formed answer, by table, in the order of the page."""
    includes = answer.get("includes") or {}
    posts = (includes.get("tweets") or []) + (includes.get("posts") or [])
    hour = page.raw_key.split("/")
    raw = {"date": hour[1].removeprefix("date="), "hour": int(hour[2].removeprefix("hour="))}
    fetched = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=page.received_at_us)
    book = {"raw_key": page.raw_key, "record_index": page.record_index, "fetched_at": fetched}
    return {
        "tweets": [
            _post(post)
            | book
            | {"matched_queries": [page.query], "first_fetched_at": fetched}
            | _event_hour(int(post["id"]))
            for post in answer.get("data") or []
        ],
        "users": [_user(user) | book | raw for user in includes.get("users") or []],
        "media": [_medium(medium) | book | raw for medium in includes.get("media") or []],
        "places": [_place(place) | book | raw for place in includes.get("places") or []],
        "polls": [_poll(poll) | book | raw for poll in includes.get("polls") or []],
        "referenced_tweets": [_post(post) | book | raw for post in posts],
    }


def _created(number: int) -> datetime:
    return X_EPOCH + timedelta(milliseconds=number // 2**22)


def _event_hour(number: int) -> dict[str, Any]:
    return {"date": _created(number).strftime("%Y-%m-%d"), "hour": _created(number).hour}


def _get(value: Any, *names: str) -> Any:
    for name in names:
        if value is None:
            return None
        value = value.get(name)
    return value


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _id(value: Any) -> int | None:
    return None if value is None else int(value)


def _ids(values: Any) -> list[int | None] | None:
    return None if values is None else [_id(value) for value in values]


def _time(value: Any) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).astimezone(UTC)


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _each(values: Any, make: Any) -> Any:
    return None if values is None else [None if value is None else make(value) for value in values]


def _keys(*names: str) -> Any:
    return lambda value: {name: value.get(name) for name in names}


_tag = _keys("start", "end", "tag")


def _mention(value: dict[str, Any]) -> dict[str, Any]:
    return {"start": value.get("start"), "end": value.get("end")} | {
        "username": value.get("username"),
        "id": _id(value.get("id")),
    }


def _url(value: dict[str, Any]) -> dict[str, Any]:
    names = [
        "start",
        "end",
        "url",
        "expanded_url",
        "display_url",
        "unwound_url",
        "status",
        "title",
        "description",
        "media_key",
    ]
    return _keys(*names)(value) | {"images": _each(value.get("images"), _keys("url", "width", "height"))}


def _annotation(value: dict[str, Any]) -> dict[str, Any]:
    return _keys("start", "end", "type", "normalized_text")(value) | {"probability": _float(value.get("probability"))}


def _context(value: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{part}_{name}": (_id if name == "id" else _same)(_get(value, part, name))
        for part in ("domain", "entity")
        for name in ("id", "name", "description")
    }


def _same(value: Any) -> Any:
    return value


def _reference_of(post: dict[str, Any], kind: str) -> int | None:
    references = _first(post.get("referenced_tweets"), post.get("referenced_posts")) or []
    ids = [reference.get("id") for reference in references if reference and reference.get("type") == kind]
    return _id(_first(*ids))


def _post(post: dict[str, Any]) -> dict[str, Any]:
    old, new = post.get("note_tweet"), post.get("note_post")
    text = _first(_get(old, "text"), _get(new, "text"), post.get("text"))
    metrics = post.get("public_metrics")

    def entity(name: str, make: Any) -> Any:
        lists = (_get(old, "entities", name), _get(new, "entities", name), _get(post, "entities", name))
        return _each(_first(*lists), make)

    long_urls = _first(_get(old, "entities", "urls"), _get(new, "entities", "urls"))
    point = _get(post, "geo", "coordinates", "coordinates") or [None, None]
    row = {
        name: post.get(name)
        for name in [
            "lang",
            "source",
            "possibly_sensitive",
            "paid_partnership",
            "reply_settings",
            "card_uri",
            "display_text_range",
        ]
    }
    json_columns = (
        "article article_title media_metadata matched_media_notes note_request_suggestions suggested_source_links "
        "suggested_source_links_with_counts non_public_metrics organic_metrics promoted_metrics extras"
    )
    row |= dict.fromkeys(json_columns.split())
    row |= {
        "id": int(post["id"]),
        "created_at": _first(_time(post.get("created_at")), _created(int(post["id"]))),
        "author_id": _id(post.get("author_id")),
        "author_username": post.get("username"),
        "text": None if text is None else html.unescape(text),
        "text_sent": post.get("text"),
        "conversation_id": _id(post.get("conversation_id")),
        "in_reply_to_user_id": _id(post.get("in_reply_to_user_id")),
        "referenced_tweets": _each(
            _first(post.get("referenced_tweets"), post.get("referenced_posts")),
            lambda reference: {"type": reference.get("type"), "id": _id(reference.get("id"))},
        ),
        "replied_to_id": _reference_of(post, "replied_to"),
        "quoted_id": _reference_of(post, "quoted"),
        "retweeted_id": _reference_of(post, "retweeted"),
        "edit_history_tweet_ids": _ids(_first(post.get("edit_history_tweet_ids"), post.get("edit_history_post_ids"))),
        "editable_until": _time(_get(post, "edit_controls", "editable_until")),
        "edits_remaining": _get(post, "edit_controls", "edits_remaining"),
        "is_edit_eligible": _get(post, "edit_controls", "is_edit_eligible"),
        "like_count": _get(metrics, "like_count"),
        "retweet_count": _first(_get(metrics, "retweet_count"), _get(metrics, "repost_count")),
        "reply_count": _get(metrics, "reply_count"),
        "quote_count": _get(metrics, "quote_count"),
        "bookmark_count": _get(metrics, "bookmark_count"),
        "impression_count": _get(metrics, "impression_count"),
        "hashtags": entity("hashtags", _tag),
        "cashtags": entity("cashtags", _tag),
        "mentions": entity("mentions", _mention),
        "urls": entity("urls", _url),
        "urls_sent": None if long_urls is None else _each(_get(post, "entities", "urls"), _url),
        "annotations": _each(_get(post, "entities", "annotations"), _annotation),
        "context_annotations": _each(post.get("context_annotations"), _context),
        "media_keys": _get(post, "attachments", "media_keys"),
        "poll_ids": _ids(_get(post, "attachments", "poll_ids")),
        "media_source_tweet_ids": _ids(_get(post, "attachments", "media_source_tweet_id")),
        "place_id": _get(post, "geo", "place_id"),
        "longitude": _float(point[0]),
        "latitude": _float(point[1]),
        "scopes_followers": _get(post, "scopes", "followers"),
        "community_id": _id(post.get("community_id")),
        "withheld_copyright": _get(post, "withheld", "copyright"),
        "withheld_country_codes": _get(post, "withheld", "country_codes"),
        "withheld_scope": _get(post, "withheld", "scope"),
    }
    return row


def _user(user: dict[str, Any]) -> dict[str, Any]:
    metrics = user.get("public_metrics")
    about = _get(user, "entities", "description")
    same = (
        "username name description location url verified verified_type verified_followers_count is_identity_verified "
        "protected parody subscription_type receives_your_dm connection_status confirmed_email profile_image_url "
        "profile_banner_url"
    )
    return _keys(*same.split())(user) | {
        "id": int(user["id"]),
        "created_at": _time(user.get("created_at")),
        "followers_count": _get(metrics, "followers_count"),
        "following_count": _get(metrics, "following_count"),
        "tweet_count": _first(_get(metrics, "tweet_count"), _get(metrics, "post_count")),
        "listed_count": _get(metrics, "listed_count"),
        "like_count": _get(metrics, "like_count"),
        "media_count": _get(metrics, "media_count"),
        "subscribes_to_you": _first(user.get("subscribes_to_you"), _get(user, "subscription", "subscribes_to_you")),
        "pinned_tweet_id": _id(_first(user.get("pinned_tweet_id"), user.get("pinned_post_id"))),
        "most_recent_tweet_id": _id(_first(user.get("most_recent_tweet_id"), user.get("most_recent_post_id"))),
        "affiliation_description": _get(user, "affiliation", "description"),
        "affiliation_url": _get(user, "affiliation", "url"),
        "affiliation_badge_url": _get(user, "affiliation", "badge_url"),
        "affiliation_user_ids": _ids(_get(user, "affiliation", "user_id")),
        "url_urls": _each(_get(user, "entities", "url", "urls"), _url),
        "description_hashtags": _each(_get(about, "hashtags"), _tag),
        "description_cashtags": _each(_get(about, "cashtags"), _tag),
        "description_mentions": _each(_get(about, "mentions"), _mention),
        "description_urls": _each(_get(about, "urls"), _url),
        "description_annotations": _each(_get(about, "annotations"), _annotation),
        "withheld_country_codes": _get(user, "withheld", "country_codes"),
        "withheld_scope": _get(user, "withheld", "scope"),
        "extras": None,
    }


def _medium(medium: dict[str, Any]) -> dict[str, Any]:
    return _keys("media_key", "type", "url", "preview_image_url", "alt_text", "width", "height", "duration_ms")(
        medium
    ) | {
        "view_count": _get(medium, "public_metrics", "view_count"),
        "variants": _each(medium.get("variants"), _keys("bit_rate", "content_type", "url")),
        "non_public_metrics": None,
        "organic_metrics": None,
        "promoted_metrics": None,
        "extras": None,
    }


def _place(place: dict[str, Any]) -> dict[str, Any]:
    point = _get(place, "geo", "geometry", "coordinates") or [None, None]
    same = "id full_name name place_type country country_code contained_within"
    return _keys(*same.split())(place) | {
        "geo_type": _get(place, "geo", "type"),
        "bbox": _each(_get(place, "geo", "bbox"), float),
        "longitude": _float(point[0]),
        "latitude": _float(point[1]),
        "extras": None,
    }


def _poll(poll: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": int(poll["id"]),
        "voting_status": poll.get("voting_status"),
        "duration_minutes": poll.get("duration_minutes"),
        "end_datetime": _time(poll.get("end_datetime")),
        "options": _each(poll.get("options"), _keys("position", "label", "votes")),
        "extras": None,
    }
