"""Thousands of WebSockets go at the same moment, each leaving work behind."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from outlive_service.demo import Demo
from outlive_service.storm import Storm

# What differs from the defaults; docs/operations.md tells why.
SERVICE = {
    "MAX_PENDING": "40000",
    "MAX_WAIT": "900",
    "NOTIFY_TIMEOUT": "30",
    "HTTP_CONNECT_TIMEOUT": "30",
    "HTTP_READ_TIMEOUT": "30",
    "PARTNER_MAX_RUNNING": "20",
    # The demo's pings come every second, and who doesn't answer within another one is given up.
    "WS_PING_INTERVAL": "20",
    "WS_PING_TIMEOUT": "20",
    # As in the image.
    "PYTHONMALLOC": "malloc",
    "MALLOC_ARENA_MAX": "2",
}
PARTNER = {f"PARTNER_NOTICES_{name}": "0" for name in ("LATENCY", "ERROR_RATE", "HANG_RATE")}


def memory(pid: int) -> tuple[int, int]:
    """A process's resident memory in MB, now and at its highest."""
    status = Path(f"/proc/{pid}/status").read_text()
    now, highest = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
    assert now
    assert highest
    return int(now[1]) // 1000, int(highest[1]) // 1000


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.reliability(
    "storm",
    "twice, 10,000 WebSockets go at the same moment, every other one by abort, each leaving three runs",
)
async def test_a_storm_loses_nothing_and_leaves_nothing(
    full: bool, tmp_path: Path, result: Callable[[str], None]
) -> None:
    size = 10_000 if full else 500
    demo = Demo(1, 1, {}, service=SERVICE, partner=PARTNER, folder=tmp_path)
    async with demo.running():
        pid = demo.addresses.service_pid
        before, _ = memory(pid)
        storms, memories = [], []
        for _ in range(2):
            storm = Storm(demo.addresses.service, size, settle=1_200.0)
            storms.append(await storm.run())
            memories.append(memory(pid))
            demo.traffic.sights += storm.sights
    account = demo.account
    assert account is not None
    for after in storms:
        assert after.errors == []
        assert (after.opened, after.by_close_frame, after.by_abort) == (size, size // 2, size // 2)
        assert after.disconnects["client_closed"] + after.disconnects["client_lost"] == size
        assert after.runs["save_transcript"]["completed"] == size, after.runs
        assert after.readiness_red == 0
    assert account.errors == ()
    assert account.balanced
    (first, first_peak), (second, second_peak) = memories
    if full:
        # What every storm finds again stays: caches, pools, histories. A small one takes little more than that.
        assert first <= before + (first_peak - before) * 0.5
    assert second <= first * 1.15
    assert second_peak <= first_peak * 1.15
    slowest = max(storms, key=lambda after: after.readiness_slowest)
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in account.outcomes.items() if count)
    tails = " and ".join(f"{after.to_last_outcome:.0f} s" for after in storms)
    result(
        f"{2 * size:,} dropped, {account.submitted:,} runs ({told}), {account.lost} lost; last outcome after {tails}; slowest "
        f"/readyz {slowest.readiness_slowest:.2f} s ({slowest.readiness_slowest_at:+.0f} s from the drop); memory {before} MB before, {first_peak} MB at its highest, {first} MB after the first, "
        f"{second} MB after the second"
    )


@pytest.mark.reliability(
    "storm", "a storm is asked for that needs more file descriptors than the system allows"
)
def test_a_storm_above_the_limit_of_descriptors_says_what_to_do(result: Callable[[str], None]) -> None:
    command = [sys.executable, "-m", "outlive", "traffic", "http://127.0.0.1:9", "--storm", "5000"]
    # A shell, since the limit has to be set in the process that becomes the command.
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 1000 && exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "ulimit -n 5200" in done.stderr
    assert "may have 1,000" in done.stderr
    result(
        f"refused before the first connection: “{done.stderr.split(':')[0]}: run `ulimit -n 5200` before …”"
    )
