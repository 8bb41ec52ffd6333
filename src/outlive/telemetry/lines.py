"""Log lines, written in a thread of their own: a reader that stops must not stop the event loop."""

import logging
import os
import queue
import select
import threading
import time
from contextlib import suppress
from contextvars import Context
from typing import Any

MOST_LINES = 10_000
"""So many lines wait to be written; what comes on top is dropped, and counted."""
FLUSH_TIMEOUT = 1.0
"""Seconds that the end of a process waits for the lines that are still to be written, at most."""


class BackgroundLines(logging.Handler):
    """A logging handler that formats where the event is, and writes elsewhere.

    The standard library's QueueListener would do, but for its end: it waits for its thread without a limit, and a
    thread that writes into a full pipe ends when somebody reads on, or never.

    Order is kept. When more than `most` lines wait, lines are dropped until half of them are written; then one line
    tells how many.

    Parameters:
        stream: where to write. A file is written to past Python's own buffer, whose lock would hang the exit.
        most: lines that wait, at most.
    """

    def __init__(self, stream: Any, most: int = MOST_LINES) -> None:
        super().__init__()
        self._stream = stream
        self._most = most
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        try:
            self._descriptor: int | None = stream.fileno()
        except (AttributeError, OSError):
            self._descriptor = None
        self._queue: queue.Queue[str | threading.Event | None] = queue.Queue(most)
        self._writing_in: int | None = None
        self._counting = threading.Lock()
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record here, where its span is the current one, and leave the line to the thread."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as every handler of the standard library
            self.handleError(record)
            return
        if self._writing_in != os.getpid():
            self._start()
        if (self._dropped and not self._tell_dropped()) or not self._put(line):
            self._count_dropped()

    def flush(self) -> None:
        """Wait until what was logged so far is written, but no longer than `FLUSH_TIMEOUT`."""
        if self._writing_in != os.getpid():
            return
        if self._dropped:
            self._tell_dropped()
        deadline = time.monotonic() + FLUSH_TIMEOUT
        written = threading.Event()
        try:
            self._queue.put(written, timeout=FLUSH_TIMEOUT)
        except queue.Full:
            return
        written.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Let the thread end; what it hasn't written by now is lost."""
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)
        super().close()

    def _start(self) -> None:
        # A forked process has the handler, but no thread, and perhaps a queue that the thread had locked.
        self._queue = queue.Queue(self._most)
        self._writing_in = os.getpid()
        threading.Thread(target=self._work, args=(self._queue,), name="outlive log", daemon=True).start()

    def _put(self, line: str) -> bool:
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            return False
        return True

    def _count_dropped(self) -> None:
        with self._counting:
            self._dropped += 1

    def _tell_dropped(self) -> bool:
        # Not at the first free place, or a slow reader would get nothing but these.
        if self._queue.qsize() > self._most // 2:
            return False
        with self._counting:
            dropped, self._dropped = self._dropped, 0
        told = logging.makeLogRecord(
            {
                "name": "outlive",
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "msg": "log lines were dropped: they could not be written in time",
                "dropped": dropped,
            }
        )
        # In no span: whatever is current here has nothing to do with it.
        return self._put(Context().run(self.format, told))

    def _work(self, lines: "queue.Queue[str | threading.Event | None]") -> None:
        while (line := lines.get()) is not None:
            if isinstance(line, threading.Event):
                line.set()
                continue
            try:
                self._write(line + "\n")
            except (OSError, ValueError):  # the reader has gone, the disk is full, the stream is closed
                self._count_dropped()

    def _write(self, text: str) -> None:
        if self._descriptor is None:
            self._stream.write(text)
            self._stream.flush()
            return
        rest = memoryview(text.encode(self._encoding, "backslashreplace"))
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # whoever has the other end made it so
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
