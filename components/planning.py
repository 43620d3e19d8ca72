"""What the planning components do, as plain functions."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from coralline.devices.model import load_device
from coralline.errors import UserError, read_text
from coralline.files import write_text
from coralline.graph import read_graph
from coralline.graph.json_format import write_json
from coralline.staging import Effort, Plan, StagingProblem, make_plan


def plan_and_partition(
    model_folder: Path,
    policy: Path | None,
    stages: Sequence[int],
    planners: Sequence[str],
    device: str,
    time_limit_s: float,
    seed: int,
    plans_folder: Path,
    segments_folder: Path,
    on_progress: Callable[[str, int, int], None],
) -> None:
    """Plan the model in `model_folder` and split it by every distinct plan.

    Writes `plans_folder/<model>-<K>-<planner>.json` and the graph as `<model>.graph.json`;
    every plan carries the best bound that any planner proved. Plans with the same stages share
    one split folder, `segments_folder/<model>-<K>-<digest of the stages>`.

    Raises:
        UserError: The folder does not hold exactly one model, or the model cannot be planned.
    """
    models = sorted(model_folder.glob("*.tflite"))
    if len(models) != 1:
        raise UserError(f"{model_folder}: holds {len(models)} .tflite files; it must hold one")
    model = models[0]
    graph = read_graph(model)
    plans_folder.mkdir(parents=True, exist_ok=True)
    segments_folder.mkdir(parents=True, exist_ok=True)
    write_json(graph, plans_folder / f"{model.stem}.graph.json")
    effort = Effort(
        time_limit_s=time_limit_s, seed=seed, policy=None if policy is None else str(policy)
    )
    total, done = len(stages) * len(planners), 0
    for k in stages:
        problem = StagingProblem(graph, k, load_device(device))
        found = []
        for planner in planners:
            found.append(make_plan(problem, planner, effort))
            done += 1
            on_progress(f"plan {model.stem}", done, total)
        bound = max(plan.lower_bound for plan in found)
        for plan in found:
            _keep(model, plan.with_bound(bound), plans_folder, segments_folder)


def _keep(model: Path, plan: Plan, plans_folder: Path, segments_folder: Path) -> None:
    from coralline.tflite.split import split_model

    name = f"{model.stem}-{plan.n_stages}"
    text = json.dumps(plan.to_json(), indent=1) + "\n"
    write_text(plans_folder / f"{name}-{plan.planner}.json", text)
    split = segments_folder / f"{name}-{staging_digest(plan)}"
    if not split.exists():
        split_model(model, plan, split)


def staging_digest(plan: Plan) -> str:
    """Twelve hexadecimal digits that two plans share exactly when graph and stages agree."""
    return sha256(f"{plan.graph_digest}{plan.stage}".encode()).hexdigest()[:12]


def read_plans(folder: Path) -> list[Plan]:
    """The plans that `plan_and_partition` wrote, in order of their file names."""
    files = sorted(set(folder.glob("*.json")) - set(folder.glob("*.graph.json")))
    return [Plan.from_json(json.loads(read_text(file, "a plan"))) for file in files]


def compile_all(segments_folder: Path, out: Path) -> str:
    """Copy the split folders to `out` and compile their segments there.

    Returns:
        Path of the compiler, or "absent": then the segments stay plain.
    """
    from coralline.tflite.compiler import compile_segments, find_compiler
    from coralline.tflite.segments import SegmentSet

    shutil.copytree(segments_folder, out, copy_function=_link)
    compiler = find_compiler()
    if compiler is None:
        print(
            "edgetpu_compiler is not on PATH: the segments run on the CPU and in simulation; "
            "install Google's compiler to run them on Edge TPUs"
        )
        return "absent"
    for folder in sorted(out.iterdir()):
        compile_segments(replace(SegmentSet.read(folder), folder=folder))
    return str(compiler)


def _link(source: str, target: str) -> None:
    # Segments are large and never changed in place, so that a hard link is as good as a copy.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
