"""What every token may ask for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated

from fastapi import HTTPException, Query, Request
from fastapi.responses import JSONResponse

from coralline.errors import UserError
from hardware_lab.jobs import Job
from hardware_lab.service import bodies
from hardware_lab.service.gate import ANYONE, router_for
from hardware_lab.store import Store

router = router_for(ANYONE, prefix="/api/v1", tags=["reading"])


def store_of(request: Request) -> Store:
    """The lab that a request is about."""
    store: Store = request.app.state.store
    return store


def job_of(store: Store, job_id: str) -> Job:
    """A job by its id, or the answer 404."""
    found = store.jobs([job_id])
    if not found:
        raise HTTPException(
            404, f"job {job_id!r} is not in the lab; `coralline lab jobs` lists them"
        )
    return found[0]


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """Of `NAME=VALUE` texts."""
    labels = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UserError(f"label {text!r} must be of the form NAME=VALUE")
        labels[name] = value
    return labels


@router.get("/boards", response_model=bodies.Boards)
def boards(request: Request) -> JSONResponse:
    """The boards that runners have announced, with their health and what they work on."""
    store = store_of(request)
    health = store.health.known()
    jobs = {lease.board: lease.job for lease in store.leases()}
    return JSONResponse(
        {
            "boards": [
                {
                    **announced.to_json(),
                    "health": asdict(health[announced.board.name])
                    if announced.board.name in health
                    else None,
                    "job": jobs.get(announced.board.name),
                }
                for announced in store.boards.known()
            ]
        }
    )


@router.get("/health", response_model=bodies.Healths)
def health(request: Request) -> JSONResponse:
    """What the lab thinks of the boards that it has used."""
    known = store_of(request).health.known()
    return JSONResponse({"boards": [asdict(one) for one in known.values()]})


@router.get("/health/{board}/log", response_model=bodies.HealthLog)
def health_log(board: str, request: Request) -> JSONResponse:
    """The states that a board has been in, the first first, with their causes."""
    return JSONResponse({"log": store_of(request).health.log(board)})


@router.get("/jobs", response_model=bodies.Jobs)
def jobs(
    request: Request,
    id: Annotated[list[str] | None, Query(description="Only these; may be repeated.")] = None,
    state: Annotated[bodies.StateFilter | None, Query()] = None,
    group: Annotated[str | None, Query(description="Only of this group.")] = None,
    label: Annotated[
        tuple[str, ...], Query(description="Only with NAME=VALUE; may be repeated.")
    ] = (),
    newest: Annotated[bool, Query(description="The newest first, not the oldest.")] = False,
    limit: Annotated[int, Query(ge=1, le=bodies.MOST_PAGE)] = 100,
    after: Annotated[str | None, Query(description="The `next` of the answer before.")] = None,
) -> JSONResponse:
    """Jobs in the order of their submission, some at a time."""
    found = store_of(request).jobs(
        id,
        state=state,
        group=group,
        labels=parse_labels(label),
        newest=newest,
        limit=limit + 1,
        after=after,
    )
    following = found[limit - 1].id if len(found) > limit else None
    return JSONResponse({"jobs": [job.to_json() for job in found[:limit]], "next": following})


@router.get("/jobs/{job_id}", response_model=bodies.JobDocument)
def job(job_id: str, request: Request) -> JSONResponse:
    """One job."""
    return JSONResponse(job_of(store_of(request), job_id).to_json())


@router.get("/jobs/{job_id}/result")
def result(job_id: str, request: Request) -> JSONResponse:
    """What a job measured: a `coralline.measurement/v1` or `coralline.comparison/v1` object.

    409 when it has not measured.
    """
    store = store_of(request)
    job_of(store, job_id)
    try:
        return JSONResponse(store.result(job_id).to_json())
    except UserError as error:
        raise HTTPException(409, str(error)) from None


@router.get("/jobs/{job_id}/files", response_model=bodies.ResultFiles)
def files(job_id: str, request: Request) -> JSONResponse:
    """The artifacts that the result of a job comes with: raw samples, power traces."""
    store = store_of(request)
    job_of(store, job_id)
    return JSONResponse(store.files(job_id).to_json())


@router.post("/looks", response_model=bodies.ViewDocument)
def look(request: Request, group: Annotated[str | None, Query()] = None) -> JSONResponse:
    """All that a runner must know before it claims a job, and who waits for one; late jobs are
    given up first."""
    view = store_of(request).look(group)
    return JSONResponse(
        {
            "now": view.now,
            "health": [asdict(health) for health in view.health.values()],
            "leases": [asdict(lease) for lease in view.leases],
            "queue": [{**asdict(demand), "due": due} for demand, due in view.queue],
        }
    )


@router.get("/queue", response_model=bodies.Queue)
def queue(request: Request, group: str | None = None) -> JSONResponse:
    """What queued jobs ask for, the first to be served first."""
    found = store_of(request).queue(group)
    return JSONResponse({"queue": [{**asdict(demand), "due": due} for demand, due in found]})


@router.get("/leases", response_model=bodies.Leases)
def leases(request: Request) -> JSONResponse:
    """The running jobs."""
    return JSONResponse({"leases": [asdict(lease) for lease in store_of(request).leases()]})
