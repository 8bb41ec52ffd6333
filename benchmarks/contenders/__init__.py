"""Ways to run a piece of work outside of its caller, each by itself."""

from benchmarks.contenders import aiojobs, anyio, floor, outlive, starlette, taskiq
from benchmarks.contenders.contender import Contender

CONTENDERS: list[Contender] = [
    floor.BARE,
    floor.FLOOR,
    outlive.TASK,
    outlive.SCOPE,
    aiojobs.AIOJOBS,
    aiojobs.SPANS,
    anyio.SCOPE,
    starlette.BACKGROUND,
    taskiq.TASKIQ,
]
"""All of them, in the order of the tables."""
