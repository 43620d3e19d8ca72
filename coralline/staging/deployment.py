"""How many stages, and how many copies of the whole pipeline, for a number of accelerators?

More stages hold more parameters in their caches but add transfers; with R copies of a pipeline
of K stages on R K accelerators the throughput is R over the bottleneck. Measurements on eight
Edge TPUs find the best at the smallest K whose stages fit the caches (SPARTA,
https://github.com/mouad-zouhdi/sparta-edgetpu). Copies are taken to be independent: what they
share on the host, such as one USB controller, is not modelled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from coralline.devices.model import MIB, DeviceModel
from coralline.errors import PlanError, UserError
from coralline.staging.problem import Effort, Plan, StagingProblem, make_plan


@dataclass(frozen=True)
class Deployment:
    """One way to use the accelerators, priced by the device model.

    Attributes:
        replicas: Copies of the whole pipeline, each on its own accelerators.
        throughput_fps: Of all copies, every pipeline full.
        latency_ms: Of one inference, alone in its pipeline.
        streamed_bytes: Parameters beyond the caches, sent again for every inference.
    """

    plan: Plan
    replicas: int
    throughput_fps: float
    latency_ms: float
    streamed_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Without the plan."""
        return {
            "stages": self.plan.n_stages,
            "replicas": self.replicas,
            "throughput_fps": self.throughput_fps,
            "latency_ms": self.latency_ms,
            "streamed_bytes": self.streamed_bytes,
            "gap": self.plan.gap,
            "simulated": self.plan.simulated,
        }


@dataclass(frozen=True)
class Choice:
    """The best deployment and what it was compared with.

    Attributes:
        best: One of `options`.
        options: One for each number of stages, rising.
        reason: Why `best` is that, in one sentence for people.
    """

    best: Deployment
    options: tuple[Deployment, ...]
    reason: str


def choose_stages(
    problem: StagingProblem, accelerators: int, planner: str, effort: Effort
) -> Choice:
    """Plan for every number of stages up to `accelerators` and take the best.

    Args:
        problem: Its number of stages is ignored. The objective `bottleneck` asks for the
            highest throughput of all copies together, `latency` for the lowest latency.
        effort: The time limit is for each number of stages.

    Raises:
        UserError: No accelerator, devices that differ, or an objective that says nothing about
            copies.
        PlanError: There is no plan for any number of stages.
    """
    if accelerators < 1:
        raise UserError(f"{accelerators} accelerators: give at least 1")
    if problem.objective == "peak-memory":
        raise UserError(
            "objective peak-memory always wants the most stages; give --stages, or choose "
            "bottleneck or latency"
        )
    if not isinstance(problem.device, DeviceModel):
        raise UserError("a choice of stages takes one device, all accelerators being equal")
    options, refused = [], None
    for k in range(1, min(accelerators, problem.graph.n_nodes) + 1):
        try:
            plan = make_plan(replace(problem, n_stages=k), planner, effort)
        except PlanError as error:
            # Too few stages for the memory limit, or too many for the groups of children.
            refused = error
        else:
            options.append(_deployment(plan, accelerators // k))
    if not options and refused is not None:
        raise refused
    if problem.objective == "bottleneck":
        best = max(options, key=lambda o: (o.throughput_fps, -o.replicas * o.plan.n_stages))
    else:
        best = min(options, key=lambda o: (o.latency_ms, o.plan.n_stages))
    return Choice(best, tuple(options), _reason(best, options, problem))


def _deployment(plan: Plan, replicas: int) -> Deployment:
    return Deployment(
        plan=plan,
        replicas=replicas,
        throughput_fps=replicas * 1000 / max(plan.stages["stage_ms"]),
        latency_ms=sum(plan.stages["stage_ms"]),
        streamed_bytes=sum(plan.stages["streamed_bytes"]),
    )


def _reason(best: Deployment, options: list[Deployment], problem: StagingProblem) -> str:
    k = best.plan.n_stages
    shape = f"{best.replicas} x {k} stage{'s' if k > 1 else ''}"
    goal = "throughput" if problem.objective == "bottleneck" else "latency"
    others = [o for o in options if o is not best]
    if not others:
        return f"{shape}: there is no other way to use the accelerators"
    if problem.objective == "bottleneck":
        second = max(others, key=lambda o: o.throughput_fps)
        ratio = best.throughput_fps / second.throughput_fps
    else:
        second = min(others, key=lambda o: o.latency_ms)
        ratio = second.latency_ms / best.latency_ms
    fitting = [o.plan.n_stages for o in options if o.streamed_bytes == 0]
    if best.streamed_bytes:
        memory = f"streams {best.streamed_bytes / MIB:.2f} MiB of parameters an inference"
    elif k == min(fitting):
        memory = "is the fewest stages whose parameters all fit the caches"
    else:
        memory = f"fits the caches, as {min(fitting)} stages would"
    return (
        f"{shape} {memory}; its {goal} is {ratio:.2f} times as good as that of the next best, "
        f"{second.replicas} x {second.plan.n_stages}"
    )
