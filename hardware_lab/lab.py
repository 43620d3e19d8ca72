"""A lab, wherever it is: a database that is spoken to directly, or a service."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from coralline.runtime.measurement import Measurement
    from hardware_lab.announcements import Announced, BoardFacts
    from hardware_lab.artifacts import Artifacts, Files, Model
    from hardware_lab.compare import Comparison
    from hardware_lab.database import State
    from hardware_lab.health import Health
    from hardware_lab.inventory import Demand
    from hardware_lab.jobs import Job, JobOptions, Lease, View
    from hardware_lab.locks import Lock
    from hardware_lab.pruning import Pruned


class LabHealth(Protocol):
    """As `hardware_lab.health.HealthRecords`."""

    def known(self) -> dict[str, Health]: ...
    def log(self, board: str) -> list[dict[str, Any]]: ...
    def passed(self, board: str, says: str) -> None: ...
    def failed(self, board: str, cause: str) -> None: ...
    def distrust(self, board: str, cause: str) -> None: ...
    def set(self, board: str, state: str, why: str) -> None: ...
    def begin_step(self, board: str, step: str, cause: str, most_a_day: int) -> bool: ...
    def note(self, board: str, what: str) -> None: ...


class LabBoards(Protocol):
    """As `hardware_lab.announcements.BoardRecords`."""

    def announce(self, host: str, runner: str, boards: Sequence[BoardFacts]) -> None: ...
    def known(self) -> list[Announced]: ...


class Lab(Protocol):
    """As `hardware_lab.store.Store`, which says what each method does.

    Every method may raise a DeviceError that is retryable: the lab does not answer.
    """

    served: bool
    """Whether it is a service, whose runners do its jobs."""

    @property
    def where(self) -> str: ...
    @property
    def health(self) -> LabHealth: ...
    @property
    def boards(self) -> LabBoards: ...

    @property
    def folder(self) -> Path: ...
    @property
    def artifacts(self) -> Artifacts: ...

    def submit(
        self,
        model: Path | Model,
        demand: Demand,
        options: JobOptions,
        *,
        against: Path | Model | None = None,
    ) -> Job: ...
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
    ) -> list[Job]: ...
    def label(self, job_id: str, labels: Mapping[str, str]) -> Job: ...
    def job(self, job_id: str) -> Job: ...
    def measurement(self, job_id: str) -> Measurement: ...
    def result(self, job_id: str) -> Measurement | Comparison: ...
    def files(self, job_id: str) -> Files: ...
    def attach(self, job_id: str, attempt: int, files: Files) -> bool: ...
    def cancel(
        self, ids: Collection[str] = (), group: str | None = None, reason: str = "cancelled"
    ) -> list[Job]: ...
    def prune(self, older_than_s: float, *, dry_run: bool = False) -> Pruned: ...
    def lock(self, resource: str, *, wait: bool = False) -> AbstractContextManager[Lock | None]: ...
    def look(self, group: str | None = None) -> View: ...
    def queue(self, group: str | None = None) -> list[tuple[Demand, float]]: ...
    def leases(self) -> list[Lease]: ...
    def claim(
        self,
        demand: Demand,
        board: str,
        resource: str,
        lock: Lock,
        runner: str,
        group: str | None = None,
    ) -> Job | None: ...
    def beat(
        self, runner: str, progress: Mapping[str, tuple[int, int]] | None = None
    ) -> set[tuple[str, int]]: ...
    def expire(self, lease: Lease) -> bool: ...
    def rested_s(self, resource: str) -> float: ...
    def finish(
        self, job: Job, result: Measurement | Comparison, files: Files | None = None
    ) -> None: ...
    def fail(self, job: Job, error: Exception) -> None: ...
    def give_back(self, job: Job, error: Exception) -> None: ...


def open_lab(where: str | Path | None = None, artifacts: str | None = None) -> Lab:
    """A lab by its place.

    Args:
        where: A folder, made when absent; postgresql://user@host/database; or the http:// or
            https:// address of a service; else `default_lab`.
        artifacts: As `Store` takes it; a service knows where its own are.

    Raises:
        UserError: It is none, or cannot be used.
        DeviceError: The server does not answer.
    """
    from hardware_lab.store import Store, default_lab

    where = where or default_lab()
    if str(where).startswith(("http://", "https://")):
        from hardware_lab.service.client import RemoteLab

        return RemoteLab(str(where))
    return Store(where, artifacts)
