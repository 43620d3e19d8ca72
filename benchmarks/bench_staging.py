"""Staging: every planner on the published RESPECT graphs, at 4, 5 and 6 stages."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median

from benchmarks.frame import BenchResult
from coralline.devices.model import load_device
from coralline.errors import UserError
from coralline.graph import read_graph
from coralline.staging import Effort, Plan, StagingProblem, make_plan, planner_names

ROOT = Path(__file__).parents[1]
FOLDERS = (
    ROOT.parent / "shared" / "data" / "respect_graphs",
    ROOT / "tests" / "data" / "respect_graphs",
)
"""All ten published graphs where they lie beside the checkout, else the two in the tests."""

GRAPHS = (
    *("xception", "resnet50", "resnet101", "resnet152", "densenet121"),
    *("resnet101v2", "resnet152v2", "densenet169", "densenet201", "inception_resnet_v2"),
)
TIME_LIMIT_S = 60.0


def run(quick: bool) -> BenchResult:
    """Peak parameters by planner: value over the proven optimum, and solve time."""
    folder = next((f for f in FOLDERS if f.is_dir()), None)
    if folder is None:
        raise UserError(f"{FOLDERS[-1]}: no such folder; run this in a checkout")
    device = load_device("edgetpu-usb")
    effort = Effort(time_limit_s=TIME_LIMIT_S)
    names = [name for name in GRAPHS if (folder / f"{name}.json").is_file()]
    problems = [
        StagingProblem(read_graph(folder / f"{name}.json"), n_stages, device, "peak-memory")
        for name in (names[:2] if quick else names)
        for n_stages in (4, 5, 6)
    ]
    plans = {
        planner: [make_plan(problem, planner, effort) for problem in problems]
        for planner in planner_names()
    }
    best = [max(by_problem, key=_bound) for by_problem in zip(*plans.values(), strict=True)]
    rows = []
    for planner, made in plans.items():
        over = [100 * (plan.value / b.lower_bound - 1) for plan, b in zip(made, best, strict=True)]
        seconds = [plan.solve_seconds for plan in made]
        rows.append(
            (
                planner,
                sum(plan.value <= b.lower_bound for plan, b in zip(made, best, strict=True)),
                sum(plan.proven_optimal for plan in made),
                round(mean(over), 2),
                round(max(over), 2),
                round(median(seconds), 4),
                round(max(seconds), 3),
            )
        )
    return BenchResult(
        title=f"Peak parameters a stage: {len(problems)} published problems",
        columns=(
            "planner",
            "optimal",
            "proven",
            "mean above bound (%)",
            "worst (%)",
            "median solve (s)",
            "worst solve (s)",
        ),
        rows=tuple(rows),
        note=(
            "The bound is the best proven by any planner. The exact planners start from the best "
            "of 16 splits of topological orders, which is part of their time."
        ),
        environment={
            "graphs": len({p.graph.name for p in problems}),
            "time_limit_s": TIME_LIMIT_S,
            "workers": effort.workers,
            "seed": effort.seed,
        },
    )


def _bound(plan: Plan) -> float:
    return plan.lower_bound
