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
    from hardware_lab.jobs import Job
    from hardware_lab.lab import Lab

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
        inventory: Path of the lab's inventory; empty for the one in the package. The boards of a
            service are those of its runners.

    Raises:
        UserError: No such board.
        DeviceError: A job failed; what the others measured is kept in the lab.
    """
    from hardware_lab.inventory import Demand, check_demand, load_inventory
    from hardware_lab.jobs import JobOptions
    from hardware_lab.lab import open_lab
    from hardware_lab.waiting import boards_of_others

    available = load_inventory(Path(inventory) if inventory else None)
    store = open_lab()
    if store.served:
        offered = boards_of_others(store, unfit=True)
        for board in boards:
            check_demand(offered, Demand(board))
    else:
        for board in boards:
            available.board(board).check()
    make_folder(out)
    group = f"dispatch-{uuid4().hex[:8]}"
    jobs = {
        store.submit(
            split,
            Demand(board),
            JobOptions(
                repetitions=repetitions,
                warmup=max(2, repetitions // 10),
                deadline_s=DEADLINE_S,
                group=group,
            ),
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

    A service's jobs are its runners' alone. Those that wait for a board in vain are cancelled with
    the reason.

    Args:
        total: How many they are.
    """
    from hardware_lab.runner import run_jobs
    from hardware_lab.waiting import wait_for, why_waiting

    ended: set[str] = set()

    def end(job: Job) -> None:
        if job.id not in ended:
            ended.add(job.id)
            on_progress("measuring", len(ended), total)

    def advance(job: Job, done: int, of: int) -> None:
        if done == of:
            end(job)

    try:
        if not lab.served:
            run_jobs(lab, inventory, group, advance)
        for job in wait_for(lab, group, on_end=end):
            lab.cancel([job.id], reason=why_waiting(lab, job))
    finally:
        lab.cancel(group=group, reason="interrupted")
