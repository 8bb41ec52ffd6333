"""What the pages say is what the programs do."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from outlive import Outcome

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "from_shield_to_outlive.py"
PAGE = ROOT / "docs" / "from-shield-to-outlive.md"
README = ROOT / "README.md"
RELIABILITY = ROOT / "docs" / "reliability.md"


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_the_table_of_lost_work_is_what_the_example_prints() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=True, timeout=120)
    for page in (PAGE, README):
        table = [
            line.removeprefix("    ")
            for line in page.read_text().splitlines()
            if re.search(r"LOST|saved  |plain-await ", line)
        ]
        assert table == done.stdout.splitlines(), page.name


def test_the_page_shows_the_code_of_the_example() -> None:
    code = EXAMPLE.read_text()
    *shown, scope = python_blocks(PAGE)
    pieces = [piece.strip() for block in shown for piece in block.split("\n\n\n")]
    assert len(pieces) == 5
    assert [piece for piece in pieces if piece not in code] == []
    assert "outlive.scope" in scope


def test_the_code_of_the_readme_runs() -> None:
    (block,) = python_blocks(README)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    with TestClient(names["app"]) as client:
        with client.websocket_connect("/rooms/a") as ws:
            ws.send_text("hello")
        assert client.get("/readyz").json() == {"state": "open"}
    assert names["outlive"].counts.outcomes[Outcome.COMPLETED] == 1


def test_the_code_of_the_live_page_s_doc_runs() -> None:
    (block,) = python_blocks(ROOT / "docs" / "live-page.md")
    names: dict[str, Any] = {}
    exec(compile(block, "live-page.md", "exec"), names)
    with TestClient(names["app"]) as client:
        assert client.get("/outlive/").status_code == 200
        assert client.get("/outlive/state").json()["state"] == "open"
        assert client.get("/outlive/flows").json() == {"flows": []}


def test_every_link_between_the_pages_leads_somewhere() -> None:
    pages = [README, ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


COLLECT = """
import json, sys, pytest

class Marks:
    def pytest_collection_finish(self, session):
        marks = [item.get_closest_marker("reliability") for item in session.items]
        print(json.dumps([mark.args for mark in marks if mark]), file=sys.stderr)

sys.exit(pytest.main(["--collect-only", "-q", "tests/reliability"], plugins=[Marks()]))
"""


def test_every_test_of_reliability_has_its_row() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    marks = json.loads(done.stderr)
    title, rows = "", []
    for line in RELIABILITY.read_text().splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith(("| what is done ", "| --- ")):
            what, seen, passed = line.removeprefix("| ").removesuffix(" |").split(" | ")
            if not passed.startswith("not run: "):
                assert seen, line
                assert passed == "yes", line
            rows.append((title, what))
    # Each is written once and by one command: `make reliability`.
    titles = dict(re.findall(r'"(\w+)": "(\w+)"', (ROOT / "tests/reliability/conftest.py").read_text()))
    assert sorted(rows) == sorted((titles[group], what) for group, what in marks)
