"""The committed dashboards: made by the code, complete, and asking only for what there is."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from fastapi.testclient import TestClient
from names import Metric, scraped, selected, wrong_names
from programs import tool
from prometheus_client import CollectorRegistry, ProcessCollector
from queries import panels, queries, resolve

from outlive import Outcome
from outlive.dashboards import build_dashboards, check_dashboards, write_dashboards
from outlive_service.app import create_app
from outlive_service.settings import Settings

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "grafana" / "dashboards"
UIDS = {"outlive-flows", "outlive-task", "outlive-connections", "outlive-objectives", "outlive-pipeline"}
DASHBOARDS = {file.stem: json.loads(file.read_text()) for file in sorted(COMMITTED.glob("*.json"))}
PANELS = [
    pytest.param(dashboard, panel, id=f"{uid}: {panel['title']}")
    for uid, dashboard in DASHBOARDS.items()
    for panel in panels(dashboard)
]
CHOSEN = {"task": "save_transcript"}
ELSEWHERE = re.compile(r"otelcol_|traces_|prometheus_|scrape_|up$|ALERTS$|outlive:")
"""What the service doesn't expose: the live stack has it, and of recording rules there is a test below."""


@pytest.fixture(params=sorted(UIDS))
def dashboard(request: pytest.FixtureRequest) -> Any:
    return DASHBOARDS[request.param]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    """A scrape of the service after one room and one request."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    settings = Settings(
        database_url=f"sqlite:///{tmp_path_factory.mktemp('service')}/outlive.db",
        partner_url="http://127.0.0.1:9",
        departure_grace=0,
    )
    with TestClient(create_app(settings, registry=registry)) as client:
        with client.websocket_connect("/rooms/lobby?user=ann") as ann:
            assert ann.receive_json()["type"] == "welcome"
        assert client.get("/exports/usage.csv?user=ann").status_code == 200
        return scraped(client.get("/metrics").text)


def command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "outlive", "dashboards", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_there_are_five() -> None:
    assert DASHBOARDS.keys() == UIDS


def test_the_committed_ones_are_what_the_code_makes(tmp_path: Path) -> None:
    written = write_dashboards(tmp_path)
    assert {file.name: file.read_bytes() for file in written} == {
        file.name: file.read_bytes() for file in COMMITTED.glob("*.json")
    }
    assert check_dashboards(COMMITTED) == []


def test_the_bytes_are_the_same_in_every_process(tmp_path: Path) -> None:
    done = command("--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(str(file) for file in tmp_path.glob("*.json"))
    assert check_dashboards(tmp_path) == []


def test_a_difference_is_told(tmp_path: Path) -> None:
    write_dashboards(tmp_path)
    (tmp_path / "outlive-task.json").unlink()
    (tmp_path / "outlive-old.json").write_text("{}")
    flows = tmp_path / "outlive-flows.json"
    flows.write_text(flows.read_text().replace("Disconnect flows", "Flows", 1))
    done = command("--check", "--out", tmp_path)
    assert done.returncode == 1
    for sentence in (
        "outlive-task.json is missing",
        "outlive-old.json is made by nothing",
        "outlive-flows.json differs",
    ):
        assert sentence in done.stderr
    assert f"run `outlive dashboards --out {tmp_path}" in done.stderr
    assert command("--check").returncode == 0


def test_another_data_source_is_the_one_to_start_with(tmp_path: Path) -> None:
    assert command("--out", tmp_path, "--datasource", "mine").returncode == 0
    assert command("--check", "--out", tmp_path, "--datasource", "mine").returncode == 0
    assert command("--check", "--out", tmp_path).returncode == 1
    for uid in UIDS:
        dashboard = json.loads((tmp_path / f"{uid}.json").read_text())
        assert dashboard["templating"]["list"][0]["current"]["value"] == "mine"
        assert "outlive-prometheus" not in json.dumps(dashboard)


def test_without_the_sdk_the_command_says_what_it_needs() -> None:
    script = (
        "import sys; sys.modules['grafana_foundation_sdk.builders'] = None\n"
        "sys.argv = ['outlive', 'dashboards', '--check']\n"
        "from outlive.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'outlive[dashboards]'" in done.stderr


def test_each_can_be_looked_at_but_not_edited(dashboard: Any) -> None:
    assert dashboard["editable"] is False
    assert dashboard["refresh"] == "10s"
    assert dashboard["tags"] == ["outlive"]
    assert dashboard["description"]
    assert [(link["type"], link["tags"]) for link in dashboard["links"]] == [("dashboards", ["outlive"])]
    assert dashboard["links"][0]["keepTime"]
    assert dashboard["links"][0]["includeVars"]
    assert {annotation["name"] for annotation in dashboard["annotations"]["list"]} >= {"Drains", "Deploys"}


def test_each_has_its_variables(dashboard: Any) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for name in ("job", "instance"):
        assert variables[name]["multi"]
        assert variables[name]["includeAll"]
        assert variables[name]["allValue"] == ".+"
    own = {"outlive-task": {"task"}, "outlive-connections": {"route", "transport"}}
    assert variables.keys() >= own.get(dashboard["uid"], set())


def test_ids_are_unique_and_nothing_overlaps(dashboard: Any) -> None:
    everything = dashboard["panels"] + [
        inner for row in dashboard["panels"] for inner in row.get("panels") or []
    ]
    assert max(Counter(panel["id"] for panel in everything).values()) == 1
    assert max(Counter(panel["title"] for panel in panels(dashboard)).values()) <= 2
    cells: Counter[tuple[int, int]] = Counter()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24, panel["title"]
        cells.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
    assert max(cells.values()) == 1
    # No holes either: each row of the grid is full.
    assert len(cells) == 24 * (max(y for _, y in cells) + 1)


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_every_panel_tells_what_it_shows_and_what_to_do(dashboard: Any, panel: Any) -> None:
    shows, bad = panel["description"].split("\n\n**When it looks bad:** ")
    assert panel["title"]
    assert len(shows) > 30
    assert len(bad) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["noValue"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    assert all(target["expr"].strip() for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_rates_and_ratios_are_safe(dashboard: Any, panel: Any) -> None:
    for target in panel["targets"]:
        windows = re.findall(r"i?rate\([^\[]*\[([^\]]+)\]", target["expr"])
        assert set(windows) <= {"$__rate_interval"}, target["expr"]
        for divisor in re.findall(r" / (?:on \([^)]*\) )?(.{12})", target["expr"] + " " * 12):
            # By what can be nothing only where it is more than nothing; a timeout and a budget never are.
            assert divisor.startswith(("(", "max by (", "0.001")), target["expr"]


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_two_hundred_tasks_can_be_read(dashboard: Any, panel: Any) -> None:
    if panel["type"] == "table":
        return
    for target in panel["targets"]:
        many = re.findall(r"by \([^)]*\b(?:task|route|instance)\b[^)]*\)", target["expr"])
        bounded = target["expr"].startswith(("topk(", "max(", "count("))
        # Of what drains or queues there are few.
        few = "outlive_draining" in target["expr"] or "otelcol_" in target["expr"]
        assert not many or bounded or few, target["expr"]


def test_outcomes_have_one_colour_each_everywhere() -> None:
    colours: dict[str, set[str]] = {}
    for dashboard in DASHBOARDS.values():
        for panel in panels(dashboard):
            named: dict[str, str] = {}
            for override in panel["fieldConfig"]["overrides"]:
                for setting in override["properties"]:
                    if setting["id"] == "color" and "fixedColor" in setting["value"]:
                        named[override["matcher"]["options"]] = setting["value"]["fixedColor"]
            if any(target.get("legendFormat") == "{{outcome}}" for target in panel["targets"]):
                assert named.keys() >= {outcome.value for outcome in Outcome}, panel["title"]
            for outcome in Outcome:
                if outcome.value in named:
                    colours.setdefault(outcome.value, set()).add(named[outcome.value])
    assert colours == {
        "completed": {"green"},
        "timed_out": {"orange"},
        "cancelled": {"blue"},
        "failed": {"red"},
        "rejected": {"purple"},
    }


def test_no_address_is_hard_coded(dashboard: Any) -> None:
    text = json.dumps(dashboard)
    assert re.findall(r"https?://|localhost|\b\d+\.\d+\.\d+\.\d+\b|:\d{4,5}\b", text) == []


def urls(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("url"), str) and value["url"]:
            yield value["url"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from urls(inner)


def test_links_lead_to_traces_and_to_our_own_dashboards() -> None:
    tags, linked = set(), set()
    for dashboard in DASHBOARDS.values():
        variables = {variable["name"] for variable in dashboard["templating"]["list"]}
        for url in urls(dashboard["panels"]):
            used = set(re.findall(r"\$\{(\w+)", url))
            assert {name for name in used if not name.startswith("__")} <= variables, url
            parts = urlsplit(url)
            if parts.path == "/explore":
                filled = resolve(
                    re.sub(r"\$\{__(?:field|value)[^}]*\}", "x", parts.query),
                    {"service": "s", "traces": "t", "task": "x", "__from": "1", "__to": "2"},
                )
                (pane,) = json.loads(parse_qs(filled)["panes"][0]).values()
                assert pane["datasource"] == pane["queries"][0]["datasource"]["uid"] == "t"
                assert pane["range"] == {"from": "1", "to": "2"}
                assert pane["queries"][0]["service"] == "s"
                tags.add(pane["queries"][0]["tags"])
            else:
                linked.add(parts.path.removeprefix("/d/"))
    assert tags == {"outlive.outcome=x", "outlive.task=x", "outlive.task=x outlive.outcome=x"}
    assert linked == {"outlive-task"}


def test_every_name_is_in_a_real_scrape(dashboard: Any, service: dict[str, Metric]) -> None:
    wrong, held = [], 0
    for query in queries(dashboard, CHOSEN):
        foreign = {name for name in selected(query.expr) if ELSEWHERE.match(name)}
        held += len(selected(query.expr) - foreign)
        # What is elsewhere has some labels that we can't know of here.
        wrong += [
            f"{query}\n  {sentence}"
            for sentence in wrong_names(query.expr, service)
            if not any(sentence == f"there is no metric {name}" for name in foreign)
        ]
    assert wrong == []
    assert held > 10


@pytest.mark.parametrize(
    ("right", "broken", "sentence"),
    [
        ("outlive_runs_total", "outlive_run_total", "there is no metric outlive_run_total"),
        ("timed_out|", "timeout|", "outlive_runs_total has no outcome 'timeout'"),
        ("outcome=~", "result=~", "outlive_runs_total has no label result"),
        ("by (outcome)", "by (outcomes)", "there is no label outcomes in outlive_runs_total"),
        ('kind="pending"', 'kind="waiting"', "outlive_runs_limit has no kind 'waiting'"),
        ("on (job, task)", "on (job, name)", "there is no label name in outlive_run_duration_seconds_bucket"),
        ("_bucket{", "_buckets{", "there is no metric outlive_disconnect_tail_seconds_buckets"),
    ],
)
def test_a_wrong_name_is_found(right: str, broken: str, sentence: str, service: dict[str, Metric]) -> None:
    text = json.dumps(build_dashboards()["outlive-flows"])
    escaped, damaged = json.dumps(right)[1:-1], json.dumps(broken)[1:-1]
    assert escaped in text
    found = [
        wrong
        for query in queries(json.loads(text.replace(escaped, damaged)), CHOSEN)
        for wrong in wrong_names(query.expr, service)
    ]
    assert any(wrong.startswith(sentence) for wrong in found), found


def test_what_the_rules_record_is_what_is_asked_for() -> None:
    rules = yaml.safe_load((ROOT / "otel" / "rules" / "recording.yml").read_text())
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    asked = {
        name
        for dashboard in DASHBOARDS.values()
        for query in queries(dashboard, CHOSEN)
        for name in selected(query.expr)
        if ":" in name
    }
    assert asked
    assert asked <= recorded


def test_queries_resolve_as_in_grafana(dashboard: Any) -> None:
    found = queries(
        dashboard, {**CHOSEN, "job": ["a.b", "c"], "instance": ["one:1"], "__rate_interval": "7s"}
    )
    assert not [query.expr for query in found if "$" in query.expr]
    text = "\n".join(query.expr for query in found)
    assert 'job=~"(a\\\\.b|c)"' in text
    assert 'instance=~"one:1"' in text
    assert "[7s]" in text
    assert {query.source for query in found} == {"panel", "annotation", "variable"}


def test_a_variable_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError, match="task"):
        queries(DASHBOARDS["outlive-task"], {})


def test_the_linter_finds_nothing(dashboard: Any) -> None:
    file = COMMITTED / f"{dashboard['uid']}.json"
    done = subprocess.run(
        [tool("dashboard-linter"), "lint", "--strict", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_exclusion_of_the_linter_has_its_reason_and_its_panel() -> None:
    excluded = yaml.safe_load((COMMITTED / ".lint").read_text())["exclusions"]
    titles = {
        (dashboard["title"], panel["title"])
        for dashboard in DASHBOARDS.values()
        for panel in panels(dashboard)
    }
    for rule in excluded.values():
        assert rule["reason"]
        for entry in rule["entries"]:
            assert entry["reason"]
            assert (entry["dashboard"], entry["panel"]) in titles
