"""What was measured, on what, as plain data."""

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("results.json")
PACKAGES = (
    "outlive", "aiojobs", "anyio", "fastapi", "opentelemetry-instrumentation-asyncio",
    "opentelemetry-instrumentation-fastapi", "opentelemetry-sdk", "prometheus-client", "starlette", "taskiq", "uvicorn",
    "uvloop", "websockets",
)  # fmt: skip

Results = dict[str, Any]


def surroundings() -> Results:
    """Versions, and of the machine only what ratios may depend on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} on {platform.machine()}",
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def plain(measured: Iterable[Any]) -> list[Results]:
    """Dataclasses as data, with four significant digits: there is no more to tell."""
    return [{name: _rounded(value) for name, value in asdict(each).items()} for each in measured]


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def read(file: Path = FILE) -> Results:
    """The results in the file; empty if there is none."""
    return json.loads(file.read_text()) if file.exists() else {}


def write(results: Results, file: Path = FILE) -> None:
    """Keep the results."""
    file.write_text(json.dumps(results, indent=1) + "\n")
