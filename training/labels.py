"""Labels: the exact plan of each graph of a set, in shards that a killed run takes up again.

A label is a plan (`coralline.plan/v1`) and so carries its bound and whether it is proven. A
shard is a file with one label a line, in the order of the graphs. While it is being solved it
is called `.part`; a shard under its own name is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coralline.devices.model import load_device
from coralline.errors import UserError, parse_json, read_text
from coralline.files import make_folder
from coralline.graph.compute_graph import ComputeGraph
from coralline.graph.graph_set import count_graphs, read_graph_set
from coralline.staging import Effort, Plan, StagingProblem, make_plan
from coralline.staging.problem import Objective, check_planner


@dataclass(frozen=True)
class LabelOptions:
    """The problem that is posed on every graph.

    Attributes:
        device: Name or YAML file of the device model.
    """

    n_stages: int = 4
    device: str = "edgetpu-usb"
    objective: Objective = "bottleneck"
    children_together: bool = False
    planner: str = "exact"


def solve_labels(
    graphs_path: Path,
    out_dir: Path,
    shard: int,
    n_shards: int,
    options: LabelOptions,
    effort: Effort | None = None,
    on_label: Callable[[int, int], None] | None = None,
) -> Path:
    """Solve one shard: the graphs from n * shard // n_shards to n * (shard + 1) // n_shards.

    Labels that an earlier run finished are kept, half a last line is cut off and solved again.

    Args:
        effort: For each graph.
        on_label: Called with the labels done so far and the size of the shard.

    Returns:
        The path of the whole shard.

    Raises:
        UserError: The options are wrong, or the folder holds labels of something else.
    """
    if n_shards < 1 or not 0 <= shard < n_shards:
        raise UserError(f"shard {shard} of {n_shards}: shards are numbered 0 to {n_shards - 1}")
    n = count_graphs(graphs_path)
    graphs = read_graph_set(graphs_path, n * shard // n_shards, n * (shard + 1) // n_shards)
    path = out_dir / shard_name(shard, n_shards)
    label_graphs(graphs, path, options, effort, on_label)
    return path


def shard_name(shard: int, n_shards: int) -> str:
    """Name of the file of a whole shard, as `read_labels` finds it."""
    return f"labels-{shard:05d}-of-{n_shards:05d}.jsonl"


def label_graphs(
    graphs: Sequence[ComputeGraph],
    path: Path,
    options: LabelOptions,
    effort: Effort | None = None,
    on_label: Callable[[int, int], None] | None = None,
) -> None:
    """Solve graphs into one file; arguments and errors as in `solve_labels`."""
    device = load_device(options.device)
    problems = [
        StagingProblem(g, options.n_stages, device, options.objective, options.children_together)
        for g in graphs
    ]
    solve_problems(problems, path, options.planner, effort, on_label)


def solve_problems(
    problems: Sequence[StagingProblem],
    path: Path,
    planner: str,
    effort: Effort | None = None,
    on_label: Callable[[int, int], None] | None = None,
) -> None:
    """Solve problems of any kind into one file; arguments and errors as in `solve_labels`."""
    check_planner(planner)
    make_folder(path.parent)
    part = path.with_suffix(".part")
    done = _finished(path if path.exists() else part, problems, planner)
    if path.exists():
        return
    try:
        with part.open("a", encoding="utf-8") as file:
            for number, problem in enumerate(problems[done:], done + 1):
                label = make_plan(problem, planner, effort)
                file.write(json.dumps(label.to_json(), allow_nan=False) + "\n")
                file.flush()
                if on_label is not None:
                    on_label(number, len(problems))
        part.rename(path)
    except OSError as error:
        raise UserError(
            f"{part}: cannot be written ({error.strerror}); free space and run this again"
        ) from None


def read_labelled(
    graphs_path: Path, labels_folder: Path, share: float, *, held_out: bool
) -> tuple[list[ComputeGraph], list[Plan]]:
    """The part of a set that a policy learns from, or the part that judges it, with labels.

    Args:
        share: To learn from: the first graphs of the set.
        held_out: The rest.

    Raises:
        UserError: As `read_graph_set` and `read_labels`.
    """
    graphs = read_graph_set(graphs_path)
    cut = max(1, int(len(graphs) * share))
    part = slice(cut, None) if held_out else slice(cut)
    return graphs[part], read_labels(labels_folder)[part]


def read_labels(folder: Path) -> list[Plan]:
    """The labels of all shards, in the order of the graphs.

    Raises:
        UserError: No labels, a shard is missing or a line is no plan.
    """
    paths = sorted(folder.glob("labels-*-of-*.jsonl"))
    if not paths:
        raise UserError(f"{folder}: holds no labels; make some with `coralline train label`")
    counts = {path.stem.split("-of-")[1] for path in paths}
    if len(counts) > 1 or len(paths) != int(next(iter(counts))):
        raise UserError(
            f"{folder}: has {len(paths)} whole shards of {' and '.join(sorted(counts))}; "
            "finish them with `coralline train label`, or label into an empty folder"
        )
    return [plan for path in paths for plan in read_shard(path)]


def read_shard(path: Path) -> list[Plan]:
    """The labels of one shard, whole or not.

    Raises:
        UserError: The file is missing or a line is no plan; names file and line.
    """
    plans = []
    for number, line in enumerate(read_text(path, "a label file").splitlines(), 1):
        where = f"{path}: line {number}"
        data = parse_json(line, where)
        try:
            plans.append(Plan.from_json(data))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return plans


def _finished(path: Path, problems: Sequence[StagingProblem], planner: str) -> int:
    """How many labels the file holds, after cutting off a line that was being written."""
    if not path.exists():
        return 0
    whole = path.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if len(kept) < len(whole):
        with path.open("r+b") as file:
            file.truncate(len(kept))
    labels = read_shard(path)
    posed = zip(labels, problems, strict=False)
    if len(labels) > len(problems) or any(not _answers(*pair, planner) for pair in posed):
        raise UserError(
            f"{path}: holds labels of other graphs or another problem; choose an empty folder"
        )
    return len(labels)


def _answers(label: Plan, problem: StagingProblem, planner: str) -> bool:
    return (
        label.graph_digest,
        label.n_stages,
        label.device_digest,
        label.objective,
        label.children_together,
        label.planner,
    ) == (
        problem.graph.digest,
        problem.n_stages,
        problem.device_digest,
        problem.objective,
        problem.children_together,
        planner,
    )
