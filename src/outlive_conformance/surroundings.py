"""What a process of the matrix is told, and where it notes what it does."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a process of the matrix is told by its environment.

    Parameters:
        database_url, partner_url: what the work writes to and calls.
        folder: for what the process notes.
        work_seconds: how long the work takes between the call and the write.
        ends: the names of the ends to have routes for.
        outlive: whether Outlive is installed.
    """

    database_url: str
    partner_url: str
    folder: str
    work_seconds: float
    ends: Sequence[str]
    outlive: bool

    @classmethod
    def read(cls) -> "Surroundings":
        """Read what `outlive conformance` has written."""
        return cls(**json.loads(os.environ["OUTLIVE_CONFORMANCE"]))

    def note(self, what: str, key: str) -> None:
        """Add a key to one of the lists in the folder; whole, whatever other processes add."""
        with (Path(self.folder) / what).open("a") as file:
            file.write(f"{key}\n")
