"""Waiting for jobs that the runners of others do."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from coralline.errors import DeviceError
from hardware_lab.announcements import ANNOUNCE_S
from hardware_lab.health import is_usable
from hardware_lab.inventory import Tags, meeting
from hardware_lab.jobs import Job
from hardware_lab.lab import Lab
from hardware_lab.runner import PATIENCE_S, Progress

POLL_S = 1.0
"""How often to look whether they have ended."""

log = logging.getLogger(__name__)


def wait_for(
    lab: Lab,
    group: str,
    on_progress: Progress | None = None,
    on_end: Callable[[Job], None] = lambda job: None,
) -> list[Job]:
    """Wait until the jobs of a group have ended, or until no board is there that may do them.

    Args:
        on_progress: Called with a running job, the inferences done and those to do.
        on_end: Called once with each job that has ended.

    Returns:
        Those that are left: no runner has said of late that it has a usable board for them.

    Raises:
        DeviceError: The lab has not answered for PATIENCE_S.
    """
    ended: set[str] = set()
    answered = time.monotonic()
    while True:
        try:
            jobs, usable = lab.jobs(group=group), boards_of_others(lab)
        except DeviceError as error:
            if not error.retryable or time.monotonic() - answered > PATIENCE_S:
                raise
            log.warning("%s", error)
            time.sleep(POLL_S)
            continue
        answered = time.monotonic()
        left = [job for job in jobs if job.state in ("queued", "running")]
        for job in jobs:
            if job in left:
                if on_progress is not None and job.progress is not None:
                    on_progress(job, *job.progress)
            elif job.id not in ended:
                ended.add(job.id)
                on_end(job)
        if not any(job.state == "running" or meeting(usable, job.demand) for job in left):
            return left
        time.sleep(POLL_S)


def boards_of_others(lab: Lab, *, unfit: bool = False) -> dict[str, Tags]:
    """The boards that runners have said of late that they have, and their tags.

    Args:
        unfit: Those that may not be used too.
    """
    view = lab.look()
    return {
        known.board.name: known.board.tags
        for known in lab.boards.known()
        if view.now - known.seen < 3 * ANNOUNCE_S
        and (unfit or is_usable(view.health.get(known.board.name), math.inf))
    }


def why_waiting(lab: Lab, job: Job) -> str:
    """What a job waits for that `wait_for` has left."""
    board = job.demand.board
    if board is None:
        return job.error or f"no runner has a usable board: {job.demand}"
    health = lab.health.known().get(board)
    if health is not None and health.state not in ("good", "unknown"):
        return (
            f"board {board!r} is {health.state}: {health.cause}; once that is put right, "
            f'`coralline lab health {board} --set unknown --why "..."`'
        )
    seen = [known.to_json()["seen_at"] for known in lab.boards.known() if known.board.name == board]
    if seen:
        return f"no runner has said since {max(seen)} that it has board {board!r}"
    return f"no runner has board {board!r}"
