"""Synthetic answers of X and raw microbatches made of them: seeded, the same everywhere, no real post in them.

`World` makes realistic pages (about 2.8 kB of JSON a tweet, with includes, hot tweets, long posts, edits and media);
`page_record` wraps a body as the ingester does; `microbatch` writes such records as a raw Avro file.
"""

import hashlib
import io
import json
import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import fastavro

from schemas.keys import LakeKeys, MicrobatchName, RawHour
from schemas.raw import FORMAT, META_CHECKPOINT, META_FORMAT, META_SEQUENCE, META_SPOOL_ID, load_schema
from schemas.snowflake import first_id_at

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
"""The fixed moment at which a World begins."""
SPOOL_ID = "9f86d081"

_WORDS = {
    "en": "the lake was quiet and we counted every drop before the morning rain came down again",
    "de": "der See lag still und wir zählten jeden Tropfen bevor der Regen am Morgen wiederkam",
    "fr": "le lac était calme et nous avons compté chaque goutte avant la pluie du matin",
    "es": "el lago estaba tranquilo y contamos cada gota antes de la lluvia de la mañana",
    "ja": "湖 は 静か で 朝 の 雨 が 降る 前 に 一滴 ずつ 数えた",
    "ar": "كانت البحيرة هادئة وأحصينا كل قطرة قبل أن يعود مطر الصباح",
    "ru": "озеро было тихим и мы считали каждую каплю пока утром снова не пошёл дождь",
    "pt": "o lago estava calmo e contamos cada gota antes que a chuva da manhã voltasse",
    "hi": "झील शांत थी और हमने सुबह की बारिश से पहले हर बूंद गिनी",
    "und": "🌊 💧 🐟 🛶 👩🏽‍🚀 ❤️",
}
_VOCABULARY = {lang: words.split() for lang, words in _WORDS.items()}
_DOMAINS = [(str(10 + n), f"Domain {n}", f"What domain {n} of the synthetic taxonomy is about") for n in range(30)]
_POST_NAMES = {
    "referenced_tweets": "referenced_posts",
    "note_tweet": "note_post",
    "edit_history_tweet_ids": "edit_history_post_ids",
    "pinned_tweet_id": "pinned_post_id",
    "most_recent_tweet_id": "most_recent_post_id",
    "retweet_count": "repost_count",
    "tweet_count": "post_count",
    "tweets": "posts",
}


def to_post_vocabulary(value: Any) -> Any:
    """The same answer as X writes it when asked with post.fields."""
    if isinstance(value, dict):
        return {_POST_NAMES.get(key, key): to_post_vocabulary(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_post_vocabulary(item) for item in value]
    return value


def encode(page: Any) -> bytes:
    """Compact JSON in UTF-8, as X sends it."""
    return json.dumps(page, ensure_ascii=False, separators=(",", ":")).encode()


class World:
    """A seeded source of pages, oldest page first. About every tenth tweet comes again with moved metrics."""

    def __init__(
        self, seed: int = 1, start: datetime = NOON, *, users: int = 2_000, hot: int = 200, apart_ms: int = 40
    ) -> None:
        """`hot`: how many tweets others refer to; `apart_ms`: most milliseconds from one tweet to the next."""
        self._random = random.Random(seed)
        self._now = start
        self._apart_ms = apart_ms
        self._serial = 0
        self._recent: list[dict[str, Any]] = []
        self._users = [self._user(n) for n in range(users)]
        self._hot = [self._tweet() for _ in range(hot)]
        for tweet in self._hot:
            tweet.pop("referenced_tweets", None)

    def page(self, tweets: int = 100, *, vocabulary: str = "tweet") -> dict[str, Any]:
        """One answer: data, includes and meta."""
        chance = self._random
        again = {tweet["id"]: tweet for tweet in self._recent if chance.random() < 0.1 * tweets / len(self._recent)}
        data = [self._moved(tweet) for tweet in [*again.values()][:tweets]]
        data += [self._tweet() for _ in range(tweets - len(data))]
        data.sort(key=lambda tweet: -int(tweet["id"]))
        self._recent = (self._recent + data)[-500:]
        page = {"data": data, "includes": self._includes(data), "meta": self._meta(data)}
        return to_post_vocabulary(page) if vocabulary == "post" else page

    def body(self, tweets: int = 100, *, vocabulary: str = "tweet") -> bytes:
        """One answer as bytes."""
        return encode(self.page(tweets, vocabulary=vocabulary))

    def _id(self) -> int:
        self._serial += 1
        self._now += timedelta(milliseconds=self._random.randrange(1, self._apart_ms))
        return first_id_at(self._now) + self._serial % 4096

    def _someone(self) -> dict[str, Any]:
        """A few write much, many write now and then."""
        often = min(int(self._random.paretovariate(0.6)), 50)
        return self._users[often - 1] if self._random.random() < 0.3 else self._random.choice(self._users)

    def _text(self, words: int) -> tuple[str, str]:
        chance = self._random
        lang = chance.choices(list(_WORDS), weights=[40, 6, 5, 10, 14, 4, 4, 8, 4, 5])[0]
        text = " ".join(chance.choices(_VOCABULARY[lang], k=words))
        return (text + " &amp; more &lt;3" if chance.random() < 0.1 else text), lang

    def _user(self, n: int) -> dict[str, Any]:
        chance = self._random
        opened = datetime(2010, 1, 1, tzinfo=UTC) + timedelta(hours=chance.randrange(100_000))
        handle = f"swimmer_{n}"
        user: dict[str, Any] = {
            "id": str(10_000 + n * 7919 if n % 3 else 1_400_000_000_000_000_000 + n * 104_729),
            "username": handle,
            "name": f"Swimmer {n} 🏊",
            "created_at": opened.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "description": self._text(24)[0],
            "protected": False,
            "verified": n % 9 == 0,
            "verified_type": "blue" if n % 9 == 0 else "none",
            "profile_image_url": f"https://img.example/profile_images/{n}/{n * 31:08x}_normal.jpg",
            "public_metrics": {
                "followers_count": int(chance.paretovariate(0.7)) % 90_000_000,
                "following_count": chance.randrange(5_000),
                "tweet_count": chance.randrange(200_000),
                "listed_count": chance.randrange(300),
                "like_count": chance.randrange(90_000),
                "media_count": chance.randrange(9_000),
            },
        }
        if n % 3 == 0:
            user["location"] = chance.choice(["Lakeside", "Zürich", "東京", "Lagos", "the internet"])
        if n % 4 == 0:
            user["url"] = f"https://t.co/u{n:08x}"
            user["entities"] = {"url": {"urls": [self._url(0, 23, f"https://site{n}.example/")]}}
        if n % 5 == 0:
            user["pinned_tweet_id"] = str(1_500_000_000_000_000_000 + n)
        return user

    def _url(self, start: int, end: int, target: str) -> dict[str, Any]:
        return {
            "start": start,
            "end": end,
            "url": f"https://t.co/{self._random.randrange(16**10):010x}",
            "expanded_url": target,
            "display_url": target.removeprefix("https://").rstrip("/"),
        }

    def _tweet(self) -> dict[str, Any]:
        chance = self._random
        number = self._id()
        author = self._someone()
        long = chance.random() < 0.05
        text, lang = self._text(60 if long else chance.randrange(4, 28))
        tweet: dict[str, Any] = {
            "id": str(number),
            "created_at": self._now.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "author_id": author["id"],
            "text": text[:270] + "…" if long else text,
            "lang": lang,
            "conversation_id": str(number),
            "edit_history_tweet_ids": [str(number)],
            "edit_controls": {
                "edits_remaining": 5,
                "is_edit_eligible": True,
                "editable_until": (self._now + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            },
            "possibly_sensitive": chance.random() < 0.02,
            "reply_settings": "everyone",
            "public_metrics": {
                "retweet_count": chance.randrange(50),
                "reply_count": chance.randrange(9),
                "like_count": chance.randrange(500),
                "quote_count": chance.randrange(5),
                "bookmark_count": chance.randrange(20),
                "impression_count": chance.randrange(90_000),
            },
            "entities": self._entities(),
            "context_annotations": self._context(),
        }
        if not tweet["entities"]:
            del tweet["entities"]
        if long:
            tweet["note_tweet"] = {"text": text, "entities": {"hashtags": [{"start": 3, "end": 9, "tag": "longread"}]}}
        if chance.random() < 0.38:
            tweet["referenced_tweets"] = [{"type": "replied_to", "id": ""}]
            tweet["in_reply_to_user_id"] = chance.choice(self._users)["id"]
        if chance.random() < 0.34:
            tweet["attachments"] = {"media_keys": [f"3_{number + n}" for n in range(chance.choice([1, 1, 1, 2, 4]))]}
        if chance.random() < 0.02:
            tweet["geo"] = {"place_id": f"{chance.randrange(40):016x}"}
            if chance.random() < 0.3:
                tweet["geo"]["coordinates"] = {"type": "Point", "coordinates": [8.5, round(chance.uniform(46, 48), 6)]}
        if chance.random() < 0.01:
            tweet.setdefault("attachments", {})["poll_ids"] = [str(number + 1)]
        return tweet

    def _entities(self) -> dict[str, Any]:
        chance = self._random
        entities: dict[str, Any] = {}
        if chance.random() < 0.3:
            entities["hashtags"] = [
                {"start": 10 * n, "end": 10 * n + 6, "tag": f"tag{int(chance.paretovariate(0.8)) % 500}"}
                for n in range(chance.randrange(1, 4))
            ]
        if chance.random() < 0.5:
            user = chance.choice(self._users)
            entities["mentions"] = [{"start": 0, "end": 12, "username": user["username"], "id": user["id"]}]
            if chance.random() < 0.03:
                del entities["mentions"][0]["id"]
        if chance.random() < 0.4:
            url = self._url(
                40, 63, f"https://news{chance.randrange(90)}.example/{chance.randrange(10**9)}/lake-and-rain"
            )
            if chance.random() < 0.5:
                url |= {
                    "status": 200,
                    "title": "The lake and the rain, a synthetic story",
                    "description": "A page that nobody wrote, about a lake that is not there. " * 2,
                    "unwound_url": url["expanded_url"],
                    "images": [{"url": f"https://img.example/{n}.jpg", "width": n, "height": n} for n in (1200, 150)],
                }
            entities["urls"] = [url]
        if chance.random() < 0.3:
            entities["annotations"] = [
                {"start": 4, "end": 8, "probability": 0.8731, "type": "Place", "normalized_text": "lake"}
            ]
        return entities

    def _context(self) -> list[dict[str, Any]]:
        chance = self._random
        annotations = []
        for _ in range(chance.choice([0, 1, 2, 4])):
            number, name, description = chance.choice(_DOMAINS)
            thing = min(int(chance.paretovariate(0.7)), 3_000)
            annotations.append(
                {
                    "domain": {"id": number, "name": name, "description": description},
                    "entity": {"id": str(10_000_000 + thing), "name": f"Thing {thing}"},
                }
            )
        return annotations

    def _moved(self, tweet: dict[str, Any]) -> dict[str, Any]:
        moved: dict[str, Any] = json.loads(json.dumps(tweet))
        for name in moved["public_metrics"]:
            moved["public_metrics"][name] += self._random.randrange(9)
        return moved

    def _includes(self, data: list[dict[str, Any]]) -> dict[str, Any]:
        chance = self._random
        by_id = {user["id"]: user for user in self._users}
        users = {tweet["author_id"]: by_id[tweet["author_id"]] for tweet in data}
        tweets: dict[str, Any] = {}
        media: list[dict[str, Any]] = []
        places: dict[str, Any] = {}
        polls: list[dict[str, Any]] = []
        for tweet in data:
            for reference in tweet.get("referenced_tweets", []):
                if not reference["id"]:
                    hot = chance.choice(self._hot)
                    reference["id"] = hot["id"]
                    reference["type"] = chance.choice(["replied_to", "quoted"])
                    tweets[hot["id"]] = hot
                    users[hot["author_id"]] = by_id[hot["author_id"]]
            attachments = tweet.get("attachments", {})
            media += [self._medium(key) for key in attachments.get("media_keys", [])]
            polls += [self._poll(number) for number in attachments.get("poll_ids", [])]
            for mention in tweet.get("entities", {}).get("mentions", []):
                if "id" in mention and len(users) < 97:
                    users[mention["id"]] = by_id[mention["id"]]
            if "geo" in tweet:
                places[tweet["geo"]["place_id"]] = self._place(tweet["geo"]["place_id"])
        parts = {
            "users": list(users.values()),
            "tweets": list(tweets.values()),
            "media": media,
            "places": list(places.values()),
            "polls": polls,
        }
        return {name: rows for name, rows in parts.items() if rows}

    def _medium(self, key: str) -> dict[str, Any]:
        if int(key.rsplit("_", 1)[-1]) % 4:
            return {
                "media_key": key,
                "type": "photo",
                "url": f"https://img.example/media/{key}.jpg",
                "width": 1200,
                "height": 900,
                "alt_text": "A lake in the rain",
            }
        return {
            "media_key": key,
            "type": "video",
            "preview_image_url": f"https://img.example/preview/{key}.jpg",
            "width": 720,
            "height": 1280,
            "duration_ms": 15_040,
            "public_metrics": {"view_count": 4_711},
            "variants": [
                {"bit_rate": rate, "content_type": "video/mp4", "url": f"https://video.example/{key}/{rate}.mp4"}
                for rate in (632_000, 2_176_000)
            ],
        }

    @staticmethod
    def _place(number: str) -> dict[str, Any]:
        return {
            "id": number,
            "full_name": f"Town {number[-2:]}, Lakeland",
            "name": f"Town {number[-2:]}",
            "place_type": "city",
            "country": "Switzerland",
            "country_code": "CH",
            "geo": {"type": "Feature", "bbox": [8.44, 47.32, 8.62, 47.43], "properties": {}},
        }

    @staticmethod
    def _poll(number: str) -> dict[str, Any]:
        return {
            "id": number,
            "voting_status": "open",
            "duration_minutes": 1_440,
            "end_datetime": "2026-11-21T12:00:00.000Z",
            "options": [{"position": n, "label": f"Choice {n}", "votes": 10 * n} for n in (1, 2, 3)],
        }

    @staticmethod
    def _meta(data: list[dict[str, Any]]) -> dict[str, Any]:
        if not data:
            return {"result_count": 0}
        return {
            "newest_id": data[0]["id"],
            "oldest_id": data[-1]["id"],
            "result_count": len(data),
            "next_token": "b26v89c19zqg8o3f",
        }


def page_record(body: bytes, at: datetime = NOON, query: str = "lake", **changes: Any) -> dict[str, Any]:
    """The raw record of one page, as the ingester writes it. `changes` overrides fields."""
    record: dict[str, Any] = {
        "kind": "page",
        "at": at,
        "query": query,
        "rule": "lake lang:en",
        "reason": "live",
        "intervals": [],
        "endpoint": "search_recent",
        "request": '{"query":"lake lang:en"}',
        "page_index": 0,
        "requested_at": at - timedelta(milliseconds=250),
        "received_at": at,
        "status": 200,
        "headers": "{}",
        "body_sha256": hashlib.sha256(body).hexdigest(),
        "body": body,
    }
    return record | changes


def heartbeat(at: datetime = NOON) -> dict[str, Any]:
    """A record that is no page."""
    return {"kind": "heartbeat", "at": at, "intervals": []}


def raw_key(sequence: int = 1, hour: datetime = NOON, prefix: str = "") -> str:
    """The S3 key of a microbatch."""
    return LakeKeys(prefix).microbatch(MicrobatchName(sequence, RawHour.of(hour), SPOOL_ID))


def microbatch(
    records: Iterable[dict[str, Any]],
    sequence: int = 1,
    *,
    codec: str = "zstandard",
    blocks: bool = True,
    level: int | None = None,
    metadata: dict[str, str] | None = None,
    schema: dict[str, Any] | None = None,
) -> bytes:
    """A raw Avro file. `blocks`: one record a block (as while open), else as few blocks as possible (as sealed)."""
    header = {
        META_FORMAT: FORMAT,
        META_SEQUENCE: str(sequence),
        META_SPOOL_ID: SPOOL_ID,
        META_CHECKPOINT: "{}",
    }
    out = io.BytesIO()
    fastavro.writer(
        out,
        schema or load_schema(),
        records,
        codec=codec,
        codec_compression_level=level,
        metadata=header if metadata is None else metadata,
        sync_interval=1 if blocks else 1 << 30,
    )
    return out.getvalue()


def microbatches(
    world: World,
    files: int,
    pages: int = 14,
    *,
    tweets: int = 100,
    hour: datetime = NOON,
    queries: Sequence[str] = ("lake",),
) -> Iterable[tuple[str, bytes]]:
    """Key and bytes of `files` microbatches of one raw hour, `pages` pages each."""
    for number in range(files):
        at = hour + timedelta(seconds=3_000 * number / max(files, 1))
        records = [
            page_record(world.body(tweets), at + timedelta(milliseconds=100 * n), queries[n % len(queries)])
            for n in range(pages)
        ]
        yield raw_key(number + 1, hour), microbatch(records, number + 1, blocks=False)
