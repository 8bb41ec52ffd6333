"""Connections by route and transport, and the HTTP requests among them."""

from typing import Any

from outlive.dashboards.boards import board, choice
from outlive.dashboards.panels import Column, heat, lines, number, rows
from outlive.dashboards.promql import (
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

UID = "outlive-connections"

ROUTE = 'route=~"$route"'
BOTH = f'{ROUTE}, transport=~"$transport"'
REQUESTS = "outlive_http_request_duration_seconds"
BROKEN = 'status=~"5..|none"'
"""Server errors, and requests that ended without a status at all."""


def connections(datasource: str) -> dict[str, Any]:
    """Build the dashboard for the data source with this uid."""
    glance = [
        number(
            "Open now",
            "Connections that are open at this moment.",
            "0 with clients about: look at `up` in the dashboard Pipeline.",
            "short",
            total("outlive_connections", BOTH),
            decimals=0,
        ),
        number(
            "Ended by a disconnect",
            "The share of the connections of the time range that ended before the server had finished them.",
            "for WebSockets near 100 % is normal, since clients close them. For sse and http find the route below.",
            "percentunit",
            ratio(
                count("outlive_disconnects_total", BOTH),
                count("outlive_connection_duration_seconds_count", BOTH),
            ),
            decimals=1,
            no_value="none ended",
        ),
        number(
            "Tail p99",
            "99 of 100 disconnect flows of the time range were over within this time after the disconnect.",
            "the dashboard Disconnect flows leads to the traces of the slow ones.",
            "s",
            quantile_of_range(0.99, "outlive_disconnect_tail_seconds", BOTH),
            no_value="no flows",
        ),
        number(
            "Requests",
            "HTTP requests of the time range, on the chosen routes; WebSockets are not among them.",
            "none: no traffic, or nothing scraped: look at the dashboard Pipeline.",
            "short",
            count(f"{REQUESTS}_count", ROUTE),
            decimals=0,
        ),
        number(
            "Request errors",
            "The share of the HTTP requests of the time range that ended with a 5xx status or with none.",
            "find the route in *Routes*, and its errors in the logs.",
            "percentunit",
            ratio(
                f"({count(f'{REQUESTS}_count', ROUTE, BROKEN)} or vector(0))",
                count(f"{REQUESTS}_count", ROUTE),
            ),
            thresholds=[(None, "green"), (0.001, "orange"), (0.01, "red")],
            decimals=2,
            no_value="no requests",
        ),
        number(
            "Request p99",
            "99 of 100 requests of the time range had their last byte within this time.",
            "streams count to their last byte, so choose a route before you judge.",
            "s",
            quantile_of_range(0.99, REQUESTS, ROUTE),
            no_value="no requests",
        ),
    ]
    open_now = [
        lines(
            "Open connections by transport",
            "Connections that are open: WebSockets, streams (sse) and plain requests (http).",
            "a fall to 0 is a restart or a cut network; a rise without end means that they never close.",
            "short",
            [over_time(total("outlive_connections", BOTH, by="transport"), "{{transport}}")],
            width=8,
            stacked=True,
        ),
        lines(
            "Open connections by route",
            "The ten routes with the most open connections.",
            "one route alone that only grows: its handler doesn't notice that the client is gone.",
            "short",
            [over_time(f"topk(10, {total('outlive_connections', BOTH, by='route')})", "{{route}}")],
            width=8,
        ),
        lines(
            "Rejected connections by reason",
            "Connections of all routes that weren't let in, in a second: full is `max_connections`, origin a"
            " WebSocket from a page of another site.",
            "full: a flood, or more clients than one process is for; add processes, or raise the limit. origin:"
            " somebody's page, or one of yours that isn't among the allowed.",
            "ops",
            [over_time(rate("outlive_connections_rejected_total", by="reason"), "{{reason}}")],
            width=8,
            stacked=True,
        ),
        heat(
            "How long connections last",
            "The time from the start of a connection to its end.",
            "a sharp edge at one height is a limit of a proxy or a load balancer: raise it, or ping more often.",
            "outlive_connection_duration_seconds",
            BOTH,
            exemplar=False,
        ),
        lines(
            "p95 of their duration by transport",
            "95 of 100 connections end within this time.",
            "a fall for WebSockets means that they are cut: compare with *Disconnects by cause*.",
            "s",
            [
                over_time(
                    quantile(0.95, "outlive_connection_duration_seconds", BOTH, by="transport"),
                    "{{transport}}",
                )
            ],
            height=9,
        ),
    ]
    disconnects = [
        lines(
            "Disconnects by cause",
            "Connections that ended before the server had finished them, in a second.",
            "client_lost: networks or proxies cut connections. error: a handler raised, see the logs."
            " server_shutdown: a deploy; compare with the annotations.",
            "ops",
            [over_time(rate("outlive_disconnects_total", BOTH, by="cause"), "{{cause}}")],
            width=8,
            stacked=True,
        ),
        lines(
            "Disconnects by route",
            "The ten routes with the most disconnects in a second.",
            "one route alone that rises points at its handler or its clients.",
            "ops",
            [over_time(f"topk(10, {rate('outlive_disconnects_total', BOTH, by='route')})", "{{route}}")],
            width=8,
        ),
        lines(
            "Tail p99 by route",
            "The ten routes with the longest p99 from a disconnect to the end of its last run.",
            "the dashboard Disconnect flows leads to the traces of the slow ones.",
            "s",
            [
                over_time(
                    f"topk(10, {quantile(0.99, 'outlive_disconnect_tail_seconds', BOTH, by='route')} >= 0)",
                    "{{route}}",
                )
            ],
            width=8,
            no_value="no flows",
        ),
    ]
    by_route = rate(f"{REQUESTS}_count", ROUTE, by="route")
    requests = [
        lines(
            "Requests by status",
            "HTTP requests in a second by status; `none` ended before there was one.",
            "5xx: read the logs. 503 while it drains is meant. 4xx that rise: a client has changed.",
            "reqps",
            [over_time(rate(f"{REQUESTS}_count", ROUTE, by="status"), "{{status}}")],
            width=8,
            stacked=True,
        ),
        lines(
            "Request errors",
            "The share of requests that end with a 5xx status or with none, and the ten routes where it is highest.",
            "find the route's errors in the logs; if all routes rise together, look at the database.",
            "percentunit",
            [
                over_time(
                    ratio(
                        f"({rate(f'{REQUESTS}_count', ROUTE, BROKEN)} or vector(0))",
                        rate(f"{REQUESTS}_count", ROUTE),
                    ),
                    "all",
                ),
                over_time(
                    f"topk(10, ({rate(f'{REQUESTS}_count', ROUTE, BROKEN, by='route')} or {by_route} * 0)"
                    f" / ({by_route} > 0))",
                    "{{route}}",
                ),
            ],
            width=8,
            no_value="no requests",
        ),
        lines(
            "Slowest routes",
            "The ten routes with the longest p99 of the time to the last byte.",
            "streams are as long as what they stream; for the others open an exemplar in *Time to the last byte*.",
            "s",
            [over_time(f"topk(10, {quantile(0.99, REQUESTS, ROUTE, by='route')} >= 0)", "{{route}}")],
            width=8,
            no_value="no requests",
        ),
        heat(
            "Time to the last byte",
            "The time from the start of a request to the last byte of its response, without the tail. Each point is an"
            " exemplar: click it to get to its trace.",
            "open the highest points: the trace shows what the handler waited for.",
            REQUESTS,
            ROUTE,
        ),
        lines(
            "p50, p95 and p99 to the last byte",
            "Quantiles over the chosen routes.",
            "p99 alone: single slow calls, see the exemplars. All of them: the event loop or the database.",
            "s",
            quantiles(REQUESTS, ROUTE, exemplar=True),
            height=9,
        ),
    ]
    routes = [
        rows(
            "Routes",
            "Each route and transport in the time range.",
            "sort by disconnects or by tail p99 to find the route that needs you.",
            [
                Column("open", f"sum by (route, transport) ({chosen('outlive_connections', BOTH)})"),
                Column(
                    "ended",
                    count("outlive_connection_duration_seconds_count", BOTH, by="route, transport"),
                    decimals=0,
                ),
                Column(
                    "disconnects", count("outlive_disconnects_total", BOTH, by="route, transport"), decimals=0
                ),
                Column(
                    "p95 duration",
                    quantile_of_range(
                        0.95, "outlive_connection_duration_seconds", BOTH, by="route, transport"
                    ),
                    "s",
                ),
                Column(
                    "tail p99",
                    quantile_of_range(0.99, "outlive_disconnect_tail_seconds", BOTH, by="route, transport"),
                    "s",
                ),
            ],
            labels={"route": "route", "transport": "transport"},
            sort="ended",
        ),
    ]
    both = chosen("outlive_connections")
    return board(
        UID,
        "Connections",
        "WebSockets, streams and requests by route: how many, how long, how they end, how fast they are answered.",
        datasource,
        {
            "At a glance": glance,
            "Connections": open_now,
            "Disconnects": disconnects,
            "HTTP requests": requests,
            "Routes": routes,
        },
        variables=[
            choice("route", f"label_values({both}, route)"),
            choice("transport", f"label_values({both}, transport)"),
        ],
    )
