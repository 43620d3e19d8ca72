"""Reading what components.tracking recorded: executions, by what people call them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from components.tracking import EXPERIMENT, PARENT, all_runs
from coralline.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_LATEST = re.compile(r"latest(?:~(\d{1,6}))?")


def find_executions(client: MlflowClient, names: Sequence[str]) -> list[Run]:
    """The parent runs that names mean.

    Args:
        names: `latest`, `latest~1` for the one before it (of those that finished), the beginning
            of a run id or an execution id, or a run's name.

    Raises:
        UserError: A name means no run or several; says which there are.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    query = f"tags.item = '{PARENT}'"
    known = [] if experiment is None else all_runs(client, experiment.experiment_id, query)
    if not known:
        raise UserError("MLflow has no run yet; `coralline pipeline run respect` records one")
    known.sort(key=lambda run: run.info.start_time, reverse=True)
    return [_find(name, known) for name in names]


def children(client: MlflowClient, parent: Run) -> list[Run]:
    """The runs of an execution: one a plan and board."""
    query = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    return all_runs(client, parent.info.experiment_id, query)


def _find(name: str, known: Sequence[Run]) -> Run:
    latest = _LATEST.fullmatch(name)
    if latest:
        finished = [run for run in known if run.info.status == "FINISHED"]
        back = int(latest[1] or 0)
        if back >= len(finished):
            raise UserError(
                f"{name}: runs that ended well: {len(finished)}; name another by its id; "
                f"{_newest(known)}"
            )
        return finished[back]
    found = [run for run in known if name in _names(run)]
    if not found and name:
        found = [run for run in known if any(own.startswith(name) for own in _names(run))]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{name} means {len(found)} runs; give more of the id; {_newest(found)}")
    raise UserError(
        f"no run of a pipeline is called {name!r}; give `latest`, an id or a name; {_newest(known)}"
    )


def _names(run: Run) -> tuple[str, ...]:
    return run.info.run_id, run.data.tags["execution"], run.info.run_name


def _newest(runs: Sequence[Run]) -> str:
    shown = ", ".join(f"{run.info.run_id[:8]} ({run.info.run_name})" for run in runs[:3])
    return f"the newest: {shown}"
