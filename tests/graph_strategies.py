"""Random graphs, devices and problems for hypothesis."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from coralline.devices.model import DeviceModel, load_device
from coralline.errors import PlanError
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.staging import OBJECTIVES, StagingProblem, check


@st.composite
def graphs(draw: st.DrawFn, max_nodes: int = 6) -> ComputeGraph:
    """Small graphs with several tensors a node, model inputs, tensors that are both read and
    output, ties and zeros, and nodes numbered in no particular order."""
    n = draw(st.integers(1, max_nodes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    number = rng.permutation(n) if draw(st.booleans()) else np.arange(n)
    density = draw(st.sampled_from([0.15, 0.4, 0.8]))
    coarse = draw(st.sampled_from([1, 2**16, 2**18]))
    producer, consumers, is_output = [], [], []
    for _ in range(draw(st.integers(0, 2))):
        producer.append(MODEL_INPUT)
        consumers.append([v for v in range(n) if rng.random() < density])
        is_output.append(False)
    for i in range(n):
        for _ in range(draw(st.integers(1, 2))):
            readers = [int(number[j]) for j in range(i + 1, n) if rng.random() < density]
            producer.append(int(number[i]))
            consumers.append(readers)
            is_output.append(not readers or rng.random() < 0.2)
    return ComputeGraph.build(
        "random",
        param_bytes=rng.integers(0, 2**20, n) // coarse * coarse * (rng.random(n) < 0.8),
        macs=rng.integers(0, 10**9, n),
        compute_ms=np.where(rng.random(n) < 0.3, rng.random(n), np.nan),
        tensor_bytes=rng.integers(0, 2**19, len(producer)) // coarse * coarse,
        tensor_producer=producer,
        consumers=consumers,
        tensor_is_output=is_output,
    )


@st.composite
def devices(draw: st.DrawFn) -> DeviceModel:
    """Devices on which compute, transfers and streaming weigh about the same."""
    return replace(
        load_device("edgetpu-usb"),
        parameter_cache_bytes=draw(st.sampled_from([0, 2**19, 2**20, 2**30])),
        stream_ms_per_mib=draw(st.sampled_from([0.0, 2.32])),
        in_ms_per_mib=draw(st.sampled_from([0.0, 3.1])),
        out_ms_per_mib=draw(st.sampled_from([0.0, 3.1, 16.7])),
        op_overhead_ms=draw(st.sampled_from([0.0, 0.05])),
        stage_overhead_ms=draw(st.sampled_from([0.0, 0.45])),
    )


@st.composite
def problems(draw: st.DrawFn, max_nodes: int = 6) -> StagingProblem:
    """Problems of every objective, with and without the rule on children."""
    graph = draw(graphs(max_nodes))
    return StagingProblem(
        graph=graph,
        n_stages=draw(st.integers(1, min(graph.n_nodes, 4))),
        device=draw(devices()),
        objective=draw(st.sampled_from(OBJECTIVES)),
        children_together=draw(st.booleans()),
    )


@st.composite
def problems_with_options(draw: st.DrawFn, max_nodes: int = 6) -> StagingProblem:
    """Problems with each option or without; a memory limit may leave no plan."""
    problem = draw(problems(max_nodes))
    graph, k = problem.graph, problem.n_stages
    chain = tuple(
        replace(
            draw(devices()),
            macs_per_ms={kind: rate * factor for kind, rate in problem.device.macs_per_ms.items()},
            cache_by_activation=((2**16, 2**20), (2**18, 2**19), (2**19, 0)),
        )
        for factor in draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=k, max_size=k))
    )
    total = int(graph.param_bytes.sum())
    return replace(
        problem,
        device=chain if draw(st.booleans()) else chain[0],
        host_operators=tuple(sorted(draw(st.sets(st.integers(0, graph.n_nodes - 1), max_size=2)))),
        memory_limit_bytes=draw(st.sampled_from([None, total // k + 1, total * 3 // 2 // k + 1])),
        activation_cache=draw(st.booleans()),
    )


def feasible_stagings(problem: StagingProblem) -> list[tuple[int, ...]]:
    """Every plan of a small problem."""

    def ok(stage: tuple[int, ...]) -> bool:
        try:
            check(problem, stage)
        except PlanError:
            return False
        return True

    everything = itertools.product(range(problem.n_stages), repeat=problem.graph.n_nodes)
    return [stage for stage in everything if ok(stage)]
