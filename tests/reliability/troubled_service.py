"""The template's service, with troubles that no setting makes: told by variables, or asked for at /trouble."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import uvicorn

from outlive.observer import EVENTS
from outlive_service import app as template
from outlive_service.server import DrainingServer
from outlive_service.settings import Settings, load_settings

raised = 0
template_closed = template.FinalMetrics.closed


def failing(event: str) -> Callable[..., None]:
    def fail(self: template.FinalMetrics, *details: Any) -> None:
        global raised  # noqa: PLW0603 - one process, one count
        raised += 1
        if event == "closed":
            template_closed(self)
        raise RuntimeError(f"an observer of {event}")

    return fail


class FailingObserver(template.FinalMetrics):
    """The template's own observer, failing at all that there is to hear."""


for event in EVENTS:
    setattr(FailingObserver, event, failing(event))


def main() -> None:
    if os.environ.get("OBSERVER_RAISES"):
        patch.object(template, "FinalMetrics", FailingObserver).start()
    settings = load_settings(Settings)
    app = template.service(settings)
    wall_clock, wall_clock_ns = time.time, time.time_ns

    @app.post("/trouble/block")
    async def block(seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - the event loop stands still

    @app.post("/trouble/jump")
    async def jump(seconds: int) -> None:
        time.time = lambda: wall_clock() + seconds
        time.time_ns = lambda: wall_clock_ns() + seconds * 1_000_000_000

    @app.get("/trouble")
    async def tell() -> dict[str, object]:
        loop = asyncio.get_running_loop()
        return {"raised": raised, "loop": type(loop).__module__, "eager": loop.get_task_factory() is not None}

    @app.post("/trouble/eager")
    async def eager() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]

    config = uvicorn.Config(
        app,
        port=settings.port,
        log_config=None,
        ws_ping_interval=settings.ws_ping_interval,
        ws_ping_timeout=settings.ws_ping_timeout,
        loop=os.environ.get("EVENT_LOOP", "auto"),
    )
    DrainingServer(config, app.state.outlive).run()


if __name__ == "__main__":
    main()
