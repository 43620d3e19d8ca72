"""MLflow logging: one batch a run, as the pipeline does, beside one call a value."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.frame import BenchResult

N_METRICS, N_PARAMS, N_TAGS = 14, 9, 10
"""Of a child run of the pipeline `respect`."""


def run(quick: bool) -> BenchResult:
    """Cost of one child run in a fresh SQLite store, each way."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    for chatty in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    n_runs = 5 if quick else 40
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        experiment = client.create_experiment("bench", Path(folder).as_uri())
        for name, log in [("one batch a run", _batched), ("one call a value", _one_by_one)]:
            log(client, experiment, 0)  # The first run pays for imports and caches.
            start = perf_counter()
            for i in range(n_runs):
                log(client, experiment, i)
            seconds = perf_counter() - start
            rows.append((name, n_runs, seconds, 1000 * seconds / n_runs))
    rows = [(*row, rows[1][3] / row[3]) for row in rows]
    return BenchResult(
        title="MLflow logging cost of a child run (SQLite)",
        columns=("way", "runs", "total (s)", "per run (ms)", "times faster"),
        rows=tuple(rows),
        note=f"A run has {N_METRICS} metrics, {N_PARAMS} parameters and {N_TAGS} tags; "
        "artifacts are left out of both ways.",
    )


def _batched(client: Any, experiment: str, i: int) -> None:
    from mlflow.entities import Metric, Param

    run = client.create_run(experiment, tags={f"t{k}": str(i) for k in range(N_TAGS)})
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(f"m{k}", float(i), 0, 0) for k in range(N_METRICS)],
        params=[Param(f"p{k}", str(i)) for k in range(N_PARAMS)],
    )
    client.set_terminated(run.info.run_id)


def _one_by_one(client: Any, experiment: str, i: int) -> None:
    run = client.create_run(experiment)
    for k in range(N_TAGS):
        client.set_tag(run.info.run_id, f"t{k}", str(i))
    for k in range(N_METRICS):
        client.log_metric(run.info.run_id, f"m{k}", float(i))
    for k in range(N_PARAMS):
        client.log_param(run.info.run_id, f"p{k}", str(i))
    client.set_terminated(run.info.run_id)
