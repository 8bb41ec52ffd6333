"""One task in depth."""

from typing import Any

from outlive.dashboards.boards import board, choice, trace_source
from outlive.dashboards.links import traces
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
    total,
)
from outlive.outcomes import OBJECTIVE

UID = "outlive-task"

ONE = 'task="$task"'
TO_TRACES = {
    "Traces with this outcome": traces(
        "outlive.task=${task:percentencode} outlive.outcome=${__field.labels.outcome}"
    )
}


def task(datasource: str) -> dict[str, Any]:
    """Build the dashboard for the data source with this uid."""
    timeout = f"max({chosen('outlive_run_timeout_seconds', ONE)})"
    glance = [
        number(
            "Availability",
            f"The share of this task's runs in the time range that did not time out, fail or get rejected; the"
            f" objective is {OBJECTIVE:.1%}.",
            "see *Runs by outcome* for which it is, and open its traces.",
            "percentunit",
            availability(ONE),
            thresholds=[(None, "red"), (OBJECTIVE - 0.009, "orange"), (OBJECTIVE, "green")],
            decimals=3,
            no_value="no runs",
        ),
        number(
            "Runs ended",
            "How many runs of this task ended in the time range.",
            "none: nothing submits it, or its name has changed.",
            "short",
            count("outlive_runs_total", ONE),
            decimals=0,
        ),
        number(
            "p99",
            "99 of 100 runs of the time range executed no longer than this.",
            "compare with the timeout beside it; the exemplars below lead to the slow ones.",
            "s",
            quantile_of_range(0.99, "outlive_run_duration_seconds", ONE),
            no_value="no runs",
        ),
        number(
            "Timeout",
            "The declared timeout of this task's runs.",
            "it should be well above p99, and below the drain timeout: `outlive check` tells.",
            "s",
            timeout,
            no_value="unknown",
        ),
        number(
            "Stuck now",
            "Runs of this task that were cancelled and haven't ended within the cancel grace.",
            "the log event `run stuck` has the stack: look for code that swallows CancelledError or blocks.",
            "short",
            total("outlive_runs_stuck", ONE),
            thresholds=[(None, "green"), (0.5, "red")],
            decimals=0,
        ),
        number(
            "Saved by the shield",
            "Cancellations of the time range that would have killed a run of this task without the shield.",
            "many are no fault: that work would have been lost.",
            "short",
            count("outlive_absorbed_cancellations_total", ONE),
            decimals=0,
        ),
    ]
    outcomes = [
        lines(
            "Runs by outcome",
            "How many runs of this task end in a second, by how they ended. Click a line for the traces behind it.",
            "timed_out: see *Duration against the timeout*. failed: read `error.type` in a trace. rejected: a limit is"
            " reached. cancelled: fine, unless you didn't expect it.",
            "ops",
            [over_time(rate("outlive_runs_total", ONE, by="outcome"), "{{outcome}}")],
            stacked=True,
            links=TO_TRACES,
        ),
        bars(
            "Outcomes",
            "How many runs of the time range ended in each way. Click a bar for the traces behind it.",
            "open the traces of the outcome that is too high.",
            "short",
            count("outlive_runs_total", ONE, by="outcome"),
            "{{outcome}}",
            links=TO_TRACES,
        ),
        lines(
            "Work that the shield saved",
            "Cancellations in a second that hit a waiting caller and would have killed the run without the shield.",
            "many are no fault. A sudden rise means that clients or a proxy cut connections.",
            "ops",
            [over_time(rate("outlive_absorbed_cancellations_total", ONE), "absorbed cancellations")],
            width=6,
        ),
    ]
    duration = [
        heat(
            "Duration",
            "How long runs execute. Each point is an exemplar: click it to get to its trace.",
            "open the highest points: the trace shows which call in the run took the time.",
            "outlive_run_duration_seconds",
            ONE,
        ),
        lines(
            "Duration against the timeout",
            "p50, p95 and p99 of the execution time, with the declared timeout.",
            "a p99 that touches the timeout means that work is cut off: make it faster, or give it and the drain longer.",
            "s",
            [*quantiles("outlive_run_duration_seconds", ONE, exemplar=True), over_time(timeout, "timeout")],
            height=9,
        ),
        lines(
            "p95 by outcome",
            "p95 of the execution time of the runs that ended in each way.",
            "failed in no time: refused by a dependency. failed after long: its own timeouts come too late.",
            "s",
            [over_time(quantile(0.95, "outlive_run_duration_seconds", ONE, by="outcome"), "{{outcome}}")],
        ),
        lines(
            "Wait for a slot",
            "p50, p95 and p99 of the time from submit to start.",
            "above a few milliseconds the limits are reached: see *Running, pending and stuck*.",
            "s",
            quantiles("outlive_run_wait_seconds", ONE),
        ),
    ]
    processes = [
        lines(
            "Running, pending and stuck",
            "Runs of this task that execute, that wait for a slot and that were cancelled in vain.",
            "pending that grows: it is submitted faster than done. stuck above 0: read the log event `run stuck`.",
            "short",
            [
                over_time(total(f"outlive_runs_{state}", ONE), state)
                for state in ("running", "pending", "stuck")
            ],
        ),
        rows(
            "Processes",
            "This task on each process, in the time range; those with the most bad runs first.",
            "one process alone that is bad: look at its event loop lag and memory in the dashboard Pipeline, or stop it.",
            [
                Column("bad runs", count("outlive_runs_total", BAD, ONE, by="job, instance"), decimals=0),
                Column("runs", count("outlive_runs_total", ONE, by="job, instance"), decimals=0),
                Column("running", total("outlive_runs_running", ONE, by="job, instance")),
                Column("pending", total("outlive_runs_pending", ONE, by="job, instance")),
                Column("stuck", total("outlive_runs_stuck", ONE, by="job, instance")),
            ],
            labels={"job": "job", "instance": "instance"},
            sort="bad runs",
            width=12,
            height=8,
        ),
    ]
    return board(
        UID,
        "Task",
        "One task in depth: how its runs end, how long they take and wait, and on which process.",
        datasource,
        {"At a glance": glance, "Outcomes": outcomes, "Duration": duration, "Processes": processes},
        variables=[
            choice("task", f"label_values({chosen('outlive_run_timeout_seconds')}, task)", several=False),
            *trace_source(),
        ],
    )
