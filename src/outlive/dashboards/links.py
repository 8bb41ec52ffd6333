"""Links to traces and to other dashboards, with what is chosen."""

import json
from urllib.parse import quote


def traces(tags: str) -> str:
    """Build a link to the traces that have these tags, in the time range and in Grafana's Explore.

    Parameters:
        tags: as Jaeger's search has them (logfmt), with variables.
    """
    source = "${traces}"
    query = {
        "refId": "A",
        "datasource": {"type": "jaeger", "uid": source},
        "queryType": "search",
        "service": "${service:percentencode}",
        "tags": tags,
        "limit": 20,
    }
    panes = {
        "outlive": {
            "datasource": source,
            "queries": [query],
            "range": {"from": "${__from}", "to": "${__to}"},
        }
    }
    # The variables must stay as they are, for Grafana to find them.
    encoded = "".join(
        part if part.startswith("${") else quote(part, safe="")
        for part in _split_variables(json.dumps(panes, separators=(",", ":")))
    )
    return f"/explore?schemaVersion=1&panes={encoded}"


def board_link(uid: str, variables: str) -> str:
    """Build a link to another dashboard, with the time range, the data source and what is chosen."""
    return (
        f"/d/{uid}?${{__url_time_range}}&${{datasource:queryparam}}&${{job:queryparam}}&${{instance:queryparam}}"
        f"&{variables}"
    )


def _split_variables(text: str) -> list[str]:
    parts: list[str] = []
    while "${" in text:
        before, _, rest = text.partition("${")
        name, _, text = rest.partition("}")
        parts += [before, f"${{{name}}}"]
    return [*parts, text]
