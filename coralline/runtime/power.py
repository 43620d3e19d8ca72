"""What a power meter recorded, and what the machine under it did meanwhile."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coralline.errors import DeviceError, UserError
from coralline.files import replacing

Samples = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """What a machine did between two markers that it set itself.

    Attributes:
        name: `idle` (the model is loaded and has run once), `alone` (one inference in flight) or
            `full` (the pipeline kept full).
        begin_s, end_s: On CLOCK_MONOTONIC of the lab's host.
        inferences: That ended between the two.
        bound_s: How far both may be off, when another machine set them.
    """

    name: str
    begin_s: float
    end_s: float
    inferences: int = 0
    bound_s: float = 0.0


@dataclass(frozen=True)
class Trace:
    """Samples of a meter: N of power, or N of an energy counter.

    Attributes:
        t_s: float64 (N,), growing: when each was taken, on CLOCK_MONOTONIC of the lab's host.
        power_w: float64 (N,): power at that time; None for a counter.
        energy_j: float64 (N,): energy since some time before, never falling; None for the others.
        channels: float64 (N,) each: what else the meter told, as `voltage_v`.
        bound_s: How far `t_s` may be off.
        stale_s: How long before its time a sample may have been taken by the instrument.
        notes: What speaks against the samples, one line each.
    """

    t_s: Samples
    power_w: Samples | None = None
    energy_j: Samples | None = None
    channels: Mapping[str, Samples] = field(default_factory=dict)
    bound_s: float = 0.0
    stale_s: float = 0.0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = self.power_w if self.energy_j is None else self.energy_j
        if values is None or (self.power_w is None) == (self.energy_j is None):
            raise ValueError("a trace has either power_w or energy_j")
        if any(len(row) != len(self.t_s) for row in (values, *self.channels.values())):
            raise DeviceError("the meter's channels have different lengths")
        if not (np.isfinite(self.t_s).all() and np.isfinite(values).all()):
            raise DeviceError("the meter gave samples that are no numbers")
        if (np.diff(self.t_s) <= 0).any():
            raise DeviceError("the meter's clock stood still or ran backwards")
        if self.energy_j is not None and (np.diff(self.energy_j) < 0).any():
            raise DeviceError("the meter's energy counter ran backwards")

    @property
    def is_counter(self) -> bool:
        """Whether the instrument integrates by itself."""
        return self.energy_j is not None

    def energy_until(self, at_s: ArrayLike) -> Samples:
        """Energy from the first sample until these times, in J; they lie within the trace.

        Power is taken to run straight from sample to sample (the trapezoid rule); so is what a
        counter says.
        """
        at = np.asarray(at_s, dtype=np.float64)
        if self.energy_j is not None:
            return np.interp(at, self.t_s, self.energy_j) - self.energy_j[0]
        assert self.power_w is not None
        steps = np.diff(self.t_s) * (self.power_w[1:] + self.power_w[:-1]) / 2
        until = np.concatenate([[0.0], np.cumsum(steps)])
        i = np.clip(np.searchsorted(self.t_s, at, side="right") - 1, 0, len(self.t_s) - 1)
        here = np.interp(at, self.t_s, self.power_w)
        return until[i] + (at - self.t_s[i]) * (self.power_w[i] + here) / 2

    def facts(self) -> dict[str, Any]:
        """Everything but the samples, as JSON values."""
        return {"bound_s": self.bound_s, "stale_s": self.stale_s, "notes": list(self.notes)}


def unwrapped(counts: ArrayLike, limit: float) -> Samples:
    """A counter that begins again at 0 after `limit`, made to grow on; at most once a sample.

    Args:
        counts: float (N,), each from 0 to `limit`.
        limit: What it begins again after.
    """
    found = np.asarray(counts, dtype=np.float64)
    wraps = np.concatenate([[0.0], np.cumsum(np.diff(found) < 0)])
    return found + wraps * limit


def write_trace(trace: Trace, out: Path, windows: Sequence[Window] = ()) -> Path:
    """Write a row a sample as Parquet: `t_s`, `power_w` or `energy_j`, the channels, and `window`,
    the name of the window that it lies in.

    Raises:
        UserError: The file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = np.full(len(trace.t_s), "", dtype=object)
    for window in windows:
        names[(trace.t_s >= window.begin_s) & (trace.t_s <= window.end_s)] = window.name
    kind, values = (
        ("power_w", trace.power_w) if trace.energy_j is None else ("energy_j", trace.energy_j)
    )
    table = pa.table({"t_s": trace.t_s, kind: values, **trace.channels, "window": names})
    table = table.replace_schema_metadata(
        {
            "clock": "CLOCK_MONOTONIC of the lab's host, seconds",
            "windows": json.dumps([asdict(window) for window in windows]),
            "trace": json.dumps(trace.facts()),
        }
    )
    with replacing(out) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return out


def read_trace(path: Path) -> Trace:
    """Read what `write_trace` wrote, or a table of the same columns: Parquet, or CSV with their
    names in its first line. In place of `power_w` it may have `voltage_v` and `current_a`.

    Raises:
        UserError: It is no such file; says what it lacks.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        reader = parquet.read_table if path.suffix == ".parquet" else csv.read_csv
        table = reader(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a trace, .csv or .parquet") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: is not a table ({str(error).splitlines()[0]})") from None
    try:
        columns = {
            name: table[name].to_numpy().astype(np.float64)
            for name in table.column_names
            if name != "window"
        }
    except (ValueError, TypeError, pa.ArrowException):
        raise UserError(f"{path}: holds something else than numbers") from None
    if "t_s" not in columns or len(columns["t_s"]) < 2:
        raise UserError(f"{path}: needs a column t_s, in seconds, and two rows at least")
    t_s = columns.pop("t_s")
    power, energy = columns.pop("power_w", None), columns.pop("energy_j", None)
    if power is None and energy is None and {"voltage_v", "current_a"} <= columns.keys():
        power = columns["voltage_v"] * columns["current_a"]
    if (power is None) == (energy is None):
        raise UserError(
            f"{path}: needs one of power_w and energy_j, or both voltage_v and current_a"
        )
    kept = json.loads((table.schema.metadata or {}).get(b"trace", b"{}"))
    if "notes" in kept:
        kept["notes"] = tuple(kept["notes"])
    try:
        return Trace(t_s, power, energy, columns, **kept)
    except DeviceError as error:
        raise UserError(f"{path}: {error}") from None
