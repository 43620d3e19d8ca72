from __future__ import annotations

from dataclasses import replace

import pytest
from builders import chain

from coralline.devices.model import MIB, load_device
from coralline.errors import UserError
from coralline.graph.compute_graph import ComputeGraph
from coralline.staging import Effort, StagingProblem
from coralline.staging.deployment import choose_stages

DEVICE = load_device("edgetpu-usb")


def problem(graph: ComputeGraph, objective: str = "bottleneck") -> StagingProblem:
    return StagingProblem(graph, 1, DEVICE, objective)  # type: ignore[arg-type]


def heavy(n: int, mib_each: float) -> ComputeGraph:
    graph = chain("heavy", n, seed=0)
    return replace(
        graph,
        param_bytes=graph.param_bytes * 0 + int(mib_each * MIB),
        tensor_bytes=graph.tensor_bytes * 0 + 1024,
    )


def test_throughput_counts_all_copies_and_latency_the_stages() -> None:
    choice = choose_stages(problem(heavy(12, 2.0)), 6, "topo-dp", Effort())
    assert [o.plan.n_stages for o in choice.options] == [1, 2, 3, 4, 5, 6]
    assert [o.replicas for o in choice.options] == [6, 3, 2, 1, 1, 1]
    for option in choice.options:
        stage_ms = option.plan.stages["stage_ms"]
        assert option.throughput_fps == option.replicas * 1000 / max(stage_ms)
        assert option.latency_ms == sum(stage_ms)
    assert choice.best.throughput_fps == max(o.throughput_fps for o in choice.options)


def test_a_model_that_fits_one_cache_is_copied_and_one_that_does_not_is_cut() -> None:
    small = choose_stages(problem(heavy(12, 0.1)), 4, "topo-dp", Effort())
    assert (small.best.replicas, small.best.plan.n_stages) == (4, 1)
    assert "4 x 1 stage is the fewest stages whose parameters all fit" in small.reason
    # 24 MiB on caches of about 7 MiB.
    large = choose_stages(problem(heavy(12, 2.0)), 4, "topo-dp", Effort())
    assert (large.best.replicas, large.best.plan.n_stages) == (1, 4)
    assert large.best.streamed_bytes == 0 < large.options[2].streamed_bytes


def test_latency_does_not_ask_for_copies() -> None:
    choice = choose_stages(problem(heavy(12, 0.1), "latency"), 4, "topo-dp", Effort())
    assert choice.best.plan.n_stages == 1
    assert choice.best.latency_ms == min(o.latency_ms for o in choice.options)


def test_no_accelerator_and_a_wrong_objective_are_refused() -> None:
    graph = heavy(3, 1.0)
    with pytest.raises(UserError, match="0 accelerators"):
        choose_stages(problem(graph), 0, "topo-dp", Effort())
    with pytest.raises(UserError, match="peak-memory always wants the most stages"):
        choose_stages(problem(graph, "peak-memory"), 2, "topo-dp", Effort())
    # Never more stages than operators.
    assert len(choose_stages(problem(graph), 8, "topo-dp", Effort()).options) == 3
