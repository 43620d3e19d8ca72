"""What a step of a pipeline says while it works, and what it used.

Every line is one JSON object that begins with `"coralline"`, the event: `started`, `progress`,
`missing` (a model, as `components.missing` has it), `ended`, `failed`. It names the execution and
the step, so that a collector of logs can sort the lines of many; people find them by the same word.

Apart from components.face, because KFP's runtime inside a step has no decorators to import.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from components.failures import tell
from coralline.cost import StepCost
from coralline.errors import CorallineError, UserError, parse_json, read_text
from coralline.files import write_text

EXECUTION = "CORALLINE_EXECUTION"
"""Environment variable with the execution's id: the same word in logs, lab, report and MLflow."""

SCHEMA = "coralline.step/v1"
COSTS_SCHEMA = "coralline.steps/v1"

_STARTS = '{"coralline": '

_step = ""


@contextmanager
def step(name: str, cost: Any = None) -> Iterator[None]:
    """Say that a step begins and how it ends, and leave what it used.

    Args:
        name: Of the component.
        cost: KFP's output artifact of type Metrics; None for the step that sums them up.
    """
    global _step
    _step = name
    say("started")
    began, start, cpu_before = _now(), perf_counter(), _cpu_seconds()
    try:
        yield
    except BaseException as error:
        message = _message(error)
        say("failed", kind=type(error).__name__, error=message)
        tell(execution(), name, message)
        raise
    used = {
        "seconds": round(perf_counter() - start, 3),
        "cpu_seconds": round(_cpu_seconds() - cpu_before, 3),
        "peak_bytes": _peak_bytes(),
    }
    if cost is not None:
        for key, value in used.items():
            cost.log_metric(key, value)
        record = {"schema": SCHEMA, "step": name, "execution": execution(), "started_at": began}
        write_text(Path(cost.path), json.dumps({**record, **used}) + "\n")
    say("ended", **used)


def say(event: str, **facts: Any) -> None:
    """Write one line on stderr."""
    head = {"coralline": event, "execution": execution(), "step": _step, "at": _now()}
    # In one call, so that lines of processes that share a stream stay whole.
    sys.stderr.write(json.dumps({**head, **facts}) + "\n")
    sys.stderr.flush()


def progress(what: str, done: int, total: int) -> None:
    """Say that `done` of `total` parts of `what` are finished."""
    say("progress", what=what, done=done, total=total)


def said_in(line: str) -> Iterator[dict[str, Any]]:
    """The objects that `say` wrote, out of a line that may hold other things too."""
    at = line.find(_STARTS)
    while at >= 0:
        try:
            found, end = json.JSONDecoder().raw_decode(line, at)
        except json.JSONDecodeError:  # two steps wrote into each other
            end = at + 1
        else:
            yield found
        at = line.find(_STARTS, end)


def current_step() -> str:
    """Name of the step that this process is."""
    return _step


def execution() -> str:
    """Id of the execution that this process is part of; empty outside of one."""
    return os.environ.get(EXECUTION, "")


def whole_numbers(parameters: Mapping[str, str]) -> dict[str, str]:
    """The same, where KFP has written 24 as 24.0, as it does in a dictionary."""
    whole = re.compile(r"^(-?[0-9]+)\.0$")
    return {name: whole.sub(r"\1", str(value)) for name, value in parameters.items()}


def write_costs(files: Iterable[Path], out: Path) -> None:
    """Put together what `step` left: one entry a component, in the order of their beginning."""
    found = [parse_json(read_text(file, "a step's cost"), str(file)) for file in files]
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for one in sorted(found, key=lambda one: str(one["started_at"])):
        by_name.setdefault(one["step"], []).append(one)
    costs = [_total(name, ran) for name, ran in by_name.items()]
    data = {"schema": COSTS_SCHEMA, "steps": [asdict(cost) for cost in costs]}
    write_text(out, json.dumps(data) + "\n")


def read_costs(file: Path) -> list[StepCost]:
    """What `write_costs` wrote.

    Raises:
        UserError: It is something else.
    """
    data = parse_json(read_text(file, "the costs of steps"), str(file))
    if not isinstance(data, dict) or data.get("schema") != COSTS_SCHEMA:
        raise UserError(f"{file}: its `schema` must be {COSTS_SCHEMA}")
    return [StepCost(**cost) for cost in data["steps"]]


def _total(name: str, ran: Sequence[Mapping[str, Any]]) -> StepCost:
    own = [one for one in ran if one["execution"] == execution()]
    return StepCost(
        name=name,
        times=len(ran),
        reused=len(ran) - len(own),
        started_at=own[0]["started_at"] if own else None,
        seconds=sum(one["seconds"] for one in ran),
        cpu_seconds=sum(one["cpu_seconds"] for one in ran),
        peak_bytes=max(one["peak_bytes"] for one in ran),
    )


def _message(error: BaseException) -> str:
    text = str(error) if isinstance(error, CorallineError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_bytes() -> int:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return 1024 * max(one.ru_maxrss for one in used)  # Linux counts in KiB
