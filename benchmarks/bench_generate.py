"""Synthetic graphs: how fast each family is generated, built and validated."""

from __future__ import annotations

from time import perf_counter

from benchmarks.frame import BenchResult
from coralline.graph import synthetic


def run(quick: bool) -> BenchResult:
    """Time 10,000 graphs of 30 nodes and one of 10,000, for every family."""
    count, nodes = (500, 500) if quick else (10_000, 10_000)
    rows = []
    for family in synthetic.family_names():
        start = perf_counter()
        small = synthetic.generate(family, count, 30, seed=0)
        middle = perf_counter()
        large = synthetic.generate(family, 1, nodes, seed=0)[0]
        end = perf_counter()
        edges = sum(len(g.edges) for g in small) / count
        rows.append(
            (
                family,
                round(middle - start, 2),
                round(1e6 * (middle - start) / count),
                round(edges, 1),
                round(end - middle, 3),
                len(large.edges),
            )
        )
    return BenchResult(
        title=f"Generating {count:,} graphs of 30 nodes, and one of {nodes:,}",
        columns=(
            "family",
            f"{count:,} graphs (s)",
            "a graph (µs)",
            "mean edges",
            f"{nodes:,} nodes (s)",
            "its edges",
        ),
        rows=tuple(rows),
        note="Each graph is a validated ComputeGraph. One core.",
        environment={"seed": 0},
    )
