"""Components: train the scheduling policy and measure it on graphs it has not seen."""

from kfp import dsl

from components.face import component


@component
def train_policy(
    graphs: dsl.Input[dsl.Dataset],
    labels: dsl.Input[dsl.Dataset],
    recipe: str,
    training_share: float,
    code_version: str,
    policy: dsl.Output[dsl.Model],
) -> None:
    """Train the policy by REINFORCE on the first graphs of the set.

    Args:
        recipe: Name of a recipe in training/recipes or path of a YAML file.
        training_share: Share of the set to train on; the rest is held out.
    """
    from pathlib import Path

    from components.progress import progress
    from coralline.graph.graph_set import read_graph_set
    from training.labels import read_labels
    from training.policy import load_recipe, train_policy

    everything = read_graph_set(Path(graphs.path))
    cut = max(1, int(len(everything) * training_share))
    config = load_recipe(recipe)
    train_policy(
        everything[:cut],
        read_labels(Path(labels.path))[:cut],
        config,
        Path(policy.path),
        on_epoch=lambda epoch: progress("training", epoch.epoch + 1, config.epochs),
    )


@component
def evaluate_policy(
    graphs: dsl.Input[dsl.Dataset],
    labels: dsl.Input[dsl.Dataset],
    policy: dsl.Input[dsl.Model],
    training_share: float,
    evaluation: dsl.Output[dsl.Metrics],
) -> None:
    """Gap of the policy on the graphs that training left out, beside other planners."""
    import json
    from pathlib import Path

    from coralline.graph.graph_set import read_graph_set
    from training.evaluate import evaluate_policy
    from training.labels import read_labels

    everything = read_graph_set(Path(graphs.path))
    cut = max(1, int(len(everything) * training_share))
    found = evaluate_policy(
        Path(policy.path) / "policy.npz", everything[cut:], read_labels(Path(labels.path))[cut:]
    )
    Path(evaluation.path).write_text(json.dumps(found), encoding="utf-8")
