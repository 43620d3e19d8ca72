"""An instrument in a process of its own, so that one that hangs can be ended.

The two speak lines of JSON. The lab sends the meter; the process answers with what the instrument
calls itself, records, and answers to a second line with the file of its samples. It ends when its
standard input does, hence with the lab's process, however that one ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from time import monotonic
from typing import Any

from coralline.errors import CorallineError, DeviceError
from coralline.runtime.child import STOP_S, Stop, never
from coralline.runtime.power import Trace, read_trace, write_trace
from hardware_lab.meters import Meter, meter_kinds

START_S = 30.0
"""Longest that an instrument may take to be ready, or to stop and hand its samples over."""


class Recording:
    """One recording. Whatever happens, `end` leaves no process and no thread.

    Args:
        keep_open: File descriptors that the process holds too.
        stop: Ends the waiting for it.
    """

    def __init__(self, meter: Meter, keep_open: tuple[int, ...] = (), stop: Stop = never) -> None:
        self._meter, self._stop = meter, stop
        self._folder = tempfile.TemporaryDirectory()
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=keep_open,
        )
        self._said: Queue[dict[str, Any]] = Queue()
        self._errors: deque[str] = deque(maxlen=20)
        self._listeners = [
            Thread(target=self._listen, daemon=True),
            Thread(target=self._errors.extend, args=(self._child.stderr,), daemon=True),
        ]
        for listener in self._listeners:
            listener.start()

    def identify(self) -> str:
        """What the instrument calls itself.

        Raises:
            DeviceError: It is not there, does not work or does not answer.
        """
        options = {f.name: getattr(self._meter, f.name) for f in fields(self._meter)}
        return str(self._ask(kind=self._meter.kind, options=options)["device"])

    def start(self) -> None:
        """Begin to record; the first sample has been taken when this returns.

        Raises:
            DeviceError: As `identify`.
        """
        self._ask(do="start")

    def stop(self) -> Trace:
        """End, and hand over what was recorded.

        Raises:
            DeviceError: It failed since it was started, or does not answer.
            UserError: The file of a replayed trace is not one.
        """
        path = Path(self._folder.name) / "trace.parquet"
        self._ask(do="stop", path=str(path))
        return read_trace(path)

    def end(self) -> None:
        """End the process; again, if need be."""
        assert self._child.stdin and self._child.stdout and self._child.stderr
        with suppress(BrokenPipeError):
            self._child.stdin.close()
        self._child.kill()
        self._child.wait()
        for listener in self._listeners:
            listener.join()
        self._child.stdout.close()
        self._child.stderr.close()
        self._folder.cleanup()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._child.stdin
        with suppress(BrokenPipeError):  # it has ended; what it said last tells why
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        deadline = monotonic() + START_S
        while True:
            with suppress(Empty):
                answer = self._said.get(timeout=STOP_S)
                break
            if self._stop():
                raise DeviceError("stopped: nobody waits for it any more", retryable=True)
            if monotonic() > deadline:
                raise DeviceError(
                    f"meter {self._meter.name!r}: no answer in {START_S:g} s; it is ended"
                )
        if "error" in answer:
            raise DeviceError(answer["error"])
        return answer

    def _listen(self) -> None:
        assert self._child.stdout
        for line in self._child.stdout:
            self._said.put(json.loads(line))
        self._listeners[1].join()
        words = [line.strip() for line in self._errors if line.strip()]
        why = f" ({words[-1]})" if words else ""
        self._said.put({"error": f"meter {self._meter.name!r}: its driver ended{why}"})


def _main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    requests: Queue[dict[str, Any]] = Queue()
    Thread(target=_hear, args=(requests,), daemon=True).start()

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        asked = requests.get()
        instrument = meter_kinds()[asked["kind"]](**asked["options"]).open()
        say(device=instrument.reset())
        requests.get()
        instrument.start()
        say(started=True)
        path = Path(requests.get()["path"])
        instrument.stop()
        write_trace(instrument.data(), path)
        say(stopped=True)
    except CorallineError as error:
        say(error=str(error))
    # A library's threads may wait for an instrument that is gone.
    os._exit(0)


def _hear(requests: Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(1)


if __name__ == "__main__":
    _main()
