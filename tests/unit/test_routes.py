"""Routes: a connection goes by its path template, never by what a client chose to ask for."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from outlive import Outlive


@pytest.fixture
def app(outlive: Outlive) -> FastAPI:
    app = FastAPI()
    outlive.install(app)
    return app


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


def answer() -> str:
    return "answer"


async def plain(request: Request) -> Response:
    return PlainTextResponse("answer")


def routes(registry: CollectorRegistry) -> set[str]:
    return {
        sample.labels["route"]
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "outlive_connection_duration_seconds_count"
    }


@pytest.mark.parametrize(
    ("declared", "path", "template"),
    [
        ("/", "/", "/"),
        ("/items", "/items", "/items"),
        ("/items/{item}", "/items/1", "/items/{item}"),
        ("/items/{item:int}", "/items/1", "/items/{item}"),
        ("/files/{name:path}", "/files/a/b/c", "/files/{name}"),
        ("/items/{item}.{kind}", "/items/a.csv", "/items/{item}.{kind}"),
    ],
)
def test_the_template_of_a_route(
    app: FastAPI, client: TestClient, registry: CollectorRegistry, declared: str, path: str, template: str
) -> None:
    app.get(declared)(answer)
    assert client.get(path).is_success
    assert routes(registry) == {template}


def test_a_route_of_starlettes_own(app: FastAPI, client: TestClient, registry: CollectorRegistry) -> None:
    app.router.routes.append(Route("/items/{item:int}", plain))
    assert client.get("/items/1").is_success
    assert client.get("/docs").is_success
    assert routes(registry) == {"/items/{item}", "/docs"}


def test_two_routes_of_starlettes_own_with_one_endpoint(
    app: FastAPI, client: TestClient, registry: CollectorRegistry
) -> None:
    app.router.routes += [Route("/items/{item}", plain), Route("/users/{user}", plain)]
    assert client.get("/users/1").is_success
    assert routes(registry) == {"/users/{user}"}


def test_a_router_with_a_prefix(app: FastAPI, client: TestClient, registry: CollectorRegistry) -> None:
    router = APIRouter(prefix="/rooms")
    router.get("/{room}")(answer)
    app.include_router(router, prefix="/v1")
    assert client.get("/v1/rooms/a").is_success
    assert routes(registry) == {"/v1/rooms/{room}"}


def test_a_router_in_a_router_with_a_parameter_in_its_prefix(
    app: FastAPI, client: TestClient, registry: CollectorRegistry
) -> None:
    inner, outer = APIRouter(), APIRouter()
    inner.get("/rooms/{room}")(answer)
    outer.include_router(inner, prefix="/{tenant}")
    app.include_router(outer, prefix="/v1")
    assert client.get("/v1/acme/rooms/a").is_success
    assert routes(registry) == {"/v1/{tenant}/rooms/{room}"}


def test_one_router_included_twice(app: FastAPI, client: TestClient, registry: CollectorRegistry) -> None:
    router = APIRouter()
    router.get("/items/{item}")(answer)
    app.include_router(router, prefix="/v1")
    app.include_router(router, prefix="/v2")
    assert client.get("/v2/items/1").is_success
    assert routes(registry) == {"/v2/items/{item}"}
    assert client.get("/v1/items/1").is_success
    assert routes(registry) == {"/v1/items/{item}", "/v2/items/{item}"}


def test_one_router_in_two_apps(app: FastAPI, client: TestClient, registry: CollectorRegistry) -> None:
    router = APIRouter()
    router.get("/items/{item}")(answer)
    app.include_router(router, prefix="/v1")
    admin = FastAPI()
    admin.include_router(router, prefix="/all")
    app.mount("/admin", admin)
    assert client.get("/v1/items/1").is_success
    assert client.get("/admin/all/items/1").is_success
    assert routes(registry) == {"/v1/items/{item}", "/admin/all/items/{item}"}


def test_a_router_included_after_the_first_request(
    app: FastAPI, client: TestClient, registry: CollectorRegistry
) -> None:
    router = APIRouter()
    router.get("/items/{item}")(answer)
    app.include_router(router, prefix="/v1")
    assert client.get("/v1/items/1").is_success
    app.include_router(router, prefix="/v2")
    assert client.get("/v2/items/1").is_success
    assert routes(registry) == {"/v1/items/{item}", "/v2/items/{item}"}


@pytest.mark.parametrize("kind", [FastAPI, Starlette])
def test_a_mounted_app(
    app: FastAPI, client: TestClient, registry: CollectorRegistry, kind: type[Starlette]
) -> None:
    admin = kind()
    admin.router.routes.append(Route("/users/{user}", plain))
    app.mount("/admin", admin)
    assert client.get("/admin/users/1").is_success
    assert routes(registry) == {"/admin/users/{user}"}


def test_a_mounted_app_with_a_parameter_in_its_prefix(
    app: FastAPI, client: TestClient, registry: CollectorRegistry
) -> None:
    tenant = FastAPI()
    tenant.get("/users/{user}")(answer)
    app.mount("/tenants/{tenant}", tenant)
    assert client.get("/tenants/acme/users/1").is_success
    assert routes(registry) == {"/tenants/{tenant}/users/{user}"}


def test_a_mounts_convertor_is_no_part_of_the_template(
    app: FastAPI, client: TestClient, registry: CollectorRegistry
) -> None:
    tenant = FastAPI()
    tenant.get("/users/{user:int}")(answer)
    app.mount("/tenants/{tenant:int}", tenant)
    assert client.get("/tenants/7/users/1").is_success
    assert routes(registry) == {"/tenants/{tenant}/users/{user}"}


def test_mounts_in_mounts(app: FastAPI, client: TestClient, registry: CollectorRegistry) -> None:
    inner, outer = FastAPI(), FastAPI()
    inner.get("/users/{user}")(answer)
    outer.mount("/{region}", inner)
    app.mount("/admin", outer)
    assert client.get("/admin/eu/users/1").is_success
    assert client.get("/admin/eu/nothing").status_code == 404
    assert routes(registry) == {"/admin/{region}/users/{user}", "/admin/{region}/{path}"}


def test_a_mount_inside_a_router(app: FastAPI, client: TestClient, registry: CollectorRegistry) -> None:
    users = Mount("/admin", routes=[Route("/users/{user}", plain)])
    app.router.routes.append(users)
    assert client.get("/admin/users/1").is_success
    assert routes(registry) == {"/admin/users/{user}"}


def test_a_mounted_app_whose_middleware_takes_its_time(
    app: FastAPI, client: TestClient, registry: CollectorRegistry
) -> None:
    admin = FastAPI()
    admin.get("/users/{user}")(answer)

    @admin.middleware("http")
    async def authenticate(request: Request, call_next: Any) -> Any:
        await asyncio.sleep(0)
        return await call_next(request)

    app.mount("/admin", admin)
    assert client.get("/admin/users/1").is_success
    assert routes(registry) == {"/admin/users/{user}"}


def test_static_files_are_one_route(
    app: FastAPI, client: TestClient, registry: CollectorRegistry, tmp_path: Path
) -> None:
    (tmp_path / "logo.svg").write_text("<svg/>")
    (tmp_path / "page.html").write_text("page")
    app.mount("/static", StaticFiles(directory=tmp_path))
    assert client.get("/static/logo.svg").is_success
    assert client.get("/static/page.html").is_success
    assert client.get("/static/nothing").status_code == 404
    assert routes(registry) == {"/static/{path}"}


def test_websockets(app: FastAPI, client: TestClient, registry: CollectorRegistry) -> None:
    router = APIRouter(prefix="/rooms")

    @router.websocket("/{room}")
    async def room(ws: WebSocket, room: str) -> None:
        await ws.accept()
        await ws.close()

    admin = FastAPI()
    admin.include_router(router)
    app.include_router(router, prefix="/v1")
    app.mount("/admin", admin)
    for path in ("/v1/rooms/a", "/admin/rooms/a"):
        with client.websocket_connect(path) as ws, pytest.raises(WebSocketDisconnect):
            ws.receive_text()
    assert routes(registry) == {"/v1/rooms/{room}", "/admin/rooms/{room}"}


def test_a_path_that_no_route_wants_is_unmatched(
    app: FastAPI, client: TestClient, registry: CollectorRegistry
) -> None:
    app.get("/items/{item}")(answer)
    assert client.get("/nothing").status_code == 404
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/nothing"):
        pass
    assert routes(registry) == {"unmatched"}


def test_a_method_that_the_route_refuses_goes_by_the_route(
    app: FastAPI, client: TestClient, registry: CollectorRegistry
) -> None:
    router = APIRouter(prefix="/v1")
    router.get("/items/{item}")(answer)
    app.include_router(router)
    assert client.post("/v1/items/1").status_code == 405
    assert routes(registry) == {"/v1/items/{item}"}


def test_a_redirected_slash_makes_no_route(
    app: FastAPI, client: TestClient, registry: CollectorRegistry
) -> None:
    app.get("/items/{item}")(answer)
    assert client.get("/items/1/", follow_redirects=False).status_code == 307
    assert routes(registry) <= {"unmatched", "/items/{item}"}


@pytest.mark.filterwarnings("ignore::fastapi.exceptions.FastAPIDeprecationWarning")
@pytest.mark.parametrize("path", ["/items/1", "/api/items/1"])
def test_a_root_path_of_the_apps_own_is_no_part_of_the_route(
    outlive: Outlive, registry: CollectorRegistry, path: str
) -> None:
    app = FastAPI(root_path="/api")
    outlive.install(app)
    app.get("/items/{item}")(answer)
    with TestClient(app) as client:
        assert client.get(path).is_success
    assert routes(registry) == {"/items/{item}"}


def test_a_root_path_of_the_servers_is_no_part_of_the_route(
    app: FastAPI, registry: CollectorRegistry
) -> None:
    admin = FastAPI()
    admin.get("/users/{user}")(answer)
    app.get("/items/{item}")(answer)
    app.mount("/admin", admin)
    with TestClient(app, root_path="/api") as client:
        assert client.get("/api/items/1").is_success
        assert client.get("/api/admin/users/1").is_success
    assert routes(registry) == {"/items/{item}", "/admin/users/{user}"}


def test_an_app_mounted_in_another_goes_by_its_own_routes(app: FastAPI, registry: CollectorRegistry) -> None:
    app.get("/items/{item}")(answer)
    outer = Starlette(routes=[Mount("/outer", app)])
    with TestClient(outer) as client:
        assert client.get("/outer/items/1").is_success
        assert client.get("/outer/healthz").is_success
    assert routes(registry) == {"/items/{item}"}


class Anything(BaseRoute):
    """A route as nobody thought of it: without a path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return Match.FULL, {"route": self}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("anything")(scope, receive, send)


def test_a_route_without_a_path_is_unmatched(
    app: FastAPI, client: TestClient, registry: CollectorRegistry
) -> None:
    app.router.routes.append(Anything())
    assert client.get("/raw/path/1").text == "anything"
    assert routes(registry) == {"unmatched"}


async def whole_site(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("page")(scope, receive, send)


def test_no_path_can_make_a_route(app: FastAPI, registry: CollectorRegistry) -> None:
    router = APIRouter()
    router.get("/items/{item}")(answer)
    app.include_router(router, prefix="/v1")
    app.include_router(router)
    admin = FastAPI(openapi_url=None)
    admin.include_router(router)
    app.mount("/admin/{tenant}", admin)
    app.mount("/site", whole_site)
    known = {
        "/items/{item}",
        "/v1/items/{item}",
        "/admin/{tenant}/items/{item}",
        "/admin/{tenant}/{path}",
        "/site/{path}",
        "/openapi.json",
        "/docs",
        "/docs/oauth2-redirect",
        "/redoc",
        "unmatched",
    }

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None: ...

    async def ask(path: str) -> None:
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "server": ("192.0.2.1", 80),
            "scheme": "http",
        }
        await app(scope, receive, send)

    with asyncio.Runner() as runner:

        @settings(max_examples=300, deadline=None, database=None)
        @given(
            st.one_of(st.text(), st.from_regex(r"/(items|admin|site|v1)(/\w{0,3}){0,3}/?", fullmatch=True))
        )
        def ask_for_anything(path: str) -> None:
            runner.run(ask(path))

        ask_for_anything()
    assert (
        {"/items/{item}", "/admin/{tenant}/{path}", "/site/{path}", "unmatched"} <= routes(registry) <= known
    )
