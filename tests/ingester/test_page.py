"""The status page in every state it has to show: what it says, that it escapes everything, that its charts are drawn right."""

import re
import xml.etree.ElementTree as ET
from datetime import timedelta
from html.parser import HTMLParser

import pytest

from ingester.history import KEPT_SAMPLES, History
from ingester.page import CONTENT_SECURITY_POLICY, render
from ingester.page.advice import ADVICE, FOLLOWS
from ingester.page.charts import HEIGHT, WIDTH, Series, chart
from ingester.page.markup import VOID, Html, el
from ingester.page.verdict import of_query, verdict
from ingester.page.words import UNKNOWN, ago, count, percent, size, span, usd
from ingester.report import HOLD_FIXES, REFUSALS
from tests.house.checkout import text
from tests.ingester.simulation import START
from tests.ingester.states import EVIL, STATES, in_state


class Parsed(HTMLParser):
    """A page taken apart; what is not well-formed is an error."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.words, self._open = [], [], []
        self.feed(page)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        self.elements.append((tag, dict(attrs), tuple(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self._open and self._open[-1] not in {"script", "style"}:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]


SAYS = {
    "normal": ("Collecting", ["All 3 queries are up to date", "Nothing. All 8 checks are well.", "$150.00", "up to date"]),
    "behind": ("Collecting, and catching up", ["1 of 4 queries behind", "catching up", "no cap"]),
    "paused": (
        "Paused: the budget is used up",
        ["goes on by itself in 11 h", "budget.usd_per_day", "raise the cap", "$3.00 of $3.00, 100 %", "3 queries get no pages"],
    ),
    "broken": (
        "Not collecting: X refuses the credentials",
        ["mend the token", "paused: 403 AccessDenied", "1 file in quarantine", "refused", "15 times"],
    ),
    "late": ("Collecting in part", ["No pages come for 1 of 3 queries", "mend query.rule", "late"]),
    "empty": ("Starting", ["No page has come yet", "not yet", "The first minute is not over yet"]),
    "standing by": ("Standing by: another ingester collects", ["spool ffffffff", "not asked", "else stop one of the two"]),
    "no room": ("Paused: no room on the disk", ["spool.min_free_bytes", "make room"]),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
async def test_one_look_tells_the_state_and_what_to_do(tmp_path, name):
    async with in_state(name, tmp_path) as place:
        page = place.page()
    found = Parsed(page)
    word, phrases = SAYS[name]
    assert re.findall(r"<h1>(.*?)</h1>", page) == [word]
    assert f"<title>{word} - Tweetlake</title>" in page
    assert [phrase for phrase in phrases if phrase not in found.text] == []


@pytest.mark.parametrize("name", STATES)
async def test_nothing_from_outside_becomes_markup(tmp_path, name):
    async with in_state(name, tmp_path) as place:
        page = place.page()
    found = Parsed(page)
    assert EVIL in found.text, "it is shown as it is"
    assert len(found.all("script")) == 1
    assert "alert('rule')</script>" not in page
    assert not [name for _, attributes, _ in found.elements for name in attributes if name.startswith("on")]
    assert not [attributes for _, attributes, _ in found.elements if "style" in attributes], "the policy forbids it"


@pytest.mark.parametrize("name", STATES)
async def test_it_has_what_a_screen_reader_needs(tmp_path, name):
    async with in_state(name, tmp_path) as place:
        page = place.page()
    found = Parsed(page)
    tags = [tag for tag, _, _ in found.elements]
    assert [tags.count(tag) for tag in ("html", "header", "main", "footer", "nav", "h1")] == [1] * 6
    assert found.all("html") == [{"lang": "en"}]
    assert tags.count("caption") == tags.count("table") == 1
    assert {attributes["scope"] for attributes in found.all("th")} == {"col", "row"}
    ids = [attributes["id"] for _, attributes, _ in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [
        attributes["aria-labelledby"].split() for _, attributes, _ in found.elements if "aria-labelledby" in attributes
    ]
    assert {each for names in named for each in names} <= set(ids)
    for svg in re.findall(r"<svg.*?</svg>", page):
        root = ET.fromstring(svg)
        is_named = root.get("role") == "img" and root.find("title") is not None
        assert is_named or root.get("aria-hidden") == "true", "a drawing says what it is, or words beside it do"


def test_it_loads_nothing_from_anywhere():
    addresses = re.findall(
        r"(?:https?:)?//[\w.-]+|url\(|@import", text("ingester/page/page.css") + text("ingester/page/page.js")
    )
    assert [address for address in addresses if address != "//"] == []
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'; ")
    assert "unsafe" not in CONTENT_SECURITY_POLICY


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("out_of_reach", "the curated tables cannot have these posts"),
        ("query_removed", "removed on purpose"),
        ("refused", "Order it anew by the rule of today"),
        ("reread_given_up", "Nothing: it was read before"),
        ("backfill_given_up", "the regular collection lacks nothing by it"),
        ("a_reason_to_come", "the curated tables cannot have these posts"),
    ],
)
async def test_the_advice_for_a_gap_is_that_of_its_reason(tmp_path, reason, told):
    async with in_state("normal", tmp_path) as place:
        place.run.telemetry.gap_recorded("python", reason, "11-12T12:00:00..13:00:00Z")
        assert told in place.page()


def test_every_problem_event_has_its_advice():
    events = set(re.findall(r'self\._problem\(\s*"(\w+)"', text("ingester/telemetry.py")))
    assert set(ADVICE) == events


def test_every_kind_of_hold_has_its_fix():
    kinds = set(re.findall(r'Hold\(.*"(\w+)"', text("ingester/pacing.py"))) | {"rate", "backlog"}
    assert set(HOLD_FIXES) == (kinds | REFUSALS) - {"disk", "backlog"}
    report = text("ingester/report.py")
    assert all(f'"{fix}"' in report for fix in FOLLOWS), "queries that wait for something else are known by their fix"


async def test_a_hundred_queries_that_wait_for_one_thing_are_one_line(tmp_path):
    async with in_state("standing by", tmp_path) as place:
        status = place.status
    [check] = [check for check in status["components"] if check["name"] == "query:python"]
    status["components"] += [{**check, "name": f"query:q{number}"} for number in range(100)]
    found = Parsed(render(status)).text
    assert "103 queries get no pages because of it: python, coffee-and-tea, climate, q0" in found
    assert "and 93 more" in found


@pytest.mark.parametrize(
    ("kind", "level", "word"),
    [
        ("loop", "bad", "A part of the service hangs"),
        ("s3", "attention", "Collecting, with something to mend"),
        ("clock", "attention", "Collecting, with something to mend"),
        ("query", "bad", "Collecting in part"),
    ],
)
async def test_what_is_not_well_decides_the_verdict(tmp_path, kind, level, word):
    async with in_state("normal", tmp_path) as place:
        status = place.status
    check = {"name": kind, "kind": kind, "ok": False, "reason": "so", "fix": "mend it"}
    found = verdict({**status, "components": [*status["components"], check]})
    assert (found.level, found.word) == (level, word)


async def test_a_query_at_its_own_cap_says_so_rather_than_late(tmp_path):
    async with in_state("normal", tmp_path) as place:
        status = place.status
    query = status["queries"][0] | {"late_seconds": 900.0, "problem": "query python.usd_per_day is $1, $1.00 is booked"}
    assert of_query(query, status).word == "own cap reached"
    assert of_query(query | {"problem": "400: no"}, status).word == "late"


# Markup.


def test_markup_escapes_whatever_is_no_markup():
    assert el("p", "<b>", Html("<i>x</i>"), None, [1, ["&"]], title='"><script>') == (
        '<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;<i>x</i>1&amp;</p>'
    )
    assert el("meta", http_equiv="x", content=None, hidden=True) == '<meta http-equiv="x" hidden>'


# Words.


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, UNKNOWN), (0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (61, "1 min 1 s"), (599, "9 min 59 s"), (660, "11 min"),
        (3_599.7, "1 h"), (3_700, "1 h 2 min"), (86_400, "1 d"), (90_000, "1 d 1 h"), (86_400 * 1_234, "1,234 d"), (-3, "0 s"),
    ],
)  # fmt: skip
def test_spans(seconds, words):
    assert span(seconds) == words


def test_moments_are_told_by_distance_and_exactly():
    moment = (START - timedelta(seconds=75)).isoformat()
    assert ago(moment, START) == (
        '<time datetime="2026-11-20T11:59:15+00:00" title="2026-11-20 11:59:15 UTC">1 min 15 s ago</time>'
    )
    assert ">in 2 h<" in str(ago((START + timedelta(hours=2)).isoformat(), START))
    assert ago(None, START) == "not yet"


def test_figures():
    assert (count(1, "file"), count(10_000, "file"), count(2, "query", "queries")) == (
        "1 file",
        "10,000 files",
        "2 queries",
    )
    assert (size(None), size(512), size(1_400_000), size(247e9)) == (UNKNOWN, "512 bytes", "1.4 MB", "247 GB")
    assert (usd(0), usd(0.005), usd(1234.5)) == ("$0.00", "$0.0050", "$1,234.50")
    assert (percent(0.999), percent(1.0), percent(0.29)) == ("99 %", "100 %", "29 %")


# History and charts.


def test_history_is_a_sample_a_minute_and_bounded():
    history = History(kept=3)
    for second in range(0, 601, 5):
        lag = None if second < 60 else float(second % 60)
        history.note(START + timedelta(seconds=second), float(second), posts=second * 2, lag=lag, spool_bytes=second)
    assert [sample.posts_per_minute for sample in history.samples] == [120.0] * 3
    assert [sample.lag_seconds for sample in history.samples] == [55.0] * 3, "the largest of the minute"
    assert [sample.spool_bytes for sample in history.samples] == [480, 540, 600]
    assert History().samples.maxlen == KEPT_SAMPLES == 1440


LAG = Series("lag", "Lag", lambda sample: sample.lag_seconds, span, max)


def history_of(lags, *, every=60.0):
    history = History()
    for number in range(len(lags) + 1):
        at = START + timedelta(seconds=number * every)
        lag = lags[number - 1] if number else None
        history.note(at, number * every, posts=0, lag=lag, spool_bytes=0)
    return history.samples


def points(figure):
    svg = ET.fromstring(re.search(r"<svg.*?</svg>", figure)[0])
    lines = [line.get("points") for line in svg.iter("polyline")]
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in lines]


def test_a_chart_ends_now_and_its_most_is_at_the_top():
    [line] = points(chart(LAG, history_of([10.0, 40.0, 20.0])))
    assert [round(x) for x, _ in line] == [WIDTH - 8, WIDTH - 4, WIDTH]
    heights = [HEIGHT - y for _, y in line]
    assert heights[1] == max(heights) == HEIGHT - 2
    assert min(heights) > 0


def test_what_is_not_known_is_a_hole_and_no_line_over_it():
    lines = points(chart(LAG, history_of([10.0] * 5 + [None] * 10 + [20.0] * 5)))
    assert [len(line) for line in lines] == [5, 5]


def test_a_day_has_as_many_points_as_can_be_seen():
    [line] = points(chart(LAG, history_of([float(minute % 7) for minute in range(KEPT_SAMPLES)])))
    assert len(line) == 121
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line)


def test_a_chart_says_in_words_what_it_shows():
    figure = chart(LAG, history_of([10.0, 400.0, 20.0]))
    assert "<desc" in figure
    assert "Over the last 1 h: now 20 s, least 10 s, most 6 min 40 s." in figure
    assert "<svg" not in chart(LAG, history_of([None]))


@pytest.mark.parametrize("lags", [[0.0], [0.0] * 30, [1e12], [5.0, None, None, None, None, 5.0]])
def test_no_values_break_a_chart(lags):
    for line in points(chart(LAG, history_of(lags))):
        assert len(line) >= 2
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in line)
