"""The live page: two JSON endpoints, a feed, and the files of the page that reads them."""

import json
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from outlive.errors import DeclarationError
from outlive.live.feed import Feed
from outlive.live.history import INTERVAL, SPAN, History
from outlive.live.site import HEADERS, redirect, site
from outlive.live.state import heading, series
from outlive.observer import Limits, Observer
from outlive.outcomes import OBJECTIVE
from outlive.pages import readable
from outlive.runner import Runner
from outlive.tasks import check_limit

MOST_FLOWS = 200
"""So many flows a viewer is told of at first, and the most that a tick tells."""


class Flows(Protocol):
    """Where the last disconnect flows are kept: `outlive.telemetry.flows.FlowBuffer`."""

    @property
    def finished(self) -> int:
        """How many flows have ended so far, also those that are kept no more."""

    def latest(self, most: int) -> list[dict[str, Any]]:
        """Up to `most` flows, newest first."""

    def find(self, trace_id: str) -> dict[str, Any] | None:
        """The flow with this trace id, if it is kept."""


class NoFlows:
    """No disconnect flows, for an app without the tracing that they are made of."""

    finished = 0

    def latest(self, most: int) -> list[dict[str, Any]]:
        """None."""
        return []

    def find(self, trace_id: str) -> dict[str, Any] | None:
        """None."""
        return None


class LivePage(Observer):
    """Shows the shielded work and the disconnect flows of this process in a browser: `Outlive(live=LivePage(...))`.

    Under `path` are the page, `state` and `flows` as JSON, and `feed` as server-sent events. Whoever may read
    `/metrics` may read them. Nothing is done while nobody looks, but a sample of five numbers every 5 seconds.

    Parameters:
        flows: where the last disconnect flows are kept; without it there are numbers only.
        path: where the page is; it begins and ends with a slash.
        viewers: how many may look at once.
        jaeger_ui_url: the address that browsers have for Jaeger, for a link to each trace.

    Raises:
        DeclarationError: the path or the number of viewers cannot work.

    Example:
        >>> from outlive.telemetry.flows import FlowBuffer
        >>> flows = FlowBuffer(kept=200)  # a span processor, for the tracer provider too
        >>> LivePage(flows).path
        '/outlive/'
    """

    def __init__(
        self,
        flows: Flows | None = None,
        *,
        path: str = "/outlive/",
        viewers: int = 20,
        jaeger_ui_url: str | None = None,
    ) -> None:
        if len(path) < 3 or not path.startswith("/") or not path.endswith("/"):
            raise DeclarationError(f"the live page's path is one such as '/outlive/', not {path!r}")
        check_limit("viewers", viewers, 1)
        self.path = path
        self._flows: Flows = flows or NoFlows()
        self._told = 0
        self._viewers = viewers
        self._jaeger_ui_url = jaeger_ui_url
        self._runner: Runner
        self._registry: CollectorRegistry
        self._history: History
        self._feed: Feed

    def attach(
        self, runner: Runner, registry: CollectorRegistry, begin_drain: Callable[[], None], patience: float
    ) -> dict[str, ASGIApp]:
        """Look at this runner and its metrics from now on. Gives the page's applications by path.

        Parameters:
            runner: what is looked at.
            registry: where its metrics are.
            begin_drain: called when the server is found to stop.
            patience: seconds for which a stop may wait for viewers at the most.

        Raises:
            DeclarationError: it looks at another one already.
        """
        if hasattr(self, "_runner"):
            raise DeclarationError("this live page shows another Outlive; make one for each")
        self._runner = runner
        self._registry = registry
        self._history = History(lambda: runner.counts.outcomes)
        self._feed = Feed(
            runner, begin_drain, self._looked_at, self._hello, self._news, self._viewers, patience
        )
        pages = {
            **dict(site()),
            "state": self._state_page,
            "flows": self._flows_page,
        }
        return {
            **{self.path + name: readable(respond) for name, respond in pages.items()},
            self.path.rstrip("/"): readable(redirect(self.path)),
            self.path + "feed": self._feed,
        }

    @property
    def held(self) -> float:
        """Seconds of the stop that viewers have taken: they belong to the drain's budget."""
        return self._feed.held

    def opened(self, limits: Limits) -> None:
        self._feed.opened()
        self._history.start()

    def drain_started(self) -> None:
        self._feed.hurry()

    def drain_ended(self, duration: float, cancelled: int, stuck: list[str]) -> None:
        self._feed.hurry()

    def closed(self) -> None:
        self._history.stop()
        self._feed.hurry()

    async def _state(self) -> dict[str, Any]:
        told = heading(self._runner)
        tasks = [declared.details for declared in self._runner.declared]
        # In a thread, as for /metrics: thousands of series must not hold up the event loop.
        return told | await run_in_threadpool(series, self._registry, tasks)

    def _looked_at(self) -> None:
        self._told = self._flows.finished

    async def _hello(self) -> bytes:
        return encoded(
            {
                "version": version("outlive"),
                "objective": OBJECTIVE,
                "interval": INTERVAL,
                "span": SPAN,
                "jaeger_ui_url": self._jaeger_ui_url,
                "history": self._history.samples,
                "flows": self._flows.latest(MOST_FLOWS),
                **await self._state(),
            }
        )

    async def _news(self) -> bytes:
        finished = self._flows.finished
        new, self._told = min(MOST_FLOWS, finished - self._told), finished
        return encoded({"flows": self._flows.latest(new), **await self._state()})

    async def _state_page(self, _request: Request) -> Response:
        return _json(await self._state() | {"history": self._history.samples})

    async def _flows_page(self, request: Request) -> Response:
        trace_id = request.query_params.get("trace_id")
        if trace_id is not None:
            found = self._flows.find(trace_id)
            return _json({"flows": [found] if found else []})
        most = request.query_params.get("most", "20")
        number = int(most) if most.isascii() and most.isdigit() and len(most) < 6 else 20
        return _json({"flows": self._flows.latest(number)})


def encoded(data: Any) -> bytes:
    """JSON in one line."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()


def _json(data: Any) -> Response:
    headers = {**HEADERS, "cache-control": "no-store", "content-type": "application/json"}
    return Response(encoded(data), headers=headers)
