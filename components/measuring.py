"""What the dispatching component does, as a plain function."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from coralline.errors import DeviceError
from coralline.files import make_folder, write_text

if TYPE_CHECKING:
    from hardware_lab.inventory import Inventory
    from hardware_lab.lab import Lab
    from hardware_lab.store import Job

DEADLINE_S = 86400.0
"""Jobs of a pipeline that was killed are given up after it."""
POLL_S = 1.0
"""How often to look whether other runners have ended theirs."""


def dispatch(
    splits: Sequence[Path],
    boards: Sequence[str],
    repetitions: int,
    inventory: str,
    out: Path,
    on_progress: Callable[[str, int, int], None],
) -> None:
    """Have the lab measure every split model on every board.

    Writes `out/<split>-<board>.json`, a measurement each, as soon as it is there.

    Args:
        splits: Folders that `split_model` wrote.
        inventory: Path of the lab's inventory; empty for the one in the package.

    Raises:
        UserError: No such board.
        DeviceError: A job failed; what the others measured is kept in the lab.
    """
    from hardware_lab.inventory import Demand, load_inventory
    from hardware_lab.lab import open_lab

    available = load_inventory(Path(inventory) if inventory else None)
    for board in boards:
        available.board(board).check()
    make_folder(out)
    store = open_lab()
    group = f"dispatch-{uuid4().hex[:8]}"
    jobs = {
        store.submit(
            split,
            Demand(board),
            repetitions=repetitions,
            warmup=max(2, repetitions // 10),
            deadline_s=DEADLINE_S,
            group=group,
        ).id: f"{split.name}-{board}"
        for board in boards
        for split in splits
    }
    run_group(store, available, group, len(jobs), on_progress)
    failed = []
    for job_id, name in jobs.items():
        if store.job(job_id).state != "done":
            failed.append(f"{name}: {store.job(job_id).error}")
            continue
        text = json.dumps(store.measurement(job_id).to_json(), allow_nan=False)
        write_text(out / f"{name}.json", text + "\n")
    if failed:
        raise DeviceError(
            f"{len(failed)} of {len(jobs)} measurements failed, the first: {failed[0]}; the rest "
            "is kept, see `coralline lab jobs`",
            retryable=True,
        )


def run_group(
    lab: Lab,
    inventory: Inventory,
    group: str,
    total: int,
    on_progress: Callable[[str, int, int], None],
) -> None:
    """Run the jobs of a group, and wait for those that the boards of other runners make.

    Those that wait for a board in vain are cancelled with the reason.

    Args:
        total: How many they are.
    """
    from hardware_lab.runner import run_jobs

    ended: set[str] = set()

    def end(job_id: str) -> None:
        if job_id not in ended:
            ended.add(job_id)
            on_progress("measuring", len(ended), total)

    def advance(job: Job, done: int, of: int) -> None:
        if done == of:
            end(job.id)

    try:
        run_jobs(lab, inventory, group, advance)
        while True:
            jobs = lab.jobs(group=group)
            left = [job for job in jobs if job.state in ("queued", "running")]
            for job in jobs:
                if job not in left:
                    end(job.id)
            seen = _seen_elsewhere(lab)
            if not any(job.demand.board in seen for job in left):
                break
            time.sleep(POLL_S)
        for job in left:
            lab.cancel([job.id], reason=_why_waiting(lab, inventory, job))
    finally:
        lab.cancel(group=group, reason="interrupted")


def _seen_elsewhere(lab: Lab) -> set[str]:
    """The boards that runners have said of late that they have, and that may be used."""
    from hardware_lab.announcements import ANNOUNCE_S
    from hardware_lab.health import is_usable

    view = lab.look()
    return {
        known.board.name
        for known in lab.boards.known()
        if view.now - known.seen < 3 * ANNOUNCE_S
        and is_usable(view.health.get(known.board.name), math.inf)
    }


def _why_waiting(lab: Lab, inventory: Inventory, job: Job) -> str:
    board = job.demand.board or ""
    health = lab.health.known().get(board)
    if health is not None and health.state not in ("good", "unknown"):
        return f"board {board!r} is {health.state}: {health.cause}"
    if board in inventory.boards:
        return job.error or f"board {board!r} was not free"
    seen = [known.to_json()["seen_at"] for known in lab.boards.known() if known.board.name == board]
    if seen:
        return f"no runner has said since {max(seen)} that it has board {board!r}"
    return f"board {board!r} is not in the inventory"
