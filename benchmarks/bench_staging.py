"""Staging: every planner on published, converted and synthetic graphs, in one run."""

from __future__ import annotations

from dataclasses import asdict, replace

from benchmarks.frame import BenchResult
from benchmarks.staging import figures, tables
from benchmarks.staging.measure import REPEATED_S, WORKERS, Journal, measure
from benchmarks.staging.processes import scaling, starts
from benchmarks.staging.sets import (
    DEVICE,
    LAYERS,
    OPERATORS,
    PUBLISHED,
    QUICK,
    SEED,
    WIDE,
    Size,
    problem_sets,
)
from coralline.devices.check import published_error
from coralline.staging import compile_planners


def run(quick: bool) -> BenchResult:
    """Value, proof and time of every planner; half an hour on two cores."""
    return bench(QUICK if quick else Size())


def bench(size: Size) -> BenchResult:
    """The same in any size."""
    # Compiling is the start of a process; it is timed as that, and nowhere else.
    compile_planners()
    journal = Journal(size)
    sets = problem_sets(size, journal.folder)
    largest = next(s for s in sets if s.name == LAYERS).problems[-1].graph
    started = starts(size, largest, journal)
    scaled = scaling(size, journal)
    records = measure(sets, size, journal)
    cases = tables.Cases(records)
    compared = (PUBLISHED, LAYERS, OPERATORS)
    result = replace(
        tables.goals(cases, started, scaled),
        environment={
            "device": DEVICE,
            "threads": WORKERS,
            "repetitions": size.repetitions,
            "repeated_below_s": REPEATED_S,
            "synthetic_seed": SEED,
            "kept_of_an_interrupted_run": journal.found,
        },
        more=(
            *(tables.planners(cases, name) for name in compared),
            tables.claims(cases),
            tables.consequence(cases, published_error(DEVICE).label),
            *([tables.wide_graphs(cases)] if cases(WIDE) else []),
            tables.synthetic_graphs(cases),
            tables.growth(scaled),
            tables.process_starts(started),
            *(tables.models(cases, name) for name in compared),
        ),
        figures=figures.gap_against_time(cases) | figures.growth(scaled),
        records=tuple(asdict(record) for record in (*records, *started, *scaled)),
    )
    journal.close()
    return result
