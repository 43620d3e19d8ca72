"""The nights that a lab remembers: the jobs of the pipeline `nightly`, found by their labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from coralline.errors import UserError
from hardware_lab.commits import commits_between
from hardware_lab.jobs import Job
from hardware_lab.lab import Lab
from hardware_lab.trends import BASELINE_NIGHTS, RED, SLOWER, Night, Series, Trend, judge

NAME = "nightly"
"""Label: which nightly, for a lab may have several. The others:"""
NIGHT = "night"
MODEL = "model"
STAGES = "stages"
COMMIT = "commit"
ACCEPTED = "accepted"
LAST_NIGHTS = 60
"""Judged anew each time they are asked for, after the first BASELINE_NIGHTS of a series."""


def labels(name: str, night: str, series: Series, commit: str | None) -> dict[str, str]:
    """The labels of a job that measures a series tonight.

    Args:
        night: Name of the execution; of several jobs of a night the last that is done counts.
        commit: Of the code that is measured; None when it is not known.
    """
    found = {NAME: name, NIGHT: night, MODEL: series.model, STAGES: str(series.stages)}
    return found if commit is None else {**found, COMMIT: commit}


def read_trends(
    store: Lab,
    name: str = NAME,
    *,
    model: str | None = None,
    board: str | None = None,
    last: int = LAST_NIGHTS,
) -> list[Trend]:
    """The series of a nightly, judged; those that somebody must look at first.

    Args:
        model, board: Only of these.
        last: So many nights of each, and the first ones, or the first accepted ones.
    """
    wanted = {NAME: name} if model is None else {NAME: name, MODEL: model}
    nights: dict[Series, dict[str, list[Job]]] = {}
    for job in store.jobs(labels=wanted):
        if job.state in ("queued", "running") or not is_night(job):
            continue
        series = _series(job)
        if board in (None, series.board):
            nights.setdefault(series, {}).setdefault(job.labels[NIGHT], []).append(job)
    found = [
        judge(series, [_night(store, jobs) for jobs in _chosen(list(by_night.values()), last)])
        for series, by_night in nights.items()
    ]
    return sorted(found, key=_order)


def with_commits(trends: Iterable[Trend], folder: Path) -> list[dict[str, Any]]:
    """The trends as `coralline.trend/v1` objects, each with its `commits`.

    Args:
        folder: Where it lies in a clone that knows them, a line for each commit since the last
            good night is given.
    """
    found = []
    for trend in trends:
        ends = [judged.night.commit if judged else None for judged in trend.since or ()]
        commits = commits_between(folder, *ends) if ends else []
        found.append({**trend.to_json(), "commits": commits})
    return found


def accept(store: Lab, what: str, why: str, name: str = NAME) -> Job:
    """Make a slower level the normal one, with all its nights until this one.

    Args:
        what: A job, or a series (MODEL/STAGES/BOARD) for its last night that was slower.

    Raises:
        UserError: There is no such job or series, or it is not slower.
    """
    if not why.strip():
        raise UserError("say --why: whoever looks at the trend later will ask")
    if "/" in what:
        by_name = {str(trend.series): trend for trend in read_trends(store, name)}
        if what not in by_name:
            known = f"choose {', '.join(by_name)}" if by_name else "the lab has no nights yet"
            raise UserError(f"series {what!r} is not known; {known}")
        counted = [judged for judged in by_name[what].nights if judged.counts]
        if not counted or counted[-1].verdict not in SLOWER:
            raise UserError(f"series {what!r} is not slower than before; nothing is to be accepted")
        job = store.job(counted[-1].night.job)
    else:
        job = store.job(what)
        if not is_night(job) or job.labels[NAME] != name or job.state != "done":
            raise UserError(f"job {what!r} is no night of {name!r} that has measured")
    return store.label(job.id, {ACCEPTED: why})


def is_night(job: Job) -> bool:
    """Whether a job measures a series."""
    return {NAME, NIGHT, MODEL, STAGES} <= job.labels.keys() and job.labels[STAGES].isdigit()


def _series(job: Job) -> Series:
    return Series(job.labels[MODEL], int(job.labels[STAGES]), job.demand.board or str(job.demand))


def _chosen(nights: list[list[Job]], last: int) -> list[list[Job]]:
    """The last nights, and those that the anchor is made of."""
    before = len(nights) - last
    if before <= 0:
        return nights
    accepted = [i for i in range(before) if any(ACCEPTED in job.labels for job in nights[i])]
    first = accepted[-1] if accepted else 0
    return [*nights[first:before][:BASELINE_NIGHTS], *nights[before:]]


def _night(store: Lab, jobs: list[Job]) -> Night:
    job = next((job for job in reversed(jobs) if job.state == "done"), jobs[-1])
    facts: Mapping[str, str | None] = {
        "job": job.id,
        "at": job.submitted_at,
        "night": job.labels[NIGHT],
        "commit": job.labels.get(COMMIT),
        "accepted": next((j.labels[ACCEPTED] for j in jobs if ACCEPTED in j.labels), None),
    }
    if job.state == "done":
        return Night.of_measurement(store.measurement(job.id), **facts)
    if job.state == "invalid":
        shown = Night.of_measurement(store.measurement(job.id), **facts)
        return replace(shown, fault=job.error or "invalid")
    return Night(fault=job.error or job.state, **facts)  # type: ignore[arg-type]


def _order(trend: Trend) -> tuple[int, float, Series]:
    latest = trend.latest
    rank = RED.index(latest.verdict) if latest.red else len(RED)
    return rank, -(latest.worst[1].value if latest.worst else 0.0), trend.series
