"""docker-compose.yml and Grafana's provisioning, as far as they can be checked without an engine."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from outlive_service.app import create_app
from outlive_service.settings import PartnerSettings, Settings, load_settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
PROVISIONING = ROOT / "grafana" / "provisioning"
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+):-([^}]*)\}")
WITHOUT_HEALTH = {
    "collector": "the image holds one program that can't ask itself; Prometheus watches it",
    "traffic": "it listens to nothing, and ends when it can't do its work",
}


def filled_in(text: str) -> Any:
    """The file as compose reads it where no variable is set."""
    return yaml.safe_load(VARIABLE.sub(lambda found: found[2], text))


CONFIG: dict[str, Any] = filled_in(COMPOSE.read_text())
SERVICES: dict[str, dict[str, Any]] = CONFIG["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)

each_service = pytest.mark.parametrize("name", sorted(SERVICES))


def environment(name: str) -> dict[str, str]:
    return {key: str(value) for key, value in SERVICES[name].get("environment", {}).items()}


def seconds(value: str) -> float:
    (number,) = re.findall(r"^(\d+)s$", value)
    return float(number)


def mebibytes(value: str) -> float:
    number, unit = re.findall(r"^(\d+)([mg])$", value)[0]
    return float(number) * {"m": 1, "g": 1024}[unit]


def mounts(name: str) -> Iterator[tuple[str, str, str]]:
    for volume in SERVICES[name].get("volumes", []):
        source, target, mode = (*volume.split(":"), "rw")[:3]
        yield source, target, mode


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name in PartnerSettings.model_fields:
        monkeypatch.delenv(f"PARTNER_{name}".upper(), raising=False)


def validate(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_is_what_the_compose_specification_says(tmp_path: Path) -> None:
    done = validate(COMPOSE)
    assert done.returncode == 0, done.stdout + done.stderr

    broken = tmp_path / "docker-compose.yml"
    broken.write_text(COMPOSE.read_text().replace("stop_grace_period:", "stop_grace_time:"))
    assert "stop_grace_time" in validate(broken).stdout


def test_every_image_has_a_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, service in SERVICES.items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?$", service["image"]), name
    assert {SERVICES[name]["image"] for name in OURS} == {f"outlive:{version}"}


def test_every_port_is_published_on_loopback_only_and_once() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) >= 5
    parts = [port.split(":") for port in published]
    assert {address for address, _, _ in parts} == {"127.0.0.1"}
    assert len({port for _, port, _ in parts}) == len(parts)


@each_service
def test_every_service_is_hardened_and_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"cap_add", "privileged", "network_mode", "pid", "ipc", "devices"}
    assert service["cpus"] > 0
    assert mebibytes(service["mem_limit"]) <= 2048
    assert 0 < service["pids_limit"] <= 256
    assert all(re.search(r":size=\d+m$", entry) for entry in service["tmpfs"])
    if name not in OURS:  # the Dockerfile says it for ours
        assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])


@each_service
def test_every_service_comes_back_and_its_log_is_rotated(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert seconds(service["stop_grace_period"]) >= 10


@each_service
def test_every_service_tells_its_health_or_has_a_reason_not_to(name: str) -> None:
    health = SERVICES[name].get("healthcheck")
    if name in WITHOUT_HEALTH:
        assert health == {"disable": True}
    elif name == "service":
        assert health is None  # the image's own
        assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()
    else:
        assert health is not None
        # No shell: a health check must not depend on the image having one.
        assert health["test"][0] == "CMD"


@each_service
def test_services_start_in_the_order_of_health(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        expected = "service_started" if other in WITHOUT_HEALTH else "service_healthy"
        assert how["condition"] == expected, other


def test_the_service_waits_for_what_it_needs_and_for_no_telemetry() -> None:
    waited_for = {
        other: how["condition"] == "service_healthy"
        for other, how in SERVICES["service"]["depends_on"].items()
    }
    assert waited_for == {"database": True, "partner": True, "collector": False}
    assert SERVICES["traffic"]["depends_on"]["service"]["restart"] is True


@each_service
def test_mounts_exist_and_only_named_volumes_are_written(name: str) -> None:
    for source, target, mode in mounts(name):
        assert target.startswith("/")
        if source.startswith("."):
            assert (ROOT / source).is_dir(), source
            assert mode == "ro", source
        else:
            assert source in CONFIG["volumes"]


@each_service
def test_configuration_files_in_commands_are_in_the_mounts(name: str) -> None:
    for word in SERVICES[name].get("command", []):
        if found := re.fullmatch(r"--config(?:\.file)?=(.+)", word):
            places = {target: ROOT / source for source, target, _ in mounts(name)}
            file = Path(found[1])
            assert (places[str(file.parent)] / file.name).is_file(), word


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize(
    ("name", "kind", "prefix"), [("service", Settings, ""), ("partner", PartnerSettings, "PARTNER_")]
)
def test_the_environment_is_made_of_settings_that_exist(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: type[Any], prefix: str
) -> None:
    told = environment(name)
    ours = {key for key in told if not key.startswith("OTEL_")}
    assert ours <= {f"{prefix}{field}".upper() for field in kind.model_fields}
    for key, value in told.items():
        monkeypatch.setenv(key, value)
    settings = load_settings(kind)
    assert settings != kind.model_construct()


def check(told: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outlive", "check"]
    return subprocess.run(
        command, env={"PATH": os.environ["PATH"], **told}, capture_output=True, text=True, check=False
    )


def test_the_stop_grace_fits_the_drain() -> None:
    told = environment("service")
    assert float(told["STOP_GRACE"]) == seconds(SERVICES["service"]["stop_grace_period"])
    done = check(told)
    assert done.returncode == 0, done.stdout + done.stderr

    longest = sum(float(told[name]) for name in ("SHUTDOWN_DELAY", "GRACEFUL_TIMEOUT", "DRAIN_TIMEOUT"))
    assert f"a stop takes at most {longest:g} s" in done.stdout
    assert check({**told, "STOP_GRACE": str(longest - 1)}).returncode == 1


def test_a_drain_is_longer_than_the_time_between_two_scrapes() -> None:
    interval = yaml.safe_load((ROOT / "otel" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert float(environment("service")["SHUTDOWN_DELAY"]) > seconds(interval)


def test_what_the_collector_and_jaeger_are_told_is_asked_for() -> None:
    for name in ("collector", "jaeger"):
        config = (ROOT / "otel" / f"{name}.yaml").read_text()
        told = environment(name)
        memory = int(told.pop("GOMEMLIMIT").removesuffix("MiB"))
        assert 0.7 < memory / mebibytes(SERVICES[name]["mem_limit"]) <= 0.8
        assert [key for key in told if f"${{env:{key}" not in config] == []


def test_every_address_is_that_of_a_service() -> None:
    text = "".join(str(environment(name)) for name in SERVICES)
    hosts = set(re.findall(r"https?://([a-z-]+):\d+|@([a-z-]+):\d+", text))
    names = {one or other for one, other in hosts}
    for file in (ROOT / "otel" / "targets").glob("*.json"):
        for group in json.loads(file.read_text()):
            names |= {target.partition(":")[0] for target in group["targets"]}
    for file in (ROOT / "otel").glob("*.yaml"):
        names |= set(re.findall(r":-(?:http://)?([a-z]+):\d+\}", file.read_text()))
    assert {"service", "partner", "database", "collector", "jaeger", "prometheus"} <= names
    assert names - {"localhost"} <= SERVICES.keys()


def test_the_example_of_an_environment_shows_every_variable_and_its_default() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    shown = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert shown == dict(VARIABLE.findall(COMPOSE.read_text()))
    assert "$" not in VARIABLE.sub("", COMPOSE.read_text())  # no variable without a default


def test_the_page_on_operations_names_only_what_exists() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    text = page + "".join(file.read_text() for file in (ROOT / "otel").glob("*.yaml")) + COMPOSE.read_text()
    known = {name.upper() for name in Settings.model_fields}
    known |= set(re.findall(r"\$\{(?:env:)?(\w+):-", text)) | set(environment("grafana"))
    known |= set(re.findall(r"^ +(\w+)=", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?<![\w$])([A-Z]+(?:_[A-Z]+)+)\b", page))
    assert {name for name in named - known if not name.startswith(("OTEL_", "PROMETHEUS_"))} == set()

    alerts = (ROOT / "otel" / "rules" / "alerts.yml").read_text()
    for alert in set(re.findall(r"\bOutlive[A-Z]\w+", page)):
        assert f"alert: {alert}\n" in alerts


@pytest.mark.skipif(shutil.which("git") is None, reason="git isn't here")
def test_an_environment_of_one_s_own_is_not_committed() -> None:
    done = subprocess.run(["git", "ls-files", ".env"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == ""


# Grafana's provisioning.


def expanded(value: Any, told: dict[str, str]) -> Any:
    """As Grafana does it: in values, variables are filled in, and $$ is a dollar sign."""
    match value:
        case dict():
            return {key: expanded(inner, told) for key, inner in value.items()}
        case list():
            return [expanded(inner, told) for inner in value]
        case str():
            parts = value.split("$$")
            return "$".join(re.sub(r"\$\{?(\w+)\}?", lambda found: told[found[1]], part) for part in parts)
        case _:
            return value


def sources() -> dict[str, dict[str, Any]]:
    file = yaml.safe_load((PROVISIONING / "datasources" / "outlive.yaml").read_text())
    return {source["type"]: source for source in expanded(file, environment("grafana"))["datasources"]}


def test_data_sources_have_the_uids_that_others_use() -> None:
    found = sources()
    assert {kind: source["uid"] for kind, source in found.items()} == {
        "prometheus": "outlive-prometheus",
        "jaeger": "outlive-jaeger",
    }
    assert found["prometheus"]["url"] == "http://prometheus:9090"
    assert found["jaeger"]["url"] == "http://jaeger:16686"
    assert not any(source["editable"] for source in found.values())


def test_the_data_source_s_interval_is_the_scrape_interval() -> None:
    interval = yaml.safe_load((ROOT / "otel" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert sources()["prometheus"]["jsonData"]["timeInterval"] == interval


def test_an_exemplar_leads_to_its_trace() -> None:
    by_page, by_source = sources()["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert {by_page["name"], by_source["name"]} == {"trace_id"}
    port = SERVICES["jaeger"]["ports"][0].split(":")[1]
    assert by_page["url"] == f"http://localhost:{port}/trace/${{__value.raw}}"
    assert by_source["datasourceUid"] == sources()["jaeger"]["uid"]


def test_a_trace_leads_back_to_metrics_that_exist() -> None:
    jaeger = sources()["jaeger"]["jsonData"]
    assert jaeger["nodeGraph"] == {"enabled": True}
    back = jaeger["tracesToMetrics"]
    assert back["datasourceUid"] == sources()["prometheus"]["uid"]

    registry = CollectorRegistry()
    create_app(Settings(), registry=registry)
    families = {family.name: family for family in registry.collect()}
    labels = {tag["value"] for tag in back["tags"]}
    for query in back["queries"]:
        ((name, by),) = [
            (metric, words)
            for words in re.findall(r"by \(([^)]+)\)", query["query"])
            for metric in re.findall(r"(\w+)\{\$__tags\}\[\$__rate_interval\]", query["query"])
        ]
        assert re.sub(r"_(total|bucket)$", "", name) in families
        assert labels & set(by.split(", "))


def test_dashboards_are_read_from_their_mount_and_not_edited() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "outlive.yaml").read_text())["providers"]
    assert provider["options"]["path"] in {target for _, target, _ in mounts("grafana")}
    assert provider["allowUiUpdates"] is False
    home = environment("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "grafana" / "dashboards" / Path(home).name).is_file()


def test_dashboards_name_only_data_sources_that_are_provisioned() -> None:
    known = {source["uid"] for source in sources().values()}
    files = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
    assert files
    for file in files:
        text = file.read_text()
        assert json.loads(text)["uid"] == file.stem
        named = set(re.findall(r'"datasource": \{[^}]*"uid": "([^"]+)"', text))
        # Grafana's own, for its annotations, and the variable that every dashboard has.
        assert named <= known | {"-- Grafana --", "grafana", "${datasource}"}, file.name


def test_nobody_can_log_in_and_nothing_is_saved() -> None:
    told = environment("grafana")
    assert told["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert told["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert told["GF_AUTH_BASIC_ENABLED"] == "false"
    assert not [key for key in told if "PASSWORD" in key]
