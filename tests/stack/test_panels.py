"""Every query of every dashboard and runbook has an answer in the real Prometheus, and asks for names that it has."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from programs import ROOT
from queries import Query, panels, queries
from scraped_names import ScrapedNames
from story import Drained, Stack, Trouble

pytestmark = pytest.mark.xdist_group("stack")

EACH = pytest.mark.parametrize(
    "uid", ["outlive-flows", "outlive-task", "outlive-connections", "outlive-objectives", "outlive-pipeline"]
)
VARIABLES = {
    "__rate_interval": "20s",
    "__interval": "2s",
    "__range": "5m",
    "__range_s": "300",
    "task": "notify_partner",
}
ALWAYS_ZERO = {
    "prometheus_rule_evaluation_failures_total": "rules that fail to evaluate, which none of ours does",
    "otelcol_receiver_failed_spans_total": "errors of the Collector itself, not of what is around it",
}
"""What no fault of the story can make anything but 0."""


def dashboard(uid: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "grafana" / "dashboards" / f"{uid}.json").read_text()))


def answered(stack: Stack, query: Query, moments: list[float]) -> bool:
    """Whether a query has a number for an answer; one that falls back to 0 must have shown another."""
    # A subquery looks at whole multiples of its step, and the story can be over between two of two minutes.
    expr = query.expr.replace("[30d:2m]", "[1h:5s]")
    if query.instant:
        found = [each["value"] for moment in moments for each in stack.prometheus.query(expr, moment)]
    else:
        series = stack.prometheus.query_range(expr, stack.started, time.time(), 2)
        found = [value for each in series for value in each["values"]]
    values = [value for _, value in found if value != "NaN"]
    if "or vector(0)" in query.expr and not any(name in query.expr for name in ALWAYS_ZERO):
        return any(float(value) != 0 for value in values)
    return bool(values)


@EACH
def test_every_query_returns_data(uid: str, stack: Stack, trouble: Trouble, drained: Drained) -> None:
    asked = queries(dashboard(uid), VARIABLES)
    assert len(asked) > 5
    moments = [trouble.moment, drained.moment]
    assert [str(query) for query in asked if not answered(stack, query, moments)] == []


@EACH
def test_every_query_with_exemplars_has_some(uid: str, stack: Stack, trouble: Trouble) -> None:
    asked = [query for query in queries(dashboard(uid), VARIABLES) if query.exemplar]
    without = [
        str(query)
        for query in asked
        if not stack.prometheus.exemplars(query.expr, trouble.start, trouble.moment)
    ]
    assert without == []


@EACH
def test_the_names_in_a_dashboard_exist(uid: str, names: ScrapedNames) -> None:
    wrong = {str(query): names.wrong(query.expr) for query in queries(dashboard(uid), VARIABLES)}
    assert {query: problems for query, problems in wrong.items() if problems} == {}


@EACH
def test_the_labels_in_a_legend_exist(uid: str, names: ScrapedNames) -> None:
    every = queries(dashboard(uid), VARIABLES)
    exprs = {(query.title, query.ref): query.expr for query in every if query.source == "panel"}
    wrong = []
    for panel in panels(dashboard(uid)):
        for target in panel.get("targets", []):
            legend = frozenset(re.findall(r"{{\s*(\w+)\s*}}", target.get("legendFormat", "")))
            problems = names.wrong(exprs[panel["title"], target["refId"]], legend)
            wrong += [f"{panel['title']}: {problem}" for problem in problems]
    assert wrong == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "runbooks").glob("*.md")), ids=lambda path: path.stem
)
def test_the_queries_in_a_runbook_exist(path: Path, stack: Stack, names: ScrapedNames) -> None:
    asked = re.findall(r"^ *```promql\n(.+?)^ *```$", path.read_text(), re.MULTILINE | re.DOTALL)
    assert asked
    for expr in asked:
        assert names.wrong(expr) == [], expr
        stack.prometheus.query(expr)


@pytest.mark.parametrize(
    ("expr", "problem"),
    [
        ("rate(outlive_runs_totl[1m])", "no metric 'outlive_runs_totl'"),
        ('outlive_runs_total{tsk="a"}', "outlive_runs_total has no label 'tsk'"),
        ("sum by (tsk) (rate(outlive_runs_total[1m]))", "no label 'tsk' to group by"),
        ("sum by (task) (outlive_runs_total) / on (tsk) outlive_runs_limit", "no label 'tsk' to match on"),
        ("sum by (outcome) (sum by (task) (outlive_runs_total))", "no label 'outcome' to group by"),
        # Its name has been `_total` since the Collector's telemetry is configured to say so.
        ("otelcol_exporter_sent_spans", "no metric 'otelcol_exporter_sent_spans'"),
        ("sum(increase(jaeger_spans_lost_total[1m])) or vector(0)", "no metric 'jaeger_spans_lost_total'"),
        ('prometheus_build_info{vrsion=~".+"}', "prometheus_build_info has no label 'vrsion'"),
    ],
)
def test_a_name_that_does_not_exist_is_found(expr: str, problem: str, names: ScrapedNames) -> None:
    assert names.wrong(expr)[0] == problem


def test_a_label_that_a_legend_cannot_have_is_found(names: ScrapedNames) -> None:
    expr = "sum by (task) (outlive_runs_total)"
    assert names.wrong(expr, frozenset({"task"})) == []
    assert names.wrong(expr, frozenset({"outcome"})) == ["no label 'outcome' is left for the legend"]
