"""What the components of the pipeline `nightly` do, as plain functions."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from components.measuring import DEADLINE_S, run_group
from components.missing import read_missing
from coralline.errors import DeviceError, UserError, parse_json, read_text
from coralline.files import make_folder, write_text

SCHEMA = "coralline.nightly/v1"
ATTEMPTS = 2
"""A measurement that something speaks against is made once more; the last one counts."""


def measure_night(
    models: Sequence[Path],
    boards: Sequence[str],
    repetitions: int,
    inventory: str,
    name: str,
    night: str,
    commit: str,
    measurements: Path,
    table: Path,
    on_progress: Callable[[str, int, int], None],
) -> None:
    """Have the lab measure every split model on every board, and judge each by its nights before.

    Writes `measurements/<split>-<board>.json`, a measurement each, and `table`, a
    `coralline.nightly/v1` object. A board that is not there or fails is a missing one in it; so
    is a model.

    Args:
        models: A folder each, of folders that `split_model` wrote, one a number of stages; or
            with the reason why the model is missing.
        inventory: Path of the lab's inventory; empty for the one in the package.
        name: Of the nightly; its nights are compared with each other.
        night: Names this execution.
        commit: Of the code that is measured; empty to ask git and $CORALLINE_COMMIT.

    Raises:
        UserError: The inventory cannot be read, or there is nothing to measure.
    """
    from coralline.tflite.segments import SegmentSet
    from hardware_lab import nights
    from hardware_lab.commits import current_commit
    from hardware_lab.inventory import Demand, load_inventory
    from hardware_lab.jobs import JobOptions
    from hardware_lab.lab import open_lab
    from hardware_lab.trends import Series

    available = load_inventory(Path(inventory) if inventory else None)
    make_folder(measurements)
    store = open_lab()
    code = commit or current_commit(Path.cwd())
    # KFP's local runner draws its names from so few that they come again.
    tonight = f"{datetime.now(UTC):%Y-%m-%d} {night}"
    wanted = {}
    missing = [reason for reason in map(read_missing, models) if reason is not None]
    there = [folder for folder in models if read_missing(folder) is None]
    for split in (split for folder in there for split in sorted(folder.iterdir())):
        segments = SegmentSet.read(split)
        for board in boards:
            series = Series(segments.model, len(segments.segments), board)
            if series in wanted:
                raise UserError(f"{series} is asked for twice; name each model once")
            wanted[series] = split
    if not wanted and not missing:
        raise UserError("there is nothing to measure; name models, stages and boards")
    again = list(wanted)
    for _ in range(ATTEMPTS):
        if not again:
            break
        group = f"{name}-{uuid4().hex[:8]}"
        jobs = {
            series: store.submit(
                wanted[series],
                Demand(series.board),
                JobOptions(
                    repetitions=repetitions,
                    warmup=max(2, repetitions // 10),
                    deadline_s=DEADLINE_S,
                    group=group,
                    labels=nights.labels(name, tonight, series, code),
                ),
            ).id
            for series in again
        }
        run_group(store, available, group, len(jobs), on_progress)
        again = []
        for series, job_id in jobs.items():
            if store.job(job_id).state != "done":
                continue
            measurement = store.measurement(job_id)
            text = json.dumps(measurement.to_json(), allow_nan=False)
            file = f"{wanted[series].name}-{series.board}.json"
            write_text(measurements / file, text + "\n")
            if measurement.marks:
                again.append(series)
    asked_for = [trend for trend in nights.read_trends(store, name) if trend.series in wanted]
    found = nights.with_commits(asked_for, Path.cwd())
    data = {
        "schema": SCHEMA,
        "name": name,
        "execution": night,
        "commit": code,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "red": bool(missing) or any(trend["red"] for trend in found),
        "missing": [asdict(reason) for reason in missing],
        "trends": found,
    }
    write_text(table, json.dumps(data, allow_nan=False) + "\n")


def read_night(table: Path) -> dict[str, Any]:
    """What `measure_night` wrote.

    Raises:
        UserError: The file is something else.
    """
    data = parse_json(read_text(table, "the table of a night"), str(table))
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UserError(f"{table}: is not the table of a night; its `schema` must be {SCHEMA}")
    return data


def write_night(
    trends: Path, parameters: Mapping[str, str], code_version: str, report: Path, table: Path
) -> None:
    """Write the page for people, and the table with the page's path in it."""
    from hardware_lab.trend_page import write_page

    night = read_night(trends)
    facts = {
        "execution": night["execution"],
        "commit": night["commit"] or "not known",
        "code": code_version,
        **parameters,
    }
    write_page(
        f"Nightly: {night['name']}",
        night["created_at"],
        night["trends"],
        facts,
        report,
        missing=night["missing"],
    )
    # Browsers go by the name.
    page = report.with_suffix(".html")
    shutil.copyfile(report, page)
    write_text(table, json.dumps({**night, "report": str(page)}, allow_nan=False) + "\n")


def record_night(
    trends: Path,
    measurements: Path,
    report: Path,
    costs: Path,
    parameters: Mapping[str, str],
    code_version: str,
) -> str:
    """Record the night in MLflow; returns the id of the parent run."""
    from components.steps import read_costs
    from components.tracking import Execution, record, tracking_uri
    from components.validation import read_measurements

    night = read_night(trends)
    recorded = record(
        Execution(
            id=night["execution"],
            pipeline="nightly",
            code_version=code_version,
            parameters={**parameters, "commit": night["commit"] or "not known"},
            plans=(),
            # There is none when every board or model is missing.
            measurements=read_measurements(measurements) if any(measurements.iterdir()) else (),
            findings=_findings(night),
            metrics=_metrics(night),
            costs=read_costs(costs),
            artifacts={"report": report, "trends": trends},
        ),
        tracking_uri(),
    )
    return recorded.parent


def alarm(table: Path) -> None:
    """End the pipeline red when a series is slower or missing, or a model is missing.

    Raises:
        DeviceError: It is; names the worst, and the page.
    """
    night = read_night(table)
    if night["red"]:
        missing, trends = night["missing"], night["trends"]
        red = sum(trend["red"] for trend in trends)
        counts = [f"{len(missing)} model{'s' * (len(missing) > 1)} missing"] if missing else []
        counts += [f"{red} of {len(trends)} series need a look"] if red else []
        raise DeviceError(
            f"{', '.join(counts)}: {'; '.join(_findings(night))}; page: {night['report']}"
        )


def _findings(night: Mapping[str, Any]) -> list[str]:
    from hardware_lab.trend_page import sentence

    missing = [f"{one['model']} missing: {one['message']}" for one in night["missing"]]
    return missing + [
        f"{trend['series']} {trend['verdict']}: {sentence(trend)}"
        for trend in night["trends"]
        if trend["red"]
    ]


def _metrics(night: Mapping[str, Any]) -> dict[str, float]:
    trends = night["trends"]
    counts = {
        f"series_{verdict}": float(sum(trend["verdict"] == verdict for trend in trends))
        for verdict in ("slower", "crept", "missing", "stale", "disturbed")
    }
    ratios = {
        _metric(f"{metric}_ratio/{trend['series']}"): change["value"]
        for trend in trends
        for metric, change in trend["nights"][-1]["changes"].items()
    }
    models = {"models_missing": float(len(night["missing"]))}
    return {"series": float(len(trends)), **models, **counts, **ratios}


def _metric(name: str) -> str:
    # MLflow refuses other letters, which a model's file may have.
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
