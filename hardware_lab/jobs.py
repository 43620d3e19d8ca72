"""What a job is, and what others see of it while it runs."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
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


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How a job is to be done. What bounds a number, and what it means, is in its metadata, under
    pydantic's names: the service's requests have the same fields.

    Raises:
        UserError: A number is out of its bounds.
    """

    repetitions: int = field(
        metadata={"ge": 1, "le": MOST_SAMPLES, "description": "Samples of each mode."}
    )
    warmup: int = field(
        metadata={
            "ge": 0,
            "le": MOST_SAMPLES,
            "description": "Inferences before the first sample of each mode.",
        }
    )
    seconds: float | None = field(
        default=None,
        metadata={"gt": 0, "description": "After so long a mode gives no more samples."},
    )
    allow_fallback: bool = field(
        default=False, metadata={"description": "Accept another processor than asked for."}
    )
    priority: int = field(default=0, metadata={"ge": -MOST_PRIORITY, "le": MOST_PRIORITY})
    deadline_s: float | None = field(
        default=None,
        metadata={
            "gt": 0,
            "le": MOST_DEADLINE_S,
            "description": "From now; a job that has not begun by then is given up.",
        },
    )
    group: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    max_attempts: int = field(default=MAX_ATTEMPTS, metadata={"ge": 1, "le": MOST_SAMPLES})

    def __post_init__(self) -> None:
        for option in fields(self):
            value, bounds = getattr(self, option.name), option.metadata
            for word, is_within, bound in (
                ("at least", operator.ge, bounds.get("ge")),
                ("above", operator.gt, bounds.get("gt")),
                ("at most", operator.le, bounds.get("le")),
            ):
                if value is not None and bound is not None and not is_within(value, bound):
                    raise UserError(f"{option.name} is {value}; it must be {word} {bound}")


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
