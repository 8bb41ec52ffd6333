"""Measurements in processes of their own, which answer in JSON."""

import json
import subprocess
import sys
from typing import Any

LOOPS = ("asyncio", "uvloop")


def command(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of the benchmarks."""
    return [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]


def ask(module: str, *arguments: object) -> Any:
    """Run a module of the benchmarks and read what it prints.

    Raises:
        subprocess.CalledProcessError: it failed; what it said about it is on standard error.
    """
    done = subprocess.run(command(module, *arguments), stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def answer(measured: Any) -> None:
    """Tell the process that asked."""
    json.dump(measured, sys.stdout)


def loop_factory(name: str) -> Any:
    """What makes the event loop of that name."""
    if name == "uvloop":
        import uvloop  # noqa: PLC0415 - the other half of the runs must not have it loaded

        return uvloop.new_event_loop
    import asyncio  # noqa: PLC0415 - likewise

    return asyncio.new_event_loop
