"""Grafana dashboards for Outlive's metrics. Needs the extra `dashboards`."""

import json
from pathlib import Path
from typing import Any

from outlive.dashboards.connections import connections
from outlive.dashboards.flows import flows
from outlive.dashboards.objectives import objectives
from outlive.dashboards.pipeline import pipeline
from outlive.dashboards.task import task

__all__ = ["DATASOURCE", "build_dashboards", "check_dashboards", "write_dashboards"]

DATASOURCE = "outlive-prometheus"
"""The uid of the Prometheus data source that is provisioned here."""


def build_dashboards(datasource: str = DATASOURCE) -> dict[str, dict[str, Any]]:
    """All dashboards by uid, for the Prometheus data source with this uid."""
    built = [build(datasource) for build in (flows, task, connections, objectives, pipeline)]
    return {dashboard["uid"]: dashboard for dashboard in built}


def write_dashboards(out: Path, datasource: str = DATASOURCE) -> list[Path]:
    """Write each dashboard to a file of its own, the same bytes every time.

    Parameters:
        out: the folder, made if there is none; files of the same names are overwritten.
        datasource: the uid of the Prometheus data source that the dashboards start with.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = _files(datasource)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
    return [out / name for name in files]


def check_dashboards(out: Path, datasource: str = DATASOURCE) -> list[str]:
    """Compare a folder with what would be written to it: a sentence for each file that differs."""
    files = _files(datasource)
    problems = []
    for name, text in files.items():
        file = out / name
        if not file.exists():
            problems.append(f"{file} is missing")
        elif file.read_bytes() != text.encode():
            problems.append(f"{file} differs from what the code makes")
    problems += [
        f"{file} is made by nothing" for file in sorted(out.glob("*.json")) if file.name not in files
    ]
    return problems


def _files(datasource: str) -> dict[str, str]:
    return {
        f"{uid}.json": json.dumps(dashboard, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for uid, dashboard in build_dashboards(datasource).items()
    }
