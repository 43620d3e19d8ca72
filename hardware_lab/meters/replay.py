"""`replay`: a trace that another instrument recorded, from a file.

For people who record with an instrument of their own, and for tests. The file is read when the
measurement is over, so that it may be written meanwhile; its columns are those that
`coralline.runtime.power.read_trace` reads.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from coralline.errors import UserError
from coralline.runtime.power import Trace, read_trace
from hardware_lab.meters import Meter

CLOCKS = ("start", "monotonic", "unix")


@dataclass(frozen=True, kw_only=True)
class Replay(Meter):
    """A file of samples.

    Attributes:
        path: CSV or Parquet.
        clock: What its `t_s` counts from: `start` (its first sample is taken when the meter is
            started), `monotonic` (CLOCK_MONOTONIC of this machine) or `unix` (1970, UTC).
        bound_s: How far its clock may be off.
    """

    path: str
    clock: str = "start"
    bound_s: float = 0.0

    kind = "replay"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clock not in CLOCKS:
            raise UserError(f"clock {self.clock!r} is not known; choose {', '.join(CLOCKS)}")
        if self.bound_s < 0:
            raise UserError("bound_s must be at least 0")

    def open(self) -> ReplayedTrace:
        """The trace."""
        return ReplayedTrace(self)


class ReplayedTrace:
    """A file that was recorded, or will be by the time it is wanted."""

    def __init__(self, meter: Replay) -> None:
        self._meter = meter

    def reset(self) -> str:
        """Name the file."""
        return f"recorded in {Path(self._meter.path).name}"

    def start(self) -> None:
        """Note the time."""
        self._started_s = time.monotonic()

    def stop(self) -> None:
        """Nothing to stop."""

    def data(self) -> Trace:
        """The file's samples on the clock of the lab's host."""
        trace = read_trace(Path(self._meter.path))
        zero = {
            "start": self._started_s - trace.t_s[0],
            "monotonic": 0.0,
            "unix": time.monotonic() - time.time(),
        }[self._meter.clock]
        return replace(trace, t_s=trace.t_s + zero, bound_s=trace.bound_s + self._meter.bound_s)
