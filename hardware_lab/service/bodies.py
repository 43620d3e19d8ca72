"""What the service says and is told, as its OpenAPI document describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hardware_lab.database import HealthState, State
from hardware_lab.store import Job

MOST_PAGE = 500
"""Jobs of one answer."""

Kind = Literal["user", "device"]


class Body(BaseModel):
    """What is sent to the service; a field that it does not know is an error."""

    model_config = ConfigDict(extra="forbid")


class Error(BaseModel):
    """Why a request was not done.

    `user`: what was asked is to blame. `device`: the lab is, and the same request may do later
    when `retryable` is true.
    """

    error: str = Field(
        description="One line: what is wrong, and what to do.",
        examples=["job '12ab' is not in the lab; `coralline lab jobs` lists them"],
    )
    kind: Kind
    retryable: bool
    request_id: str = Field(
        description="The service's log has it too.", examples=["5f3a9c21d0b84e77"]
    )


@dataclass(frozen=True)
class JobDocument(Job):
    schema: str


class Jobs(BaseModel):
    """Some of the jobs, in the order that was asked for."""

    jobs: list[JobDocument]
    next: str | None = Field(
        description="Give it as `after` for those that follow; null at the end."
    )


class Wanted(BaseModel):
    """Which boards may do a job."""

    board: str | None = Field(None, examples=["pi"], description="This one alone; null for any.")
    needs: dict[str, int] = Field({}, examples=[{"edgetpu": 2}], description="At least so many.")


class Waiting(Wanted):
    due: float = Field(description="The least of its jobs: they go by it. Seconds since 1970.")


class LeaseDocument(BaseModel):
    """A board at work."""

    job: str
    attempt: int = Field(description="The fencing token.")
    beat: int = Field(description="Grows as long as the runner lives.")
    demand: Wanted
    group: str | None
    board: str
    resource: str
    lock: str
    max_attempts: int


class HealthDocument(BaseModel):
    """What the lab thinks of a board; times in seconds since 1970."""

    board: str
    state: HealthState
    cause: str
    since: float
    strikes: int
    checked: float
    again: float


class HealthLine(BaseModel):
    """A state that a board was in."""

    state: HealthState
    cause: str
    at: str


class BoardDocument(BaseModel):
    """A board that a runner has announced, its health, and the job that it works on."""

    name: str
    kind: str
    resource: str
    tags: dict[str, int]
    options: dict[str, Any]
    host: str
    runner: str
    seen_at: str
    health: HealthDocument | None
    job: str | None


class Boards(BaseModel):
    boards: list[BoardDocument]


class Healths(BaseModel):
    boards: list[HealthDocument]


class HealthLog(BaseModel):
    log: list[HealthLine]


class Queue(BaseModel):
    """What is waited for, the first to be served first."""

    queue: list[Waiting]


class Leases(BaseModel):
    leases: list[LeaseDocument]


StateFilter = Annotated[State, Field(examples=["done"])]
