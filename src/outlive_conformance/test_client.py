"""Leaves WebSockets as a test does that uses Starlette's TestClient: one after another, by the end of a block."""

import json
import sys
import time

from starlette.testclient import TestClient

from outlive_conformance.application import application
from outlive_conformance.surroundings import Surroundings


def leave(paths: list[str]) -> None:
    """Connect to each path and leave, then give the work the time that it would have on a server that stays."""
    surroundings = Surroundings.read()
    with TestClient(application(surroundings), raise_server_exceptions=False) as client:
        for path in paths:
            with client.websocket_connect(path):
                pass
        time.sleep(surroundings.work_seconds * 3)


if __name__ == "__main__":
    leave(json.load(sys.stdin))
