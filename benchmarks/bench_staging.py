"""Staging: every planner on the published RESPECT graphs and on unseen wide graphs."""

from __future__ import annotations

from pathlib import Path
from statistics import geometric_mean, mean, median

from benchmarks.frame import BenchResult, Cell
from coralline.devices.model import load_device
from coralline.errors import UserError
from coralline.graph import read_graph, synthetic
from coralline.staging import Effort, Plan, StagingProblem, make_plan, planner_names
from coralline.staging.problem import OPTIMALITY_TOLERANCE

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
TIME_LIMIT_S = 2.0
REPETITIONS = 3
REPEATED_S = 0.2
"""A planner that takes longer is run once: noise is small beside its time."""
WIDE = 4
"""Synthetic graphs of each wide family."""


def run(quick: bool) -> BenchResult:
    """Value over the best proven bound, and solve time, by planner."""
    folder = next((f for f in FOLDERS if f.is_dir()), None)
    if folder is None:
        raise UserError(f"{FOLDERS[-1]}: no such folder; run this in a checkout")
    device = load_device("edgetpu-usb")
    names = [name for name in GRAPHS if (folder / f"{name}.json").is_file()]
    published = [
        StagingProblem(read_graph(folder / f"{name}.json"), n_stages, device, "peak-memory")
        for name in (names[:2] if quick else names)
        for n_stages in (4, 5, 6)
    ]
    wide = [
        StagingProblem(graph, n_stages, device, "bottleneck")
        for family in ("cell", "respect")
        for graph in synthetic.generate(family, 2 if quick else WIDE, 30, seed=71)
        for n_stages in (4, 6)
    ]
    sets = {
        f"{len(published)} published, peak-memory": published,
        f"{len(wide)} wide of 30 nodes, bottleneck": wide,
    }
    return BenchResult(
        title="Planners side by side: value, proof and time",
        columns=(
            "problems",
            "planner",
            "optimal",
            "proven",
            "mean above bound (%)",
            "worst (%)",
            "median solve (s)",
            "worst solve (s)",
            "exact faster (times)",
        ),
        rows=tuple(row for name, problems in sets.items() for row in _compare(name, problems)),
        note=(
            "The bound is the best proven by any planner; optimal is a value within 1e-6 of it. "
            "Each time is the median of the repetitions, or of one run where that takes over "
            "0.2 s, and the last column the geometric mean "
            "over the problems of the planner's time over that of exact. exact-cpsat and "
            "exact-milp start from the best of 16 splits of orders, which is part of their time."
        ),
        environment={
            "time_limit_s": TIME_LIMIT_S,
            "repetitions": REPETITIONS,
            "workers": Effort().workers,
            "seed": Effort().seed,
        },
    )


def _compare(name: str, problems: list[StagingProblem]) -> list[tuple[Cell, ...]]:
    # The planners take turns, so that a busy moment of the machine meets all of them.
    made: dict[str, list[Plan]] = {planner: [] for planner in planner_names()}
    seconds: dict[str, list[float]] = {planner: [] for planner in planner_names()}
    for problem in problems:
        for planner in planner_names():
            effort = Effort(time_limit_s=TIME_LIMIT_S)
            plans = [make_plan(problem, planner, effort)]
            if plans[0].solve_seconds < REPEATED_S:
                plans += [make_plan(problem, planner, effort) for _ in range(REPETITIONS - 1)]
            made[planner].append(plans[0])
            seconds[planner].append(median(plan.solve_seconds for plan in plans))
    bounds = [max(p.lower_bound for p in each) for each in zip(*made.values(), strict=True)]
    rows: list[tuple[Cell, ...]] = []
    for planner, plans in made.items():
        over = [plan.value / bound - 1 for plan, bound in zip(plans, bounds, strict=True)]
        ratios = zip(seconds[planner], seconds["exact"], strict=True)
        rows.append(
            (
                name,
                planner,
                sum(gap <= OPTIMALITY_TOLERANCE for gap in over),
                sum(plan.proven_optimal for plan in plans),
                round(100 * mean(over), 2),
                round(100 * max(over), 2),
                median(seconds[planner]),
                max(seconds[planner]),
                geometric_mean(mine / exact for mine, exact in ratios),
            )
        )
    return rows
