"""The runner: takes jobs from the store and has boards do them, one at a time.

Several runners may share a lab. A resource is worked on by one of them at a time; a runner that
dies leaves its job to the next that gets the resource's lock.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from time import sleep

from coralline.errors import CorallineError, UserError
from hardware_lab.boards import Board, Task
from hardware_lab.inventory import Inventory
from hardware_lab.store import Job, Store, content_digest

POLL_S = 0.1
"""How often to look whether another runner is done."""

Progress = Callable[[Job, int, int], None]
"""Called with the job, the inferences done and the inferences to do."""


def run_jobs(
    store: Store,
    inventory: Inventory,
    ids: Collection[str] | None = None,
    on_progress: Progress | None = None,
) -> list[Job]:
    """Run queued jobs until none is queued or running, here or in another runner.

    A job that fails is marked so; the others go on.

    Args:
        ids: Only these jobs; None for all jobs of the inventory's boards.

    Returns:
        The jobs that this call ended, as they are now.

    Raises:
        UserError: The store cannot be written; its jobs will be found again.
    """
    resources: dict[str, list[str]] = {}
    for board in inventory.boards.values():
        resources.setdefault(board.resource, []).append(board.name)
    ended: list[str] = []
    while True:
        worked = False
        for resource, boards in resources.items():
            with store.lock(resource) as descriptor:
                if descriptor is None:
                    continue
                store.recover(boards)
                job = store.claim(boards, _me(), ids)
                if job is None:
                    continue
                worked = True
                _execute(store, inventory.board(job.board), job, descriptor, on_progress)
                ended.append(job.id)
        if worked:
            continue
        left = [
            job
            for job in store.jobs(ids)
            if job.state in ("queued", "running") and job.board in inventory.boards
        ]
        if not left:
            return store.jobs(ended)
        sleep(POLL_S)


def _execute(
    store: Store, board: Board, job: Job, descriptor: int, on_progress: Progress | None
) -> None:
    path = Path(job.path)
    try:
        if content_digest(path) != job.digest:
            raise UserError(f"{path}: has changed since the job was submitted; submit it again")
        task = Task(job.id, path, job.repetitions, job.warmup, keep_open=(descriptor,))
        measurement = board.measure(
            task, on_progress and (lambda done, total: on_progress(job, done, total))
        )
    except CorallineError as error:
        store.fail(job, error)
    else:
        store.finish(job, measurement)


def _me() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
