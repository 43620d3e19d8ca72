"""What submitters and administrators ask for."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Annotated

from fastapi import Header, Request
from fastapi.responses import JSONResponse

from hardware_lab.service import bodies
from hardware_lab.service.gate import ADMINS, SUBMITTERS, Caller, router_for
from hardware_lab.service.reading import job_of, store_of

submitting = router_for(SUBMITTERS, prefix="/api/v1", tags=["submitting"])
administering = router_for(ADMINS, prefix="/api/v1", tags=["administering"])


@submitting.post("/jobs", status_code=201, response_model=bodies.JobDocument)
def submit(
    wanted: bodies.Submission,
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=8,
            max_length=128,
            description="The same key of the same token makes no second job: a request whose "
            "answer got lost can be sent again.",
        ),
    ] = None,
) -> JSONResponse:
    """Queue a measurement of a model that has been put as an artifact."""
    caller: Caller = request.state.caller
    job_id = None
    if idempotency_key is not None:
        job_id = hashlib.sha256(f"{caller.name} {idempotency_key}".encode()).hexdigest()[:16]
    job = store_of(request).submit(
        wanted.model.model(),
        wanted.demand.demand(),
        wanted,
        against=None if wanted.against is None else wanted.against.model(),
        job_id=job_id,
    )
    return JSONResponse(job.to_json(), 201)


@submitting.post("/jobs/{job_id}/labels", response_model=bodies.JobDocument)
def label(job_id: str, wanted: bodies.Labels, request: Request) -> JSONResponse:
    """Add labels to a job, or change them."""
    store = store_of(request)
    job_of(store, job_id)
    return JSONResponse(store.label(job_id, wanted.labels).to_json())


@submitting.post("/cancellations", response_model=bodies.Ended)
def cancel(wanted: bodies.Cancellation, request: Request) -> JSONResponse:
    """End jobs that are queued or running; boards that work on them are left in seconds."""
    ended = store_of(request).cancel(wanted.ids, wanted.group, wanted.reason)
    return JSONResponse({"jobs": [job.to_json() for job in ended]})


@administering.put("/health/{board}", response_model=bodies.HealthDocument)
def set_health(board: str, said: bodies.Say, request: Request) -> JSONResponse:
    """Say what is thought of a board; it gets no jobs until that is `unknown`."""
    store = store_of(request)
    store.health.set(board, said.state, said.why)
    return JSONResponse(asdict(store.health.known()[board]))


@administering.post("/prunings", response_model=bodies.PrunedDocument)
def prune(wanted: bodies.Pruning, request: Request) -> JSONResponse:
    """Delete old models and raw files that no job needs which waits, runs or ended since."""
    done = store_of(request).prune(wanted.older_than_s, dry_run=wanted.dry_run)
    return JSONResponse(done.to_json())
