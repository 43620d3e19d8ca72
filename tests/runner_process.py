"""Runners in processes of their own, to be killed, stopped or cut off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
QUICK = (
    "runner.BEAT_S, runner.HOLD_S, runner.LEASE_S, runner.PATIENCE_S = 0.1, 0.6, 1.5, 60\n"
    "runner.POLL_S = (0.02, 0.1)"
)
SCRIPTED = "scripted_lab(Path({folder!r}), {boards}, {seconds})"


def start_runner(
    started: list[subprocess.Popen[bytes]],
    place: str,
    tmp_path: Path,
    code: str = "",
    boards: int = 2,
    seconds: float = 0.0,
    home: str = "home",
    inventory: str = SCRIPTED,
) -> subprocess.Popen[bytes]:
    """A runner in a process, after some code of the test's.

    Args:
        started: It is added to these.
        place: Of the lab.
        inventory: The code that makes it.
    """
    made = inventory.format(folder=str(tmp_path), boards=boards, seconds=seconds)
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from coralline.errors import DeviceError\n"
        "from hardware_lab import runner, store\n"
        "from hardware_lab.lab import open_lab\n"
        "from scripted_board import ScriptedBoard, scripted_lab\n"
        "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"opened = open_lab({place!r})\n"
        f"Lab = type(opened)\n{QUICK}\n{code}\n"
        f"lab = {made}\n"
        "runner.run_jobs(opened, lab)\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(TESTS),
        # Another home is, for a lab in PostgreSQL or behind a service, another host: it shares
        # no locks.
        "CORALLINE_HOME": str(tmp_path / home),
    }
    started.append(subprocess.Popen([sys.executable, "-c", script], env=environment))
    return started[-1]
