"""Two or more executions side by side: what is fastest, what got slower, how far from optimal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from components.runs import children, find_executions
from components.tracking import connected
from coralline.errors import UserError
from coralline.runtime.measurement import Measurement
from coralline.runtime.statistics import Estimate, ratio_of_medians

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SCHEMA = "coralline.run-comparison/v1"

CHANGE = 0.02
"""A median that moved by less than this share is called the same, however sure the move is."""

Key = tuple[str, int, str, str]
"""Model, stages, planner, board."""


@dataclass(frozen=True)
class Measured:
    """A plan on a board in one execution.

    Attributes:
        metrics: Of its run.
        simulated: Whether the numbers come from a device model.
        latency_ms: Raw samples; empty where the board gives none.
    """

    metrics: dict[str, float]
    simulated: bool
    latency_ms: tuple[float, ...]


def compare_runs(uri: str, names: Sequence[str]) -> dict[str, Any]:
    """Compare executions; later ones are held against the first.

    Args:
        uri: Of the MLflow store.
        names: As `find_executions` takes them, two at least.

    Returns:
        A `coralline.run-comparison/v1` object: `runs`; `fastest`, for each board, model and number
        of stages the best plan of each run; `changes` of the median latency with 95 % intervals;
        `gaps` to the optimum by planner; `differences` of parameters and code.

    Raises:
        UserError: A name means no run or several, or fewer than two are given.
        DeviceError: MLflow does not answer.
    """
    if len(names) < 2:
        raise UserError("give two runs or more, as in `coralline compare latest~1 latest`")
    with connected(uri) as client:
        runs = find_executions(client, names)
        if len({run.info.run_id for run in runs}) < len(runs):
            raise UserError(f"{', '.join(names)}: the same run twice; give different ones")
        found = [children(client, run) for run in runs]
        measured = [_measured(client, own) for own in found]
    return {
        "schema": SCHEMA,
        "runs": [_describe(run) for run in runs],
        "fastest": list(_fastest(measured)),
        "changes": list(_changes(measured)),
        "gaps": list(_gaps(found)),
        "differences": list(_differences(runs)),
    }


def _describe(run: Run) -> dict[str, Any]:
    return {
        "id": run.info.run_id,
        "name": run.info.run_name,
        "execution": run.data.tags["execution"],
        "code_version": run.data.tags["code_version"],
        "status": run.info.status,
        "started_at": datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(
            timespec="seconds"
        ),
    }


def _measured(client: MlflowClient, runs: Sequence[Run]) -> dict[Key, Measured]:
    found = {}
    for run in runs:
        if run.data.tags["board"] != "none":
            found[_key(run)] = Measured(
                dict(run.data.metrics), run.data.tags["simulated"] == "true", _samples(client, run)
            )
    return found


def _key(run: Run) -> Key:
    tags, stages = run.data.tags, int(run.data.params["stages"])
    return tags["model"], stages, tags["planner"], tags["board"]


def _samples(client: MlflowClient, run: Run) -> tuple[float, ...]:
    with TemporaryDirectory() as folder:
        file = client.download_artifacts(run.info.run_id, "measurement.json", folder)
        data = json.loads(Path(file).read_text(encoding="utf-8"))
    return Measurement.from_json(data).latency_ms


def _fastest(measured: Sequence[dict[Key, Measured]]) -> Iterator[dict[str, Any]]:
    questions = {(key[3], key[0], key[1]) for own in measured for key in own}
    for board, model, stages in sorted(questions):
        best = [_best(own, board, model, stages) for own in measured]
        speeds = [0.0 if one is None else one["throughput_fps"] for one in best]
        if any(speeds):
            yield {
                "board": board,
                "model": model,
                "stages": stages,
                "runs": best,
                "fastest_run": speeds.index(max(speeds)),
            }


def _best(own: dict[Key, Measured], board: str, model: str, stages: int) -> dict[str, Any] | None:
    rows: list[dict[str, Any]] = [
        {
            "planner": key[2],
            "throughput_fps": item.metrics["throughput_fps"],
            "latency_p50_ms": item.metrics["latency_p50_ms"],
            "simulated": item.simulated,
        }
        for key, item in own.items()
        if (key[3], key[0], key[1]) == (board, model, stages) and "throughput_fps" in item.metrics
    ]
    if not rows:
        return None
    best = max(rows, key=lambda row: row["throughput_fps"])
    # Plans with the same stages share a measurement.
    equals = [row["planner"] for row in rows if row["throughput_fps"] == best["throughput_fps"]]
    return {**best, "planner": ", ".join(sorted(equals))}


def _changes(measured: Sequence[dict[Key, Measured]]) -> Iterator[dict[str, Any]]:
    first = measured[0]
    for i, own in enumerate(measured[1:], start=1):
        for key in sorted(first.keys() & own.keys()):
            before, after = first[key], own[key]
            if "latency_p50_ms" not in before.metrics or "latency_p50_ms" not in after.metrics:
                continue
            value = after.metrics["latency_p50_ms"] / before.metrics["latency_p50_ms"]
            sure = _interval(before, after)
            model, stages, planner, board = key
            yield {
                "run": i,
                "model": model,
                "stages": stages,
                "planner": planner,
                "board": board,
                "simulated": before.simulated or after.simulated,
                "before_ms": before.metrics["latency_p50_ms"],
                "after_ms": after.metrics["latency_p50_ms"],
                "ratio": value,
                "low": sure and sure.low,
                "high": sure and sure.high,
                "verdict": "unsure" if sure is None else _verdict(sure),
            }


def _interval(before: Measured, after: Measured) -> Estimate | None:
    if min(len(before.latency_ms), len(after.latency_ms)) < 2:
        return None
    return ratio_of_medians(before.latency_ms, after.latency_ms)


def _verdict(ratio: Estimate) -> str:
    if ratio.low > 1 and ratio.value > 1 + CHANGE:
        return "slower"
    if ratio.high < 1 and ratio.value < 1 - CHANGE:
        return "faster"
    return "same"


def _gaps(found: Sequence[Sequence[Run]]) -> Iterator[dict[str, Any]]:
    gaps: list[dict[tuple[str, int, str], float]] = []
    for runs in found:
        own: dict[tuple[str, int, str], float] = {}
        for run in runs:
            if "optimality_gap" in run.data.metrics:
                own[_key(run)[:3]] = run.data.metrics["optimality_gap"]
        gaps.append(own)
    for key in sorted({key for own in gaps for key in own}):
        model, stages, planner = key
        yield {
            "model": model,
            "stages": stages,
            "planner": planner,
            "gaps": [own.get(key) for own in gaps],
        }


def _differences(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    facts = [
        {
            **{
                key: run.data.tags.get(key)
                for key in ("code_version", "pipeline", "policy_version")
            },
            **run.data.params,
        }
        for run in runs
    ]
    for name in dict.fromkeys(name for own in facts for name in own):
        values = [own.get(name) for own in facts]
        if len(set(values)) > 1:
            yield {"name": name, "values": values}
