"""Why a step failed, told where people look: at its pod's end, and in MLflow.

Nothing here may hide the failure itself, nor keep it waiting for long.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from components.source import code_version
from coralline.errors import CorallineError

TERMINATION_LOG = Path("/dev/termination-log")
"""What a container writes here Kubernetes keeps as the message of its end, and Argo as that of the
step. It is a mount of its own, writable for every user and over a read-only root
(https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/)."""

PIPELINE = "CORALLINE_PIPELINE"
"""Environment variable with the pipeline's name, for the steps of those that record in MLflow."""

_TERMINATION_BYTES = 4096
"""Kubernetes cuts off what is longer, in the middle of a letter too."""

_LIMIT_S = 40
"""For the record in all; most of it is for importing MLflow on a busy machine."""

_HTTP = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


def tell(execution: str, step: str, message: str) -> None:
    """Leave a failure at the pod's end, and in MLflow where its address is known.

    Args:
        message: One line.
    """
    _leave_in_pod(f"{step}: {message}")
    if execution and os.environ.get(PIPELINE) and os.environ.get("MLFLOW_TRACKING_URI"):
        _record(execution, step, message)


def _leave_in_pod(text: str) -> None:
    whole = text.encode()[:_TERMINATION_BYTES].decode(errors="ignore")
    with contextlib.suppress(OSError):
        if TERMINATION_LOG.is_file():
            TERMINATION_LOG.write_text(whole, encoding="utf-8")


def _record(execution: str, step: str, message: str) -> None:
    # In its own process, for only that ends in time whatever a server or a library does.
    failure = json.dumps({"execution": execution, "step": step, "message": message})
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [sys.executable, "-m", "components.failures"],
            input=failure.encode(),
            env=os.environ | _HTTP,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_LIMIT_S,
        )


def _main() -> None:
    from components.tracking import record_failure, tracking_uri

    failure = json.load(sys.stdin)
    with contextlib.suppress(CorallineError):
        record_failure(
            failure["execution"],
            os.environ[PIPELINE],
            code_version(),
            failure["step"],
            failure["message"],
            tracking_uri(),
        )


if __name__ == "__main__":
    _main()
