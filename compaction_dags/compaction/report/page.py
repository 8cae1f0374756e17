"""The report as one HTML page: inline SVG, light and dark, no scripts, nothing from elsewhere. Pure: figures in, text out.

Charts are drawn without words, so that they can be stretched to any width; the words around them are HTML.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from html import escape

from compaction_dags.compaction.report.figures import HOUR, LOST, UNKNOWN, Figures, Hour, QueryFigures, Stretch

_LEGEND = (
    ("covered", "covered: pages in S3 hold it"),
    ("todo", "todo: not asked for yet"),
    ("gap", "gap: will not be asked for"),
    (LOST, "lost: nothing tells of it"),
    (UNKNOWN, "unknown: the tables say nothing"),
)
_HEIGHT = {"covered": 40, "todo": 60, "gap": 100, LOST: 100, UNKNOWN: 12}
"""Of a stretch in the strip, in percent: not by colour alone."""
_LABELS = 4
_HIGHEST_RATIO = 1.5
"""That is drawn: in an hour of a few posts anything can happen."""
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #59636e; --line: #d1d9e0; --back: #fff; --card: #f6f8fa;
  --bar: #3b7fc4; --count: #b35900; --covered: #2f9e77; --todo: #e0a100; --gap: #d1361f; --lost: #b0479b }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9198a1; --line: #3d444d; --back: #0d1117;
  --card: #161b22; --bar: #5b9bd8; --count: #f0a45d; --covered: #3fb68b; --todo: #e3b341; --gap: #ff6a55; --lost: #d77fc6 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--back); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif }
h1 { font-size: 1.4rem; margin: 0 0 .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; overflow-wrap: anywhere }
h3 { font-size: .9rem; font-weight: 600; margin: 1.1rem 0 .3rem }
p { margin: .3rem 0 } .dim, figcaption, .ticks { color: var(--dim); font-size: .85rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; margin: .6rem 0 }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .5rem .7rem }
.tile b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums }
figure { margin: 0 } svg { display: block; width: 100%; background: var(--card); border-bottom: 1px solid var(--line) }
.volume { height: 9rem } .ratio { height: 4.5rem } .strip { height: 1.6rem }
.ticks { display: flex; justify-content: space-between; font-variant-numeric: tabular-nums }
.bar { fill: var(--bar) } .count { fill: none; stroke: var(--count); stroke-width: 1.5; vector-effect: non-scaling-stroke }
.one { stroke: var(--dim); stroke-dasharray: 4 4; vector-effect: non-scaling-stroke } .share { fill: var(--count) }
.covered { fill: var(--covered) } .todo { fill: var(--todo) } .gap { fill: var(--gap) } .lost { fill: var(--lost) } .unknown { fill: var(--line) }
.key { display: inline-flex; align-items: center; gap: .35rem; margin-right: 1rem }
.key svg { width: .9rem; height: .9rem; border: 0; background: none }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child, .words td, .words th { text-align: left } details { margin: .8rem 0 } summary { cursor: pointer }
"""


def page(figures: Figures) -> str:
    """The whole page."""
    span = f"{figures.since:%Y-%m-%d %H:%M} to {figures.until:%Y-%m-%d %H:%M} UTC"
    sections = "\n".join(_section(query, figures) for query in figures.queries)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tweetlake: what was collected</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>What was collected</h1>
<p class="dim">{span}, by the hour in which posts were made</p>
{_overview(figures)}
{sections}
<h2>How to read this</h2>
<p>An hour is <b>proved</b> when pages cover all of it and X has counted it. The ratio is what was collected of what X
counted. A little beside 100% is X's own drift: posts are deleted between being counted and being found, or found between
the two. What a transform drops is not among what was collected.</p>
</body>
</html>
"""


def _overview(figures: Figures) -> str:
    rows = "".join(
        f"<tr><td>{escape(query.name)}</td><td>{_known_since(query, figures)}</td>"
        f"<td>{query.collected:,}</td><td>{_percent(query.covered)}</td>"
        f"<td>{_percent(query.ratio)}</td><td>{query.proved} of {len(query.hours)}</td></tr>"
        for query in figures.queries
    )
    return _table(("query", "known since (UTC)", "collected", "covered of known", "of X's count", "hours proved"), rows)


def _section(query: QueryFigures, figures: Figures) -> str:
    most = max((max(hour.collected, hour.counted or 0) for hour in query.hours), default=0)
    fullest = max((hour.ratio for hour in query.hours if hour.ratio is not None), default=1.0)
    top = max(1.0, min(fullest, _HIGHEST_RATIO))
    ticks = _ticks(figures)
    name = escape(query.name)
    return f"""<section>
<h2>{name}</h2>
<div class="tiles">
{_tile(f"{query.collected:,}", "posts collected")}
{_tile(_percent(query.covered), "of the known time covered")}
{_tile(_percent(query.ratio), f"of X's count, in {len(query.counted_hours)} counted hours")}
{_tile(f"{query.proved} of {len(query.hours)}", "hours proved")}
</div>
<h3>Posts an hour, up to {most:,}</h3>
<figure><svg class="volume" viewBox="0 0 1000 100" preserveAspectRatio="none" role="img"
aria-label="Posts of {name} by hour; the numbers are in the table below">{_bars(query.hours, figures, most)}</svg>{ticks}
<figcaption>{_key("bar", "collected")}{_line_key("count", "counted by X")}</figcaption></figure>
<h3>Coverage</h3>
<figure><svg class="strip" viewBox="0 0 1000 100" preserveAspectRatio="none" role="img"
aria-label="What of the time of {name} is covered; the rest is in the table below">{_strip(query.stretches, figures)}</svg>
{ticks}<figcaption>{"".join(_key(kind, words) for kind, words in _LEGEND)}</figcaption></figure>
<h3>Collected of X's count, 0 to {_percent(top)}</h3>
<figure><svg class="ratio" viewBox="0 0 1000 100" preserveAspectRatio="none" role="img"
aria-label="Ratio of {name} by hour; the numbers are in the table below">{_ratios(query.hours, figures, top)}</svg>{ticks}
<figcaption>{_key("share", "an hour")}{_line_key("one", "100%")}</figcaption></figure>
{_known(query, figures)}
{_holes(query)}
<details><summary>The numbers, hour by hour</summary>
{_numbers(query.hours)}
</details>
</section>"""


def _bars(hours: Iterable[Hour], figures: Figures, most: int) -> str:
    if not most:
        return ""
    drawn = list(hours)
    bars = "".join(
        f'<rect class="bar" x="{x:.2f}" y="{_up(hour.collected, most):.2f}" width="{max(width * 0.86, 0.4):.2f}" '
        f'height="{100 - _up(hour.collected, most):.2f}"><title>{_in_words(hour)}</title></rect>'
        for hour, x, width in _placed(drawn, figures)
    )
    lines = "".join(
        f"M{x:.2f} {_up(hour.counted, most):.2f}h{width:.2f}"
        for hour, x, width in _placed(drawn, figures)
        if hour.counted is not None
    )
    return bars + (f'<path class="count" d="{lines}"/>' if lines else "")


def _ratios(hours: Iterable[Hour], figures: Figures, top: float) -> str:
    one = _up(1.0, top)
    marks = "".join(
        f'<rect class="share" x="{x:.2f}" y="{_up(min(hour.ratio, top), top):.2f}" width="{width:.2f}" height="4">'
        f"<title>{_in_words(hour)}</title></rect>"
        for hour, x, width in _placed(hours, figures)
        if hour.ratio is not None
    )
    return f'<path class="one" d="M0 {one:.2f}H1000"/>{marks}'


def _strip(stretches: Iterable[Stretch], figures: Figures) -> str:
    return "".join(
        f'<rect class="{stretch.kind}" x="{_across(stretch.start, figures):.2f}" y="{100 - _HEIGHT[stretch.kind]}" '
        f'width="{max(_across(stretch.end, figures) - _across(stretch.start, figures), 2):.2f}" '
        f'height="{_HEIGHT[stretch.kind]}"><title>{_told(stretch)}</title></rect>'
        for stretch in sorted(stretches, key=lambda stretch: _HEIGHT[stretch.kind])  # the short ones are not hidden
    )


def _placed(hours: Iterable[Hour], figures: Figures) -> Iterator[tuple[Hour, float, float]]:
    """Each hour with its place and width across the chart."""
    width = 1000 * (HOUR / (figures.until - figures.since))
    for hour in hours:
        yield hour, _across(hour.start, figures), width


def _across(moment: datetime, figures: Figures) -> float:
    return 1000 * ((moment - figures.since) / (figures.until - figures.since))


def _up(value: float, most: float) -> float:
    """The height of a value; a little room is left above."""
    return 100 - 95 * value / most


def _ticks(figures: Figures) -> str:
    step = (figures.until - figures.since) / _LABELS
    labels = "".join(f"<span>{_day_time(figures.since + number * step)}</span>" for number in range(_LABELS + 1))
    return f'<div class="ticks">{labels}</div>'


def _known_since(query: QueryFigures, figures: Figures) -> str:
    """What was fetched before the report begins is not looked at."""
    if query.known_since is None:
        return "&ndash;"
    return "before" if query.known_since <= figures.since else f"{query.known_since:%Y-%m-%d %H:%M}"


def _known(query: QueryFigures, figures: Figures) -> str:
    """Of what time nothing is known, before and after what is."""
    if not query.told:
        return '<p class="dim">Nothing is known of this time.</p>'
    first, last = query.told[0].start, query.told[-1].end
    sides = [f"before {_moment(first)}"] * (first > figures.since) + [f"after {_moment(last)}"] * (last < figures.until)
    return f'<p class="dim">Nothing is known of the time {" and ".join(sides)} (UTC).</p>' if sides else ""


def _holes(query: QueryFigures) -> str:
    """What is not covered of the time between."""
    if not query.told:
        return ""
    first, last = query.told[0].start, query.told[-1].end
    rows = "".join(
        f"<tr><td>{stretch.kind}</td><td>{_moment(stretch.start)}</td><td>{_moment(stretch.end)}</td>"
        f"<td>{_length(stretch.end - stretch.start)}</td><td>{escape(', '.join(stretch.reasons))}</td></tr>"
        for stretch in query.stretches
        if stretch.kind != "covered" and first <= stretch.start < last
    )
    if not rows:
        is_all = query.told == list(query.stretches)
        return f'<p class="dim">Nothing {"" if is_all else "else "}is missing.</p>'
    return "<h3>What is missing</h3>" + _table(("", "from (UTC)", "to (UTC)", "long", "reason"), rows, "words")


def _numbers(hours: Iterable[Hour]) -> str:
    rows = "".join(
        f"<tr><td>{_day_time(hour.start)}</td><td>{hour.collected:,}</td><td>{_number(hour.counted)}</td>"
        f"<td>{_percent(hour.ratio)}</td><td>{_percent(hour.covered)}</td><td>{'yes' if hour.is_proved else ''}</td></tr>"
        for hour in hours
    )
    return _table(("hour (UTC)", "collected", "counted", "ratio", "covered", "proved"), rows)


def _table(heads: Iterable[str], rows: str, kind: str = "") -> str:
    head = "".join(f"<th>{head}</th>" for head in heads)
    opened = f'<table class="{kind}">' if kind else "<table>"
    return f'<div class="scroll">{opened}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _tile(value: str, words: str) -> str:
    return f'<div class="tile"><b>{value}</b><span class="dim">{words}</span></div>'


def _key(kind: str, words: str) -> str:
    height = _HEIGHT.get(kind, 100) / 10
    return (
        f'<span class="key"><svg viewBox="0 0 10 10"><rect class="{kind}" y="{10 - height}" width="10" height="{height}"/>'
        f"</svg>{words}</span>"
    )


def _line_key(kind: str, words: str) -> str:
    return f'<span class="key"><svg viewBox="0 0 10 10"><path class="{kind}" d="M0 5H10"/></svg>{words}</span>'


def _in_words(hour: Hour) -> str:
    counted = "not counted" if hour.counted is None else f"{hour.counted:,} counted, {_percent(hour.ratio)}"
    return f"{_day_time(hour.start)}: {hour.collected:,} collected, {counted}; {_percent(hour.covered)} covered"


def _told(stretch: Stretch) -> str:
    why = f" ({', '.join(stretch.reasons)})" if stretch.reasons else ""
    return escape(f"{stretch.kind}{why}: {_moment(stretch.start)} to {_moment(stretch.end)}")


def _percent(share: float | None) -> str:
    """With a decimal; never 100% for what is less."""
    if share is None:
        return "&ndash;"
    return f"{min(share, 0.999) if share < 1 else share:.1%}"


def _number(value: int | None) -> str:
    return "&ndash;" if value is None else f"{value:,}"


def _day_time(moment: datetime) -> str:
    return f"{moment:%m-%d %H:%M}"


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _length(long: timedelta) -> str:
    minutes, seconds = divmod(round(long.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "less than 1 s"
