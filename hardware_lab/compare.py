"""Two plans on one board in one job, in turns: what the board's mood does, it does to both.

A board that warms up, or is loaded by something else, makes any number of one hour differ from
that of another. Blocks of A B B A put the two plans under the same moods: in a block, what grows
or shrinks steadily weighs on both alike. Each block gives one ratio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from coralline.errors import UserError
from coralline.files import make_folder
from coralline.runtime.child import Progress
from coralline.runtime.measurement import Measurement
from coralline.runtime.samples import write_samples
from coralline.runtime.statistics import Estimate, ratio_of_blocks
from hardware_lab.boards import Board, Task

SCHEMA = "coralline.comparison/v1"
BLOCKS = 4
FEWEST = 2
"""Blocks without which there is no interval."""


@dataclass(frozen=True)
class Comparison:
    """Two plans, A and B, measured in turns.

    Attributes:
        a, b: All samples of each.
        blocks: How many.
        ratios: B over A with its 95 % interval, for each metric of `Measurement.summary` that
            every part has; for times, above 1 means that B is slower.
    """

    a: Measurement
    b: Measurement
    blocks: int
    ratios: Mapping[str, Estimate]

    @property
    def fell_back(self) -> bool:
        """Whether either ran on another processor than asked for."""
        return self.a.fell_back or self.b.fell_back

    def beside(self, **facts: Any) -> Comparison:
        """This, with facts added to the environments of both."""
        return replace(self, a=self.a.beside(**facts), b=self.b.beside(**facts))

    def to_json(self) -> dict[str, Any]:
        """A `coralline.comparison/v1` object."""
        return {
            "schema": SCHEMA,
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "blocks": self.blocks,
            "ratios": {name: ratio.to_json() for name, ratio in self.ratios.items()},
        }

    @staticmethod
    def from_json(data: Any) -> Comparison:
        """Read what `to_json` wrote.

        Raises:
            UserError: It is something else.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise UserError(f"is not a comparison; its `schema` must be {SCHEMA}")
        return Comparison(
            Measurement.from_json(data["a"]),
            Measurement.from_json(data["b"]),
            data["blocks"],
            {name: Estimate(**ratio) for name, ratio in data["ratios"].items()},
        )


def write_all_samples(result: Measurement | Comparison, out: Path) -> None:
    """Write raw samples as Parquet; of a comparison into two files, `.a` and `.b` in their names.

    Raises:
        UserError: A file cannot be written.
    """
    if isinstance(result, Measurement):
        parts = {"": result}
    else:
        parts = {".a": result.a, ".b": result.b}
    for name, part in parts.items():
        if part.latency_ms:
            write_samples(part, out.with_suffix(f"{name}.parquet"))


def compare(
    board: Board, task: Task, against: Path, on_progress: Progress | None = None
) -> Comparison:
    """Measure `task.path`, A, and `against`, B, in turns.

    Each turn takes its share of the task's samples and seconds, after its own warm-up.

    Raises:
        UserError: The task cannot run on this board, or asks for fewer samples than turns.
        DeviceError: The board failed.
    """
    blocks = min(BLOCKS, task.repetitions // 2)
    if blocks < FEWEST:
        raise UserError(f"{task.repetitions} repetitions: a comparison needs at least {2 * FEWEST}")
    each = replace(
        task,
        repetitions=math.ceil(task.repetitions / (2 * blocks)),
        seconds=None if task.seconds is None else task.seconds / (2 * blocks),
    )
    a: list[Measurement] = []
    b: list[Measurement] = []
    for _ in range(blocks):
        for path, parts in ((task.path, a), (against, b), (against, b), (task.path, a)):
            before = len(a) + len(b)

            def report(done: int, total: int, before: int = before) -> None:
                if on_progress is not None:
                    on_progress(before * total + done, 4 * blocks * total)

            scratch = task.scratch
            if scratch is not None:
                scratch = make_folder(scratch / f"turn-{before:02d}-{'a' if parts is a else 'b'}")
            parts.append(board.measure(replace(each, path=path, scratch=scratch), report))
    summaries = [part.summary() for part in (*a, *b)]
    shared = [name for name in summaries[0] if all(s.get(name, 0) > 0 for s in summaries)]

    def by_block(parts: list[Measurement], name: str) -> list[float]:
        values = np.array([part.summary()[name] for part in parts]).reshape(blocks, 2)
        return np.sqrt(values.prod(axis=1)).tolist()

    return Comparison(
        Measurement.merged(a),
        Measurement.merged(b),
        blocks,
        {name: ratio_of_blocks(by_block(a, name), by_block(b, name)) for name in shared},
    )
