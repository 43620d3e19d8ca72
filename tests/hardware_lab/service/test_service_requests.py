"""Requests that make no sense, the document that says what does, and what can be scraped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_board import measurement
from service_server import serving

from coralline.runtime.measurement import Measurement
from hardware_lab.inventory import Demand
from hardware_lab.jobs import JobOptions
from hardware_lab.lab import open_lab
from hardware_lab.locks import Lock
from hardware_lab.store import Store

INT8 = Path(__file__).parents[2] / "data" / "small_int8.tflite"
BOARD = Demand("b0")
SUBMISSION = {
    "model": {"name": "m", "ref": "sha256:" + "0" * 64},
    "demand": {"board": "b0"},
    "repetitions": 1,
    "warmup": 0,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("service") / "lab")


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[httpx.Client]:
    with serving(store) as url, httpx.Client(base_url=url, timeout=60.0) as client:
        yield client


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/api/v1/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_document(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        where = f"{method} {path}"
        assert operation["description"], where
        assert operation["security"], where
        # What FastAPI would say of an error is not what is said here.
        for status in ("400", "401", "403", "413", "422", "429", "503"):
            reference = operation["responses"][status]["content"]["application/json"]["schema"]
            assert reference == {"$ref": "#/components/schemas/Error"}, where
        if method in ("post", "put"):
            assert operation.get("requestBody") or "looks" in path, where
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    assert schemas["Submission"]["example"]["repetitions"]
    undescribed = [name for name, schema in schemas.items() if not schema.get("description")]
    assert not undescribed


def test_a_submission_as_the_document_has_it(
    client: httpx.Client, document: dict[str, Any], store: Store
) -> None:
    example = document["components"]["schemas"]["Submission"]["example"]
    example["model"]["ref"] = store.artifacts.put(INT8)
    made = client.post("/api/v1/jobs", json=example)
    assert made.status_code == 201, made.text
    assert set(made.json()) == set(document["components"]["schemas"]["JobDocument"]["properties"])


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({}, 400, "is not in"),
        ({"repetitions": 0}, 422, "body.repetitions"),
        ({"repetitions": "many"}, 422, "body.repetitions"),
        ({"priority": 11}, 422, "body.priority"),
        ({"deadline_s": -1}, 422, "body.deadline_s"),
        ({"demand": {"board": "b0", "needs": {"": 1}}}, 422, "body.demand.needs"),
        ({"demand": {"board": "b0", "needs": {"a": 0}}}, 422, "body.demand.needs"),
        ({"model": {"name": "m", "ref": "../../etc/passwd"}}, 422, "body.model.ref"),
        ({"labels": {"a": 1}}, 422, "body.labels"),
        ({"group": "x" * 201}, 422, "body.group"),
        ({"group": "\ud800"}, 422, "body"),
        ({"group": "a\x00b"}, 422, "body.group"),
        ({"path": "/etc/passwd"}, 422, "body.path"),
    ],
)
def test_submissions_that_make_no_sense(
    client: httpx.Client, change: dict[str, Any], status: int, said: str
) -> None:
    answer = client.post(
        "/api/v1/jobs",
        content=json.dumps({**SUBMISSION, **change}),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"] and answer.json()["kind"] == "user"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_form_of_another_site_is_no_request(client: httpx.Client, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    body = json.dumps({"group": "nightly"})
    assert client.post("/api/v1/cancellations", content=body, headers=headers).status_code == 422


def test_what_no_database_takes(client: httpx.Client) -> None:
    for at in ("/api/v1/jobs/a%00b", "/api/v1/jobs?group=%00", "/api/v1/health/a%00/log"):
        answer = client.get(at)
        assert answer.status_code == 400 and "NUL" in answer.json()["error"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_request_breaks_the_service(
    client: httpx.Client, document: dict[str, Any], data: st.DataObject
) -> None:
    path, method, operation = data.draw(st.sampled_from(operations(document)))
    known = [
        name
        for name, schema in document["components"]["schemas"].items()
        if "properties" in schema and data.draw(st.booleans())
    ]
    fields = [f for name in known for f in document["components"]["schemas"][name]["properties"]]
    bodies = JSON | st.dictionaries(st.sampled_from(fields or ["a"]), JSON, max_size=6)
    segment = st.text(min_size=1, max_size=8).filter(lambda text: text not in (".", ".."))
    at = re.sub(r"\{.*?\}", lambda _: quote(data.draw(segment), safe=""), path)
    query = {
        parameter["name"]: data.draw(st.text(max_size=8) | st.integers())
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "query" and data.draw(st.booleans())
    }
    answer = client.request(
        method,
        at,
        params=query,
        content=json.dumps(data.draw(bodies)) if data.draw(st.booleans()) else b"\xff{",
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code < 500, (answer.status_code, answer.text)


@pytest.mark.parametrize(
    "change",
    [
        {"latency_ms": "abc"},
        {"latency_ms": [1, None]},
        {"latency_ms": [1.0, float("nan")]},
        {"stage_busy_ms": [[1.0], [2.0, 3.0]]},
        {"wall_s": 0},
        {"wall_s": "x"},
        {"environment": []},
        {"schema": "coralline.measurement/v0"},
        {"id": None},
    ],
)
def test_results_that_are_none(client: httpx.Client, store: Store, change: dict[str, Any]) -> None:
    store.cancel([job.id for job in store.jobs() if job.state in ("queued", "running")])
    job = store.submit(INT8, BOARD, JobOptions(repetitions=1, warmup=0))
    claimed = store.claim(BOARD, "b0", "on-b0", Lock(-1, "here"), "r")
    assert claimed is not None
    at = f"/api/v1/jobs/{job.id}/attempts/1/result"
    good = measurement(id=job.id).to_json()
    for body in ({"result": {**good, **change}}, {"result": good, "files": {"kept": 1}}, {}, []):
        answer = client.put(at, content=json.dumps(body))
        assert answer.status_code == 409, answer.text
        assert job.id in answer.json()["error"]
    assert store.job(job.id).state == "running"
    assert client.put(at, content=json.dumps({"result": good})).status_code == 204
    assert isinstance(store.result(job.id), Measurement)


def test_metrics(client: httpx.Client, store: Store) -> None:
    store.cancel([job.id for job in store.jobs() if job.state in ("queued", "running")])
    lab = open_lab(str(client.base_url))
    for demand in (Demand("b0"), Demand(None, {"edgetpu": 2}), Demand(None, {"edgetpu": 2})):
        store.submit(INT8, demand, JobOptions(repetitions=1, warmup=0))
    claimed = lab.claim(Demand("b0"), "b0", "on-b0", Lock(-1, "here"), "r")
    assert claimed is not None
    lab.finish(claimed, measurement(id=claimed.id))
    lab.health.failed("b0", "no answer")
    text = client.get("/metrics").text
    values = dict(re.findall(r"^([a-z_]+(?:{.*?})?) (\S+)$", text, re.M))
    assert values['coralline_jobs{state="queued"}'] == "2.0"
    assert values['coralline_queue_depth{demand="any with edgetpu 2"}'] == "2.0"
    assert float(values['coralline_queue_oldest_age_seconds{demand="any with edgetpu 2"}']) >= 0
    assert values["coralline_leases"] == "0.0"
    assert values['coralline_boards{health="looping"}'] == "1.0"
    assert float(values['coralline_job_duration_seconds_count{board="b0",state="done"}']) >= 1
    assert float(values["process_resident_memory_bytes"]) > 0
    route = 'method="POST",route="/api/v1/claims"'
    assert f"coralline_request_duration_seconds_count{{{route}}}" in values
    assert f'coralline_requests_total{{{route},status="200"}}' in values


def test_it_is_ready_only_with_its_database(
    client: httpx.Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get("/readyz").status_code == 200

    def gone() -> float:
        from coralline.errors import DeviceError

        raise DeviceError("postgresql://db/lab: does not answer", retryable=True)

    monkeypatch.setattr(store, "now", gone)
    answer = client.get("/readyz")
    assert answer.status_code == 503 and answer.headers["Retry-After"]
    assert client.get("/healthz").status_code == 200
