"""Which metric and label names a PromQL expression uses, and whether a Prometheus has ever scraped them."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from programs import Prometheus


class ScrapedNames:
    """Checks expressions against what a Prometheus holds, rules and the Collector's metrics included.

    Parameters:
        prometheus: parses the expressions too, so what is checked is what it understands.
        start, end: when the series were there, in seconds since the epoch.
    """

    def __init__(self, prometheus: Prometheus, start: float, end: float) -> None:
        self._prometheus = prometheus
        self._range = {"start": start, "end": end}
        self._labels = cache(self._labels_of)

    def _labels_of(self, metric: str) -> frozenset[str]:
        matcher = {"match[]": f'{{__name__="{metric}"}}'}
        return frozenset(
            label for each in self._prometheus.get("series", **matcher, **self._range) for label in each
        )

    def wrong(self, expr: str, legend: frozenset[str] = frozenset()) -> list[str]:
        """What in the expression isn't there; empty if all is.

        Parameters:
            expr: PromQL without variables.
            legend: labels that the result must have.
        """
        problems: list[str] = []
        left = self._walk(self._prometheus.get("parse_query", query=expr), problems)
        problems += [f"no label {label!r} is left for the legend" for label in sorted(legend - left)]
        return problems

    def _walk(self, node: dict[str, Any], problems: list[str]) -> frozenset[str]:
        """Note what is wrong below a node, and give the labels that its result can have."""
        match node["type"]:
            case "vectorSelector" | "matrixSelector":
                return self._selector(node, problems)
            case "aggregation":
                return self._aggregation(node, problems)
            case "binaryExpr":
                left, right = self._walk(node["lhs"], problems), self._walk(node["rhs"], problems)
                matching = node["matching"] or {}
                if matching.get("on"):
                    missing = frozenset(matching["labels"]) - (left & right)
                    problems += [f"no label {label!r} to match on" for label in sorted(missing)]
                return left | right
            case "call":
                return self._call(node, problems)
            case "subquery" | "parenExpr" | "unaryExpr":
                return self._walk(node["expr"], problems)
            case _:
                return frozenset()

    def _aggregation(self, node: dict[str, Any], problems: list[str]) -> frozenset[str]:
        inner = self._walk(node["expr"], problems)
        if node["param"]:
            self._walk(node["param"], problems)
        grouping = frozenset(node["grouping"])
        if node["without"]:
            return inner - grouping
        problems += [f"no label {label!r} to group by" for label in sorted(grouping - inner)]
        # These keep whole series; the others only what they group by.
        return inner if node["op"] in ("topk", "bottomk", "limitk", "limit_ratio") else grouping

    def _call(self, node: dict[str, Any], problems: list[str]) -> frozenset[str]:
        name = node["func"]["name"]
        labels = frozenset[str]().union(*(self._walk(argument, problems) for argument in node["args"]))
        if name in ("label_replace", "label_join"):
            return labels | {node["args"][1]["val"]}
        if name in ("absent", "absent_over_time"):
            return frozenset(_matched(node["args"][0]))
        return labels - {"le"} if name == "histogram_quantile" else labels

    def _selector(self, node: dict[str, Any], problems: list[str]) -> frozenset[str]:
        metric = node["name"]
        labels = self._labels(metric)
        if not labels:
            problems.append(f"no metric {metric!r}")
            return frozenset(_matched(node))
        problems += [f"{metric} has no label {label!r}" for label in _matched(node) if label not in labels]
        return labels


def _matched(selector: dict[str, Any]) -> Iterator[str]:
    return (matcher["name"] for matcher in selector["matchers"] if matcher["name"] != "__name__")
