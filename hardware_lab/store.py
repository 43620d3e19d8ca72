"""What the lab remembers: jobs, and the measurements they gave.

A lab is a database: an SQLite file in a folder of this machine, or a PostgreSQL server that
runners on several hosts share. These rules keep it right whoever is killed, and when:

- A running job is the lease of its board. The database refuses a second one on a board or on
  what the board works on. Its fencing token is the number of the attempt: a result is taken
  from the last attempt only, and together with the job's end, or neither is.
- Its runner raises the lease's `beat` every BEAT_S. A runner that could not for HOLD_S leaves
  the board; others that have seen the same beat for LEASE_S end the lease. Each measures that
  time on its own clock that only goes forward: no wall clock decides who may use a board.
- On the machine of a runner that has died nobody waits so long: the lock of what the board works
  on (flock) belongs to the runner and its child processes, and the kernel frees it with the last.

Jobs start in the order of their `due` time, which is that of their submission less AGEING_S for
each step of priority: by priority among jobs of one age, and none is overtaken by jobs that are
younger by more than AGEING_S times the steps between them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, get_args
from uuid import uuid4

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    cast,
    create_engine,
    event,
    func,
    insert,
    inspect,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.engine import URL, Connection, Engine, Row, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.sql.elements import ColumnElement

from coralline.errors import DeviceError, UserError
from coralline.files import make_folder
from coralline.home import home_folder
from coralline.runtime.measurement import Measurement
from coralline.tflite.segments import MANIFEST, SegmentSet
from hardware_lab.compare import SCHEMA as COMPARISON
from hardware_lab.compare import Comparison
from hardware_lab.inventory import Demand

SCHEMA = "coralline.job/v2"
VERSION = 4
"""Of the tables."""
FILE = "lab.sqlite"
MAX_ATTEMPTS = 3
MOST_SAMPLES = 1_000_000
"""Of one job: all samples are held in memory and kept."""
MOST_PRIORITY = 10
MOST_DEADLINE_S = 3e7
AGEING_S = 3600.0
"""How much older a job must be to make up for one step of priority."""
BEAT_S = 5.0
HOLD_S = 30.0
LEASE_S = 90.0
"""By so much longer than HOLD_S that a board far away has noticed that its runner is gone."""
BUSY_S = 30.0
"""How long to wait for an SQLite file that another process writes."""
ANSWER_S = 10
"""How long to wait for a PostgreSQL server."""

State = Literal["queued", "running", "done", "invalid", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)

HealthState = Literal["good", "unknown", "looping", "bad", "maintenance", "retired"]
HEALTHS: tuple[HealthState, ...] = get_args(HealthState)

_metadata = MetaData()
_schema = Table("lab", _metadata, Column("version", Integer, primary_key=True))
_demands = Table("demands", _metadata, Column("demand", Text, primary_key=True))
_queued = text("state = 'queued'")
_running = text("state = 'running'")
_jobs = Table(
    "jobs",
    _metadata,
    Column("number", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("demand", ForeignKey("demands.demand"), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("due", Double, nullable=False),
    Column("deadline", Double),
    Column("batch", Text),
    Column("path", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("repetitions", Integer, nullable=False),
    Column("warmup", Integer, nullable=False),
    Column("seconds", Double),
    Column("against", Text),
    Column("against_digest", Text),
    Column("allow_fallback", Boolean, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("state", Text, CheckConstraint(f"state IN {STATES}"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("beat", Integer, nullable=False),
    Column("board", Text),
    Column("resource", Text),
    Column("lock", Text),
    Column("runner", Text),
    Column("submitted", Double, nullable=False),
    Column("started", Double),
    Column("finished", Double),
    Column("error", Text),
    Column("error_is_users", Boolean, nullable=False),
    Index("next_job", "demand", "due", "number", sqlite_where=_queued, postgresql_where=_queued),
    Index("next_deadline", "deadline", sqlite_where=_queued, postgresql_where=_queued),
    Index("batches", "batch"),
    *(
        Index(
            f"one_running_job_a_{thing}",
            thing,
            unique=True,
            sqlite_where=_running,
            postgresql_where=_running,
        )
        for thing in ("board", "resource")
    ),
)
_measurements = Table(
    "measurements",
    _metadata,
    Column("job", ForeignKey("jobs.number"), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("measurement", Text, nullable=False),
)
_health = Table(
    "health",
    _metadata,
    Column("board", Text, primary_key=True),
    Column("state", Text, CheckConstraint(f"state IN {HEALTHS}"), nullable=False),
    Column("cause", Text, nullable=False),
    Column("since", Double, nullable=False),
    Column("strikes", Integer, nullable=False),
    Column("checked", Double, nullable=False),
    Column("again", Double, nullable=False),
)
_health_log = Table(
    "health_log",
    _metadata,
    Column("number", Integer, primary_key=True),
    Column("board", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("at", Double, nullable=False),
)


@dataclass(frozen=True)
class Health:
    """What the lab thinks of a board.

    Attributes:
        board: Name.
        state: `good`; `unknown`, to be checked before the next job; `looping`, its check fails
            and is repeated; `bad`, it failed too often; `maintenance` or `retired` by a person.
        cause: What the last check, job or person said.
        since: When the state began; this and the other times in seconds since 1970.
        strikes: Checks failed in a row.
        checked: When it was last checked; 0 for never.
        again: When a looping board is checked again.
    """

    board: str
    state: HealthState
    cause: str
    since: float
    strikes: int
    checked: float
    again: float

    def to_json(self) -> dict[str, Any]:
        """With times as ISO 8601, UTC."""
        return {
            "board": self.board,
            "state": self.state,
            "cause": self.cause,
            "since": _iso(self.since),
            "strikes": self.strikes,
            "checked_at": _iso(self.checked or None),
        }


class NoteHealth(Protocol):
    """Notes what the lab thinks of a board; a new state goes into the log."""

    def __call__(
        self,
        board: str,
        state: HealthState,
        cause: str,
        *,
        strikes: int = 0,
        pause_s: float = 0.0,
        was_checked: bool = False,
    ) -> None:
        """Note it.

        Args:
            strikes: Checks failed in a row.
            pause_s: Until it is checked again.
            was_checked: Whether it has just been.
        """


@dataclass(frozen=True)
class Job:
    """One measurement that somebody wants.

    Attributes:
        id: Also of its measurement.
        demand: Which boards may make it.
        priority: From -MOST_PRIORITY to MOST_PRIORITY; the higher, the sooner.
        deadline_at: A job that has not begun by then is given up.
        group: Jobs that are run, listed or cancelled together.
        path: Absolute; a folder that `coralline split` wrote, or a plain .tflite.
        digest: SHA-256 of the folder's manifest or of the .tflite at submission.
        repetitions: Samples of each mode.
        warmup: Inferences before the first sample of each mode.
        seconds: After so long a mode gives no more samples; None for no such limit.
        against: A second folder or .tflite, to be compared with the first; None for none.
        against_digest: Of the second.
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
    """

    id: str
    demand: Demand
    priority: int
    deadline_at: str | None
    group: str | None
    path: str
    digest: str
    repetitions: int
    warmup: int
    seconds: float | None
    against: str | None
    against_digest: str | None
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

    def to_json(self) -> dict[str, Any]:
        """A `coralline.job/v2` object."""
        return {"schema": SCHEMA, **asdict(self)}

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
class Lock:
    """A resource of this machine that is held.

    Attributes:
        descriptor: To be kept open by every process that works on the resource.
        name: Of this lock alone among those of all machines; another after a restart.
    """

    descriptor: int
    name: str


def default_lab() -> str:
    """Where the lab is unless somebody says otherwise: $CORALLINE_LAB, or a folder at home."""
    return os.environ.get("CORALLINE_LAB") or str(home_folder() / "lab")


class Store:
    """The jobs and measurements of one lab.

    Args:
        where: A folder, made when absent, or the URL of a PostgreSQL database.

    Raises:
        UserError: The folder cannot be written, or holds something else.
        DeviceError: The server does not answer.
    """

    def __init__(self, where: Path | str) -> None:
        if "://" in str(where):
            url = _postgresql_url(str(where))
            self.where = url.render_as_string(hide_password=True)
            self._folder = make_folder(home_folder() / "lab")
            self._engine = _postgresql(url)
        else:
            self._folder = make_folder(Path(where))
            self.where = str(self._folder / FILE)
            self._engine = _sqlite(self._folder / FILE)
        self._is_sqlite = self._engine.dialect.name == "sqlite"
        self._known_demands: set[str] = set()
        self._make_tables()

    def submit(
        self,
        path: Path,
        demand: Demand,
        *,
        repetitions: int,
        warmup: int,
        seconds: float | None = None,
        against: Path | None = None,
        allow_fallback: bool = False,
        priority: int = 0,
        deadline_s: float | None = None,
        group: str | None = None,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> Job:
        """Put a job into the queue.

        Args:
            demand: Which boards may make it.
            seconds: After so long a mode gives no more samples.
            against: Compare the first path with this one.
            allow_fallback: Accept what another processor ran than the one asked for.
            deadline_s: From now; a job that has not begun by then is given up.

        Raises:
            UserError: The path holds nothing to measure, or a number is out of range.
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
        wanted = demand.to_text()
        digest = content_digest(path)
        with self._write() as connection:
            self._know(connection, wanted)
            now = self._now()
            row = connection.execute(
                insert(_jobs)
                .values(
                    id=uuid4().hex[:16],
                    demand=wanted,
                    priority=priority,
                    due=now - priority * AGEING_S,
                    deadline=None if deadline_s is None else now + deadline_s,
                    batch=group,
                    path=str(path.resolve()),
                    digest=digest,
                    repetitions=repetitions,
                    warmup=warmup,
                    seconds=seconds,
                    against=None if against is None else str(against.resolve()),
                    against_digest=None if against is None else content_digest(against),
                    allow_fallback=allow_fallback,
                    max_attempts=max_attempts,
                    state="queued",
                    attempt=0,
                    beat=0,
                    submitted=now,
                    error_is_users=False,
                )
                .returning(*_jobs.c)
            ).one()
        self._known_demands.add(wanted)
        return _job(row)

    def jobs(
        self,
        ids: Collection[str] | None = None,
        state: State | None = None,
        group: str | None = None,
    ) -> list[Job]:
        """The jobs in the order of their submission."""
        self.sweep()
        query = select(_jobs).order_by(_jobs.c.number)
        if ids is not None:
            query = query.where(_jobs.c.id.in_(ids))
        if state is not None:
            query = query.where(_jobs.c.state == state)
        if group is not None:
            query = query.where(_jobs.c.batch == group)
        with self._read() as connection:
            return [_job(row) for row in connection.execute(query)]

    def job(self, job_id: str) -> Job:
        """A job by its id.

        Raises:
            UserError: There is none.
        """
        found = self.jobs([job_id])
        if not found:
            raise UserError(
                f"job {job_id!r} is not in {self.where}; `coralline lab jobs` lists them"
            )
        return found[0]

    def measurement(self, job_id: str) -> Measurement:
        """What a job of one model measured.

        Raises:
            UserError: There is no such job, it has not measured yet, or it is a comparison.
        """
        found = self.result(job_id)
        if isinstance(found, Comparison):
            raise UserError(f"job {job_id!r} is a comparison of two plans")
        return found

    def result(self, job_id: str) -> Measurement | Comparison:
        """What a job that is done or invalid measured.

        Raises:
            UserError: There is no such job, or it has not measured yet.
        """
        job = self.job(job_id)
        query = select(_measurements.c.measurement).join(_jobs).where(_jobs.c.id == job_id)
        with self._read() as connection:
            data = connection.execute(query).scalar_one_or_none()
        if data is None:
            raise UserError(f"job {job_id!r} is {job.state} and has no measurement")
        found = json.loads(data)
        if found["schema"] == COMPARISON:
            return Comparison.from_json(found)
        return Measurement.from_json(found)

    @contextmanager
    def lock(self, resource: str, *, wait: bool = False) -> Iterator[Lock | None]:
        """Hold a resource of this machine.

        Yields:
            None when another holds it and `wait` is false.
        """
        path = make_folder(self._folder / "locks") / f"{resource}.lock"
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
            file = os.fstat(descriptor)
            yield Lock(descriptor, f"{_this_start()}:{file.st_dev}:{file.st_ino}")
        finally:
            os.close(descriptor)

    def sweep(self) -> None:
        """Give up the queued jobs whose deadline has passed."""
        late = (_jobs.c.state == "queued") & (_jobs.c.deadline <= self._now())
        with self._read() as connection:
            if connection.execute(select(_jobs.c.number).where(late).limit(1)).first() is None:
                return
        with self._write() as connection:
            connection.execute(
                update(_jobs)
                .where(late)
                .values(
                    state="failed",
                    finished=self._now(),
                    error=func.coalesce(_jobs.c.error + "; ", "") + "not begun by its deadline",
                )
            )

    def queue(self, group: str | None = None) -> list[tuple[Demand, float]]:
        """What queued jobs ask for, and the least `due` of those that ask for it; least first."""
        first = select(func.min(_jobs.c.due)).where(
            _jobs.c.state == "queued", _jobs.c.demand == _demands.c.demand
        )
        if group is not None:
            first = first.where(_jobs.c.batch == group)
        query = select(_demands.c.demand, first.scalar_subquery())
        with self._read() as connection:
            found = [(due, demand) for demand, due in connection.execute(query) if due is not None]
        return [(Demand.of_text(demand), due) for due, demand in sorted(found)]

    def leases(self) -> list[Lease]:
        """The running jobs."""
        columns = (
            *(_jobs.c.id, _jobs.c.attempt, _jobs.c.beat, _jobs.c.demand, _jobs.c.batch),
            *(_jobs.c.board, _jobs.c.resource, _jobs.c.lock, _jobs.c.max_attempts),
        )
        with self._read() as connection:
            return [
                Lease(job, attempt, beat, Demand.of_text(demand), *rest)
                for job, attempt, beat, demand, *rest in connection.execute(
                    select(*columns).where(_jobs.c.state == "running")
                )
            ]

    def claim(
        self,
        demand: Demand,
        board: str,
        resource: str,
        lock: Lock,
        runner: str,
        group: str | None = None,
    ) -> Job | None:
        """Start the first queued job with this demand, unless the board is leased.

        Args:
            board: Meets the demand.
            resource: That the board works on; the caller holds its lock.
            runner: Who the caller is; no two have the same name.
            group: Only its jobs.
        """
        wanted = (
            (_jobs.c.state == "queued")
            & (_jobs.c.demand == demand.to_text())
            & or_(_jobs.c.deadline.is_(None), _jobs.c.deadline > self._now())
        )
        if group is not None:
            wanted &= _jobs.c.batch == group
        first = (
            select(_jobs.c.number)
            .where(wanted)
            .order_by(_jobs.c.due, _jobs.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        with suppress(IntegrityError), self._write() as connection:
            row = connection.execute(
                update(_jobs)
                .where(_jobs.c.number == first)
                .values(
                    state="running",
                    attempt=_jobs.c.attempt + 1,
                    board=board,
                    resource=resource,
                    lock=lock.name,
                    runner=runner,
                    started=self._now(),
                    finished=None,
                    error=None,
                )
                .returning(*_jobs.c)
            ).one_or_none()
            return None if row is None else _job(row)
        return None  # another runner has just leased the board

    def beat(self, runner: str) -> set[tuple[str, int]]:
        """Renew a runner's leases.

        Returns:
            Job and attempt of those that it still has.
        """
        with self._write() as connection:
            return {
                (job, attempt)
                for job, attempt in connection.execute(
                    update(_jobs)
                    .where(_jobs.c.state == "running", _jobs.c.runner == runner)
                    .values(beat=_jobs.c.beat + 1)
                    .returning(_jobs.c.id, _jobs.c.attempt)
                )
            }

    def expire(self, lease: Lease) -> bool:
        """End the lease of a runner that is gone: queue its job again, or give it up.

        Returns:
            Whether the lease was as it is given, and has been ended.
        """
        values: dict[str, Any] = {"state": "queued"}
        if lease.attempt >= lease.max_attempts:
            values = {
                "state": "failed",
                "finished": self._now(),
                "error": f"its runner ended {lease.attempt} times while it ran",
            }
        with self._write() as connection:
            ended = connection.execute(
                update(_jobs)
                .where(
                    _jobs.c.id == lease.job,
                    _jobs.c.state == "running",
                    _jobs.c.attempt == lease.attempt,
                    _jobs.c.beat == lease.beat,
                )
                .values(**values)
            )
        return bool(ended.rowcount)

    def finish(self, job: Job, result: Measurement | Comparison) -> None:
        """Keep what a claimed job measured; it is `invalid` when another processor ran.

        Raises:
            DeviceError: The job's lease has ended; the result is refused. Or the database is not
                to be reached, which is retryable.
            UserError: The disk is full; what was kept before is intact, and the job will be
                found and run again.
        """
        data = json.dumps(result.to_json(), allow_nan=False)
        ending: dict[str, Any] = {"state": "done"}
        if result.fell_back and not job.allow_fallback:
            ending = {"state": "invalid", "error": _fallback(job, result), "error_is_users": False}
        with self._write() as connection:
            number = self._end(connection, job, **ending)
            connection.execute(
                insert(_measurements).values(job=number, attempt=job.attempt, measurement=data)
            )

    def fail(self, job: Job, error: Exception) -> None:
        """Note why a claimed job failed; queue it again if that may help.

        Raises:
            DeviceError: As `finish`.
        """
        again = getattr(error, "retryable", False) and job.attempt < job.max_attempts
        with self._write() as connection:
            self._end(
                connection,
                job,
                state="queued" if again else "failed",
                error=" ".join(str(error).split()),
                error_is_users=isinstance(error, ValueError),
            )

    def give_back(self, job: Job, error: Exception) -> None:
        """Queue a claimed job again that its board could not even begin.

        The attempt does not count against the job.

        Raises:
            DeviceError: As `finish`.
        """
        with self._write() as connection:
            self._end(
                connection,
                job,
                state="queued",
                max_attempts=_jobs.c.max_attempts + 1,
                error=" ".join(str(error).split()),
            )

    def now(self) -> float:
        """Seconds since 1970, of the one clock that all who use the lab share."""
        with self._read() as connection:
            return float(connection.execute(select(self._now())).scalar_one())

    def health(self) -> dict[str, Health]:
        """What the lab thinks of the boards that it has used, by name."""
        with self._read() as connection:
            return _health_in(connection)

    def health_log(self, board: str) -> list[dict[str, Any]]:
        """The states that a board has been in, the first first, with their causes."""
        query = select(_health_log).where(_health_log.c.board == board)
        with self._read() as connection:
            return [
                {"state": row.state, "cause": row.cause, "at": _iso(row.at)}
                for row in connection.execute(query.order_by(_health_log.c.number))
            ]

    @contextmanager
    def judging(self) -> Iterator[tuple[dict[str, Health], NoteHealth]]:
        """Alone with the health of the boards: what is known, and a function that changes it.

        Nothing is changed when the block raises.
        """
        with self._write() as connection:
            if not self._is_sqlite:
                connection.execute(text("LOCK TABLE health IN EXCLUSIVE MODE"))
            known = _health_in(connection)

            def note(
                board: str,
                state: HealthState,
                cause: str,
                *,
                strikes: int = 0,
                pause_s: float = 0.0,
                was_checked: bool = False,
            ) -> None:
                now = self._now()
                values: dict[str, Any] = {
                    "state": state,
                    "cause": cause,
                    "strikes": strikes,
                    "again": now + pause_s,
                }
                if was_checked:
                    values["checked"] = now
                before = known.get(board)
                if before is None or before.state != state:
                    values["since"] = now
                    line = {"board": board, "state": state, "cause": cause, "at": now}
                    connection.execute(insert(_health_log).values(line))
                if before is None:
                    connection.execute(
                        insert(_health).values({"checked": 0.0, **values, "board": board})
                    )
                else:
                    connection.execute(
                        update(_health).where(_health.c.board == board).values(values)
                    )

            yield known, note

    def cancel(
        self, ids: Collection[str] = (), group: str | None = None, reason: str = "cancelled"
    ) -> list[Job]:
        """End jobs that nobody waits for any more, unless they have ended.

        A board that works on one is left at its runner's next heartbeat.

        Args:
            ids: These jobs.
            group: And those of this group.

        Returns:
            The jobs that this call ended.
        """
        chosen: ColumnElement[bool] = _jobs.c.id.in_(ids)
        if group is not None:
            chosen |= _jobs.c.batch == group
        with self._write() as connection:
            ended = connection.execute(
                update(_jobs)
                .where(
                    chosen,
                    _jobs.c.state.in_(("queued", "running")),
                )
                .values(state="cancelled", finished=self._now(), error=reason)
                .returning(*_jobs.c)
            ).all()
        return [_job(row) for row in sorted(ended, key=lambda row: row.number)]

    def _end(self, connection: Connection, job: Job, **values: Any) -> int:
        number = connection.execute(
            update(_jobs)
            .where(_jobs.c.id == job.id, _jobs.c.attempt == job.attempt, _jobs.c.state == "running")
            .values(finished=self._now(), **values)
            .returning(_jobs.c.number)
        ).scalar_one_or_none()
        if number is None:
            raise DeviceError(
                f"job {job.id}: attempt {job.attempt} is no longer the one that counts; its "
                "result is refused"
            )
        return int(number)

    def _know(self, connection: Connection, demand: str) -> None:
        if demand in self._known_demands:
            return
        # Two may say it first at once: both dialects then let one of them.
        connection.execute(
            text("INSERT INTO demands (demand) VALUES (:demand) ON CONFLICT DO NOTHING"),
            {"demand": demand},
        )

    def _now(self) -> ColumnElement[float]:
        """Seconds since 1970, of the one clock that all who use the database share."""
        if self._is_sqlite:
            return literal(time.time(), Double)
        return cast(func.extract("epoch", func.statement_timestamp()), Double)

    def _make_tables(self) -> None:
        # Two that open a new lab at once must not both make its tables.
        with self.lock("tables", wait=True), self._write() as connection:
            if not self._is_sqlite:
                connection.execute(select(func.pg_advisory_xact_lock(0xC0A11)))
            tables = inspect(connection).get_table_names()
            if _schema.name not in tables and _jobs.name not in tables:
                _metadata.create_all(connection)
                connection.execute(insert(_schema).values(version=VERSION))
            version = 1  # which did not say so
            if _schema.name in tables or _jobs.name not in tables:
                version = connection.execute(select(_schema.c.version)).scalar_one()
        if version != VERSION:
            raise UserError(
                f"{self.where}: is of version {version}, and this Coralline reads version "
                f"{VERSION}; move it aside to keep it, or give another place as --lab"
            )

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._speaking(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        engine = self._engine.execution_options(writes=True)
        # Many who wait for SQLite's own lock try again and again, and the unlucky one for ever.
        turn = self.lock("database", wait=True) if self._is_sqlite else nullcontext()
        with turn, self._speaking(), engine.begin() as connection:
            yield connection

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except PoolTimeout as error:
            raise DeviceError(f"{self.where}: does not answer ({error})", retryable=True) from None
        except DBAPIError as error:
            reason = " ".join(str(error.orig).split())
            if self._is_sqlite:
                gone = "locked" in reason  # by another, for more than BUSY_S
            else:
                gone = isinstance(error, OperationalError | InterfaceError)
            if gone:
                raise DeviceError(
                    f"{self.where}: does not answer ({reason})", retryable=True
                ) from None
            raise UserError(
                f"{self.where}: cannot be used ({reason}); what it holds is untouched: make "
                "room or give another place as --lab, then run again"
            ) from None


def _fallback(job: Job, result: Measurement | Comparison) -> str:
    parts = (result.a, result.b) if isinstance(result, Comparison) else (result,)
    found = next(part for part in parts if part.fell_back)
    return (
        f"{found.board}: {found.processor_asked} was asked for and {found.processor_ran} ran "
        f"({found.processor}); use --allow-fallback if that is wanted; `coralline lab show "
        f"{job.id}` has what was measured"
    )


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


def _sqlite(file: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{file.resolve()}",
        connect_args={"timeout": BUSY_S, "isolation_level": None},
    )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        # Readers and a writer do not wait for each other.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A transaction that reads before it writes would else fail, and not wait, beside another.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql_url(where: str) -> URL:
    try:
        url = make_url(where)
    except ArgumentError:
        raise UserError(f"{where!r} is not a database URL") from None
    if url.get_backend_name() != "postgresql":
        raise UserError(
            f"a lab in {url.get_backend_name()!r} is not known; give a folder, or "
            "postgresql://user@host/database"
        )
    return url.set(drivername="postgresql+psycopg")


def _postgresql(url: URL) -> Engine:
    # A server that is gone must be noticed long before HOLD_S.
    patience = {
        "connect_timeout": ANSWER_S,
        "keepalives_idle": ANSWER_S,
        "tcp_user_timeout": 1000 * ANSWER_S,
        "options": f"-c statement_timeout={1000 * ANSWER_S}",
    }
    try:
        return create_engine(
            url, connect_args=patience, pool_pre_ping=True, pool_size=2, max_overflow=0
        )
    except ModuleNotFoundError as error:
        raise UserError(f"a lab in PostgreSQL needs {error.name}; install coralline[lab]") from None


def _this_start() -> str:
    """Names this machine since it was last started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _health_in(connection: Connection) -> dict[str, Health]:
    rows = connection.execute(select(_health).order_by(_health.c.board))
    return {row.board: Health(**row._mapping) for row in rows}


def _job(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        demand=Demand.of_text(row.demand),
        priority=row.priority,
        deadline_at=_iso(row.deadline),
        group=row.batch,
        path=row.path,
        digest=row.digest,
        repetitions=row.repetitions,
        warmup=row.warmup,
        seconds=row.seconds,
        against=row.against,
        against_digest=row.against_digest,
        allow_fallback=row.allow_fallback,
        max_attempts=row.max_attempts,
        state=row.state,
        attempt=row.attempt,
        board=row.board,
        runner=row.runner,
        submitted_at=_iso(row.submitted) or "",
        started_at=_iso(row.started),
        finished_at=_iso(row.finished),
        error=row.error,
        error_is_users=row.error_is_users,
    )


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
