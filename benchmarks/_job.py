"""What a cell is asked for and what it answers: both travel as one line of JSON."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from dataclasses import dataclass
from typing import Any, Literal, cast

StartMethod = Literal["fork", "spawn", "forkserver"]
Work = Literal["throughput", "latency", "make", "endpoint"]
Payload = Literal["ints", "blobs", "arrays"]
Status = Literal["ok", "missing", "hang", "wrong", "error"]

BLOB_BYTES = 1_000_000


def default_start_method() -> StartMethod:
    """Fork where there is one: it is what every peer supports."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


@dataclass(frozen=True)
class Job:
    """One measurement of one side."""

    side: str
    """Key of the side, as in ``_cell.SIDES``."""
    work: Work
    items: int
    """How many items are timed (for ``make`` and ``endpoint``: how many times)."""
    payload: Payload = "ints"
    producers: int = 1
    consumers: int = 1
    maxsize: int = 0
    """Bound of the queue in items; 0 for none."""
    start_method: StartMethod = "fork"
    timeout_s: float = 30.0
    """Deadline for the whole cell's work, in seconds."""
    paths: tuple[str, ...] = ()
    """Directories put in front of ``sys.path`` before the side is imported."""

    @property
    def warm_up(self) -> int:
        """How many items go through the queue before the barrier: the same for each consumer."""
        share = max(1, min(self.items // 5, 20_000) // self.consumers)
        return share * self.consumers

    def dumps(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> Job:
        fields = cast("dict[str, Any]", json.loads(text))
        paths = tuple(fields.pop("paths"))
        return cls(**fields, paths=paths)


@dataclass(frozen=True)
class Outcome:
    """What came of a job."""

    status: Status
    """``missing``: the side can't be imported here. ``hang``: the deadline passed. ``wrong``: the
    count or the sum of the items was not the expected one. ``error``: anything else."""
    value: float = 0.0
    """Items per second; for ``latency`` the median there and back, for ``make`` and ``endpoint``
    the mean of one, both in microseconds."""
    items: int = 0
    seconds: float = 0.0
    """How long the timed part took."""
    detail: str = ""
    """What went wrong, in one line."""
    version: str = ""
    """Name and version of the side's distribution, where it has one."""

    def dumps(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> Outcome:
        return cls(**cast("dict[str, Any]", json.loads(text)))
