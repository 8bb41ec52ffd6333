"""Asks a service whether it is ready, again and again, as an orchestrator does, until its input ends; then tells.

    python -m outlive_service.probe URL PATIENCE

A process of its own: the one that makes a storm is too busy itself to measure how long an answer took.
"""

import http.client
import json
import select
import sys
import time
from urllib.parse import urlsplit

INTERVAL = 0.1
"""Seconds from one answer to the next question."""


def probe(url: str, patience: float) -> dict[str, float]:
    """Ask until standard input ends. Times are in seconds; `slowest_at` is one of `time.monotonic`."""
    address = urlsplit(url)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    asked = red = 0
    slowest = slowest_at = 0.0
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        asked_at = time.monotonic()
        # A connection for each question.
        connection = kind(address.netloc, timeout=patience)
        try:
            connection.request("GET", f"{address.path}/readyz")
            ready = connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            ready = False
        finally:
            connection.close()
        took = time.monotonic() - asked_at
        if took > slowest:
            slowest, slowest_at = took, asked_at
        asked += 1
        red += not ready
    return {"asked": asked, "red": red, "slowest": slowest, "slowest_at": slowest_at}


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], float(sys.argv[2]))))
