"""Where suspended work hangs."""

import asyncio
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any


def suspended_stack(work: asyncio.Task[Any] | None) -> str:
    """The source lines at which a suspended task waits, outermost first; no values.

    `asyncio.Task.get_stack` gives only the outermost frame of a suspended coroutine.
    """
    frames = _frames(None if work is None else work.get_coro())
    return "".join(traceback.StackSummary.extract(frames).format())


def _frames(awaited: Any) -> Iterator[tuple[FrameType, int]]:
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            yield frame, frame.f_lineno
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
