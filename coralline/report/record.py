"""What a report is made from."""

from __future__ import annotations

from coralline.runtime.measurement import Measurement
from coralline.staging.problem import Plan


def predicted_over_measured(plan: Plan, measurement: Measurement) -> float | None:
    """The bottleneck that the plan's device model predicts over the measured one.

    None where the board is not the device that the plan was made for: the two times then
    have nothing to do with each other.
    """
    if measurement.environment.get("device") != plan.device:
        return None
    return float(max(plan.stages["stage_ms"])) / measurement.measured_bottleneck_ms
