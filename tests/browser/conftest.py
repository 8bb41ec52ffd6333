"""A browser, the running demo, and services of a test's own."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from programs import Program, free_ports, until
from websockets.sync.client import connect

from outlive_service.demo import PARTNER, SERVICE

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
NODE_MODULES = Path(__file__).parent / "node_modules"

expect.set_options(timeout=15_000)


def required(found: str | Path | None, otherwise: str) -> str:
    """What a test can't do without; where it isn't there, the test is skipped, or fails if nothing may be skipped."""
    if found is not None and Path(found).exists():
        return str(found)
    if os.environ.get("OUTLIVE_REQUIRE_TOOLS"):
        pytest.fail(otherwise)
    pytest.skip(otherwise)


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core."""
    source = NODE_MODULES / "axe-core" / "axe.min.js"
    return Path(required(source, "axe-core is not installed: make page-tools")).read_text()


@pytest.fixture(scope="session")
def node() -> str:
    return required(shutil.which("node"), "Node.js is not installed (Debian: apt install nodejs)")


@pytest.fixture(scope="session")
def typescript(node: str) -> list[str]:
    """The command that checks types."""
    program = NODE_MODULES / ".bin" / "tsc"
    return [required(program, "TypeScript is not installed: make page-tools")]


@pytest.fixture(scope="session")
def prettier(node: str) -> str:
    return required(NODE_MODULES / ".bin" / "prettier", "Prettier is not installed: make page-tools")


# Not for the session: while it is open, no other test of the same process could run an event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = required(
        shutil.which("chromium") or shutil.which("chromium-browser"),
        "Chromium is not installed (Debian: apt install chromium)",
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Reader:
    """Somebody who looks at the page, and what their browser had to complain of."""

    page: Page
    complaints: list[str]
    asked: list[str]


@pytest.fixture
def look(browser: Browser) -> Iterator[Callable[..., Reader]]:
    """Open the page as a reader would: `look(url, width=400, color_scheme="dark")`."""
    contexts: list[BrowserContext] = []

    def look(url: str, *, width: int = 1200, height: int = 900, **more: Any) -> Reader:
        context = browser.new_context(viewport={"width": width, "height": height}, **more)
        contexts.append(context)
        page = context.new_page()
        reader = Reader(page, [], [])
        page.on("pageerror", lambda error: reader.complaints.append(str(error)))
        page.on(
            "console",
            lambda message: reader.complaints.append(message.text) if message.type == "error" else None,
        )
        page.on("request", lambda request: reader.asked.append(request.url))
        page.goto(url)
        return reader

    yield look
    for context in contexts:
        context.close()


@dataclass
class RunningDemo:
    """`outlive demo`, as a person starts it."""

    live: str
    service: str
    partner: str


@pytest.fixture(scope="session")
def demo() -> Iterator[RunningDemo]:
    process = subprocess.Popen(
        [sys.executable, "-m", "outlive", "demo", "--clients", "12", "--seed", "5", "--json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAEGER_UI_URL": "http://jaeger.invalid:16686"},
    )
    assert process.stderr is not None
    try:
        told = ""
        while "in a browser" not in told:
            line = process.stderr.readline()
            assert line, f"the demo ended:\n{told}"
            told += line
        service, partner = re.findall(r"(?:service|partner) (http://[\w.:]+)", told)
        (live,) = re.findall(r"open (\S+) in a browser", told)
        yield RunningDemo(live, service, partner)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=90)


class OwnService:
    """The service and its partner as processes of the test's own, with nobody there."""

    def __init__(self, folder: Path, **environment: str) -> None:
        service, partner = free_ports(2)
        self.partner_url = f"http://127.0.0.1:{partner}"
        self.url = f"http://127.0.0.1:{service}"
        pages = environment.get("PAGES_PORT", service)
        self.pages = f"http://127.0.0.1:{pages}"
        self.live = f"{self.pages}/outlive/"
        command = [sys.executable, "-m", "outlive"]
        self.partner = Program(
            "partner",
            [*command, "partner"],
            {
                **PARTNER,
                "PARTNER_PORT": str(partner),
                "PARTNER_NOTICES_ERROR_RATE": "0",
                "PARTNER_NOTICES_HANG_RATE": "0",
            },
            folder,
            f"{self.partner_url}/healthz",
        )
        self.service = Program(
            "service",
            [*command, "serve"],
            {
                **SERVICE,
                "PORT": str(service),
                "PARTNER_URL": self.partner_url,
                "UPSTREAM_URL": self.partner_url,
                "DATABASE_URL": f"sqlite:///{folder / 'outlive.db'}",
                **environment,
            },
            folder,
            f"{self.pages}/healthz",
        )

    def start(self) -> "OwnService":
        self.partner.start()
        self.service.start()
        return self

    def stop(self) -> None:
        self.service.stop()
        self.partner.stop()

    def leave_a_room(self, user: str = "ann") -> None:
        """Be in a room, say something and go."""
        with connect(f"{self.url.replace('http', 'ws')}/rooms/a?user={user}") as room:
            room.recv()
            room.send("hello")
            room.recv()

    def let_notices_hang(self) -> None:
        httpx.put(f"{self.partner_url}/faults", json={"notices": {"hang_rate": 1}}).raise_for_status()

    def state(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.live}state").json())

    def at_rest(self) -> dict[str, Any]:
        """Wait until nothing runs any more."""

        def rested() -> dict[str, Any] | None:
            state = self.state()
            return state if state["running"] == state["pending"] == 0 else None

        return until(rested, why="nothing runs") or {}

    def last_event(self, name: str) -> dict[str, Any]:
        """The last line of the log about something."""
        for line in reversed(self.service.log.read_text().splitlines()):
            told = json.loads(line) if line.startswith("{") else {}
            if told.get("event") == name:
                return dict(told)
        raise AssertionError(f"nothing is told of {name!r}:\n{self.service.last_words()}")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[..., OwnService]]:
    """Start a service with settings of the test's own."""
    started: list[OwnService] = []

    def start(**environment: str) -> OwnService:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        service = OwnService(folder, **environment)
        started.append(service)
        return service.start()

    yield start
    for service in started:
        service.stop()


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnService]:
    """One service for many tests, each of which leaves it at rest."""
    service = OwnService(tmp_path_factory.mktemp("quiet")).start()
    yield service
    service.stop()


@dataclass
class Hostile:
    """An app whose names are attacks, and those names."""

    live: str
    task: str
    route: str
    error: str


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Hostile]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "uvicorn", "--factory", "hostile:create_app", "--port", str(port)]
    program = Program(
        "hostile",
        command,
        {"PYTHONPATH": str(Path(__file__).parent)},
        tmp_path,
        f"http://127.0.0.1:{port}/healthz",
    ).start()
    try:
        names = runpy.run_path(str(Path(__file__).parent / "hostile.py"))
        path = names["ROUTE"].replace("{room}", "a")
        with connect(f"ws://127.0.0.1:{port}{quote(path)}") as room:
            room.send("hello")
        yield Hostile(f"http://127.0.0.1:{port}/outlive/", names["TASK"], names["ROUTE"], names["ERROR"])
    finally:
        program.stop()
