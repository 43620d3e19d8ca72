"""Training on a set so small that it takes seconds; the first import of TensorFlow is slow."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coralline.devices.model import load_device
from coralline.errors import UserError
from coralline.graph import synthetic
from coralline.graph.compute_graph import ComputeGraph
from coralline.graph.graph_set import write_graph_set
from coralline.staging import Effort, Plan, StagingProblem, make_plan
from coralline.staging.decoder import decode, project
from coralline.staging.policy import load_policy
from training.evaluate import best_of, evaluate_policy, interval, random_orders
from training.policy import (
    Epoch,
    Exercise,
    PolicyConfig,
    PolicyMetrics,
    exercise,
    train,
    train_policy,
    validate,
)
from training.recipe import label_recipe, pose, read_recipe, run_recipe
from training.tune import tune_policy

DEVICE = load_device("edgetpu-usb")
TINY = PolicyConfig(
    hidden=16, layers=2, epochs=12, batch_nodes=256, samples=8, learning_rate=0.01, seed=1
)


def labelled(count: int, seed: int) -> tuple[list[ComputeGraph], list[Plan]]:
    graphs = synthetic.generate("branch", count, 16, seed)
    problems = [StagingProblem(graph, 3, DEVICE) for graph in graphs]
    return graphs, [make_plan(p, "exact-cpsat", Effort(workers=1)) for p in problems]


def exercises(graphs: list[ComputeGraph], labels: list[Plan]) -> list[Exercise]:
    return [
        exercise(StagingProblem(graph, label.n_stages, DEVICE), label)
        for graph, label in zip(graphs, labels, strict=True)
    ]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PolicyMetrics, list[Epoch]]:
    out = tmp_path_factory.mktemp("policy")
    epochs: list[Epoch] = []
    metrics = train_policy(*labelled(120, 0), TINY, out, epochs.append)
    return out / "policy.npz", metrics, epochs


def test_the_network_learns(learned: tuple[Path, PolicyMetrics, list[Epoch]]) -> None:
    path, metrics, epochs = learned
    assert metrics.curve == tuple(epochs) and len(epochs) == TINY.epochs
    assert metrics.greedy_gap < 0.7 * metrics.untrained_gap
    assert epochs[-1].sampled_gap < epochs[0].sampled_gap
    assert epochs[-1].target_error < 0.5
    # First it imitates, then it learns from its own orders.
    assert [e.imitation for e in epochs] == sorted((e.imitation for e in epochs), reverse=True)
    assert {e.imitation for e in epochs} == {0, 1}
    assert metrics.labels_proven == 1.0
    # On graphs that played no part: better than chance and than the graphs' own order.
    unseen = exercises(*labelled(60, 1))
    gap, _, _ = validate(unseen, load_policy(path).weights, 0)
    chance = [best_of(random_orders(), i.problem, 1, 0, greedy=False) for i in unseen]
    own = [make_plan(i.problem, "topo-dp").value for i in unseen]
    best = np.array([i.label_value for i in unseen])
    assert gap < 0.8 * (chance / best - 1).mean()
    assert gap < 0.8 * (own / best - 1).mean()


def test_reinforcement_alone_learns_too_from_graphs_without_labels(tmp_path: Path) -> None:
    graphs, labels = labelled(24, 0)
    problems = [StagingProblem(g, 3, DEVICE) for g in synthetic.generate("branch", 96, 16, 5)]
    problems += [StagingProblem(graph, 3, DEVICE) for graph in graphs]
    config = replace(TINY, epochs=8, imitation_share=0.0, validation_share=0.9)
    metrics = train(problems, [None] * 96 + labels, config, tmp_path)
    assert metrics.graphs == 98 and metrics.validation_graphs == 22
    assert {epoch.imitation for epoch in metrics.curve} == {0}
    assert metrics.greedy_gap < 0.8 * metrics.untrained_gap


def test_a_seed_fixes_the_weights(
    learned: tuple[Path, PolicyMetrics, list[Epoch]], tmp_path: Path
) -> None:
    config, data = replace(TINY, epochs=1), labelled(12, 0)
    for name in "ab":
        train_policy(*data, config, tmp_path / name)
    a, b = (load_policy(tmp_path / name / "policy.npz") for name in "ab")
    for name, weight in a.weights.items():
        np.testing.assert_allclose(weight, b.weights[name], atol=1e-5)


def test_the_file_says_what_made_it(
    learned: tuple[Path, PolicyMetrics, list[Epoch]],
) -> None:
    path, metrics, _ = learned
    metadata = load_policy(path).metadata
    assert metadata["metrics"] == json.loads(json.dumps(metrics.to_json()))
    assert PolicyConfig(**metadata["config"]) == TINY
    assert PolicyMetrics.from_json(metadata["metrics"]) == metrics
    assert metadata["devices"] == [DEVICE.name]


@pytest.mark.parametrize(("family", "nodes"), [("respect", 30), ("cell", 47), ("branch", 2)])
@pytest.mark.parametrize("led", [False, True])
def test_tensorflow_and_numpy_agree(family: str, nodes: int, led: bool) -> None:
    import tensorflow as tf

    from training.network import Network
    from training.policy import graph_batch, rollout_batch

    network = Network(hidden=32, layers=3, seed=5)
    rng = np.random.default_rng(5)
    # Larger than at the start of training, so that every part of the network tells.
    weights = {n: 3 * w + 0.1 * rng.standard_normal(w.shape) for n, w in network.weights().items()}
    weights = {name: weight.astype(np.float32) for name, weight in weights.items()}
    network.assign(weights)
    graphs = synthetic.generate(family, 3, nodes, 2)
    problems = [StagingProblem(g, min(2 + i, nodes), DEVICE) for i, g in enumerate(graphs)]
    items = [exercise(p, make_plan(p, "topo-dp")) for p in problems]
    projections = [project(weights, item.inputs) for item in items]
    rollouts = [
        decode(
            item.inputs,
            projection,
            rng.random((5, item.inputs.n_steps)),
            n_greedy=1,
            guide=item.stage if led else None,
            record=True,
        )
        for item, projection in zip(items, projections, strict=True)
    ]
    batch = graph_batch(items) | rollout_batch(items, rollouts, np.zeros((3, 5)), np.ones(3))
    batch = {name: tf.constant(array) for name, array in batch.items()}
    theirs = network.project(batch)
    target = theirs.pop("log_target").numpy()
    for i, projection in enumerate(projections):
        for name, value in theirs.items():
            np.testing.assert_allclose(
                value[i].numpy(), getattr(projection, name), rtol=1e-4, atol=1e-4
            )
        expected = np.log(projection.target_ms / items[i].inputs.unit_ms)
        np.testing.assert_allclose(target[i], expected, rtol=1e-4, atol=1e-4)
    found = network.log_policy(batch, network.project(batch)).numpy().sum(axis=2)
    ours = np.stack([r.log_probability for r in rollouts])
    if led:
        # All candidates that fit the plan count, not only the one taken.
        assert (found > ours - 1e-3).all() and (nodes == 2 or (found > ours + 0.1).any())
    else:
        np.testing.assert_allclose(found, ours, rtol=1e-4, atol=1e-3)


def test_a_led_decoding_rebuilds_the_plan() -> None:
    graphs, labels = labelled(10, 2)
    policy = random_orders()
    for item in exercises(graphs, labels):
        rolled = decode(
            item.inputs,
            project(policy.weights, item.inputs),
            np.random.default_rng(0).random((4, item.inputs.n_steps)),
            guide=item.stage,
        )
        assert item.values(rolled.order) == pytest.approx(item.label_value)


def test_evaluation_by_family(learned: tuple[Path, PolicyMetrics, list[Epoch]]) -> None:
    graphs, labels = labelled(6, 3)
    graphs += synthetic.generate("cell", 3, 20, 3)
    labels += [make_plan(StagingProblem(g, 3, DEVICE), "exact-cpsat") for g in graphs[6:]]
    result = evaluate_policy(load_policy(learned[0]), graphs, labels, samples=(4,))
    rows = {row["method"]: row for row in result["methods"]}
    assert set(rows) == {
        "policy greedy",
        "policy best of 4",
        "random best of 1",
        "random best of 4",
        "topo-dp",
        "uniform",
    }
    assert result["labels_proven"] == 1.0
    for row in rows.values():
        assert row["seconds"] > 0
        assert row["families"]["branch"]["graphs"] == 6
        assert row["families"]["cell"]["graphs"] == 3
        whole = (6 * row["families"]["branch"]["mean"] + 3 * row["families"]["cell"]["mean"]) / 9
        assert row["all"]["mean"] == pytest.approx(whole)
        assert row["all"]["mean"] > -1e-6
    assert rows["policy best of 4"]["all"]["mean"] <= rows["policy greedy"]["all"]["mean"]
    values = [make_plan(StagingProblem(g, 3, DEVICE), "uniform").value for g in graphs]
    gaps = [v / label.value - 1 for v, label in zip(values, labels, strict=True)]
    assert rows["uniform"]["all"]["median"] == pytest.approx(np.median(gaps))


def test_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    graphs, labels = labelled(16, 0)
    data = [StagingProblem(graph, 3, DEVICE) for graph in graphs], labels
    base = replace(TINY, epochs=1)
    seen: list[int] = []
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = tune_policy(
        *data, base, tmp_path, 1, mlflow_uri=uri, on_trial=lambda done, _: seen.append(done)
    )
    second = tune_policy(*data, base, tmp_path, 2, on_trial=lambda done, _: seen.append(done))
    third = tune_policy(*data, base, tmp_path, 2)
    assert seen == [1, 2]
    assert first["trials"] == 1 and second["trials"] == third["trials"] == 2
    assert second["best_gap"] == third["best_gap"] <= first["best_gap"]
    assert set(second["best"]) <= set(PolicyConfig.__dataclass_fields__)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(first["study"])
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best_greedy_gap"] == pytest.approx(first["best_gap"])
    assert run.data.params == {name: str(value) for name, value in first["best"].items()}


def test_wrong_labels_are_refused(tmp_path: Path) -> None:
    graphs, labels = labelled(12, 0)
    with pytest.raises(UserError, match="12 graphs but 11 labels"):
        train_policy(graphs, labels[1:], TINY, tmp_path)
    with pytest.raises(UserError, match="the plan was made for"):
        train_policy(graphs, labels[::-1], TINY, tmp_path)
    with pytest.raises(UserError, match="another version of 'edgetpu-usb'"):
        other = replace(DEVICE, stage_overhead_ms=9.0)
        train_policy(graphs, labels, TINY, tmp_path, device=other)
    with pytest.raises(UserError, match="4 labelled graphs are too few"):
        train_policy(graphs[:4], labels[:4], TINY, tmp_path)
    with pytest.raises(UserError, match="no labels"):
        train_policy([], [], TINY, tmp_path)
    with pytest.raises(UserError, match="keeps children together"):
        together = [replace(label, children_together=True) for label in labels]
        train_policy(graphs, together, TINY, tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden", 2), ("epochs", 0), ("learning_rate", -1.0), ("samples", 1.5), ("seed", "x")],
)
def test_bad_configurations(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"r: {field} is"):
        PolicyConfig.from_mapping({field: value}, "r")
    with pytest.raises(UserError, match="unknown depth"):
        PolicyConfig.from_mapping({"depth": 3}, "r")


RECIPE = """
schema: coralline.recipe/v2
objective: bottleneck
stages: [2, 3]
devices: [edgetpu-usb, edgetpu-pcie]
perturbed_share: 0.5
planner: topo-dp
label_time_limit_s: 5
graphs:
  - {families: [branch, tower], count: 5, nodes: 12, seed: 3, labelled: true}
  - {families: [skip], count: 10, nodes: 16, seed: 4, labelled: true}
  - {families: [skip], count: 3, nodes: 20, seed: 4, labelled: false}
training: {hidden: 8, layers: 1, epochs: 1000, time_limit_s: 0.001, samples: 2}
seeds: [4, 5]
tests:
  - {families: [cell], count: 4, nodes: 10, seed: 9}
"""


def test_a_recipe_makes_graphs_labels_and_policies(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    counts: list[tuple[int, int]] = []
    recipe = read_recipe(path)
    metrics = run_recipe(recipe, tmp_path / "out", lambda a, b: counts.append((a, b)))
    assert counts[-1] == (20, 20)
    assert metrics.graphs == 19 and metrics.validation_graphs == 4
    # Time was up before the first epoch: the end of training, with a step for each size.
    assert len(metrics.curve) == 1 and metrics.steps == 3
    problems, labels = label_recipe(recipe, tmp_path / "out")
    assert [label is None for label in labels] == [False] * 20 + [True] * 3
    assert {p.n_stages for p in problems} == {2, 3}
    names = {str(p.device_name) for p in problems}
    assert {"edgetpu-usb", "edgetpu-usb, perturbed", "edgetpu-pcie"} <= names
    metadata = load_policy(tmp_path / "out" / "policy.npz").metadata
    assert metadata["recipe"]["graphs"][1]["seed"] == 4
    assert [seed["seed"] for seed in metadata["seeds"]] == [4, 5]
    assert metadata["metrics"]["greedy_gap"] == min(s["greedy_gap"] for s in metadata["seeds"])
    for seed in metadata["seeds"]:
        (test,) = seed["test"]
        assert test["graphs"] == test["proven"] == 4
        for found in test["methods"].values():
            assert -1e-6 < found["low"] <= found["mean"] <= found["high"]
        assert test["methods"]["policy"]["mean"] <= test["methods"]["policy-greedy"]["mean"]
    # What is there is kept.
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("seed-*/policy.npz")}
    run_recipe(recipe, tmp_path / "out", lambda a, b: pytest.fail("labelled again"))
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("coralline.recipe/v2", "v9", "its `schema` must be"),
        ("planner: topo-dp\n", "", "fields missing: planner"),
        ("nodes: 12", "nodes: many", r"graphs\[0\].nodes is 'many'"),
        (", labelled: true", "", r"graphs\[0\] needs"),
        ("nodes: 10,", "", r"tests\[0\] needs"),
        ("stages: [2, 3]", "stages: [3, 2]", "two numbers from 1, rising"),
        ("seeds: [4, 5]", "seeds: 4", "seeds is 4"),
        ("perturbed_share: 0.5", "perturbed_share: 2", "must be 0 to 1"),
        ("label_time_limit_s: 5", "label_time_limit_s: -5", "must be above 0"),
        ("hidden: 8", "hidden: 0", "training: hidden is 0"),
        ("schema:", "{", "is not YAML"),
    ],
)
def test_bad_recipes(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace(old, new))
    with pytest.raises(UserError, match=message):
        read_recipe(path)


@pytest.mark.parametrize("path", sorted(Path("training/recipes").glob("*.yaml")), ids=str)
def test_the_recipes_here_are_readable(path: Path) -> None:
    recipe = read_recipe(path)
    for item in [*recipe.graphs, *recipe.tests]:
        pose(recipe, {**item, "count": 1})


def test_the_interval_of_a_mean() -> None:
    """About 1.96 standard errors to each side."""
    x = np.random.default_rng(1).normal(5.0, 2.0, 400)
    low, high = interval(x)
    assert low < x.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 2.0 / 20, rel=0.15)


def test_shards_from_the_command_line_feed_training(tmp_path: Path) -> None:
    import typer
    from typer.testing import CliRunner

    from training import cli

    app = typer.Typer()
    cli.add(app)

    def call(*arguments: object) -> dict[str, object]:
        done = CliRunner().invoke(app, ["train", *map(str, arguments), "--json"])
        assert done.exit_code == 0, done.output
        result = json.loads(done.stdout)
        assert isinstance(result, dict)
        return result

    graphs, labels = tmp_path / "g.jsonl", tmp_path / "labels"
    write_graph_set(graphs, synthetic.generate("branch", 12, 10, 0))
    options = ["--graphs", graphs, "--stages", 2, "--planner", "topo-dp", "--out", labels]
    assert call("label", *options, "--shards", 2, "--shard", 1)["labels"] == 6
    assert call("label", *options, "--shards", 2)["labels"] == 12
    data = ["--graphs", graphs, "--labels", labels]
    run = call("run", *data, "--out", tmp_path / "policy", "--epochs", 1)
    assert json.loads((tmp_path / "policy" / "metrics.json").read_text())["steps"] == run["steps"]
    result = call("evaluate", *data, "--policy", run["policy"])
    assert result["graphs"] == 12
    done = CliRunner().invoke(app, ["train", "run", "--out", str(tmp_path / "x")])
    assert isinstance(done.exception, UserError)


def test_the_shipped_policy_is_what_its_recipe_makes() -> None:
    recipe = read_recipe(Path("training/recipes/shipped.yaml"))
    metadata = load_policy().metadata
    assert metadata["recipe"] == recipe.source
    assert [seed["seed"] for seed in metadata["seeds"]] == list(recipe.seeds)
    config = PolicyConfig(**metadata["config"])
    assert config == replace(recipe.training, seed=config.seed)
    # Of the labels 99.5 % come with a proof within their 0.2 s; of those of 100 nodes fewer.
    assert metadata["metrics"]["labels_proven"] > 0.9
