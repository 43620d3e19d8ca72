from __future__ import annotations

from pathlib import Path

import pytest

from coralline.devices.model import load_device
from coralline.graph import read_graph
from coralline.graph.compute_graph import ComputeGraph
from coralline.staging import StagingProblem, make_plan

DATA = Path(__file__).parents[1] / "data" / "respect_graphs"


def chain(param_bytes: list[int]) -> ComputeGraph:
    n = len(param_bytes)
    return ComputeGraph.build(
        "chain",
        param_bytes=param_bytes,
        tensor_bytes=[1] * n,
        tensor_producer=range(n),
        consumers=[*([v] for v in range(1, n)), []],
    )


@pytest.mark.parametrize(
    ("param_bytes", "n_stages", "stage"),
    [
        # average 12 / 3 + 1 = 5
        ([2, 3, 1, 4, 1, 1], 3, [0, 0, 1, 1, 2, 2]),
        ([1, 1, 1, 1, 1, 7], 3, [0, 0, 0, 0, 1, 2]),
        ([9, 1, 1, 1], 3, [0, 1, 1, 2]),
        ([0, 0, 0, 0], 2, [0, 0, 0, 1]),
        ([0, 0, 0], 3, [0, 1, 2]),
    ],
)
def test_the_parameter_count_rule(param_bytes: list[int], n_stages: int, stage: list[int]) -> None:
    problem = StagingProblem(chain(param_bytes), n_stages, load_device("edgetpu-usb"))
    assert list(make_plan(problem, "edgetpu-compiler").stage) == stage


@pytest.mark.parametrize(
    ("name", "n_stages", "peak_mi"),
    # Found by an independent emulation of libcoral's partitioner on these graphs.
    [
        ("xception", 4, 5.9716),
        ("xception", 5, 5.2505),
        ("xception", 6, 4.5356),
        ("resnet50", 4, 7.5269),
        ("resnet50", 5, 7.5269),
        ("resnet50", 6, 5.2744),
    ],
)
def test_the_rule_on_published_graphs(name: str, n_stages: int, peak_mi: float) -> None:
    problem = StagingProblem(
        read_graph(DATA / f"{name}.json"), n_stages, load_device("edgetpu-usb"), "peak-memory"
    )
    assert round(make_plan(problem, "edgetpu-compiler").value / 2**20, 4) == peak_mi


def test_uniform_counts_operators() -> None:
    problem = StagingProblem(chain([1] * 7), 3, load_device("edgetpu-usb"))
    assert make_plan(problem, "uniform").stage == (0, 0, 0, 1, 1, 2, 2)


def test_topo_dp_is_exact_where_only_one_order_exists() -> None:
    problem = StagingProblem(chain([5, 1, 1, 1, 4]), 3, load_device("edgetpu-usb"), "peak-memory")
    assert make_plan(problem, "topo-dp").value == 5
