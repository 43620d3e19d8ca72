"""Run one function in a process of its own, with time limit, progress and errors that cross.

LiteRT ends the process, instead of raising, on some models; here that is a DeviceError. Parent
and child speak lines of JSON: one request; progress and one answer. The child ends when its
standard input does, hence with its parent, however that one ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Thread, Timer
from time import perf_counter
from typing import Any

from coralline.errors import DeviceError, UserError

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""

PROGRESS_S = 0.25
"""Least time between two reports: a line for each inference would disturb what is measured."""


def run_in_child(
    module: str,
    request: Mapping[str, Any],
    what: str,
    on_progress: Progress | None = None,
    *,
    time_limit_s: float,
    keep_open: tuple[int, ...] = (),
) -> Any:
    """What `serve` answers in the child that runs `module`.

    Args:
        module: Calls `serve` when it is run.
        request: Of JSON values.
        what: Is running, for messages.
        time_limit_s: The child is killed after it.
        keep_open: File descriptors the child holds too; a lock on one lasts until it has ended.

    Raises:
        UserError: As raised in the child.
        DeviceError: As raised in the child; or the child crashed or took too long.
    """
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=keep_open,
    )
    assert child.stdin and child.stdout and child.stderr
    said: deque[str] = deque(maxlen=20)
    listener = Thread(target=said.extend, args=(child.stderr,), daemon=True)
    listener.start()
    timer = Timer(time_limit_s, child.kill)
    timer.start()
    answer: dict[str, Any] = {}
    try:
        with suppress(BrokenPipeError):  # the child is gone already; its exit code says why
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
        for line in child.stdout:
            answer = json.loads(line)
            if on_progress is not None and "progress" in answer:
                on_progress(*answer["progress"])
        child.wait()
    finally:
        timed_out = timer.finished.is_set()
        timer.cancel()
        child.kill()
        child.wait()
        listener.join()
        for stream in (child.stdin, child.stdout, child.stderr):
            with suppress(BrokenPipeError):
                stream.close()
    if "answer" in answer:
        return answer["answer"]
    if "user_error" in answer:
        raise UserError(answer["user_error"])
    if "device_error" in answer:
        raise DeviceError(answer["device_error"], retryable=answer["retryable"])
    if timed_out:
        raise DeviceError(f"{what}: not finished after {time_limit_s:g} s, the time limit")
    code = child.returncode
    ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    last = next((line.strip() for line in reversed(said) if line.strip()), "")
    raise DeviceError(f"{what}: the runtime crashed ({ending}{': ' if last else ''}{last})")


def serve(function: Callable[[Mapping[str, Any], Progress], Any]) -> None:
    """Answer the parent's one request with what `function` returns, JSON values, or raises."""
    request = json.loads(sys.stdin.readline())
    Thread(target=_end_with_parent, daemon=True).start()
    told = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if perf_counter() - told > PROGRESS_S:
            told = perf_counter()
            _say(progress=[done, total])

    try:
        answer = function(request, progress)
    except UserError as error:
        _say(user_error=str(error))
    except DeviceError as error:
        _say(device_error=str(error), retryable=error.retryable)
    else:
        _say(answer=answer)


def _end_with_parent() -> None:
    # Nothing more is ever sent, so this read ends when the parent does. Not through sys.stdin:
    # its lock would be held when the interpreter shuts down.
    while os.read(0, 4096):
        pass
    os._exit(1)


def _say(**answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
