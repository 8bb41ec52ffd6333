"""How long a client may take to ask, how much it may say in the head of a request, and how it is denied.

uvicorn bounds neither of the first two: half a request, or half a WebSocket handshake, would hold its connection for
ever.
"""

import asyncio
from typing import ClassVar, cast

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class BoundedRequests(HttpToolsProtocol):
    """uvicorn's protocol for HTTP/1.1, with bounds; see `bounded_requests`."""

    timeout: ClassVar[float]
    max_head: ClassVar[int]

    _due: asyncio.TimerHandle | None = None
    _in_head = True
    _complete = False
    _chunk = 0
    _head_read = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self._wait_for_client()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
        self._forget_parser()

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        self._forget_parser()

    def _forget_parser(self) -> None:
        # The two hold each other, and with them the whole connection until the garbage collector comes.
        vars(self).pop("parser", None)

    def data_received(self, data: bytes) -> None:
        self._chunk = len(data)
        if self._in_head:
            self._head_read += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._head_read > self.max_head:
            self.send_400_response("The head of the request is too large.")
        elif self._is_clients_turn():
            self._wait_for_client()
        else:
            self._stop_waiting()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._complete = False
        self._head_read = self._chunk
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        # Adding up is for those heads alone that could be too large: what was read holds more than the head.
        if self._head_read > self.max_head:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > self.max_head:
                raise ValueError("the head of the request is too large")  # the parser makes a 400 of it
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._complete = True
        super().on_message_complete()

    def _is_clients_turn(self) -> bool:
        if self.transport.get_protocol() is not self:  # it has become a WebSocket
            return False
        return not self._complete or self.cycle is None or self.cycle.response_complete

    def _wait_for_client(self) -> None:
        if self._due is None:
            self._due = self.loop.call_later(self.timeout, self._cut)

    def _stop_waiting(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _cut(self) -> None:
        self._due = None
        # Not closed, for that would wait until the client has read what it was sent.
        if self._is_clients_turn():
            self.transport.abort()


def bounded_requests(timeout: float, max_head: int) -> type[BoundedRequests]:
    """Set the bounds.

    Parameters:
        timeout: from the connection, or from the first byte of a later request, to the last byte of the request and
            its body, in seconds. Over it the connection is cut.
        max_head: bytes of a request's target and headers; over it the answer is 400.
    """
    return type("BoundedRequests", (BoundedRequests,), {"timeout": timeout, "max_head": max_head})


class DeniedHandshakes(WebSocketsSansIOProtocol):
    """uvicorn's default protocol for WebSockets, without the error that it logs after each denial.

    It takes a handshake that was answered by `websocket.http.response` for one that was never answered, so a
    flood that is turned away would be a flood in the log.
    """

    async def send(self, message: ASGISendEvent) -> None:
        """Send, and note that a denial was the answer."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True
