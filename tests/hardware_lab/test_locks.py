"""Locks of this machine: who waits for one, and for how long."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from waiting import wait_for

from coralline.errors import DeviceError
from hardware_lab import locks
from hardware_lab.inventory import Demand
from hardware_lab.jobs import JobOptions
from hardware_lab.store import Store

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"
ONCE = JobOptions(repetitions=1, warmup=0)


def test_nobody_waits_without_limit_for_a_writer_that_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    code = (
        "import os, signal, sys\nfrom hardware_lab.database import Database\n"
        "with Database(sys.argv[1]).write():\n"
        "    print('inside', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None and writer.stdout.readline()
            wait_for(lambda: psutil.Process(writer.pid).status() == psutil.STATUS_STOPPED)
            assert store.jobs() == []  # who reads waits for nobody
            monkeypatch.setattr(locks, "WAIT_S", 0.2)
            said = rf"process {writer.pid}, T \(stopped\), has held it for 0.2 s"
            with pytest.raises(DeviceError, match=said) as caught:
                store.submit(INT8, Demand("b0"), ONCE)
            assert caught.value.retryable
        finally:
            writer.send_signal(signal.SIGCONT)
    monkeypatch.undo()
    # Nor does who has given up keep the lock that comes to it then.
    assert store.submit(INT8, Demand("b0"), ONCE).state == "queued"
