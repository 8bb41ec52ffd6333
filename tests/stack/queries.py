"""Every query of a dashboard as Prometheus gets it from Grafana: with all variables resolved."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

BUILT_IN = {"__rate_interval": "1m", "__interval": "15s", "__range": "15m", "__range_s": "900"}
"""What Grafana sets by itself: here as with a scrape interval of 15 s and a look at the last 15 minutes."""

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::\w+)?\})")
_LABEL_VALUES = re.compile(r"label_values\((.+),\s*(\w+)\)", re.DOTALL)


@dataclass(frozen=True)
class Query:
    """One query, ready to be sent."""

    dashboard: str
    """The dashboard's uid."""
    source: Literal["panel", "annotation", "variable"]
    title: str
    """The panel's title, the annotation's or the variable's name."""
    ref: str
    """The target's refId; of a variable the label whose values it lists."""
    expr: str
    instant: bool
    """Asked at one moment (`/api/v1/query`) rather than over a range (`/api/v1/query_range`)."""
    exemplar: bool
    """Also asked for exemplars (`/api/v1/query_exemplars`)."""

    def __str__(self) -> str:
        return f"{self.dashboard} / {self.title} / {self.ref}: {self.expr}"


def queries(dashboard: dict[str, Any], variables: Mapping[str, str | Sequence[str]]) -> list[Query]:
    """The queries of a dashboard's panels, annotations and variables, in this order.

    Parameters:
        dashboard: its JSON.
        variables: values by name, several as a sequence. Of a variable that isn't among them all values are taken;
            one that has no "All" must be among them. `BUILT_IN` can be given other values here as well.

    Raises:
        KeyError: a query uses a variable that neither the dashboard nor Grafana has, or that has no value.
    """
    values = {**BUILT_IN, **_defaults(dashboard), **variables}
    uid = dashboard["uid"]
    found = [
        Query(
            uid,
            "panel",
            panel["title"],
            target["refId"],
            resolve(target["expr"], values),
            bool(target.get("instant", False)),
            bool(target.get("exemplar", False)),
        )
        for panel in panels(dashboard)
        for target in panel.get("targets", [])
    ]
    found += [
        Query(
            uid, "annotation", annotation["name"], "Anno", resolve(annotation["expr"], values), False, False
        )
        for annotation in dashboard["annotations"]["list"]
        if annotation.get("expr")
    ]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            asked = _LABEL_VALUES.fullmatch(variable["query"])
            if asked is None:
                raise ValueError(f"{uid}: ${variable['name']} is no label_values(): {variable['query']}")
            selector, label = resolve(asked[1], values), asked[2]
            found.append(Query(uid, "variable", variable["name"], label, selector, True, False))
    return found


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels but rows, those inside of collapsed rows included."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def resolve(expr: str, values: Mapping[str, str | Sequence[str]]) -> str:
    """Put values in the place of `$name` and `${name}`, several of them as an alternative, as Grafana does."""

    def value(found: re.Match[str]) -> str:
        chosen = values[found[1] or found[2]]
        if isinstance(chosen, str):
            return chosen
        escaped = [re.sub(r"([\\^$*+?.()|{}\[\]])", r"\\\\\1", each) for each in chosen]
        return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"

    return _VARIABLE.sub(value, expr)


def _defaults(dashboard: dict[str, Any]) -> dict[str, str]:
    return {
        variable["name"]: variable["allValue"]
        for variable in dashboard["templating"]["list"]
        if variable.get("includeAll")
    }
