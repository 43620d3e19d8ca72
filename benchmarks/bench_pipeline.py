"""A two-stage pipeline against one interpreter on one and on two threads, in one run."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.frame import BenchResult, Cell
from coralline.devices.model import load_device
from coralline.graph import read_graph
from coralline.runtime.interpreter import Model
from coralline.runtime.pipeline import run_pipeline
from coralline.runtime.profile import profile_model
from coralline.staging import StagingProblem, make_plan
from coralline.tflite.split import split_model
from training.zoo import build_model, cache_folder

ROUNDS = 7


def run(quick: bool) -> BenchResult:
    """Throughput of each way to use two cores; the ways take turns, ROUNDS times."""
    names = ["mobilenet_v2"] if quick else ["mobilenet_v2", "resnet50"]
    rounds, inferences = (3, 30) if quick else (ROUNDS, 60)
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        model = build_model(name, cache_folder() / "benchmarks")
        measured = profile_model(model).graph
        plan = make_plan(StagingProblem(measured, 2, load_device("host-cpu")), "topo-dp")
        # The measured times make it another graph; its stages hold for the model as it is.
        plan = replace(plan, graph_digest=read_graph(model).digest)
        with tempfile.TemporaryDirectory() as folder:
            segments = split_model(model, plan, Path(folder) / "segments")
            single, double = Model(model, threads=1), Model(model, threads=2)
            fps: dict[str, list[float]] = {"pipeline": [], "one": [], "two": []}
            for _ in range(rounds):
                pipeline = run_pipeline(segments, repetitions=inferences, warmup=5)
                fps["pipeline"].append(inferences / pipeline.wall_s)
                fps["one"].append(_throughput(single, inferences))
                fps["two"].append(_throughput(double, inferences))
        one, two, piped = (float(np.median(fps[way])) for way in ("one", "two", "pipeline"))
        rows.append((name, one, two, piped, two / one, piped / one, piped / two))
    return BenchResult(
        title="Two cores: a two-stage pipeline or two threads (median inferences per second)",
        columns=(
            "model",
            "1 thread",
            "2 threads",
            "2-stage pipeline",
            "2 threads / 1",
            "pipeline / 1",
            "pipeline / 2 threads",
        ),
        rows=tuple(rows),
        note="The ways take turns in one process; the stages are balanced on operator times "
        "profiled just before. On a machine with other load the two-core ways lose more.",
        environment={"rounds": rounds, "inferences_a_round": inferences},
    )


def _throughput(model: Model, inferences: int) -> float:
    """Inferences per second of one interpreter, after as many to warm up as a pipeline has."""
    inputs = model.random_inputs(np.random.default_rng(0))
    for _ in range(5):
        model.run(inputs)
    start = perf_counter()
    for _ in range(inferences):
        model.run(inputs)
    return inferences / (perf_counter() - start)
