"""Run a pipeline on this machine: KFP's own local runner in a child process, watched.

The child's whole output goes to a log file; the parent reads what a person wants to know from
it: which step runs, how far it is, why it failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

from components.steps import EXECUTION, said_in
from coralline.errors import CorallineError, DeviceError, UserError
from coralline.files import make_folder
from coralline.home import home_folder

_COLOUR = re.compile(r"\x1b\[\d*m")
_KFP_SAID = re.compile(
    r"Executing task '(?P<started>[^']+)'"
    r"|Task '(?P<ended>[^']+)' finished with status"
    r"|Task (?P<reused>\S+) cache hit"
)
_RAISED = re.compile(r"^\s*(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt)\w*): (.*)$")
_OUTCOME = "outcome.json"

LEAST_FREE_BYTES = 2**16
"""With less, a run that failed without a message failed for want of room."""


@dataclass(frozen=True)
class Event:
    """Something a person who waits may want to see.

    Attributes:
        kind: `started`, `ended`, `reused` or `progress`.
        step: Name of the component, or what the progress is of.
    """

    kind: str
    step: str
    done: int = 0
    total: int = 0


def run_pipeline(
    source: str,
    arguments: Mapping[str, Any],
    *,
    reuse: bool = True,
    on_event: Callable[[Event], None] = lambda event: None,
) -> tuple[dict[str, Any], Path]:
    """Execute a pipeline with KFP's SubprocessRunner.

    Args:
        source: Name of a pipeline, or path of a compiled one (.yaml).
        arguments: Of the pipeline; the rest takes its defaults.
        reuse: Whether a step whose inputs and code are unchanged is taken from an earlier run.

    Returns:
        The pipeline's outputs (the path of an artifact, or a value), and the run's folder.

    Raises:
        UserError: A step found its input wrong, or an argument is not known.
        DeviceError: A step failed otherwise; the message names the log.
    """
    from components.tracking import tracking_uri

    # Runs of several machines may meet in one MLflow server.
    execution = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:6]}"
    folder = make_folder(home_folder() / "runs" / execution)
    log = folder / "pipeline.log"
    job = {
        "source": source,
        "execution": execution,
        "arguments": dict(arguments),
        "root": str(folder / "steps"),
        "cache": str(_cache_folder(arguments)) if reuse else None,
        "outcome": str(folder / _OUTCOME),
    }
    environment = os.environ | {
        "CORALLINE_HOME": str(home_folder()),
        EXECUTION: execution,
        # As in a cluster, where a failing step finds its store by it.
        "MLFLOW_TRACKING_URI": tracking_uri(),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("w", encoding="utf-8") as sink:
        child = subprocess.Popen(
            [sys.executable, "-m", "pipelines.local", json.dumps(job)],
            # Closed when this process ends, however it does: `_end_with_parent`.
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
            # Its own group: an interrupt here ends every step with it.
            start_new_session=True,
        )
    with child:
        try:
            for event in _follow(log, child):
                on_event(event)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode != 0:
        failure = _failure(log)
        _record_failure(source, execution, arguments, failure)
        raise failure.error(log)
    return json.loads((folder / _OUTCOME).read_text(encoding="utf-8")), folder


def _record_failure(
    source: str, execution: str, arguments: Mapping[str, Any], failure: Failure
) -> None:
    """Leave in MLflow what ended outside of a step, for the pipelines that record there.

    A step that fails does so itself (components.failures).
    """
    from components.tracking import record_failure, tracking_uri
    from pipelines.registry import NAMES

    if failure.step or source not in NAMES:
        return

    # What the person waits for is the failure itself.
    with contextlib.suppress(CorallineError):
        record_failure(
            execution,
            source,
            str(arguments.get("code_version", "")),
            failure.step,
            failure.message,
            tracking_uri(),
        )


def _cache_folder(arguments: Mapping[str, Any]) -> Path:
    """Where steps to reuse are kept: apart for each content of the files that arguments name.

    KFP knows an argument by its text alone, and a model or inventory may change under its path.
    """
    folder = home_folder() / "cache"
    texts = [t for v in arguments.values() for t in (v if isinstance(v, list) else [v])]
    files = [Path(t) for t in texts if isinstance(t, str) and Path(t).is_file()]
    if not files:
        return folder
    return folder / sha256(b"".join(sha256(f.read_bytes()).digest() for f in files)).hexdigest()


def _follow(log: Path, child: subprocess.Popen[bytes]) -> Iterator[Event]:
    with log.open(encoding="utf-8", errors="replace") as lines:
        partial = ""
        while True:
            ended = child.poll() is not None
            partial += lines.read()
            *whole, partial = partial.split("\n")
            for line in whole:
                yield from _events(_COLOUR.sub("", line))
            if ended:
                return
            time.sleep(0.1)


def _events(line: str) -> Iterator[Event]:
    # Steps that run at once may share a line.
    for found in _KFP_SAID.finditer(line):
        kind = next(k for k in ("started", "ended", "reused") if found[k])
        yield Event(kind, found[kind])
    for said in said_in(line):
        if said["coralline"] == "progress":
            yield Event("progress", said["what"], said["done"], said["total"])


@dataclass(frozen=True)
class Failure:
    """Why a run failed.

    Attributes:
        step: That failed first; empty for KFP itself.
        kind: Class of the error; empty where that is not known.
        message: One line.
    """

    step: str
    kind: str
    message: str

    def error(self, log: Path) -> CorallineError:
        """What to raise."""
        if "No space left" in self.message or (
            shutil.disk_usage(log.parent).free < LEAST_FREE_BYTES
        ):
            return UserError(
                f"{log.parent}: the disk is full; free space or set CORALLINE_HOME to another place"
            )
        if self.kind in ("UserError", "PlanError"):
            where = f"{self.step}: " if self.step else ""
            return UserError(f"{where}{self.message} (log: {log})")
        return DeviceError(f"{self.step or 'the pipeline'} failed: {self.message} (log: {log})")


def _failure(log: Path) -> Failure:
    text = _COLOUR.sub("", log.read_text(encoding="utf-8", errors="replace"))
    told = [said for line in text.splitlines() for said in said_in(line)]
    failed = [said for said in told if said["coralline"] == "failed"]
    if failed:
        return Failure(failed[0]["step"], failed[0]["kind"], failed[0]["error"])
    # KFP wraps a step's error in a RuntimeError of its own; the first error is the cause.
    raised = [found for line in text.splitlines() if (found := _RAISED.match(line))]
    own = [found for found in raised if found[1] in ("UserError", "PlanError", "DeviceError")]
    for found in own or raised:
        said = found[2] if own else f"{found[1]}: {found[2]}"
        return Failure("", found[1], said)
    return Failure("", "", "the runner ended without a message")


def _without_cluster(source: Path, execution: str) -> str:
    # Resources mean nothing here, which KFP would say for every step; and a person who waits
    # wants the message of a failure, not two more tries.
    import yaml
    from kfp import dsl

    document = next(yaml.safe_load_all(source.read_text(encoding="utf-8")))
    for executor in document["deploymentSpec"]["executors"].values():
        executor.get("container", {}).pop("resources", None)
    for component in (document["root"], *document["components"].values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    text: str = yaml.safe_dump(document)
    # Else KFP draws an id that the steps' logs do not know.
    return text.replace(dsl.PIPELINE_JOB_ID_PLACEHOLDER, execution)


def _child(job: Mapping[str, Any]) -> None:
    import logging

    from kfp import components, local

    # KFP sets up its own logger around a step only; reused steps are told outside of it.
    logging.basicConfig(level=logging.INFO)

    from pipelines.registry import compile_pipeline

    source = Path(job["source"])
    if source.suffix not in (".yaml", ".yml"):
        source = Path(job["root"]).with_name("pipeline.yaml")
        compile_pipeline(job["source"], source)
    pipeline = components.load_component_from_text(_without_cluster(source, job["execution"]))
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=job["root"],
        enable_caching=job["cache"] is not None,
        **({"cache_root": job["cache"]} if job["cache"] else {}),
    )
    task = pipeline(**job["arguments"])
    outputs = {k: getattr(v, "path", v) for k, v in task.outputs.items()}
    Path(job["outcome"]).write_text(json.dumps(outputs), encoding="utf-8")


def _end_with_parent() -> None:
    while os.read(0, 4096):  # nothing is ever sent
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    Thread(target=_end_with_parent, daemon=True).start()
    _child(json.loads(sys.argv[1]))
