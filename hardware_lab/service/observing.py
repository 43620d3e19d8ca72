"""What the service lets be seen of itself: an id and a log line for each request, and metrics."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from urllib.parse import quote
from uuid import uuid4

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hardware_lab.database import HEALTHS, STATES
from hardware_lab.jobs import Job
from hardware_lab.store import Store

REQUEST_ID = "X-Request-ID"
ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
JOB_S = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600)
REQUEST_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

POLLS = ("/api/v1/looks", "/healthz", "/readyz", "/metrics")
"""Routes that idle runners and watchers ask every second; answers as they should be say nothing."""

log = logging.getLogger(__name__)


class Metrics:
    """What Prometheus is told of the lab and of this process."""

    def __init__(self, store: Store) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(_LabCollector(store))
        self.requests = Counter(
            "coralline_requests",
            "Requests that were answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self.latency = Histogram(
            "coralline_request_duration_seconds",
            "From the request's headers to the end of the answer.",
            ("method", "route"),
            buckets=REQUEST_S,
            registry=self._registry,
        )
        self._jobs = Histogram(
            "coralline_job_duration_seconds",
            "From the start of a job's last attempt to its end, of those that ended through here.",
            ("board", "state"),
            buckets=JOB_S,
            registry=self._registry,
        )

    def ended(self, job: Job, seconds: float) -> None:
        """Count a job that has ended."""
        self._jobs.labels(job.board or "", job.state).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' exposition format."""
        return generate_latest(self._registry)


class _LabCollector(Collector):
    """Asks the database when it is asked."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        now, counts = self._store.now(), self._store.counts()
        jobs = GaugeMetricFamily("coralline_jobs", "Jobs of the lab.", labels=("state",))
        for state in STATES:
            jobs.add_metric((state,), counts.get(state, 0))
        yield jobs
        depth = GaugeMetricFamily(
            "coralline_queue_depth", "Queued jobs by what they ask for.", labels=("demand",)
        )
        oldest = GaugeMetricFamily(
            "coralline_queue_oldest_age_seconds",
            "How long the oldest queued job has waited.",
            labels=("demand",),
        )
        for demand, count, submitted in self._store.depth():
            depth.add_metric((str(demand),), count)
            oldest.add_metric((str(demand),), max(0.0, now - submitted))
        yield depth
        yield oldest
        yield GaugeMetricFamily(
            "coralline_leases", "Boards that work on a job.", value=counts.get("running", 0)
        )
        known = [health.state for health in self._store.health.known().values()]
        boards = GaugeMetricFamily(
            "coralline_boards", "Boards that the lab has used, by health.", labels=("health",)
        )
        for health in HEALTHS:
            boards.add_metric((health,), known.count(health))
        yield boards
        seen = GaugeMetricFamily(
            "coralline_board_unseen_seconds",
            "Since a runner last said that it has the board.",
            labels=("board", "host"),
        )
        for one in self._store.boards.known():
            seen.add_metric((one.board.name, one.host), max(0.0, now - one.seen))
        yield seen


class Observed:
    """Gives each request an id, logs it and counts it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if ID.fullmatch(given) else uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = request_id
        begun, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            took_s = time.perf_counter() - begun
            # Of what has no route, a made-up path must not become a label.
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(scope["method"], route, status).inc()
            self._metrics.latency.labels(scope["method"], route).observe(took_s)
            caller = scope["state"].get("caller")
            quiet = route in POLLS and status < 400
            log.log(
                logging.DEBUG if quiet else logging.INFO,
                "%s %s %d",
                scope["method"],
                quote(scope["path"]),
                status,
                extra={
                    "request_id": request_id,
                    "ms": round(1000 * took_s, 1),
                    "client": (scope.get("client") or ("",))[0],
                    "token": caller.name if caller is not None else None,
                },
            )
