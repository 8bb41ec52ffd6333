"""The real Collector, Jaeger and Prometheus on the committed configuration, on free ports of this machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from random import SystemRandom
from typing import Any, TypeVar

import httpx
import pytest

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
OTEL = ROOT / "otel"
REQUIRED = "OUTLIVE_REQUIRE_TOOLS"
"""An environment variable: set, a missing tool is a failure, so that CI can't pass by skipping."""


def tool(name: str) -> str:
    """The path of an installed program; without it the test is skipped."""
    for found in (ROOT / ".tools" / "bin" / name, shutil.which(name)):
        if found is not None and os.access(found, os.X_OK):
            return str(found)
    message = f"{name} is not installed: run tools/install"
    if os.environ.get(REQUIRED):
        pytest.fail(message)
    pytest.skip(message)


def until(condition: Callable[[], T], seconds: float = 30.0, why: str = "", pause: float = 0.1) -> T:
    """Wait until the condition gives something true, and give that. An unreachable address is not true yet."""
    deadline = time.monotonic() + seconds
    value: T | None = None
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            value = condition()
            if value:
                return value
        time.sleep(pause)
    raise AssertionError(f"not within {seconds:g} s: {why or condition}; last seen: {value!r}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the system gives to others by itself."""
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            probe = held.enter_context(socket.socket())
            port = SystemRandom().randrange(10_000, 32_000)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


class Program:
    """A process with its output in a file, that can be stopped, hung and started again."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path, ready: str
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = command
        self._environment = {**os.environ, **environment}
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, **environment: str) -> "Program":
        """Start it, with other values of some variables if need be, and wait until it says that it is ready."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                env={**self._environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        until(self._is_ready, why=f"{self.name} is ready")
        return self

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.name} ended:\n{self.last_words()}"
        return httpx.get(self._ready, timeout=2.0).is_success

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def crash(self) -> None:
        """End it at once; nothing is finished, and whoever calls it is refused."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def hang(self) -> None:
        """Let it stop in the middle of everything: its connections stay open, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """End a hang."""
        os.kill(self.pid, signal.SIGCONT)

    @property
    def memory(self) -> int:
        """What it holds of this machine's memory, in bytes."""
        return 0 if self._process is None else resident(self.pid)

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


def resident(pid: int) -> int:
    """The resident memory of a process, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found, status
    return int(found[1]) * 1024


def collector(folder: Path, name: str = "collector", **environment: str) -> tuple[Program, dict[str, str]]:
    """A Collector on otel/collector.yaml, yet to be started, and its addresses.

    Parameters:
        environment: variables of the file that are to differ from their defaults.
    """
    grpc, http, health, metrics, spans = (f"127.0.0.1:{port}" for port in free_ports(5))
    program = Program(
        name,
        [tool("otelcol"), "--config", str(OTEL / "collector.yaml")],
        {
            "COLLECTOR_OTLP_GRPC_ENDPOINT": grpc,
            "COLLECTOR_OTLP_HTTP_ENDPOINT": http,
            "COLLECTOR_HEALTH_ENDPOINT": health,
            "COLLECTOR_METRICS_HOST": "127.0.0.1",
            "COLLECTOR_METRICS_PORT": metrics.rpartition(":")[2],
            "COLLECTOR_SPAN_METRICS_ENDPOINT": spans,
            "SPAN_METRICS_INTERVAL": "1s",
            "TRACES_DECISION_WAIT": "2s",
            "GOMEMLIMIT": "400MiB",
            **environment,
        },
        folder,
        f"http://{health}/",
    )
    return program, {"otlp": f"http://{http}", "metrics": metrics, "spans": spans}


def jaeger(folder: Path, prometheus: str) -> tuple[Program, dict[str, str]]:
    """A Jaeger on otel/jaeger.yaml, yet to be started, and its addresses."""
    otlp, health, query, grpc, metrics = (f"127.0.0.1:{port}" for port in free_ports(5))
    program = Program(
        "jaeger",
        [tool("jaeger"), "--config", str(OTEL / "jaeger.yaml")],
        {
            "JAEGER_OTLP_GRPC_ENDPOINT": otlp,
            "JAEGER_HEALTH_ENDPOINT": health,
            "JAEGER_QUERY_HTTP_ENDPOINT": query,
            "JAEGER_QUERY_GRPC_ENDPOINT": grpc,
            "JAEGER_METRICS_HOST": "127.0.0.1",
            "JAEGER_METRICS_PORT": metrics.rpartition(":")[2],
            "PROMETHEUS_URL": prometheus,
        },
        folder,
        f"http://{health}/status",
    )
    return program, {"otlp": otlp, "query": f"http://{query}", "metrics": metrics}


INTERVALS = {"scrape_interval: 5s": "1s", "scrape_timeout: 4s": "1s", "evaluation_interval: 15s": "1s"}
HURRY = 40
"""In the live tests an alert's `for:` is so many times shorter, or a minute would have to be waited for."""


def hurried(rules: str) -> str:
    """The rules with every `for:` shortened; nothing else differs."""

    def shorter(found: re.Match[str]) -> str:
        seconds = int(found[2]) * {"s": 1, "m": 60, "h": 3600}[found[3]]
        return f"{found[1]}{max(1, round(seconds / HURRY))}s"

    return re.sub(r"^(\s+for: )(\d+)([smh])$", shorter, rules, flags=re.MULTILINE)


def prometheus_files(folder: Path) -> None:
    """Copies of Prometheus's files in which only the intervals and the alerts' `for:` differ."""
    text = (OTEL / "prometheus.yml").read_text()
    for line, value in INTERVALS.items():
        assert text.count(line) == 1, line
        text = text.replace(line, f"{line.partition(':')[0]}: {value}")
    (folder / "prometheus.yml").write_text(text)
    (folder / "rules").mkdir()
    for rules in (OTEL / "rules").glob("*.yml"):
        (folder / "rules" / rules.name).write_text(hurried(rules.read_text()))
    (folder / "targets").mkdir()


def write_targets(folder: Path, **jobs: Sequence[str]) -> None:
    """Tell Prometheus where the targets of jobs are; it looks at the files by itself."""
    for job, addresses in jobs.items():
        file = folder / "targets" / f"{job.replace('_', '-')}.json"
        new = file.with_suffix(".new")
        new.write_text(json.dumps([{"targets": list(addresses)}]))
        new.replace(file)


def prometheus(folder: Path, port: int) -> Program:
    """A Prometheus on the files in `folder`, yet to be started."""
    address = f"127.0.0.1:{port}"
    return Program(
        "prometheus",
        [
            tool("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={address}",
            "--enable-feature=exemplar-storage",
            "--log.level=warn",
        ],
        {},
        folder,
        f"http://{address}/-/ready",
    )


class Prometheus:
    """What Prometheus answers."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **parameters: Any) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        assert answer.is_success, f"{path} {parameters}: {answer.text}"
        return answer.json()["data"]

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """An instant query's result."""
        moment = {} if at is None else {"time": at}
        data = self.get("query", query=expr, **moment)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        return list(data["result"])

    def value(self, expr: str, at: float | None = None) -> float:
        """The one value of a query; 0 if there is none."""
        result = self.query(expr, at)
        assert len(result) < 2, (expr, result)
        return float(result[0]["value"][1]) if result else 0.0

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """A range query's result."""
        return list(self.get("query_range", query=expr, start=start, end=end, step=step)["result"])

    def exemplars(self, expr: str, start: float, end: float) -> list[dict[str, Any]]:
        """The exemplars of the series in an expression, each with the labels of its series."""
        found = self.get("query_exemplars", query=expr, start=start, end=end)
        return [
            {**each, "series": series["seriesLabels"]} for series in found for each in series["exemplars"]
        ]

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are pending or firing."""
        return list(self.get("alerts")["alerts"])

    def firing(self) -> set[str]:
        """The alerts that fire, by name."""
        return {alert["labels"]["alertname"] for alert in self.alerts() if alert["state"] == "firing"}

    def rules(self) -> list[dict[str, Any]]:
        """All rules with their health."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]


class Jaeger:
    """What Jaeger answers."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def trace(self, trace_id: str) -> dict[str, Any] | None:
        """One trace; None if it isn't there."""
        answer = self._client.get(f"/api/traces/{trace_id}")
        if answer.status_code == 404:
            return None
        assert answer.is_success, answer.text
        return dict(answer.json()["data"][0])

    def find(
        self, service: str, start: float, end: float | None = None, limit: int = 20_000, **parameters: Any
    ) -> list[dict[str, Any]]:
        """Traces that began in a time (seconds since the epoch), by operation or tags (as a dictionary)."""
        if "tags" in parameters:
            parameters["tags"] = json.dumps(parameters["tags"])
        between = {"start": int(start * 1e6), "end": int((time.time() if end is None else end) * 1e6)}
        answer = self._client.get(
            "/api/traces", params={"service": service, "limit": limit, **between, **parameters}
        )
        assert answer.is_success, answer.text
        return list(answer.json()["data"])

    def metrics(self, kind: str, service: str, **parameters: Any) -> list[dict[str, Any]]:
        """Service performance monitoring: calls, errors or latencies."""
        answer = self._client.get(f"/api/metrics/{kind}", params={"service": service, **parameters})
        assert answer.is_success, answer.text
        return list(answer.json()["metrics"])
