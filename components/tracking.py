"""MLflow's record of a pipeline execution: a parent run, a child run a measured plan.

The store is the server that `MLFLOW_TRACKING_URI` names, or else an SQLite file. Everything one
run has to say goes in one `log_batch`: a call costs more than what it carries.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.registry import register
from components.summary import describe, describe_failure
from coralline.cost import StepCost
from coralline.errors import DeviceError, UserError
from coralline.files import make_folder
from coralline.graph.compute_graph import ComputeGraph
from coralline.home import home_folder
from coralline.report.record import predicted_over_measured, with_shared_bounds
from coralline.runtime.measurement import Measurement
from coralline.staging.problem import Plan

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from training.gate import Verdict

EXPERIMENT = "coralline"
PARENT = "pipeline"
"""The tag `item` of a parent run."""

_DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow's page of a run shows as its description."""

_BATCH_METRICS = 1000
"""MLflow takes no more in one log_batch."""


@dataclass(frozen=True)
class PolicyRecord:
    """A trained policy.

    Attributes:
        file: The policy, `.npz`.
        parameters: Its recipe.
        curve: One mapping of metrics an epoch.
        verdict: Whether it is to be the champion.
    """

    file: Path
    parameters: Mapping[str, Any]
    curve: Sequence[Mapping[str, float]]
    verdict: Verdict


@dataclass(frozen=True)
class Execution:
    """One execution of a pipeline.

    Attributes:
        id: Recording an execution again finds its runs by it.
        pipeline: Name.
        code_version: Of the project, as `git describe` or a release says it.
        parameters: Of the pipeline.
        plans: Those that no measurement carries get a run too, without a board.
        graphs: By digest; a host's predicted time needs its plan's graph.
        costs: What its steps used.
        findings: Sentences that the parent run's description begins with.
        metrics: Of the parent run.
        artifacts: Files and folders for the parent run, by the folder they go to.
    """

    id: str
    pipeline: str
    code_version: str
    parameters: Mapping[str, Any]
    plans: Sequence[Plan]
    measurements: Sequence[Measurement]
    graphs: Mapping[str, ComputeGraph] = field(default_factory=dict)
    policy: PolicyRecord | None = None
    costs: Sequence[StepCost] = ()
    findings: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    artifacts: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Recorded:
    """Where an execution is.

    Attributes:
        children: Run ids, the measurements first, then the plans nobody measured.
        policy_version: Of the registered model; None without a policy.
    """

    uri: str
    experiment_id: str
    parent: str
    children: tuple[str, ...]
    policy_version: int | None


def tracking_database() -> Path:
    """The SQLite file of the local MLflow store."""
    return home_folder() / "mlflow" / "mlflow.db"


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI` if it is set, or the local SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{tracking_database().resolve()}"


def record(execution: Execution, uri: str) -> Recorded:
    """Record an execution; what is there from an earlier try is kept and completed.

    Args:
        uri: As `tracking_uri` gives it.

    Raises:
        UserError: The SQLite file's folder cannot be written.
        DeviceError: The server does not answer or refuses.
    """
    with connected(uri) as client:
        return _record(client, execution, uri)


def record_failure(
    execution: str, pipeline: str, code_version: str, step: str, message: str, uri: str
) -> None:
    """Record that an execution failed: the tags `failed_step` and `error` of its parent run.

    Of several failures the latest stays. `record` completes the run where a later try succeeds.

    Args:
        step: That failed; empty where that is not known.
        message: Of the step, one line.

    Raises:
        UserError: As `record`.
        DeviceError: As `record`.
    """
    tags = _tags(execution, pipeline, code_version)
    with connected(uri) as client:
        run = _only_parent(client, _experiment(client, uri), tags)
        described = describe_failure(step, message, run.data.tags.get(_DESCRIPTION, ""))
        for key, value in (("failed_step", step), ("error", message), (_DESCRIPTION, described)):
            client.set_tag(run.info.run_id, key, value)
        client.set_terminated(run.info.run_id, status="FAILED")


@contextmanager
def connected(uri: str) -> Iterator[MlflowClient]:
    """A client of the store; what it raises is a DeviceError that names the store.

    Raises:
        UserError: MLflow knows no such place, or the SQLite file's folder cannot be written.
        DeviceError: The server does not answer or refuses.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    try:
        yield _client(uri)
    except UnsupportedModelRegistryStoreURIException:
        raise UserError(
            f"MLFLOW_TRACKING_URI={uri}: is no place that MLflow knows; write http://HOST:PORT or "
            "sqlite:///FILE"
        ) from None
    except MlflowException as error:
        said = str(error).splitlines()[0]
        if "Max retries exceeded" in said:
            said = "does not answer; start it (on this machine with `coralline up`)"
        raise DeviceError(
            f"MLflow at {uri}: {said}, or check MLFLOW_TRACKING_URI", retryable=True
        ) from error


def child_metrics(
    plan: Plan, measurement: Measurement | None, graph: ComputeGraph | None = None
) -> dict[str, float]:
    """The metrics of a child run; what is not known or not finite is left out."""
    values: dict[str, float | None] = {
        "bottleneck_ms": max(plan.stages["stage_ms"]),
        "peak_param_bytes": max(plan.stages["param_bytes"]),
        "optimality_gap": plan.gap,
        "solve_seconds": plan.solve_seconds,
        "plan_value": plan.value,
        "plan_lower_bound": plan.lower_bound,
    }
    if measurement is not None:
        values |= measurement.summary()
        if measurement.meter is None and not measurement.simulated:
            values.pop("energy_mj_per_inference", None)
        values["predicted_over_measured"] = predicted_over_measured(plan, measurement, graph)
    return {k: float(v) for k, v in values.items() if v is not None and math.isfinite(v)}


def cost_metrics(costs: Sequence[StepCost]) -> dict[str, float]:
    """What the steps used, as metrics: MLflow's charts put those with one prefix side by side."""
    values: dict[str, float] = {}
    for cost in costs:
        values[f"seconds/{cost.name}"] = cost.seconds
        values[f"cpu_seconds/{cost.name}"] = cost.cpu_seconds
        values[f"peak_bytes/{cost.name}"] = cost.peak_bytes
    return values


def _client(uri: str) -> MlflowClient:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    # The default of 7 with growing pauses keeps a person waiting for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    if uri.startswith("sqlite:///"):
        make_folder(Path(uri.removeprefix("sqlite:///")).parent)
    for chatty in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # They warn of the version of pip, and of a model that runs only once it is loaded.
    for chatty in ("mlflow.utils.environment", "mlflow.models.signature"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _record(client: MlflowClient, execution: Execution, uri: str) -> Recorded:
    experiment_id = _experiment(client, uri)
    known = _runs_by_item(client, experiment_id, execution.id)
    tags = _tags(execution.id, execution.pipeline, execution.code_version)
    parent = known.get(PARENT) or _create_parent(
        client, experiment_id, tags, _began(execution.costs)
    )
    run_id = parent.info.run_id
    children = tuple(
        _child(
            client,
            experiment_id,
            known,
            {**tags, "mlflow.parentRunId": run_id},
            plan,
            measurement,
            execution.graphs.get(plan.graph_digest),
        )
        for plan, measurement in _pairs(execution)
    )
    if parent.info.status == "FINISHED":
        version = parent.data.tags.get("policy_version")
    else:
        version = _complete(client, uri, parent, execution)
    return Recorded(uri, experiment_id, run_id, children, None if version is None else int(version))


def _complete(client: MlflowClient, uri: str, run: Run, execution: Execution) -> str | None:
    run_id = run.info.run_id
    _log_parent(client, run, execution)
    version = None
    findings = list(execution.findings)
    if execution.policy is not None:
        registered = register(client, uri, run_id, execution.policy.file, execution.policy.verdict)
        version = str(registered.version)
        verdict = registered.verdict
        _log_batch(client, run, metrics=[verdict.metrics])
        for key, value in (
            ("policy_version", version),
            ("policy_verdict", verdict.word),
            ("policy_reason", verdict.reason),
        ):
            client.set_tag(run_id, key, value)
        findings.append(f"Policy, version {version}: {verdict.word}: {verdict.reason}.")
    client.set_tag(run_id, _DESCRIPTION, describe(_pairs(execution), findings))
    if run.info.status == "FAILED":  # by a step of a try before, which knows less
        client.set_tag(run_id, "code_version", execution.code_version)
    for tag in {"error", "failed_step"} & set(run.data.tags):
        client.delete_tag(run_id, tag)
    client.set_terminated(run_id)
    return version


def _tags(execution: str, pipeline: str, code_version: str) -> dict[str, str]:
    return {"execution": execution, "pipeline": pipeline, "code_version": code_version}


def _create_parent(
    client: MlflowClient, experiment_id: str, tags: Mapping[str, str], start: int | None
) -> Run:
    return client.create_run(
        experiment_id,
        start_time=start,
        run_name=f"{tags['pipeline']} {tags['execution']}",
        tags={**tags, "item": PARENT},
    )


def _only_parent(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> Run:
    """The parent run of an execution that fails, made unless it is there.

    Shards that fail at once may each find none and make one. MLflow has no lock, so each looks
    again, and deletes its own unless it is the first. Two stay where the first one's request
    arrives after the other has looked again; all readers take the first.
    """
    found = _runs_by_item(client, experiment_id, tags["execution"]).get(PARENT)
    if found is not None:
        return found
    made = _create_parent(client, experiment_id, tags, None)
    first = _runs_by_item(client, experiment_id, tags["execution"])[PARENT]
    if first.info.run_id != made.info.run_id:
        client.delete_run(made.info.run_id)
    return first


def _runs_by_item(client: MlflowClient, experiment_id: str, execution: str) -> dict[str, Run]:
    found = all_runs(client, experiment_id, f"tags.execution = '{execution}'")
    found.sort(key=lambda run: (run.info.start_time, run.info.run_id), reverse=True)
    return {run.data.tags["item"]: run for run in found}  # the first, if there are several


def _began(costs: Sequence[StepCost]) -> int | None:
    moments = [cost.started_at for cost in costs if cost.started_at is not None]
    return _epoch_ms(min(moments)) if moments else None


def _log_parent(client: MlflowClient, run: Run, execution: Execution) -> None:
    parameters, curve = dict(execution.parameters), []
    if execution.policy is not None:
        policy = execution.policy
        parameters |= {f"policy.{key}": value for key, value in policy.parameters.items()}
        curve = [{f"policy_{key}": v for key, v in epoch.items()} for epoch in policy.curve]
    own = {**execution.metrics, **cost_metrics(execution.costs)}
    _log_batch(client, run, parameters=parameters, metrics=[own])
    _log_batch(client, run, metrics=curve)
    for folder, path in execution.artifacts.items():
        log = client.log_artifacts if path.is_dir() else client.log_artifact
        log(run.info.run_id, str(path), folder)


def _pairs(execution: Execution) -> list[tuple[Plan, Measurement | None]]:
    measured = [Plan.from_json(m.plan) for m in execution.measurements]
    seen = {_identity(plan) for plan in measured}
    alone = [plan for plan in execution.plans if _identity(plan) not in seen]
    items = [*execution.measurements, *[None] * len(alone)]
    return list(zip(with_shared_bounds(measured + alone), items, strict=True))


def _identity(plan: Plan) -> str:
    """Of the problem and the planner: planned again, it is the same item."""
    parts = (
        plan.graph_digest,
        plan.n_stages,
        plan.device_digest,
        plan.objective,
        plan.children_together,
        plan.planner,
        plan.planner_version,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _child(
    client: MlflowClient,
    experiment_id: str,
    known: Mapping[str, Run],
    tags: Mapping[str, str],
    plan: Plan,
    measurement: Measurement | None,
    graph: ComputeGraph | None,
) -> str:
    # Plans with the same stages share a measurement.
    item = _identity(plan) if measurement is None else f"{measurement.id} {plan.planner}"
    run = known.get(item)
    if run is not None and run.info.status == "FINISHED":
        return str(run.info.run_id)
    board = "none" if measurement is None else measurement.board
    start = None if measurement is None else _epoch_ms(measurement.started_at)
    if run is None:
        run = client.create_run(
            experiment_id,
            start_time=start,
            run_name=f"{plan.graph_name}/{plan.n_stages}/{plan.planner}/{board}",
            tags={
                **tags,
                "item": item,
                "model": plan.graph_name,
                "planner": plan.planner,
                "graph_digest": plan.graph_digest,
                "board": board,
                "measurement": "none" if measurement is None else measurement.id,
                "board_kind": "none" if measurement is None else measurement.board_kind,
                "simulated": _flag(
                    plan.simulated if measurement is None else measurement.simulated
                ),
            },
        )
    parameters = {
        "model": plan.graph_name,
        "stages": plan.n_stages,
        "planner": plan.planner,
        "planner_version": plan.planner_version,
        "objective": plan.objective,
        "device": plan.device,
        "board": board,
    }
    if measurement is not None:
        parameters |= {"samples": len(measurement.latency_ms), "warmup": measurement.warmup}
    metrics = child_metrics(plan, measurement, graph)
    _log_batch(client, run, parameters=parameters, metrics=[metrics])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plan.json").write_text(json.dumps(plan.to_json()), encoding="utf-8")
        if measurement is not None:
            text = json.dumps(measurement.to_json())
            (Path(folder) / "measurement.json").write_text(text, encoding="utf-8")
        client.log_artifacts(run.info.run_id, folder)
    end = None if measurement is None or start is None else start + int(1000 * measurement.wall_s)
    client.set_terminated(run.info.run_id, end_time=end)
    return str(run.info.run_id)


def _experiment(client: MlflowClient, uri: str) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    # A server places artifacts itself; for a file the default would be the working directory.
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).parent / "artifacts").as_uri()
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=location))
    except MlflowException:
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            raise
        return str(found.experiment_id)  # another step has just made it


def all_runs(client: MlflowClient, experiment_id: str, query: str) -> list[Run]:
    """All runs of an experiment that a filter string finds, however many."""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _log_batch(
    client: MlflowClient,
    run: Run,
    *,
    parameters: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, float]] = (),
) -> None:
    """Log parameters, and metrics one mapping a step.

    The metrics take the run's own start as their time, so that logging them again changes
    nothing.
    """
    from mlflow.entities import Metric, Param

    values = [
        Metric(key, value, run.info.start_time, step)
        for step, row in enumerate(metrics)
        for key, value in row.items()
        if math.isfinite(value)
    ]
    texts = [Param(key, _text(value)) for key, value in (parameters or {}).items()]
    client.log_batch(run.info.run_id, metrics=values[:_BATCH_METRICS], params=texts)
    for i in range(_BATCH_METRICS, len(values), _BATCH_METRICS):
        client.log_batch(run.info.run_id, metrics=values[i : i + _BATCH_METRICS])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _epoch_ms(moment: str) -> int:
    return int(1000 * datetime.fromisoformat(moment).timestamp())
