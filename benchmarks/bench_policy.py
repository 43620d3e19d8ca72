"""The shipped policy against exact plans, random orders and the graph's own order."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from benchmarks.frame import BenchResult
from coralline.devices.model import load_device
from coralline.graph import synthetic
from coralline.staging import Effort, StagingProblem, make_plan
from coralline.staging.policy import load_policy

SEED = 424242
"""Not among the seeds of any recipe."""

STAGES = 4


def run(quick: bool) -> BenchResult:
    """Gap and time on graphs that no policy was trained on."""
    from training.evaluate import evaluate_policy

    device = load_device("edgetpu-usb")
    policy = load_policy()
    rows: list[tuple[str | int | float | None, ...]] = []
    for nodes in (30,) if quick else (30, 60, 100):
        for family in synthetic.family_names():
            graphs = synthetic.generate(family, 4 if quick else 30, nodes, SEED)
            problems = [StagingProblem(graph, STAGES, device) for graph in graphs]
            make_plan(problems[0], "exact-cpsat", Effort(time_limit_s=20, workers=1))
            start = perf_counter()
            labels = [
                make_plan(p, "exact-cpsat", Effort(time_limit_s=20, workers=1)) for p in problems
            ]
            seconds = (perf_counter() - start) / len(labels)
            result = evaluate_policy(policy, graphs, labels, planners=("topo-dp",), seed=SEED)
            gap = {row["method"]: 100 * row["all"]["mean"] for row in result["methods"]}
            time = {row["method"]: 1000 * row["seconds"] for row in result["methods"]}
            rows.append(
                (
                    f"{family} {nodes}",
                    f"{sum(label.proven_optimal for label in labels)} of {len(labels)}",
                    round(gap["topo-dp"], 2),
                    *(round(gap[f"random best of {n}"], 2) for n in (1, 16, 64)),
                    round(gap["policy greedy"], 2),
                    *(round(gap[f"policy best of {n}"], 2) for n in (16, 64)),
                    round(time["topo-dp"], 2),
                    round(time["policy greedy"], 2),
                    round(time["policy best of 64"], 2),
                    round(1000 * seconds, 1),
                )
            )
    numbers = np.array([row[2:] for row in rows], float).mean(axis=0)
    rows.append(("mean", None, *(round(float(x), 2) for x in numbers)))
    return BenchResult(
        title=f"Mean gap to exact plans, in percent; bottleneck, {STAGES} stages, edgetpu-usb",
        columns=(
            "unseen graphs",
            "proven",
            "topo-dp",
            "random 1",
            "random 16",
            "random 64",
            "policy greedy",
            "policy 16",
            "policy 64",
            "topo-dp (ms)",
            "greedy (ms)",
            "policy 64 (ms)",
            "exact-cpsat (ms)",
        ),
        rows=tuple(rows),
        note=(
            "Every order gets the same optimal split; random N and policy N are the best of N "
            "sampled orders. Times are a graph's, encoding and splitting included; exact-cpsat "
            "has one thread and 20 s. Graphs of 100 nodes are larger than any in training. "
            "Costs are those of the device model: simulated."
        ),
        environment={
            "seed": SEED,
            "policy_greedy_gap_validation": policy.metadata["metrics"]["greedy_gap"],
        },
    )
