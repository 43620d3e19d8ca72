"""A Kubeflow Pipelines server: send pipelines to it, schedule them, follow their runs.

KFP's own client speaks with it. What it leaves out is added here: requests end after a time,
what may pass is tried again, and whatever is created is looked for first, so that trying again
creates nothing twice.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import kfp
import urllib3
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials
from kfp_server_api import ApiException

from coralline.errors import CorallineError, DeviceError, UserError, read_text
from pipelines import nodes

TOKEN = "KFP_TOKEN"
"""Environment variable with a bearer token."""

COOKIE = "KFP_COOKIE"
"""Environment variable with the session cookie of Dex, as NAME=VALUE."""

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where a pod finds the token of its service account for Kubeflow Pipelines
(https://www.kubeflow.org/docs/components/pipelines/user-guides/core-functions/connect-api/)."""

FINAL = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
"""States that a run stays in; KFP's own waiting knows no CANCELED and waits for ever."""

_TIMEOUT_S = (10, 60)
"""To connect and to answer; KFP's client would wait for ever."""

_PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Between tries, each stretched by up to a half at random."""

_MAY_PASS = (429, 502, 503, 504)

T = TypeVar("T")


@dataclass(frozen=True)
class Access:
    """How to reach a server.

    Attributes:
        host: URL.
        namespace: In a server of several users; empty for the server's own choice.
        token_file: Read anew for each request, so that a rotated token stays valid. Without it,
            `$KFP_TOKEN`, then the pod's service account token, then `$KFP_COOKIE`.
        ca_file: Certificates to trust instead of the usual.
    """

    host: str
    namespace: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None


class Server:
    """A Kubeflow Pipelines server.

    Args:
        access: How to reach it.
        on_retry: Told why and in how many seconds something is tried again.

    Raises:
        UserError: The address or a file of credentials is wrong.
        DeviceError: It does not answer, or refuses.
    """

    def __init__(
        self, access: Access, on_retry: Callable[[str, float], None] = lambda why, pause_s: None
    ) -> None:
        self.host = access.host.rstrip("/")
        if not self.host.startswith(("http://", "https://")):
            raise UserError(f"--host {access.host}: write it with http:// or https://")
        self._namespace = access.namespace or None
        self._on_retry = on_retry
        settings = _credentials(access)
        if access.ca_file is not None:
            read_text(access.ca_file, "certificates in PEM form")
            settings["ssl_ca_cert"] = str(access.ca_file)
        # A namespace other than "kubeflow" is taken as given; None has the server asked.
        self._client = self._trying(lambda: _Client(self.host, self._namespace, settings))

    def submit(
        self,
        package: Path,
        pipeline: str,
        arguments: Mapping[str, Any],
        *,
        experiment: str,
        service_account: str = "",
    ) -> dict[str, Any]:
        """Upload a compiled pipeline, unless the server has this version, and run it.

        Args:
            package: Compiled pipeline.
            pipeline: Its name on the server.
            arguments: The rest takes its defaults.
            experiment: To put the run in; made if it is not there.
            service_account: Of the cluster, for the run's pods; empty for the server's own.

        Returns:
            The run, as `run` gives it, with `version`.
        """
        pipeline_id, version_id, version = self._version(package, pipeline)
        experiment_id = self._experiment(experiment)
        stamp = time.strftime("%Y-%m-%d %H-%M-%S")
        name = f"{pipeline} {stamp} {os.urandom(3).hex()}"

        def start() -> Any:
            with self._quiet():
                listed = self._client.list_runs(
                    experiment_id=experiment_id, filter=_named(name), namespace=self._namespace
                )
                if listed.runs:
                    return listed.runs[0]
                return self._client.run_pipeline(
                    experiment_id,
                    name,
                    params=dict(arguments),
                    pipeline_id=pipeline_id,
                    version_id=version_id,
                    service_account=service_account or None,
                )

        return {**self._run(self._trying(start)), "version": version}

    def schedule(
        self,
        package: Path,
        pipeline: str,
        arguments: Mapping[str, Any],
        cron: str,
        *,
        experiment: str,
        service_account: str = "",
    ) -> dict[str, Any]:
        """Have a pipeline run again and again; replaces the schedule of the same name.

        One run at a time, and what was missed is not made up for. The server cannot change a
        schedule: the new one is made before the old one is deleted.

        Args:
            package: Compiled pipeline.
            pipeline: Its name on the server, and the schedule's.
            arguments: The rest takes its defaults.
            cron: Six fields, checked (`pipelines.cron`).

        Returns:
            `recurring_run_id`, `name`, `cron`, `version`, and `change`: `created`, `updated` or
            `unchanged`.
        """
        pipeline_id, version_id, version = self._version(package, pipeline)
        experiment_id = self._experiment(experiment)
        wanted = (cron, version_id, dict(arguments), service_account)

        def same(found: Any) -> bool:
            given = (
                found.trigger.cron_schedule and found.trigger.cron_schedule.cron,
                found.pipeline_version_reference
                and found.pipeline_version_reference.pipeline_version_id,
                (found.runtime_config and found.runtime_config.parameters) or {},
                # A server that chose a service account itself names it.
                service_account and found.service_account,
            )
            limits = int(found.max_concurrency or 0) == 1 and bool(found.no_catchup)
            return given == wanted and limits and found.mode == "ENABLE"

        made = []

        def ensure() -> tuple[Any, int]:
            there = self._schedules(pipeline, experiment_id)
            kept = next((found for found in there if same(found)), None)
            if kept is None:
                kept = self._client.create_recurring_run(
                    experiment_id,
                    pipeline,
                    cron_expression=cron,
                    max_concurrency=1,
                    no_catchup=True,
                    params=dict(arguments),
                    pipeline_id=pipeline_id,
                    version_id=version_id,
                    service_account=service_account or None,
                )
                made.append(kept)
            old = [f for f in there if f.recurring_run_id != kept.recurring_run_id]
            for found in old:
                self._client.delete_recurring_run(found.recurring_run_id)
            return kept, len(old)

        kept, replaced = self._trying(ensure)
        change = "updated" if replaced else "created" if made else "unchanged"
        return {
            "recurring_run_id": kept.recurring_run_id,
            "name": pipeline,
            "cron": cron,
            "version": version,
            "change": change,
        }

    def unschedule(self, pipeline: str, *, experiment: str) -> int:
        """Delete the schedules of a pipeline; returns how many there were."""
        experiment_id = self._known_experiment(experiment)
        there = self._trying(lambda: self._schedules(pipeline, experiment_id))
        for found in there:
            self._trying(partial(self._client.delete_recurring_run, found.recurring_run_id))
        return len(there)

    def run(self, run_id: str) -> dict[str, Any]:
        """A run: its state, times, steps, and what failed.

        Raises:
            UserError: The server has no such run.
        """
        found = self._get_run(run_id)
        run = self._run(found)
        if run["state"] == "FAILED" and run["error"] is None:
            run["error"] = self._why(run_id, _nodes(found))
        return run

    def runs(self, *, experiment: str, count: int) -> list[dict[str, Any]]:
        """The latest runs of an experiment, the newest first."""
        experiment_id = self._known_experiment(experiment)
        found: list[Any] = []
        token = ""
        while len(found) < count:
            page = self._trying(
                partial(
                    self._client.list_runs,
                    page_token=token,
                    page_size=min(100, count - len(found)),
                    sort_by="created_at desc",
                    experiment_id=experiment_id,
                    namespace=self._namespace,
                )
            )
            found += page.runs or []
            token = page.next_page_token
            if not token:
                break
        return [self._run(run) for run in found]

    def follow(self, run_id: str, every_s: float) -> Iterator[dict[str, Any]]:
        """A run, again and again until its state is final."""
        while True:
            run = self.run(run_id)
            yield run
            if run["state"] in FINAL:
                return
            time.sleep(every_s)

    def cancel(self, run_id: str) -> dict[str, Any]:
        """End a run; one that has ended stays as it is. Returns it."""

        def end() -> None:
            if self._client.get_run(run_id).state not in (*FINAL, "CANCELING"):
                self._client.terminate_run(run_id)

        self._trying(end, what=f"run {run_id}")
        return self.run(run_id)

    def logs(self, run_id: str, step: str = "") -> Iterator[tuple[str, str, str]]:
        """Step, pod and log of each pod of a run that is still there, or whose log is kept.

        Args:
            step: Only the steps of that name.

        Raises:
            UserError: The run has no such step.
        """
        there = _nodes(self._get_run(run_id))
        names = sorted({node.display_name for node in nodes.steps(there)})
        if step and step not in names:
            known = ", ".join(names) or "none yet"
            raise UserError(f"run {run_id} has no step {step!r}; it has {known}")
        for name, pod in nodes.pods(there):
            if step and name not in ("", step):
                continue
            log = self._log(run_id, pod)
            if log is None:
                continue
            name = name or nodes.step_of(log)
            if step in ("", name):
                yield name, pod, log

    def _why(self, run_id: str, there: list[Any]) -> str:
        """What the failed steps' logs say."""
        broken = [node for node in there if node.state == "FAILED"]
        logs = []
        with contextlib.suppress(DeviceError):  # who may not read logs still sees the run
            for _, pod in nodes.pods(broken):
                logs.append(self._log(run_id, pod) or "")
        return nodes.failure(logs) or (
            f"{nodes.failed(there) or 'no step began'}; "
            f"look at `kubectl describe pod -l pipeline/runid={run_id}`"
        )

    def _log(self, run_id: str, pod: str) -> str | None:
        # Part of KFP's server, not of its client (backend/src/apiserver/main.go).
        def read() -> str:
            answer = self._client.api.call_api(
                "/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log",
                "GET",
                path_params={"run_id": run_id, "node_id": pod},
                header_params={"Accept": "text/plain"},
                auth_settings=["Bearer"],
                _return_http_data_only=True,
                _preload_content=False,
            )
            return str(answer.data.decode("utf-8", errors="replace"))

        try:
            log = self._trying(read)
        except _RefusedError as error:
            if error.status in (400, 404, 500):  # how it says that the pod is gone
                return None
            raise
        # Older servers say so after they have sent status 200.
        return None if log.startswith('{"error_message":') else log

    def _get_run(self, run_id: str) -> Any:
        return self._trying(lambda: self._client.get_run(run_id), what=f"run {run_id}")

    def _experiment(self, name: str) -> str:
        def ensure() -> Any:
            with self._quiet():
                return self._client.create_experiment(name, namespace=self._namespace)

        return str(self._trying(ensure).experiment_id)

    def _known_experiment(self, name: str) -> str:
        def find() -> Any:
            try:
                return self._client.get_experiment(experiment_name=name, namespace=self._namespace)
            except ValueError as error:
                if "No experiment is found" not in str(error):
                    raise
                raise UserError(
                    f"{self.host} has no experiment {name!r}; name another with --experiment, or "
                    "submit a pipeline first"
                ) from None

        return str(self._trying(find).experiment_id)

    def _schedules(self, name: str, experiment_id: str) -> list[Any]:
        listed = self._client.list_recurring_runs(
            page_size=100,
            experiment_id=experiment_id,
            filter=_named(name),
            namespace=self._namespace,
        )
        return list(listed.recurring_runs or ())

    def _version(self, package: Path, pipeline: str) -> tuple[str, str, str]:
        # Named by its content: what is there is not uploaded again.
        name = f"{pipeline}-{sha256(package.read_bytes()).hexdigest()[:12]}"

        def ensure() -> Any:
            with self._quiet():
                listed = self._client.list_pipelines(
                    filter=_named(pipeline), namespace=self._namespace
                )
                if not listed.pipelines:
                    made = self._client.upload_pipeline(
                        str(package), pipeline, namespace=self._namespace
                    )
                    pipeline_id = made.pipeline_id
                else:
                    pipeline_id = listed.pipelines[0].pipeline_id
                versions = self._client.list_pipeline_versions(pipeline_id, filter=_named(name))
                if versions.pipeline_versions:
                    return versions.pipeline_versions[0]
                return self._client.upload_pipeline_version(str(package), name, pipeline_id)

        version = self._trying(ensure)
        return version.pipeline_id, version.pipeline_version_id, name

    def _run(self, run: Any) -> dict[str, Any]:
        steps = [
            {
                "step": task.display_name,
                "state": task.state,
                "seconds": _seconds(task.start_time, task.end_time),
                "error": task.error.message if task.error else None,
            }
            for task in nodes.steps(_nodes(run))
        ]
        failed = [step["error"] for step in steps if step["state"] == "FAILED" and step["error"]]
        return {
            "run_id": run.run_id,
            "name": run.display_name,
            "state": run.state or "PENDING",
            "created_at": run.created_at and run.created_at.isoformat(),
            "seconds": _seconds(run.created_at, run.finished_at),
            "recurring_run_id": run.recurring_run_id,
            # The first step that failed is the cause; the run itself only says that one did.
            "error": failed[0] if failed else run.error.message if run.error else None,
            "steps": steps,
            "url": f"{self.host}/#/runs/details/{run.run_id}",
        }

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        # KFP's client prints links; stdout is for what was asked for.
        with contextlib.redirect_stdout(io.StringIO()):
            yield

    def _trying(self, do: Callable[[], T], what: str = "") -> T:
        for pause_s in (*_PAUSES_S, None):
            try:
                return do()
            except (ApiException, urllib3.exceptions.HTTPError, ValueError, OSError) as error:
                if isinstance(error, CorallineError):
                    raise
                fault = self._fault(error, what)
                if pause_s is None or not getattr(fault, "retryable", False):
                    raise fault from None
                asked = _retry_after(error)
                pause_s = asked if asked is not None else pause_s * (1 + random.random() / 2)
                self._on_retry(str(fault), pause_s)
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _fault(self, error: Exception, what: str) -> CorallineError:
        if isinstance(error, ApiException):
            return self._refused(error, what)
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, urllib3.exceptions.NameResolutionError):
            return DeviceError(f"{self.host}: no such host; check --host")
        # urllib3 counts a refused connection among the timeouts.
        if isinstance(reason, urllib3.exceptions.NewConnectionError):
            said = "refuses the connection"
        elif isinstance(reason, urllib3.exceptions.TimeoutError):
            said = "does not answer in time"
        elif isinstance(reason, urllib3.exceptions.SSLError):
            return DeviceError(f"{self.host}: {reason}; check --host and --ca-file")
        elif isinstance(error, urllib3.exceptions.HTTPError):
            said = f"broke the connection ({type(reason).__name__})"
        else:
            return DeviceError(f"{self.host}: {error}")
        return DeviceError(
            f"{self.host} {said}; check that Kubeflow Pipelines runs there, for example through "
            "`kubectl port-forward -n kubeflow svc/ml-pipeline 8888`",
            retryable=True,
        )

    def _refused(self, error: ApiException, what: str) -> CorallineError:
        status = error.status
        said = _message(error)
        if status == 404 and what:
            return UserError(f"{self.host} has no {what}; see `coralline pipeline runs`")
        advice = {
            0: "check --host and --ca-file",
            400: "the server refused it as invalid",
            401: f"log in: give --token-file, ${TOKEN}, or Dex's session cookie in ${COOKIE}",
            403: "these credentials may not do that; check --namespace, or ask who runs the server",
            404: "check that --host is the address of Kubeflow Pipelines, not only of Kubeflow",
        }.get(status, "try again later, or look at the server's log")
        return _RefusedError(
            f"{self.host} answers {status or 'nothing'}: {said}; {advice}",
            status=status,
            retryable=status in _MAY_PASS,
        )


class _RefusedError(DeviceError):
    def __init__(self, message: str, *, status: int, retryable: bool) -> None:
        super().__init__(message, retryable=retryable)
        self.status = status


class _Client(kfp.Client):
    """KFP's client, with an end to each request and one try where it makes five."""

    def __init__(self, host: str, namespace: str | None, settings: Mapping[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            super().__init__(host, namespace=namespace, **settings)
        self._guard()

    @property
    def api(self) -> Any:
        """KFP's generated API client."""
        return self._healthz_api.api_client

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        """What the server says of itself; asked once, while the client is made."""
        self._guard()
        return self._healthz_api.healthz_service_get_healthz()

    def _guard(self) -> None:
        rest = self.api.rest_client
        if "request" in vars(rest):
            return
        ask = rest.request
        # Trying again is the Server's business, redirects apart.
        retries = urllib3.Retry(
            total=3, connect=0, read=0, status=0, other=0, respect_retry_after_header=False
        )
        rest.pool_manager.connection_pool_kw["retries"] = retries

        def request(*arguments: Any, **options: Any) -> Any:
            options["_request_timeout"] = options.get("_request_timeout") or _TIMEOUT_S
            answer = ask(*arguments, **options)
            # A login page, whose fields the client would all read as None.
            if "text/html" in (answer.getheader("content-type") or ""):
                host = self.api.configuration.host
                raise DeviceError(
                    f"{host} answers with a web page; log in: give --token-file, ${TOKEN}, or "
                    f"Dex's session cookie in ${COOKIE}; or --host is not the address of "
                    "Kubeflow Pipelines"
                )
            return answer

        rest.request = request


def _nodes(run: Any) -> list[Any]:
    return list((run.run_details and run.run_details.task_details) or ())


def _credentials(access: Access) -> dict[str, Any]:
    if access.token_file is not None:
        read_text(access.token_file, "a token")
        return {"credentials": ServiceAccountTokenVolumeCredentials(str(access.token_file))}
    if token := os.environ.get(TOKEN):
        return {"existing_token": token}
    path = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH") or SERVICE_ACCOUNT_TOKEN)
    if path.exists():
        return {"credentials": ServiceAccountTokenVolumeCredentials(str(path))}
    if cookie := os.environ.get(COOKIE):
        if "=" not in cookie:
            raise UserError(f"${COOKIE}: write NAME=VALUE, as the browser shows the cookie")
        return {"cookies": cookie}
    return {}


def _named(name: str) -> str:
    # kfp_server_api's V2beta1PredicateOperation: 1 is EQUALS.
    predicate = {"operation": 1, "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def _message(error: ApiException) -> str:
    try:
        said = json.loads(error.body)
        text = said.get("message") or said.get("error") or said.get("error_message")
    except (TypeError, ValueError, AttributeError):
        text = error.reason
    return str(text or error.reason).splitlines()[0][:300]


def _retry_after(error: Exception) -> float | None:
    said = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    return min(float(said), 60.0) if said.isdigit() else None


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    # The server writes year 1 or 1970 for a time that has not come.
    if start is None or end is None or end <= start:
        return None
    return (end - start).total_seconds()
