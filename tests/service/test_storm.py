"""A small storm: what it tells, and what it says when something is wrong."""

import os
import subprocess
import sys
from typing import Any

import pytest

from outlive_service.storm import Storm

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite"])
def database(tmp_path: Any) -> str:
    return f"sqlite:///{tmp_path / 'outlive.db'}"


async def test_it_accounts_for_everybody(service: Any) -> None:
    url = service.start()
    storm = Storm(url, 17)
    after = await storm.run()
    assert after.errors == []
    assert after.accounted
    assert (after.opened, after.dropped, after.by_close_frame, after.by_abort) == (17, 17, 9, 8)
    assert after.disconnects["client_closed"] == 9
    assert after.disconnects["client_lost"] == 8
    assert after.outcomes["completed"] == 3 * 17
    assert after.readiness_asked > after.readiness_red == 0
    sessions = {row.id for row in await service.store.sessions()}
    assert {sight.session for sight in storm.sights} == sessions
    assert {(sight.sent, sight.acknowledged) for sight in storm.sights} == {(1, 1)}
    # A second one is told apart from the first.
    assert (await Storm(url, 3).run()).outcomes["completed"] == 9


async def test_who_is_not_let_in_is_told(service: Any) -> None:
    url = service.start(room_max_members=4)
    after = await Storm(url, 16).run()
    assert (after.opened, after.dropped) == (8, 8)
    assert after.errors[0].startswith("8 of 16 were not let in: ConnectionClosed")
    assert not after.accounted


async def test_runs_that_are_owed_and_do_not_come_are_told(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outlive_service.storm.OWED", ("save_transcript", "something_else"))
    url = service.start()
    after = await Storm(url, 4).run()
    assert after.errors == ["4 have gone, but 0 runs of something_else have an outcome"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "outlive", "traffic", *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_says_that_nobody_is_there() -> None:
    done = command("http://127.0.0.1:9", "--storm", "3")
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == "http://127.0.0.1:9/metrics doesn't answer (ConnectError); is the service running?"
    )


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one() -> None:
    script = "from outlive_service.descriptors import raise_limit; print(raise_limit())"
    done = subprocess.run(
        ["sh", "-c", 'ulimit -Sn 100 && ulimit -Hn 500 && exec "$@"', "sh", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "500"


def test_check_tells_of_a_limit_that_is_too_low_for_the_settings() -> None:
    script = 'ulimit -n 500 && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "outlive", "check"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MAX_CONNECTIONS": "400", "HTTP_MAX_CONNECTIONS": "100", "DATABASE_POOL": "5"},
    )
    assert (
        "note: max_connections 400 (with 105 to the partner and the database) needs 705 file" in done.stdout
    )
    assert "this process may have 500: run `ulimit -n 705` before" in done.stdout
