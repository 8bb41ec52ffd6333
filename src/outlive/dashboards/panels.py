"""What all dashboards are made of: queries, panels, variables, links and one colour for each outcome."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from outlive.outcomes import Outcome

TAG = "outlive"
OBJECTIVE = 0.999
"""The share of runs that shall end well, over 30 days."""
COLOURS = {
    Outcome.COMPLETED: "green",
    Outcome.TIMED_OUT: "orange",
    Outcome.CANCELLED: "blue",
    Outcome.FAILED: "red",
    Outcome.REJECTED: "purple",
}
BAD = 'outcome=~"timed_out|failed|rejected"'
"""The outcomes that count against the objective: a cancelled run is what the program or its user asked for."""
CHOSEN = 'job=~"$job", instance=~"$instance"'
DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")

Panel = Builder[model.Panel]
Target = prometheus.Dataquery
Thresholds = Sequence[tuple[float | None, str]]
"""From each value on (None: from the lowest) its colour."""


# Queries.


def chosen(metric: str, *matchers: str) -> str:
    """Select a metric of the chosen jobs and instances."""
    return f"{metric}{{{', '.join([CHOSEN, *matchers])}}}"


def rate(metric: str, *matchers: str, by: str = "") -> str:
    """Tell how often a second something is counted, summed over all but the labels in `by`."""
    return f"sum{_by(by)} (rate({chosen(metric, *matchers)}[$__rate_interval]))"


def count(metric: str, *matchers: str, by: str = "") -> str:
    """Tell how often something was counted in the time range that is looked at."""
    return f"sum{_by(by)} (increase({chosen(metric, *matchers)}[$__range]))"


def total(metric: str, *matchers: str, by: str = "") -> str:
    """Sum a gauge."""
    return f"sum{_by(by)} ({chosen(metric, *matchers)})"


def quantile(share: float, histogram: str, *matchers: str, by: str = "") -> str:
    """Estimate a quantile of a histogram over time."""
    return f"histogram_quantile({share:g}, {rate(f'{histogram}_bucket', *matchers, by=_and_le(by))})"


def quantile_of_range(share: float, histogram: str, *matchers: str, by: str = "") -> str:
    """Estimate a quantile of a histogram over the whole time range that is looked at."""
    return f"histogram_quantile({share:g}, {count(f'{histogram}_bucket', *matchers, by=_and_le(by))})"


def ratio(part: str, whole: str) -> str:
    """Divide, where there is anything to divide by."""
    return f"{part} / ({whole} > 0)"


def availability(*matchers: str, by: str = "") -> str:
    """Tell the share of the runs of the time range that didn't end badly."""
    bad = count("outlive_runs_total", BAD, *matchers, by=by)
    return f"1 - {ratio(bad, count('outlive_runs_total', *matchers, by=by))}"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def _and_le(labels: str) -> str:
    return f"{labels}, le" if labels else "le"


def over_time(expr: str, legend: str = "", *, exemplar: bool = False) -> Target:
    """Ask over the time range."""
    return Target().expr(expr).legend_format(legend or "__auto").range().exemplar(exemplar)


def at_once(expr: str, legend: str = "") -> Target:
    """Ask at the end of the time range."""
    return Target().expr(expr).legend_format(legend or "__auto").instant()


def quantiles(histogram: str, *matchers: str, exemplar: bool = False) -> list[Target]:
    """Ask for p50, p95 and p99; exemplars come with the last, since they are the same for each."""
    return [
        over_time(quantile(share, histogram, *matchers), name, exemplar=exemplar and share == 0.99)
        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    ]


# Panels.


def describe(shows: str, bad: str) -> str:
    """Put together what a panel shows, and what to do when it looks bad."""
    return f"{shows}\n\n**When it looks bad:** {bad}"


def number(
    title: str,
    shows: str,
    bad: str,
    unit: str,
    expr: str,
    *,
    thresholds: Thresholds = ((None, "text"),),
    decimals: int | None = None,
    no_value: str = "0",
    width: int = 4,
) -> Panel:
    """Build one number for the time range or the moment."""
    panel = (
        stat.Panel()
        .title(title)
        .description(describe(shows, bad))
        .datasource(DATASOURCE)
        .unit(unit)
        .no_value(no_value)
        .thresholds(_thresholds(thresholds))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .color_mode(options.BigValueColorMode.VALUE)
        .graph_mode(options.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .with_target(at_once(expr).ref_id("A"))
        .span(width)
        .height(4)
    )
    return panel if decimals is None else panel.decimals(decimals)


def lines(
    title: str,
    shows: str,
    bad: str,
    unit: str,
    targets: Sequence[Target],
    *,
    width: int = 12,
    height: int = 8,
    stacked: bool = False,
    thresholds: Thresholds = (),
    logarithmic: bool = False,
    no_value: str = "nothing yet",
    links: Mapping[str, str] | None = None,
) -> Panel:
    """Build lines over time. Outcomes have their colours; what is called a limit or a timeout is dashed."""
    legend = (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(options.LegendDisplayMode.LIST)
        .placement(options.LegendPlacement.BOTTOM)
        .calcs([])
    )
    tooltip = (
        common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING)
    )
    panel = (
        timeseries.Panel()
        .title(title)
        .description(describe(shows, bad))
        .datasource(DATASOURCE)
        .unit(unit)
        .no_value(no_value)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .legend(legend)
        .tooltip(tooltip)
        .line_width(1)
        .fill_opacity(40 if stacked else 0)
        .show_points(options.VisibilityMode.AUTO)
        .targets(_named(targets))
        .span(width)
        .height(height)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if thresholds:
        panel.thresholds(_thresholds(thresholds)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED)
        )
    if not logarithmic:
        panel.min(0)
    else:
        panel.scale_distribution(common.ScaleDistributionConfig().type(options.ScaleDistribution.LOG).log(10))
    if links:
        panel.data_links(_links(links))
    for outcome, colour in COLOURS.items():
        panel.override_by_name(outcome.value, [_colour(colour)])
    panel.override_by_regexp(
        "/(^| )(timeout|limit)$/",
        [
            _colour("text"),
            model.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 8]}),
            model.DynamicConfigValue("custom.fillOpacity", 0),
        ],
    )
    return panel


def heat(
    title: str, shows: str, bad: str, histogram: str, *matchers: str, exemplar: bool = True, width: int = 12
) -> Panel:
    """Build a histogram over time, with a point for each exemplar that leads to its trace."""
    target = over_time(rate(f"{histogram}_bucket", *matchers, by="le"), "{{le}}", exemplar=exemplar)
    return (
        heatmap.Panel()
        .title(title)
        .description(describe(shows, bad))
        .datasource(DATASOURCE)
        .unit("s")
        .no_value("nothing yet")
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .fill("dark-orange")
            .steps(64)
            .reverse(False)
        )
        .exemplars_color("rgba(255,0,255,0.7)")
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(options.HeatmapCellLayout.AUTO))
        .cell_gap(1)
        .cell_values(heatmap.CellValues().unit("ops"))
        .y_axis(heatmap.YAxisConfig().unit("s").axis_placement(options.AxisPlacement.LEFT).reverse(False))
        .show_legend()
        .with_target(target.format(PromQueryFormat.HEATMAP).ref_id("A"))
        .span(width)
        .height(9)
    )


def bars(
    title: str,
    shows: str,
    bad: str,
    unit: str,
    expr: str,
    legend: str,
    *,
    width: int = 6,
    height: int = 8,
    links: Mapping[str, str] | None = None,
) -> Panel:
    """Build one bar for each series of the time range."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(describe(shows, bad))
        .datasource(DATASOURCE)
        .unit(unit)
        .min(0)
        .decimals(0)
        .no_value("nothing yet")
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .display_mode(options.BarGaugeDisplayMode.BASIC)
        .orientation(options.VizOrientation.HORIZONTAL)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .with_target(at_once(expr, legend).ref_id("A"))
        .span(width)
        .height(height)
    )
    if links:
        panel.data_links(_links(links))
    for outcome, colour in COLOURS.items():
        panel.override_by_name(outcome.value, [_colour(colour)])
    return panel


class Column:
    """A column of a table.

    Parameters:
        name: its head.
        expr: what is asked, at the end of the time range.
        unit: of its values.
        thresholds: colours for the values.
        decimals: digits after the point.
    """

    def __init__(
        self,
        name: str,
        expr: str,
        unit: str = "short",
        thresholds: Thresholds = (),
        decimals: int | None = None,
    ) -> None:
        self.name = name
        self.expr = expr
        self.unit = unit
        self.thresholds = thresholds
        self.decimals = decimals


def rows(
    title: str,
    shows: str,
    bad: str,
    columns: Sequence[Column],
    *,
    labels: Mapping[str, str],
    sort: str,
    width: int = 24,
    height: int = 9,
    no_value: str = "nothing yet",
    links: Mapping[str, Mapping[str, str]] | None = None,
) -> Panel:
    """Build a table with a row for each set of labels.

    Parameters:
        title: of the panel.
        shows: what it shows.
        bad: what to do when it looks bad.
        columns: the values, each asked for by itself.
        labels: the labels to show, and their heads; all others are left out.
        sort: the head to sort by, the largest value first.
        width: of 24.
        height: in rows of the grid.
        no_value: said instead of an empty table.
        links: for a label's head, links by their title.
    """
    queries = [at_once(column.expr).format(PromQueryFormat.TABLE) for column in columns]
    # With one query the value's column is "Value", with several "Value #A" and so on.
    values = (
        ["Value"]
        if len(columns) == 1
        else [f"Value #{chr(ord('A') + index)}" for index in range(len(columns))]
    )
    names = {**labels, **dict(zip(values, (column.name for column in columns), strict=True))}
    panel = (
        table.Panel()
        .title(title)
        .description(describe(shows, bad))
        .datasource(DATASOURCE)
        .unit("short")
        .no_value(no_value)
        .show_header(True)
        .cell_height(options.TableCellHeight.SM)
        .sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])
        .targets(_named(queries))
        .with_transformation(model.DataTransformerConfig("merge", options={}))
        .with_transformation(
            model.DataTransformerConfig("filterFieldsByName", options={"include": {"names": list(names)}})
        )
        .with_transformation(
            model.DataTransformerConfig(
                "organize",
                options={
                    "excludeByName": {},
                    "indexByName": {name: index for index, name in enumerate(names)},
                    "renameByName": names,
                },
            )
        )
        .span(width)
        .height(height)
    )
    for column in columns:
        properties = [model.DynamicConfigValue("unit", column.unit)]
        if column.decimals is not None:
            properties.append(model.DynamicConfigValue("decimals", column.decimals))
        if column.thresholds:
            steps = [{"value": value, "color": colour} for value, colour in column.thresholds]
            properties += [
                model.DynamicConfigValue("thresholds", {"mode": "absolute", "steps": steps}),
                model.DynamicConfigValue("color", {"mode": "thresholds"}),
                model.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
            ]
        panel.override_by_name(column.name, properties)
    for name, urls in (links or {}).items():
        panel.override_by_name(
            name,
            [model.DynamicConfigValue("links", [{"title": text, "url": url} for text, url in urls.items()])],
        )
    return panel


def _named(targets: Iterable[Target]) -> list[Builder[Any]]:
    return [target.ref_id(chr(ord("A") + index)) for index, target in enumerate(targets)]


def _thresholds(steps: Thresholds) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=value, color=colour) for value, colour in steps])
    )


def _colour(colour: str) -> model.DynamicConfigValue:
    return model.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})


# Links.


def traces(tags: str) -> str:
    """Build a link to the traces that have these tags, in the time range and in Grafana's Explore.

    Parameters:
        tags: as Jaeger's search has them (logfmt), with variables.
    """
    source = "${traces}"
    query = {
        "refId": "A",
        "datasource": {"type": "jaeger", "uid": source},
        "queryType": "search",
        "service": "${service:percentencode}",
        "tags": tags,
        "limit": 20,
    }
    panes = {
        "outlive": {
            "datasource": source,
            "queries": [query],
            "range": {"from": "${__from}", "to": "${__to}"},
        }
    }
    # The variables must stay as they are, for Grafana to find them.
    encoded = "".join(
        part if part.startswith("${") else quote(part, safe="")
        for part in _split_variables(json.dumps(panes, separators=(",", ":")))
    )
    return f"/explore?schemaVersion=1&panes={encoded}"


def board_link(uid: str, variables: str) -> str:
    """Build a link to another dashboard, with the time range, the data source and what is chosen."""
    return (
        f"/d/{uid}?${{__url_time_range}}&${{datasource:queryparam}}&${{job:queryparam}}&${{instance:queryparam}}"
        f"&{variables}"
    )


def _split_variables(text: str) -> list[str]:
    parts: list[str] = []
    while "${" in text:
        before, _, rest = text.partition("${")
        name, _, text = rest.partition("}")
        parts += [before, f"${{{name}}}"]
    return [*parts, text]


def _links(links: Mapping[str, str]) -> list[Builder[model.DashboardLink]]:
    return [dashboard.DashboardLink(title).url(url) for title, url in links.items()]


# Variables and whole dashboards.


def choice(name: str, query: str, *, several: bool = True, label: str = "") -> dashboard.QueryVariable:
    """Build a variable whose values come from Prometheus: several and "All", or just one."""
    variable = (
        dashboard.QueryVariable(name)
        .label(label or name.capitalize())
        .datasource(DATASOURCE)
        .query(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(several)
        .include_all(several)
    )
    if several:
        variable.all_value(".+").current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    return variable


def words(name: str, label: str, description: str, default: str) -> dashboard.TextBoxVariable:
    """Build a variable that is typed in."""
    return (
        dashboard.TextBoxVariable(name)
        .label(label)
        .description(description)
        .default_value(default)
        .current(model.VariableOption(selected=True, text=default, value=default))
    )


def trace_source() -> list[Builder[model.VariableModel]]:
    """Build the variables that links to traces need."""
    return [
        words(
            "service", "Service", "The service's name in Jaeger, for the links to traces.", "outlive-service"
        ),
        words(
            "traces",
            "Traces",
            "The uid of Grafana's Jaeger data source, for the links to traces.",
            "outlive-jaeger",
        ),
    ]


def board(
    uid: str,
    title: str,
    description: str,
    datasource: str,
    parts: Mapping[str, Sequence[Panel]],
    *,
    variables: Sequence[Builder[model.VariableModel]] = (),
    jobs: str = "outlive_build_info",
    since: str = "now-30m",
) -> dict[str, Any]:
    """Put a dashboard together.

    Parameters:
        uid: of the dashboard, and the name of its file.
        title: of the dashboard.
        description: what it is for.
        datasource: the uid of the Prometheus data source that it starts with.
        parts: panels by the title of their row, each from left to right, 24 wide.
        variables: beside the data source, jobs and instances.
        jobs: the metric whose jobs and instances there are to choose from.
        since: the time range to start with.
    """
    result = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .refresh("10s")
        .time(since, "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Outlive")
            .type(model.DashboardLinkType.DASHBOARDS)
            .icon("external link")
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(
            dashboard.DatasourceVariable("datasource")
            .label("Data source")
            .type("prometheus")
            .current(model.VariableOption(selected=True, text=datasource, value=datasource))
        )
        .with_variable(choice("job", f"label_values({jobs}, job)"))
        .with_variable(choice("instance", f'label_values({jobs}{{job=~"$job"}}, instance)'))
    )
    for variable in variables:
        result.with_variable(variable)
    ids = iter(range(1, 1000))
    for heading, panels in parts.items():
        result.with_row(dashboard.Row(heading).id(next(ids)))
        for panel in panels:
            result.with_panel(panel)
    built: dict[str, Any] = json.loads(json.dumps(result.build(), cls=JSONEncoder))
    for panel in built["panels"]:
        panel["id"] = panel.get("id") or next(ids)
    built["annotations"] = {"list": _annotations()}
    return built


def _annotations() -> list[dict[str, Any]]:
    # The SDK's annotations have neither texts nor a step.
    build = chosen("outlive_build_info")
    return [
        _annotation(
            "Drains",
            f"max by (job, instance) (max_over_time({chosen('outlive_draining')}[$__rate_interval])) == 1",
            "orange",
            "{{instance}} drains",
        ),
        _annotation(
            "Deploys",
            f"group by (job, instance, version, python) ({build})"
            f" unless group by (job, instance, version, python) ({build} offset $__rate_interval)",
            "green",
            "{{instance}} runs version {{version}} on Python {{python}}",
        ),
        # A new process at an old address, with an old version.
        _annotation(
            "Restarts",
            f"changes({chosen('process_start_time_seconds')}[$__rate_interval]) > 0",
            "blue",
            "{{instance}} is a new process",
        ),
    ]


def _annotation(name: str, expr: str, colour: str, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "enable": True,
        "hide": False,
        "expr": expr,
        "iconColor": colour,
        "step": "15s",
        "tagKeys": "job,instance",
        "titleFormat": name.removesuffix("s"),
        "textFormat": text,
        "useValueForTime": False,
    }
