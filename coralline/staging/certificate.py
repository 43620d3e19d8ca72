"""A check of a plan and of what it claims, independent of the planners and of `evaluate`.

Everything is computed again, operator by operator and tensor by tensor, from the graph and the
constants of the device model alone. What can be wrong with a plan is wrong with one of: the
model and the device it names, its feasibility, its numbers, its bound. The first three are
settled here. A bound is a claim about all plans: the part of it that three short arguments give
(`own_bound`) is proven here, the rest is the planner's word until another exact planner proves
it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coralline.devices.model import MIB, DeviceModel, operator_kind
from coralline.errors import UserError
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.staging.problem import (
    OBJECTIVES,
    OPTIMALITY_TOLERANCE,
    UNITS,
    Effort,
    Plan,
    StagingProblem,
    make_plan,
    planner_names,
)

SCHEMA = "coralline.certificate/v1"

SAME = 1e-9
"""Relative difference up to which two sums of the same times are equal."""

PROVERS = ("exact", "exact-cpsat", "exact-milp")
"""Planners that prove optimality by themselves; the first one that did not make the plan."""


@dataclass(frozen=True)
class Certificate:
    """What a check of a plan found; there is none for a plan that is wrong.

    Attributes:
        graph_name, planner: Of the plan.
        value, lower_bound, unit, proven_optimal: The plan's, all checked.
        own_bound: The bound proven here.
        prover: The planner that was asked for a proof of its own, or None.
        prover_bound: The bound it proved; None without one.
        bound_rests_on: `this check`, the name of the prover, or `the planner's word`.
        not_checked: Fields that no check can settle.
    """

    graph_name: str
    planner: str
    value: float
    lower_bound: float
    unit: str
    proven_optimal: bool
    own_bound: float
    prover: str | None
    prover_bound: float | None
    bound_rests_on: str
    not_checked: tuple[str, ...] = ("planner", "planner_version", "solve_seconds")

    def to_json(self) -> dict[str, Any]:
        """A `coralline.certificate/v1` object."""
        data = {name: getattr(self, name) for name in Certificate.__dataclass_fields__}
        return {"schema": SCHEMA, **data, "not_checked": list(self.not_checked)}


def verify_plan(
    plan: Plan, graph: ComputeGraph, device: DeviceModel, prove_s: float | None = None
) -> Certificate:
    """Check a plan against the model and the device it was made for.

    Args:
        prove_s: Seconds that an exact planner other than the plan's own may take to prove the
            bound again; None to ask none.

    Raises:
        UserError: Names what differs.
    """
    differences = _identity(plan, graph, device) or _feasibility(plan, graph)
    own = 0.0
    if not differences:
        times = _Costs(graph, device, plan.stage, plan.n_stages)
        own = own_bound(graph, device, plan)
        differences = _numbers(plan, times) + _claims(plan)
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise UserError(f"the plan is wrong: {differences[0]}{more}; make it again")
    rests_on, prover, prover_bound = "the planner's word", None, None
    if plan.lower_bound <= own * (1 + SAME):
        rests_on = "this check"
    if prove_s is not None:
        prover, prover_bound = _prove(plan, graph, device, prove_s)
        proves = plan.lower_bound <= prover_bound * (1 + OPTIMALITY_TOLERANCE)
        if rests_on != "this check" and proves:
            rests_on = prover
    return Certificate(
        graph_name=plan.graph_name,
        planner=plan.planner,
        value=plan.value,
        lower_bound=plan.lower_bound,
        unit=plan.unit,
        proven_optimal=plan.proven_optimal,
        own_bound=own,
        prover=prover,
        prover_bound=prover_bound,
        bound_rests_on=rests_on,
    )


def own_bound(graph: ComputeGraph, device: DeviceModel, plan: Plan) -> float:
    """A bound that no plan of the same problem can beat, by three arguments.

    One of K stages has at least the K-th part of all that must be done: every operator once,
    every stage's overhead, the model's inputs in and outputs out, all parameters beyond K
    caches streamed. Some stage has the largest operator. An operator in stage s has its
    ancestors in the stages up to s and its descendants in those from s on, so that, whatever s
    is, one of the first s + 1 or of the last K - s stages has an even share of them.
    """
    k, bytes_ = plan.n_stages, [int(p) for p in graph.param_bytes]
    node_ms = [_node_ms(graph, device, v) for v in range(graph.n_nodes)]
    overhead = device.stage_overhead_ms

    def work(nodes: Iterable[int]) -> tuple[int, float]:
        members = sorted(nodes)
        return sum(bytes_[v] for v in members), math.fsum(node_ms[v] for v in members)

    def least(held: int, ms: float, stages: int) -> float:
        """Of the slowest of so many stages that do this work among other."""
        if plan.objective == "peak-memory":
            return -(-held // stages)
        beyond = max(held - stages * device.parameter_cache_bytes, 0)
        return (ms + beyond / MIB * device.stream_ms_per_mib) / stages + overhead

    given = 0.0
    for t in range(graph.n_tensors):
        mib = int(graph.tensor_bytes[t]) / MIB
        if graph.tensor_producer[t] != MODEL_INPUT:
            given += mib * device.out_ms_per_mib if graph.tensor_is_output[t] else 0.0
        elif _readers(graph, t):
            given += mib * device.in_ms_per_mib
    held, ms = work(range(graph.n_nodes))
    everything = least(held, ms + given, k)
    if plan.objective == "latency":
        return k * everything
    bound = max(everything, *(least(bytes_[v], node_ms[v], 1) for v in range(graph.n_nodes)))
    order = graph.topological_order.tolist()
    before = _closures(order, graph.predecessors)
    after = _closures(order[::-1], graph.successors)
    for v in order:
        up, down = work(before[v]), work(after[v])
        bound = max(bound, min(max(least(*up, s + 1), least(*down, k - s)) for s in range(k)))
    return bound


def _closures(order: Sequence[int], neighbours: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    closed: dict[int, set[int]] = {}
    for v in order:
        closed[v] = {v}.union(*(closed[u] for u in neighbours[v]))
    return closed


def _readers(graph: ComputeGraph, t: int) -> list[int]:
    readers = graph.consumers[graph.consumer_start[t] : graph.consumer_start[t + 1]]
    return [int(v) for v in readers]


def _node_ms(graph: ComputeGraph, device: DeviceModel, v: int) -> float:
    measured = float(graph.compute_ms[v])
    if not math.isnan(measured):
        return measured
    macs = int(graph.macs[v])
    if macs == 0:
        return 0.0
    return macs / device.macs_per_ms[operator_kind(graph.ops[v])] + device.op_overhead_ms


class _Costs:
    """What each stage costs, in plain lists of K entries; and the sum of crossings."""

    def __init__(
        self, graph: ComputeGraph, device: DeviceModel, stage: Sequence[int], k: int
    ) -> None:
        self.param_bytes = [0] * k
        self.in_bytes = [0] * k
        self.out_bytes = [0] * k
        compute: list[list[float]] = [[] for _ in range(k)]
        for v in range(graph.n_nodes):
            self.param_bytes[stage[v]] += int(graph.param_bytes[v])
            compute[stage[v]].append(_node_ms(graph, device, v))
        edges = set()
        for t in range(graph.n_tensors):
            size, producer = int(graph.tensor_bytes[t]), int(graph.tensor_producer[t])
            home = None if producer == MODEL_INPUT else stage[producer]
            readers = _readers(graph, t)
            others = {stage[v] for v in readers} - {home}
            for s in others:
                self.in_bytes[s] += size
            if home is not None:
                if others or graph.tensor_is_output[t]:
                    self.out_bytes[home] += size
                edges |= {(producer, v) for v in readers}
        self.hop_weighted_crossings = sum(stage[v] - stage[u] for u, v in edges)
        self.compute_ms = [math.fsum(ms) for ms in compute]
        self.in_ms = [b / MIB * device.in_ms_per_mib for b in self.in_bytes]
        self.out_ms = [b / MIB * device.out_ms_per_mib for b in self.out_bytes]
        self.stream_ms = [
            max(b - device.parameter_cache_bytes, 0) / MIB * device.stream_ms_per_mib
            for b in self.param_bytes
        ]
        self.stage_ms = [
            math.fsum(parts) + device.stage_overhead_ms
            for parts in zip(self.compute_ms, self.in_ms, self.out_ms, self.stream_ms, strict=True)
        ]

    def value(self, objective: str) -> float:
        if objective == "bottleneck":
            return max(self.stage_ms)
        return math.fsum(self.stage_ms) if objective == "latency" else max(self.param_bytes)


def _identity(plan: Plan, graph: ComputeGraph, device: DeviceModel) -> list[str]:
    if plan.objective not in OBJECTIVES:
        return [f"objective {plan.objective!r} is not known"]
    expected = {
        "graph_name": graph.name,
        "graph_digest": graph.digest,
        "device": device.name,
        "device_digest": device.digest,
        "simulated": device.simulated,
        "unit": UNITS[plan.objective],
    }
    differences = [
        _differs(name, getattr(plan, name), right)
        for name, right in expected.items()
        if type(getattr(plan, name)) is not type(right) or getattr(plan, name) != right
    ]
    for name in ("children_together", "proven_optimal"):
        if type(getattr(plan, name)) is not bool:
            differences.append(f"{name} is {getattr(plan, name)!r}; it must be true or false")
    for name in ("planner", "planner_version"):
        if not isinstance(getattr(plan, name), str) or not getattr(plan, name):
            differences.append(f"{name} is {getattr(plan, name)!r}; it must be a name")
    for name in ("value", "lower_bound", "solve_seconds"):
        if not _is_amount(getattr(plan, name)):
            differences.append(f"{name} is {getattr(plan, name)!r}; it must be a number from 0")
    if not isinstance(plan.stages, Mapping):
        differences.append("stages is no object with the costs of the stages")
    return differences


def _feasibility(plan: Plan, graph: ComputeGraph) -> list[str]:
    stage, k = plan.stage, plan.n_stages
    if len(stage) != graph.n_nodes:
        return [f"stage has {len(stage)} entries for {graph.n_nodes} operators"]
    if k > graph.n_nodes:
        return [f"n_stages is {k} for {graph.n_nodes} operators"]
    differences = []
    for s in range(k):
        if s not in stage:
            differences.append(f"stage {s} of {k} is empty")
    for v, s in enumerate(stage):
        name = graph.node_names[v]
        if not 0 <= s < k:
            differences.append(f"stage of {name!r} is {s}; there are {k}")
        children = graph.successors[v]
        for w in children:
            if stage[w] < s:
                differences.append(f"stage of {graph.node_names[w]!r} is before that of {name!r}")
        if plan.children_together and len({stage[w] for w in children}) > 1:
            differences.append(f"stage of the children of {name!r} is not one and the same")
    return differences


def _numbers(plan: Plan, costs: _Costs) -> list[str]:
    differences = []
    value = costs.value(plan.objective)
    if not _same(plan.value, value):
        differences.append(_differs("value", plan.value, value))
    expected = vars(costs)
    for name in sorted(expected.keys() | plan.stages.keys()):
        if name not in expected or name not in plan.stages:
            what = "is missing" if name in expected else "is no cost"
            differences.append(f"stages.{name} {what}")
            continue
        right, found = expected[name], plan.stages[name]
        if not isinstance(right, list):
            right, found = [right], [found]
        if not isinstance(found, list) or len(found) != len(right):
            differences.append(f"stages.{name} needs {len(right)} numbers")
            continue
        for s, (a, b) in enumerate(zip(found, right, strict=True)):
            if not _same(a, b):
                differences.append(_differs(f"stages.{name}[{s}]", a, b))
    return differences


def _claims(plan: Plan) -> list[str]:
    """What the plan says about its bound, against its value."""
    differences = []
    if plan.lower_bound > plan.value:
        differences.append(f"lower_bound {plan.lower_bound} is above the value {plan.value}")
    gap: float | None = None
    if plan.value <= plan.lower_bound:
        gap = 0.0
    elif plan.lower_bound > 0:
        gap = plan.value / plan.lower_bound - 1
    if (gap is None) != (plan.gap is None) or (
        gap is not None and not (_is_amount(plan.gap) and abs(plan.gap - gap) <= SAME)  # type: ignore[operator]
    ):
        differences.append(_differs("gap", plan.gap, gap))
    proven = gap is not None and gap <= OPTIMALITY_TOLERANCE
    if plan.proven_optimal != proven:
        differences.append(_differs("proven_optimal", plan.proven_optimal, proven))
    return differences


def _prove(
    plan: Plan, graph: ComputeGraph, device: DeviceModel, seconds: float
) -> tuple[str, float]:
    """Another exact planner and the bound it proves.

    Raises:
        UserError: It finds a plan that the given plan's bound rules out.
    """
    prover = next(name for name in PROVERS if name in planner_names() and name != plan.planner)
    problem = StagingProblem(graph, plan.n_stages, device, plan.objective, plan.children_together)
    proof = make_plan(problem, prover, Effort(time_limit_s=seconds))
    value = _Costs(graph, device, proof.stage, plan.n_stages).value(plan.objective)
    if value < plan.lower_bound * (1 - OPTIMALITY_TOLERANCE):
        raise UserError(
            f"the plan is wrong: lower_bound is {plan.lower_bound}, but {prover} found a plan "
            f"of {value} {plan.unit}; make it again"
        )
    return prover, proof.lower_bound


def _is_amount(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]


def _same(found: object, right: float) -> bool:
    if not _is_amount(found):
        return False
    if isinstance(right, int):
        return found == right
    return math.isclose(found, right, rel_tol=SAME, abs_tol=1e-12)  # type: ignore[arg-type]


def _differs(name: str, found: object, right: object) -> str:
    return f"{name} is {found!r}, should be {right!r}"
