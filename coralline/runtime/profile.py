"""Profile this machine's CPU: the time of each operator, run alone with LiteRT on one thread.

The model is cut into one segment an operator. The segments run one after another, round after
round, so that an operator finds the caches as it would inside the model. Its time is the median
over the rounds of the thread's CPU time: with one thread LiteRT computes in the thread that
calls it, so this is the wall time less what the machine's other load takes. From these times
come a graph with measured `compute_ms` and, over one or more models, the constants of a device
model.

Run alone, an operator cannot be merged with its neighbours as XNNPACK merges them in the whole
model, and it pays the call into the runtime. How much that matters is told by
`predicted_over_measured`: the operators' sum over the whole model's time in the same process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Thread
from time import perf_counter, thread_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import KINDS, MIB, DeviceModel, load_device, operator_kind
from coralline.graph import ComputeGraph, read_graph
from coralline.runtime import environment
from coralline.runtime.child import Progress, run_in_child, serve
from coralline.runtime.interpreter import Model
from coralline.staging import StagingProblem, make_plan
from coralline.tflite.split import split_model

WARMUP = 3
TIME_LIMIT_S = 3600.0
HANDOFFS = 500


@dataclass(frozen=True)
class Profile:
    """What one model's operators cost on this machine.

    Attributes:
        graph: The model, each node with its measured `compute_ms`.
        whole_ms: Of the whole model, taken the same way.
        in_ms_per_mib, out_ms_per_mib: Copying tensors into and out of the runtime.
        handoff_ms: Median time to hand an item from one thread to another.
        repetitions: Rounds.
        environment: Of this machine.
    """

    graph: ComputeGraph
    whole_ms: float
    in_ms_per_mib: float
    out_ms_per_mib: float
    handoff_ms: float
    repetitions: int
    environment: Mapping[str, Any]

    @property
    def predicted_over_measured(self) -> float:
        """Sum of the operators' times over the time of the whole model."""
        return float(self.graph.compute_ms.sum()) / self.whole_ms


def profile_model(
    path: Path, *, repetitions: int = 30, seed: int = 0, on_progress: Progress | None = None
) -> Profile:
    """Time each operator of a .tflite model, in a child process.

    Raises:
        UserError: The model cannot be read, split or run.
        DeviceError: The runtime crashed.
    """
    graph = read_graph(path)
    answer = run_in_child(
        __name__,
        {"path": str(path), "repetitions": repetitions, "seed": seed},
        f"profile of {path}",
        on_progress,
        time_limit_s=TIME_LIMIT_S,
    )
    return Profile(graph=graph.with_compute_ms(answer.pop("compute_ms")), **answer)


def fit_device(profiles: Sequence[Profile], name: str = "host-cpu") -> DeviceModel:
    """Device constants that give every operator kind its measured total over the profiles.

    The overhead of an operator is the least time of any; the rate of a kind is all its MACs over
    all its time beyond the overhead. A kind that no model has gets the rate of `elementwise`.
    """
    times = np.concatenate([p.graph.compute_ms for p in profiles])
    macs = np.concatenate([p.graph.macs for p in profiles]).astype(float)
    kinds = np.array([operator_kind(op) for p in profiles for op in p.graph.ops])
    overhead = float(times.min())
    fitted = {}
    for kind in KINDS:
        beyond = float((times - overhead)[kinds == kind].sum())
        if beyond > 0 and macs[kinds == kind].sum() > 0:
            fitted[kind] = float(macs[kinds == kind].sum()) / beyond
    fallback = fitted.get("elementwise", min(fitted.values(), default=1.0))
    machine = profiles[0].environment
    models = ", ".join(p.graph.name for p in profiles)
    source = (
        f"profiled on {machine['cpu']} ({machine['cores']} cores, {machine['machine']}), LiteRT "
        f"{machine['versions']['ai-edge-litert']}, XNNPACK, 1 thread, with {models}; remake with "
        "`coralline profile MODEL --device-out FILE`"
    )
    absent = ", ".join(kind for kind in KINDS if kind not in fitted)
    return DeviceModel(
        name=name,
        description=f"One core of {machine['cpu']} under LiteRT with XNNPACK",
        simulated=False,
        macs_per_ms={kind: _rounded(fitted.get(kind, fallback)) for kind in KINDS},
        op_overhead_ms=_rounded(overhead),
        stage_overhead_ms=_rounded(float(np.median([p.handoff_ms for p in profiles]))),
        parameter_cache_bytes=machine["memory_bytes"],
        stream_ms_per_mib=0.0,
        in_ms_per_mib=_rounded(float(np.median([p.in_ms_per_mib for p in profiles]))),
        out_ms_per_mib=_rounded(float(np.median([p.out_ms_per_mib for p in profiles]))),
        active_w=0.0,
        idle_w=0.0,
        sources={
            "macs_per_ms": source + (f"; not seen, so as elementwise: {absent}" if absent else ""),
            "op_overhead_ms": "the least time of any operator",
            "stage_overhead_ms": "handing an item from thread to thread, median",
            "parameter_cache_bytes": "main memory: parameters are never streamed from elsewhere",
            "in_ms_per_mib": "copying tensors into the interpreter, median over models",
            "out_ms_per_mib": "copying tensors out of the interpreter, median over models",
            "active_w": "not known: no power meter; no energy is derived from this model",
        },
    )


def _profile_here(request: Mapping[str, Any], on_progress: Progress) -> dict[str, Any]:
    path, repetitions = Path(request["path"]), int(request["repetitions"])
    graph = read_graph(path)
    problem = StagingProblem(graph, graph.n_nodes, load_device("edgetpu-usb"))
    plan = make_plan(problem, "uniform")
    with tempfile.TemporaryDirectory() as folder:
        segments = split_model(path, plan, Path(folder) / "operators", verify_inputs=0)
        models = [Model(segments.folder / segment.file) for segment in segments.segments]
    whole = Model(path)
    inputs = whole.random_inputs(np.random.default_rng(request["seed"]))
    known = dict(zip(segments.inputs, inputs, strict=True))
    for segment, model in zip(segments.segments, models, strict=True):
        known |= zip(segment.outputs, model.empty_outputs(), strict=True)
    steps = [
        (model, [known[name] for name in s.inputs], [known[name] for name in s.outputs])
        for s, model in zip(segments.segments, models, strict=True)
    ]
    # For each operator: started, fed, run, fetched.
    rounds = np.empty((WARMUP + repetitions, len(steps), 4))
    whole_s = np.empty(WARMUP + repetitions)
    for r in range(WARMUP + repetitions):
        for k, (model, reads, writes) in enumerate(steps):
            started = thread_time()
            model.feed(reads)
            fed = thread_time()
            model.invoke()
            ran = thread_time()
            model.fetch(writes)
            rounds[r, k] = started, fed, ran, thread_time()
        whole.feed(inputs)
        started = thread_time()
        whole.invoke()
        whole_s[r] = thread_time() - started
        on_progress(r + 1, WARMUP + repetitions)
    feed_ms, run_ms, fetch_ms = 1e3 * np.median(np.diff(rounds[WARMUP:], axis=2), axis=0).T
    compute_ms = np.empty(graph.n_nodes)
    compute_ms[np.argsort(plan.stage)] = run_ms
    in_bytes = sum(array.nbytes for _, reads, _ in steps for array in reads)
    out_bytes = sum(array.nbytes for _, _, writes in steps for array in writes)
    return {
        "compute_ms": compute_ms.tolist(),
        "whole_ms": 1e3 * float(np.median(whole_s[WARMUP:])),
        "in_ms_per_mib": float(feed_ms.sum()) / in_bytes * MIB,
        "out_ms_per_mib": float(fetch_ms.sum()) / out_bytes * MIB,
        "handoff_ms": float(np.median(_handoffs_ms())),
        "repetitions": repetitions,
        "environment": environment.machine(),
    }


def _handoffs_ms() -> NDArray[np.float64]:
    """float64 (HANDOFFS,): from putting an item into a queue to a waiting thread having it."""
    sent: Queue[float | None] = Queue(1)
    back: Queue[float] = Queue(1)

    def receive() -> None:
        while (put_at := sent.get()) is not None:
            back.put(perf_counter() - put_at)

    thread = Thread(target=receive, daemon=True)
    thread.start()
    samples = np.empty(HANDOFFS)
    for i in range(HANDOFFS):
        sent.put(perf_counter())
        samples[i] = back.get()
    sent.put(None)
    thread.join()
    return 1e3 * samples


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


if __name__ == "__main__":
    serve(_profile_here)
