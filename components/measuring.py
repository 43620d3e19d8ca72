"""What the dispatching component does, as a plain function."""

from __future__ import annotations

import json
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
    store: Lab,
    inventory: Inventory,
    group: str,
    total: int,
    on_progress: Callable[[str, int, int], None],
) -> None:
    """Run the jobs of a group; those that wait for a board in vain are cancelled with the reason.

    Args:
        total: How many they are.
    """
    from hardware_lab.runner import run_jobs

    ended: set[str] = set()

    def advance(job: Job, done: int, of: int) -> None:
        if done == of and job.id not in ended:
            ended.add(job.id)
            on_progress("measuring", len(ended), total)

    try:
        run_jobs(store, inventory, group, advance)
        for job in store.jobs(group=group, state="queued"):
            store.cancel([job.id], reason=_why_waiting(store, inventory, job))
    finally:
        store.cancel(group=group, reason="interrupted")


def _why_waiting(store: Lab, inventory: Inventory, job: Job) -> str:
    board = job.demand.board or ""
    if board not in inventory.boards:
        return f"board {board!r} is not in the inventory"
    health = store.health.known().get(board)
    if health is None or health.state in ("good", "unknown"):
        return job.error or f"board {board!r} was not free"
    return f"board {board!r} is {health.state}: {health.cause}"
