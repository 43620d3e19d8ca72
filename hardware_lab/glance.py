"""Which jobs a person looks at: a few of many, found without reading the others."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, or_, select

from hardware_lab.database import Database, State
from hardware_lab.database import jobs as _jobs

_waits = _jobs.c.state == "queued"
_has_ended = _jobs.c.state.not_in(("queued", "running"))


class Glance:
    """Ids; `Store.jobs` has the rest."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def queued(self, limit: int) -> list[str]:
        """The jobs that wait, the next first."""
        order = (_jobs.c.due, _jobs.c.number)
        return self._ids(select(_jobs.c.id).where(_waits).order_by(*order).limit(limit))

    def ahead(self, job_id: str) -> int:
        """How many jobs are before a queued one."""
        this = select(_jobs.c.due, _jobs.c.number).where(_jobs.c.id == job_id).subquery()
        before = or_(
            _jobs.c.due < this.c.due,
            (_jobs.c.due == this.c.due) & (_jobs.c.number < this.c.number),
        )
        query = select(func.count()).select_from(_jobs.join(this, before)).where(_waits)
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()

    def ended(self, limit: int) -> list[str]:
        """The jobs that have ended, the last first."""
        query = select(_jobs.c.id).where(_has_ended).order_by(_jobs.c.finished.desc())
        return self._ids(query.limit(limit))

    def chosen(
        self,
        *,
        state: State | None = None,
        board: str | None = None,
        group: str | None = None,
        label: tuple[str, str] | None = None,
        after: str | None = None,
        limit: int,
    ) -> list[str]:
        """The jobs that are like this, the newest first.

        Args:
            board: They run on it, or ran on it last.
            label: Name and value.
            after: Only those that follow this job.
        """
        query = select(_jobs.c.id).order_by(_jobs.c.number.desc()).limit(limit)
        if state is not None:
            query = query.where(_jobs.c.state == state)
        if board is not None:
            query = query.where(_jobs.c.board == board)
        if group is not None:
            query = query.where(_jobs.c.batch == group)
        if label is not None:
            query = query.where(_jobs.c.labels[label[0]].as_string() == label[1])
        if after is not None:
            last = select(_jobs.c.number).where(_jobs.c.id == after).scalar_subquery()
            query = query.where(_jobs.c.number < last)
        return self._ids(query)

    def labelled(self, name: str) -> list[str]:
        """All values that a label has."""
        value = _jobs.c.labels[name].as_string()
        query = select(value).where(value.is_not(None)).distinct().order_by(value)
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def ended_like(self, label: str, value: str, other: str) -> tuple[Any, ...]:
        """What changes when a job with this label ends, or one of them gets the other label."""
        labels = _jobs.c.labels
        query = select(
            func.count(), func.max(_jobs.c.finished), func.count(labels[other].as_string())
        ).where(_has_ended, labels[label].as_string() == value)
        with self._database.read() as connection:
            return tuple(connection.execute(query).one())

    def _ids(self, query: Select[Any]) -> list[str]:
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())
