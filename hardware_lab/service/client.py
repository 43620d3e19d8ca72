"""A lab whose service is asked over HTTP. What is said of a job is fenced there, as in the store;
the locks are those of this machine, for they guard what stands beside it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote
from uuid import uuid4

from coralline.errors import DeviceError, UserError
from coralline.files import make_folder
from coralline.home import home_folder
from coralline.runtime.measurement import Measurement
from hardware_lab.announcements import Announced, BoardFacts
from hardware_lab.artifacts import CHUNK_BYTES, PREFIX, Files, Model, hex_of, reading, ref_of
from hardware_lab.artifacts.bundle import packed
from hardware_lab.compare import SCHEMA as COMPARISON
from hardware_lab.compare import Comparison
from hardware_lab.database import State
from hardware_lab.health import Health
from hardware_lab.inventory import Demand
from hardware_lab.jobs import Job, JobOptions, Lease, View
from hardware_lab.locks import Lock, Locks
from hardware_lab.pruning import Pruned
from hardware_lab.service.transport import STORING, Http

PAGE = 500
IDS = 200
"""Of jobs, in one request's address."""
ASK_BYTES = 64 << 10
"""What is smaller is sent sooner than asked for."""
MOST_WORDS = 4000
"""Characters of a cause or an error."""


class RemoteLab:
    """As `hardware_lab.store.Store`, which says what each method does.

    Args:
        url: Of the service: http:// or https://, host and port.

    Raises:
        UserError: It is no such address, or the file with the token or the certificates cannot
            be read.
    """

    served = True

    def __init__(self, url: str) -> None:
        self._http = Http(url)
        self.where = self._http.where
        self.folder = make_folder(home_folder() / "lab")
        self.health = _Health(self._http)
        self.boards = _Boards(self._http)
        self._locks = Locks(self.folder / "locks")

    @cached_property
    def artifacts(self) -> RemoteArtifacts:
        """As `Store.artifacts`."""
        return RemoteArtifacts(self._http)

    def submit(
        self,
        model: Path | Model,
        demand: Demand,
        options: JobOptions,
        *,
        against: Path | Model | None = None,
    ) -> Job:
        """As `Store.submit`."""
        wanted = {
            **asdict(options),
            "model": asdict(self._artifact(model)),
            "against": None if against is None else asdict(self._artifact(against)),
            "demand": asdict(demand),
        }
        key = {"Idempotency-Key": uuid4().hex}
        return Job.from_json(self._http.ask("POST", "/jobs", body=wanted, headers=key))

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
        """As `Store.jobs`."""
        query = {
            "state": state,
            "group": group,
            "label": [f"{name}={value}" for name, value in (labels or {}).items()],
            "newest": newest,
        }
        if ids is None:
            return list(self._pages(query, limit, after))
        found: list[Job] = []
        wanted = list(ids)
        for start in range(0, len(wanted), IDS):
            some = {**query, "id": wanted[start : start + IDS]}
            found += self._pages(some, limit, after)
        if len(wanted) > IDS:
            found.sort(key=lambda job: job.submitted_at, reverse=newest)
        return found[:limit]

    def _pages(
        self, query: Mapping[str, Any], limit: int | None, after: str | None
    ) -> Iterator[Job]:
        left = limit
        while left is None or left > 0:
            count = PAGE if left is None else min(PAGE, left)
            page = self._http.ask("GET", "/jobs", query={**query, "limit": count, "after": after})
            yield from map(Job.from_json, page["jobs"])
            after = page["next"]
            if after is None:
                return
            left = None if left is None else left - count

    def label(self, job_id: str, labels: Mapping[str, str]) -> Job:
        """As `Store.label`."""
        body = {"labels": dict(labels)}
        return Job.from_json(self._http.ask("POST", _path("jobs", job_id, "labels"), body=body))

    def job(self, job_id: str) -> Job:
        """As `Store.job`."""
        return Job.from_json(self._http.ask("GET", _path("jobs", job_id)))

    def measurement(self, job_id: str) -> Measurement:
        """As `Store.measurement`."""
        found = self.result(job_id)
        if isinstance(found, Comparison):
            raise UserError(f"job {job_id!r} is a comparison of two plans")
        return found

    def result(self, job_id: str) -> Measurement | Comparison:
        """As `Store.result`."""
        data = self._http.ask("GET", _path("jobs", job_id, "result"))
        if data["schema"] == COMPARISON:
            return Comparison.from_json(data)
        return Measurement.from_json(data)

    def files(self, job_id: str) -> Files:
        """As `Store.files`."""
        return Files.from_json(self._http.ask("GET", _path("jobs", job_id, "files")))

    def cancel(
        self, ids: Collection[str] = (), group: str | None = None, reason: str = "cancelled"
    ) -> list[Job]:
        """As `Store.cancel`."""
        wanted = {"ids": list(ids), "group": group, "reason": reason}
        ended = self._http.ask("POST", "/cancellations", body=wanted)
        return [Job.from_json(job) for job in ended["jobs"]]

    def prune(self, older_than_s: float, *, dry_run: bool = False) -> Pruned:
        """As `Store.prune`."""
        wanted = {"older_than_s": older_than_s, "dry_run": dry_run}
        done = self._http.ask("POST", "/prunings", body=wanted, timeout=STORING)
        return Pruned.from_json(done)

    def lock(self, resource: str, *, wait: bool = False) -> AbstractContextManager[Lock | None]:
        """As `Store.lock`."""
        return self._locks.hold(resource, wait=wait)

    def look(self, group: str | None = None) -> View:
        """As `Store.look`."""
        seen = self._http.ask("POST", "/looks", query={"group": group})
        return View(
            seen["now"],
            {one["board"]: Health(**one) for one in seen["health"]},
            [_lease(lease) for lease in seen["leases"]],
            _queue(seen["queue"]),
        )

    def queue(self, group: str | None = None) -> list[tuple[Demand, float]]:
        """As `Store.queue`."""
        return _queue(self._http.ask("GET", "/queue", query={"group": group})["queue"])

    def leases(self) -> list[Lease]:
        """As `Store.leases`."""
        return [_lease(lease) for lease in self._http.ask("GET", "/leases")["leases"]]

    def claim(
        self,
        demand: Demand,
        board: str,
        resource: str,
        lock: Lock,
        runner: str,
        group: str | None = None,
    ) -> Job | None:
        """As `Store.claim`."""
        wanted = {
            "demand": asdict(demand),
            "board": board,
            "resource": resource,
            "lock": lock.name,
            "runner": runner,
            "group": group,
        }
        job = self._http.ask("POST", "/claims", body=wanted)["job"]
        return None if job is None else Job.from_json(job)

    def beat(
        self, runner: str, progress: Mapping[str, tuple[int, int]] | None = None
    ) -> set[tuple[str, int]]:
        """As `Store.beat`."""
        told = [
            {"job": job, "done": done, "total": total}
            for job, (done, total) in (progress or {}).items()
        ]
        kept = self._http.ask("POST", "/beats", body={"runner": runner, "progress": told})
        return {(lease["job"], lease["attempt"]) for lease in kept["leases"]}

    def expire(self, lease: Lease) -> bool:
        """As `Store.expire`."""
        return bool(self._http.ask("POST", "/expiries", body=asdict(lease))["ended"])

    def rested_s(self, resource: str) -> float:
        """As `Store.rested_s`."""
        seconds = self._http.ask("GET", _path("resources", resource, "rest"))["seconds"]
        return math.inf if seconds is None else float(seconds)

    def finish(
        self, job: Job, result: Measurement | Comparison, files: Files | None = None
    ) -> None:
        """As `Store.finish`."""
        try:
            kept = {"result": result.to_json(), "files": files and files.to_json()}
            self._http.ask("PUT", _attempt(job, "result"), body=kept)
        except (ValueError, ArithmeticError, LookupError, TypeError) as error:
            raise DeviceError(f"job {job.id}: its result is refused: {error}") from None

    def attach(self, job_id: str, attempt: int, files: Files) -> bool:
        """As `Store.attach`."""
        where = _path("jobs", job_id, "attempts", str(attempt), "files")
        return bool(self._http.ask("PUT", where, body=files.to_json())["attached"])

    def fail(self, job: Job, error: Exception) -> None:
        """As `Store.fail`."""
        said = {
            "error": _words(error),
            "retryable": getattr(error, "retryable", False),
            "is_users": isinstance(error, ValueError),
        }
        self._http.ask("POST", _attempt(job, "failure"), body=said)

    def give_back(self, job: Job, error: Exception) -> None:
        """As `Store.give_back`."""
        self._http.ask("POST", _attempt(job, "return"), body={"cause": _words(error)})

    def _artifact(self, model: Path | Model) -> Model:
        if isinstance(model, Model):
            return model
        with packed(model) as stream:
            return Model(str(model.resolve()), self.artifacts.put(stream))


class RemoteArtifacts:
    """As `hardware_lab.artifacts.Artifacts`: those of a service."""

    def __init__(self, http: Http) -> None:
        self._http = http

    @property
    def where(self) -> str:
        """The address of the service."""
        return self._http.where

    def put(self, source: Path | BinaryIO) -> str:
        """As `Artifacts.put`."""
        with reading(source) as stream:
            if stream.seekable():
                return self._send(stream)
            with tempfile.TemporaryFile() as spooled:
                while chunk := stream.read(CHUNK_BYTES):
                    spooled.write(chunk)
                spooled.seek(0)
                return self._send(spooled)

    def renew(self, ref: str, size_bytes: int) -> bool:
        """As `Artifacts.renew`."""
        asked = {"size_bytes": size_bytes}
        return bool(self._http.ask("POST", f"{_artifact(ref)}/renewal", body=asked)["renewed"])

    def open(self, ref: str, start: int = 0) -> AbstractContextManager[BinaryIO]:
        """As `Artifacts.open`."""
        return self._http.stream(_artifact(ref), start)

    def size(self, ref: str) -> int | None:
        """As `Artifacts.size`."""
        return self._http.size(_artifact(ref))

    def _send(self, stream: BinaryIO) -> str:
        start = stream.tell()
        ref = ref_of(stream)
        size_bytes = stream.tell() - start
        if size_bytes > ASK_BYTES and self.renew(ref, size_bytes):
            return ref
        stream.seek(start)
        self._http.send(_artifact(ref), stream, size_bytes)
        return ref


class _Health:
    """As `hardware_lab.health.HealthRecords`."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def known(self) -> dict[str, Health]:
        found = self._http.ask("GET", "/health")["boards"]
        return {one["board"]: Health(**one) for one in found}

    def log(self, board: str) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = self._http.ask("GET", _path("health", board, "log"))["log"]
        return lines

    def passed(self, board: str, says: str) -> None:
        self._checked(board, True, says)

    def failed(self, board: str, cause: str) -> None:
        # A strike that is said twice would count twice.
        self._checked(board, False, cause, again=False)

    def distrust(self, board: str, cause: str) -> None:
        body = {"cause": cause[:MOST_WORDS]}
        self._http.ask("POST", _path("health", board, "distrust"), body=body)

    def begin_step(self, board: str, step: str, cause: str, most_a_day: int) -> bool:
        body = {"step": step, "cause": cause[:MOST_WORDS], "most_a_day": most_a_day}
        # As a strike, it would count twice.
        path = _path("health", board, "steps")
        return bool(self._http.ask("POST", path, body=body, again=False)["may_begin"])

    def note(self, board: str, what: str) -> None:
        body = {"cause": what[:MOST_WORDS]}
        self._http.ask("POST", _path("health", board, "notes"), body=body, again=False)

    def set(self, board: str, state: str, why: str) -> None:
        self._http.ask("PUT", _path("health", board), body={"state": state, "why": why})

    def _checked(self, board: str, passed: bool, says: str, *, again: bool = True) -> None:
        body = {"passed": passed, "says": says[:MOST_WORDS]}
        self._http.ask("POST", _path("health", board, "checks"), body=body, again=again)


class _Boards:
    """As `hardware_lab.announcements.BoardRecords`."""

    def __init__(self, http: Http) -> None:
        self._http = http

    def announce(self, host: str, runner: str, boards: Sequence[BoardFacts]) -> None:
        said = {"host": host, "runner": runner, "boards": [asdict(board) for board in boards]}
        self._http.ask("POST", "/announcements", body=said)

    def known(self) -> list[Announced]:
        return [Announced.from_json(one) for one in self._http.ask("GET", "/boards")["boards"]]


def _path(*parts: str) -> str:
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _artifact(ref: str) -> str:
    return f"/artifacts/{PREFIX}{hex_of(ref)}"


def _attempt(job: Job, what: str) -> str:
    return _path("jobs", job.id, "attempts", str(job.attempt), what)


def _lease(data: Mapping[str, Any]) -> Lease:
    return Lease(**{**data, "demand": Demand(**data["demand"])})


def _queue(data: Sequence[Mapping[str, Any]]) -> list[tuple[Demand, float]]:
    return [(Demand(waiting["board"], waiting["needs"]), waiting["due"]) for waiting in data]


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:MOST_WORDS]
