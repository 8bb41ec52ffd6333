"""Many who come at once, let through a few at a time."""

import asyncio
from collections import deque
from contextvars import Context

WIDTH = 16
"""So many pass at each turn of the event loop."""


class Turnstile:
    """Spreads what thousands of handlers do at the same moment over many turns of the event loop.

    An event loop runs whatever is ready before it looks at its sockets again. So without this, nobody else is
    served, no deadline is heeded and no probe answered until the last of ten thousand handlers has cleaned up.
    Nobody waits for time to pass here, and whoever comes alone doesn't wait at all.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._clean_context = Context()
        self._passed = 0
        self._turning = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def go_through(self) -> None:
        """Return at once, or when one's turn has come, in order."""
        if self._passed < WIDTH and not self._waiting:
            self._passed += 1
            self._turn_soon()
            return
        waiter = self.loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _turn_soon(self) -> None:
        if not self._turning:
            self._turning = True
            self.loop.call_soon(self._turn, context=self._clean_context)

    def _turn(self) -> None:
        self._turning = False
        self._passed = 0
        while self._waiting and self._passed < WIDTH:
            waiter = self._waiting.popleft()
            if not waiter.done():  # whoever was cancelled meanwhile has gone another way
                waiter.set_result(None)
                self._passed += 1
        if self._passed:
            self._turn_soon()
