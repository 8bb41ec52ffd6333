"""The dashboard to open first: what happens because of disconnects."""

from typing import Any

from outlive.dashboards.boards import board, trace_source
from outlive.dashboards.links import board_link, traces
from outlive.dashboards.panels import Column, bars, heat, lines, number, rows
from outlive.dashboards.promql import (
    BAD,
    availability,
    chosen,
    count,
    over_time,
    quantile,
    quantile_of_range,
    quantiles,
    rate,
    ratio,
    total,
)
from outlive.outcomes import OBJECTIVE

UID = "outlive-flows"

TO_TRACES = {"Traces with this outcome": traces("outlive.outcome=${__field.labels.outcome}")}
ALERTS = 'ALERTS{alertname=~"Outlive.+", alertstate="firing"}'
P99_OF_TIMEOUT = (
    f"{quantile(0.99, 'outlive_run_duration_seconds', by='job, task')}"
    f" / on (job, task) max by (job, task) ({chosen('outlive_run_timeout_seconds')})"
)


def share_of_limit(kind: str) -> str:
    """Ask how full the fullest process is."""
    used = total(f"outlive_runs_{kind}", by="job, instance")
    limit = chosen("outlive_runs_limit", f'kind="{kind}"')
    return f"max({ratio(used, f'sum by (job, instance) ({limit})')})"


def flows(datasource: str) -> dict[str, Any]:
    """Build the dashboard for the data source with this uid."""
    glance = [
        number(
            "Availability",
            f"The share of runs in the time range that did not time out, fail or get rejected; the objective is"
            f" {OBJECTIVE:.1%} over 30 days. Cancelled runs are what the program or its user asked for and don't count.",
            "find the outcome in *Runs by outcome*, the task in *Tasks*, and open the traces of that outcome.",
            "percentunit",
            availability(),
            thresholds=[(None, "red"), (OBJECTIVE - 0.009, "orange"), (OBJECTIVE, "green")],
            decimals=3,
            no_value="no runs",
        ),
        number(
            "Runs ended",
            "How many runs ended in the time range, whatever their outcome.",
            "none at all means no traffic, no disconnects, or nothing scraped: look at the dashboard Pipeline.",
            "short",
            count("outlive_runs_total"),
            decimals=0,
        ),
        number(
            "Bad runs",
            "How many runs timed out, failed or were rejected in the time range.",
            "click an outcome in *Outcomes* to see the traces behind it.",
            "short",
            count("outlive_runs_total", BAD),
            thresholds=[(None, "green"), (0.5, "red")],
            decimals=0,
        ),
        number(
            "Tail p99",
            "99 of 100 disconnect flows of the time range were over within this time after the disconnect.",
            "look for the slow route in *Tail p99 by route*; a drain must be longer than this.",
            "s",
            quantile_of_range(0.99, "outlive_disconnect_tail_seconds"),
            no_value="no flows",
        ),
        number(
            "Stuck now",
            "Runs that were cancelled and haven't ended within the cancel grace, at this moment.",
            "the log event `run stuck` has each one's stack: look for code that swallows CancelledError or blocks.",
            "short",
            total("outlive_runs_stuck"),
            thresholds=[(None, "green"), (0.5, "red")],
            decimals=0,
        ),
        number(
            "Alerts that fire",
            "How many of Outlive's alerts fire at the end of the time range. 0 as well where its rules aren't loaded.",
            "they are named in *Alerts*, and each has a page in docs/runbooks.",
            "short",
            f"count({ALERTS}) or vector(0)",
            thresholds=[(None, "green"), (0.5, "red")],
            decimals=0,
        ),
    ]
    outcomes = [
        lines(
            "Runs by outcome",
            "How many runs end in a second, by how they ended. Click a line to get to the traces behind it.",
            "timed_out: a dependency is slow, or a timeout too short. failed: read `error.type` in a trace."
            " rejected: a limit is reached, see *Limits in use*. cancelled: fine, unless you didn't expect it.",
            "ops",
            [over_time(rate("outlive_runs_total", by="outcome"), "{{outcome}}")],
            width=10,
            stacked=True,
            links=TO_TRACES,
        ),
        bars(
            "Outcomes",
            "How many runs of the time range ended in each way. Click a bar to get to the traces behind it.",
            "open the traces of the outcome that is too high and compare what is slow or failing in them.",
            "short",
            count("outlive_runs_total", by="outcome"),
            "{{outcome}}",
            links=TO_TRACES,
        ),
        rows(
            "Alerts",
            "Outlive's alerts that fire at the end of the time range.",
            "open docs/runbooks/<alert>.md of the most severe one first.",
            [Column("firing", ALERTS)],
            labels={"alertname": "alert", "severity": "severity", "task": "task", "instance": "instance"},
            sort="alert",
            width=8,
            height=8,
            no_value="no alert fires",
        ),
    ]
    tail = [
        heat(
            "Tail of disconnect flows",
            "The time from a disconnect to the end of the last run that it caused. Each point is an exemplar: click it"
            " to get to its trace.",
            "open the highest points: the trace shows which run, and which call in it, took the time.",
            "outlive_disconnect_tail_seconds",
        ),
        lines(
            "Tail p99 by route",
            "The ten routes with the longest p99 of the tail. The measure ends at 60 s.",
            "the dashboard Task shows which dependency the slow route's runs wait for.",
            "s",
            [
                over_time(
                    f"topk(10, {quantile(0.99, 'outlive_disconnect_tail_seconds', by='route')} >= 0)",
                    "{{route}}",
                )
            ],
            height=9,
            no_value="no flows",
        ),
    ]
    timeout = chosen("outlive_run_timeout_seconds")
    duration = [
        lines(
            "Run duration against the timeout",
            "p50, p95 and p99 of how long runs execute, with the shortest and the longest declared timeout, on a"
            " logarithmic scale. The points are exemplars: click one to get to its trace.",
            "a p99 that climbs towards a timeout times out next: see *Closest to the timeout* for the task.",
            "s",
            [
                *quantiles("outlive_run_duration_seconds", exemplar=True),
                over_time(f"min({timeout})", "shortest timeout"),
                over_time(f"max({timeout})", "longest timeout"),
            ],
            logarithmic=True,
        ),
        lines(
            "Closest to the timeout",
            "The ten tasks whose p99 takes the largest share of their timeout.",
            "above 80 %: make the work faster or bound its calls tighter; a longer timeout needs a longer drain.",
            "percentunit",
            [over_time(f"topk(10, {P99_OF_TIMEOUT} >= 0)", "{{task}}")],
            thresholds=[(None, "green"), (0.8, "red")],
            no_value="no runs",
        ),
    ]
    capacity = [
        lines(
            "Running, pending and stuck",
            "Runs that execute, that wait for a slot and that were cancelled in vain.",
            "pending that grows: work comes faster than it is done. stuck above 0: read the log event `run stuck`.",
            "short",
            [over_time(total(f"outlive_runs_{state}"), state) for state in ("running", "pending", "stuck")],
            width=8,
        ),
        lines(
            "Limits in use",
            "How full the fullest process is: running and pending runs as shares of max_running and max_pending.",
            "at 100 % of both, runs are rejected: add processes, raise the limits, or make the runs shorter.",
            "percentunit",
            [over_time(share_of_limit(kind), kind) for kind in ("running", "pending")],
            width=8,
            thresholds=[(None, "green"), (0.8, "red")],
        ),
        lines(
            "Work that the shield saved",
            "Cancellations that hit a waiting caller and would have killed the run without the shield, in a second;"
            " the ten tasks with the most.",
            "many are no fault: that work would have been lost. A sudden rise means clients or a proxy cut connections.",
            "ops",
            [over_time(f"topk(10, {rate('outlive_absorbed_cancellations_total', by='task')})", "{{task}}")],
            width=8,
        ),
    ]
    disconnects = [
        lines(
            "Disconnects by cause",
            "Connections that ended before the server had finished them, in a second.",
            "client_lost: networks or proxies cut connections. error: a handler raised, see the logs."
            " server_shutdown: a deploy; compare with the annotations.",
            "ops",
            [over_time(rate("outlive_disconnects_total", by="cause"), "{{cause}}")],
            stacked=True,
            no_value="no connections",
        ),
        lines(
            "Disconnects by route",
            "The ten routes with the most disconnects in a second.",
            "one route alone that rises points at its handler or its clients: see the dashboard Connections.",
            "ops",
            [over_time(f"topk(10, {rate('outlive_disconnects_total', by='route')})", "{{route}}")],
            no_value="no connections",
        ),
    ]
    tasks = [
        rows(
            "Tasks",
            "Each task in the time range. Click a task to see it in depth.",
            "sort by availability, or by p99 of timeout, to find the task that needs you.",
            [
                Column("runs", count("outlive_runs_total", by="task"), decimals=0),
                Column(
                    "availability",
                    availability(by="task"),
                    "percentunit",
                    [(None, "red"), (OBJECTIVE - 0.009, "orange"), (OBJECTIVE, "green")],
                    3,
                ),
                Column("p99", quantile_of_range(0.99, "outlive_run_duration_seconds", by="task"), "s"),
                Column("timeout", f"max by (task) ({timeout})", "s"),
                Column(
                    "p99 of timeout",
                    f"{quantile_of_range(0.99, 'outlive_run_duration_seconds', by='task')}"
                    f" / on (task) max by (task) ({timeout})",
                    "percentunit",
                    [(None, "green"), (0.8, "orange"), (0.95, "red")],
                    0,
                ),
                Column("running", total("outlive_runs_running", by="task")),
                Column("pending", total("outlive_runs_pending", by="task")),
                Column(
                    "stuck", total("outlive_runs_stuck", by="task"), thresholds=[(None, "text"), (0.5, "red")]
                ),
                Column(
                    "saved by the shield",
                    count("outlive_absorbed_cancellations_total", by="task"),
                    decimals=0,
                ),
            ],
            labels={"task": "task"},
            sort="runs",
            links={
                "task": {
                    "This task in depth": board_link("outlive-task", "var-task=${__value.raw:percentencode}"),
                    "Its traces": traces("outlive.task=${__value.raw:percentencode}"),
                }
            },
        ),
    ]
    return board(
        UID,
        "Disconnect flows",
        "What happens because of disconnects: how it ends, how long it takes, and what the shield saved. Open this first.",
        datasource,
        {
            "At a glance": glance,
            "Outcomes": outcomes,
            "The tail": tail,
            "Duration": duration,
            "Capacity": capacity,
            "Disconnects": disconnects,
            "Tasks": tasks,
        },
        variables=trace_source(),
    )
