"""Figures as people read them: spans, moments, money, bytes, counts. Pure."""

from datetime import datetime

from ingester.page.markup import Child, Html, el

UNKNOWN = "–"  # noqa: RUF001 - a dash for what is not known
_SPANS = ((86_400.0, "d", 3_600.0, "h"), (3_600.0, "h", 60.0, "min"), (60.0, "min", 1.0, "s"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def span(seconds: float | None) -> str:
    """`12 s`, `3 min 5 s`, `2 h 10 min`, `4 d 1 h`."""
    if seconds is None:
        return UNKNOWN
    seconds = max(0.0, seconds)
    for size, unit, small, small_unit in _SPANS:
        if round(seconds) >= size:
            whole, rest = divmod(round(seconds / small), round(size / small))
            return f"{whole:,} {unit}" + (f" {rest} {small_unit}" if rest and whole < 10 else "")
    return f"{seconds:.0f} s"


def ago(moment: str | None, now: datetime, *, never: str = "not yet") -> Child:
    """`12 s ago` or `in 3 min`, with the exact moment behind it. `moment` is ISO 8601."""
    if moment is None:
        return never
    seconds = (now - datetime.fromisoformat(moment)).total_seconds()
    words = "now" if round(seconds) == 0 else f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"
    return exactly(moment, words)


def exactly(moment: str, words: str) -> Html:
    """Words for a moment that stands behind them, in UTC."""
    at = datetime.fromisoformat(moment)
    return el("time", words, datetime=moment, title=f"{at:%Y-%m-%d %H:%M:%S} UTC")


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 file`, `2 files`, `10,000 files`."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def size(number: float | None) -> str:
    """`512 bytes`, `1.4 MB`."""
    if number is None:
        return UNKNOWN
    for unit, name in _BYTES:
        if number >= unit:
            return f"{number / unit:.1f} {name}" if number < 100 * unit else f"{number / unit:,.0f} {name}"
    return f"{number:.0f} bytes"


def usd(dollars: float) -> str:
    """`$0.0050` below a cent's precision, else `$1,234.50`."""
    return f"${dollars:,.4f}" if 0 < dollars < 0.01 else f"${dollars:,.2f}"


def percent(fraction: float) -> str:
    """Whole per cent, rounded down: 100 % is said only when it is all."""
    return f"{int(fraction * 100 + 1e-9)} %"
