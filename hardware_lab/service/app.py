"""The lab as a web application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from coralline import __version__
from coralline.errors import CorallineError, DeviceError
from hardware_lab.artifacts import MissingError
from hardware_lab.database import FullError
from hardware_lab.service import bodies, files, reading, running, writing
from hardware_lab.service.gate import ANYONE, Gate, router_for
from hardware_lab.service.observing import Metrics, Observed
from hardware_lab.service.pages import pages
from hardware_lab.store import Store

THREADS = 12
"""So many requests work on the database at once; the others wait for their turn."""
RETRY_S = 1
"""When to try again what the lab could not do."""


@dataclass(frozen=True)
class Settings:
    """How a service is run.

    Attributes:
        trusts_all: See `Gate`.
        rate_per_s, burst: See `Gate`.
    """

    trusts_all: bool = False
    rate_per_s: float = 200.0
    burst: float = 400.0


def create_app(store: Store, settings: Settings) -> FastAPI:
    """The service of one lab."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.uploads = CapacityLimiter(files.UPLOADS)
        app.state.results = CapacityLimiter(running.RESULTS_AT_ONCE)
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield

    app = FastAPI(
        title="Coralline device lab",
        version=__version__,
        description=__doc__,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={
            code: {"model": bodies.Error}
            for code in (400, 401, 403, 404, 408, 409, 413, 422, 429, 503, 507)
        },
    )
    app.state.store = store
    app.state.gate = Gate(
        store.tokens,
        trusts_all=settings.trusts_all,
        rate_per_s=settings.rate_per_s,
        burst=settings.burst,
    )
    for router in (
        reading.router,
        writing.submitting,
        writing.administering,
        running.router,
        running.ending,
        files.reading,
        files.writing,
    ):
        app.include_router(router)
    metrics = app.state.metrics = Metrics(store)
    app.add_middleware(Observed, metrics=metrics)

    scraping = router_for(ANYONE)

    @scraping.get("/metrics", include_in_schema=False)
    def prometheus() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    app.include_router(scraping)
    app.state.pages, routers = pages(store, app.state.gate)
    for router in routers:
        app.include_router(router)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        """The process answers, even while all threads wait for a database that does not."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz", include_in_schema=False)
    def readyz() -> Response:
        """And so does the database."""
        store.now()
        return PlainTextResponse("ok\n")

    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(CorallineError, _refused)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _broken)
    return app


def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    kind: bodies.Kind = "device" if error.status_code >= 500 else "user"
    retryable = error.status_code in (408, 429, 503)
    headers = dict(error.headers or {})
    return _answer(request, error.status_code, str(error.detail), kind, retryable, headers)


def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    said = "; ".join(
        f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5]
    )
    return _answer(request, 422, said, "user", False, {})


def _refused(request: Request, error: CorallineError) -> JSONResponse:
    if isinstance(error, FullError):
        return _answer(request, 507, str(error), "device", True, {"Retry-After": "10"})
    if isinstance(error, MissingError):
        return _answer(request, 404, str(error), "user", False, {})
    if not isinstance(error, DeviceError):
        return _answer(request, 400, str(error), "user", False, {})
    if error.retryable:
        return _answer(request, 503, str(error), "device", True, {"Retry-After": str(RETRY_S)})
    return _answer(request, 409, str(error), "device", False, {})


def _broken(request: Request, error: Exception) -> JSONResponse:
    """What nobody has thought of; the log says more."""
    said = f"the service failed ({type(error).__name__}); its log says more"
    return _answer(request, 500, said, "device", False, {})


def _answer(
    request: Request,
    status: int,
    said: str,
    kind: bodies.Kind,
    retryable: bool,
    headers: dict[str, str],
) -> JSONResponse:
    error = bodies.Error(
        error=said, kind=kind, retryable=retryable, request_id=request.state.request_id
    )
    return JSONResponse(error.model_dump(), status, headers)
