"""An Optuna study over the policy's hyperparameters, kept in SQLite and taken up again.

Trials that MLflow should see are logged as runs, each in one batch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from coralline.errors import UserError
from coralline.files import make_folder
from coralline.staging.problem import Plan, StagingProblem
from training.policy import Epoch, PolicyConfig, PolicyMetrics, train


def tune_policy(
    problems: Sequence[StagingProblem],
    labels: Sequence[Plan | None],
    base: PolicyConfig,
    out_dir: Path,
    n_trials: int,
    *,
    mlflow_uri: str | None = None,
    on_trial: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Run trials until the study holds `n_trials` finished ones; fewer if it has some already.

    A trial trains with the time limit, epochs and seed of `base` and is pruned when its
    validation gap falls behind the median of the others at the same epoch. Studies over other
    graphs, labels or budgets are kept apart in the same file.

    Args:
        out_dir: Holds `study.db` and a folder for each trial.
        mlflow_uri: Log each trial as a run there; without it to `MLFLOW_TRACKING_URI`, and
            without that nowhere.
        on_trial: Called with the number of finished trials and the best gap.

    Returns:
        `{"study", "storage", "trials", "best_gap", "best"}`; `best` holds the fields of
        PolicyConfig that the study chose.

    Raises:
        UserError: Fewer than one trial, labels that do not fit, or an unwritable folder.
    """
    import optuna
    from sqlalchemy.exc import DatabaseError

    if n_trials < 1:
        raise UserError(f"{n_trials} trials: ask for 1 or more")
    make_folder(out_dir)
    name = _study_name(problems, labels, base)
    storage = f"sqlite:///{(out_dir / 'study.db').resolve()}"
    # A trial that fails raises; a warning with the whole traceback adds nothing.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            load_if_exists=True,
            direction="minimize",
            sampler=optuna.samplers.TPESampler(seed=base.seed + _started(storage, name)),
            pruner=optuna.pruners.MedianPruner(n_warmup_steps=5),
        )
        uri = mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")

        def objective(trial: Any) -> float:
            config = replace(
                base,
                hidden=trial.suggest_categorical("hidden", [32, 64, 96]),
                layers=trial.suggest_int("layers", 2, 6),
                learning_rate=trial.suggest_float("learning_rate", 5e-4, 1e-2, log=True),
                imitation_share=trial.suggest_float("imitation_share", 0.4, 1.0),
                guides=trial.suggest_categorical("guides", [1, 2, 4]),
                batch_nodes=trial.suggest_categorical("batch_nodes", [480, 960]),
            )
            curve: list[Epoch] = []

            def watch(epoch: Epoch) -> None:
                curve.append(epoch)
                trial.report(epoch.greedy_gap, epoch.epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned

            metrics: PolicyMetrics | None = None
            try:
                folder = out_dir / f"{name}-trial{trial.number}"
                metrics = train(problems, labels, config, folder, watch)
            finally:
                if uri and curve:
                    _log_trial(uri, name, trial, curve, metrics)
            return metrics.greedy_gap

        finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        while (done := len(study.get_trials(states=finished))) < n_trials:
            study.optimize(objective, n_trials=1)
            if on_trial is not None:
                on_trial(done + 1, study.best_value)
    except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
        reason = str(getattr(error, "orig", None) or error.__cause__ or error).splitlines()[0]
        raise UserError(
            f"{out_dir / 'study.db'}: cannot be used ({reason}); free space or choose another place"
        ) from None
    return {
        "study": name,
        "storage": storage,
        "trials": done,
        "best_gap": study.best_value,
        "best": study.best_params,
    }


def _study_name(
    problems: Sequence[StagingProblem], labels: Sequence[Plan | None], base: PolicyConfig
) -> str:
    asked = [f"{p.graph.digest} {p.n_stages} {p.device_digest}" for p in problems]
    asked += [str(label and label.value) for label in labels]
    asked += [str((base.epochs, base.time_limit_s, base.validation_share, base.seed))]
    return "policy-" + hashlib.sha256("\n".join(asked).encode()).hexdigest()[:12]


def _started(storage: str, name: str) -> int:
    """Trials begun before: a study taken up again must not draw the same ones once more."""
    import optuna

    known = {s.study_name: s.n_trials for s in optuna.get_all_study_summaries(storage)}
    return int(known.get(name, 0))


def _log_trial(
    uri: str, study: str, trial: Any, curve: list[Epoch], metrics: PolicyMetrics | None
) -> None:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(study)
    number = experiment.experiment_id if experiment else client.create_experiment(study)
    run = client.create_run(number, run_name=f"trial {trial.number}")
    now = run.info.start_time
    points = [
        Metric(key, float(getattr(epoch, key)), now + round(1000 * epoch.seconds), epoch.epoch)
        for epoch in curve
        for key in ("greedy_gap", "sampled_gap", "target_error")
    ]
    client.log_batch(
        run.info.run_id,
        metrics=points[-900:],
        params=[Param(key, str(value)) for key, value in trial.params.items()],
        tags=[RunTag("study", study), RunTag("trial", str(trial.number))],
    )
    if metrics is not None:
        client.log_metric(run.info.run_id, "best_greedy_gap", metrics.greedy_gap)
    client.set_terminated(run.info.run_id, "FINISHED" if metrics is not None else "KILLED")
