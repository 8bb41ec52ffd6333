"""An app whose names are attacks."""

from typing import Any

from fastapi import FastAPI, WebSocket
from opentelemetry.sdk.trace import TracerProvider

from outlive import Outlive
from outlive.live import LivePage
from outlive.telemetry.flows import FlowBuffer

TASK = "<img src=x onerror='window.hacked=1'>\"'`${1}</td>" + "x" * 50
ROUTE = "/<script>window.hacked=1</script>/<b>bold</b>/" + "y" * 200 + "/{room}"
ERROR = "<iframe src=javascript:window.hacked=1>"


def create_app() -> FastAPI:
    flows = FlowBuffer(kept=10)
    provider = TracerProvider()
    provider.add_span_processor(flows)
    outlive = Outlive(live=LivePage(flows), tracer_provider=provider)
    app = FastAPI()
    outlive.install(app)
    error: Any = type(ERROR, (Exception,), {"__module__": "builtins"})

    @outlive.task(timeout=5.0, name=TASK)
    async def fail() -> None:
        raise error

    @app.websocket(ROUTE)
    async def room(ws: WebSocket, room: str) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            pass
        fail.submit()

    return app
