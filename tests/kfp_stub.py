"""A stub of the Kubeflow Pipelines API server that refuses what the API does not describe.

Paths, methods, query parameters and bodies are checked against kfp_server_api, which is generated
from KFP's published specification, and what they hold against conditions read from the source of
the server (the list in pipelines/acceptance.py). Nothing runs: a test sets the states of runs.
"""

from __future__ import annotations

import email
import inspect
import json
import re
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

Json = dict[str, Any]


class _Operation:
    """One operation of the API, read from its generated client."""

    def __init__(self, source: str) -> None:
        found = re.search(r"call_api\(\s*'([^']+)', '(\w+)'", source)
        assert found is not None
        self.template, self.method = found.groups()
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/:]+)", re.escape(self.template))
        self.path = re.compile(pattern)
        self.query = set(re.findall(r"query_params\.append\(\('([\w.]+)'", source))
        body = re.search(r"body_params = local_var_params\['(\w+)'\]", source)
        self.body = body and _BODIES.get(body[1])


_BODIES = {
    "run": "V2beta1Run",
    "recurring_run": "V2beta1RecurringRun",
    "experiment": "V2beta1Experiment",
}

OPERATIONS = [
    _Operation(inspect.getsource(member))
    for name, api in inspect.getmembers(kfp_server_api, inspect.isclass)
    if name.endswith("ServiceApi")
    for function, member in inspect.getmembers(api, inspect.isfunction)
    # Patches name parts of their body in the path; Coralline uses none.
    if function.endswith("_with_http_info") and "_update_pipeline" not in function
]


def check_model(value: Any, kind: str, at: str = "body") -> None:
    """Refuse a JSON value that is not of an API model."""
    if found := re.fullmatch(r"list\[(.+)\]", kind):
        assert isinstance(value, list), f"{at} is not a list"
        for item in value:
            check_model(item, found[1], f"{at}[]")
    elif found := re.fullmatch(r"dict\(str, (.+)\)", kind):
        assert isinstance(value, dict), f"{at} is not an object"
        for key, item in value.items():
            check_model(item, found[1], f"{at}.{key}")
    elif kind == "str":
        # int64 is written as a string or a number.
        assert isinstance(value, str) or type(value) is int, f"{at}: {value!r} is not a string"
    elif kind in ("bool", "int", "float"):
        assert type(value).__name__ == kind, f"{at}: {value!r} is not {kind}"
    elif kind != "object" and kind != "datetime":
        model = getattr(kfp_server_api, kind)
        if hasattr(model, "allowable_values"):
            assert value in model.allowable_values, f"{at}: {value!r}"
            return
        names = {json_name: name for name, json_name in model.attribute_map.items()}
        for key, item in value.items():
            assert key in names, f"{at} has {key}, which {kind} does not"
            check_model(item, model.openapi_types[names[key]], f"{at}.{key}")


class Stub:
    """A server on a free port of this machine.

    Attributes:
        requests: Method and path of each, in order.
        headers: Of the latest.
        faults: By "METHOD path" (a suffix of the path): what to do instead, one after the other:
            a status to answer, `hang`, `page` (a login page), or `lost` (do it, but answer 504).
        logs: By pod.
        gone_status: Of the answer about the log of another pod; older servers say 200.
        errors: What the API does not describe; a test asserts that there are none.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.headers: dict[str, str] = {}
        self.faults: dict[str, list[int | str]] = {}
        self.errors: list[str] = []
        self.kept: dict[str, list[Json]] = {
            kind: [] for kind in ("experiments", "pipelines", "versions", "runs", "recurringruns")
        }
        self.logs: dict[str, str] = {}
        self.gone_status = 500
        self._specs: dict[str, Json] = {}
        self.released = threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                stub._serve(self)

            do_GET = do_POST = do_DELETE = do  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        split = urlsplit(handler.path)
        request = f"{handler.command} {unquote(split.path)}"
        self.requests.append(request)
        self.headers = {key.lower(): value for key, value in handler.headers.items()}
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        faults = next((f for end, f in self.faults.items() if request.endswith(end)), [])
        fault = faults.pop(0) if faults else None
        if fault == "hang":
            self.released.wait(30)
            return
        if fault == "page":
            return _send(handler, 200, "text/html; charset=utf-8", b"<html>Log in to Your Account")
        if isinstance(fault, int):
            said = {"code": 14, "message": f"injected {fault}"}
            return _send(handler, fault, "application/json", json.dumps(said).encode())
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        status, kind, answer = self._answer(handler, unquote(split.path), query, body)
        if fault == "lost":
            status, answer = 504, b"upstream request timeout"
        _send(handler, status, kind, answer)

    def _answer(
        self, handler: BaseHTTPRequestHandler, path: str, query: dict[str, str], body: bytes
    ) -> tuple[int, str, bytes]:
        log = re.fullmatch(r"/apis/v1alpha1/runs/[^/]+/nodes/([^/]+)/log", path)
        if log and handler.command == "GET":
            if log[1] in self.logs:
                return 200, "text/plain", self.logs[log[1]].encode()
            gone = b'{"error_message":"pod not found","error_details":"pod not found"}'
            return self.gone_status, "application/json", gone
        try:
            operation, match = next(
                (operation, match)
                for operation in OPERATIONS
                if operation.method == handler.command and (match := operation.path.fullmatch(path))
            )
            assert set(query) <= operation.query, f"{path} knows no {set(query) - operation.query}"
            kind = self.headers.get("content-type", "")
            if kind.startswith("multipart/form-data"):
                given = _upload(kind, body)
            else:
                given = json.loads(body) if body else {}
                if given:
                    assert operation.body, f"{path} takes no body"
                    check_model(given, operation.body)
            answer = self._do(operation, match.groupdict(), query, given)
        except LookupError as error:
            return 404, "application/json", json.dumps({"message": str(error)}).encode()
        except StopIteration:
            self.errors.append(f"{handler.command} {path} is not in the API")
            return 501, "application/json", b"{}"
        except Exception as error:
            self.errors.append(f"{handler.command} {path}: {error!r}")
            return 400, "application/json", json.dumps({"message": str(error)}).encode()
        return 200, "application/json", json.dumps(answer).encode()

    def _do(self, operation: _Operation, path: Json, query: dict[str, str], body: Any) -> Json:
        where = f"{operation.method} {operation.template.removeprefix('/apis/v2beta1/')}"
        kept = self.kept
        match where:
            case "GET healthz":
                return {"multi_user": False}
            case "POST pipelines/upload":
                assert len(query["name"]) <= 127
                pipeline = self._keep("pipelines", "pipeline_id", display_name=query["name"])
                self._version(pipeline["pipeline_id"], query["name"], body)
                return pipeline
            case "POST pipelines/upload_version":
                _find(kept["pipelines"], "pipeline_id", query["pipelineid"])
                names = [v["display_name"] for v in kept["versions"]]
                assert query["name"] not in names, "already exists"
                assert len(query["name"]) <= 127
                return self._version(query["pipelineid"], query["name"], body)
            case "GET pipelines/{pipeline_id}/versions":
                there = [v for v in kept["versions"] if v["pipeline_id"] == path["pipeline_id"]]
                return _listed("pipeline_versions", there, query)
            case "POST experiments":
                assert 0 < len(body["display_name"]) <= 128
                return self._keep("experiments", "experiment_id", **body)
            case "POST runs":
                self._runnable(body)
                return self._keep("runs", "run_id", state="PENDING", **body)
            case "POST recurringruns":
                self._runnable(body)
                assert len(body["trigger"]["cron_schedule"]["cron"].split()) == 6
                assert 1 <= int(body["max_concurrency"]) <= 10
                return self._keep("recurringruns", "recurring_run_id", **body)
            case "DELETE recurringruns/{recurring_run_id}":
                there = kept["recurringruns"]
                there.remove(_find(there, "recurring_run_id", path["recurring_run_id"]))
                return {}
            case "GET runs/{run_id}":
                return _find(kept["runs"], "run_id", path["run_id"])
            case "POST runs/{run_id}:terminate":
                _find(kept["runs"], "run_id", path["run_id"])["state"] = "CANCELING"
                return {}
        found = re.fullmatch(r"GET (experiments|pipelines|runs|recurringruns)", where)
        assert found, f"the stub does not do {where}"
        kind = {"recurringruns": "recurringRuns"}.get(found[1], found[1])
        there = kept[found[1]]
        if "experiment_id" in query:
            there = [one for one in there if one["experiment_id"] == query["experiment_id"]]
        return _listed(kind, there, query)

    def _keep(self, kind: str, key: str, **values: Any) -> Json:
        made = {key: str(uuid.uuid4()), "created_at": _now(), **values}
        self.kept[kind].append(made)
        return made

    def _version(self, pipeline_id: str, name: str, spec: Json) -> Json:
        made = self._keep(
            "versions", "pipeline_version_id", pipeline_id=pipeline_id, display_name=name
        )
        self._specs[made["pipeline_version_id"]] = spec
        return made

    def _runnable(self, body: Json) -> None:
        _find(self.kept["experiments"], "experiment_id", body["experiment_id"])
        reference = body["pipeline_version_reference"]
        version = _find(
            self.kept["versions"], "pipeline_version_id", reference["pipeline_version_id"]
        )
        assert version["pipeline_id"] == reference["pipeline_id"]
        spec = self._specs[reference["pipeline_version_id"]]
        _compile(spec)
        _check_arguments(spec, body.get("runtime_config", {}).get("parameters", {}))


def _send(handler: BaseHTTPRequestHandler, status: int, kind: str, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _find(there: list[Json], key: str, value: str) -> Json:
    for one in there:
        if one[key] == value:
            return one
    raise LookupError(f"{key} {value} not found")


def _listed(kind: str, there: list[Json], query: dict[str, str]) -> Json:
    if "filter" in query:
        (predicate,) = json.loads(query["filter"])["predicates"]
        assert predicate["operation"] in (1, "EQUALS")
        there = [one for one in there if one[predicate["key"]] == predicate["stringValue"]]
    if query.get("sort_by", "").endswith(" desc"):
        there = there[::-1]
    start, size = int(query.get("page_token") or 0), int(query.get("page_size") or 20)
    rest = {"next_page_token": str(start + size)} if start + size < len(there) else {}
    return {kind: there[start : start + size], "total_size": len(there), **rest}


def _upload(kind: str, body: bytes) -> Json:
    message = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    (part,) = message.get_payload()
    assert part.get_param("name", header="Content-Disposition") == "uploadfile"
    assert part.get_filename().endswith((".yaml", ".yml"))
    data = part.get_payload(decode=True)
    assert len(data) <= 32 * 2**20, "File size too large"
    spec, *platforms = yaml.safe_load_all(data)
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    assert spec["schemaVersion"] == "2.1.0"
    assert re.search("[a-z0-9]", spec["pipelineInfo"]["name"])
    assert "root" in spec
    for platform in platforms:
        json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    return dict(spec)


def _compile(spec: Json) -> None:
    """What the server's compiler to Argo refuses, when a run is made."""
    executors = spec["deploymentSpec"]["executors"]
    assert all(one.keys() & {"container", "importer"} for one in executors.values())
    assert "root" not in spec["components"]
    for component in (spec["root"], *spec["components"].values()):
        assert component.keys() & {"dag", "executorLabel"}
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            assert task["componentRef"]["name"] in spec["components"]
            assert "artifactIterator" not in task, "artifact iterator not implemented yet"
            assert re.fullmatch("[a-zA-Z0-9][-a-zA-Z0-9]{0,127}", f"{name}-driver")


_KINDS: dict[str, tuple[type, ...]] = {
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "STRING": (str,),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}


def _check_arguments(spec: Json, given: Json) -> None:
    taken = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    assert given.keys() <= taken.keys(), f"unknown: {given.keys() - taken.keys()}"
    for name, parameter in taken.items():
        if name in given:
            assert type(given[name]) in _KINDS[parameter["parameterType"]], name
        else:
            assert parameter.get("isOptional") or "defaultValue" in parameter, name
