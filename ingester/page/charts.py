"""Small charts as inline SVG, drawn on the server; each with its words beside it, for who cannot see it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from ingester.history import Sample
from ingester.page.markup import Html, el
from ingester.page.words import UNKNOWN, span

WIDTH, HEIGHT = 240, 64
"""Of the drawing's own units; the page stretches it."""
COLUMNS = 120
SHORTEST, LONGEST = timedelta(hours=1), timedelta(hours=24)
"""What the width of a chart means: as much as there is, within these."""


@dataclass(frozen=True, slots=True)
class Series:
    """What is drawn of the samples."""

    key: str
    title: str
    of: Callable[[Sample], float | None]
    words: Callable[[float | None], str]
    """A value for people."""
    together: Callable[[Sequence[float]], float]
    """Of the samples that share a column."""


def chart(series: Series, samples: Sequence[Sample]) -> Html:
    """A figure: title and newest value, the curve, and what its axes mean."""
    values = [(sample.at, series.of(sample)) for sample in samples]
    known = [value for _, value in values if value is not None]
    newest = values[-1][1] if values else None
    if not known:
        return el(
            "figure",
            el("figcaption", el("span", series.title, class_="what"), el("strong", UNKNOWN)),
            el("p", "The first minute is not over yet.", class_="quiet empty"),
            class_="chart",
            id=f"chart-{series.key}",
        )
    reach = min(max(values[-1][0] - values[0][0], SHORTEST), LONGEST)
    most = max(known)
    description = (
        f"Over the last {span(reach.total_seconds())}: now {series.words(newest)}, "
        f"least {series.words(min(known))}, most {series.words(most)}."
    )
    return el(
        "figure",
        el("figcaption", el("span", series.title, class_="what"), el("strong", series.words(newest))),
        el(
            "svg",
            el("title", series.title, id=f"chart-{series.key}-title"),
            el("desc", description, id=f"chart-{series.key}-desc"),
            [_stretch(stretch) for stretch in _stretches(series, samples, reach, most)],
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            preserveAspectRatio="none",
            role="img",
            aria_labelledby=f"chart-{series.key}-title chart-{series.key}-desc",
        ),
        el(
            "p",
            el("span", f"{span(reach.total_seconds())} ago"),
            el("span", f"most {series.words(most)}"),
            el("span", "now"),
            class_="axis quiet",
            aria_hidden="true",
        ),
        class_="chart",
        id=f"chart-{series.key}",
    )


_Points = list[tuple[float, float]]


def _stretches(series: Series, samples: Sequence[Sample], reach: timedelta, most: float) -> list[_Points]:
    """Points without a hole between them, as drawn: what is not known leaves a hole."""
    end = samples[-1].at
    columns: dict[int, list[float]] = {}
    for sample in samples:
        value = series.of(sample)
        place = round(COLUMNS * (1 - (end - sample.at) / reach))
        if 0 <= place <= COLUMNS and value is not None:
            columns.setdefault(place, []).append(value)
    allowed = max(2.0, COLUMNS * timedelta(minutes=3) / reach)  # a minute may be skipped by a busy machine
    stretches: list[_Points] = []
    before: int | None = None
    for place in sorted(columns):
        height = (HEIGHT - 4) * (series.together(columns[place]) / most if most else 0.0)
        point = (WIDTH * place / COLUMNS, HEIGHT - 2 - height)
        if before is None or place - before > allowed:
            stretches.append([])
        stretches[-1].append(point)
        before = place
    return stretches


def _stretch(points: _Points) -> Html:
    """A filled area and the line on top of it."""
    if len(points) == 1:  # a lone minute would be a line without length
        (x, y) = points[0]
        points = [(max(0.0, x - 1), y), (min(float(WIDTH), x + 1), y)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    (left, _), (right, _) = points[0], points[-1]
    return el(
        "g",
        el("path", d=f"M{left:.1f},{HEIGHT} L{line} L{right:.1f},{HEIGHT} Z", class_="area"),
        el("polyline", points=line, class_="line"),
    )
