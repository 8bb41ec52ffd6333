"""What Schemathesis makes of the service's OpenAPI document."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

EXAMPLES = 100
"""Of each operation, at most, besides those that the document itself leads to."""
PATIENCE = 55.0


@pytest.mark.reliability(
    "abuse", "Schemathesis with all its checks on every operation of the OpenAPI document"
)
async def test_schemathesis_finds_nothing(
    attacked: Any, serve_process: Any, tmp_path: Path, result: Callable[[str], None]
) -> None:
    report = tmp_path / "schemathesis.json"
    partner = serve_process(command=("-m", "outlive", "partner"), PARTNER_PORT=0, PARTNER_TOKEN_INTERVAL=0)
    async with partner as process:
        url = f"http://{await process.address()}"
        async with attacked(PARTNER_URL=url, UPSTREAM_URL=url, MAX_TOKENS=100) as target:
            search = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "schemathesis.cli", "run", f"http://{target.address}/openapi.json"),
                # The same requests each time: what isn't a change of ours must not turn the build red.
                *("--generation-deterministic", "--checks", "all", "--max-examples", str(EXAMPLES)),
                *("--continue-on-failure", "--request-timeout", "20", "--no-color"),
                *("--report", "json", "--report-json-path", str(report)),
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            try:
                async with asyncio.timeout(PATIENCE):
                    output, _ = await search.communicate()
            finally:
                if search.returncode is None:
                    search.kill()
                    await search.wait()
            assert search.returncode == 0, output.decode()
    found = json.loads(report.read_text())
    operations, cases = found["operations"], found["test_cases"]
    assert operations["tested"] == operations["total"] == 3
    assert found["complete"]
    assert (found["failures"], found["errors"]) == ([], [])
    assert {name: told for name, told in found["warnings"].items() if told} == {}
    assert cases["without_checks"] == 0
    # Not only what is refused reaches the tasks.
    assert target.account["outcomes"]["completed"] == target.account["submitted"] > EXAMPLES
    result(
        f"nothing found in {cases['generated']} requests to {operations['tested']} operations; "
        f"all {target.account['submitted']} runs that they led to completed"
    )
