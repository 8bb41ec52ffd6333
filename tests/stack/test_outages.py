"""A part of the pipeline hangs, crashes or refuses under load: the service doesn't notice, and traces flow again after it.

OUTLIVE_OUTAGE_SECONDS sets for how long each is away.
"""

from typing import Any

import pytest
from programs import until
from queries import Query, queries
from story import OUTAGE, Healthy, Outage, Stack, Trouble, caught_up, quantile
from test_panels import VARIABLES, dashboard

pytestmark = pytest.mark.xdist_group("stack")

EACH = pytest.mark.parametrize(
    "name",
    ["jaeger hung", "jaeger crashed", "collector hung", "collector crashed", "collector refusing"],
)
MEBIBYTE = 1024 * 1024


def test_nothing_fires_while_all_is_well(healthy: Healthy) -> None:
    # Not for the runs that were cancelled because somebody came back, either.
    assert healthy.bad == 0
    assert healthy.firing == set()


@EACH
def test_no_request_is_slower(name: str, healthy: Healthy, outages: dict[str, Outage]) -> None:
    away = outages[name].latencies
    assert len(away) > 5 * OUTAGE
    for share in (0.5, 0.95):
        before, meanwhile = quantile(healthy.latencies, share), quantile(away, share)
        assert meanwhile < 2 * before + 0.05, (
            f"{share:.0%} of requests: {meanwhile:.3f} s, before {before:.3f} s"
        )
    # An exporter that waits on the event loop would do so for seconds.
    assert max(away) < max(healthy.latencies) + 1.0


@EACH
def test_runs_go_on_completing(name: str, outages: dict[str, Outage]) -> None:
    assert outages[name].completed > 5 * OUTAGE


def test_no_run_ends_badly_because_of_an_outage(trouble: Trouble) -> None:
    assert trouble.bad_before == 0


@EACH
def test_memory_is_bounded(name: str, outages: dict[str, Outage]) -> None:
    assert outages[name].grown < 64 * MEBIBYTE
    assert outages[name].collector < 400 * MEBIBYTE


@EACH
def test_an_outage_is_told_by_its_own_alert_and_no_other(name: str, outages: dict[str, Outage]) -> None:
    expected = "OutliveCollectorRefusing" if name == "collector refusing" else "OutliveTargetDown"
    assert outages[name].firing == {(expected, "ticket", "")}


def test_the_collector_keeps_what_jaeger_could_not_take(stack: Stack, outages: dict[str, Outage]) -> None:
    away = outages["jaeger crashed"]
    assert away.left_rooms > OUTAGE
    until(lambda: caught_up(stack, away), why="Jaeger gets what it missed while it was gone")


def panel(title: str, ref: str = "A") -> Query:
    asked = queries(dashboard("outlive-pipeline"), VARIABLES)
    (query,) = [each for each in asked if (each.title, each.ref) == (title, ref)]
    return query


def most(results: list[dict[str, Any]]) -> float:
    return max(float(value) for each in results for _, value in each["values"])


def test_the_pipeline_dashboard_shows_the_outages(stack: Stack, outages: dict[str, Outage]) -> None:
    metrics = stack.prometheus
    for name, away in outages.items():
        part, _, how = name.partition(" ")
        down = metrics.value(panel("Targets down").expr, away.end - 1)
        # The Collector is two targets: its own metrics, and those that it makes of spans.
        assert down == (0 if how == "refusing" else 2 if part == "collector" else 1), name
        if part == "jaeger":
            queued = metrics.query_range(panel("Exporter queues").expr, away.start, away.end, 1)
            assert most(queued) > 0, name
            assert metrics.value(panel("Spans lost").expr, away.end) == 0, name
    refused = metrics.value(panel("Spans refused").expr, outages["collector refusing"].end)
    assert refused > 0


def test_the_queue_is_empty_again(stack: Stack, trouble: Trouble) -> None:
    address = stack.targets["collector"][0]
    held = f'otelcol_exporter_queue_size{{instance="{address}"}}'
    results = stack.prometheus.query_range(held, trouble.moment - 10, trouble.moment, 1)
    assert min(float(value) for each in results for _, value in each["values"]) < 100
