"""What an execution cost, out of what it left in MLflow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from components.runs import children, find_executions
from components.tracking import connected
from coralline.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import FileInfo, Run

SCHEMA = "coralline.run-cost/v1"


def run_cost(uri: str, name: str) -> dict[str, Any]:
    """Minutes, bytes and rows of an execution.

    Args:
        uri: Of the MLflow store.
        name: As `find_executions` takes it.

    Returns:
        A `coralline.run-cost/v1` object: `minutes` from the first step's beginning to the end of
        the record; `steps` with `seconds`, `cpu_seconds` and `peak_bytes` each; `files` and
        `bytes` of its artifacts in MLflow; its `runs` there, their `rows` (metrics, parameters,
        tags); and its `lab_jobs`.

    Raises:
        UserError: The name means no run, or one that has not ended.
        DeviceError: MLflow does not answer.
    """
    with connected(uri) as client:
        [parent] = find_executions(client, [name])
        if parent.info.end_time is None:
            raise UserError(f"{name}: {parent.info.run_name} has not ended")
        runs = [parent, *children(client, parent)]
        files, size = _artifacts(client, runs)
    metrics = parent.data.metrics
    steps = [
        {
            "step": step,
            "seconds": value,
            "cpu_seconds": metrics[f"cpu_seconds/{step}"],
            "peak_bytes": metrics[f"peak_bytes/{step}"],
        }
        for key, value in metrics.items()
        if (step := key.removeprefix("seconds/")) != key
    ]
    jobs = {run.data.tags.get("measurement", "none") for run in runs} - {"none"}
    return {
        "schema": SCHEMA,
        "run": parent.info.run_id,
        "name": parent.info.run_name,
        "minutes": (parent.info.end_time - parent.info.start_time) / 60000,
        "steps": sorted(steps, key=lambda step: -step["seconds"]),
        "files": files,
        "bytes": size,
        "runs": len(runs),
        "rows": sum(
            len(run.data.metrics) + len(run.data.params) + len(run.data.tags) for run in runs
        ),
        "lab_jobs": len(jobs),
    }


def _artifacts(client: MlflowClient, runs: list[Run]) -> tuple[int, int]:
    """Number and bytes of the files of runs, and of the models that they logged."""
    listings: list[Callable[[str], list[FileInfo]]] = []
    for run in runs:
        listings.append(partial(client.list_artifacts, run.info.run_id))
        for model in run.outputs.model_outputs if run.outputs else ():
            listings.append(partial(client.list_logged_model_artifacts, model.model_id))
    files = size = 0
    folders = deque((listing, "") for listing in listings)
    while folders:
        listing, path = folders.popleft()
        for entry in listing(path):
            if entry.is_dir:
                folders.append((listing, entry.path))
            else:
                files += 1
                size += entry.file_size or 0
    return files, size
