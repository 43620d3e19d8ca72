from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from graph_strategies import problems
from hypothesis import given, settings

from coralline.devices.model import load_device
from coralline.errors import PlanError
from coralline.graph import read_graph, synthetic
from coralline.staging import OBJECTIVES, Effort, StagingProblem, evaluate, make_plan
from coralline.staging.exact import stage_windows

EXACT = ("exact", "exact-cpsat", "exact-milp")
COLD = ("exact-cpsat-cold", "exact-milp-cold")
DATA = Path(__file__).parents[1] / "data" / "respect_graphs"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "respect_graphs"


def brute_force(problem: StagingProblem) -> tuple[float, list[tuple[int, ...]]]:
    """The optimum, and every staging that reaches it; inf and none if no plan exists."""
    best, where = np.inf, []
    for stage in itertools.product(range(problem.n_stages), repeat=problem.graph.n_nodes):
        try:
            value = evaluate(problem, stage).value
        except PlanError:
            continue
        if value < best * (1 - 1e-12):
            best, where = value, []
        if value <= best * (1 + 1e-12):
            where.append(stage)
    return best, where


@settings(max_examples=60)
@given(problems(max_nodes=6))
def test_exact_planners_find_and_prove_the_optimum(problem: StagingProblem) -> None:
    best, _ = brute_force(problem)
    for planner in EXACT + COLD:
        try:
            plan = make_plan(problem, planner, Effort(workers=1))
        except PlanError:
            assert best == np.inf
            continue
        assert plan.value == pytest.approx(best, rel=1e-9, abs=1e-12)
        assert plan.proven_optimal
        assert plan.lower_bound <= best * (1 + 1e-12)


@given(problems(max_nodes=6))
def test_windows_keep_every_plan_as_good_as_the_target(problem: StagingProblem) -> None:
    problem = replace(problem, children_together=False)
    best, stagings = brute_force(problem)
    earliest, latest = stage_windows(problem, best)
    for stage in stagings:
        assert (earliest <= stage).all() and (np.array(stage) <= latest).all()


def published(folder: Path) -> Iterator[tuple[str, int, bool, str]]:
    with (folder / "optima.csv").open() as file:
        for row in csv.DictReader(file):
            for together, column in (
                (False, "optimal_peak_mi"),
                (True, "optimal_peak_children_same_stage_mi"),
            ):
                yield row["graph"], int(row["n_stages"]), together, row[column]


def check_published(folder: Path, planner: str) -> int:
    count = 0
    for name, n_stages, together, optimum in published(folder):
        problem = StagingProblem(
            read_graph(folder / f"{name}.json"),
            n_stages,
            load_device("edgetpu-usb"),
            "peak-memory",
            children_together=together,
        )
        plan = make_plan(problem, planner)
        found = (name, n_stages, together, f"{plan.value / 2**20:.4f}", plan.proven_optimal)
        assert found == (name, n_stages, together, optimum, True)
        count += 1
    return count


@pytest.mark.parametrize("planner", EXACT)
def test_published_optima(planner: str) -> None:
    assert check_published(DATA, planner) == 12


@pytest.mark.parametrize("planner", EXACT)
@pytest.mark.skipif(not SHARED.is_dir(), reason="the published graphs are not on this machine")
def test_all_published_optima(planner: str) -> None:
    assert check_published(SHARED, planner) == 60


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_planners_agree_on_larger_graphs(objective: str) -> None:
    device = replace(load_device("edgetpu-usb"), parameter_cache_bytes=2**20)
    for graph in synthetic.generate("respect", 3, 20, seed=7):
        problem = StagingProblem(graph, 3, device, objective)
        plans = [make_plan(problem, planner, Effort(time_limit_s=30)) for planner in EXACT + COLD]
        assert all(plan.proven_optimal for plan in plans)
        assert [p.value for p in plans] == pytest.approx([plans[0].value] * len(plans), rel=1e-6)


@pytest.mark.parametrize("planner", EXACT)
@pytest.mark.parametrize("limit_s", [0.0, 0.5])
def test_a_plan_comes_back_in_time_whatever_the_limit(planner: str, limit_s: float) -> None:
    graph = synthetic.generate("respect", 1, 400, seed=1)[0]
    problem = StagingProblem(graph, 6, load_device("edgetpu-usb"), "latency")
    make_plan(problem, "topo-dp")  # compiles the split before the clock starts
    start = perf_counter()
    plan = make_plan(problem, planner, Effort(time_limit_s=limit_s))
    assert perf_counter() - start < limit_s + 5
    assert 0 < plan.lower_bound <= plan.value <= make_plan(problem, "topo-dp").value


@pytest.mark.parametrize("planner", COLD)
def test_a_cold_solver_starts_without_a_plan(planner: str) -> None:
    graph = synthetic.generate("respect", 1, 400, seed=1)[0]
    problem = StagingProblem(graph, 6, load_device("edgetpu-usb"))
    with pytest.raises(PlanError, match=r"no plan of .* was found in 0 s; give it more time"):
        make_plan(problem, planner, Effort(time_limit_s=0.0))


@pytest.mark.parametrize("planner", EXACT)
def test_the_seed_fixes_the_plan(planner: str) -> None:
    graph = synthetic.generate("respect", 1, 25, seed=3)[0]
    problem = StagingProblem(graph, 4, load_device("edgetpu-usb"))
    effort = Effort(time_limit_s=30, seed=5, workers=1)
    assert make_plan(problem, planner, effort).stage == make_plan(problem, planner, effort).stage


def test_highs_says_nothing_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    for graph in synthetic.generate("respect", 4, 20, seed=11):
        make_plan(StagingProblem(graph, 3, load_device("edgetpu-usb")), "exact-milp")
    assert capfd.readouterr().out == ""
