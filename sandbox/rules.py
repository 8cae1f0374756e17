"""X's rule language, the subset that the sandbox answers: from text to an expression, or to the complaints X would send.

Terms stand beside each other for AND, which binds closer than OR; `-` negates; parentheses group. Keywords match whole
words, case-blind, as X's tokenizer does; in scripts without spaces they match anywhere. Wording of the complaints is
that of recorded answers of X.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

STOP_WORDS = frozenset(
    "a an and at but by com from http https if in is it its me my or rt the this to too via we www you".split()  # noqa: SIM905 - reads better
)
IS = frozenset({"retweet", "reply", "quote", "verified", "nullcast"})
HAS = frozenset(
    {"hashtags", "cashtags", "links", "mentions", "media", "media_link", "images", "videos", "video_link", "geo"}
)
WITH_VALUE = frozenset({"from", "to", "retweets_of", "lang", "place_country", "conversation_id"})

_COMPANIONS = frozenset({"is", "has", "lang"})
"""Operators that X takes only beside a term that stands alone."""
_SEPARATE = re.compile(r"[^\w]+", re.UNICODE)
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]|[\U0001f000-\U0001faff\u2600-\u27bf]")
_TOKEN = re.compile(
    r"""\s*(?P<minus>-)?(?:(?P<open>\()|(?P<close>\))|(?P<name>[A-Za-z_]+):(?:"(?P<quoted>[^"]*)"|(?P<value>[^\s()"]+))"""
    r"""|"(?P<phrase>[^"]*)"|(?P<word>[^\s()"]+))""",
    re.VERBOSE,
)


class RuleError(ValueError):
    """A rule that X refuses. The message is what X would put after 'There were errors processing your request: '."""


@dataclass(frozen=True, slots=True)
class Needle:
    """What a keyword or a phrase looks for: whole words in a row, or a bare substring in scripts without spaces."""

    text: str
    anywhere: bool

    def occurs_in(self, haystack: str, words: str) -> bool:
        """Whether it is in a text, given in lower case (`haystack`) and as `spaced_words` of it (`words`)."""
        return self.text in haystack if self.anywhere else f" {self.text} " in words


@dataclass(frozen=True, slots=True)
class Term:
    """One condition: `kind` is text, hashtag, mention, cashtag, or an operator's name; `value` in lower case."""

    kind: str
    value: str
    needle: Needle | None = None


@dataclass(frozen=True, slots=True)
class Not:
    """What `-` stands before."""

    of: "Expression"


@dataclass(frozen=True, slots=True)
class All:
    """Terms beside each other."""

    of: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Any:
    """Terms with OR between them."""

    of: tuple["Expression", ...]


Expression = Term | Not | All | Any


def spaced_words(text: str) -> str:
    """The words of a text in lower case, with one space around each: what needles are looked for in."""
    return f" {_SEPARATE.sub(' ', text.lower()).strip()} "


def needle(text: str) -> Needle:
    """The needle of a keyword or phrase. Raises RuleError when nothing of it can be matched."""
    lower = text.lower()
    if _UNSPACED.search(lower):
        return Needle(lower, anywhere=True)
    words = _SEPARATE.sub(" ", lower).strip()
    if not words:
        raise RuleError(f"no viable alternative at character '{text[:1]}'")
    return Needle(words, anywhere=False)


def terms(expression: Expression) -> Iterator[Term]:
    """Every term, negated or not."""
    if isinstance(expression, Term):
        yield expression
    elif isinstance(expression, Not):
        yield from terms(expression.of)
    else:
        for part in expression.of:
            yield from terms(part)


def parse(rule: str) -> Expression:
    """The expression of a rule. Raises RuleError with X's words for what is wrong with it."""
    expression = _Parser(rule).whole()
    if not _stands_alone(expression):
        kinds = {term.kind for term in terms(expression)}
        if kinds <= _COMPANIONS:
            raise RuleError("is/has/lang cannot be used as a standalone operator (at position 1)")
        raise RuleError("Rules must contain at least one positive, non-stopword clause (at position 1)")
    return expression


@dataclass(frozen=True, slots=True)
class _Lexeme:
    kind: str
    at: int
    minus: bool = False
    value: str = ""
    name: str = ""


class _Parser:
    def __init__(self, rule: str) -> None:
        self._lexemes = list(_lexemes(rule))
        self._next = 0

    def whole(self) -> Expression:
        if not self._lexemes:
            raise RuleError("Rules must contain at least one positive, non-stopword clause (at position 1)")
        expression = self._any()
        if self._next < len(self._lexemes):
            raise RuleError(f"missing EOF at ')' (at position {self._lexemes[self._next].at})")
        return expression

    def _peek(self) -> _Lexeme | None:
        return self._lexemes[self._next] if self._next < len(self._lexemes) else None

    def _any(self) -> Expression:
        parts = [self._all()]
        while (token := self._peek()) and token.kind == "or":
            self._next += 1
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Any(tuple(parts))

    def _all(self) -> Expression:
        parts: list[Expression] = []
        while (token := self._peek()) and token.kind not in {"or", "close"}:
            self._next += 1
            parts.append(self._one(token))
        if not parts:
            found = "<EOF>" if token is None else "OR" if token.kind == "or" else ")"
            raise RuleError(f"no viable alternative at input '{found}' (at position {token.at if token else 'end'})")
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _one(self, token: _Lexeme) -> Expression:
        if token.kind == "open":
            inner = self._any()
            closing = self._peek()
            if closing is None:
                raise RuleError(f"missing ')' at '<EOF>' (at position {token.at})")
            self._next += 1
        elif token.kind == "operator":
            inner = _operator(token)
        else:
            inner = _plain(token)
        return Not(inner) if token.minus else inner


def _lexemes(rule: str) -> Iterator[_Lexeme]:
    at, end = 0, len(rule.rstrip())
    while at < end:
        match = _TOKEN.match(rule, at)
        if match is None:
            while at < end and rule[at].isspace():
                at += 1
            raise RuleError(f"no viable alternative at character '{rule[at]}' (at position {at + 1})")
        start = match.end() - len(match[0].lstrip()) + 1
        at = match.end()
        minus = match["minus"] is not None
        if match["open"]:
            yield _Lexeme("open", start, minus)
        elif match["close"]:
            yield _Lexeme("close", start)
        elif match["name"]:
            value = match["quoted"] if match["quoted"] is not None else match["value"]
            yield _Lexeme("operator", start, minus, value, match["name"])
        elif match["phrase"] is not None:
            yield _Lexeme("phrase", start, minus, match["phrase"])
        elif match["word"] == "OR":
            yield _Lexeme("or", start)
        else:
            yield _Lexeme("word", start, minus, match["word"])


def _operator(token: _Lexeme) -> Term:
    name, value = token.name.lower(), token.value.lower()
    known = name in WITH_VALUE or (name == "is" and value in IS) or (name == "has" and value in HAS)
    if not known:
        shown = f"{name}:{value}" if name in {"is", "has"} else token.name
        raise RuleError(
            f"Reference to invalid operator '{shown}'. Operator is not available in current product or product "
            f"packaging. Please refer to complete available operator list at https://docs.x.com/operators. "
            f"(at position {token.at})"
        )
    return Term(name, value.removeprefix("@") if name in {"from", "to", "retweets_of"} else value)


def _plain(token: _Lexeme) -> Term:
    value = token.value
    if token.kind == "word":
        if value.lower() in {"and", "or"}:
            raise RuleError(
                f"Ambiguous use of {value.lower()} as a keyword. Use a space to logically join two clauses, or "
                f'\\"{value.lower()}\\" to find occurrences of {value.lower()} in text (at position {token.at})'
            )
        for sign, kind in (("#", "hashtag"), ("@", "mention"), ("$", "cashtag")):
            if value.startswith(sign) and len(value) > 1:
                return Term(kind, value[1:].lower())
    try:
        return Term("text", value.lower(), needle(value))
    except RuleError as error:
        raise RuleError(f"{error} (at position {token.at})") from None


def _stands_alone(expression: Expression) -> bool:
    if isinstance(expression, Term):
        return expression.kind not in _COMPANIONS and expression.value not in STOP_WORDS
    if isinstance(expression, Not):
        return False
    if isinstance(expression, Any):
        return all(_stands_alone(part) for part in expression.of)
    return any(_stands_alone(part) for part in expression.of)
