"""The curated tables: every column's name, Arrow type, meaning and source field in X's answer.

This is the one place where a column is defined, and the decoder is built from it: a field's `source` is not only said
but used. Field metadata (UTF-8 bytes, as Arrow wants it):

- `doc`: what the column means, with its unit.
- `source`: where the value comes from, a path below the object the row is made of (the table's own `source`).
  `a|b` takes the first that is there; that is how the tweet.* and the post.* vocabulary fold into one column.
  `[n]` is an element of an array. `derived: …` says how a value is computed that X does not send.
- `form`, where the type alone does not say how to read the value: `id` (X sends digits in a string), `html` (entities
  are decoded), `json` (any JSON value, kept as text).

Field lists: X's OpenAPI descriptions 2.166 (tweet.*) and 2.167 (post.*). Rules of evolution: schemas/README.md.
"""

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

TIME: Final = pa.timestamp("us", tz="UTC")

DERIVED: Final = "derived: "
"""Start of the `source` of a column that is computed."""


def _field(name: str, type_: pa.DataType, source: str, doc: str, form: str = "") -> pa.Field:
    metadata = {"doc": doc, "source": source}
    if form:
        metadata["form"] = form
    return pa.field(name, type_, metadata=metadata)


def _text(name: str, source: str, doc: str) -> pa.Field:
    return _field(name, pa.string(), source, doc)


def _id(name: str, source: str, doc: str) -> pa.Field:
    return _field(name, pa.int64(), source, doc, "id")


def _ids(name: str, source: str, doc: str) -> pa.Field:
    return _field(name, pa.list_(pa.int64()), source, doc, "id")


def _texts(name: str, source: str, doc: str) -> pa.Field:
    return _field(name, pa.list_(pa.string()), source, doc)


def _count(name: str, source: str, doc: str) -> pa.Field:
    return _field(name, pa.int64(), source, doc)


def _small(name: str, source: str, doc: str) -> pa.Field:
    return _field(name, pa.int32(), source, doc)


def _number(name: str, source: str, doc: str) -> pa.Field:
    return _field(name, pa.float64(), source, doc)


def _flag(name: str, source: str, doc: str) -> pa.Field:
    return _field(name, pa.bool_(), source, doc)


def _time(name: str, source: str, doc: str) -> pa.Field:
    return _field(name, TIME, source, doc)


def _json(name: str, source: str, doc: str) -> pa.Field:
    return _field(
        name, pa.string(), source, f"{doc} JSON text, because X's shape of it varies or is not described.", "json"
    )


def _structs(name: str, source: str, doc: str, fields: list[pa.Field]) -> pa.Field:
    return _field(name, pa.list_(pa.struct(fields)), source, doc)


_SPAN = [
    _small("start", "start", "First character in the text, counted in code points from 0."),
    _small("end", "end", "One past the last character."),
]
_TAG = [*_SPAN, _text("tag", "tag", "The tag without its # or $.")]
_MENTION = [
    *_SPAN,
    _text("username", "username", "Handle without the @."),
    _id("id", "id", "The user's id; X leaves it out now and then."),
]
_URL = [
    *_SPAN,
    _text("url", "url", "The t.co link as it stands in the text."),
    _text("expanded_url", "expanded_url", "What the author linked to."),
    _text("display_url", "display_url", "What a reader sees."),
    _text("unwound_url", "unwound_url", "The end of the chain of redirects."),
    _small("status", "status", "HTTP status X got from the link."),
    _text("title", "title", "Title of the linked page."),
    _text("description", "description", "Description of the linked page."),
    _text("media_key", "media_key", "Key of the media the link stands for, in the table media."),
    _structs(
        "images",
        "images",
        "Preview images of the linked page.",
        [
            _text("url", "url", "Address of the image."),
            _small("width", "width", "Pixels."),
            _small("height", "height", "Pixels."),
        ],
    ),
]
_ANNOTATION = [
    *_SPAN,
    _number("probability", "probability", "X's confidence, 0 to 1."),
    _text("type", "type", "Person, Place, Product, Organization or Other."),
    _text("normalized_text", "normalized_text", "The words found."),
]
_CONTEXT = [
    _id("domain_id", "domain.id", "Id of the domain, such as 46."),
    _text("domain_name", "domain.name", "Name of the domain, such as Business Taxonomy."),
    _text("domain_description", "domain.description", "What the domain means."),
    _id("entity_id", "entity.id", "Id of the thing the post is about."),
    _text("entity_name", "entity.name", "Name of the thing."),
    _text("entity_description", "entity.description", "What the thing is."),
]
_REFERENCE = [
    _text("type", "type", "retweeted, quoted or replied_to."),
    _id("id", "id", "Id of the other post."),
]
_VARIANT = [
    _count("bit_rate", "bit_rate", "Bits per second; absent for playlists."),
    _text("content_type", "content_type", "MIME type."),
    _text("url", "url", "Address of the file."),
]
_OPTION = [
    _small("position", "position", "Place in the poll, from 1."),
    _text("label", "label", "The choice."),
    _count("votes", "votes", "Votes when fetched."),
]

_METRICS_OF_OWNER = [
    _json("non_public_metrics", "non_public_metrics", "Only sent to the author's own app."),
    _json("organic_metrics", "organic_metrics", "Only sent to the author's own app."),
    _json("promoted_metrics", "promoted_metrics", "Only sent to the author's own app."),
]

_EXTRAS = _text(
    "extras",
    DERIVED + "keys without a column",
    "JSON object of what has no column: keys that are not modelled and values that do not fit their column, at their "
    "own paths. Null: nothing of the kind was found.",
)

_BOOKKEEPING = [
    _text("raw_key", DERIVED + "raw zone", "S3 key of the raw microbatch the row was read from."),
    _small("record_index", DERIVED + "raw zone", "Position of the page's record in that microbatch, from 0."),
    _time("fetched_at", DERIVED + "received_at of the page", "When X's answer with this row had arrived."),
]


def _partition(of: str) -> list[pa.Field]:
    return [
        _text("date", DERIVED + of, f"Partition: UTC date (YYYY-MM-DD) of the {of}."),
        _small("hour", DERIVED + of, f"Partition: UTC hour (0 to 23) of the {of}."),
    ]


_RAW_HOUR = _partition("raw hour")
_EVENT_HOUR = _partition("post's creation, read off its id")

_TWEET = [
    _id("id", "id", "Id of the post. A snowflake: it carries the millisecond of creation."),
    _time("created_at", "created_at", "When it was posted, as X says; from the id where X left it out."),
    _id("author_id", "author_id", "Id of the author, in the table users."),
    _text("author_username", "username", "Handle of the author, where X sends it with the post."),
    _field(
        "text",
        pa.string(),
        "note_tweet.text|note_post.text|text",
        "Full text with HTML entities decoded (&amp; is &), of long posts too.",
        "html",
    ),
    _text("text_sent", "text", "X's `text` untouched: HTML entities as sent, long posts cut."),
    _text("lang", "lang", "Language by X's detection, BCP 47; und: undetermined."),
    _text("source", "source", "App it was posted with."),
    _id("conversation_id", "conversation_id", "Id of the post that began the thread."),
    _id("in_reply_to_user_id", "in_reply_to_user_id", "Author of the post this one answers."),
    _structs("referenced_tweets", "referenced_tweets|referenced_posts", "Posts this one refers to.", _REFERENCE),
    _id("replied_to_id", DERIVED + "referenced_tweets", "The post this one answers."),
    _id("quoted_id", DERIVED + "referenced_tweets", "The post this one quotes."),
    _id("retweeted_id", DERIVED + "referenced_tweets", "The post this one repeats."),
    _ids(
        "edit_history_tweet_ids",
        "edit_history_tweet_ids|edit_history_post_ids",
        "Ids of all versions of the post, oldest first; each version is a post of its own.",
    ),
    _time("editable_until", "edit_controls.editable_until", "Until when it may be edited."),
    _small("edits_remaining", "edit_controls.edits_remaining", "How often it may still be edited."),
    _flag("is_edit_eligible", "edit_controls.is_edit_eligible", "Whether it can be edited at all."),
    _count("like_count", "public_metrics.like_count", "Likes when fetched."),
    _count("retweet_count", "public_metrics.retweet_count|public_metrics.repost_count", "Retweets when fetched."),
    _count("reply_count", "public_metrics.reply_count", "Replies when fetched."),
    _count("quote_count", "public_metrics.quote_count", "Quotes when fetched."),
    _count("bookmark_count", "public_metrics.bookmark_count", "Bookmarks when fetched."),
    _count("impression_count", "public_metrics.impression_count", "Views when fetched."),
    _structs(
        "hashtags",
        "note_tweet.entities.hashtags|note_post.entities.hashtags|entities.hashtags",
        "Hashtags of the full text.",
        _TAG,
    ),
    _structs(
        "cashtags",
        "note_tweet.entities.cashtags|note_post.entities.cashtags|entities.cashtags",
        "Cashtags of the full text.",
        _TAG,
    ),
    _structs(
        "mentions",
        "note_tweet.entities.mentions|note_post.entities.mentions|entities.mentions",
        "Users mentioned in the full text.",
        _MENTION,
    ),
    _structs("urls", "note_tweet.entities.urls|note_post.entities.urls|entities.urls", "Links of the full text.", _URL),
    _structs(
        "urls_sent",
        DERIVED + "entities.urls of long posts",
        "Links of text_sent, only where `urls` are those of a long post's full text, which X describes less.",
        _URL,
    ),
    _structs("annotations", "entities.annotations", "Names X found in text_sent.", _ANNOTATION),
    _structs("context_annotations", "context_annotations", "What the post is about, by X's taxonomy.", _CONTEXT),
    _texts("media_keys", "attachments.media_keys", "Keys of attached media, in the table media."),
    _ids("poll_ids", "attachments.poll_ids", "Ids of attached polls, in the table polls."),
    _ids("media_source_tweet_ids", "attachments.media_source_tweet_id", "Posts the attached media come from."),
    _text("place_id", "geo.place_id", "Id of the tagged place, in the table places."),
    _number(
        "longitude", "geo.coordinates.coordinates[0]", "Degrees east of the exact point, where the author gave one."
    ),
    _number("latitude", "geo.coordinates.coordinates[1]", "Degrees north of the exact point."),
    _flag("possibly_sensitive", "possibly_sensitive", "X thinks that it may offend."),
    _flag("paid_partnership", "paid_partnership", "Marked as paid for."),
    _text("reply_settings", "reply_settings", "Who may answer: everyone, mentionedUsers, following, ..."),
    _flag("scopes_followers", "scopes.followers", "Visible to followers only."),
    _id("community_id", "community_id", "Community it was posted in."),
    _text("card_uri", "card_uri", "Card attached to the post."),
    _field(
        "display_text_range",
        pa.list_(pa.int32()),
        "display_text_range",
        "Start and end of what a reader sees of text_sent, in code points.",
    ),
    _flag("withheld_copyright", "withheld.copyright", "Withheld for copyright."),
    _texts("withheld_country_codes", "withheld.country_codes", "Countries it is withheld in, ISO 3166 alpha-2."),
    _text("withheld_scope", "withheld.scope", "What is withheld: tweet (or post), user."),
    _json("article", "article", "Long-form article of the post."),
    _json("article_title", "article_title", "Title of the article, where sent apart."),
    _json("media_metadata", "media_metadata", "Titles, descriptions and alternative texts of attached media."),
    _json("matched_media_notes", "matched_media_notes", "Community notes on the post's media."),
    _json("note_request_suggestions", "note_request_suggestions", "Suggestions sent with requests for a note."),
    _json("suggested_source_links", "suggested_source_links", "Sources suggested for a community note."),
    _json(
        "suggested_source_links_with_counts",
        "suggested_source_links_with_counts",
        "Sources suggested for a community note, with how often.",
    ),
    *_METRICS_OF_OWNER,
    _EXTRAS,
]

_USER = [
    _id("id", "id", "Id of the user, for life."),
    _text("username", "username", "Handle without the @; can change hands."),
    _text("name", "name", "Display name."),
    _time("created_at", "created_at", "When the account was opened."),
    _text("description", "description", "The user's own words about themselves, as sent."),
    _text("location", "location", "Free text by the user; not a place one can rely on."),
    _text("url", "url", "The t.co link of the profile."),
    _count("followers_count", "public_metrics.followers_count", "Followers when fetched."),
    _count("following_count", "public_metrics.following_count", "Accounts followed when fetched."),
    _count("tweet_count", "public_metrics.tweet_count|public_metrics.post_count", "Posts made when fetched."),
    _count("listed_count", "public_metrics.listed_count", "Lists with this user when fetched."),
    _count("like_count", "public_metrics.like_count", "Likes given when fetched."),
    _count("media_count", "public_metrics.media_count", "Media posted when fetched."),
    _flag("verified", "verified", "Has a check mark."),
    _text("verified_type", "verified_type", "blue, government, business or none."),
    _count("verified_followers_count", "verified_followers_count", "Verified followers when fetched."),
    _flag("is_identity_verified", "is_identity_verified", "Identity proved to X."),
    _flag("protected", "protected", "Posts are visible to followers only."),
    _flag("parody", "parody", "Marked as a parody."),
    _text("subscription_type", "subscription_type", "Basic, Premium, PremiumPlus or None."),
    _flag("subscribes_to_you", "subscribes_to_you|subscription.subscribes_to_you", "Only sent in a user's context."),
    _flag("receives_your_dm", "receives_your_dm", "Only sent in a user's context."),
    _texts("connection_status", "connection_status", "Only sent in a user's context: following, blocking, ..."),
    _text("confirmed_email", "confirmed_email", "Only sent in a user's own context."),
    _text("profile_image_url", "profile_image_url", "Address of the portrait."),
    _text("profile_banner_url", "profile_banner_url", "Address of the banner."),
    _id("pinned_tweet_id", "pinned_tweet_id|pinned_post_id", "The post pinned to the profile."),
    _id("most_recent_tweet_id", "most_recent_tweet_id|most_recent_post_id", "The newest post when fetched."),
    _text("affiliation_description", "affiliation.description", "Name of the organisation the user belongs to."),
    _text("affiliation_url", "affiliation.url", "Link of that organisation."),
    _text("affiliation_badge_url", "affiliation.badge_url", "Badge of that organisation."),
    _ids("affiliation_user_ids", "affiliation.user_id", "Accounts of that organisation."),
    _structs("url_urls", "entities.url.urls", "The link in `url`, resolved.", _URL),
    _structs("description_hashtags", "entities.description.hashtags", "Hashtags of the description.", _TAG),
    _structs("description_cashtags", "entities.description.cashtags", "Cashtags of the description.", _TAG),
    _structs("description_mentions", "entities.description.mentions", "Users named in the description.", _MENTION),
    _structs("description_urls", "entities.description.urls", "Links of the description.", _URL),
    _structs("description_annotations", "entities.description.annotations", "Names X found there.", _ANNOTATION),
    _texts("withheld_country_codes", "withheld.country_codes", "Countries the user is withheld in."),
    _text("withheld_scope", "withheld.scope", "What is withheld: user."),
    _EXTRAS,
]

_MEDIA = [
    _text("media_key", "media_key", "Key of the medium, such as 3_1136048009270239232."),
    _text("type", "type", "photo, video or animated_gif."),
    _text("url", "url", "Address of a photo."),
    _text("preview_image_url", "preview_image_url", "Still picture of a video."),
    _text("alt_text", "alt_text", "Description for people who do not see it."),
    _small("width", "width", "Pixels."),
    _small("height", "height", "Pixels."),
    _count("duration_ms", "duration_ms", "Length in milliseconds."),
    _count("view_count", "public_metrics.view_count", "Views when fetched."),
    _structs("variants", "variants", "Files of a video.", _VARIANT),
    *_METRICS_OF_OWNER,
    _EXTRAS,
]

_PLACE = [
    _text("id", "id", "Id of the place."),
    _text("full_name", "full_name", "Name with what it lies in, such as Manhattan, NY."),
    _text("name", "name", "Short name."),
    _text("place_type", "place_type", "poi, neighborhood, city, admin, country or unknown."),
    _text("country", "country", "Name of the country."),
    _text("country_code", "country_code", "ISO 3166 alpha-2."),
    _texts("contained_within", "contained_within", "Ids of places around it."),
    _text("geo_type", "geo.type", "GeoJSON type; Feature."),
    _field("bbox", pa.list_(pa.float64()), "geo.bbox", "West, south, east, north, in degrees."),
    _number("longitude", "geo.geometry.coordinates[0]", "Degrees east, where the place is a point."),
    _number("latitude", "geo.geometry.coordinates[1]", "Degrees north, where the place is a point."),
    _EXTRAS,
]

_POLL = [
    _id("id", "id", "Id of the poll."),
    _text("voting_status", "voting_status", "open or closed, when fetched."),
    _small("duration_minutes", "duration_minutes", "How long it runs, in minutes."),
    _time("end_datetime", "end_datetime", "When it ends."),
    _structs("options", "options", "The choices and their votes.", _OPTION),
    _EXTRAS,
]

_REJECT = [
    _text("raw_key", DERIVED + "raw zone", "S3 key of the raw microbatch."),
    _small("record_index", DERIVED + "raw zone", "Position of the record, from 0; null: the file as a whole."),
    _text("query", DERIVED + "raw record", "Query the page was fetched for."),
    _text("tweet_id", "id", "Id as sent, where there is one; may be no number."),
    _text("reason", DERIVED + "decoder", "One word for what is wrong; to be counted by."),
    _text("detail", DERIVED + "decoder", "What exactly is wrong, for a person."),
    _field("body", pa.binary(), DERIVED + "raw zone", "The bytes that were not used: an object's JSON, a whole page."),
    _time("fetched_at", DERIVED + "received_at of the page", "When the answer had arrived; null: not known."),
]

_INGESTED = [
    _text("raw_key", DERIVED + "raw zone", "S3 key of the microbatch that was consumed."),
    _count("sequence", DERIVED + "header", "Its number in the ingester's stream."),
    _text("spool_id", DERIVED + "header", "The spool it came from."),
    _count("bytes", DERIVED + "raw zone", "Size of the object."),
    _text("etag", DERIVED + "raw zone", "The object's ETag, without quotes."),
    _text("sha256", DERIVED + "raw zone", "SHA-256 of the object as read, lower-case hex."),
    _count("records", DERIVED + "raw reader", "Records that could be read, of all kinds."),
    _count("pages", DERIVED + "raw reader", "Pages of search results among them."),
    _count("rows", DERIVED + "decoder", "Posts in `data` of these pages, before duplicates were folded."),
    _count("filtered", DERIVED + "transform", "Posts the user's transform dropped."),
    _count("rejects", DERIVED + "decoder", "Rows in the table rejects."),
    _text("transform", DERIVED + "settings", "The user's function, package.module:name; null: none."),
    _text("transform_version", DERIVED + "transform", "Digest of the function's source."),
    _text("code_version", DERIVED + "release", "Version of Tweetlake that read it."),
    _time("ingested_at", DERIVED + "clock", "When it was consumed."),
    _flag(
        "is_closed",
        DERIVED + "raw zone",
        "No spool that wrote into the raw hour could add to it any more; null: consumed by a release that did not look.",
    ),
    _count("duplicates", DERIVED + "merging", "Posts of it which the raw hour has again, as late or later."),
    _text(
        "unknown_keys",
        DERIVED + "decoder",
        "Keys of X's answers without a column, as a JSON object of paths and counts; null: none were found.",
    ),
]

_COVERAGE = [
    _text("query", DERIVED + "raw record", "Name of the query."),
    _text(
        "kind",
        DERIVED + "raw zone",
        "frontier: what the query moved on by in this raw hour, all of which ought to be covered, todo or a gap. "
        "covered: pages in raw cover it. todo: left to be asked when the hour ended. gap: will not be asked. "
        "rule: the rule was changed, from since_id on.",
    ),
    _count("since_id", DERIVED + "raw record", "Lower bound in ids, exclusive, as X's since_id."),
    _count("until_id", DERIVED + "raw record", "Upper bound in ids, exclusive, as X's until_id."),
    _time("starts_at", DERIVED + "since_id", "Time of the first id of the stretch."),
    _time("ends_at", DERIVED + "until_id", "Time at which the stretch ends, exclusive."),
    _text(
        "rule", DERIVED + "raw record", "The search rule it was or is to be asked with; null: the query was removed."
    ),
    _text(
        "reason",
        DERIVED + "raw record",
        "todo: live, backlog, quarantine; or reread, backfill: asked on top, so that it may be covered already. "
        "gap: out_of_reach, query_removed; or damaged: a page's bytes in raw are not what X sent. "
        "rule: added, changed, removed, forgotten.",
    ),
    _flag(
        "is_closed",
        DERIVED + "raw zone",
        "No spool that wrote into the raw hour can add to it any more; else it is provisional.",
    ),
]

_COMPLETENESS = [
    _text("query", DERIVED + "raw record", "Name of the query."),
    _count("collected", DERIVED + "tweets", "Posts of this hour in the table tweets that the query matched."),
    _count("counted", "tweet_count|post_count", "Posts of this hour by X's own count; null: not counted."),
    _time("counted_at", DERIVED + "received_at of the page", "When X's count had arrived."),
    _number("ratio", DERIVED + "collected, counted", "collected / counted; null without a count, or if it is 0."),
    _flag("is_covered", DERIVED + "coverage", "Pages in raw cover the whole hour."),
    _structs(
        "covered",
        DERIVED + "coverage",
        "The stretches of the hour that pages in raw cover, in ids, both bounds exclusive.",
        [_count("since_id", "since_id", "Lower bound."), _count("until_id", "until_id", "Upper bound.")],
    ),
]


@dataclass(frozen=True, slots=True)
class _Table:
    doc: str
    source: str
    fields: list[pa.Field]

    def schema(self) -> pa.Schema:
        return pa.schema(self.fields, metadata={"doc": self.doc, "source": self.source})


_TABLES = {
    "tweets": _Table(
        "Posts that matched a query, one row per id, as last fetched.",
        "data[]",
        [
            *_TWEET,
            _texts("matched_queries", DERIVED + "raw record", "Names of the queries that found it, sorted."),
            _time("first_fetched_at", DERIVED + "received_at of the page", "When it was first seen here."),
            *_BOOKKEEPING,
            *_EVENT_HOUR,
        ],
    ),
    "users": _Table(
        "Authors and mentioned users, one row per id and raw hour.",
        "includes.users[]",
        [*_USER, *_BOOKKEEPING, *_RAW_HOUR],
    ),
    "media": _Table(
        "Photos, videos and GIFs, one row per key and raw hour.",
        "includes.media[]",
        [*_MEDIA, *_BOOKKEEPING, *_RAW_HOUR],
    ),
    "places": _Table(
        "Tagged places, one row per id and raw hour.", "includes.places[]", [*_PLACE, *_BOOKKEEPING, *_RAW_HOUR]
    ),
    "polls": _Table("Polls, one row per id and raw hour.", "includes.polls[]", [*_POLL, *_BOOKKEEPING, *_RAW_HOUR]),
    "referenced_tweets": _Table(
        "Posts that others answer, quote or repeat, one row per id and raw hour. They matched no query themselves.",
        "includes.tweets[]|includes.posts[]",
        [*_TWEET, *_BOOKKEEPING, *_RAW_HOUR],
    ),
    "rejects": _Table(
        "What could not be used, with the reason and the bytes. Nothing is dropped silently.",
        "",
        [*_REJECT, *_RAW_HOUR],
    ),
    "ingested_files": _Table(
        "Raw microbatches these tables hold: the lineage, and how compaction knows what is new.",
        "",
        [*_INGESTED, *_RAW_HOUR],
    ),
    "coverage": _Table(
        "What was covered of every query's timeline in a raw hour, what was left to do after it, gaps, changed rules.",
        "",
        [*_COVERAGE, *_RAW_HOUR],
    ),
    "completeness": _Table(
        "What was collected of a query's posts of one hour, beside what X counts.",
        "data[]",
        [*_COMPLETENESS, *_EVENT_HOUR],
    ),
}

TABLES: Final[dict[str, pa.Schema]] = {name: table.schema() for name, table in _TABLES.items()}
"""The Arrow schema of every curated table. `date` and `hour` are last: in Delta they are partition values."""

DECODED: Final = ("tweets", "users", "media", "places", "polls", "referenced_tweets")
"""The tables whose rows are objects of X's answers."""

KEYS: Final = {
    "tweets": "id",
    "users": "id",
    "media": "media_key",
    "places": "id",
    "polls": "id",
    "referenced_tweets": "id",
}
"""The column that says which object a row is about."""
