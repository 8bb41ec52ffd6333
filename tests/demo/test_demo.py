"""The command on real input: it accounts for everything, also when the service is stopped in the middle."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from outlive_service.demo import Demo

OUTCOMES = {"completed", "timed_out", "cancelled", "failed", "rejected"}


async def demo_command(*options: str, stop_service_after: float | None = None) -> tuple[int, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "outlive", "demo", *options, "--json",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    if stop_service_after is not None:
        told = (await process.stderr.readline()).decode()
        service = re.search(r"\(process (\d+)\)", told)
        assert service, told
        await asyncio.sleep(stop_service_after)
        os.kill(int(service[1]), signal.SIGTERM)
    out, err = await process.communicate()
    assert out, err.decode()
    return process.returncode or 0, json.loads(out)


def test_the_account_of_a_demo_balances() -> None:
    status, account = asyncio.run(demo_command("--seconds", "15", "--clients", "40", "--seed", "1"))
    assert account["errors"] == []
    assert status == 0
    assert account["lost"] == account["doubled"] == 0
    assert set(account["outcomes"]) == OUTCOMES
    assert account["submitted"] == sum(account["outcomes"].values())
    for outcome in ("completed", "timed_out", "cancelled", "failed"):
        assert account["outcomes"][outcome] > 0, outcome
    assert account["absorbed_cancellations"] > 0
    assert account["disconnects"]["client_closed"] > 0
    assert account["disconnects"]["client_lost"] > 0
    assert 0 < account["tail_seconds"]["p50"] <= account["tail_seconds"]["p99"]


def test_the_account_balances_when_the_service_is_stopped_in_the_middle() -> None:
    status, account = asyncio.run(
        demo_command("--seconds", "30", "--clients", "40", "--seed", "1", stop_service_after=6)
    )
    assert account["errors"] == []
    assert status == 0
    assert account["lost"] == account["doubled"] == 0
    assert account["submitted"] == sum(account["outcomes"].values())
    assert account["disconnects"]["server_shutdown"] > 0


def test_ctrl_c_drains_and_draws_up_the_account() -> None:
    async def interrupted() -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "outlive", "demo", "--clients", "10", stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        told = await process.stdout.readline()
        assert told.startswith(b"service http://")
        process.send_signal(signal.SIGINT)
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    status, text = asyncio.run(interrupted())
    assert status == 0
    assert "The account" in text


def test_metrics_traces_and_the_account_agree(receiver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    demo = Demo(20, 3, {})

    async def play() -> tuple[str, str]:
        async with demo.running():
            await demo.traffic.run(6)
            async with httpx.AsyncClient(base_url=demo.addresses.service) as client:
                # The last departures are announced a moment after the last client has left.
                for _ in range(100):
                    classic = (await client.get("/metrics")).text
                    if "outlive_runs_running" in classic and not _running(classic):
                        break
                    await asyncio.sleep(0.1)
                accept = {"accept": "application/openmetrics-text; version=1.0.0"}
                return classic, (await client.get("/metrics", headers=accept)).text
        raise AssertionError

    classic, openmetrics = asyncio.run(play())
    account = demo.account
    assert account is not None
    assert account.errors == ()

    # The metrics equal the account.
    counted: Counter[str] = Counter()
    for family in parse_classic(classic):
        for sample in family.samples:
            if sample.name == "outlive_runs_total":
                counted[sample.labels["outcome"]] += int(sample.value)
    assert counted == Counter(account.outcomes)

    # The spans agree with the metrics, task by task and outcome by outcome.
    runs = Counter(
        (span.attributes["outlive.task"], span.attributes["outlive.outcome"])
        for span in receiver.spans
        if "outlive.outcome" in span.attributes
    )
    assert runs == Counter(
        {(task, outcome): n for task, of in account.counters.runs.items() for outcome, n in of.items() if n}
    )
    assert {
        span.status for span in receiver.spans if span.attributes.get("outlive.outcome") == "completed"
    } == {0}
    others = OUTCOMES - {"completed"}
    assert {span.status for span in receiver.spans if span.attributes.get("outlive.outcome") in others} == {2}

    # Each disconnect flow is a small trace of its own, linked to the connection it comes from and told by it.
    traces = receiver.traces()
    flows = {
        trace_id: spans
        for trace_id, spans in traces.items()
        if any(span.name.startswith("disconnect ") for span in spans)
    }
    by_id = {(span.trace_id, span.span_id): span for span in receiver.spans}
    told = {
        attributes["outlive.flow.trace_id"]: span
        for span in receiver.spans
        for name, attributes in span.events
        if name == "outlive.disconnect"
    }
    assert flows
    for trace_id, spans in flows.items():
        (root,) = [span for span in spans if not span.parent_id]
        assert root.name.startswith("disconnect /")
        assert root.end == max(span.end for span in spans if "outlive.outcome" in span.attributes) or (
            abs(root.end - max(s.end for s in spans if "outlive.outcome" in s.attributes)) < 50_000_000
        )
        (link,) = root.links
        assert by_id[link] is told[trace_id]
        ids = {span.span_id for span in spans}
        assert all(span.parent_id in ids for span in spans if span is not root)
        assert len(spans) < 30

    # Through service, httpx and partner.
    shapes = {
        (root.name, run.name, call.service, call.name, answer.service, answer.name)
        for spans in flows.values()
        for root in spans
        for run in spans
        if run.parent_id == root.span_id
        for call in spans
        if call.parent_id == run.span_id
        for answer in spans
        if answer.parent_id == call.span_id
    }
    service, partner = "outlive-service", "outlive-partner"
    room, answers = "disconnect /rooms/{room}", "disconnect /completions"
    assert (room, "notify_partner", service, "POST", partner, "POST /notices") in shapes
    assert (answers, "bill_tokens", service, "POST", partner, "POST /charges") in shapes

    # Every exemplar leads to a recorded trace, and those of the tail to disconnect flows.
    exemplars = [
        (family.name, sample.exemplar.labels["trace_id"])
        for family in parse_openmetrics(openmetrics)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar
    ]
    assert {name for name, _ in exemplars} == {
        "outlive_run_duration_seconds",
        "outlive_disconnect_tail_seconds",
        "outlive_http_request_duration_seconds",
    }
    for name, trace_id in exemplars:
        assert trace_id in (flows if name == "outlive_disconnect_tail_seconds" else traces), name


def _running(metrics: str) -> int:
    return sum(
        int(float(line.rpartition(" ")[2]))
        for line in metrics.splitlines()
        if line.startswith("outlive_runs_running{")
    )
