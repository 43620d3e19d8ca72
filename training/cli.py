"""`coralline train`: labels, policies, their evaluation and their hyperparameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from coralline.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress

    from coralline.graph.compute_graph import ComputeGraph
    from coralline.staging.problem import Plan

train = typer.Typer(
    no_args_is_help=True,
    help="Label graphs with exact plans and train the policy that learns from them.",
    epilog="Example: coralline train run --graphs graphs.jsonl --labels labels --out policy",
)

GRAPHS = typer.Option(..., "--graphs", "-g", help="A graph set, from `coralline generate`.")
LABELS = typer.Option(..., "--labels", "-l", help="Folder of labels, from `train label`.")
DEVICE = typer.Option("edgetpu-usb", "--device", "-d", help="Name or YAML file of the device.")
JSON = typer.Option(False, "--json", help="Print one JSON object.")


def add(app: typer.Typer) -> None:
    """Add the verb."""
    app.add_typer(train, name="train")


@train.command(
    "label",
    epilog="Example: coralline train label --graphs graphs.jsonl --stages 4 --out labels",
)
def label(
    graphs: Path = GRAPHS,
    out: Path = typer.Option(..., "--out", "-o", help="Folder of the labels."),
    stages: int = typer.Option(4, "--stages", "-k", help="Number of pipeline stages."),
    device: str = DEVICE,
    objective: str = typer.Option(
        "bottleneck", "--objective", help="bottleneck, peak-memory or latency."
    ),
    planner: str = typer.Option("exact", "--planner", "-p", help="Name of the planner."),
    children_together: bool = typer.Option(
        False, "--children-together", help="Keep all readers of an operator in one stage."
    ),
    shards: int = typer.Option(1, "--shards", help="Number of files the labels are split over."),
    shard: int | None = typer.Option(None, "--shard", help="Solve this shard only, from 0."),
    time_limit: float = typer.Option(20.0, "--time-limit", min=0.0, help="Seconds a graph."),
    workers: int = typer.Option(2, "--workers", min=1, help="Threads of the planner."),
    json: bool = JSON,
) -> None:
    """Solve every graph of a set; what an earlier run has solved is kept."""
    from coralline.errors import UserError
    from coralline.staging import Effort
    from training.labels import LabelOptions, read_shard, solve_labels

    if shards < 1:
        raise UserError(f"{shards} shards: ask for 1 or more")
    options = LabelOptions(stages, device, objective, children_together, planner)  # type: ignore[arg-type]  # StagingProblem checks the objective
    effort = Effort(time_limit_s=time_limit, workers=workers)
    paths = []
    with _progress(json) as progress:
        for number in range(shards) if shard is None else [shard]:
            task = progress.add_task(f"labels, shard {number} of {shards}", total=None)

            def show(done: int, total: int, task: Any = task) -> None:
                progress.update(task, completed=done, total=total)

            paths.append(solve_labels(graphs, out, number, shards, options, effort, show))
    plans = [plan for path in paths for plan in read_shard(path)]
    proven = sum(plan.proven_optimal for plan in plans)
    seconds = sum(plan.solve_seconds for plan in plans)
    if json:
        output.print_json(
            {
                "labels": len(plans),
                "proven_optimal": proven,
                "solve_seconds": seconds,
                "shards": [str(path) for path in paths],
            }
        )
        return
    typer.echo(
        f"{len(plans)} labels in {out}: {proven} proven optimal, "
        f"{seconds / max(len(plans), 1):.3f} s each"
    )


@train.command(
    "run", epilog="Example: coralline train run --graphs graphs.jsonl --labels labels --out policy"
)
def run(
    out: Path = typer.Option(..., "--out", "-o", help="Folder of policy.npz and metrics.json."),
    graphs: Path | None = typer.Option(None, "--graphs", "-g", help="A graph set."),
    labels: Path | None = typer.Option(None, "--labels", "-l", help="Folder of its labels."),
    recipe: Path | None = typer.Option(
        None, "--recipe", "-r", help="A recipe: makes graphs and labels itself."
    ),
    device: str = DEVICE,
    epochs: int | None = typer.Option(None, "--epochs", help="Passes over the graphs."),
    time_limit: float | None = typer.Option(None, "--time-limit", help="Seconds to train."),
    seed: int | None = typer.Option(
        None, "--seed", min=0, help="Seed of weights and samples; of a recipe, this one alone."
    ),
    json: bool = JSON,
) -> None:
    """Train a policy: imitation of labels, then REINFORCE."""
    from dataclasses import replace

    from coralline.devices.model import load_device
    from coralline.errors import UserError
    from training.distributed import place
    from training.policy import Epoch, PolicyConfig, train_policy
    from training.recipe import read_recipe, run_recipe

    index, count = place()
    if count > 1 and recipe is not None:
        raise UserError("a recipe makes its labels in one process; give --graphs and --labels")

    if (recipe is None) == (graphs is None and labels is None) or (graphs is None) != (
        labels is None
    ):
        raise UserError("give either --recipe, or --graphs and --labels")
    asked = {"epochs": epochs, "time_limit_s": time_limit, "seed": seed}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    with _progress(json) as progress:
        labelling = progress.add_task("labels", total=None, visible=recipe is not None)
        task = progress.add_task("training", total=None)

        def solved(done: int, total: int) -> None:
            progress.update(labelling, completed=done, total=total)

        def learned(epoch: Epoch) -> None:
            share = max(epoch.epoch / config.epochs, epoch.seconds / config.time_limit_s)
            text = f"training: epoch {epoch.epoch}, greedy gap {100 * epoch.greedy_gap:.2f} %"
            progress.update(task, description=text, completed=min(share, 1.0), total=1.0)

        if recipe is not None:
            made = read_recipe(recipe)
            config = replace(made.training, **given)
            seeds = made.seeds if seed is None else (seed,)
            metrics = run_recipe(replace(made, training=config, seeds=seeds), out, solved, learned)
        else:
            assert graphs is not None and labels is not None
            config = PolicyConfig(**given)
            graph_list, label_list = _labelled(graphs, labels)
            metrics = train_policy(
                graph_list, label_list, config, out, learned, device=load_device(device)
            )
    if index > 0:
        return  # the first has the policy
    output.write_json(out / "metrics.json", metrics.to_json())
    if json:
        output.print_json({"policy": str(out / "policy.npz"), **metrics.to_json()})
        return
    typer.echo(
        f"{out / 'policy.npz'}: greedy gap {100 * metrics.greedy_gap:.2f} % on "
        f"{metrics.validation_graphs} held-out graphs (untrained "
        f"{100 * metrics.untrained_gap:.2f} %), {len(metrics.curve)} epochs in "
        f"{metrics.seconds:.0f} s"
    )


@train.command(
    "evaluate", epilog="Example: coralline train evaluate --graphs test.jsonl --labels test-labels"
)
def evaluate(
    graphs: Path = GRAPHS,
    labels: Path = LABELS,
    policy: Path | None = typer.Option(None, "--policy", help="policy.npz; the shipped without."),
    device: str = DEVICE,
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of sampled and random orders."),
    out: Path | None = typer.Option(None, "--out", "-o", help="Write the result to this file."),
    json: bool = JSON,
) -> None:
    """Compare a policy with random orders and other planners on labelled graphs."""
    from coralline.devices.model import load_device
    from coralline.staging.policy import load_policy
    from training.evaluate import evaluate_policy

    graph_list, label_list = _labelled(graphs, labels)
    result = evaluate_policy(
        load_policy(policy), graph_list, label_list, device=load_device(device), seed=seed
    )
    if out is not None:
        output.write_json(out, result)
    if json:
        output.print_json(result)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Gap to the labels, {result['graphs']} graphs", title_justify="left")
    families = sorted(result["methods"][0]["families"])
    for column in ["method", "mean", "median", "p90", *families, "ms a graph"]:
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in result["methods"]:
        gaps = [row["all"][key] for key in ("mean", "median", "p90")]
        gaps += [row["families"][family]["mean"] for family in families]
        table.add_row(
            row["method"],
            *(f"{100 * gap:.2f} %" for gap in gaps),
            f"{1000 * row['seconds']:.2f}",
        )
    Console().print(table)


@train.command(
    "tune", epilog="Example: coralline train tune --graphs graphs.jsonl --labels labels --trials 20"
)
def tune(
    graphs: Path = GRAPHS,
    labels: Path = LABELS,
    out: Path = typer.Option(Path("study"), "--out", "-o", help="Folder of study.db."),
    trials: int = typer.Option(20, "--trials", "-n", help="Finished trials the study shall hold."),
    device: str = DEVICE,
    epochs: int = typer.Option(30, "--epochs", help="Passes over the graphs in a trial."),
    time_limit: float = typer.Option(60.0, "--time-limit", help="Seconds of a trial."),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of trials and networks."),
    mlflow_uri: str | None = typer.Option(
        None, "--mlflow-uri", help="Log trials there; MLFLOW_TRACKING_URI without."
    ),
    json: bool = JSON,
) -> None:
    """Search the hyperparameters; a study that was stopped goes on."""
    from coralline.devices.model import load_device
    from training.policy import PolicyConfig, label_problems
    from training.tune import tune_policy

    base = PolicyConfig(epochs=epochs, time_limit_s=time_limit, seed=seed)
    graph_list, label_list = _labelled(graphs, labels)
    problems = label_problems(graph_list, label_list, load_device(device))
    with _progress(json) as progress:
        task = progress.add_task("trials", total=trials)

        def show(done: int, best: float) -> None:
            text = f"trials, best gap {100 * best:.2f} %"
            progress.update(task, description=text, completed=done)

        result = tune_policy(
            problems,
            label_list,
            base,
            out,
            trials,
            mlflow_uri=mlflow_uri,
            on_trial=show,
        )
    if json:
        output.print_json(result)
        return
    chosen = ", ".join(f"{name} {value}" for name, value in sorted(result["best"].items()))
    typer.echo(f"best gap {100 * result['best_gap']:.2f} % of {result['trials']} trials: {chosen}")


def _labelled(graphs: Path, labels: Path) -> tuple[list[ComputeGraph], list[Plan]]:
    from coralline.graph.graph_set import read_graph_set
    from training.labels import read_labels

    return read_graph_set(graphs), read_labels(labels)


def _progress(json: bool) -> Progress:
    """Progress on stderr, where somebody looks at it."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, disable=json or not console.is_terminal, transient=True)
