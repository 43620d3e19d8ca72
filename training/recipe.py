"""A recipe: everything that a trained policy is made of, in one YAML file.

schema: coralline.recipe/v1
device: edgetpu-usb
objective: bottleneck
planner: exact-cpsat          # makes the labels
label_time_limit_s: 20
graphs:                       # any number of sets
  - {family: respect, count: 500, nodes: 30, seed: 1, stages: 4}
training: {}                  # fields of training.policy.PolicyConfig
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from coralline.devices.model import load_device
from coralline.errors import UserError, read_text
from coralline.graph import synthetic
from coralline.graph.compute_graph import ComputeGraph
from coralline.graph.graph_set import read_graph_set, write_graph_set
from coralline.staging import Effort, Plan
from training.labels import LabelOptions, read_labels, solve_labels
from training.policy import Epoch, PolicyConfig, PolicyMetrics, train_policy

SCHEMA = "coralline.recipe/v1"

_SET_FIELDS = ("family", "count", "nodes", "seed", "stages")


@dataclass(frozen=True)
class Recipe:
    """What the module's text shows, checked.

    Attributes:
        graphs: Sets with family, count, nodes, seed and stages.
        source: The file's content, for the policy's record.
    """

    device: str
    objective: str
    planner: str
    label_time_limit_s: float
    graphs: tuple[dict[str, Any], ...]
    training: PolicyConfig
    source: dict[str, Any]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        UserError: Names the field that is missing, unknown or out of range.
    """
    try:
        data = yaml.safe_load(read_text(path, "a recipe"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({error})".replace("\n", " ")) from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UserError(f"{path}: is not a recipe; its `schema` must be {SCHEMA}")
    wanted = {"schema", *Recipe.__dataclass_fields__} - {"source"}
    if set(data) != wanted:
        raise UserError(
            f"{path}: fields missing: {', '.join(sorted(wanted - set(data))) or 'none'}; "
            f"unknown: {', '.join(sorted(set(data) - wanted)) or 'none'}"
        )
    sets = data["graphs"]
    if not isinstance(sets, list) or not sets:
        raise UserError(f"{path}: graphs must be a list of sets")
    for i, item in enumerate(sets):
        if not isinstance(item, dict) or set(item) != set(_SET_FIELDS):
            raise UserError(f"{path}: graphs[{i}] needs {', '.join(_SET_FIELDS)}")
        for name in _SET_FIELDS[1:]:
            if type(item[name]) is not int:
                raise UserError(f"{path}: graphs[{i}].{name} is {item[name]!r}, not a number")
    limit = data["label_time_limit_s"]
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0:
        raise UserError(f"{path}: label_time_limit_s is {limit!r}; it must be above 0")
    return Recipe(
        device=data["device"],
        objective=data["objective"],
        planner=data["planner"],
        label_time_limit_s=limit,
        graphs=tuple(sets),
        training=PolicyConfig.from_mapping(data["training"], f"{path}: training"),
        source=data,
    )


def label_recipe(
    recipe: Recipe, folder: Path, on_label: Callable[[int, int], None] | None = None
) -> tuple[list[ComputeGraph], list[Plan]]:
    """Generate and label the recipe's sets in `folder`; what is already there is kept.

    Args:
        on_label: Called with the number of labels made and wanted.
    """
    graphs: list[ComputeGraph] = []
    labels: list[Plan] = []
    total = sum(item["count"] for item in recipe.graphs)
    effort = Effort(time_limit_s=recipe.label_time_limit_s, workers=1)
    for i, item in enumerate(recipe.graphs):
        path = folder / f"set{i}" / "graphs.jsonl"
        wanted = synthetic.generate(item["family"], item["count"], item["nodes"], item["seed"])
        if not path.exists() or read_graph_set(path) != wanted:
            write_graph_set(path, wanted)
        before = len(labels)

        def tell(done: int, _: int, before: int = before) -> None:
            if on_label is not None:
                on_label(before + done, total)

        options = LabelOptions(
            n_stages=item["stages"],
            device=recipe.device,
            objective=recipe.objective,  # type: ignore[arg-type]  # StagingProblem checks it
            planner=recipe.planner,
        )
        solve_labels(path, path.parent / "labels", 0, 1, options, effort, tell)
        graphs += wanted
        labels += read_labels(path.parent / "labels")
    return graphs, labels


def run_recipe(
    recipe: Recipe,
    folder: Path,
    on_label: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> PolicyMetrics:
    """Make graphs, labels and the policy: `folder / "policy.npz"`."""
    graphs, labels = label_recipe(recipe, folder, on_label)
    return train_policy(
        graphs,
        labels,
        recipe.training,
        folder,
        on_epoch,
        device=load_device(recipe.device),
        recipe=recipe.source,
    )
