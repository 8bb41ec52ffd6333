"""Servers in processes of their own."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.processes import command


@contextmanager
def server(module: str, *arguments: object) -> Iterator[int]:
    """Start a module of the benchmarks that serves and says on which port; end it afterwards."""
    process = subprocess.Popen(command(module, *arguments), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()
