"""Panels: numbers, lines, heatmaps, bars and tables, with one colour for each outcome."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from outlive.dashboards.promql import Target, at_once, over_time, rate
from outlive.outcomes import Outcome

COLOURS = {
    Outcome.COMPLETED: "green",
    Outcome.TIMED_OUT: "orange",
    Outcome.CANCELLED: "blue",
    Outcome.FAILED: "red",
    Outcome.REJECTED: "purple",
}
DATASOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")

Panel = Builder[model.Panel]
Thresholds = Sequence[tuple[float | None, str]]
"""From each value on (None: from the lowest) its colour."""


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


def _links(links: Mapping[str, str]) -> list[Builder[model.DashboardLink]]:
    return [dashboard.DashboardLink(title).url(url) for title, url in links.items()]
