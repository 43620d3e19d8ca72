"""Components: train the scheduling policy and measure it on graphs it has not seen."""

from kfp import dsl

from components.face import component


@component
def train_policy(
    graphs: dsl.Input[dsl.Dataset],
    labels: dsl.Input[dsl.Dataset],
    training_share: float,
    epochs: int,
    time_limit_s: float,
    seed: int,
    code_version: str,
    policy: dsl.Output[dsl.Model],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Train the policy by REINFORCE on the first graphs of the set.

    Args:
        training_share: Share of the set to train on; the rest is held out.
        epochs: Passes over the training graphs, at most.
        time_limit_s: Training stops after the epoch at hand.
    """
    from pathlib import Path

    from components.steps import progress, step
    from training.labels import read_labelled
    from training.policy import PolicyConfig, train_policy

    with step("train-policy", cost):
        chosen, their_labels = read_labelled(
            Path(graphs.path), Path(labels.path), training_share, held_out=False
        )
        train_policy(
            chosen,
            their_labels,
            PolicyConfig(epochs=epochs, time_limit_s=time_limit_s, seed=seed),
            Path(policy.path),
            lambda epoch: progress("training", epoch.epoch, epochs),
        )


@component
def evaluate_policy(
    graphs: dsl.Input[dsl.Dataset],
    labels: dsl.Input[dsl.Dataset],
    policy: dsl.Input[dsl.Model],
    training_share: float,
    evaluation: dsl.Output[dsl.Metrics],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Gap of the policy on the graphs that training left out, beside other planners."""
    import json
    from pathlib import Path

    from components.steps import step
    from coralline.staging.policy import load_policy
    from training.evaluate import evaluate_policy
    from training.labels import read_labelled

    with step("evaluate-policy", cost):
        chosen, their_labels = read_labelled(
            Path(graphs.path), Path(labels.path), training_share, held_out=True
        )
        found = evaluate_policy(
            load_policy(Path(policy.path) / "policy.npz"),
            chosen,
            their_labels,
        )
        Path(evaluation.path).write_text(json.dumps(found), encoding="utf-8")


@component
def judge_policy(
    graphs: dsl.Input[dsl.Dataset],
    labels: dsl.Input[dsl.Dataset],
    policy: dsl.Input[dsl.Model],
    training_share: float,
    verdict: dsl.Output[dsl.Artifact],
    cost: dsl.Output[dsl.Metrics],
) -> None:
    """Hold the policy against the champion in MLflow, on the graphs that training left out."""
    from pathlib import Path

    from components.promotion import judge_policy
    from components.steps import step
    from training.labels import read_labelled

    with step("judge-policy", cost):
        chosen, their_labels = read_labelled(
            Path(graphs.path), Path(labels.path), training_share, held_out=True
        )
        judge_policy(
            Path(policy.path) / "policy.npz",
            chosen,
            their_labels,
            Path(verdict.path),
        )
