"""Holds the names in PromQL against a scrape: metrics, labels, and the values of labels whose values are fixed."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import promql_parser as promql
from prometheus_client.parser import text_string_to_metric_families

ADDED = frozenset({"job", "instance"})
"""Prometheus adds them to whatever it scrapes."""
FIXED = frozenset({"outcome", "kind", "cause", "transport"})
"""Labels of which a scrape of a service that has been used shows every value there is."""


@dataclass
class Metric:
    """The labels of a metric, and their values."""

    labels: dict[str, set[str]] = field(default_factory=dict)


def scraped(text: str) -> dict[str, Metric]:
    """The metrics of a scrape in the classic text format, by the names that their samples have."""
    metrics: dict[str, Metric] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            metric = metrics.setdefault(sample.name, Metric())
            for label, value in sample.labels.items():
                metric.labels.setdefault(label, set()).add(value)
    return metrics


def selected(expr: str) -> set[str]:
    """The names of the metrics that an expression asks for."""
    return {selector.name for selector in _selectors(promql.parse(expr))}


def wrong_names(expr: str, metrics: Mapping[str, Metric]) -> list[str]:
    """A sentence for each metric, label and fixed value in an expression that these metrics don't have.

    Raises:
        ValueError: that is no PromQL.
    """
    tree = promql.parse(expr)
    wrong = []
    for selector in _selectors(tree):
        metric = metrics.get(selector.name)
        if metric is None:
            wrong.append(f"there is no metric {selector.name}")
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name not in metric.labels and matcher.name not in ADDED:
                wrong.append(f"{selector.name} has no label {matcher.name}")
            elif matcher.name in FIXED and not re.search(r"[.*+?\[\\]", matcher.value):
                values = metric.labels[matcher.name]
                wrong += [
                    f"{selector.name} has no {matcher.name} {value!r}, but {', '.join(sorted(values))}"
                    for value in matcher.value.split("|")
                    if value not in values
                ]
    for labels, below in _groupings(tree):
        # A label that none of the metrics below has would group by nothing, or match everything with everything.
        there = ADDED.union(*(metrics[name].labels for name in below if name in metrics))
        if below and below <= metrics.keys():
            wrong += [
                f"there is no label {label} in {', '.join(sorted(below))}"
                for label in labels
                if label not in there
            ]
    return wrong


def _selectors(tree: Any) -> Iterator[Any]:
    return (node for node in _nodes(tree) if isinstance(node, promql.VectorSelector))


def _groupings(tree: Any) -> Iterator[tuple[list[str], set[str]]]:
    """Each `by (...)`, `on (...)` and so on, with the metrics below it; of `on` with those of each side."""
    for node in _nodes(tree):
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            yield node.modifier.labels, {selector.name for selector in _selectors(node.expr)}
        elif (
            isinstance(node, promql.BinaryExpr)
            and node.modifier is not None
            and node.modifier.matching is not None
        ):
            for side in (node.lhs, node.rhs):
                yield node.modifier.matching.labels, {selector.name for selector in _selectors(side)}


def _nodes(tree: Any) -> list[Any]:
    found: list[Any] = []
    promql.walk(tree, found.append)
    return found
