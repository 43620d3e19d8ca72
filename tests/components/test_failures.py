from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from components import failures, steps, tracking
from components.source import code_version
from coralline.errors import UserError


class Cost:
    """What KFP gives a step that fails before it has logged anything."""

    path = "never-written"


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that Kubernetes mounts."""
    file = tmp_path / "termination-log"
    file.touch()
    monkeypatch.setattr(failures, "TERMINATION_LOG", file)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return file


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(steps.EXECUTION, "run-1")
    monkeypatch.setenv(failures.PIPELINE, "respect")


def fail(message: str = "no board\nnamed pi") -> None:
    with pytest.raises(UserError), steps.step("dispatch", Cost()):
        raise UserError(message)


def test_a_failed_step_leaves_its_message_at_the_end_of_its_pod(pod: Path) -> None:
    fail()
    assert pod.read_text() == "dispatch: no board named pi"


def test_a_long_message_is_cut_where_kubernetes_would_cut_a_letter(pod: Path) -> None:
    fail("x" + "ä" * 5000)
    left = pod.read_bytes()
    assert len(left) == 4095
    assert left.decode().startswith("dispatch: xää")


def test_outside_of_a_pod_no_file_is_made(pod: Path) -> None:
    pod.unlink()
    fail()
    assert not pod.exists()


def test_a_file_that_cannot_be_written_hides_nothing(
    pod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "TERMINATION_LOG", Path("/proc/version"))
    fail()


@pytest.mark.usefixtures("pod", "tracked")
def test_a_failed_step_records_itself(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite)
    fail()
    client = tracking._client(sqlite)
    [run] = client.search_runs([client.get_experiment_by_name("coralline").experiment_id])
    assert run.info.status == "FAILED"
    tags = {"execution": "run-1", "pipeline": "respect", "item": "pipeline"}
    tags |= {"failed_step": "dispatch", "error": "no board named pi"}
    assert tags.items() <= run.data.tags.items()
    assert run.data.tags["code_version"] == code_version()


@pytest.mark.usefixtures("pod", "tracked")
def test_a_server_that_hangs_does_not_keep_the_failure_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failures, "_LIMIT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        fail()
    assert time.monotonic() - start < 30


def test_the_code_version_is_stable() -> None:
    assert code_version() == code_version()
    assert len(code_version()) == 12
