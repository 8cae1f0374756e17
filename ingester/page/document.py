"""The whole page: what stands where. Its script and style are files beside this one, named by hash in the policy."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ingester.history import Sample
from ingester.page.advice import FOLLOWS, advice
from ingester.page.charts import Series, chart
from ingester.page.markup import Child, Html, doc, el
from ingester.page.verdict import Level, Status, Verdict, verdict, worst_first
from ingester.page.words import UNKNOWN, ago, count, exactly, percent, size, span, usd

REFRESH_SECONDS = 5
"""Between two looks of a page that is being looked at; without script the whole page is loaded anew, more slowly."""
MOST_NAMES = 10
"""Queries named of those that only wait for something that is named already."""
MOST_LATELY = 12
"""Problems shown of those told lately."""

_STYLE = Path(__file__).with_name("page.css").read_text("utf-8")
_SCRIPT = Path(__file__).with_name("page.js").read_text("utf-8")
FAVICON = Path(__file__).with_name("favicon.svg").read_bytes()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing is loaded but the icon and the page itself again; no style and no script runs but the two named by hash."""

_SYMBOLS: Mapping[Level, tuple[str, str]] = {
    "good": ("well", "M4.5 8.5 7 11l4.5-5.5"),
    "busy": ("busy", "M4 6.5 8 3l4 3.5M4 12.5 8 9l4 3.5"),
    "waiting": ("waits", "M6 4.5v7M10 4.5v7"),
    "attention": ("needs a look", "M8 3.5v5.5M8 12v.2"),
    "bad": ("not well", "M5 5l6 6M11 5l-6 6"),
}
"""What a level is called, and the stroke that shows it: never colour alone."""

_SERIES = (
    Series(
        "posts",
        "Posts stored per minute",
        lambda sample: sample.posts_per_minute,
        lambda value: UNKNOWN if value is None else f"{value:,.0f}",
        lambda values: sum(values) / len(values),
    ),
    Series("lag", "Largest lag of a query", lambda sample: sample.lag_seconds, span, max),
    Series("spool", "Size of the spool", lambda sample: float(sample.spool_bytes), size, max),
)


def render(status: Status, samples: Sequence[Sample] = ()) -> str:
    """The page as HTML. Everything that came from outside is escaped."""
    found, now = verdict(status), datetime.fromisoformat(status["now"])
    return doc(
        head=[
            el("meta", charset="utf-8"),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="color-scheme", content="light dark"),
            el("title", f"{found.word} - Tweetlake"),
            el("link", rel="icon", href="/favicon.svg", type="image/svg+xml"),
            el("noscript", el("meta", http_equiv="refresh", content=3 * REFRESH_SECONDS)),
            el("style", Html(_STYLE)),
        ],
        body=[
            _header(status, now),
            el(
                "p",
                "The service does not answer. This is how it was ",
                class_="stale",
                id="stale",
                role="alert",
                hidden=True,
            ),
            el(
                "main",
                _look(found, now, status),
                _wrong(status),
                _queries(status, now),
                el("div", _spool(status, now), _budget(status, now), class_="cards"),
                _charts(samples),
                _lately(status, now),
            ),
            _footer(status),
            el("script", Html(_SCRIPT), data_seconds=REFRESH_SECONDS),
        ],
    )


def _header(status: Status, now: datetime) -> Html:
    return el(
        "header",
        el("p", el("strong", "Tweetlake"), " into ", status["s3"]["bucket"], class_="brand"),
        el("p", "as of ", exactly(status["now"], f"{now:%H:%M:%S} UTC"), class_="quiet", id="as-of"),
    )


def _look(found: Verdict, now: datetime, status: Status) -> Html:
    """What one look has to tell."""
    words = el("div", el("h1", found.word), el("p", found.sentence))
    since = el("p", "version ", status["version"], ", started ", ago(status["started_at"], now), class_="quiet")
    return el(
        "section",
        el("div", _symbol(found.level), words, class_=f"look {found.level}", role="status"),
        since,
        aria_label="Is it collecting?",
        id="look",
    )


def _symbol(level: Level, *, named: bool = False) -> Html:
    words, stroke = _SYMBOLS[level]
    return el(
        "svg",
        el("title", words) if named else None,
        el("circle", cx=8, cy=8, r=7.5),
        el("path", d=stroke),
        viewBox="0 0 16 16",
        class_=f"symbol {level}",
        role="img" if named else None,
        aria_hidden=None if named else "true",
    )


def _wrong(status: Status) -> Html:
    """What is not well now, each with what to do. There is always such a section, so that it is missed by nobody."""
    broken = [check for check in status["components"] if not check["ok"]]
    following = [check for check in broken if check["fix"] in FOLLOWS]
    if not broken:
        content: Child = el("p", "Nothing. All ", f"{len(status['components']):,}", " checks are well.", class_="quiet")
    else:
        lines: list[Child] = [el("li", _problem(check)) for check in broken if check not in following]
        if following:
            names = ", ".join(check["name"].removeprefix("query:") for check in following[:MOST_NAMES])
            more = f" and {len(following) - MOST_NAMES:,} more" if len(following) > MOST_NAMES else ""
            waits = count(len(following), "query gets no pages because of it", "queries get no pages because of it")
            lines.append(el("li", el("p", el("strong", "queries"), " ", f"{waits}: {names}{more}")))
        content = el("ul", lines, class_="wrong")
    return el(
        "section", el("h2", "What is wrong now", id="wrong-title"), content, aria_labelledby="wrong-title", id="wrong"
    )


def _problem(check: Mapping[str, Any]) -> Child:
    return [
        el("p", el("strong", check["name"]), " ", check["reason"]),
        el("p", el("span", "What to do: ", class_="label"), check["fix"], class_="fix"),
    ]


# Queries.

_COLUMNS = ("Query", "State", "Behind", "Last page", "To do", "Gaps", "Today", "This month")


def _queries(status: Status, now: datetime) -> Html:
    """A table to machines; on a narrow screen each row becomes a card, and the roles say that it still is a table."""
    return el(
        "section",
        el("h2", "Queries", id="queries-title"),
        el(
            "table",
            el("caption", "How far behind each query is; those in need of a look come first.", class_="quiet"),
            el(
                "thead",
                el("tr", [el("th", name, scope="col", role="columnheader") for name in _COLUMNS], role="row"),
                role="rowgroup",
            ),
            el(
                "tbody",
                [_query(query, found, now) for query, found in worst_first(status["queries"], status)],
                role="rowgroup",
            ),
            role="table",
            aria_labelledby="queries-title",
        ),
        aria_labelledby="queries-title",
        id="queries",
    )


def _query(query: Status, found: Verdict, now: datetime) -> Html:
    todo = count(query["todo_intervals"], "interval") if query["todo_intervals"] else "nothing"
    cells: Iterable[Child] = (
        [_symbol(found.level), " ", found.word],
        _behind(query),
        ago(query["last_page_at"], now),
        todo,
        f"{query['gaps']:,}" if query["gaps"] else "none",
        [usd(query["usd_today"]), _share(query, "usd_per_day")],
        [usd(query["usd_this_month"]), _share(query, "usd_per_month")],
    )
    name = el(
        "th",
        el("strong", query["name"]),
        el("span", query["rule"], class_="rule quiet"),
        el("span", found.sentence, class_="trouble") if found.sentence else None,
        scope="row",
        role="rowheader",
    )
    data = [
        el("td", el("span", cell), role="cell", data_label=label)
        for label, cell in zip(_COLUMNS[1:], cells, strict=True)
    ]
    return el("tr", name, data, role="row", id=f"query-{query['name']}")


def _behind(query: Status) -> Child:
    if query["covered_until"] is None:
        return UNKNOWN
    return exactly(query["covered_until"], span(query["covered_lag_seconds"]))


def _share(query: Status, cap: str) -> Child:
    share = query["fractions"].get(cap)
    return None if share is None else el("span", f" {percent(share)} of its cap", class_="quiet")


# What waits, and what was spent.


def _spool(status: Status, now: datetime) -> Html:
    spool, s3 = status["spool"], status["s3"]
    waiting: Child = "nothing"
    if spool["waiting"]:
        waiting = [count(spool["waiting"], "file"), ", the oldest sealed ", ago(spool["oldest_waiting_at"], now)]
    shipping: Child = ago(s3["last_shipped_at"], now)
    if s3["problem"]:
        shipping = [
            shipping,
            el("span", "paused: " if s3["paused"] else "tried again: ", s3["problem"], class_="trouble"),
        ]
    return _card(
        "waits",
        "What waits",
        [
            ("Waiting for S3", waiting),
            (
                "Spool",
                [
                    _bar(spool["bytes"] / spool["max_bytes"], "of the spool's bound is used"),
                    f"{size(spool['bytes'])} of {size(spool['max_bytes'])}",
                ],
            ),
            ("Free on the disk", size(spool["free_bytes"])),
            ("Quarantine", count(spool["quarantine"], "file") if spool["quarantine"] else "empty"),
            ("Last shipped", shipping),
        ],
    )


_CAP_WORDS = {
    "usd_per_month": ("This month", "usd_this_month", usd),
    "usd_per_day": ("Today", "usd_today", usd),
    "posts_per_month": ("Posts this month", "posts_this_month", lambda number: f"{number:,.0f}"),
    "posts_per_day": ("Posts today", "posts_today", lambda number: f"{number:,.0f}"),
}


def _budget(status: Status, now: datetime) -> Html:
    budget, x = status["budget"], status["x"]
    if budget is None or x is None:
        return _card("spent", "What was spent", [("Spent", "not known while X is not asked")])
    lines: list[tuple[str, Child]] = []
    for cap, (words, figure, written) in _CAP_WORDS.items():
        limit, spent = budget["caps"].get(cap), budget[figure]
        if limit is not None:
            share = budget["fractions"][cap]
            bar = _bar(share, f"of budget.{cap} is used")
            lines.append((words, [bar, f"{written(spent)} of {written(limit)}, {percent(share)}"]))
        else:
            lines.append((words, f"{written(spent)}, no cap"))
    rate: Child = UNKNOWN
    if x["rate_limit"] is not None and x["rate_reset_at"] is not None and x["rate_reset_at"] < status["now"]:
        rate = f"over; X's next answer tells the new one of {x['rate_limit']:,} requests"
    elif x["rate_limit"] is not None:
        left = max(0, x["rate_remaining"])
        rate = [f"{left:,} of {x['rate_limit']:,} requests left, reset ", ago(x["rate_reset_at"], now, never=UNKNOWN)]
    if x["hold"] == "backlog":
        rate = [rate, el("span", "The rest is kept for new posts; what is older waits for the reset.", class_="quiet")]
    lines.append(("X's rate window", rate))
    lines.append(("Credentials", x["credentials"]))
    return _card("spent", "What was spent", lines)


def _card(name: str, title: str, lines: Iterable[tuple[str, Child]]) -> Html:
    return el(
        "section",
        el("h2", title, id=f"{name}-title"),
        el("dl", [el("div", el("dt", label), el("dd", value)) for label, value in lines]),
        aria_labelledby=f"{name}-title",
        id=name,
    )


def _bar(fraction: float, words: str) -> Html:
    """How much of something is used, as a bar that says so to who cannot see it."""
    full = min(1.0, max(0.0, fraction))
    level = "full" if fraction >= 1.0 else "near" if fraction >= 0.8 else "far"
    return el(
        "svg",
        el("title", f"{percent(fraction)} {words}"),
        el("rect", width=100, height=6, class_="track"),
        el("rect", width=f"{100 * full:.1f}", height=6, class_=f"fill {level}") if full else None,
        viewBox="0 0 100 6",
        preserveAspectRatio="none",
        class_="bar",
        role="img",
    )


# What was, and what went wrong.


def _charts(samples: Sequence[Sample]) -> Html:
    return el(
        "section",
        el("h2", "The last day", id="charts-title"),
        el("div", [chart(series, samples) for series in _SERIES], class_="charts"),
        aria_labelledby="charts-title",
        id="charts",
    )


def _lately(status: Status, now: datetime) -> Html:
    """The newest problems."""
    lines = [_told(problem, now) for problem in status["problems"][:MOST_LATELY]]
    content: Child = el("ul", lines, class_="lately")
    if not lines:
        content = el("p", "Nothing since the start.", class_="quiet")
    return el(
        "section",
        el("h2", "What went wrong lately", id="lately-title"),
        content,
        aria_labelledby="lately-title",
        id="lately",
    )


def _told(problem: Mapping[str, Any], now: datetime) -> Html:
    often: Child = None
    if problem["times"] > 1:
        often = [f", {problem['times']:,} times, first ", ago(problem["first_at"], now)]
    return el(
        "li",
        el("p", el("strong", problem["event"]), " ", ago(problem["at"], now), often, class_="when"),
        el("p", problem["detail"]),
        el("p", el("span", "What to do: ", class_="label"), advice(problem["event"], problem["detail"]), class_="fix"),
    )


def _footer(status: Status) -> Html:
    links = (("/status", "all of it as JSON"), ("/healthz", "health"), ("/metrics", "metrics"))
    return el(
        "footer",
        el(
            "nav",
            el("ul", [el("li", el("a", words, href=path)) for path, words in links]),
            aria_label="The same for machines",
        ),
        el("p", "spool ", status["spool"]["id"], class_="quiet"),
    )
