"""What a job is, and what others see of it while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from coralline.errors import DeviceError, UserError
from hardware_lab.artifacts import Model
from hardware_lab.database import State
from hardware_lab.health import Health
from hardware_lab.inventory import Demand

SCHEMA = "coralline.job/v3"
MAX_ATTEMPTS = 3
MOST_SAMPLES = 1_000_000
"""Of one job: all samples are held in memory and kept."""
MOST_PRIORITY = 10
MOST_DEADLINE_S = 3e7


@dataclass(frozen=True)
class Job:
    """One measurement that somebody wants.

    Attributes:
        id: Also of its measurement.
        demand: Which boards may make it.
        priority: From -MOST_PRIORITY to MOST_PRIORITY; the higher, the sooner.
        deadline_at: A job that has not begun by then is given up.
        group: Jobs that are run, listed or cancelled together.
        labels: What people or pipelines say of it, to find it by.
        path: Where the model was, for people: a folder that `coralline split` wrote, or a .tflite.
        artifact: What is measured: the model as it was then.
        repetitions: Samples of each mode.
        warmup: Inferences before the first sample of each mode.
        seconds: After so long a mode gives no more samples; None for no such limit.
        against, against_artifact: Of a second model, to be compared with the first, or None.
        allow_fallback: Whether the result counts when another processor ran than was asked for.
        max_attempts: A job that has lost this many runners, or failed retryably this often, is
            failed.
        state: `queued`, `running`, `done`, `invalid`, `failed` or `cancelled`. A job is invalid
            when another processor ran than was asked for: what it measured is kept all the same.
        attempt: How often it was started; the fencing token of its lease.
        board: That it was last started on.
        runner: Who started it last.
        submitted_at, started_at, finished_at: ISO 8601, UTC; of the last attempt.
        error: Why the last attempt failed.
        error_is_users: Whether the input is to blame, and not the board.
        progress: The inferences done and to do, of the last attempt, as its runner last said.
    """

    id: str
    demand: Demand
    priority: int
    deadline_at: str | None
    group: str | None
    labels: Mapping[str, str]
    path: str
    artifact: str
    repetitions: int
    warmup: int
    seconds: float | None
    against: str | None
    against_artifact: str | None
    allow_fallback: bool
    max_attempts: int
    state: State
    attempt: int
    board: str | None
    runner: str | None
    submitted_at: str
    started_at: str | None
    finished_at: str | None
    error: str | None
    error_is_users: bool
    progress: tuple[int, int] | None

    def to_json(self) -> dict[str, Any]:
        """A `coralline.job/v3` object."""
        return {"schema": SCHEMA, **asdict(self)}

    @property
    def model(self) -> Model:
        """What is measured."""
        return Model(self.path, self.artifact)

    @property
    def model_against(self) -> Model | None:
        """What it is compared with."""
        if self.against is None or self.against_artifact is None:
            return None
        return Model(self.against, self.against_artifact)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Job:
        """Read what `to_json` wrote."""
        values = {field.name: data[field.name] for field in fields(Job)}
        values["demand"] = Demand(**values["demand"])
        values["progress"] = values["progress"] and tuple(values["progress"])
        return Job(**values)

    def raise_error(self) -> None:
        """Raise the error of a job that failed, was cancelled or is invalid again."""
        if self.state in ("failed", "cancelled", "invalid"):
            raise (UserError if self.error_is_users else DeviceError)(f"{self.error}")


@dataclass(frozen=True)
class Lease:
    """A running job, as the other runners see it.

    Attributes:
        job: Id.
        attempt: The fencing token.
        beat: Grows as long as the runner lives.
        demand, group: Of the job.
        board, resource: What is leased.
        lock: Which lock its runner holds, and on which machine; see `Store.lock`.
        max_attempts: Of the job.
    """

    job: str
    attempt: int
    beat: int
    demand: Demand
    group: str | None
    board: str
    resource: str
    lock: str
    max_attempts: int


@dataclass(frozen=True)
class View:
    """What a runner must know of a lab before it takes a job.

    Attributes:
        now: As `Store.now`.
        health: As `HealthRecords.known`.
        leases: As `Store.leases`.
        queue: As `Store.queue`.
    """

    now: float
    health: Mapping[str, Health]
    leases: list[Lease]
    queue: list[tuple[Demand, float]]


def check_numbers(
    *,
    repetitions: int,
    warmup: int,
    max_attempts: int,
    priority: int,
    seconds: float | None,
    deadline_s: float | None,
) -> None:
    """See that the numbers of a submission make sense; see `Store.submit`.

    Raises:
        UserError: One is out of range.
    """
    for name, value, least, most in (
        ("repetitions", repetitions, 1, MOST_SAMPLES),
        ("warmup", warmup, 0, MOST_SAMPLES),
        ("max_attempts", max_attempts, 1, MOST_SAMPLES),
        ("priority", priority, -MOST_PRIORITY, MOST_PRIORITY),
    ):
        if value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")
        if value > most:
            raise UserError(f"{name} is {value}; it must be at most {most}")
    if seconds is not None and not seconds > 0:
        raise UserError(f"the time of a mode is {seconds:g} s; it must be above 0")
    if deadline_s is not None and not 0 < deadline_s <= MOST_DEADLINE_S:
        raise UserError(
            f"the deadline is in {deadline_s:g} s; it must be above 0 and at most "
            f"{MOST_DEADLINE_S:g} s"
        )
