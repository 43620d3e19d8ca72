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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Lock, Thread
from time import monotonic, perf_counter
from typing import Any

from coralline.errors import DeviceError, UserError

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""

PROGRESS_S = 0.25
"""Least time between two reports: a line for each inference would disturb what is measured."""

Stop = Callable[[], bool]
"""Whether what runs is wanted no more; asked every STOP_S from a thread of its own."""

STOP_S = 0.25


def never() -> bool:
    """The `Stop` of what is wanted to its end."""
    return False


def run_in_child(
    module: str,
    request: Mapping[str, Any],
    what: str,
    on_progress: Progress | None = None,
    *,
    time_limit_s: float,
    keep_open: tuple[int, ...] = (),
    stop: Stop = never,
) -> Any:
    """What `serve` answers in the child that runs `module`.

    Args:
        module: Calls `serve` when it is run.
        request: Of JSON values.
        what: Is running, for messages.
        time_limit_s: The child is killed after it.
        keep_open: File descriptors the child holds too; a lock on one lasts until it has ended.
        stop: Ends the child.

    Raises:
        UserError: As raised in the child.
        DeviceError: As raised in the child; or the child crashed, took too long or was stopped.
    """
    said = converse(
        [sys.executable, "-P", "-m", module],
        request,
        on_progress,
        time_limit_s=time_limit_s,
        keep_open=keep_open,
        stop=stop,
    )
    if said.has_answer:
        return said.answer()
    if said.timed_out:
        raise DeviceError(f"{what}: not finished after {time_limit_s:g} s, the time limit")
    ending = signal.Signals(-said.code).name if said.code < 0 else f"exit code {said.code}"
    last = said.last_words
    raise DeviceError(f"{what}: the runtime crashed ({ending}{': ' if last else ''}{last})")


@dataclass(frozen=True)
class Said:
    """What a process that was conversed with left.

    Attributes:
        last: Its last line, `{}` when it said nothing.
        errors: The end of its standard error, lines without blank ones.
        code: Its exit code; minus the signal that ended it.
        timed_out: Whether the time limit ended it.
    """

    last: Mapping[str, Any]
    errors: tuple[str, ...]
    code: int
    timed_out: bool

    @property
    def has_answer(self) -> bool:
        """Whether its last line is an answer or an error that it raised itself."""
        return not self.last.keys().isdisjoint(("answer", "user_error", "device_error"))

    @property
    def last_words(self) -> str:
        """The last line of its standard error."""
        return self.errors[-1] if self.errors else ""

    def answer(self) -> Any:
        """Its answer.

        Raises:
            UserError: As raised there.
            DeviceError: As raised there.
        """
        if "user_error" in self.last:
            raise UserError(self.last["user_error"])
        if "device_error" in self.last:
            raise DeviceError(self.last["device_error"], retryable=self.last["retryable"])
        return self.last["answer"]


def converse(
    command: Sequence[str],
    request: Mapping[str, Any],
    on_progress: Progress | None = None,
    *,
    time_limit_s: float,
    keep_open: tuple[int, ...] = (),
    stop: Stop = never,
    environment: Mapping[str, str] | None = None,
    heartbeat_s: float | None = None,
    grace_s: float = 0.0,
) -> Said:
    """Send a process its request, pass its progress on, and wait for its end.

    A line `{"ask": "clock"}` is answered at once by one with this machine's `clock`, which is
    CLOCK_MONOTONIC in seconds: so may a process far away learn what its own clock is to ours.

    However this returns or raises, the process has ended.

    Args:
        stop: Ends the process.
        environment: Of the process; None for this one's.
        heartbeat_s: Send an empty line this often, for a process that may be far away.
        grace_s: How long after the end of its standard input it may take to end by itself.

    Raises:
        DeviceError: It was stopped.
    """
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=keep_open,
        env=environment,
    )
    assert child.stdin and child.stdout and child.stderr
    errors: deque[str] = deque(maxlen=20)
    listener = Thread(target=errors.extend, args=(child.stderr,), daemon=True)
    listener.start()
    over, timed_out, stopped = Event(), False, False
    stdin, writing = child.stdin, Lock()

    def write(line: str) -> None:
        with writing:
            stdin.write(line + "\n")
            stdin.flush()

    def end() -> None:
        over.set()
        beating.join(1.0)
        if beating.is_alive():  # stuck in a pipe that nobody reads
            child.kill()
            beating.join()
        with suppress(BrokenPipeError):  # it is gone already; its exit code says why
            stdin.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
        child.kill()

    def watch() -> None:
        nonlocal timed_out, stopped
        deadline = monotonic() + time_limit_s
        while not over.wait(max(0.0, min(STOP_S, deadline - monotonic()))):
            stopped, timed_out = stop(), monotonic() >= deadline
            if stopped or timed_out:
                end()

    def beat() -> None:
        with suppress(BrokenPipeError):
            write(json.dumps(request))
            while not over.wait(heartbeat_s):
                write("")

    beating = Thread(target=beat, daemon=True)
    beating.start()
    watching = Thread(target=watch, daemon=True)
    watching.start()
    last: dict[str, Any] = {}
    try:
        for line in child.stdout:
            if not line.startswith("{"):  # a login shell's greeting
                continue
            with suppress(json.JSONDecodeError):  # the line was cut off
                last = json.loads(line)
            if last.get("ask") == "clock":
                with suppress(BrokenPipeError):
                    write(json.dumps({"clock": monotonic()}))
            if on_progress is not None and "progress" in last:
                on_progress(*last["progress"])
        child.wait()
    finally:
        end()
        watching.join()
        child.wait()
        listener.join()
        child.stdout.close()
        child.stderr.close()
    if stopped:
        raise DeviceError("stopped: nobody waits for it any more", retryable=True)
    words = tuple(line.strip() for line in errors if line.strip())
    return Said(last, words, child.returncode, timed_out)


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
