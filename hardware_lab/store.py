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

import json
import math
import os
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import func, insert, or_, select, text, update
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.elements import ColumnElement

from coralline.errors import DeviceError, UserError
from coralline.home import home_folder
from coralline.runtime.measurement import Measurement
from hardware_lab.announcements import BoardRecords
from hardware_lab.artifacts import File, Files, Model, PrunableArtifacts, open_artifacts
from hardware_lab.artifacts.bundle import packed
from hardware_lab.compare import SCHEMA as COMPARISON
from hardware_lab.compare import Comparison
from hardware_lab.database import Database, State, iso
from hardware_lab.database import demands as _demands
from hardware_lab.database import files as _files
from hardware_lab.database import jobs as _jobs
from hardware_lab.database import measurements as _measurements
from hardware_lab.glance import Glance
from hardware_lab.health import HealthRecords
from hardware_lab.inventory import Demand
from hardware_lab.jobs import Job, JobOptions, Lease, View
from hardware_lab.locks import Lock
from hardware_lab.pruning import Pruned, prune
from hardware_lab.tokens import Tokens

AGEING_S = 3600.0
"""How much older a job must be to make up for one step of priority."""
BEAT_S = 5.0
HOLD_S = 30.0
LEASE_S = 90.0
"""By so much longer than HOLD_S that a board far away has noticed that its runner is gone."""


def default_lab() -> str:
    """Where the lab is unless somebody says otherwise: $CORALLINE_LAB, or a folder at home."""
    return os.environ.get("CORALLINE_LAB") or str(home_folder() / "lab")


class Store:
    """The jobs and measurements of one lab.

    Args:
        where: A folder, made when absent, or the URL of a PostgreSQL database.
        artifacts: Place of its artifacts, as `open_artifacts` takes it; else
            $CORALLINE_ARTIFACTS, or a folder in the lab's folder.
        connections: As `Database`.

    Attributes:
        where: The lab, for people.
        folder: Of this machine, for files of the lab on their way.
        health: Of its boards.

    Raises:
        UserError: The folder cannot be written, or holds something else.
        DeviceError: The server does not answer.
    """

    served = False

    def __init__(
        self, where: Path | str, artifacts: str | None = None, connections: int = 2
    ) -> None:
        self._database = Database(where, connections)
        self.where = self._database.where
        self.folder = self._database.folder
        self._artifacts_place = artifacts or os.environ.get("CORALLINE_ARTIFACTS")
        self.glance = Glance(self._database)
        self.health = HealthRecords(self._database)
        self.boards = BoardRecords(self._database)
        self.tokens = Tokens(self._database)
        self._known_demands: set[str] = set()

    def submit(
        self,
        model: Path | Model,
        demand: Demand,
        options: JobOptions,
        *,
        against: Path | Model | None = None,
        job_id: str | None = None,
    ) -> Job:
        """Put a job into the queue.

        Args:
            model: A folder that `coralline split` wrote, or a .tflite, as it is now; or what is an
                artifact of the lab already.
            demand: Which boards may make it.
            against: Compare the first model with this one.
            job_id: Of a submission that may be made again: there will be one job with this id.

        Raises:
            UserError: The path holds nothing to measure.
            DeviceError: The database or the artifact store does not answer.
        """
        wanted = demand.to_text()
        first = self._artifact(model)
        second = None if against is None else self._artifact(against)
        with self._database.write() as connection:
            self._know(connection, wanted)
            now = self._database.now()
            deadline = None if options.deadline_s is None else now + options.deadline_s
            made = connection.execute(
                self._database.insert(_jobs)
                .values(
                    id=job_id or uuid4().hex[:16],
                    demand=wanted,
                    priority=options.priority,
                    due=now - options.priority * AGEING_S,
                    deadline=deadline,
                    batch=options.group,
                    labels=dict(options.labels),
                    path=first.name,
                    artifact=first.ref,
                    repetitions=options.repetitions,
                    warmup=options.warmup,
                    seconds=options.seconds,
                    against=None if second is None else second.name,
                    against_artifact=None if second is None else second.ref,
                    allow_fallback=options.allow_fallback,
                    max_attempts=options.max_attempts,
                    state="queued",
                    attempt=0,
                    beat=0,
                    submitted=now,
                    error_is_users=False,
                )
                .on_conflict_do_nothing(index_elements=["id"])
                .returning(*_jobs.c)
            ).one_or_none()
            row = made or connection.execute(select(_jobs).where(_jobs.c.id == job_id)).one()
        if made is None and (row.demand, row.artifact) != (wanted, first.ref):
            raise UserError(f"{job_id} is the id of another job already; give another")
        self._known_demands.add(wanted)
        return _job(row)

    @cached_property
    def artifacts(self) -> PrunableArtifacts:
        """The models, and the raw files of the results.

        Raises:
            UserError: They have no place that all who share the lab can reach.
        """
        if self._artifacts_place is not None:
            return open_artifacts(self._artifacts_place)
        if not self._database.is_sqlite:
            raise UserError(
                f"{self.where}: others share this lab, and it does not say where its models and "
                "raw files are; give --artifacts, or set CORALLINE_ARTIFACTS: a folder that all "
                "have mounted, or s3://bucket/prefix"
            )
        return open_artifacts(str(self.folder / "artifacts"))

    def jobs(
        self,
        ids: Collection[str] | None = None,
        state: State | None = None,
        group: str | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        newest: bool = False,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[Job]:
        """The jobs in the order of their submission.

        Args:
            labels: Only those that have all of these.
            newest: The other way round.
            limit: No more than these.
            after: Only those that follow this one in the order.
        """
        self.sweep()
        number = _jobs.c.number
        query = select(_jobs).order_by(number.desc() if newest else number).limit(limit)
        if after is not None:
            last = select(number).where(_jobs.c.id == after).scalar_subquery()
            query = query.where(number < last if newest else number > last)
        if ids is not None:
            query = query.where(_jobs.c.id.in_(ids))
        if state is not None:
            query = query.where(_jobs.c.state == state)
        if group is not None:
            query = query.where(_jobs.c.batch == group)
        for name, value in (labels or {}).items():
            query = query.where(_jobs.c.labels[name].as_string() == value)
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(query)]

    def label(self, job_id: str, labels: Mapping[str, str]) -> Job:
        """Add labels to a job, or change them.

        Raises:
            UserError: There is no such job.
        """
        job = self.job(job_id)
        with self._database.write() as connection:
            chosen = _jobs.c.id == job.id
            kept = connection.execute(select(_jobs.c.labels).where(chosen).with_for_update())
            row = connection.execute(
                update(_jobs)
                .where(chosen)
                .values(labels={**kept.scalar_one(), **labels})
                .returning(*_jobs.c)
            )
            return _job(row.one())

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
        with self._database.read() as connection:
            data = connection.execute(query).scalar_one_or_none()
        if data is None:
            raise UserError(f"job {job_id!r} is {job.state} and has no measurement")
        found = json.loads(data)
        if found["schema"] == COMPARISON:
            return Comparison.from_json(found)
        return Measurement.from_json(found)

    def files(self, job_id: str) -> Files:
        """The files that the result of a job comes with; none when it has none.

        Raises:
            UserError: There is no such job.
        """
        self.job(job_id)
        mine = _jobs.c.id == job_id
        with self._database.read() as connection:
            lacks = connection.execute(select(_measurements.c.not_stored).join(_jobs).where(mine))
            rows = connection.execute(select(_files).join(_jobs).where(mine).order_by("name"))
            kept = {row.name: File(row.ref, row.size_bytes) for row in rows}
            return Files(kept, lacks.scalar_one_or_none())

    def attach(self, job_id: str, attempt: int, files: Files) -> bool:
        """Note the files of a result that were not stored when it was.

        Returns:
            Whether it is that attempt's result which lacked them.
        """
        job = select(_jobs.c.number).where(_jobs.c.id == job_id).scalar_subquery()
        with self._database.write() as connection:
            number = connection.execute(
                update(_measurements)
                .where(
                    _measurements.c.job == job,
                    _measurements.c.attempt == attempt,
                    _measurements.c.not_stored.is_not(None),
                )
                .values(not_stored=files.not_stored)
                .returning(_measurements.c.job)
            ).scalar_one_or_none()
            if number is not None:
                _insert_files(connection, number, files)
        return number is not None

    def artifacts_in_use(self, since: float) -> set[str]:
        """The artifacts of the jobs that wait, run, or ended at or after that time."""
        recent = _jobs.c.finished.is_(None) | (_jobs.c.finished >= since)
        recent |= _jobs.c.state.in_(("queued", "running"))
        with self._database.read() as connection:
            models = connection.execute(
                select(_jobs.c.artifact, _jobs.c.against_artifact).where(recent)
            ).all()
            files = connection.execute(select(_files.c.ref).join(_jobs).where(recent)).all()
        return {ref for row in (*models, *files) for ref in row if ref is not None}

    def prune(self, older_than_s: float, *, dry_run: bool = False) -> Pruned:
        """Delete artifacts that are older, and that no job needs which waits, runs or ended since.

        The measurements stay in the database, with all their samples.

        Raises:
            UserError: So young a file may be one that a job is about to need.
            DeviceError: The database or the artifact store does not answer.
        """
        return prune(self, older_than_s, dry_run=dry_run)

    def lock(self, resource: str, *, wait: bool = False) -> AbstractContextManager[Lock | None]:
        """Hold a resource of this machine; None when another does and `wait` is false."""
        return self._database.locks.hold(resource, wait=wait)

    def sweep(self) -> None:
        """Give up the queued jobs whose deadline has passed."""
        late = (_jobs.c.state == "queued") & (_jobs.c.deadline <= self._database.now())
        with self._database.read() as connection:
            if connection.execute(select(_jobs.c.number).where(late).limit(1)).first() is None:
                return
        with self._database.write() as connection:
            connection.execute(
                update(_jobs)
                .where(late)
                .values(
                    state="failed",
                    finished=self._database.now(),
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
        with self._database.read() as connection:
            found = [(due, demand) for demand, due in connection.execute(query) if due is not None]
        return [(Demand.of_text(demand), due) for due, demand in sorted(found)]

    def depth(self) -> list[tuple[Demand, int, float]]:
        """How many queued jobs ask for what, and when the oldest of them was submitted."""
        query = (
            select(_jobs.c.demand, func.count(), func.min(_jobs.c.submitted))
            .where(_jobs.c.state == "queued")
            .group_by(_jobs.c.demand)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [(Demand.of_text(demand), count, oldest) for demand, count, oldest in rows]

    def counts(self) -> dict[State, int]:
        """How many jobs are in which state; of none there is no word."""
        query = select(_jobs.c.state, func.count()).group_by(_jobs.c.state)
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def leases(self) -> list[Lease]:
        """The running jobs."""
        columns = (
            *(_jobs.c.id, _jobs.c.attempt, _jobs.c.beat, _jobs.c.demand, _jobs.c.batch),
            *(_jobs.c.board, _jobs.c.resource, _jobs.c.lock, _jobs.c.max_attempts),
        )
        with self._database.read() as connection:
            return [
                Lease(job, attempt, beat, Demand.of_text(demand), *rest)
                for job, attempt, beat, demand, *rest in connection.execute(
                    select(*columns).where(_jobs.c.state == "running")
                )
            ]

    def look(self, group: str | None = None) -> View:
        """All of the lab that a runner must know, once late jobs have been given up.

        Args:
            group: Whose queue.
        """
        self.sweep()
        return View(self.now(), self.health.known(), self.leases(), self.queue(group))

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
            runner: Who the caller is; no two have the same name. When it has the lease already,
                it is given that again.
            group: Only its jobs.
        """
        wanted = (
            (_jobs.c.state == "queued")
            & (_jobs.c.demand == demand.to_text())
            & or_(_jobs.c.deadline.is_(None), _jobs.c.deadline > self._database.now())
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
        with suppress(IntegrityError), self._database.write() as connection:
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
                    started=self._database.now(),
                    finished=None,
                    error=None,
                    done=None,
                    total=None,
                )
                .returning(*_jobs.c)
            ).one_or_none()
            if row is not None:
                return _job(row)
        # Nothing is queued, or the board is leased: by this very runner when an answer got lost.
        mine = {"board": board, "resource": resource, "lock": lock.name, "runner": runner}
        query = select(_jobs).filter_by(state="running", **mine)
        with self._database.read() as connection:
            leased = connection.execute(query).one_or_none()
        return None if leased is None else _job(leased)

    def beat(
        self, runner: str, progress: Mapping[str, tuple[int, int]] | None = None
    ) -> set[tuple[str, int]]:
        """Renew a runner's leases.

        Args:
            progress: Of its jobs, by id: the inferences done and to do.

        Returns:
            Job and attempt of those that it still has.
        """
        mine = (_jobs.c.state == "running") & (_jobs.c.runner == runner)
        with self._database.write() as connection:
            for job_id, (done, total) in (progress or {}).items():
                said = update(_jobs).where(mine, _jobs.c.id == job_id)
                connection.execute(said.values(done=done, total=total))
            renewed = update(_jobs).where(mine).values(beat=_jobs.c.beat + 1)
            rows = connection.execute(renewed.returning(_jobs.c.id, _jobs.c.attempt))
            return {(job, attempt) for job, attempt in rows}

    def expire(self, lease: Lease) -> bool:
        """End the lease of a runner that is gone: queue its job again, or give it up.

        Returns:
            Whether the lease was as it is given, and has been ended.
        """
        values: dict[str, Any] = {"state": "queued"}
        if lease.attempt >= lease.max_attempts:
            values = {
                "state": "failed",
                "finished": self._database.now(),
                "error": f"its runner ended {lease.attempt} times while it ran",
            }
        with self._database.write() as connection:
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

    def finish(
        self, job: Job, result: Measurement | Comparison, files: Files | None = None
    ) -> None:
        """Keep what a claimed job measured; it is `invalid` when another processor ran.

        Args:
            files: That the result comes with, raw samples among them; in the artifact store.

        Raises:
            DeviceError: The job's lease has ended, or the result has numbers that cannot be; it is
                refused. Or the database is not
                to be reached, which is retryable.
            UserError: The disk is full; what was kept before is intact, and the job will be
                found and run again.
        """
        try:
            data = json.dumps(result.to_json(), allow_nan=False)
        except (ValueError, ArithmeticError, LookupError, TypeError) as error:
            raise DeviceError(f"job {job.id}: what was measured is no result ({error!r})") from None
        ending: dict[str, Any] = {"state": "done"}
        if result.fell_back and not job.allow_fallback:
            ending = {"state": "invalid", "error": _fallback(job, result), "error_is_users": False}
        with self._database.write() as connection:
            number, is_new = self._end(connection, job, **ending)
            kept = select(_measurements.c.measurement).where(_measurements.c.job == number)
            if not is_new:
                if connection.execute(kept).scalar_one() != data:
                    raise _refused(job)
                return
            connection.execute(
                insert(_measurements).values(
                    job=number,
                    attempt=job.attempt,
                    measurement=data,
                    not_stored=files and files.not_stored,
                )
            )
            if files is not None:
                _insert_files(connection, number, files)

    def fail(self, job: Job, error: Exception) -> None:
        """Note why a claimed job failed; queue it again if that may help.

        Raises:
            DeviceError: As `finish`.
        """
        again = getattr(error, "retryable", False) and job.attempt < job.max_attempts
        with self._database.write() as connection:
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
        with self._database.write() as connection:
            self._end(
                connection,
                job,
                state="queued",
                max_attempts=_jobs.c.max_attempts + 1,
                error=" ".join(str(error).split()),
            )

    def rested_s(self, resource: str) -> float:
        """How long ago the last job ended that worked on a resource; infinite for never."""
        last = select(func.max(_jobs.c.finished)).where(_jobs.c.resource == resource)
        with self._database.read() as connection:
            rested = connection.execute(select(self._database.now() - last.scalar_subquery()))
            seconds = rested.scalar_one()
        return math.inf if seconds is None else max(float(seconds), 0.0)

    def now(self) -> float:
        """Seconds since 1970, of the one clock that all who use the lab share."""
        with self._database.read() as connection:
            return float(connection.execute(select(self._database.now())).scalar_one())

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
        with self._database.write() as connection:
            ended = connection.execute(
                update(_jobs)
                .where(
                    chosen,
                    _jobs.c.state.in_(("queued", "running")),
                )
                .values(state="cancelled", finished=self._database.now(), error=reason)
                .returning(*_jobs.c)
            ).all()
        return [_job(row) for row in sorted(ended, key=lambda row: row.number)]

    def _artifact(self, model: Path | Model) -> Model:
        if isinstance(model, Path):
            with packed(model) as stream:
                return Model(str(model.resolve()), self.artifacts.put(stream))
        if self.artifacts.size(model.ref) is None:
            raise UserError(f"{model.name}: {model.ref} is not in {self.artifacts.where}")
        return model

    def _end(self, connection: Connection, job: Job, **values: Any) -> tuple[int, bool]:
        """End an attempt. Returns the job's number, and whether this was not noted before: an
        answer may have got lost."""
        attempt = (_jobs.c.id == job.id) & (_jobs.c.attempt == job.attempt)
        row = connection.execute(
            update(_jobs)
            .where(attempt, _jobs.c.state == "running")
            .values(finished=self._database.now(), **values)
            .returning(_jobs.c.number)
        ).one_or_none()
        if row is not None:
            return row.number, True
        same = (
            select(_jobs.c.number)
            .where(attempt)
            .filter_by(state=values["state"], error=values.get("error"))
        )
        number = connection.execute(same).scalar_one_or_none()
        if number is None:
            raise _refused(job)
        return number, False

    def _know(self, connection: Connection, demand: str) -> None:
        if demand in self._known_demands:
            return
        # Two may say it first at once: both dialects then let one of them.
        connection.execute(
            text("INSERT INTO demands (demand) VALUES (:demand) ON CONFLICT DO NOTHING"),
            {"demand": demand},
        )


def _refused(job: Job) -> DeviceError:
    return DeviceError(
        f"job {job.id}: attempt {job.attempt} is no longer the one that counts; its result is "
        "refused"
    )


def _fallback(job: Job, result: Measurement | Comparison) -> str:
    parts = (result.a, result.b) if isinstance(result, Comparison) else (result,)
    found = next(part for part in parts if part.fell_back)
    return (
        f"{found.board}: {found.processor_asked} was asked for and {found.processor_ran} ran "
        f"({found.processor}); use --allow-fallback if that is wanted; `coralline lab show "
        f"{job.id}` has what was measured"
    )


def _insert_files(connection: Connection, job: int, files: Files) -> None:
    rows = [
        {"job": job, "name": name, "ref": file.ref, "size_bytes": file.size_bytes}
        for name, file in files.kept.items()
    ]
    if rows:
        connection.execute(insert(_files), rows)


def _job(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        demand=Demand.of_text(row.demand),
        priority=row.priority,
        deadline_at=iso(row.deadline),
        group=row.batch,
        labels=row.labels,
        path=row.path,
        artifact=row.artifact,
        repetitions=row.repetitions,
        warmup=row.warmup,
        seconds=row.seconds,
        against=row.against,
        against_artifact=row.against_artifact,
        allow_fallback=row.allow_fallback,
        max_attempts=row.max_attempts,
        state=row.state,
        attempt=row.attempt,
        board=row.board,
        runner=row.runner,
        submitted_at=iso(row.submitted) or "",
        started_at=iso(row.started),
        finished_at=iso(row.finished),
        error=row.error,
        error_is_users=row.error_is_users,
        progress=None if row.total is None else (row.done, row.total),
    )
