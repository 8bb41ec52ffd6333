"""The matrix, on real servers: every server and every end; the ways besides Outlive where the server stays.

`outlive conformance --full` plays them all.
"""

import asyncio
from collections.abc import Iterable

import pytest

from outlive_conformance.matrix import End, Group, Way, groups, impossible
from outlive_conformance.play import play
from outlive_conformance.servers import SERVERS, UVICORN, Server
from outlive_conformance.verdict import Fate, Finding

STAYING = tuple(end for end in End if not end.is_stop)
PARTS = {
    "the server stays": STAYING,
    "it stops": (End.STOP_BEFORE, End.STOP_AT, End.STOP_AFTER),
    "it stops with a graceful timeout": (End.STOP_BEFORE_GRACE, End.STOP_AT_GRACE, End.STOP_AFTER_GRACE),
    "it restarts": (End.WORKERS, End.RELOAD, End.SECOND_SIGNAL),
}


def parts() -> Iterable[object]:
    for server in SERVERS:
        for name, ends in PARTS.items():
            if found := list(groups((server,), ends, full=False)):
                missing = f"{', '.join(server.missing)} is not installed"
                skip = pytest.mark.skipif(bool(server.missing), reason=missing)
                yield pytest.param(server, found, id=f"{server}-{name}", marks=skip)


@pytest.mark.parametrize(("server", "found"), list(parts()))
def test_outlive_loses_nothing(server: Server, found: list[Group]) -> None:
    verdicts = asyncio.run(play(found, at_once=2))
    assert [problem for verdict in verdicts for problem in verdict.all_problems] == []
    ours = [
        finding
        for verdict in verdicts
        for finding in verdict.findings
        if finding.cell.way.is_outlives and not impossible(server, finding.cell.end)
    ]
    assert {finding.fate for finding in ours} <= {Fate.DONE}
    if STAYING[0] in found[0].ends:
        assert_others_lose_what_they_must(verdicts[0].findings)


def assert_others_lose_what_they_must(findings: Iterable[Finding]) -> None:
    # A matrix in which nobody loses anything shows nothing.
    lost = {finding.cell.way for finding in findings if finding.fate is Fate.LOST}
    assert Way.PLAIN_AWAIT in lost


def test_the_slice_covers_every_server_every_end_and_every_way() -> None:
    played = {(cell.server, cell.end, cell.way) for group in groups(full=False) for cell in group.cells}
    everything = {(cell.server, cell.end, cell.way) for group in groups() for cell in group.cells}
    assert {one[:2] for one in played} == {one[:2] for one in everything}
    assert {one[2] for one in played} == set(Way)
    assert {one for one in everything if one[2].is_outlives} <= played
    assert {end for _, end, _ in everything} == set(End)


def test_at_a_stop_no_other_way_shares_a_process() -> None:
    # While a server waits for one of them, another could finish.
    for group in groups():
        if any(end.is_stop for end in group.ends):
            assert len(group.ends) == 1
            assert len(group.ways) == 1 or group.is_outlives


def test_nothing_is_promised_but_where_it_can_be_kept() -> None:
    impossibles = {(str(server), end) for server in SERVERS for end in End if impossible(server, end)}
    assert {server for server, _ in impossibles} == {str(server) for server in SERVERS}
    assert {end for server, end in impossibles if server == str(UVICORN)} == {End.SECOND_SIGNAL}
    assert {end for server, end in impossibles if server == "daphne"} == {end for end in End if end.is_stop}
