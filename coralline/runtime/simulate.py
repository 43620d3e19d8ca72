"""The same pipeline on devices that are not here: simulated from a plan and a device model.

Stage s serves an item in `stage_ms[s]`, the device model's time for compute, transfers, streamed
parameters and overhead; a stage that finds the next queue full waits with its item, as the
threads of `coralline.runtime.pipeline` do. With service times that never vary, the events obey

    start[s, i] = max(leave[s - 1, i], leave[s, i - 1])
    leave[s, i] = max(start[s, i] + stage_ms[s], start[s + 1, i - depth])

for item i, stage s and queues of `depth` places; `leave[-1, i]`, the entry of item i into the
pipeline, is when the first queue has a place for it. Following these in the order of the items is
the whole simulation: there is no randomness, and no jitter is made up.

What the model leaves out: a USB host controller shared by several accelerators, the host's own
load, and clock steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import MIB, DeviceModel
from coralline.errors import UserError
from coralline.runtime.pipeline import QUEUE_DEPTH, PipelineRun
from coralline.staging.problem import Evaluation


def simulate_pipeline(
    costs: Evaluation, device: DeviceModel, *, repetitions: int, warmup: int
) -> PipelineRun:
    """Simulated samples of a staging on a chain of `device`, one a stage.

    The first inference also loads, on each device, the parameters that its cache keeps, at the
    rate at which parameters are streamed (SPARTA's k applied to the on-chip bytes).

    Args:
        costs: `coralline.staging.evaluate` of the plan on this device; K stages.
        repetitions: Samples, N.
        warmup: Inferences before the first sample; at least what fills the pipeline is used.

    Raises:
        UserError: `repetitions` is below 1.
    """
    if repetitions < 1:
        raise UserError(f"{repetitions} repetitions: ask for at least 1")
    k = len(costs.stage_ms)
    warmup = max(warmup, k * (1 + QUEUE_DEPTH) + 1)
    latency = float(costs.stage_ms.sum())
    cached = (costs.param_bytes - costs.streamed_bytes).sum()
    before, start, leave = _events(costs.stage_ms, warmup + repetitions)
    transfer = (costs.in_ms + costs.out_ms)[:, None]
    busy = costs.stage_ms[:, None] - transfer
    return PipelineRun(
        warmup=warmup,
        first_inference_ms=latency + float(cached) / MIB * device.stream_ms_per_mib,
        latency_ms=np.full(repetitions, latency),
        at_s=np.arange(repetitions, dtype=np.float64) * latency / 1e3,
        full_latency_ms=(leave[-1] - before[0])[warmup:],
        wall_s=float(leave[-1, -1] - leave[-1, warmup - 1]) / 1e3,
        stage_busy_ms=np.broadcast_to(busy, (k, repetitions)),
        queue_wait_ms=(start - before)[:, warmup:],
        transfer_ms=np.broadcast_to(transfer, (k, repetitions)),
        outputs_equal=None,
    )


def simulated_energy_mj(costs: Evaluation, device: DeviceModel, run: PipelineRun) -> float:
    """Simulated energy of one inference on the full pipeline, in mJ.

    Every device draws `active_w` while its stage serves an item and `idle_w` otherwise.
    """
    interval_ms = 1e3 * run.wall_s / len(run.full_latency_ms)
    active_ms = float(costs.stage_ms.sum())
    idle_ms = len(costs.stage_ms) * interval_ms - active_ms
    return active_ms * device.active_w + idle_ms * device.idle_w


def _events(
    stage_ms: NDArray[np.float64], n_items: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """When each item is ready for, starts and leaves each stage: three float64 (K, n_items)."""
    k = len(stage_ms)
    before, start, leave = (np.zeros((k, n_items)) for _ in range(3))
    for i in range(n_items):
        # The source always has an item; it enters when the first queue has a place.
        ready = start[0, i - QUEUE_DEPTH - 1] if i > QUEUE_DEPTH else 0.0
        for s in range(k):
            before[s, i] = ready
            start[s, i] = max(ready, leave[s, i - 1] if i else 0.0)
            finish = start[s, i] + stage_ms[s]
            leaves_to = start[s + 1, i - QUEUE_DEPTH] if s + 1 < k and i >= QUEUE_DEPTH else 0.0
            leave[s, i] = max(finish, leaves_to)
            ready = finish
    return before, start, leave
