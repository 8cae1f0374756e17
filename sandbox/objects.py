"""What the posts, people, media, places and polls of the world look like as X's JSON, every field of X's rich set.

Objects are made in the tweet vocabulary (X's OpenAPI 2.166); `renamed` turns one into the post vocabulary (2.167).
Positions in entities count code points of the sent text, which has `&`, `<` and `>` as HTML entities, as X sends it.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from sandbox import words
from sandbox.world import Columns, Kind, Media, Reference, Spot, World, long_sentences
from schemas.snowflake import EPOCH_MS, SHIFT, time_of

JsonObject = dict[str, Any]

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_MIX = 0x9E3779B97F4A7C15
_CUT = 280
_HOURS_TO_HALF = 6.0
"""After so many hours a post has half of the reactions it will ever get."""


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One attached file: its key and X's object, or None where X would not expand it."""

    key: str
    body: JsonObject | None


@dataclass(frozen=True, slots=True)
class Post:
    """One post: X's object without `public_metrics`, and what it brings along."""

    id: int
    body: JsonObject
    appeal: tuple[float, ...]
    """Reactions it will get in the end: reposts, replies, likes, quotes, bookmarks, impressions."""
    author: int
    mentions: tuple[int, ...] = ()
    ghosts: tuple[str, ...] = ()
    reply_to: int = -1
    reference: Spot | None = None
    reference_id: int = -1
    reference_state: Reference = Reference.NONE
    suspended: bool = False
    media: tuple[MediaItem, ...] = ()
    poll: int = -1
    place: int = -1
    earlier: Spot | None = None

    def metrics(self, now_ms: int) -> tuple[int, ...]:
        """The reactions as of now."""
        hours = max(0.0, (now_ms - (self.id >> SHIFT) - EPOCH_MS) / 3_600_000)
        share = hours / (hours + _HOURS_TO_HALF)
        return tuple(int(final * share) for final in self.appeal)


def mixed(number: int, salt: int) -> int:
    """63 bits that look random, from a number."""
    value = ((number ^ (salt * 0xBF58476D1CE4E5B9)) * _MIX) & 0xFFFFFFFFFFFFFFFF
    value ^= value >> 31
    value = (value * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 29)) >> 1


def code(number: int, length: int) -> str:
    """Letters and digits that look random, as in X's short links."""
    letters = []
    for position in range(length):
        if position % 10 == 0:
            number = mixed(number, position + 1)
        number, letter = divmod(number, 62)
        letters.append(_ALPHABET[letter])
    return "".join(letters)


def instant(tweet_id: int) -> str:
    """X's `created_at` of an id: whole seconds, written with milliseconds."""
    return f"{time_of(tweet_id):%Y-%m-%dT%H:%M:%S}.000Z"


def escaped(text: str) -> str:
    """As X sends text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@dataclass(slots=True)
class _Text:
    """A text under construction, with the entities found so far."""

    text: str = ""
    entities: JsonObject = field(default_factory=dict)

    def add(self, piece: str) -> None:
        self.text += (" " if self.text else "") + escaped(piece)

    def entity(self, kind: str, shown: str, **fields: Any) -> None:
        self.add(shown)
        end = len(self.text)
        self.entities.setdefault(kind, []).append({"start": end - len(escaped(shown)), "end": end, **fields})

    def cut(self, length: int, tail: str) -> "_Text":
        """The same, no longer than `length` code points without the tail; entities beyond the cut are dropped."""
        kept = self.text[:length]
        if (ampersand := kept.rfind("&", length - 4)) >= 0 and ";" not in kept[ampersand:]:
            kept = kept[:ampersand]
        entities = {
            kind: inside for kind, found in self.entities.items() if (inside := [e for e in found if e["end"] <= len(kept)])
        }  # fmt: skip
        return _Text(kept + tail, entities)

    def after(self, prefix: "_Text") -> "_Text":
        """Prefix and this, with this one's entities moved."""
        by = len(prefix.text)
        entities = {kind: list(found) for kind, found in prefix.entities.items()}
        for kind, found in self.entities.items():
            moved = [{**e, "start": e["start"] + by, "end": e["end"] + by} for e in found]
            entities[kind] = [*entities.get(kind, []), *moved]
        return _Text(prefix.text + self.text, entities)


class Objects:
    """X's objects for the posts and people of a world."""

    def __init__(self, world: World) -> None:
        self._world = world

    # --- posts --------------------------------------------------------------------------------------------------------

    def post(self, spot: Spot) -> Post:
        """The post at a spot. Raises IndexError if there is none."""
        columns, slot = self._world.columns(spot.stretch), spot.slot
        tweet_id, dice = int(columns.id[slot]), int(columns.dice[slot])
        author, kind = int(columns.author[slot]), Kind(int(columns.kind[slot]))
        reference_id, reference_author = int(columns.ref_id[slot]), int(columns.ref_author[slot])
        state = Reference(int(columns.ref_state[slot]))
        target = (
            Spot(int(columns.ref_stretch[slot]), int(columns.ref_slot[slot])) if state == Reference.READABLE else None
        )
        roll = mixed(tweet_id, 1)

        media = () if kind == Kind.RETWEET else self._media(columns, slot, tweet_id)
        poll = int(columns.poll[slot])
        if kind == Kind.RETWEET and target is not None:
            source = self._world.columns(target.stretch)
            media = self._media(source, target.slot, reference_id)
            inner, mentions, ghosts = self._text(source, target.slot, media)
            prefix = _Text("RT")
            self._mention(prefix, reference_author)
            prefix.text += ": "
            text = inner.after(prefix)
            mentions = (reference_author, *mentions)
            note = None
            if len(text.text) > 140:
                text = text.cut(139, "…")
        else:
            text, mentions, ghosts = self._text(columns, slot, media)
            note = text if len(text.text) > _CUT or columns.more[slot] else None
            if note is not None and len(text.text) > _CUT:
                text = text.cut(_CUT - 25, f"… https://t.co/{code(tweet_id, 10)}")

        body: JsonObject = {
            "id": str(tweet_id),
            "text": text.text,
            "created_at": instant(tweet_id),
            "author_id": self.user_id(author),
            "conversation_id": str(reference_id if kind == Kind.REPLY else tweet_id),
            "lang": words.LANGUAGES[int(columns.language[slot])].code,
            "source": words.SOURCES[roll % len(words.SOURCES)],
            "possibly_sensitive": roll % 89 == 0,
            "reply_settings": ("everyone", "everyone", "everyone", "following", "mentionedUsers")[roll % 5],
        }
        if text.entities:
            body["entities"] = self._entities(text.entities, columns, slot, roll)
        if note is not None:
            body["note_tweet"] = {"text": note.text, **({"entities": note.entities} if note.entities else {})}
        if kind != Kind.ORIGINAL:
            relation = {Kind.RETWEET: "retweeted", Kind.QUOTE: "quoted", Kind.REPLY: "replied_to"}[kind]
            body["referenced_tweets"] = [{"type": relation, "id": str(reference_id)}]
        if kind == Kind.REPLY:
            body["in_reply_to_user_id"] = self.user_id(reference_author)
            shown = len(self._world.username(reference_author)) + 2
            body["display_text_range"] = [shown, len(text.text)]
        else:
            body["display_text_range"] = [0, len(text.text)]
        self._attach(body, media, poll, tweet_id, roll)
        earlier = self._history(body, columns, slot)
        self._context(body, columns, slot, roll)
        self._rarities(body, tweet_id, roll, poll)
        place = int(columns.place[slot])
        if place >= 0:
            body["geo"] = self._geo(place, roll)
        return Post(
            id=tweet_id,
            body=body,
            appeal=_appeal(dice, author, kind, reference_id),
            author=author,
            mentions=mentions,
            ghosts=ghosts,
            reply_to=reference_author if kind == Kind.REPLY else -1,
            reference=target,
            reference_id=reference_id,
            reference_state=state,
            suspended=state == Reference.DELETED and roll % 8 == 0,
            media=media,
            poll=poll,
            place=place,
            earlier=earlier,
        )

    def _text(self, columns: Columns, slot: int, media: tuple[MediaItem, ...]) -> tuple[_Text, tuple[int, ...], tuple[str, ...]]:  # fmt: skip
        """The full text of a post that is no retweet, and whom it mentions: authors and names that nobody bears."""
        world, text = self._world, _Text()
        tweet_id, kind = int(columns.id[slot]), int(columns.kind[slot])
        mentions: list[int] = []
        ghosts: tuple[str, ...] = ()
        if kind == Kind.REPLY:
            mentions.append(int(columns.ref_author[slot]))
            self._mention(text, mentions[0])
        row = int(columns.sentence[slot])
        text.add(world.openings[int(columns.opening[slot])])
        text.add(world.sentences[row])
        for further in long_sentences(world, row, int(columns.more[slot])):
            text.add(world.sentences[further])
        mention = int(columns.mention[slot])
        if mention >= 0:
            mentions.append(mention)
            self._mention(text, mention)
        elif mention == -2:
            name = world.ghost(columns, slot)
            ghosts = (name,)
            text.entity("mentions", f"@{name}", username=name)
        if (emoji := int(columns.emoji[slot])) >= 0:
            text.add(words.EMOJI[emoji])
        for number, bank in ((int(columns.tag1[slot]), world.tags), (int(columns.tag2[slot]), words.HASHTAGS)):
            if number >= 0:
                text.entity("hashtags", f"#{bank[number]}", tag=bank[number])
        if (cashtag := int(columns.cashtag[slot])) >= 0:
            symbol = words.TOPICS[cashtag].cashtag
            text.entity("cashtags", f"${symbol}", tag=symbol)
        if (link := int(columns.link[slot])) >= 0:
            self._link(text, link, tweet_id)
        if kind == Kind.QUOTE:
            name, quoted = world.username(int(columns.ref_author[slot])), int(columns.ref_id[slot])
            text.entity(
                "urls",
                f"https://t.co/{code(tweet_id + 2, 10)}",
                url=f"https://t.co/{code(tweet_id + 2, 10)}",
                expanded_url=f"https://twitter.com/{name}/status/{quoted}",
                display_url=f"twitter.com/{name}/status/{str(quoted)[:9]}…",
            )
        if media:
            short = code(tweet_id + 3, 10)
            kind_word = "video" if media[0].key.startswith("7") else "photo"
            text.add(f"https://t.co/{short}")
            end = len(text.text)
            name = world.username(int(columns.author[slot]))
            text.entities.setdefault("urls", []).extend(
                {
                    "start": end - 23,
                    "end": end,
                    "url": f"https://t.co/{short}",
                    "expanded_url": f"https://twitter.com/{name}/status/{tweet_id}/{kind_word}/1",
                    "display_url": f"pic.twitter.com/{short}",
                    "media_key": item.key,
                }
                for item in media
            )
        return text, tuple(mentions), ghosts

    def _mention(self, text: _Text, author: int) -> None:
        name = self._world.username(author)
        text.entity("mentions", f"@{name}", username=name, id=self.user_id(author))

    def _link(self, text: _Text, link: int, tweet_id: int) -> None:
        host, title, description = words.SITES[link]
        short, path = code(tweet_id + 1, 10), code(tweet_id + 4, 6).lower()
        fields: JsonObject = {
            "url": f"https://t.co/{short}",
            "expanded_url": f"https://{host}/{path}?ref=x&via=sandbox",
            "display_url": f"{host}/{path}?ref=x…",
        }
        if tweet_id >> 9 & 3:
            fields |= {
                "images": [
                    {"url": f"https://pbs.twimg.com/news_img/{tweet_id - 77}/{code(tweet_id + 5, 8)}?format=jpg&name=orig", "width": 1200, "height": 630},
                    {"url": f"https://pbs.twimg.com/news_img/{tweet_id - 77}/{code(tweet_id + 5, 8)}?format=jpg&name=150x150", "width": 150, "height": 150},
                ],
                "status": 200,
                "title": title,
                "description": description,
                "unwound_url": f"https://{host}/{path}?ref=x&via=sandbox",
            }  # fmt: skip
        text.entity("urls", f"https://t.co/{short}", **fields)

    def _entities(self, entities: JsonObject, columns: Columns, slot: int, roll: int) -> JsonObject:
        if roll % 3 == 0 and columns.kind[slot] != Kind.RETWEET:
            topic = words.TOPICS[int(columns.topic[slot])]
            entities = entities | {
                "annotations": [
                    {
                        "start": 0,
                        "end": len(topic.name),
                        "probability": round(0.4 + roll % 6000 / 10_000, 4),
                        "type": ("Product", "Other", "Organization", "Place", "Person")[roll % 5],
                        "normalized_text": topic.name,
                    }
                ]
            }
        return entities

    def _media(self, columns: Columns, slot: int, tweet_id: int) -> tuple[MediaItem, ...]:
        kind = Media(int(columns.media[slot]))
        if kind == Media.NONE:
            return ()
        items = []
        for number in range(2 + tweet_id % 3 if kind == Media.PHOTOS else 1):
            roll = mixed(tweet_id, 20 + number)
            media_id = tweet_id - (((5 + roll % 20) * 1000) << SHIFT) + number
            name = code(media_id, 15)
            width, height = ((1200, 675), (1080, 1350), (2048, 1536), (720, 720))[roll % 4]
            if kind in {Media.PHOTO, Media.PHOTOS}:
                key = f"3_{media_id}"
                body: JsonObject = {
                    "media_key": key,
                    "type": "photo",
                    "url": f"https://pbs.twimg.com/media/{name}.jpg",
                    "width": width,
                    "height": height,
                }
            else:
                key, body = self._moving(kind, media_id, name, roll)
            if roll % 4 == 0:
                body["alt_text"] = f"{words.TOPICS[roll % len(words.TOPICS)].name}, seen from the side & in good light"
            items.append(MediaItem(key, None if roll % 151 == 0 else body))
        return tuple(items)

    def _moving(self, kind: Media, media_id: int, name: str, roll: int) -> tuple[str, JsonObject]:
        if kind == Media.GIF:
            key = f"16_{media_id}"
            return key, {
                "media_key": key,
                "type": "animated_gif",
                "preview_image_url": f"https://pbs.twimg.com/tweet_video_thumb/{name}.jpg",
                "width": 498,
                "height": 280,
                "variants": [
                    {
                        "bit_rate": 0,
                        "content_type": "video/mp4",
                        "url": f"https://video.twimg.com/tweet_video/{name}.mp4",
                    }
                ],
            }
        folder = "amplify_video" if roll % 5 == 0 else "ext_tw_video"
        key = f"{13 if folder == 'amplify_video' else 7}_{media_id}"
        base = f"https://video.twimg.com/{folder}/{media_id}/pu"
        sizes = ((256_000, "480x270"), (832_000, "640x360"), (2_176_000, "1280x720"))
        return key, {
            "media_key": key,
            "type": "video",
            "preview_image_url": f"https://pbs.twimg.com/{folder}_thumb/{media_id}/pu/img/{name}.jpg",
            "width": 1280,
            "height": 720,
            "duration_ms": 3_000 + roll % 137_000,
            "public_metrics": {"view_count": roll % 250_000},
            "variants": [
                *(
                    {"bit_rate": rate, "content_type": "video/mp4", "url": f"{base}/vid/avc1/{size}/{name}.mp4?tag=12"}
                    for rate, size in sizes
                ),
                {"content_type": "application/x-mpegURL", "url": f"{base}/pl/{name}.m3u8?tag=12&container=cmaf"},
            ],
        }

    def _attach(self, body: JsonObject, media: tuple[MediaItem, ...], poll: int, tweet_id: int, roll: int) -> None:
        attachments: JsonObject = {}
        if media:
            attachments["media_keys"] = [item.key for item in media]
            if roll % 211 == 0:
                attachments["media_source_tweet_id"] = [str(tweet_id)]
        if poll >= 0:
            attachments["poll_ids"] = [str(poll_id(tweet_id))]
        if attachments:
            body["attachments"] = attachments

    def _history(self, body: JsonObject, columns: Columns, slot: int) -> Spot | None:
        """`edit_history_tweet_ids`, oldest first, and `edit_controls`; returns the version before this one."""
        chain = [slot]
        while (previous := int(columns.previous[chain[0]])) >= 0:
            chain.insert(0, previous)
        ids = [int(columns.id[link]) for link in chain]
        body["edit_history_tweet_ids"] = [str(link) for link in ids]
        body["edit_controls"] = {
            "edits_remaining": max(0, 5 - (len(ids) - 1)),
            "is_edit_eligible": int(columns.kind[slot]) in {Kind.ORIGINAL, Kind.QUOTE},
            "editable_until": instant(ids[0] + (3_600_000 << SHIFT)),
        }
        return Spot(columns.stretch, chain[-2]) if len(chain) > 1 else None

    def _context(self, body: JsonObject, columns: Columns, slot: int, roll: int) -> None:
        if roll % 10 >= 6:
            return
        number = int(columns.topic[slot])
        topic = words.TOPICS[number]
        domain = {"id": str(30 + number), "name": topic.domain, "description": f"Posts about {topic.domain.lower()}"}
        entity: JsonObject = {"id": str(840_000_000_000_000_000 + number * 7_919), "name": topic.name}
        if number % 2 == 0:
            entity["description"] = f"{topic.name} & everything around it"
        annotations = [{"domain": domain, "entity": entity}]
        if roll % 2:
            taxonomy = {
                "id": "131",
                "name": "Unified Twitter Taxonomy",
                "description": "A taxonomy of user interests. ",
            }
            annotations.append({"domain": taxonomy, "entity": entity})
        if roll % 10 == 0:
            annotations.append({"domain": {"id": "66", "name": "Interests and Hobbies Category", "description": "A grouping of interests and hobbies entities, like Novelty Food or Destinations"}, "entity": {"id": str(847_000_000_000_000_000 + number), "name": topic.domain}})  # fmt: skip
        body["context_annotations"] = annotations

    def _rarities(self, body: JsonObject, tweet_id: int, roll: int, poll: int) -> None:
        """Fields that few posts have, each so often that a few thousand posts show all of them."""
        if poll >= 0:
            body["card_uri"] = f"card://{poll_id(tweet_id)}"
        if roll % 97 == 3:
            body["community_id"] = str(1_490_000_000_000_000_000 + roll % 1_000_003)
        if roll % 211 == 5:
            body["paid_partnership"] = True
        if roll % 307 == 7:
            body["withheld"] = {
                "copyright": roll % 2 == 0,
                "country_codes": ["DE", "TR"][: 1 + roll % 2],
                "scope": "tweet",
            }
        if roll % 401 == 9:
            body["scopes"] = {"followers": False}
        if roll % 503 == 11:
            body["article"] = {"title": "A long read about short texts"}
        if roll % 401 == 13:
            body["suggested_source_links"] = [{"start": 0, "end": 0, "url": f"https://t.co/{code(roll, 10)}"}]
        if roll % 401 == 15:
            body["matched_media_notes"] = {"match_status": "needs_more_ratings", "note_id": str(tweet_id + 1_000)}
        if (attachments := body.get("attachments")) and "media_keys" in attachments and roll % 29 == 0:
            body["media_metadata"] = [{"media_key": key, "title": "Untitled"} for key in attachments["media_keys"]]

    def _geo(self, place: int, roll: int) -> JsonObject:
        geo: JsonObject = {"place_id": place_id(place)}
        if roll % 4 == 0:
            longitude, latitude = words.PLACES[place][5:]
            point = [round(longitude + roll % 1000 / 10_000, 6), round(latitude + roll % 997 / 10_000, 6)]
            geo["coordinates"] = {"type": "Point", "coordinates": point}
        return geo

    # --- people, places, polls ------------------------------------------------------------------------------------------

    def user_id(self, author: int) -> str:
        """An author's id: of the time before snowflakes for some, a snowflake for the others."""
        dice = int(self._world.author_dice[author])
        if dice % 5 < 2:
            return str(12_000_000 + author * 40_009 + dice % 40_000)
        return str((_joined_ms(dice) - EPOCH_MS << SHIFT) + author)

    def author_of_id(self, user_id: int) -> int:
        """The author with that id; -1 if there is none."""
        guess = (user_id - 12_000_000) // 40_009 if user_id < 1 << 40 else user_id & ((1 << SHIFT) - 1)
        known = 0 <= guess < self._world.settings.authors and self.user_id(guess) == str(user_id)
        return guess if known else -1

    def user(self, author: int, now_ms: int) -> JsonObject:
        """A person as of now: follower counts grow by the hour."""
        world, dice = self._world, int(self._world.author_dice[author])
        name = f"{words.FIRST_NAMES[dice % 24]} {words.LAST_NAMES[(dice >> 7) % 24]}"
        if dice % 6 == 0:
            name += f" {words.EMOJI[(dice >> 12) % len(words.EMOJI)]}"
        bio = _Text(escaped(words.BIOS[(dice >> 17) % len(words.BIOS)]))
        hours = now_ms // 3_600_000 - 480_000
        followers = int(20 + 2e6 / (author + 7) + (hours * (dice % 7)) / 100)
        user_id = self.user_id(author)
        verified = (dice >> 40) % 8 == 0
        body: JsonObject = {
            "id": user_id,
            "name": name,
            "username": world.username(author),
            "created_at": f"{_joined(dice)}.000Z",
            "description": bio.text,
            "protected": author >= world.public_authors,
            "verified": verified,
            "verified_type": ("blue", "blue", "business", "government")[dice % 4] if verified else "none",
            "is_identity_verified": verified and dice % 3 == 0,
            "parody": dice % 113 == 0,
            "subscription_type": "Premium" if verified else "None",
            "profile_image_url": f"https://pbs.twimg.com/profile_images/{1_400_000_000_000_000_000 + dice % 10**17}/{code(dice, 8)}_normal.jpg",
            "public_metrics": {
                "followers_count": followers,
                "following_count": 30 + dice % 3_000,
                "tweet_count": 100 + int(hours * (1 + dice % 3)) + dice % 40_000,
                "listed_count": followers // 190,
                "like_count": dice % 90_001,
                "media_count": dice % 2_003,
            },
        }  # fmt: skip
        if location := words.LOCATIONS[(dice >> 23) % len(words.LOCATIONS)]:
            body["location"] = location
        if verified:
            body["verified_followers_count"] = followers // 40
        if dice % 3 == 0:
            body["profile_banner_url"] = (
                f"https://pbs.twimg.com/profile_banners/{user_id}/{1_500_000_000 + dice % 10**8}"
            )
        if dice % 4 == 0:
            body["pinned_tweet_id"] = str(1_700_000_000_000_000_000 + dice % 10**17)
        if dice % 53 == 0:
            body["withheld"] = {"country_codes": ["IN"], "scope": "user"}
        if dice % 41 == 0:
            body["affiliation"] = {
                "badge_url": f"https://pbs.twimg.com/profile_images/{code(dice + 1, 8)}_bigger.png",
                "description": "The Harbour Gazette",
                "url": "https://twitter.com/harbourgazette",
                "user_id": [self.user_id(dice % 10)],
            }
        self._profile_entities(body, bio.text, dice)
        return body

    def _profile_entities(self, body: JsonObject, bio: str, dice: int) -> None:
        entities: JsonObject = {}
        if dice % 2:
            short, host = code(dice + 2, 10), words.SITES[dice % len(words.SITES)][0]
            body["url"] = f"https://t.co/{short}"
            url = {"start": 0, "end": 23, "url": body["url"], "expanded_url": f"https://{host}", "display_url": host}
            entities["url"] = {"urls": [url]}
        tags = [
            {"start": at, "end": at + len(word), "tag": word[1:]}
            for word in bio.split()
            if word.startswith("#") and (at := bio.find(word)) >= 0
        ]
        if tags:
            entities["description"] = {"hashtags": tags}
        if entities:
            body["entities"] = entities

    def place(self, place: int) -> JsonObject:
        """A place; its `properties` are empty, as X sends them."""
        name, around, country, country_code, kind, west, south = words.PLACES[place]
        return {
            "id": place_id(place),
            "full_name": name if name == around else f"{name}, {around}",
            "name": name,
            "country": country,
            "country_code": country_code,
            "place_type": kind,
            "contained_within": [place_id(place + 100)],
            "geo": {
                "type": "Feature",
                "bbox": [west, south, round(west + 0.31, 4), round(south + 0.22, 4)],
                "properties": {},
            },
        }

    def poll(self, post: Post, now_ms: int) -> JsonObject:
        """The poll of a post, with the votes of now."""
        minutes = (30, 60, 1_440)[post.id % 3]
        ends = post.id + ((minutes * 60_000) << SHIFT)
        open_still = (ends >> SHIFT) + EPOCH_MS > now_ms
        votes = max(1, post.metrics(now_ms)[5] // 20)
        labels = words.POLLS[post.poll]
        return {
            "id": str(poll_id(post.id)),
            "options": [
                {"position": position, "label": label, "votes": votes * (position + post.id % 5) // 7}
                for position, label in enumerate(labels, start=1)
            ],
            "duration_minutes": minutes,
            "end_datetime": instant(ends),
            "voting_status": "open" if open_still else "closed",
        }


def poll_id(tweet_id: int) -> int:
    """The id of a post's poll: a snowflake made two seconds before it."""
    return tweet_id - (2_000 << SHIFT) + 7


def place_id(place: int) -> str:
    """X's places have 16 hexadecimal digits."""
    return f"{mixed(place, 99) & 0xFFFFFFFFFFFFFFFF:016x}"


def _joined_ms(dice: int) -> int:
    return 1_330_000_000_000 + dice % 400_000_000_000


def _joined(dice: int) -> str:
    moment = _joined_ms(dice) if dice % 5 >= 2 else 1_150_000_000_000 + dice % 150_000_000_000
    return f"{time_of((moment - EPOCH_MS) << SHIFT):%Y-%m-%dT%H:%M:%S}"


def _appeal(dice: int, author: int, kind: Kind, reference_id: int) -> tuple[float, ...]:
    """Reactions in the end: heavy-tailed, more for well-known authors; a retweet shows its original's reposts only."""
    if kind == Kind.RETWEET:
        return (mixed(reference_id, 3) % 900 + 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    chance = ((dice >> 13) & 0xFFFF) / 65536 * 0.9999
    likes = (math.pow(1 - chance, -0.8) - 0.7) * (3 + 4_000 / (author + 9))
    return (likes / 6, likes / 9, likes, likes / 40, likes / 15, likes * 55 + 11)


_POST_NAMES = {
    "edit_history_tweet_ids": "edit_history_post_ids",
    "referenced_tweets": "referenced_posts",
    "note_tweet": "note_post",
    "pinned_tweet_id": "pinned_post_id",
    "most_recent_tweet_id": "most_recent_post_id",
}


def renamed(body: JsonObject) -> JsonObject:
    """A post or a person in the post vocabulary."""
    renamed_body = {_POST_NAMES.get(name, name): value for name, value in body.items()}
    if (withheld := body.get("withheld")) and withheld.get("scope") == "tweet":
        renamed_body["withheld"] = withheld | {"scope": "post"}
    if (metrics := body.get("public_metrics")) and "tweet_count" in metrics:
        renamed_body["public_metrics"] = {
            ("post_count" if name == "tweet_count" else name): value for name, value in metrics.items()
        }
    return renamed_body
