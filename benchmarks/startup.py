"""What it costs to start: imports, and the command line's help."""

import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

PROGRAMS: dict[str, list[str]] = {
    "the interpreter and asyncio": [sys.executable, "-c", "import asyncio"],
    "import outlive": [sys.executable, "-c", "import asyncio, outlive"],
    "import fastapi": [sys.executable, "-c", "import asyncio, fastapi"],
    "from outlive import Outlive": [sys.executable, "-c", "import asyncio; from outlive import Outlive"],
    "outlive --help": [str(Path(sys.executable).parent / "outlive"), "--help"],
}


@dataclass(frozen=True)
class Startup:
    """What a program takes from its start to its end, of CPU time."""

    program: str
    milliseconds: float
    """The median of all rounds."""
    beyond_asyncio: float
    """What it takes longer than the interpreter and asyncio, in milliseconds: the median of the rounds' differences."""


def measure(rounds: int) -> list[Startup]:
    """Start them all in turn."""
    took: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(rounds + 1):
        for name, program in PROGRAMS.items():
            began = _seconds()
            subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
            if number:  # the first one fills the caches
                took[name].append((_seconds() - began) * 1000)
    least = took["the interpreter and asyncio"]
    return [
        Startup(name, median(each), median(own - bare for own, bare in zip(each, least, strict=True)))
        for name, each in took.items()
    ]


def _seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
