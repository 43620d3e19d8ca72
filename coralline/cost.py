"""What the steps of a pipeline used."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepCost:
    """What a step used, over all the times that it ran for one execution.

    Attributes:
        name: Of the component.
        times: How often it ran: once for each shard or model, where it has them.
        reused: How many of these were taken from an earlier execution, which paid for them.
        started_at: Of the first of those that were not reused; ISO 8601, UTC. None for none.
        seconds: Wall time, summed.
        cpu_seconds: Processor time of its process and their children, summed.
        peak_bytes: Most memory that one of these processes held at once.
    """

    name: str
    times: int
    reused: int
    started_at: str | None
    seconds: float
    cpu_seconds: float
    peak_bytes: int
