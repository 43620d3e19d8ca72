"""How far a policy's plans are from the labels, beside other planners, by family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import DeviceModel, load_device
from coralline.errors import UserError
from coralline.graph.compute_graph import ComputeGraph
from coralline.staging.policy import (
    Policy,
    load_decoder,
    policy,
    policy_beam,
    policy_greedy,
    policy_sample,
    weight_shapes,
)
from coralline.staging.problem import Effort, Plan, StagingProblem, evaluate, make_plan
from coralline.staging.split import split_arguments, split_value
from training.policy import exercise, label_problems

SCHEMA = "coralline.policy-evaluation/v1"

Floats = NDArray[np.float64]


def evaluate_policy(
    network: Policy,
    graphs: Sequence[ComputeGraph],
    labels: Sequence[Plan],
    *,
    device: DeviceModel | None = None,
    samples: Sequence[int] = (16, 64),
    seed: int = 0,
    planners: Sequence[str] = ("topo-dp", "uniform"),
) -> dict[str, Any]:
    """Gaps to the labels of the policy, of random orders and of other planners.

    A gap is value over the label's value, minus 1. Random orders take every ready operator
    with the same probability and get the same optimal split. Times are of one call, encoding
    and splitting included.

    Args:
        device: That the labels were made for; without it the shipped one of that name.
        samples: Numbers of orders of which the best counts.

    Returns:
        `{"schema", "graphs", "labels_proven", "methods": [{"method", "seconds", "all",
        "families"}]}`, where `all` and each family have `graphs`, `mean`, `median`, `p90`.

    Raises:
        UserError: The labels do not fit the graphs.
    """
    if not labels:
        raise UserError("no labels; make some with `coralline train label`")
    problems = label_problems(graphs, labels, device or load_device(labels[0].device))
    joined = [exercise(p, label) for p, label in zip(problems, labels, strict=True)]
    chance = random_orders()

    def orders(source: Policy, n: int, greedy: bool) -> Callable[[StagingProblem], float]:
        return lambda problem: best_of(source, problem, n, seed, greedy)

    def planner(name: str) -> Callable[[StagingProblem], float]:
        return lambda problem: make_plan(problem, name, Effort(seed=seed)).value

    methods = {"policy greedy": orders(network, 1, True)}
    methods |= {f"policy best of {n}": orders(network, n, True) for n in samples}
    methods |= {f"random best of {n}": orders(chance, n, False) for n in (1, *samples)}
    methods |= {name: planner(name) for name in planners}
    families = np.array([graph.name.split("-")[0] for graph in graphs])
    rows = []
    for name, method in methods.items():
        # The first call may compile.
        method(joined[0].problem)
        start = perf_counter()
        values = np.array([method(item.problem) for item in joined])
        seconds = (perf_counter() - start) / len(joined)
        gaps = values / [item.label_value for item in joined] - 1.0
        by_family = {str(f): _summary(gaps[families == f]) for f in np.unique(families)}
        rows.append(
            {"method": name, "seconds": seconds, "all": _summary(gaps), "families": by_family}
        )
    return {
        "schema": SCHEMA,
        "graphs": len(graphs),
        "labels_proven": float(np.mean([label.proven_optimal for label in labels])),
        "methods": rows,
    }


def try_planners(path: Path, problems: Sequence[StagingProblem], best: Floats) -> dict[str, Any]:
    """Gaps of the planners that use a policy, with 95 % intervals, and times.

    Args:
        path: Of the policy.
        best: float64: the values of the problems' best known plans.

    Returns:
        For each planner `mean`, `low`, `high`, `median_ms`.
    """
    load_decoder()
    effort = Effort(policy=str(path))
    methods = {
        "policy-greedy": policy_greedy,
        "policy-sample": policy_sample,
        "policy-beam": policy_beam,
        "policy": policy,
    }
    found = {}
    for name, method in methods.items():
        values, seconds = [], []
        for problem in problems:
            start = perf_counter()
            proposal = method(problem, effort)
            seconds.append(perf_counter() - start)
            values.append(evaluate(problem, proposal.stage).value)
        gap = np.array(values) / best - 1
        low, high = interval(gap)
        found[name] = {
            "mean": float(gap.mean()),
            "low": low,
            "high": high,
            "median_ms": 1000 * float(np.median(seconds)),
        }
    return found


def interval(x: Floats, resamples: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the mean: percentile bootstrap (Efron, Annals of Statistics 7, 1979).

    Args:
        x: float64 (N,): independent observations.
    """
    rng = np.random.default_rng(0)
    means = [x[rng.integers(len(x), size=len(x))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def best_of(
    network: Policy, problem: StagingProblem, n: int, seed: int, greedy: bool = True
) -> float:
    """The value of the best split of the best of n orders; the first is greedy unless not."""
    arguments = split_arguments(problem)
    orders = network.rollouts(problem, n, seed, greedy).order
    return min(split_value(arguments, order) for order in orders)


def random_orders() -> Policy:
    """A policy whose weights are 0: it takes every ready operator with the same probability."""
    shapes = weight_shapes(hidden=1, layers=0)
    return Policy({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, {})


def _summary(gaps: Floats) -> dict[str, float]:
    return {
        "graphs": len(gaps),
        "mean": float(gaps.mean()),
        "median": float(np.median(gaps)),
        "p90": float(np.quantile(gaps, 0.9)),
    }
