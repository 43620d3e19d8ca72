"""What the service says and is told, as its OpenAPI document describes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from coralline.errors import DeviceError, UserError
from hardware_lab.artifacts import Model, Stored
from hardware_lab.database import HealthState, State
from hardware_lab.health import BY_PEOPLE
from hardware_lab.inventory import TAG, Demand
from hardware_lab.jobs import Job, JobOptions

MOST_PAGE = 500
"""Jobs of one answer."""

Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")]
Long = Annotated[str, Field(max_length=4000, pattern=r"^[^\x00]*$")]
Tag = Annotated[str, Field(pattern=f"^{TAG.pattern}$", max_length=64)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Ref = Annotated[
    str,
    Field(
        pattern="^sha256:[0-9a-f]{64}$",
        description="The artifact: `sha256:` and the SHA-256 of its bytes.",
        examples=["sha256:" + "9f86d081884c7d65" * 4],
    ),
]
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
    """A `coralline.job/v3` object: a measurement that somebody wants, and what became of it."""

    schema: str


class Jobs(BaseModel):
    """Some of the jobs, in the order that was asked for."""

    jobs: list[JobDocument]
    next: str | None = Field(
        description="Give it as `after` for those that follow; null at the end."
    )


class Wanted(Body):
    """Which boards may do a job."""

    board: str | None = Field(None, examples=["pi"], description="This one alone; null for any.")
    needs: dict[Tag, Count] = Field({}, examples=[{"edgetpu": 2}], description="At least so many.")

    def demand(self) -> Demand:
        """As the store has it."""
        return Demand(self.board, self.needs)


class Waiting(Wanted):
    """What queued jobs ask for."""

    due: float = Field(description="The least of its jobs: they go by it. Seconds since 1970.")


class LeaseDocument(Body):
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
    """A state that a board was in, or a step that was taken to bring it back."""

    state: HealthState
    step: str | None = Field(examples=["power-cycle"])
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
    """The boards that runners have announced."""

    boards: list[BoardDocument]


class Healths(BaseModel):
    """The boards that the lab has used."""

    boards: list[HealthDocument]


class HealthLog(BaseModel):
    """The states of a board, the first first."""

    log: list[HealthLine]


class Queue(BaseModel):
    """What is waited for, the first to be served first."""

    queue: list[Waiting]


class Leases(BaseModel):
    """The running jobs."""

    leases: list[LeaseDocument]


class ModelDocument(Body):
    """A model that has been put as an artifact: a .tflite, or a split folder as a tar archive."""

    name: Text = Field(description="For people.", examples=["/home/ann/mobilenet_v2_split"])
    ref: Ref

    def model(self) -> Model:
        """As the store has it."""
        return Model(self.name, self.ref)


@dataclass(frozen=True, kw_only=True)
class Submission(JobOptions):
    """A measurement that somebody wants."""

    __pydantic_config__ = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "model": {
                    "name": "/home/ann/mobilenet_v2_split",
                    "ref": "sha256:" + "9f86d081884c7d65" * 4,
                },
                "demand": {"needs": {"edgetpu": 2}},
                "repetitions": 1024,
                "warmup": 10,
                "seconds": 60,
                "priority": 1,
                "deadline_s": 28800,
                "group": "nightly",
                "labels": {"commit": "e3edc4a"},
            }
        },
    )

    model: ModelDocument
    against: Annotated[
        ModelDocument | None, Field(description="Compare the model with this one.")
    ] = None
    demand: Wanted
    group: Text | None = None
    labels: Annotated[dict[Text, Long], Field(max_length=64, examples=[{"commit": "e3edc4a"}])] = (
        field(default_factory=dict)
    )


class Labels(Body):
    """What people or pipelines say of a job, to find it by."""

    labels: dict[Text, Long] = Field(max_length=64, examples=[{"accepted": "a safer kernel"}])


class Cancellation(Body):
    """Which jobs to end."""

    ids: list[Text] = Field([], max_length=10_000)
    group: Text | None = None
    reason: Long = "cancelled"


class Ended(BaseModel):
    """The jobs that this request ended."""

    jobs: list[JobDocument]


class Say(Body):
    """What a person says of a board."""

    state: str = Field(json_schema_extra={"enum": list(BY_PEOPLE)})
    why: Annotated[str, Field(min_length=1, max_length=4000, examples=["a new cable"])]


class BoardSaid(Body):
    """A board as its runner's inventory has it."""

    name: Text
    kind: Text
    resource: Text
    tags: dict[Tag, Count]
    options: dict[str, Any]


class Announcement(Body):
    """The boards of a runner."""

    host: Text
    runner: Text
    boards: list[BoardSaid] = Field(max_length=10_000)


class ViewDocument(BaseModel):
    """What a runner must know before it claims a job."""

    now: float = Field(description="Seconds since 1970, by the lab's clock.")
    health: list[HealthDocument]
    leases: list[LeaseDocument]
    queue: list[Waiting]


class Claim(Body):
    """Which job a runner would start, and where."""

    demand: Wanted
    board: Text
    resource: Text
    lock: Text = Field(description="Names the lock of the resource, and its machine.")
    runner: Text
    group: Text | None = None


class Claimed(BaseModel):
    """The job that was started, or null."""

    job: JobDocument | None


class Progress(Body):
    """How far a job is."""

    job: Text
    done: int = Field(ge=0, le=10**9)
    total: int = Field(ge=0, le=10**9)


class Beat(Body):
    """A runner lives."""

    runner: Text
    progress: list[Progress] = Field([], max_length=10_000)


class Held(BaseModel):
    """A lease that a runner still has."""

    job: str
    attempt: int


class Beaten(BaseModel):
    """The leases that a runner still has."""

    leases: list[Held]


class Expired(BaseModel):
    """What became of a lease."""

    ended: bool = Field(description="Whether the lease was as it was seen, and has been ended.")


class Result(Body):
    """What an attempt measured."""

    result: dict[str, Any] = Field(
        description="A `coralline.measurement/v1` or `coralline.comparison/v1` object."
    )
    files: dict[str, Any] | None = Field(None, description="Artifacts that it comes with, by name.")


class ResultFile(BaseModel):
    """An artifact that a result comes with."""

    ref: Ref
    size_bytes: int


class ResultFiles(BaseModel):
    """What a result comes with, by name."""

    kept: dict[str, ResultFile]
    not_stored: str | None = Field(description="Why some is missing; null when all is there.")


class Attached(BaseModel):
    """Whether the result lacked files, and is of that attempt."""

    attached: bool


class Put(BaseModel):
    """The artifact that is kept."""

    ref: Ref


class Renewal(Body):
    """An artifact that somebody would put."""

    size_bytes: int = Field(ge=0)


class Renewed(BaseModel):
    """Whether the lab has it."""

    renewed: bool = Field(description="It counts as put now; else it must be put.")


class Pruning(Body):
    """Which artifacts to delete."""

    older_than_s: float = Field(gt=0, le=1e10, description="Two days at least.")
    dry_run: bool = Field(False, description="Only say what would be deleted.")


class PrunedDocument(BaseModel):
    """What was deleted, or would be."""

    artifacts: list[Stored]
    unfinished: int = Field(description="Uploads that were cut off; 0 in a dry run.")
    size_bytes: int = Field(description="Of the artifacts together.")


class Failure(Body):
    """Why an attempt failed."""

    error: Long
    retryable: bool = False
    is_users: bool = Field(False, description="The input is to blame, and not the board.")

    def to_error(self) -> Exception:
        """As a board would have raised it here."""
        if self.is_users:
            return UserError(self.error)
        return DeviceError(self.error, retryable=self.retryable)


class Cause(Body):
    """Why."""

    cause: Long


class Check(Body):
    """What the check of a board said."""

    passed: bool
    says: Long


class Step(Body):
    """A step to bring a board back that does not answer."""

    step: Text = Field(examples=["power-cycle"])
    cause: Long
    most_a_day: int = Field(ge=0, description="How often it may begin in 24 hours.")


class MayBegin(BaseModel):
    """Whether a step may begin."""

    may_begin: bool


class Rest(BaseModel):
    """How long a resource has rested."""

    seconds: float | None = Field(description="None when no job has ended there.")


StateFilter = Annotated[State, Field(examples=["done"])]
