"""The processes of this machine."""

from __future__ import annotations

from collections.abc import Callable

import psutil


def processes(chosen: Callable[[list[str]], bool]) -> list[psutil.Process]:
    """Those whose command line is chosen, the oldest first."""
    found = []
    for process in psutil.process_iter():
        try:
            if chosen(process.cmdline()):
                found.append(process)
        except psutil.Error:  # gone, or of another user
            continue
    return sorted(found, key=lambda process: process.create_time())
