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
) -> None:
    """Train the policy by REINFORCE on the first graphs of the set.

    Args:
        training_share: Share of the set to train on; the rest is held out.
        epochs: Passes over the training graphs, at most.
        time_limit_s: Training stops after the epoch at hand.
    """
    from pathlib import Path

    from components.progress import progress
    from coralline.graph.graph_set import read_graph_set
    from training.labels import read_labels
    from training.policy import PolicyConfig, train_policy

    everything = read_graph_set(Path(graphs.path))
    cut = max(1, int(len(everything) * training_share))
    train_policy(
        everything[:cut],
        read_labels(Path(labels.path))[:cut],
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
) -> None:
    """Gap of the policy on the graphs that training left out, beside other planners."""
    import json
    from hashlib import sha256
    from pathlib import Path

    from coralline.graph.graph_set import read_graph_set
    from coralline.staging.policy import load_policy
    from training.evaluate import evaluate_policy
    from training.labels import read_labels

    everything = read_graph_set(Path(graphs.path))
    cut = max(1, int(len(everything) * training_share))
    held_out = everything[cut:]
    found = evaluate_policy(
        load_policy(Path(policy.path) / "policy.npz"),
        held_out,
        read_labels(Path(labels.path))[cut:],
    )
    # Scores on other graphs do not compare.
    found["graphs_digest"] = sha256("".join(g.digest for g in held_out).encode()).hexdigest()
    Path(evaluation.path).write_text(json.dumps(found), encoding="utf-8")
