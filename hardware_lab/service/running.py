"""What runners ask for. What a runner may still say of a lease that has ended is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from anyio import to_thread
from fastapi import Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import TypeAdapter

from coralline.errors import DeviceError, UserError
from coralline.runtime.measurement import SCHEMA as MEASUREMENT
from coralline.runtime.measurement import Measurement
from hardware_lab.announcements import BoardFacts
from hardware_lab.artifacts import Files
from hardware_lab.compare import SCHEMA as COMPARISON
from hardware_lab.compare import Comparison
from hardware_lab.jobs import Job, Lease
from hardware_lab.locks import Lock
from hardware_lab.service import bodies
from hardware_lab.service.gate import RUNNERS, router_for
from hardware_lab.service.observing import Metrics
from hardware_lab.service.reading import store_of
from hardware_lab.store import Store

MOST_RESULT_BYTES = 128 << 20
RESULTS_AT_ONCE = 4
"""So many are read at once; the others wait, and other requests do not wait for them."""
RESULTS: dict[str, TypeAdapter[Any]] = {
    MEASUREMENT: TypeAdapter(Measurement),
    COMPARISON: TypeAdapter(Comparison),
}
Attempt = Annotated[int, Path(ge=1, description="The fencing token of the claim.")]

router = router_for(RUNNERS, prefix="/api/v1", tags=["running"])
ending = router_for(RUNNERS, most_bytes=MOST_RESULT_BYTES, prefix="/api/v1", tags=["running"])


@router.post("/announcements", status_code=204)
def announce(said: bodies.Announcement, request: Request) -> Response:
    """Say which boards a runner has."""
    boards = [BoardFacts(**board.model_dump()) for board in said.boards]
    store_of(request).boards.announce(said.host, said.runner, boards)
    return Response(status_code=204)


@router.post("/claims", response_model=bodies.Claimed)
def claim(wanted: bodies.Claim, request: Request) -> JSONResponse:
    """Start the first queued job with this demand, unless the board is leased.

    The same claim again, of a runner that has the lease already, gives the same job: an answer
    may get lost.
    """
    lock = Lock(-1, wanted.lock)
    job = store_of(request).claim(
        wanted.demand.demand(), wanted.board, wanted.resource, lock, wanted.runner, wanted.group
    )
    return JSONResponse({"job": None if job is None else job.to_json()})


@router.post("/beats", response_model=bodies.Beaten)
def beat(said: bodies.Beat, request: Request) -> JSONResponse:
    """Renew a runner's leases, and say how far its jobs are."""
    progress = {one.job: (one.done, one.total) for one in said.progress}
    kept = store_of(request).beat(said.runner, progress)
    return JSONResponse({"leases": [{"job": job, "attempt": n} for job, n in sorted(kept)]})


@router.post("/expiries", response_model=bodies.Expired)
def expire(seen: bodies.LeaseDocument, request: Request) -> JSONResponse:
    """End the lease of a runner that is gone, unless it has beaten since."""
    values = {**seen.model_dump(), "demand": seen.demand.demand()}
    return JSONResponse({"ended": store_of(request).expire(Lease(**values))})


@ending.put(
    "/jobs/{job_id}/attempts/{attempt}/result",
    status_code=204,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": bodies.Result.model_json_schema()}},
        }
    },
)
async def finish(job_id: str, attempt: Attempt, request: Request) -> Response:
    """Keep what an attempt measured; the job is then `done`, or `invalid`.

    The same result again is taken as the first was: an answer may get lost.
    """
    # A million samples take seconds to parse, and nobody's heartbeat may wait for them.
    body = await request.body()
    await to_thread.run_sync(
        _finish, request, job_id, attempt, body, limiter=request.app.state.results
    )
    return Response(status_code=204)


def _finish(request: Request, job_id: str, attempt: int, body: bytes) -> None:
    store = store_of(request)
    job = _of_attempt(store, job_id, attempt)
    try:
        kept = bodies.Result.model_validate_json(body)
        files = None if kept.files is None else Files.from_json(kept.files)
        result = read_result(kept.result)
    except ValueError as error:
        said = " ".join(str(error).split())[:500]
        raise DeviceError(f"job {job_id}: what was measured is no result: {said}") from None
    store.finish(job, result, files)
    _count(request, job_id)


@router.put("/jobs/{job_id}/attempts/{attempt}/files", response_model=bodies.Attached)
def attach(
    job_id: str, attempt: Attempt, files: bodies.ResultFiles, request: Request
) -> JSONResponse:
    """Name the files that could not be stored when the result of the attempt was."""
    kept = Files.from_json(files.model_dump())
    return JSONResponse({"attached": store_of(request).attach(job_id, attempt, kept)})


def read_result(data: dict[str, Any]) -> Measurement | Comparison:
    """A result whose every field is of its type.

    Raises:
        ValueError: Says which is not.
    """
    schema = data.get("schema")
    if schema not in RESULTS:
        raise UserError(f"`schema` is {schema!r}; it must be {' or '.join(RESULTS)}")
    return RESULTS[schema].validate_python(data)


@router.post("/jobs/{job_id}/attempts/{attempt}/failure", status_code=204)
def fail(job_id: str, attempt: Attempt, said: bodies.Failure, request: Request) -> Response:
    """Say why an attempt failed; the job is queued again if that may help."""
    store = store_of(request)
    store.fail(_of_attempt(store, job_id, attempt), said.to_error())
    _count(request, job_id)
    return Response(status_code=204)


@router.post("/jobs/{job_id}/attempts/{attempt}/return", status_code=204)
def give_back(job_id: str, attempt: Attempt, said: bodies.Cause, request: Request) -> Response:
    """Queue a job again that its board could not even begin; the attempt does not count."""
    store = store_of(request)
    store.give_back(_of_attempt(store, job_id, attempt), DeviceError(said.cause))
    return Response(status_code=204)


@router.post("/health/{board}/checks", status_code=204)
def checked(board: str, said: bodies.Check, request: Request) -> Response:
    """Say what a board's check said; a board that fails too often gets no more jobs."""
    health = store_of(request).health
    (health.passed if said.passed else health.failed)(board, said.says)
    return Response(status_code=204)


@router.post("/health/{board}/distrust", status_code=204)
def distrust(board: str, said: bodies.Cause, request: Request) -> Response:
    """Have a board that failed a job checked before the next."""
    store_of(request).health.distrust(board, said.cause)
    return Response(status_code=204)


@router.post("/health/{board}/steps", response_model=bodies.MayBegin)
def begin_step(board: str, said: bodies.Step, request: Request) -> JSONResponse:
    """Note that a step to recover a board begins, unless it has begun too often."""
    health = store_of(request).health
    may_begin = health.begin_step(board, said.step, said.cause, said.most_a_day)
    return JSONResponse({"may_begin": may_begin})


@router.post("/health/{board}/notes", status_code=204)
def note(board: str, said: bodies.Cause, request: Request) -> Response:
    """Say what came of such a step."""
    store_of(request).health.note(board, said.cause)
    return Response(status_code=204)


@router.get("/resources/{resource}/rest", response_model=bodies.Rest)
def rest(resource: str, request: Request) -> JSONResponse:
    """How long ago the last job ended that worked on a resource."""
    seconds = store_of(request).rested_s(resource)
    return JSONResponse({"seconds": seconds if math.isfinite(seconds) else None})


def _of_attempt(store: Store, job_id: str, attempt: int) -> Job:
    found = store.jobs([job_id])
    if not found:
        raise DeviceError(f"job {job_id!r} is not in the lab; what is said of it is refused")
    return replace(found[0], attempt=attempt)


def _count(request: Request, job_id: str) -> None:
    """Note how long a job took, when it has ended."""
    job = store_of(request).job(job_id)
    if job.started_at is None or job.finished_at is None or job.state in ("queued", "running"):
        return
    begun, ended = (datetime.fromisoformat(at) for at in (job.started_at, job.finished_at))
    metrics: Metrics = request.app.state.metrics
    metrics.ended(job, (ended - begun).total_seconds())
