"""The simulated pipeline against closed forms and against a plain simulation by ticks."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from builders import chain
from hypothesis import given
from hypothesis import strategies as st

from coralline.devices.model import MIB, DeviceModel, load_device
from coralline.errors import UserError
from coralline.runtime.pipeline import QUEUE_DEPTH
from coralline.runtime.simulate import _events, simulate_pipeline, simulated_energy_mj
from coralline.staging import Evaluation, StagingProblem, evaluate, make_plan

DEVICE = load_device("edgetpu-usb")


def costs_of(n_stages: int, device: DeviceModel = DEVICE) -> Evaluation:
    problem = StagingProblem(chain("chain", 12), n_stages, device)
    return evaluate(problem, make_plan(problem, "uniform").stage)


@pytest.mark.parametrize("n_stages", [1, 2, 4, 8])
def test_closed_forms(n_stages: int) -> None:
    costs = costs_of(n_stages)
    run = simulate_pipeline(costs, DEVICE, repetitions=100, warmup=5)
    slowest = costs.stage_ms.max()
    assert 1e3 * run.wall_s == pytest.approx(100 * slowest)
    np.testing.assert_allclose(run.latency_ms, costs.stage_ms.sum())
    np.testing.assert_allclose(
        run.stage_busy_ms + run.transfer_ms, np.tile(costs.stage_ms, (100, 1)).T
    )
    np.testing.assert_allclose(
        run.full_latency_ms,
        (run.stage_busy_ms + run.transfer_ms + run.queue_wait_ms).sum(axis=0),
    )
    active = costs.stage_ms.sum()
    assert simulated_energy_mj(costs, DEVICE, run) == pytest.approx(
        active * DEVICE.active_w + (n_stages * slowest - active) * DEVICE.idle_w
    )
    assert run.outputs_equal is None


def test_first_inference_loads_what_the_caches_keep() -> None:
    params = np.array([3 * MIB, MIB // 2, 2 * MIB])
    costs = replace(costs_of(3), param_bytes=params, streamed_bytes=np.maximum(params - MIB, 0))
    run = simulate_pipeline(costs, DEVICE, repetitions=1, warmup=0)
    loaded = 2.5
    assert run.first_inference_ms - run.latency_ms[0] == pytest.approx(loaded * 2.32)


def by_ticks(stage_ticks: list[int], n_items: int) -> list[list[int]]:
    """When each item starts in each stage, found by advancing a clock one tick at a time."""
    k = len(stage_ticks)
    queues: list[deque[int]] = [deque() for _ in range(k)]
    served: list[tuple[int, int] | None] = [None] * k  # item, ticks left
    start = [[0] * n_items for _ in range(k)]
    entered, finished, now = 0, 0, 0
    while finished < n_items:
        moved = True
        while moved:
            moved = False
            for s in reversed(range(k)):
                work = served[s]
                if work is not None and work[1] <= 0:
                    if s == k - 1:
                        finished += 1
                    elif len(queues[s + 1]) < QUEUE_DEPTH:
                        queues[s + 1].append(work[0])
                    else:
                        continue
                    served[s] = None
                    moved = True
                if served[s] is None and queues[s]:
                    item = queues[s].popleft()
                    served[s] = (item, stage_ticks[s])
                    start[s][item] = now
                    moved = True
            if entered < n_items and len(queues[0]) < QUEUE_DEPTH:
                queues[0].append(entered)
                entered += 1
                moved = True
        now += 1
        served = [None if w is None else (w[0], w[1] - 1) for w in served]
    return start


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 25))
def test_events_agree_with_a_clock(stage_ticks: list[int], n_items: int) -> None:
    _, start, leave = _events(np.array(stage_ticks, float), n_items)
    assert start.tolist() == by_ticks(stage_ticks, n_items)
    assert (leave >= start + np.array(stage_ticks)[:, None]).all()


def test_nothing_varies() -> None:
    a, b = (simulate_pipeline(costs_of(4), DEVICE, repetitions=50, warmup=0) for _ in range(2))
    assert a.full_latency_ms.tobytes() == b.full_latency_ms.tobytes()


def test_no_repetitions() -> None:
    with pytest.raises(UserError, match="0 repetitions"):
        simulate_pipeline(costs_of(2), DEVICE, repetitions=0, warmup=0)
