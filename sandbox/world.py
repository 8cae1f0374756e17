"""The simulated world: which posts exist, who wrote them, when they can be found, and which of them a rule matches.

Nothing is stored: the posts of any stretch of time are computed from (seed, stretch number) alone, as columns of small
integers, so seven days back and the present second cost the same, and two worlds of one seed agree about every post.
What a post looks like as JSON is `objects.py`'s business.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any as AnyType

import numpy as np
import numpy.typing as npt

from sandbox import words
from sandbox.rules import All, Expression, Needle, Not, Term, parse, spaced_words
from sandbox.rules import Any as AnyOf
from schemas.snowflake import EPOCH_MS, SHIFT

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

DAY_MS = 86_400_000
REACH_MS = 7 * DAY_MS
"""How far back recent search looks: seven days."""


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """What a world is made of. Two worlds with equal settings hold the same posts, whenever each was started.

    `tweets_per_second` counts all posts of the world, of which a rule sees its share. `backlog_hours` is how much of the
    past can be found at the start (168 at most). `late_seconds` is the longest time a post takes from its id's
    millisecond until search can find it. `deleted_share` of the posts vanish within a day; `edited_share` are new
    versions of an earlier post, which they replace in search.
    """

    seed: int = 1
    tweets_per_second: float = 10.0
    backlog_hours: float = 2.0
    authors: int = 20_000
    late_seconds: float = 3.0
    deleted_share: float = 0.0
    edited_share: float = 0.01
    keyword_search_has_retweets: bool = True
    """False is X since May 2026, which leaves retweets out of searches by keyword."""

    def __post_init__(self) -> None:
        if not 0 <= self.tweets_per_second <= 100_000:
            raise ValueError("tweets_per_second must lie between 0 and 100000")
        if not 0 <= self.backlog_hours <= 168:
            raise ValueError("backlog_hours must lie between 0 and 168")
        if self.authors < 10:
            raise ValueError("authors must be at least 10")
        if not 0 <= self.deleted_share <= 1 or not 0 <= self.edited_share <= 0.2:
            raise ValueError("deleted_share must lie between 0 and 1, edited_share between 0 and 0.2")


class Kind(IntEnum):
    """What a post is in relation to another."""

    ORIGINAL = 0
    RETWEET = 1
    QUOTE = 2
    REPLY = 3


class Reference(IntEnum):
    """Whether the post referred to can be read."""

    NONE = 0
    READABLE = 1
    DELETED = 2
    PROTECTED = 3


class Media(IntEnum):
    """What is attached."""

    NONE = 0
    PHOTO = 1
    PHOTOS = 2
    VIDEO = 3
    GIF = 4


@dataclass(frozen=True, slots=True)
class Lateness:
    """Beyond the usual lag: this share of the posts is found up to so many seconds late."""

    share: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class Columns:
    """The posts of one stretch, ascending by id; every attribute is a column. -1 stands for none."""

    stretch: int
    id: Ints
    ms: Ints
    """Unix milliseconds of the id."""
    author: Ints
    kind: Ints
    language: Ints
    topic: Ints
    word: Ints
    opening: Ints
    """Row of World.openings: language, sentence, topic and word at once."""
    sentence: Ints
    """Row of World.sentences."""
    more: Ints
    """How many further sentences make it a long post; 0 for most."""
    tag1: Ints
    tag2: Ints
    cashtag: Ints
    mention: Ints
    """Author who is mentioned; -2 is a name nobody bears."""
    emoji: Ints
    link: Ints
    media: Ints
    poll: Ints
    place: Ints
    ref_state: Ints
    ref_stretch: Ints
    ref_slot: Ints
    ref_id: Ints
    ref_author: Ints
    previous: Ints
    """Slot of the version this one replaced."""
    replaced_by: Ints
    dice: Ints
    """63 random bits for everything no rule asks about."""
    lag_ms: Ints
    late: npt.NDArray[np.float64]
    """Uniform in [0, 1): the posts that a Lateness hits, and how hard."""
    deleted_ms: Ints
    """When it vanishes, in Unix milliseconds; -1 for never."""

    def __len__(self) -> int:
        return len(self.id)


_SHARED = ("language", "topic", "word", "opening", "sentence", "more", "tag1", "tag2", "cashtag", "emoji", "link", "media", "poll")  # fmt: skip
"""What a retweet has from the post that it repeats."""
_HOT = ("id", "author", "mention", *_SHARED)
_VERSIONS = 6
"""X allows five edits."""
_BACK = 12
"""Over how many stretches a reference can reach, the own one included."""
_NO_POSTS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a post is: its stretch and its slot in it."""

    stretch: int
    slot: int


class World:
    """All posts of a seed. `begins_ms`: nothing older can be found (Unix milliseconds)."""

    def __init__(self, settings: WorldSettings, begins_ms: int) -> None:
        self.settings = settings
        self.begins_ms = begins_ms
        self.lateness = Lateness()
        per_second = settings.tweets_per_second
        self.stretch_ms = 3_600_000 if per_second <= 0 else int(min(3_600_000, max(1_000, 256_000 / per_second)))
        self._mean = per_second * self.stretch_ms / 1000
        self.openings, self._opening_base = _opening_bank()
        self.sentences, self._sentence_base, self._sentence_count = _sentence_bank()
        self.tags = _tag_bank()
        self._topic_tags = np.array(
            [[self.tags.index(topic.hashtags[k % len(topic.hashtags)]) for k in range(3)] for topic in words.TOPICS]
        )
        self._topic_cumulative = _cumulative([topic.weight for topic in words.TOPICS])
        self._cashtag = np.array([index if topic.cashtag else -1 for index, topic in enumerate(words.TOPICS)])
        self.public_authors = settings.authors - max(1, settings.authors // 50)
        """Authors from here on are protected: they are mentioned and replied to, but search never shows their posts."""
        ranks = np.arange(1, self.public_authors + 1, dtype=np.float64)
        self._author_cumulative = _cumulative(list(1.0 / (ranks + 3.0)))
        dice = np.random.Generator(np.random.Philox(key=settings.seed, counter=[0, 0, 0, 1]))
        self.author_dice: Ints = dice.integers(0, 2**63, settings.authors, dtype=np.int64)
        language_cumulative = _cumulative([language.weight for language in words.LANGUAGES])
        self.author_language = _pick(language_cumulative, (self.author_dice & 0xFFFF) / 65536.0)
        self._own = lru_cache(maxsize=2_048)(self._make)
        self.columns: Callable[[int], Columns] = lru_cache(maxsize=2_048)(self._resolve)
        """The posts of a stretch, by its number."""
        self.matcher: Callable[[str], Matcher] = lru_cache(maxsize=256)(self._matcher)
        """The matcher of a rule. Raises RuleError."""

    # --- people -------------------------------------------------------------------------------------------------------

    def username(self, author: int) -> str:
        """The handle of an author: 15 characters at most, unique."""
        dice = int(self.author_dice[author]) >> 20
        first = words.HANDLES[dice % len(words.HANDLES)]
        second = words.HANDLES[(dice >> 8) % len(words.HANDLES)]
        number = str(author)
        return f"{first}{second}"[: 14 - len(number)] + "_" + number

    def author_of(self, username: str) -> int:
        """The author with that handle, case-blind; -1 if there is none."""
        _, _, number = username.rpartition("_")
        if number.isascii() and number.isdigit() and len(number) < 9 and int(number) < self.settings.authors:
            author = int(number)
            return author if self.username(author).lower() == username.lower() else -1
        return -1

    def ghost(self, columns: Columns, slot: int) -> str:
        """The handle in a post that mentions somebody who does not exist."""
        return f"nobody{int(_ghosts(columns)[slot])}"

    # --- time ---------------------------------------------------------------------------------------------------------

    def stretch_at(self, ms: int) -> int:
        """The number of the stretch that holds a Unix millisecond."""
        return ms // self.stretch_ms

    def findable(self, columns: Columns, now_ms: int) -> Bools:
        """Which posts search knows at a time: indexed, not deleted, not replaced by a newer version."""
        late = self.lateness
        lag = columns.lag_ms
        if late.share > 0:
            hit = columns.late < late.share
            lag = np.where(hit, (columns.late * (1000.0 * late.seconds / late.share)).astype(np.int64), lag)
        indexed = columns.ms + lag <= now_ms
        gone = (columns.deleted_ms >= 0) & (columns.deleted_ms <= now_ms)
        replaced = columns.replaced_by >= 0
        if replaced.any():
            replaced &= indexed[columns.replaced_by]  # slot -1 reads some row; the mask drops it
        found: Bools = indexed & ~gone & ~replaced & (columns.ms >= self.begins_ms)
        return found

    # --- search -------------------------------------------------------------------------------------------------------

    def matching(self, rule: str, since_id: int, until_id: int, now_ms: int) -> Iterator[tuple[Columns, Ints]]:
        """Stretch by stretch, newest first: the slots (ascending) that match between the exclusive bounds, as of now."""
        matcher = self.matcher(rule)
        first = max((since_id >> SHIFT) + EPOCH_MS, self.begins_ms)
        last = min((until_id >> SHIFT) + EPOCH_MS, now_ms)
        for stretch in range(self.stretch_at(last), self.stretch_at(first) - 1, -1):
            columns = self.columns(stretch)
            if not len(columns):
                continue
            hits = matcher.hits(columns)
            begin = int(np.searchsorted(columns.id, since_id, side="right"))
            end = int(np.searchsorted(columns.id, until_id, side="left"))
            if begin >= end or not hits[begin:end].any():
                continue
            slots = np.flatnonzero(hits[begin:end] & self.findable(columns, now_ms)[begin:end]) + begin
            if len(slots):
                yield columns, slots

    def search(self, rule: str, since_id: int, until_id: int, now_ms: int, limit: int) -> list[Spot]:
        """Up to `limit` posts, newest first."""
        found: list[Spot] = []
        for columns, slots in self.matching(rule, since_id, until_id, now_ms):
            wanted = slots[::-1][: limit - len(found)]
            found.extend(Spot(columns.stretch, int(slot)) for slot in wanted)
            if len(found) >= limit:
                break
        return found

    def ids(self, rule: str, since_id: int, until_id: int, now_ms: int) -> Ints:
        """Every id, ascending: the truth to hold a collection against."""
        found = [columns.id[slots] for columns, slots in self.matching(rule, since_id, until_id, now_ms)]
        return np.concatenate(found[::-1]) if found else _NO_POSTS

    def _matcher(self, rule: str) -> "Matcher":
        return Matcher(self, parse(rule))

    # --- making posts -------------------------------------------------------------------------------------------------

    def _make(self, stretch: int) -> Columns:
        """A stretch before its references are resolved."""
        random = np.random.Generator(np.random.Philox(key=self.settings.seed, counter=[0, 0, 1, stretch]))
        head = random.random(2)
        expected = self._mean * (0.75 + 0.5 * head[0])
        n = int(expected) + (1 if head[1] < expected % 1 else 0)
        u = random.random((22, n))
        ms = np.sort((u[0] * self.stretch_ms).astype(np.int64)) + stretch * self.stretch_ms
        ids = _snowflakes(ms, (u[1] * 64).astype(np.int64))
        author = _pick(self._author_cumulative, u[2])
        language = np.where(u[3] < 0.94, self.author_language[author], 0)
        topic = _pick(self._topic_cumulative, u[4])
        word = (u[5] * 4).astype(np.int64)
        opening = self._opening_base[language, (u[6] * 64).astype(np.int64)] + topic * 4 + word
        sentence = self._sentence_base[language] + (u[7] * self._sentence_count[language]).astype(np.int64)
        dice = (u[8] * 2**52).astype(np.int64) << 11 | (u[9] * 2**11).astype(np.int64)
        hot = max(1, n // 4)
        slots = np.arange(n)
        kind = np.select(
            [u[10] < 0.28, u[10] < 0.38, u[10] < 0.58], [Kind.RETWEET, Kind.QUOTE, Kind.REPLY], Kind.ORIGINAL
        )
        # The first quarter is what others refer to, so no retweets; its first half is what is retweeted: originals only.
        original = (slots < hot) & (kind == Kind.RETWEET) | (slots < max(1, hot // 2))
        kind = np.where(original, Kind.ORIGINAL, kind).astype(np.int64)
        referring = kind != Kind.ORIGINAL
        unreadable = referring & (kind != Kind.RETWEET) & (u[11] < 0.12)
        ref_state = np.where(
            unreadable,
            np.where(u[11] < 0.08, Reference.DELETED, Reference.PROTECTED),
            np.where(referring, Reference.READABLE, Reference.NONE),
        ).astype(np.int64)
        made = Columns(
            stretch=stretch, id=ids, ms=ms, author=author, kind=kind, language=language, topic=topic, word=word,
            opening=opening, sentence=sentence,
            more=np.where((u[12] < 0.02) & (kind != Kind.RETWEET), 9, 0).astype(np.int64),
            tag1=np.where(u[13] < 0.3, self._topic_tags[topic, (u[13] * 1000).astype(np.int64) % 3], -1),
            tag2=np.where(u[14] < 0.12, (u[14] * 1000).astype(np.int64) % len(words.HASHTAGS), -1),
            cashtag=np.where(u[15] < 0.1, self._cashtag[topic], -1),
            mention=np.where(u[16] < 0.14, (u[16] * (self.settings.authors / 0.14)).astype(np.int64), np.where(u[16] < 0.155, -2, -1)),
            emoji=np.where(u[17] < 0.35, (u[17] * 10_000).astype(np.int64) % len(words.EMOJI), -1),
            link=np.where(u[18] < 0.25, (u[18] * 10_000).astype(np.int64) % len(words.SITES), -1),
            media=np.select([u[19] < 0.17, u[19] < 0.2, u[19] < 0.26, u[19] < 0.28], [Media.PHOTO, Media.PHOTOS, Media.VIDEO, Media.GIF], Media.NONE).astype(np.int64),
            poll=np.where((u[19] > 0.985) & (kind != Kind.RETWEET), (u[19] * 10_000).astype(np.int64) % len(words.POLLS), -1),
            place=np.where((u[20] < 0.05) & (kind != Kind.RETWEET), (u[20] * 10_000).astype(np.int64) % len(words.PLACES), -1),
            ref_state=ref_state,
            ref_stretch=np.where(referring, stretch - np.maximum((u[21] ** 3 * _BACK).astype(np.int64), slots < hot), -1),
            ref_slot=np.full(n, -1), ref_id=np.full(n, -1), ref_author=np.full(n, -1),
            previous=np.full(n, -1), replaced_by=np.full(n, -1), dice=dice,
            lag_ms=((u[11] * 97 % 1) ** 3 * 1000 * self.settings.late_seconds).astype(np.int64),
            late=u[12] * 89 % 1,
            deleted_ms=np.where(u[13] * 83 % 1 < self.settings.deleted_share, ms + 60_000 + ((u[14] * 79 % 1) * DAY_MS).astype(np.int64), -1),
        )  # fmt: skip
        self._edit(made, hot, u[15] * 73 % 1)
        return made

    def _edit(self, made: Columns, hot: int, chance: npt.NDArray[np.float64]) -> None:
        """Turn some later slots into new versions of earlier ones: everything as before but the second sentence."""
        versions: dict[int, int] = {}
        for slot in np.flatnonzero(chance < self.settings.edited_share * 1.4).tolist():
            span = max(0, slot - 40)
            earlier = span + int(made.dice[slot] >> 8) % max(1, slot - span) if slot > hot else -1
            if earlier < 0 or made.kind[earlier] == Kind.RETWEET or made.replaced_by[earlier] >= 0:
                continue
            versions[slot] = versions.get(earlier, 1) + 1
            if versions[slot] > _VERSIONS:
                continue
            for name in ("author", "kind", "ref_state", "ref_stretch", "mention", "place", *_SHARED):
                column = getattr(made, name)
                column[slot] = column[earlier]
            base, count = self._sentence_base[made.language[slot]], self._sentence_count[made.language[slot]]
            made.sentence[slot] = base + (made.sentence[slot] - base + 1) % count
            made.previous[slot] = earlier
            made.replaced_by[earlier] = slot

    def _hot(self, stretch: int) -> Ints:
        """What others repeat or refer to: the first quarter of a stretch, one row per name of _HOT."""
        made = self._own(stretch)
        return np.stack([getattr(made, name)[: max(1, len(made) // 4)] for name in _HOT])

    def _resolve(self, stretch: int) -> Columns:
        """A stretch with its references resolved; retweets take over what they repeat."""
        made = self._own(stretch)
        slots = np.flatnonzero(made.kind != Kind.ORIGINAL)
        if len(slots):
            self._refer(made, slots)
        for slot in np.flatnonzero(made.previous >= 0).tolist():  # ascending: the earlier version is resolved already
            for name in ("kind", "ref_state", "ref_stretch", "ref_slot", "ref_id", "ref_author"):
                getattr(made, name)[slot] = getattr(made, name)[made.previous[slot]]
        return made

    def _refer(self, made: Columns, slots: Ints) -> None:
        targets = [self._hot(made.stretch - back) for back in range(_BACK)]
        sizes = np.array([target.shape[1] for target in targets])
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        back = made.stretch - made.ref_stretch[slots]
        orphans = sizes[back] == 0
        if orphans.any():  # nothing to refer to: an original after all
            lost = slots[orphans]
            made.kind[lost], made.ref_state[lost], made.ref_stretch[lost] = Kind.ORIGINAL, Reference.NONE, -1
            slots, back = slots[~orphans], back[~orphans]
        # Few posts get most of the attention.
        retweets = made.kind[slots] == Kind.RETWEET
        among = np.where(retweets, np.maximum(1, sizes[back] // 2), sizes[back])
        aim = (among * ((made.dice[slots] & 0xFFFFFF) / 2.0**24) ** 4).astype(np.int64)
        found = np.concatenate(targets, axis=1)[:, starts[back] + aim]
        readable = made.ref_state[slots] == Reference.READABLE
        made.ref_slot[slots] = aim
        # What cannot be read is no post of the world: its id lies between two real ones.
        made.ref_id[slots] = np.where(readable, found[0], found[0] + 4_095)
        hidden = self.public_authors + made.dice[slots] % (self.settings.authors - self.public_authors)
        gone = made.dice[slots] % self.public_authors
        protected = made.ref_state[slots] == Reference.PROTECTED
        made.ref_author[slots] = np.where(readable, found[1], np.where(protected, hidden, gone))
        for row, name in enumerate(_HOT[2:], start=2):
            getattr(made, name)[slots[retweets]] = found[row][retweets]


class Matcher:
    """A rule, ready to be held against columns."""

    def __init__(self, world: World, expression: Expression) -> None:
        self._world = world
        self.expression = expression
        self._test = self._compile(expression)
        self._no_retweets = not world.settings.keyword_search_has_retweets and _has_keyword(expression)
        self.hits: Callable[[Columns], Bools] = _by_stretch(self._hits)
        """Which posts of a stretch match."""

    def _hits(self, columns: Columns) -> Bools:
        hits = self._test(columns)
        return hits & (columns.kind != Kind.RETWEET) if self._no_retweets else hits

    def _compile(self, expression: Expression) -> Callable[[Columns], Bools]:
        if isinstance(expression, Not):
            inner = self._compile(expression.of)
            return lambda columns: ~inner(columns)
        if isinstance(expression, All):
            parts = [self._compile(part) for part in expression.of]
            return lambda columns: np.logical_and.reduce([part(columns) for part in parts])
        if isinstance(expression, AnyOf):
            parts = [self._compile(part) for part in expression.of]
            return lambda columns: np.logical_or.reduce([part(columns) for part in parts])
        return self._term(expression)

    def _term(self, term: Term) -> Callable[[Columns], Bools]:
        world, value = self._world, term.value
        author = world.author_of(value)
        if term.kind == "text":
            assert term.needle is not None
            return self._text(term.needle)
        if term.kind == "hashtag":
            return self._tagged(np.array([tag.lower() == value for tag in world.tags]))
        if term.kind == "cashtag":
            symbols = np.array([topic.cashtag.lower() == value for topic in words.TOPICS])
            return lambda columns: (columns.cashtag >= 0) & symbols[columns.cashtag]
        if term.kind == "lang":
            codes = [language.code for language in words.LANGUAGES]
            language = codes.index(value) if value in codes else -3
            return lambda columns: columns.language == language
        if term.kind == "place_country":
            countries = np.array([place[3].lower() == value for place in words.PLACES])
            return lambda columns: (columns.place >= 0) & countries[columns.place]
        if term.kind == "conversation_id":
            wanted = int(value) if value.isascii() and value.isdigit() and len(value) < 19 else -3
            return lambda columns: np.where(columns.kind == Kind.REPLY, columns.ref_id, columns.id) == wanted
        if term.kind == "mention":
            return lambda columns: self._mentions(columns, author) if author >= 0 else self._ghost(columns, value)
        if author < 0 and term.kind in {"from", "to", "retweets_of"}:
            return lambda columns: np.zeros(len(columns), dtype=np.bool_)
        if term.kind == "from":
            return lambda columns: columns.author == author
        if term.kind == "to":
            return lambda columns: (columns.kind == Kind.REPLY) & (columns.ref_author == author)
        if term.kind == "retweets_of":
            return lambda columns: (columns.kind == Kind.RETWEET) & (columns.ref_author == author)
        return _FLAGS[f"{term.kind}:{value}"](world)

    def _text(self, needle: Needle) -> Callable[[Columns], Bools]:
        world = self._world
        in_opening, in_sentence = _occurrences(world.openings, needle), _occurrences(world.sentences, needle)
        in_long = np.array([in_sentence[self._long(row)].any() for row in range(len(world.sentences))])
        in_tag = _occurrences(world.tags, needle)
        in_cashtag = _occurrences([topic.cashtag for topic in words.TOPICS], needle)
        in_emoji = _occurrences(list(words.EMOJI), needle)
        author = world.author_of(needle.text)

        def test(columns: Columns) -> Bools:
            hits = in_opening[columns.opening] | in_sentence[columns.sentence]
            hits |= (columns.more > 0) & in_long[columns.sentence]
            hits |= self._tagged(in_tag)(columns)
            hits |= (columns.cashtag >= 0) & in_cashtag[columns.cashtag]
            hits |= (columns.emoji >= 0) & in_emoji[columns.emoji]
            if author >= 0:
                hits |= self._mentions(columns, author)
            elif needle.text.startswith("nobody"):
                hits |= self._ghost(columns, needle.text)
            return hits

        return test

    def _long(self, row: int) -> list[int]:
        return long_sentences(self._world, row, 9)

    def _tagged(self, wanted: Bools) -> Callable[[Columns], Bools]:
        first = len(self._world.tags) - len(words.HASHTAGS)

        def test(columns: Columns) -> Bools:
            hits: Bools = (columns.tag1 >= 0) & wanted[columns.tag1]
            hits |= (columns.tag2 >= 0) & wanted[first + columns.tag2]
            return hits

        return test

    def _mentions(self, columns: Columns, author: int) -> Bools:
        addressed = (columns.kind == Kind.REPLY) | (columns.kind == Kind.RETWEET)
        hits: Bools = (columns.mention == author) | addressed & (columns.ref_author == author)
        return hits

    def _ghost(self, columns: Columns, name: str) -> Bools:
        number = name.removeprefix("nobody")
        wanted = int(number) if number.isascii() and number.isdigit() and len(number) < 5 else -1
        hits: Bools = (columns.mention == -2) & (_ghosts(columns) == wanted)
        return hits


def _ghosts(columns: Columns) -> Ints:
    """From what a retweet shares with its original, so that both name the same."""
    numbers: Ints = (columns.opening * 31 + columns.sentence) % 9_973
    return numbers


def long_sentences(world: World, row: int, count: int) -> list[int]:
    """The further sentences of a long post whose second sentence is `row`: the ones after it, round and round."""
    base = int(world._sentence_base[world._sentence_base <= row].max())  # noqa: SLF001 - one room, two classes
    language = int(np.flatnonzero(world._sentence_base == base)[0])  # noqa: SLF001
    size = int(world._sentence_count[language])  # noqa: SLF001
    return [base + (row - base + 1 + step) % size for step in range(count)]


def _verified(world: World) -> Callable[[Columns], Bools]:
    return lambda columns: (world.author_dice[columns.author] >> 40) % 8 == 0


def _flag(test: Callable[[Columns], Bools]) -> Callable[[World], Callable[[Columns], Bools]]:
    return lambda _: test


_FLAGS: dict[str, Callable[[World], Callable[[Columns], Bools]]] = {
    "is:retweet": _flag(lambda columns: columns.kind == Kind.RETWEET),
    "is:reply": _flag(lambda columns: columns.kind == Kind.REPLY),
    "is:quote": _flag(lambda columns: columns.kind == Kind.QUOTE),
    "is:nullcast": _flag(lambda columns: np.zeros(len(columns), dtype=np.bool_)),
    "is:verified": _verified,
    "has:hashtags": _flag(lambda columns: (columns.tag1 >= 0) | (columns.tag2 >= 0)),
    "has:cashtags": _flag(lambda columns: columns.cashtag >= 0),
    "has:links": _flag(lambda columns: (columns.link >= 0) | (columns.media > 0) | (columns.kind == Kind.QUOTE)),
    "has:mentions": _flag(lambda columns: (columns.mention != -1) | (columns.kind == Kind.REPLY) | (columns.kind == Kind.RETWEET)),
    "has:media": _flag(lambda columns: columns.media > 0),
    "has:media_link": _flag(lambda columns: columns.media > 0),
    "has:images": _flag(lambda columns: (columns.media == Media.PHOTO) | (columns.media == Media.PHOTOS)),
    "has:videos": _flag(lambda columns: columns.media == Media.VIDEO),
    "has:video_link": _flag(lambda columns: columns.media == Media.VIDEO),
    "has:geo": _flag(lambda columns: columns.place >= 0),
}  # fmt: skip


def _has_keyword(expression: Expression) -> bool:
    if isinstance(expression, Term):
        return expression.kind == "text"
    return any(_has_keyword(part) for part in ((expression.of,) if isinstance(expression, Not) else expression.of))


def _by_stretch(hits: Callable[[Columns], Bools], size: int = 1_024) -> Callable[[Columns], Bools]:
    known: dict[int, Bools] = {}

    def cached(columns: Columns) -> Bools:
        found = known.get(columns.stretch)
        if found is None:
            if len(known) >= size:
                known.pop(next(iter(known)))
            found = known[columns.stretch] = hits(columns)
        return found

    return cached


def _snowflakes(ms: Ints, machine: Ints) -> Ints:
    """Ids from sorted milliseconds and the machine that made each: 10 bits of machine, 12 bits of sequence."""
    order = np.lexsort((machine, ms))
    ms, machine = ms[order], machine[order]
    fresh = np.ones(len(ms), dtype=np.bool_)
    fresh[1:] = (ms[1:] != ms[:-1]) | (machine[1:] != machine[:-1])
    starts = np.maximum.accumulate(np.where(fresh, np.arange(len(ms)), 0))
    sequence = np.arange(len(ms)) - starts
    ids: Ints = ((ms - EPOCH_MS) << SHIFT) | ((machine * 5 + 320) << 12) | sequence
    return ids


def _cumulative(weights: list[float]) -> npt.NDArray[np.float64]:
    total = np.cumsum(np.array(weights, dtype=np.float64))
    shares: npt.NDArray[np.float64] = total / total[-1]
    return shares


def _pick(cumulative: npt.NDArray[np.float64], uniform: AnyType) -> Ints:
    picked: Ints = np.minimum(np.searchsorted(cumulative, uniform, side="right"), len(cumulative) - 1).astype(np.int64)
    return picked


def _occurrences(texts: list[str], needle: Needle) -> Bools:
    return np.array([needle.occurs_in(text.lower(), spaced_words(text)) for text in texts], dtype=np.bool_)


def _opening_bank() -> tuple[list[str], Ints]:
    """Every opening of every language for every topic and word, and where the rows of (language, sentence) begin."""
    bank: list[str] = []
    base = np.zeros((len(words.LANGUAGES), 64), dtype=np.int64)
    for number, language in enumerate(words.LANGUAGES):
        starts = []
        for opening in language.openings:
            starts.append(len(bank))
            bank.extend(
                opening.replace("{t}", topic.words[word % len(topic.words)])
                for topic in words.TOPICS
                for word in range(4)
            )
        base[number] = [starts[index % len(starts)] for index in range(64)]
    return bank, base


def _sentence_bank() -> tuple[list[str], Ints, Ints]:
    bank: list[str] = []
    base: list[int] = []
    for language in words.LANGUAGES:
        base.append(len(bank))
        bank.extend(language.sentences)
    return bank, np.array(base), np.array([len(language.sentences) for language in words.LANGUAGES])


def _tag_bank() -> list[str]:
    return list(dict.fromkeys(tag for topic in words.TOPICS for tag in topic.hashtags)) + list(words.HASHTAGS)
