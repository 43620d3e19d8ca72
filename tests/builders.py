"""Small graphs, plans and measurements that several test modules start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coralline.devices.model import load_device
from coralline.graph import ComputeGraph
from coralline.runtime.measurement import Measurement
from coralline.staging import Plan, StagingProblem, make_plan
from coralline.staging.policy import Policy, save_policy, weight_shapes


def chain(name: str, n: int, seed: int = 0, skip: int = 3) -> ComputeGraph:
    """A chain of n operators with a skip connection over every `skip` of them."""
    rng = np.random.default_rng(seed)
    readers = [[i + 1] + ([i + skip] if i % skip == 0 and i + skip < n else []) for i in range(n)]
    readers[-1] = []
    return ComputeGraph.build(
        name,
        node_names=[f"{name}_{i}" for i in range(n)],
        ops=["CONV_2D"] * n,
        param_bytes=rng.integers(100_000, 2_000_000, n),
        macs=rng.integers(10**6, 10**8, n),
        tensor_bytes=[150_528, *rng.integers(10_000, 200_000, n)],
        tensor_producer=range(-1, n),
        consumers=[[0], *readers],
    )


def measure(plan: Plan, **changes: Any) -> Measurement:
    """What the board `edgetpu-usb-sim` or, with changes, another might say of a plan."""
    rng = np.random.default_rng(7)
    busy = np.array(plan.stages["stage_ms"])[:, None] * rng.normal(1.0, 0.02, 40)
    transfer = np.full_like(busy, 0.1)
    values: dict[str, Any] = {
        "id": f"{plan.graph_name}-{plan.n_stages}-{plan.planner}-sim",
        "model": plan.graph_name,
        "model_digest": "ab" * 32,
        "plan": plan.to_json(),
        "board": "edgetpu-usb-sim",
        "board_kind": "edgetpu-sim",
        "simulated": True,
        "processor": "device model edgetpu-usb",
        "meter": None,
        "started_at": "2026-11-21T03:00:00+00:00",
        "warmup": 5,
        "first_inference_ms": 21.0,
        "latency_ms": tuple((busy.sum(axis=0) + 1.0).tolist()),
        "full_latency_ms": tuple((3.0 * busy.sum(axis=0)).tolist()),
        "wall_s": float(busy.max(axis=0).sum() / 1000),
        "stage_busy_ms": tuple(map(tuple, busy.tolist())),
        "queue_wait_ms": tuple(map(tuple, transfer.tolist())),
        "transfer_ms": tuple(map(tuple, transfer.tolist())),
        "energy_mj_per_inference": 12.5,
        "outputs_equal": True,
        "environment": {"device_digest": plan.device_digest, "numpy": np.__version__},
    }
    return Measurement(**{**values, **changes})


def measure_on_host(plan: Plan, **changes: Any) -> Measurement:
    """The same plan on the processor of this machine, without a meter."""
    simulated = measure(plan)
    return replace(
        simulated,
        **{
            "id": simulated.id.replace("-sim", "-host"),
            "board": "host",
            "board_kind": "host",
            "simulated": False,
            "processor": "a CPU",
            "energy_mj_per_inference": None,
            "environment": {"numpy": np.__version__},
            **changes,
        },
    )


def plan_of(graph: ComputeGraph, planner: str = "topo-dp", stages: int = 3) -> Plan:
    """A plan on the shipped Edge TPU model."""
    return make_plan(StagingProblem(graph, stages, load_device("edgetpu-usb")), planner)


def a_policy(path: Path, seed: int = 0) -> Path:
    """Write a small policy with random weights."""
    rng = np.random.default_rng(seed)
    weights = {
        name: rng.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in weight_shapes(8, 1).items()
    }
    save_policy(path, Policy(weights, {"hidden": 8, "layers": 1}))
    return path
