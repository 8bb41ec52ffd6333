"""The types of the public API."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_the_public_api_is_typed_as_it_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("mypy.api", reason="mypy is not installed")
    monkeypatch.chdir(tmp_path)  # away from the project's own settings
    told, errors, status = api.run(
        ["--strict", "--config-file=", f"--cache-dir={tmp_path}", str(HERE / "api.py")]
    )
    assert (told.splitlines()[-1:], errors, status) == (
        ["Success: no issues found in 1 source file"],
        "",
        0,
    ), told
