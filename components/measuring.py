"""What the dispatching component does, as a plain function."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

from coralline.errors import DeviceError
from coralline.files import make_folder, write_text

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
    from hardware_lab.runner import run_jobs

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
    ended: set[str] = set()

    def advance(job_id: str, done: int, total: int) -> None:
        if done == total and job_id not in ended:
            ended.add(job_id)
            on_progress("measuring", len(ended), len(jobs))

    try:
        run_jobs(store, available, group, lambda job, done, total: advance(job.id, done, total))
    finally:
        store.cancel(group=group, reason="interrupted")
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
