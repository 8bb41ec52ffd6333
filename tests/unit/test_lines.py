"""Log lines are written in a thread: nothing that logs waits for whoever reads."""

import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from outlive.telemetry import lines as module
from outlive.telemetry.lines import BackgroundLines

PIPE = 65_536
"""Bytes that a pipe holds."""


class Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {"event": record.getMessage(), "dropped": record.__dict__.get("dropped")}, ensure_ascii=False
        )


@contextmanager
def logger_of(stream: Any, most: int = 100) -> Iterator[logging.Logger]:
    logger = logging.Logger("test")  # noqa: LOG001 - for this test alone
    handler = BackgroundLines(stream, most)
    handler.setFormatter(Formatter())
    logger.addHandler(handler)
    yield logger
    handler.close()


def flush(logger: logging.Logger) -> None:
    for handler in logger.handlers:
        handler.flush()


@contextmanager
def pipe(*, blocking: bool = True) -> Iterator[tuple[io.TextIOWrapper, io.BufferedReader]]:
    reading, writing = os.pipe()
    os.set_blocking(writing, blocking)
    with os.fdopen(writing, "w", encoding="utf-8") as stream, os.fdopen(reading, "rb") as reader:
        yield stream, reader


def read_events(reader: io.BufferedReader, until: str) -> list[dict[str, Any]]:
    events = []
    for line in reader:
        events.append(json.loads(line))
        if events[-1]["event"] == until:
            return events
    raise AssertionError(f"no {until!r}")


def test_all_lines_come_in_order() -> None:
    with pipe() as (stream, reader), logger_of(stream) as logger:
        for number in range(50):
            logger.warning("line %d of %s", number, "größe")
        flush(logger)
        events = read_events(reader, "line 49 of größe")
    assert [event["event"] for event in events] == [f"line {number} of größe" for number in range(50)]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_full_pipe_stops_nobody_and_what_is_dropped_is_told_once(blocking: bool) -> None:
    filler = "x" * 1_000
    with pipe(blocking=blocking) as (stream, reader), logger_of(stream, most=100) as logger:
        # As much again as fits into pipe and queue.
        for number in range(400):
            logger.warning("%d %s", number, filler)
        received: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: received.extend(read_events(reader, "the last")))
        thread.start()
        flush(logger)
        logger.warning("flows again")
        flush(logger)
        logger.warning("the last")
        thread.join(10)
        assert not thread.is_alive()
    numbers = [int(event["event"].split()[0]) for event in received if event["event"].endswith("x")]
    assert numbers == list(range(len(numbers))), "in order, and none in the middle is missing"
    (told,) = [event for event in received if event["dropped"] is not None]
    assert told["event"] == "log lines were dropped: they could not be written in time"
    assert len(numbers) + told["dropped"] == 400
    assert 100 <= len(numbers) < 400
    after = [event["event"] for event in received[received.index(told) + 1 :]]
    assert after == ["flows again", "the last"]


def test_a_slow_reader_gets_lines_and_not_only_the_number_of_those_dropped() -> None:
    received: list[bytes] = []
    with pipe() as (stream, reader), logger_of(stream, most=20) as logger:
        filler = "x" * 4_000
        for number in range(500):
            logger.warning("%d %s", number, filler)
            if number % 5 == 0:
                received.append(reader.readline())
        # To the end, and not so many lines: how many are left depends on how often the writing thread had its turn.
        reading = threading.Thread(target=lambda: received.extend(reader))
        reading.start()
        flush(logger)
        stream.close()
        reading.join()
    dropped = [json.loads(line)["dropped"] is not None for line in received]
    assert dropped.count(True) > 0
    assert dropped.count(False) >= 9 * dropped.count(True)


def test_the_end_waits_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_TIMEOUT", 0.05)
    with pipe() as (stream, reader), logger_of(stream, most=10) as logger:
        for _ in range(100):
            logger.warning("x" * 10_000)
        flushing = threading.Thread(target=flush, args=[logger])
        flushing.start()
        flushing.join(10)
        assert not flushing.is_alive()
        reading = threading.Thread(target=reader.read)
        reading.start()
        monkeypatch.setattr(module, "FLUSH_TIMEOUT", 10)
        flush(logger)
        stream.close()
        reading.join()


def test_a_reader_that_has_gone_disturbs_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    with pipe() as (stream, reader), logger_of(stream) as logger:
        reader.close()
        for _ in range(10):
            logger.warning("to nobody")
        flush(logger)
    assert capfd.readouterr() == ("", "")


def test_a_disk_that_was_full_gets_the_number_of_lines_that_it_misses() -> None:
    class Disk(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    with logger_of(disk) as logger:
        for _ in range(3):
            logger.warning("lost")
        flush(logger)
        disk.full = False
        logger.warning("there is room again")
        flush(logger)
        told, line = (json.loads(line) for line in disk.getvalue().splitlines())
    # Whether the line that came with the flush was counted is the disk's secret: it was never written either.
    assert told["dropped"] == 3
    assert line["event"] == "there is room again"


def test_a_forked_process_logs_too() -> None:
    program = textwrap.dedent(
        """
        import logging, os, sys
        from outlive.telemetry.lines import BackgroundLines

        logging.getLogger().addHandler(BackgroundLines(sys.stdout))
        logging.warning("parent")
        child = os.fork()
        if child == 0:
            logging.warning("child")
        else:
            os.waitpid(child, 0)
        logging.shutdown()
        """
    )
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, check=True)
    assert sorted(told.stdout.split()) == [b"child", b"parent"]
    assert told.stderr == b""


@pytest.mark.parametrize("end", ["pass", "sys.exit(0)", "import signal; os.kill(os.getpid(), signal.SIGINT)"])
def test_a_normal_end_loses_no_line(end: str) -> None:
    program = textwrap.dedent(
        f"""
        import logging, os, sys
        from outlive.telemetry.setup import set_up_logging

        set_up_logging("json")
        for number in range(5_000):
            logging.info("line %d", number)
        {end}
        """
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    events = [json.loads(line)["event"] for line in told.stdout.splitlines()]
    assert events == [f"line {number}" for number in range(5_000)]


def test_an_exit_does_not_hang_on_a_full_pipe() -> None:
    program = textwrap.dedent(
        """
        import logging
        from outlive.telemetry.setup import set_up_logging

        set_up_logging("json")
        for number in range(20_000):
            logging.info("line %d", number)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.communicate()
