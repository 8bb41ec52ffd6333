"""The objective of post-disconnect work, and what drains and deploys do to it."""

from typing import Any

from outlive.dashboards.boards import board
from outlive.dashboards.panels import Column, lines, number, rows
from outlive.dashboards.promql import BAD, CHOSEN, chosen, count, over_time, ratio, total
from outlive.outcomes import OBJECTIVE

UID = "outlive-objectives"

BUDGET = f"{1 - OBJECTIVE:.4g}"
# The series of recording rules are sums over instances: there is none to choose from.
JOBS = '{job=~"$job"}'
RULES = "Needs the recording rules of otel/rules/recording.yml."
NO_RULES = "no recording rules, or no runs"

RATE = f"outlive:runs:rate5m{JOBS}"
# Sums of rates and not averages of ratios, so that each run weighs the same.
BAD_30D = (
    f"sum(sum_over_time(outlive:runs_bad:rate5m{JOBS}[30d:2m])) / (sum(sum_over_time({RATE}[30d:2m])) > 0)"
)

DRAINS = f"max by (job, instance) ({chosen('outlive_draining')}) == 1"
DRAINED = f"max by (job, instance) (max_over_time({chosen('outlive_draining')}[$__range])) == 1"


def burn(fast: str, slow: str, limit: float, severity: str) -> Any:
    """Build the panel of one pair of windows, which alert together."""
    return lines(
        f"Burn rate, {fast} and {slow}",
        f"How many times faster than sustainable the error budget is spent, over {fast} and {slow}. When both are above"
        f" {limit:g}, OutliveErrorBudgetBurn fires ({severity}). {RULES}",
        "docs/runbooks/OutliveErrorBudgetBurn.md; the dashboard Disconnect flows tells the outcome and the task.",
        "short",
        [
            over_time(f"outlive:runs_bad:ratio_rate{window}{JOBS} / {BUDGET}", f"{{{{job}}}} {window}")
            for window in (fast, slow)
        ],
        width=6,
        thresholds=[(None, "green"), (limit, "red")],
        no_value=NO_RULES,
    )


def last_look(state: str) -> str:
    """Ask for a gauge's last value before the process went, of each that drained."""
    return f"last_over_time((sum by (job, instance) (outlive_runs_{state}{{{CHOSEN}}}) and {DRAINS})[$__range:5s])"


def objectives(datasource: str) -> dict[str, Any]:
    """Build the dashboard for the data source with this uid."""
    glance = [
        number(
            "Error budget left",
            f"What is left of the {1 - OBJECTIVE:.1%} of runs that may time out, fail or get rejected in 30 days."
            f" {RULES} Prometheus must keep 30 days for it to be whole.",
            "below 20 %: release nothing risky. Below 0: the objective is missed, so work on what spends it.",
            "percentunit",
            f"1 - ({BAD_30D}) / {BUDGET}",
            thresholds=[(None, "red"), (0.2, "orange"), (0.5, "green")],
            decimals=1,
            no_value=NO_RULES,
        ),
        number(
            "Availability, 30 days",
            f"The share of the runs of 30 days that didn't time out, fail or get rejected. {RULES}",
            "below the objective: see *Who spends the budget* for the task.",
            "percentunit",
            f"1 - ({BAD_30D})",
            thresholds=[(None, "red"), (OBJECTIVE, "green")],
            decimals=3,
            no_value=NO_RULES,
        ),
        number(
            "Burn rate of this time range",
            "How many times faster than sustainable the budget was spent in the time range; 1 uses up exactly all of it"
            " in 30 days. Needs no rules.",
            "above 1 over days, or 14 over an hour: act as the runbook of OutliveErrorBudgetBurn says.",
            "short",
            f"({ratio(count('outlive_runs_total', BAD), count('outlive_runs_total'))}) / {BUDGET}",
            thresholds=[(None, "green"), (1, "orange"), (14.4, "red")],
            decimals=1,
            no_value="no runs",
        ),
        number(
            "Bad runs",
            "How many runs of the time range timed out, failed or were rejected.",
            "see *Who spends the budget* for the task, and the dashboard Disconnect flows for the traces.",
            "short",
            count("outlive_runs_total", BAD),
            thresholds=[(None, "green"), (0.5, "red")],
            decimals=0,
        ),
        number(
            "Draining now",
            "Processes that drain at this moment.",
            "longer than the drain timeout: docs/runbooks/OutliveDrainOverran.md.",
            "short",
            total("outlive_draining"),
            thresholds=[(None, "green"), (0.5, "orange")],
            decimals=0,
        ),
        number(
            "Processes that drained",
            "How many addresses were seen to drain in the time range. A drain that is over between two scrapes isn't"
            " seen: give the service a SHUTDOWN_DELAY of two scrape intervals.",
            "more than your deploys: something restarts them, see *Deploys and restarts* and the orchestrator's events.",
            "short",
            f"count({DRAINED}) or vector(0)",
            decimals=0,
        ),
    ]
    burns = [
        burn("5m", "1h", 14.4, "page"),
        burn("30m", "6h", 6, "page"),
        burn("2h", "1d", 3, "ticket"),
        burn("6h", "3d", 1, "ticket"),
    ]
    spending = [
        lines(
            "Who spends the budget",
            "The ten tasks with the most bad runs in a second.",
            "open the task from the dashboard Disconnect flows and look at its traces.",
            "ops",
            [
                over_time(
                    f"topk(10, sum by (task) (rate({chosen('outlive_runs_total', BAD)}[$__rate_interval])))",
                    "{{task}}",
                )
            ],
            width=6,
        ),
        lines(
            "Runs by job",
            f"How many runs end in a second, as recorded over 5 minutes. {RULES}",
            "a fall with steady traffic: work isn't submitted any more, or the process is gone.",
            "ops",
            [over_time(f"sum by (job) ({RATE})", "{{job}}")],
            width=6,
            no_value=NO_RULES,
        ),
        lines(
            "Tail p99 by route",
            f"The ten routes with the longest recorded p99 of the tail. {RULES}",
            "longer than the drain timeout: a deploy at that moment cuts work off.",
            "s",
            [over_time(f"topk(10, outlive:tail:p99_5m{JOBS} >= 0)", "{{route}}")],
            width=6,
            no_value=NO_RULES,
        ),
        lines(
            "Run p99 by task",
            f"The ten tasks with the longest recorded p99. {RULES}",
            "compare with the task's timeout in the dashboard Task.",
            "s",
            [over_time(f"topk(10, outlive:run_duration:p99_5m{JOBS} >= 0)", "{{task}}")],
            width=6,
            no_value=NO_RULES,
        ),
    ]
    drains = [
        lines(
            "Left to do while draining",
            "Running and pending runs of the processes that drain.",
            "a line that stays level: its runs wait for something that is gone too. It must reach 0 before the timeout.",
            "short",
            [
                over_time(
                    f"{total('outlive_runs_running', by='job, instance')}"
                    f" + {total('outlive_runs_pending', by='job, instance')} and {DRAINS}",
                    "{{instance}}",
                )
            ],
            width=8,
            no_value="no drain seen",
        ),
        lines(
            "Outcomes while draining",
            "How the runs of draining processes end, in a second.",
            "cancelled: the drain timeout is too short for them. rejected: something still submits after the close.",
            "ops",
            [
                over_time(
                    f"sum by (outcome) (rate({chosen('outlive_runs_total')}[$__rate_interval])"
                    f" and on (job, instance) {DRAINS})",
                    "{{outcome}}",
                )
            ],
            width=8,
            stacked=True,
            no_value="no drain seen",
        ),
        lines(
            "Deploys and restarts",
            "Processes by version: a deploy is where one line falls and another rises, a restart a dip.",
            "a dip without a deploy: a crash, or the orchestrator killed it; look at its memory in the dashboard Pipeline.",
            "short",
            [
                over_time(
                    f"count by (version, python) ({chosen('outlive_build_info')})",
                    "{{version}}, Python {{python}}",
                )
            ],
            width=8,
            stacked=True,
        ),
        rows(
            "What each drain left",
            "Each address that was seen to drain in the time range, and what the last scrape before its end told. A"
            " drain that is over between two scrapes isn't seen: give the service a SHUTDOWN_DELAY of two scrape"
            " intervals. A process that is gone at the end of its drain can't tell how long it took: the log event"
            " `drain ended` has the final word.",
            "anything left: a drain timeout below the longest task, or stuck runs; docs/runbooks/OutliveDrainOverran.md.",
            [
                Column("seen draining", f"sum_over_time(({DRAINS})[$__range:5s]) * 5", "s"),
                Column("running at last", last_look("running"), thresholds=[(None, "text"), (0.5, "orange")]),
                Column("pending at last", last_look("pending"), thresholds=[(None, "text"), (0.5, "orange")]),
                Column("stuck at last", last_look("stuck"), thresholds=[(None, "text"), (0.5, "red")]),
                Column(
                    "last drain took",
                    f"max by (job, instance) (max_over_time({chosen('outlive_drain_duration_seconds')}[$__range]))"
                    f" and {DRAINED}",
                    "s",
                ),
            ],
            labels={"job": "job", "instance": "instance"},
            sort="seen draining",
            no_value="no drain seen",
        ),
    ]
    return board(
        UID,
        "Objectives and drains",
        "How much of the error budget is left, how fast and by whom it is spent, and what drains and deploys left undone.",
        datasource,
        {"Objective": glance, "Burn rates": burns, "What spends it": spending, "Drains and deploys": drains},
        since="now-6h",
    )
