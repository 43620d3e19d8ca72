"""A recipe: everything that a trained policy is made of, in one YAML file.

schema: coralline.recipe/v2
objective: bottleneck
stages: [2, 8]                # of each graph, drawn from this range
devices: [edgetpu-usb]        # of each graph, one of these
perturbed_share: 0.5          # of the graphs, whose device has its constants changed
planner: exact                # makes the labels
label_time_limit_s: 0.5       # of one graph
graphs:                       # any number of sets, of one size each; count is for each family
  - {families: [respect, branch], count: 500, nodes: 30, seed: 1, labelled: true}
training: {}                  # fields of training.policy.PolicyConfig
seeds: [0, 1, 2]              # of trainings; that with the smallest validation gap is kept
tests:                        # what each is tried on afterwards, against proven optima
  - {families: [respect, branch], count: 50, nodes: 30, seed: 7}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from coralline.devices.model import DeviceModel, load_device
from coralline.errors import UserError, read_text
from coralline.graph import synthetic
from coralline.staging import OBJECTIVES, Effort, Plan, StagingProblem, make_plan
from coralline.staging.policy import Policy, load_policy, save_policy
from training.evaluate import try_planners
from training.labels import read_shard, solve_problems
from training.policy import Epoch, PolicyConfig, PolicyMetrics, train

SCHEMA = "coralline.recipe/v2"

PERTURBATION = 2.0
"""A perturbed device's constants are multiplied by factors from the inverse of this to this."""

_TEST_FIELDS = {"families": list, "count": int, "nodes": int, "seed": int}
_SET_FIELDS = {**_TEST_FIELDS, "labelled": bool}

_TEST_LIMIT_S = 3.0
"""Of the exact planner for each test graph."""


@dataclass(frozen=True)
class Recipe:
    """What the module's text shows, checked.

    Attributes:
        graphs: Sets with families, count, nodes, seed and labelled.
        tests: The same without labelled.
        source: The file's content, for the policy's record.
    """

    objective: str
    stages: tuple[int, int]
    devices: tuple[str, ...]
    perturbed_share: float
    planner: str
    label_time_limit_s: float
    graphs: tuple[dict[str, Any], ...]
    training: PolicyConfig
    seeds: tuple[int, ...]
    tests: tuple[dict[str, Any], ...]
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
    stages, devices, seeds = data["stages"], data["devices"], data["seeds"]
    for section, wanted_fields in (("graphs", _SET_FIELDS), ("tests", _TEST_FIELDS)):
        _check_sets(data[section], wanted_fields, f"{path}: {section}")
    if not isinstance(seeds, list) or not seeds or {type(seed) for seed in seeds} != {int}:
        raise UserError(f"{path}: seeds is {seeds!r}; it must be a list of numbers")
    if (
        not isinstance(stages, list)
        or [type(k) for k in stages] != [int, int]
        or not 1 <= stages[0] <= stages[1]
    ):
        raise UserError(f"{path}: stages is {stages!r}; it must be two numbers from 1, rising")
    if not isinstance(devices, list) or not devices:
        raise UserError(f"{path}: devices must be a list of names")
    if data["objective"] not in OBJECTIVES:
        raise UserError(f"{path}: objective {data['objective']!r} is not known")
    limit, share = data["label_time_limit_s"], data["perturbed_share"]
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0:
        raise UserError(f"{path}: label_time_limit_s is {limit!r}; it must be above 0")
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise UserError(f"{path}: perturbed_share is {share!r}; it must be 0 to 1")
    return Recipe(
        objective=data["objective"],
        stages=(stages[0], stages[1]),
        devices=tuple(devices),
        perturbed_share=share,
        planner=data["planner"],
        label_time_limit_s=limit,
        graphs=tuple(data["graphs"]),
        training=PolicyConfig.from_mapping(data["training"], f"{path}: training"),
        seeds=tuple(seeds),
        tests=tuple(data["tests"]),
        source=data,
    )


def _check_sets(sets: Any, wanted: dict[str, type], where: str) -> None:
    if not isinstance(sets, list) or not sets:
        raise UserError(f"{where} must be a list of sets")
    for i, item in enumerate(sets):
        if not isinstance(item, dict) or set(item) != set(wanted):
            raise UserError(f"{where}[{i}] needs {', '.join(wanted)}")
        for name, kind in wanted.items():
            if type(item[name]) is not kind:
                raise UserError(f"{where}[{i}].{name} is {item[name]!r}, no {kind.__name__}")


def pose(recipe: Recipe, item: dict[str, Any]) -> list[StagingProblem]:
    """The problems of one of the recipe's sets."""
    rng = np.random.default_rng([item["seed"], item["nodes"]])
    problems = []
    for family in item["families"]:
        for graph in synthetic.generate(family, item["count"], item["nodes"], item["seed"]):
            n_stages = int(rng.integers(*recipe.stages, endpoint=True))
            device = load_device(recipe.devices[rng.integers(len(recipe.devices))])
            if rng.random() < recipe.perturbed_share:
                device = perturbed(device, rng)
            problems.append(
                StagingProblem(
                    graph,
                    min(n_stages, item["nodes"]),
                    device,
                    recipe.objective,  # type: ignore[arg-type]  # read_recipe checks it
                )
            )
    return problems


def perturbed(device: DeviceModel, rng: np.random.Generator) -> DeviceModel:
    """A device like this one whose constants are multiplied by factors up to PERTURBATION.

    Overhead, cache, streaming, both directions of transfer and the rates of all operators get
    a factor each, log-uniform.
    """
    factor = np.exp(np.log(PERTURBATION) * rng.uniform(-1, 1, 6)).tolist()
    return replace(
        device,
        name=f"{device.name}, perturbed",
        macs_per_ms={kind: factor[0] * rate for kind, rate in device.macs_per_ms.items()},
        stage_overhead_ms=factor[1] * device.stage_overhead_ms,
        parameter_cache_bytes=int(factor[2] * device.parameter_cache_bytes),
        cache_by_activation=tuple((a, int(factor[2] * c)) for a, c in device.cache_by_activation),
        stream_ms_per_mib=factor[3] * device.stream_ms_per_mib,
        in_ms_per_mib=factor[4] * device.in_ms_per_mib,
        out_ms_per_mib=factor[5] * device.out_ms_per_mib,
    )


def label_recipe(
    recipe: Recipe, folder: Path, on_label: Callable[[int, int], None] | None = None
) -> tuple[list[StagingProblem], list[Plan | None]]:
    """Generate the recipe's sets and label them in `folder`; what is already there is kept.

    Args:
        on_label: Called with the number of labels made and wanted.

    Returns:
        The problems, and for each its label; None in sets that are not labelled.
    """
    sets = [pose(recipe, item) for item in recipe.graphs]
    wanted = [item["labelled"] for item in recipe.graphs]
    total = sum(len(posed) for posed, label in zip(sets, wanted, strict=True) if label)
    effort = Effort(time_limit_s=recipe.label_time_limit_s, workers=1)
    problems: list[StagingProblem] = []
    labels: list[Plan | None] = []
    before = 0
    for i, posed in enumerate(sets):
        problems += posed
        if not wanted[i]:
            labels += [None] * len(posed)
            continue

        def tell(done: int, _: int, before: int = before) -> None:
            if on_label is not None:
                on_label(before + done, total)

        path = folder / f"labels-of-set-{i}.jsonl"
        solve_problems(posed, path, recipe.planner, effort, tell)
        labels += read_shard(path)
        before += len(posed)
    return problems, labels


def run_recipe(
    recipe: Recipe,
    folder: Path,
    on_label: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> PolicyMetrics:
    """Make graphs and labels, train with each seed, and keep the best: `folder / "policy.npz"`.

    Trainings that an earlier run finished, `folder / "seed-S" / "policy.npz"`, are kept. Which
    seed is best, the gap on the validation graphs says; the tests have no part in it, and what
    they find for every seed is in the file.

    Returns:
        The metrics of the best.
    """
    problems, labels = label_recipe(recipe, folder, on_label)
    trained: dict[int, Policy] = {}
    for seed in recipe.seeds:
        config, path = replace(recipe.training, seed=seed), _trained(folder, seed)
        if not path.exists() or load_policy(path).metadata["config"] != asdict(config):
            train(problems, labels, config, path.parent, on_epoch)
        trained[seed] = load_policy(path)
    gap = {seed: policy.metadata["metrics"]["greedy_gap"] for seed, policy in trained.items()}
    tests: dict[int, list[dict[str, Any]]] = {seed: [] for seed in recipe.seeds}
    for item in recipe.tests:
        posed = pose(recipe, item)
        plans = [make_plan(p, "exact", Effort(time_limit_s=_TEST_LIMIT_S)) for p in posed]
        best = np.array([plan.value for plan in plans])
        for seed in recipe.seeds:
            tests[seed].append(
                {
                    "nodes": item["nodes"],
                    "graphs": len(posed),
                    "proven": sum(plan.proven_optimal for plan in plans),
                    "methods": try_planners(_trained(folder, seed), posed, best),
                }
            )
    kept = trained[min(gap, key=lambda seed: gap[seed])]
    seeds = [{"seed": s, "greedy_gap": gap[s], "test": tests[s]} for s in recipe.seeds]
    metadata = {**kept.metadata, "recipe": recipe.source, "seeds": seeds}
    save_policy(folder / "policy.npz", Policy(kept.weights, metadata))
    return PolicyMetrics.from_json(metadata["metrics"])


def _trained(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}" / "policy.npz"
