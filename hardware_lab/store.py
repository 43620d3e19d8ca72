"""What the lab remembers: jobs, and the measurements they gave.

A lab is a folder with one SQLite file and one lock file a resource. Three rules keep it right
whenever a runner is killed:

- Who holds the lock of a resource, and nobody else, works on its boards. The lock belongs to the
  open file (flock), also in child processes, so the kernel frees it when the last of them ends:
  a job that is `running` while its lock is free has lost its runner.
- A job becomes `done` and its measurement is kept in one transaction, or neither happens.
- Each claim of a job gets a new attempt number, and a result is taken from that attempt only.

The folder must be on a disk of this machine, since the lock is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import DatabaseError

from coralline.errors import DeviceError, UserError
from coralline.files import make_folder
from coralline.runtime.measurement import Measurement
from coralline.tflite.segments import MANIFEST, SegmentSet

SCHEMA = "coralline.job/v1"
FILE = "lab.sqlite"
MAX_ATTEMPTS = 3
MOST_SAMPLES = 1_000_000
"""Of one job: all samples are held in memory and kept."""
BUSY_S = 30.0

State = Literal["queued", "running", "done", "failed"]
STATES: tuple[State, ...] = get_args(State)

_metadata = MetaData()
_jobs = Table(
    "jobs",
    _metadata,
    Column("number", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("board", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("repetitions", Integer, nullable=False),
    Column("warmup", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("state", Text, CheckConstraint(f"state IN {STATES}"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("runner", Text),
    Column("submitted_at", Text, nullable=False),
    Column("started_at", Text),
    Column("finished_at", Text),
    Column("error", Text),
    Column("error_is_users", Boolean, nullable=False),
    # The database itself refuses a second running job on a board.
    Index("one_running_job_a_board", "board", unique=True, sqlite_where=text("state = 'running'")),
)
_measurements = Table(
    "measurements",
    _metadata,
    Column("job", ForeignKey("jobs.number"), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("measurement", Text, nullable=False),
)


@dataclass(frozen=True)
class Job:
    """One measurement that somebody wants.

    Attributes:
        id: Also of its measurement.
        board: Name in the inventory.
        path: Absolute; a folder that `coralline split` wrote, or a plain .tflite.
        digest: SHA-256 of the folder's manifest or of the .tflite at submission.
        repetitions: Samples of each mode.
        warmup: Inferences before the first sample of each mode.
        max_attempts: A job that has lost this many runners, or failed retryably this often, is
            failed.
        state: `queued`, `running`, `done` or `failed`.
        attempt: How often it was started.
        runner: Who started it last.
        submitted_at, started_at, finished_at: ISO 8601, UTC; of the last attempt.
        error: Why the last attempt failed.
        error_is_users: Whether the input is to blame, and not the board.
    """

    id: str
    board: str
    path: str
    digest: str
    repetitions: int
    warmup: int
    max_attempts: int
    state: State
    attempt: int
    runner: str | None
    submitted_at: str
    started_at: str | None
    finished_at: str | None
    error: str | None
    error_is_users: bool

    def to_json(self) -> dict[str, Any]:
        """A `coralline.job/v1` object."""
        return {"schema": SCHEMA, **asdict(self)}

    def raise_error(self) -> None:
        """Raise the error of a failed job again."""
        if self.state == "failed" and self.error is not None:
            raise (UserError if self.error_is_users else DeviceError)(self.error)


class Store:
    """The jobs and measurements of one lab.

    Args:
        folder: Of the lab; made when absent.

    Raises:
        UserError: The folder cannot be written, or holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(folder)
        self._file = folder / FILE
        self._engine = create_engine(
            f"sqlite:///{self._file.resolve()}", connect_args={"timeout": BUSY_S}
        )
        # Two that open a new lab at once must not both make its tables.
        with self.lock("tables", wait=True), self._transaction() as connection:
            _metadata.create_all(connection)

    def submit(
        self,
        path: Path,
        board: str,
        *,
        repetitions: int,
        warmup: int,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> Job:
        """Put a job at the end of the queue.

        Raises:
            UserError: The path holds nothing to measure, or a number is out of range.
        """
        for name, value, least in (
            ("repetitions", repetitions, 1),
            ("warmup", warmup, 0),
            ("max_attempts", max_attempts, 1),
        ):
            if value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}")
            if value > MOST_SAMPLES:
                raise UserError(f"{name} is {value}; it must be at most {MOST_SAMPLES}")
        job = Job(
            id=uuid4().hex[:16],
            board=board,
            path=str(path.resolve()),
            digest=content_digest(path),
            repetitions=repetitions,
            warmup=warmup,
            max_attempts=max_attempts,
            state="queued",
            attempt=0,
            runner=None,
            submitted_at=_now(),
            started_at=None,
            finished_at=None,
            error=None,
            error_is_users=False,
        )
        with self._transaction() as connection:
            connection.execute(insert(_jobs).values(**asdict(job)))
        return job

    def jobs(self, ids: Collection[str] | None = None, state: State | None = None) -> list[Job]:
        """The jobs in the order of their submission."""
        query = select(_jobs).order_by(_jobs.c.number)
        if ids is not None:
            query = query.where(_jobs.c.id.in_(ids))
        if state is not None:
            query = query.where(_jobs.c.state == state)
        with self._transaction() as connection:
            return [_job(row) for row in connection.execute(query)]

    def job(self, job_id: str) -> Job:
        """A job by its id.

        Raises:
            UserError: There is none.
        """
        found = self.jobs([job_id])
        if not found:
            raise UserError(
                f"job {job_id!r} is not in {self._file}; `coralline lab jobs` lists them"
            )
        return found[0]

    def measurement(self, job_id: str) -> Measurement:
        """What a job that is done measured.

        Raises:
            UserError: There is no such job, or it is not done.
        """
        job = self.job(job_id)
        query = select(_measurements.c.measurement).join(_jobs).where(_jobs.c.id == job_id)
        with self._transaction() as connection:
            data = connection.execute(query).scalar_one_or_none()
        if data is None:
            raise UserError(f"job {job_id!r} is {job.state} and has no measurement")
        return Measurement.from_json(json.loads(data))

    @contextmanager
    def lock(self, resource: str, *, wait: bool = False) -> Iterator[int | None]:
        """Hold a resource of the lab.

        Yields:
            The descriptor of the lock, to be kept open by every process that works on the
            resource; None when another holds it and `wait` is false.
        """
        path = make_folder(self.folder / "locks") / f"{resource}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({error.strerror})") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def recover(self, boards: Collection[str]) -> None:
        """Queue again, or give up, the running jobs of boards whose lock the caller holds.

        Holding the lock proves that their runners are gone.
        """
        lost = (_jobs.c.state == "running") & _jobs.c.board.in_(boards)
        with self._transaction() as connection:
            connection.execute(
                update(_jobs)
                .where(lost, _jobs.c.attempt >= _jobs.c.max_attempts)
                .values(
                    state="failed",
                    finished_at=_now(),
                    error=func.printf("its runner ended %d times while it ran", _jobs.c.attempt),
                )
            )
            connection.execute(update(_jobs).where(lost).values(state="queued"))

    def claim(
        self, boards: Collection[str], runner: str, ids: Collection[str] | None = None
    ) -> Job | None:
        """Start the oldest queued job of boards whose lock the caller holds.

        Args:
            runner: Who the caller is, for people.
            ids: Only these jobs; None for all.
        """
        wanted = (_jobs.c.state == "queued") & _jobs.c.board.in_(boards)
        if ids is not None:
            wanted &= _jobs.c.id.in_(ids)
        oldest = select(func.min(_jobs.c.number)).where(wanted).scalar_subquery()
        with self._transaction() as connection:
            row = connection.execute(
                update(_jobs)
                .where(_jobs.c.number == oldest)
                .values(
                    state="running",
                    attempt=_jobs.c.attempt + 1,
                    runner=runner,
                    started_at=_now(),
                    finished_at=None,
                    error=None,
                )
                .returning(*_jobs.c)
            ).one_or_none()
        return None if row is None else _job(row)

    def finish(self, job: Job, measurement: Measurement) -> None:
        """Keep a claimed job's measurement.

        Raises:
            DeviceError: The job has been started again since; the result is refused.
            UserError: The disk is full; what was kept before is intact, and the job will be
                found and run again.
        """
        data = json.dumps(measurement.to_json(), allow_nan=False)
        with self._transaction() as connection:
            self._end(connection, job, state="done")
            connection.execute(
                insert(_measurements).from_select(
                    ["job", "attempt", "measurement"],
                    select(
                        _jobs.c.number, _jobs.c.attempt, text(":data").bindparams(data=data)
                    ).where(_jobs.c.id == job.id),
                )
            )

    def fail(self, job: Job, error: Exception) -> None:
        """Note why a claimed job failed; queue it again if that may help.

        Raises:
            DeviceError: The job has been started again since.
        """
        again = getattr(error, "retryable", False) and job.attempt < job.max_attempts
        with self._transaction() as connection:
            self._end(
                connection,
                job,
                state="queued" if again else "failed",
                error=" ".join(str(error).split()),
                error_is_users=isinstance(error, ValueError),
            )

    def withdraw(self, job_id: str) -> None:
        """End a job that nobody waits for any more, unless it has ended."""
        with self._transaction() as connection:
            connection.execute(
                update(_jobs)
                .where(_jobs.c.id == job_id, _jobs.c.state.in_(("queued", "running")))
                .values(state="failed", finished_at=_now(), error="interrupted")
            )

    def _end(self, connection: Connection, job: Job, **values: Any) -> None:
        ended = connection.execute(
            update(_jobs)
            .where(_jobs.c.id == job.id, _jobs.c.attempt == job.attempt, _jobs.c.state == "running")
            .values(finished_at=_now(), **values)
        )
        if ended.rowcount != 1:
            raise DeviceError(
                f"job {job.id}: attempt {job.attempt} is no longer the one that counts; its "
                "result is refused"
            )

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            reason = str(error.orig)
            if "locked" in reason:
                raise DeviceError(
                    f"{self._file}: is busy for more than {BUSY_S:g} s ({reason})", retryable=True
                ) from None
            raise UserError(
                f"{self._file}: cannot be used ({reason}); what it holds is untouched: make "
                "room or give another folder as --lab, then run again"
            ) from None


def content_digest(path: Path) -> str:
    """SHA-256 of what a job measures: the split folder's manifest, or the .tflite.

    Raises:
        UserError: The path is neither.
    """
    if path.is_dir():
        SegmentSet.read(path)
        path = path / MANIFEST
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give a folder that `coralline split` "
            "wrote, or a .tflite"
        ) from None


def _job(row: Row[Any]) -> Job:
    values = dict(row._mapping)
    del values["number"]
    return Job(**values)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
