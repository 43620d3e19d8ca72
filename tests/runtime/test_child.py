"""A function in a process of its own: answers, errors, crashes, time limits, orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from coralline.errors import DeviceError, UserError
from coralline.runtime.child import run_in_child

MODULE = """
import os, signal, sys, time
from coralline.errors import DeviceError, UserError
from coralline.runtime.child import serve

def work(request, progress):
    match request["do"]:
        case "answer":
            for i in range(3):
                progress(i + 1, 3)
                time.sleep(0.3)
            return {"doubled": 2 * request["value"]}
        case "user": raise UserError("bad model")
        case "device": raise DeviceError("lost", retryable=True)
        case "abort":
            print("why it died", file=sys.stderr, flush=True)
            os.abort()
        case "sleep":
            open(request["pid_file"], "w").write(str(os.getpid()))
            time.sleep(60)

serve(work)
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "worker_of_tests.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def ask(time_limit_s: float = 60.0, **request: object) -> object:
    return run_in_child("worker_of_tests", request, "the test", time_limit_s=time_limit_s)


def test_answer_and_progress() -> None:
    seen: list[tuple[int, int]] = []
    answer = run_in_child(
        "worker_of_tests",
        {"do": "answer", "value": 21},
        "the test",
        lambda done, total: seen.append((done, total)),
        time_limit_s=60,
    )
    assert answer == {"doubled": 42}
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_errors_cross() -> None:
    with pytest.raises(UserError, match="bad model"):
        ask(do="user")
    with pytest.raises(DeviceError, match="lost") as caught:
        ask(do="device")
    assert caught.value.retryable


def test_a_crash_is_an_error_that_says_why() -> None:
    with pytest.raises(DeviceError, match=r"the test: .* crashed \(SIGABRT: why it died\)"):
        ask(do="abort")


def test_the_time_limit_ends_the_child(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="not finished after 2 s"):
        ask(time_limit_s=2, do="sleep", pid_file=str(tmp_path / "pid"))
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from coralline.runtime.child import run_in_child\n"
            f"run_in_child('worker_of_tests', dict(do='sleep', pid_file={str(pid_file)!r}), '', "
            "time_limit_s=60)",
        ]
    )
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child = psutil.Process(int(pid_file.read_text()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()
