"""What a person sees while a pipeline runs."""

from __future__ import annotations

from collections import Counter
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from pipelines.local import Event


class Display:
    """Shows events as bars on a terminal and as lines elsewhere.

    Args:
        stream: Where to.
        quiet: Show nothing.
    """

    def __init__(self, stream: IO[str], *, quiet: bool) -> None:
        self._console = Console(file=stream, quiet=quiet)
        self._bars: dict[str, TaskID] = {}
        self._running: Counter[str] = Counter()
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Show one event."""
        if not self._console.is_terminal:
            if event.kind != "progress":
                self._console.print(f"{event.kind:8} {event.step}")
            return
        bar = self._bars.get(event.step)
        if bar is None:
            bar = self._bars[event.step] = self._progress.add_task(event.step, total=None, note="")
        if event.kind == "progress":
            note = f"{event.done}/{event.total}"
            self._progress.update(bar, completed=event.done, total=event.total, note=note)
            if event.done == event.total:
                del self._bars[event.step]
            return
        # A step may run several times at once: one bar, until the last of them ends.
        self._running[event.step] += {"started": 1, "ended": -1, "reused": 0}[event.kind]
        if self._running[event.step] <= 0:
            note = "reused" if event.kind == "reused" else ""
            self._progress.update(bar, completed=1, total=1, note=note)
            del self._bars[event.step]
