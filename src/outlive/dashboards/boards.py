"""Whole dashboards: variables, rows of panels, annotations and the way from one to the other."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from outlive.dashboards.panels import DATASOURCE, Panel
from outlive.dashboards.promql import chosen

TAG = "outlive"


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
