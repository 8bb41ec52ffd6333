"""What the live page knows of a process at one moment, read from where `/metrics` reads it."""

import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from outlive.observer import TaskDetails
from outlive.outcomes import Cause, Outcome
from outlive.runner import Runner

RUNS = "outlive_runs_total"
DURATIONS = "outlive_run_duration_seconds_bucket"
TASK_NUMBERS = {
    "outlive_runs_running": "running",
    "outlive_runs_pending": "pending",
    "outlive_runs_stuck": "stuck",
    "outlive_absorbed_cancellations_total": "absorbed",
}
CONNECTIONS = "outlive_connections"
DISCONNECTS = "outlive_disconnects_total"
TAIL = "outlive_disconnect_tail_seconds_bucket"
READ = (RUNS, DURATIONS, *TASK_NUMBERS, CONNECTIONS, DISCONNECTS, TAIL)


def heading(runner: Runner) -> dict[str, Any]:
    """What the runner itself tells: its state, its numbers and their limits. To be called on the event loop."""
    counts = runner.counts
    return {
        "at": time.time(),
        "state": runner.state,
        "submitted": counts.submitted,
        "outcomes": counts.outcomes,
        "running": counts.running,
        "pending": counts.pending,
        "stuck": counts.stuck,
        "limits": {"running": runner.limits.max_running, "pending": runner.limits.max_pending},
    }


def series(registry: CollectorRegistry, tasks: Iterable[TaskDetails]) -> dict[str, Any]:
    """What the metrics tell, by task and by route. From any thread."""
    by_task = {task.name: _task(task) for task in tasks}
    by_route: dict[tuple[str, str], dict[str, Any]] = {}
    for family in registry.restricted_registry(READ).collect():
        _add(family, by_task, by_route)
    bounds: list[float] = []
    for entry in by_task.values():
        bounds = bounds or _bounds(entry["durations"])
        entry["durations"] = _each(entry["durations"])
    for entry in by_route.values():
        bounds = bounds or _bounds(entry["tail"])
        entry["tail"] = _each(entry["tail"])
    return {"bounds": bounds, "tasks": list(by_task.values()), "routes": list(by_route.values())}


def _task(task: TaskDetails) -> dict[str, Any]:
    return {
        "name": task.name,
        "timeout": task.timeout,
        **dict.fromkeys(TASK_NUMBERS.values(), 0),
        "outcomes": dict.fromkeys(Outcome, 0),
        "durations": {},
    }


def _route(route: str, transport: str) -> dict[str, Any]:
    return {
        "route": route,
        "transport": transport,
        "open": 0,
        "disconnects": dict.fromkeys(Cause, 0),
        "tail": {},
    }


def _add(
    family: Metric, by_task: dict[str, dict[str, Any]], by_route: dict[tuple[str, str], dict[str, Any]]
) -> None:
    for sample in family.samples:
        labels, value = sample.labels, int(sample.value)
        if "task" in labels:
            task = by_task.get(labels["task"])
            if task is None:  # another Outlive's, on the same registry
                continue
            if sample.name == RUNS:
                task["outcomes"][labels["outcome"]] = value
            elif sample.name == DURATIONS:
                task["durations"][labels["le"]] = task["durations"].get(labels["le"], 0) + value
            else:
                task[TASK_NUMBERS[sample.name]] = value
        else:
            key = (labels["route"], labels["transport"])
            route = by_route.setdefault(key, _route(*key))
            if sample.name == CONNECTIONS:
                route["open"] = value
            elif sample.name == DISCONNECTS:
                route["disconnects"][labels["cause"]] = value
            else:
                route["tail"][labels["le"]] = value


def _bounds(cumulative: dict[str, int]) -> list[float]:
    # The last one is infinite, which JSON doesn't have and nobody needs to be told.
    return [float(bound) for bound in cumulative][:-1]


def _each(cumulative: dict[str, int]) -> list[int]:
    counts = list(cumulative.values())
    return [count - before for before, count in zip([0, *counts], counts, strict=False)]
