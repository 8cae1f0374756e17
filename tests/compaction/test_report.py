"""The report is one page that needs nothing else, and says the same for the same tables."""

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

from compaction_dags.compaction.report.figures import Figures, Hour, QueryFigures, Stretch, gather
from compaction_dags.compaction.report.page import page
from schemas.snowflake import MAX_ID, first_id_at
from schemas.state import State
from tests.compaction.collector import Collector, counts, gap, ids_within, window
from tests.compaction.conftest import Place, hours
from tests.compaction.pages import NOON
from tests.compaction.test_compact_command import run

ONE = hours(1)
MINUTE = timedelta(minutes=1)
VOID = {"meta", "br", "link"}


class Outline(HTMLParser):
    """Checks that elements close in order, and collects what is asked of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.seen if tag == "rect" and attributes.get("class") == name]


def filled(place: Place) -> None:
    """Two hours of a query: a gap in the first, all of the second; the first is counted."""
    one = Collector(place)
    one.begin(NOON, "rain & <sun>")
    one.ship([gap("rain & <sun>", NOON, NOON + 15 * MINUTE),
              window("rain & <sun>", NOON + 15 * MINUTE, NOON + ONE, ids_within(NOON + 15 * MINUTE, NOON + ONE, 9))],
             NOON)  # fmt: skip
    one.ship([window("rain & <sun>", NOON + ONE, NOON + 2 * ONE, ids_within(NOON + ONE, NOON + 2 * ONE, 3)),
              counts("rain & <sun>", NOON + ONE, [(NOON, NOON + ONE, 12), (NOON + ONE, NOON + 2 * ONE, 3)])],
             NOON + ONE)  # fmt: skip
    place.compact()


def test_the_figures_are_those_of_the_tables(place: Place) -> None:
    filled(place)
    found = gather(place.settings())
    assert found is not None
    assert (found.since, found.until) == (NOON + 2 * ONE - timedelta(days=7), NOON + 2 * ONE)
    (query,) = found.queries
    assert query.hours == (Hour(NOON, 9, 12, 0.75, False), Hour(NOON + ONE, 3, 3, 1.0, True))
    assert query.stretches == (
        Stretch("unknown", found.since, NOON),
        Stretch("gap", NOON, NOON + 15 * MINUTE, ("out_of_reach",)),
        Stretch("covered", NOON + 15 * MINUTE, NOON + 2 * ONE),
    )
    assert (query.collected, query.ratio, query.proved, query.covered) == (12, 0.8, 1, 0.875)
    later = gather(place.settings(), since=NOON + 90 * MINUTE)
    assert later is not None
    assert (later.since, later.queries[0].hours) == (NOON + ONE, query.hours[1:])
    assert later.queries[0].stretches == (Stretch("covered", NOON + ONE, NOON + 2 * ONE),)


def test_time_of_which_the_tables_say_nothing_is_never_called_complete(place: Place) -> None:
    filled(place)
    output = place.directory / "a.html"
    long_before = (
        "report",
        "--config",
        place.config(),
        "--output",
        output,
        "--since",
        "2026-01-01",
        "--until",
        "2026-01-02",
    )
    told = run(*long_before)
    assert told.exit_code == 0
    assert told.stderr == "nothing is known of this time: rain & <sun>\n"
    text = output.read_text("utf-8")
    assert "Nothing is known of this time." in text
    assert "missing" not in text
    assert Outline(text).cells[:4] == ["rain & <sun>", "2026-11-20 12:00", "0", "\u2013"]
    run(*long_before[:-2], "--since", "2026-11-13T14")
    text = output.read_text("utf-8")
    assert "Nothing is known of the time before 2026-11-20 12:00:00 (UTC)." in text
    assert "87.5%" in Outline(text).cells, "of what is known"
    assert len(Outline(text).of_class("unknown")) == 1 + 1, "the week before, and the key"


def test_hours_that_nobody_told_of_lie_between_those_that_are_known(place: Place) -> None:
    one = Collector(place)
    one.begin(NOON, "lake")
    for start in (NOON, NOON + 2 * ONE):
        one.ship([window("lake", start, start + ONE, ids_within(start, start + ONE, 3))], start)
        one.state = State()  # another spool, with nothing that joins the two
        if start == NOON:
            one.begin(start + 2 * ONE, "lake")
    place.compact()
    found = gather(place.settings(), since=NOON - ONE)
    assert found is not None
    (query,) = found.queries
    assert query.stretches == (
        Stretch("unknown", NOON - ONE, NOON),
        Stretch("covered", NOON, NOON + ONE),
        Stretch("unknown", NOON + ONE, NOON + 2 * ONE),
        Stretch("covered", NOON + 2 * ONE, NOON + 3 * ONE),
    )
    assert (query.covered, query.known_since) == (1.0, NOON)
    cells = Outline(page(found)).cells
    assert cells[cells.index("unknown") :][:4] == ["unknown", "2026-11-20 13:00:00", "2026-11-20 14:00:00", "1 h"]


def test_only_time_that_is_known_whole_misses_nothing() -> None:
    def said(*stretches: Stretch) -> list[str]:
        query = QueryFigures("q", (), stretches, NOON)
        return re.findall(r"Nothing [^<]*", page(Figures(NOON, NOON + ONE, (query,))))

    middle = NOON + 30 * MINUTE
    assert said(Stretch("covered", NOON, NOON + ONE)) == ["Nothing is missing."]
    assert said(Stretch("covered", NOON, middle), Stretch("unknown", middle, NOON + ONE)) == [
        "Nothing is known of the time after 2026-11-20 12:30:00 (UTC).",
        "Nothing else is missing.",
    ]
    assert said(Stretch("unknown", NOON, NOON + ONE)) == ["Nothing is known of this time."]


def test_the_command_writes_one_page_that_is_the_same_for_the_same_tables(place: Place) -> None:
    first, second = place.directory / "a.html", place.directory / "b.html"
    nothing = run("report", "--config", place.config(), "--output", first)
    assert (nothing.exit_code, first.exists()) == (0, False)
    assert "nothing to report yet" in nothing.stdout
    filled(place)
    assert run("report", "--config", place.config(), "--output", first).exit_code == 0
    assert run("report", "--config", place.config(), "--output", second, "--query", "rain & <sun>").exit_code == 0
    text = first.read_text("utf-8")
    assert text == second.read_text("utf-8")
    outline = Outline(text)
    assert len(outline.of_class("bar")) == 2 + 1, "two hours, and the key"
    assert len(outline.of_class("gap")) == 1 + 1
    assert {"11-20 12:00", "9", "12", "75.0%", "out_of_reach", "15 min"} <= set(outline.cells)


def test_an_id_out_of_the_air_does_not_move_the_report_to_where_no_posts_are(place: Place) -> None:
    filled(place)
    expected = gather(place.settings())
    place.ship_tweets([MAX_ID, first_id_at(NOON + 40 * ONE)], NOON + ONE)
    place.compact()
    found = gather(place.settings())
    assert found is not None
    assert expected is not None
    assert (found.since, found.until) == (expected.since, expected.until)
    far = gather(place.settings(), until=datetime(9999, 12, 31, 23, 59, tzinfo=UTC))
    assert far is not None
    assert far.until == found.until


def test_what_cannot_be_told_is_a_wrong_usage(place: Place) -> None:
    filled(place)
    output = place.directory / "a.html"
    for arguments, words in (
        (["--query", "snow"], "nothing is known of snow"),
        (["--since", "2026-11-21", "--until", "2026-11-20"], "must lie before --until"),
        (["--since", "2026-12-01"], "the tables know nothing after 2026-11-20T14:00"),
    ):
        found = run("report", "--config", place.config(), "--output", output, *arguments)
        assert (found.exit_code, words in found.stderr) == (2, True), found.stderr
    assert not output.exists()


def sample(days: int = 7, names: tuple[str, ...] = ("climate", "python lang:en")) -> Figures:
    """A week that has everything in it."""
    end = datetime(2026, 11, 20, 14, tzinfo=UTC)
    since = end - timedelta(days=days)
    queries = []
    for place, name in enumerate(names):
        told = []
        for number in range(days * 24):
            start = since + number * ONE
            counted = 400 + 300 * (start.hour in range(8, 22)) + number * 37 % 113
            covered = 0.4 if number == 60 else 1.0
            collected = round(counted * covered * (0.99 + number % 3 / 100)) // (place * 3 + 1)
            is_counted = number < (days - 1) * 24
            told.append(
                Hour(start, collected, counted // (place * 3 + 1) if is_counted else None, covered, covered == 1)
            )
        low, high = since + 60 * ONE, since + 60 * ONE + 36 * MINUTE
        stretches = (
            Stretch("covered", since, low), Stretch("gap", low, high, ("out_of_reach",)),
            Stretch("covered", high, end - 9 * ONE), Stretch("todo", end - 9 * ONE, end - 7 * ONE),
            Stretch("covered", end - 7 * ONE, end - 5 * ONE), Stretch("lost", end - 5 * ONE, end - 4.9 * ONE),
            Stretch("covered", end - 4.9 * ONE, end),
        )  # fmt: skip
        queries.append(QueryFigures(name, tuple(told), stretches))
    return Figures(since, end, tuple(queries))


def test_the_page_needs_nothing_else() -> None:
    text = page(sample())
    outline = Outline(text)
    assert {tag for tag, _ in outline.seen}.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert not re.search(r"https?://|url\(|@import|\bon\w+=", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert len(text) < 250_000
    assert len(outline.of_class("bar")) == 2 * (7 * 24 + 1)
    for attributes in outline.of_class("bar"):
        assert 0 <= float(attributes.get("y") or 0) <= 100
        assert 0 <= float(attributes.get("x") or 0) <= 1000


def test_names_cannot_write_html() -> None:
    text = page(
        sample(
            1,
            (
                "<script>alert(1)</script>",
                '"><b x="',
            ),
        )
    )
    Outline(text)
    assert "<script" not in text
    assert "<b x=" not in text


def test_less_than_all_is_never_called_all() -> None:
    since = datetime(2026, 11, 20, tzinfo=UTC)
    hour = Hour(since, 99_999, 100_000, 0.99999, is_covered=False)
    cells = Outline(page(Figures(since, since + ONE, (QueryFigures("q", (hour,), ()),)))).cells
    assert "100.0%" not in cells
    assert cells.count("99.9%") == 3, "the ratio of the query; ratio and coverage of the hour"


def test_a_query_without_a_post_is_drawn_too() -> None:
    since = datetime(2026, 11, 20, tzinfo=UTC)
    whole = Stretch("covered", since, since + ONE)
    quiet = QueryFigures("quiet", (Hour(since, 0, None, 1.0, is_covered=True),), (whole,), since)
    text = page(Figures(since, since + ONE, (quiet, QueryFigures("new", (), ()))))
    outline = Outline(text)
    assert re.findall("<h2>(.*?)</h2>", text) == ["quiet", "new", "How to read this"]
    assert text.count("Posts an hour, up to 0") == 2
    assert len(outline.of_class("bar")) == 2, "the keys"
    assert outline.cells[:12] == [
        "quiet",
        "before",
        "0",
        "100.0%",
        "\u2013",
        "0 of 1",
        "new",
        "\u2013",
        "0",
        "\u2013",
        "\u2013",
        "0 of 0",
    ]
    assert (text.count("Nothing is missing."), text.count("Nothing is known of this time.")) == (1, 1)
