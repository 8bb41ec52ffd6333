"""Stops of real processes while somebody has the feed open: it holds up nothing, and is held up by nothing."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from programs import Program, free_ports, until

pytestmark = pytest.mark.xdist_group("browser")


class Viewer:
    """One who has the feed open, in a thread."""

    def __init__(self, url: str) -> None:
        self.text = ""
        self.ended = False
        self.cut = False
        self._url = url
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        try:
            with httpx.stream("GET", self._url, timeout=60) as response:
                for part in response.iter_text():
                    self.text += part
            self.ended = True
        except httpx.RemoteProtocolError:
            self.cut = True

    @property
    def events(self) -> list[str]:
        return [line.removeprefix("event: ") for line in self.text.splitlines() if line.startswith("event: ")]

    @contextmanager
    def looking(self) -> Iterator[None]:
        self._thread.start()
        until(lambda: "state" in self.events, why="the feed tells of the state")
        yield
        self._thread.join(60)


def stop(program: Program) -> None:
    """Stop it in order; whoever is still held up after half a minute is held up by the feed."""
    process = program._process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM)


def stop_in_the_middle_of_a_run(service: Any) -> Viewer:
    """Stop a service whose partner doesn't answer a notice, while somebody looks."""
    service.let_notices_hang()
    viewer = Viewer(f"{service.live}feed")
    with viewer.looking():
        service.leave_a_room()
        until(lambda: service.state()["running"], why="the notice is under way")
        stop(service.service)
    assert viewer.ended or viewer.cut
    assert '"state":"draining"' in viewer.text
    return viewer


@pytest.mark.parametrize("graceful", ["", "120"])
def test_a_feed_does_not_keep_the_service_from_stopping(own: Callable[..., Any], graceful: str) -> None:
    service = own(GRACEFUL_TIMEOUT=graceful, DRAIN_TIMEOUT="120", STOP_GRACE="300")
    viewer = Viewer(f"{service.live}feed")
    with viewer.looking():
        stop(service.service)
    assert viewer.ended
    assert viewer.events[-1] == "end"
    log = service.service.log.read_text()
    assert "Cancel" not in log
    assert "Traceback" not in log


def test_a_drain_is_told_to_its_end_and_nothing_is_cancelled_for_a_viewer(own: Callable[..., Any]) -> None:
    service = own(NOTIFY_TIMEOUT="3")
    assert stop_in_the_middle_of_a_run(service).events[-1] == "end"
    assert service.last_event("closed")["outcomes"]["timed_out"] == 1
    assert service.last_event("drain ended")["cancelled_runs"] == 0


def test_at_an_address_of_its_own_a_drain_is_told_until_all_is_closed(own: Callable[..., Any]) -> None:
    service = own(NOTIFY_TIMEOUT="3", PAGES_PORT=str(free_ports(1)[0]))
    assert stop_in_the_middle_of_a_run(service).events[-1] == "end"
    assert service.last_event("drain ended")["cancelled_runs"] == 0


def test_a_feed_that_the_graceful_timeout_cuts_costs_no_run(own: Callable[..., Any]) -> None:
    service = own(NOTIFY_TIMEOUT="4", GRACEFUL_TIMEOUT="1")
    assert stop_in_the_middle_of_a_run(service).cut
    assert service.last_event("closed")["outcomes"]["timed_out"] == 1
    assert service.last_event("drain ended")["cancelled_runs"] == 0


def test_a_feed_takes_its_time_from_the_drain_s_budget(own: Callable[..., Any]) -> None:
    service = own(NOTIFY_TIMEOUT="60", DRAIN_TIMEOUT="4", CANCEL_GRACE="0.5", STOP_GRACE="60")
    stop_in_the_middle_of_a_run(service)
    # Of the 4 s, what the viewer left of them.
    drained = service.last_event("drain ended")
    assert drained["duration"] < 2
    assert drained["cancelled_runs"] == 1


def test_an_app_under_plain_uvicorn_stops_too(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    program = Program(
        "uvicorn",
        [sys.executable, "-m", "uvicorn", "--factory", "hostile:create_app", "--port", str(port)],
        {"PYTHONPATH": str(Path(__file__).parent)},
        tmp_path,
        f"{url}/healthz",
    ).start()
    try:
        viewer = Viewer(f"{url}/outlive/feed")
        with viewer.looking():
            stop(program)
        assert viewer.events[-1] == "end"
        assert "Traceback" not in program.log.read_text()
    finally:
        program.stop()
