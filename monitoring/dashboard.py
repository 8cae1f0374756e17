"""Builds the Grafana dashboard, dashboard.json: `python -m monitoring.dashboard` writes it anew.

Every panel asks for something that a service which runs has; what may rightly be empty is named in MAY_BE_EMPTY, and the
tests run every query against a Prometheus that watches a real service.
"""

from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.common import VizLegendOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import BigValueGraphMode, LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FILE: Final = Path(__file__).with_name("dashboard.json")
MAY_BE_EMPTY: Final = {
    "Alerts that fire": "no alert fires while all is well",
    "What is not well": "every component is well",
    "Problems told": "nothing went wrong",
    "Gaps": "everything was covered",
    "Shares of the queries' own caps": "no query has a cap of its own",
    "Failed uploads": "none failed yet",
}
"""Panels whose queries may rightly answer with nothing, and what that means."""

_SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
_AT = 'instance=~"$instance"'
_OF = f'{_AT}, query=~"$query"'
_RATE = "$__rate_interval"

_Panel = stat.Panel | timeseries.Panel | table.Panel


def build() -> Dashboard:
    """The whole dashboard."""
    board = (
        dashboard.Dashboard("Tweetlake")
        .uid("tweetlake")
        .description("Is it collecting, how far behind, what waits, what was spent. Built by monitoring/dashboard.py.")
        .tags(["tweetlake"])
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("utc")
        .editable()
        .with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
        .with_variable(_variable("instance", "label_values(tweetlake_build_info, instance)"))
        .with_variable(_variable("query", f"label_values(tweetlake_query_poll_interval_seconds{{{_AT}}}, query)"))
    )
    number = 1
    for title, panels in _rows().items():
        board, number = board.with_row(dashboard.Row(title).id(number)), number + 1
        for panel in panels:
            board, number = board.with_panel(panel.id(number).datasource(_SOURCE)), number + 1
    return board.build()


def as_json(board: Dashboard) -> str:
    """As it is committed: sorted, so that a change shows as what it is."""
    return JSONEncoder(sort_keys=True, indent=2).encode(board) + "\n"


def _rows() -> dict[str, list[_Panel]]:
    return {
        "At a glance": _glance(),
        "Queries": _queries(),
        "X": _x(),
        "Money": _money(),
        "Spool and S3": _spool(),
        "Curated tables": _curated(),
        "The process": _process(),
    }


def _glance() -> list[_Panel]:
    return [
        _figure("Health", f"min(tweetlake_healthy{{{_AT}}})", units.NoUnit, bad_below=1).mappings(
            [_words({"1": ("well", "green"), "0": ("not well", "red")})]
        ),
        _figure("Furthest behind", f"max(tweetlake_query_lag_seconds{{{_OF}}})", units.Seconds, bad_from=900),
        _figure("Posts a minute", f"60 * sum(instance_query:tweetlake_posts_stored:rate5m{{{_OF}}})", units.Short),
        _figure("In the spool", f"sum(tweetlake_spool_bytes{{{_AT}}})", units.BytesSI),
        _figure("Most spent of a cap", f"max(tweetlake_budget_used_ratio{{{_AT}}})", units.PercentUnit, bad_from=0.8),
        _figure(
            "Newest post in tweets, age",
            "min(tweetlake_curated_newest_tweet_age_seconds:time)",
            units.Seconds,
            bad_from=4 * 3600,
        ),
        _list("Alerts that fire", 'ALERTS{alertname=~"Tweetlake.*", alertstate="firing"}'),
        _list("What is not well", f"tweetlake_component_healthy{{{_AT}}} == 0"),
    ]


def _queries() -> list[_Panel]:
    return [
        _chart("Posts a minute, by query", units.Short, {
            "{{query}}": f"60 * sum by (query) (instance_query:tweetlake_posts_stored:rate5m{{{_OF}}})"}),
        _chart("How far behind", units.Seconds, {"{{query}}": f"max by (query) (tweetlake_query_lag_seconds{{{_OF}}})"}),
        _chart("Since the last page", units.Seconds, {
            "{{query}}": f"min by (query) (instance_query:tweetlake_page_age_seconds:time{{{_OF}}})"}),
        _chart("Intervals to do", units.Short, {
            "{{query}}": f"sum by (query) (tweetlake_query_todo_intervals{{{_OF}}})"}),
        _chart("Gaps", units.Short, {
            "{{query}}: {{reason}}": f"sum by (query, reason) (tweetlake_gaps_total{{{_OF}}})"}),
        _chart("Problems told", units.Short, {
            "{{event}}": f"sum by (event) (increase(tweetlake_problems_total{{{_AT}}}[{_RATE}]))"}),
    ]  # fmt: skip


def _x() -> list[_Panel]:
    return [
        _chart("Requests by what X answered", units.RequestsPerSecond, {
            "{{meaning}}": f"sum by (meaning) (rate(tweetlake_requests_total{{{_AT}}}[{_RATE}]))"}),
        _chart("Share of failed requests", units.PercentUnit, {
            "{{instance}}": f"instance:tweetlake_requests_failed:ratio_rate5m{{{_AT}}}"}),
        _chart("Time of a request, 95th percentile", units.Seconds, {
            "{{instance}}": f"instance:tweetlake_request_duration_seconds:p95_rate5m{{{_AT}}}"}),
        _chart("Rate window", units.Short, {
            "left": f"sum(tweetlake_x_rate_remaining_requests{{{_AT}}})",
            "of": f"sum(tweetlake_x_rate_limit_requests{{{_AT}}})"}),
        _chart("Asking waits", units.Short, {"{{reason}}": f"max by (reason) (tweetlake_x_paused{{{_AT}}})"}),
        _chart("Lease", units.Short, {
            "{{instance}} has it": f"tweetlake_lease_held{{{_AT}}}",
            "{{instance}} waits": f"tweetlake_lease_waiting{{{_AT}}}"}),
    ]  # fmt: skip


def _money() -> list[_Panel]:
    return [
        _chart("Booked this day and month", units.Dollars, {
            "{{period}}": f"max by (period) (tweetlake_budget_booked_usd{{{_AT}}})",
            "cap a {{period}}": f"max by (period) (tweetlake_budget_limit_usd{{{_AT}}})"}),
        _chart("Spent in an hour, by query", units.Dollars, {
            "{{query}}": f"sum by (query) (increase(tweetlake_spent_usd_total{{{_OF}}}[1h]))"}),
        _chart("Booked this month, by query", units.Dollars, {
            "{{query}}": f'max by (query) (tweetlake_query_booked_usd{{{_OF}, period="month"}})'}),
        _chart("Posts booked today", units.Short, {
            "booked": f'max(tweetlake_budget_booked_posts{{{_AT}, period="day"}})'}),
        _chart("Shares of the caps", units.PercentUnit, {
            "{{cap}}": f"max by (cap) (tweetlake_budget_used_ratio{{{_AT}}})"}),
        _chart("Shares of the queries' own caps", units.PercentUnit, {
            "{{query}} {{cap}}": f"max by (query, cap) (tweetlake_query_budget_used_ratio{{{_OF}}})"}),
    ]  # fmt: skip


def _spool() -> list[_Panel]:
    return [
        _chart("Spool", units.BytesSI, {
            "in it": f"sum(tweetlake_spool_bytes{{{_AT}}})", "limit": f"sum(tweetlake_spool_limit_bytes{{{_AT}}})"}),
        _chart("Its disk", units.BytesSI, {
            "free": f"min(tweetlake_spool_free_bytes{{{_AT}}})",
            "collecting stops at": f"max(tweetlake_spool_min_free_bytes{{{_AT}}})"}),
        _chart("Files", units.Short, {
            "wait to be shipped": f"sum(tweetlake_spool_waiting_files{{{_AT}}})",
            "in quarantine": f"sum(tweetlake_spool_quarantine_files{{{_AT}}})"}),
        _chart("Shipped to S3", units.BytesPerSecondSI, {
            "{{instance}}": f"sum by (instance) (rate(tweetlake_shipped_bytes_total{{{_AT}}}[{_RATE}]))"}),
        _chart("Since S3 took something", units.Seconds, {
            "{{instance}}": f"time() - tweetlake_s3_last_shipped_timestamp_seconds{{{_AT}}}"}),
        _chart("Failed uploads", units.Short, {
            "{{instance}}": f"sum by (instance) (increase(tweetlake_upload_failures_total{{{_AT}}}[{_RATE}]) > 0)"}),
    ]  # fmt: skip


def _curated() -> list[_Panel]:
    return [
        _chart("Completeness beside X's count", units.PercentUnit, {
            "{{query}}": 'query:tweetlake_completeness:ratio{query=~"$query"}'}),
        _chart("Raw hours that wait", units.Short, {"stale": "tweetlake_curated_stale_partitions"}),
        _chart("Posts of the recent 24 raw hours", units.Short, {
            "in the pages": "tweetlake_compaction_recent_rows",
            "repeated": "tweetlake_compaction_recent_duplicates",
            "dropped by the transform": "tweetlake_compaction_recent_filtered",
            "rejects": "tweetlake_compaction_recent_rejects"}),
        _chart("Keys without a column", units.Short, {"keys": "tweetlake_compaction_recent_unknown_keys"}),
        _chart("Bytes of the tables", units.BytesSI, {"{{table}}": "tweetlake_curated_table_bytes"}),
        _chart("Files of the tables", units.Short, {"{{table}}": "tweetlake_curated_table_files"}),
    ]  # fmt: skip


def _process() -> list[_Panel]:
    at = f'job="tweetlake", {_AT}'
    return [
        _chart("Memory", units.BytesIEC, {"{{instance}}": f"process_resident_memory_bytes{{{at}}}"}),
        _chart("CPU", units.PercentUnit, {"{{instance}}": f"rate(process_cpu_seconds_total{{{at}}}[{_RATE}])"}),
        _chart("Clock beside X's", units.Seconds, {"{{instance}}": f"tweetlake_clock_skew_seconds{{{_AT}}}"}),
    ]


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .datasource(_SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all", selected=True))
    )


def _figure(
    title: str, expr: str, unit: str, *, bad_from: float | None = None, bad_below: float | None = None
) -> stat.Panel:
    steps = [Threshold(color="green", value=None)]
    if bad_from is not None:
        steps.append(Threshold(color="red", value=bad_from))
    if bad_below is not None:
        steps = [Threshold(color="red", value=None), Threshold(color="green", value=bad_below)]
    return (
        stat.Panel()
        .title(title)
        .unit(unit)
        .graph_mode(BigValueGraphMode.AREA)
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .height(4)
        .span(4)
        .with_target(_ask(expr, title))
    )


def _chart(title: str, unit: str, lines: dict[str, str]) -> timeseries.Panel:
    """Lines by their legend."""
    panel = (
        timeseries.Panel()
        .title(title)
        .unit(unit)
        .legend(
            VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
        )
        .fill_opacity(10)
        .height(8)
        .span(8)
    )
    if title in MAY_BE_EMPTY:
        panel = panel.no_value(MAY_BE_EMPTY[title])
    for number, (legend, expr) in enumerate(lines.items()):
        panel = panel.with_target(_ask(expr, legend, "ABCD"[number]))
    return panel


def _list(title: str, expr: str) -> table.Panel:
    return (
        table.Panel()
        .title(title)
        .no_value(MAY_BE_EMPTY[title])
        .height(6)
        .span(12)
        .with_target(_ask(expr, "").instant().format(PromQueryFormat.TABLE))
    )


def _ask(expr: str, legend: str, ref: str = "A") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(ref).datasource(_SOURCE)


def _words(values: dict[str, tuple[str, str]]) -> ValueMap:
    results = {value: ValueMappingResult(text=text, color=color) for value, (text, color) in values.items()}
    return ValueMap(options=results)


if __name__ == "__main__":
    FILE.write_text(as_json(build()), "utf-8")
