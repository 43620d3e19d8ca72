from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from graph_strategies import feasible_stagings, problems_with_options
from hypothesis import given, settings

from coralline.devices.model import load_device
from coralline.errors import PlanError
from coralline.graph import read_graph, synthetic
from coralline.staging import OBJECTIVES, Effort, StagingProblem, evaluate, make_plan

EXACT = ("exact", "exact-cpsat", "exact-milp")
COLD = ("exact-cpsat-cold", "exact-milp-cold")
SOLVERS = ("exact-cpsat", "exact-milp", *COLD)
DATA = Path(__file__).parents[1] / "data" / "respect_graphs"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "respect_graphs"


def brute_force(problem: StagingProblem) -> tuple[float, int]:
    """The optimum's key; infinite if no plan exists."""
    keys = [evaluate(problem, stage).key for stage in feasible_stagings(problem)]
    best = min((value for value, _ in keys), default=np.inf)
    crossings = [n for value, n in keys if value <= best * (1 + 1e-12)]
    return best, min(crossings, default=0)


@settings(max_examples=60)
@given(problems_with_options(max_nodes=6))
def test_exact_planners_find_and_prove_the_optimum(problem: StagingProblem) -> None:
    best, crossings = brute_force(problem)
    for planner in ("exact", *SOLVERS):
        try:
            plan = make_plan(problem, planner, Effort(workers=1))
        except PlanError as error:
            assert best == np.inf
            assert re.search(r"no plan keeps|alone has|groups for", str(error))
            continue
        assert plan.value == pytest.approx(best, rel=1e-9, abs=1e-12)
        assert plan.proven_optimal
        assert plan.lower_bound <= best * (1 + 1e-12)
        if problem.objective == "peak-memory":
            assert plan.crossings_proven
            assert plan.crossings_lower_bound == crossings


def published(folder: Path) -> Iterator[tuple[str, int, bool, str, int | None]]:
    with (folder / "optima.csv").open() as file:
        for row in csv.DictReader(file):
            crossings = int(row["min_hop_weighted_crossings_at_optimal_peak"])
            for together, column, fewest in (
                (False, "optimal_peak_mi", crossings),
                (True, "optimal_peak_children_same_stage_mi", None),
            ):
                yield row["graph"], int(row["n_stages"]), together, row[column], fewest


def check_published(folder: Path, planner: str) -> int:
    count = 0
    for name, n_stages, together, optimum, crossings in published(folder):
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
        if crossings is not None:
            assert plan.crossings_lower_bound == crossings
            assert plan.crossings_proven
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
    tight = ((2**14, 2**20), (2**18, 2**17))
    other = replace(load_device("edgetpu-pcie"), cache_by_activation=tight)
    for graph in synthetic.generate("respect", 3, 20, seed=7):
        plain = StagingProblem(graph, 3, device, objective)  # type: ignore[arg-type]
        mixed = replace(
            plain,
            device=(other, replace(device, cache_by_activation=tight), other),
            host_operators=(3, 11),
            memory_limit_bytes=int(graph.param_bytes.sum()) // 2,
            activation_cache=True,
        )
        for problem in (plain, mixed):
            plans = [make_plan(problem, planner, Effort(time_limit_s=30)) for planner in EXACT]
            plans += [make_plan(problem, planner, Effort(time_limit_s=30)) for planner in COLD]
            assert all(plan.proven_optimal for plan in plans)
            values = [plan.value for plan in plans]
            assert values == pytest.approx([values[0]] * len(plans), rel=1e-6)
            assert len({plan.crossings_lower_bound for plan in plans}) == 1
            assert all(plan.crossings_proven for plan in plans) or objective != "peak-memory"


@pytest.mark.parametrize("planner", EXACT)
@pytest.mark.parametrize("limit_s", [0.0, 0.5])
def test_a_plan_comes_back_in_time_whatever_the_limit(planner: str, limit_s: float) -> None:
    graph = synthetic.generate("respect", 1, 400, seed=1)[0]
    problem = StagingProblem(graph, 6, load_device("edgetpu-usb"), "latency")
    make_plan(problem, "topo-dp")  # compiles the split before the clock starts
    # On a busy machine wall time says little.
    start = process_time()
    plan = make_plan(problem, planner, Effort(time_limit_s=limit_s, workers=1))
    assert process_time() - start < limit_s + 5
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
