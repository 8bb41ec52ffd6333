"""The page about performance, and the README's words about it, are what was measured."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results.json"


def test_the_page_is_made_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.page", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_says_what_the_page_says() -> None:
    section = (ROOT / "README.md").read_text().partition("## What it costs")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and " x " in line]
    page = (ROOT / "docs" / "performance.md").read_text()
    assert len(rows) >= 5
    assert [row for row in rows if row not in page] == []


def test_the_results_tell_nothing_of_where_they_were_measured() -> None:
    text = RESULTS.read_text()
    assert re.search(r"/(home|root|tmp|Users|work)\b", text) is None
    assert set(json.loads(text)) >= {"python", "cores", "versions", "micro", "growth", "served", "storm"}
