"""A measurement with a meter beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from coralline.errors import CorallineError, DeviceError
from coralline.runtime.energy import Identity, energy_record
from coralline.runtime.measurement import Measurement
from coralline.runtime.power import Trace, write_trace
from hardware_lab.boards import Task
from hardware_lab.meters import Meter
from hardware_lab.meters.process import Recording

TRACE_FILE = "power.parquet"


def metered(meter: Meter | None, task: Task, run: Callable[[float], Measurement]) -> Measurement:
    """What `run` measures, with the energy that the meter saw meanwhile.

    A meter that fails costs nothing but the energy: the measurement says why it has none. The
    trace is written into the task's scratch folder.

    Args:
        meter: None for a board without.
        run: Measures, with an idle window of so many seconds.

    Raises:
        UserError: As `run`.
        DeviceError: As `run`.
    """
    if meter is None:
        return run(0.0)
    recording = Recording(meter, task.keep_open, task.stop)
    try:
        try:
            device = recording.identify()
            recording.start()
        except CorallineError as error:
            recording.end()  # one that hangs might take time from what is measured
            return _without(run(0.0), error)
        measured = run(meter.idle_s)
        try:
            return _with(measured, recording.stop(), meter, device, task)
        except CorallineError as error:
            return _without(measured, error)
    finally:
        recording.end()


def _with(
    measured: Measurement, trace: Trace, meter: Meter, device: str, task: Task
) -> Measurement:
    if task.scratch is not None:
        write_trace(trace, task.scratch / TRACE_FILE, measured.windows)
    if not measured.windows:
        raise DeviceError(f"board {measured.board!r} has not told when it did what")
    identity = Identity(meter.name, meter.kind, device, meter.at, meter.accuracy_percent)
    record = energy_record(trace, measured.windows, identity)
    return replace(
        measured,
        meter=meter.name,
        energy=record,
        energy_mj_per_inference=record.whole.gross_mj,
    )


def _without(measured: Measurement, error: CorallineError) -> Measurement:
    return replace(measured, environment={**measured.environment, "meter_failure": str(error)})
