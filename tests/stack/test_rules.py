"""The configuration and the rules, as far as they can be checked without running anything for long."""

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import OTEL, ROOT, hurried, tool
from typer.testing import CliRunner

from outlive.cli import app

RULES = OTEL / "rules"
RUNBOOKS = ROOT / "docs" / "runbooks"
FILES = [str(path) for path in sorted(RULES.glob("*.yml"))]
TESTS = sorted((RULES / "tests").glob("*.yml"))
PINT = ["--no-color", "--offline", "--config", str(OTEL / "pint.hcl"), "lint", "--min-severity=info"]


def run(name: str, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([tool(name), *arguments], capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


def check(name: str, *arguments: str) -> None:
    status, said = run(name, *arguments)
    assert status == 0, said


def rules(kind: str) -> list[dict[str, Any]]:
    groups = [group for file in FILES for group in yaml.safe_load(Path(file).read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def test_the_collector_takes_its_configuration() -> None:
    check("otelcol", "validate", "--config", str(OTEL / "collector.yaml"))


def test_the_collector_is_made_of_what_it_uses() -> None:
    configured = yaml.safe_load((OTEL / "collector.yaml").read_text())
    for kind in ("receivers", "processors", "connectors", "exporters", "extensions"):
        used = {name.partition("/")[0] for name in configured[kind]}
        pipelines = configured["service"]["pipelines"].values()
        wired = [name for pipeline in pipelines for names in pipeline.values() for name in names]
        wired += configured["service"]["extensions"]
        assert set(configured[kind]) <= set(wired), "configured, and in no pipeline"
        built = run("otelcol", "components")[1]
        (section,) = re.findall(rf"^{kind}:\n((?: .*\n)*)", built, re.MULTILINE)
        assert used <= set(re.findall(r"- name: (\S+)", section))


def test_jaeger_takes_its_configuration() -> None:
    check("jaeger", "validate", "--config", str(OTEL / "jaeger.yaml"))


def test_prometheus_takes_its_configuration() -> None:
    check("promtool", "check", "config", str(OTEL / "prometheus.yml"))


def test_every_job_has_its_targets() -> None:
    configured = yaml.safe_load((OTEL / "prometheus.yml").read_text())
    files = {job["job_name"]: job["file_sd_configs"][0]["files"] for job in configured["scrape_configs"]}
    assert files == {job: [f"targets/{job}.json"] for job in files}
    assert sorted(f"{job}.json" for job in files) == sorted(
        path.name for path in (OTEL / "targets").iterdir()
    )
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for path in (OTEL / "targets").iterdir():
        ((group,),) = [json.loads(path.read_text())]
        for target in group["targets"]:
            assert target.partition(":")[0] in services


def test_promtool_accepts_the_rules() -> None:
    check("promtool", "check", "rules", "--lint=all", "--lint-fatal", *FILES)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_rules_do_what_their_tests_say(path: Path) -> None:
    check("promtool", "test", "rules", str(path))


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires, silent = set(), set()
    for path in TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for asked in case.get("alert_rule_test", []):
                expected = asked.get("exp_alerts") or []
                fires |= {(asked["alertname"], alert["exp_labels"]["severity"]) for alert in expected}
                if not expected:
                    silent.add(asked["alertname"])
    alerts = {(rule["alert"], rule["labels"]["severity"]) for rule in rules("alert")}
    assert fires == alerts
    assert silent == {name for name, _ in alerts}


def test_every_recording_rule_is_tested() -> None:
    tested = " ".join(path.read_text() for path in TESTS)
    assert [rule["record"] for rule in rules("record") if f"{rule['record']}" not in tested] == []


def test_pint_finds_nothing() -> None:
    check("pint", *PINT, "--fail-on=info", *FILES)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("severity: page", "severity: urgent"),
        ("runbook_url: docs/runbooks/OutliveRunsStuck.md", "runbook_url: docs/runbooks/Other.md"),
        ("d/outlive-task?", "d/outlive-nothing?"),
        ("sum by (job, task) (increase", "sum(increase"),
    ],
)
def test_pint_finds_what_is_wrong(right: str, wrong: str, tmp_path: Path) -> None:
    broken = tmp_path / "alerts.yml"
    text = (RULES / "alerts.yml").read_text()
    assert right in text
    broken.write_text(text.replace(right, wrong, 1))
    status, said = run("pint", *PINT, "--fail-on=info", str(broken))
    assert status == 1, said


def test_only_the_wait_is_shorter_in_the_live_tests() -> None:
    for file in FILES:
        text = Path(file).read_text()
        changed = [
            (line, new)
            for line, new in zip(text.splitlines(), hurried(text).splitlines(), strict=True)
            if line != new
        ]
        assert all(re.fullmatch(r"\s+for: \d+[smh]", line) for line, _ in changed)
        assert len(changed) == text.count(" for: ")


# Runbooks.

EACH = pytest.mark.parametrize("path", sorted(RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)


def test_every_alert_has_a_runbook() -> None:
    alerts = {rule["alert"] for rule in rules("alert")}
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == alerts
    for rule in rules("alert"):
        assert (ROOT / rule["annotations"]["runbook_url"]).is_file()


def test_the_dashboard_of_every_alert_exists() -> None:
    uids = {path.stem for path in (ROOT / "grafana" / "dashboards").glob("*.json")}
    for rule in rules("alert"):
        (uid,) = re.findall(r"^http://localhost:3000/d/([\w-]+)", rule["annotations"]["dashboard_url"])
        assert uid in uids


@EACH
def test_a_runbook_can_be_followed(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"# {path.stem}\n")
    assert re.findall("^## (.+)$", text, re.MULTILINE) == [
        "What it means",
        "How to see it",
        "What to do first",
        "How to make sure it is over",
    ]
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (path.parent / link).is_file(), link


@EACH
def test_the_commands_in_a_runbook_exist(path: Path) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for block in re.findall(r"^ *```sh\n(.+?)^ *```$", path.read_text(), re.MULTILINE | re.DOTALL):
        words = shlex.split(block, comments=True)
        assert words[0] in ("docker", "curl", "py-spy"), block
        if words[:2] == ["docker", "compose"]:
            check_compose(words[2:], set(services))


def check_compose(words: Sequence[str], services: set[str]) -> None:
    words = words[: words.index("|")] if "|" in words else words
    options_with_values = {"--since", "--tail"}
    plain = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("-") and before not in options_with_values
    ]
    verb, *named = plain
    assert verb in ("logs", "ps", "up", "restart", "kill", "run"), words
    if verb == "run":
        # What the image's entrypoint is given.
        named, (command, *_) = named[:1], named[1:]
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0, command
    assert set(named) <= services, words
