"""A check of a plan and of what it claims, independent of the planners and of `evaluate`.

Everything is computed again, operator by operator and tensor by tensor, from the graph and the
constants of the device models alone. What can be wrong with a plan is wrong with one of: the
model and the devices it names, its feasibility, its numbers, its bounds. The first three are
settled here. A bound is a claim about all plans: the part of it that three short arguments give
(`own_bound`) is proven here, and a fourth for the crossings (`own_crossings_bound`); the rest is
the planner's word until another exact planner proves it again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from coralline.devices.model import MIB, DeviceModel, load_device, operator_kind
from coralline.errors import PlanError, UserError
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.staging.problem import (
    OBJECTIVES,
    OPTIMALITY_TOLERANCE,
    UNITS,
    Effort,
    Plan,
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
        crossings, crossings_lower_bound: The plan's hop-weighted crossings, and what it says
            about those of all plans of its value; the second is None where it says nothing.
        own_crossings_bound, prover_crossings_bound, crossings_bound_rests_on: As for the bound;
            None where the plan says nothing.
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
    crossings: int
    crossings_lower_bound: int | None
    own_crossings_bound: int | None
    prover_crossings_bound: int | None
    crossings_bound_rests_on: str | None
    not_checked: tuple[str, ...] = ("planner", "planner_version", "solve_seconds")

    def to_json(self) -> dict[str, Any]:
        """A `coralline.certificate/v1` object."""
        data = {name: getattr(self, name) for name in Certificate.__dataclass_fields__}
        return {"schema": SCHEMA, **data, "not_checked": list(self.not_checked)}


def verify_plan(
    plan: Plan,
    graph: ComputeGraph,
    device: DeviceModel | tuple[DeviceModel, ...],
    prove_s: float | None = None,
    host: DeviceModel | None = None,
) -> Certificate:
    """Check a plan against the model and the devices it was made for.

    Args:
        device: Of every stage, or one for each.
        prove_s: Seconds that an exact planner other than the plan's own may take to prove the
            bounds again; None to ask none.
        host: What runs the plan's host operators; without it the model that the plan names.

    Raises:
        UserError: Names what differs.
    """
    if host is None and plan.host is not None:
        host = load_device(str(plan.host))
    if plan.n_stages > graph.n_nodes:
        differences = [f"n_stages is {plan.n_stages} for {graph.n_nodes} operators"]
    else:
        devices = (device,) * plan.n_stages if isinstance(device, DeviceModel) else device
        differences = _identity(plan, graph, devices, host)
    own = 0.0
    if not differences:
        prices = _Prices(plan, graph, devices, host)
        differences = _feasibility(plan, graph, prices)
    if not differences:
        costs = _Costs(prices, plan.stage)
        own = own_bound(prices)
        differences = _numbers(plan, costs) + _claims(plan, costs)
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise UserError(f"the plan is wrong: {differences[0]}{more}; make it again")
    prover, proven, proven_crossings = None, None, None
    if prove_s is not None:
        prover, proven, proven_crossings = _prove(plan, prices, prove_s)

    def rests_on(claim: float, here: float, again: float | None, tolerance: float) -> str:
        if claim <= here * (1 + SAME):
            return "this check"
        if prover is not None and again is not None and claim <= again * (1 + tolerance):
            return prover
        return "the planner's word"

    fewest, own_crossings, crossings_rest_on = plan.crossings_lower_bound, None, None
    if fewest is not None:
        own_crossings = own_crossings_bound(prices)
        crossings_rest_on = rests_on(fewest, own_crossings, proven_crossings, 0.0)
    return Certificate(
        graph_name=plan.graph_name,
        planner=plan.planner,
        value=plan.value,
        lower_bound=plan.lower_bound,
        unit=plan.unit,
        proven_optimal=plan.proven_optimal,
        own_bound=own,
        prover=prover,
        prover_bound=proven,
        bound_rests_on=rests_on(plan.lower_bound, own, proven, OPTIMALITY_TOLERANCE),
        crossings=costs.hop_weighted_crossings,
        crossings_lower_bound=fewest,
        own_crossings_bound=own_crossings,
        prover_crossings_bound=proven_crossings if fewest is not None else None,
        crossings_bound_rests_on=crossings_rest_on,
    )


class _Prices:
    """What the plan's problem charges: plain lists by stage and operator."""

    def __init__(
        self,
        plan: Plan,
        graph: ComputeGraph,
        devices: Sequence[DeviceModel],
        host: DeviceModel | None,
    ) -> None:
        self.plan, self.graph, self.devices, self.host = plan, graph, devices, host
        self.on_host = set(plan.host_operators)
        self.param_bytes = [
            0 if v in self.on_host else int(graph.param_bytes[v]) for v in range(graph.n_nodes)
        ]
        self.activation_bytes = [0] * graph.n_nodes
        for t in range(graph.n_tensors):
            for v in {*_readers(graph, t), int(graph.tensor_producer[t])} - {MODEL_INPUT}:
                if v not in self.on_host:
                    size = int(graph.tensor_bytes[t])
                    self.activation_bytes[v] = max(self.activation_bytes[v], size)

    def node_ms(self, s: int, v: int) -> float:
        """The time of operator v in stage s."""
        device = self.host if v in self.on_host and self.host is not None else self.devices[s]
        measured = float(self.graph.compute_ms[v])
        if not math.isnan(measured):
            return measured
        macs = int(self.graph.macs[v])
        if macs == 0:
            return 0.0
        rate = device.macs_per_ms[operator_kind(self.graph.ops[v])]
        return macs / rate + device.op_overhead_ms

    def cache_bytes(self, s: int, members: Iterable[int]) -> float:
        """The cache for parameters that these operators leave in stage s."""
        device = self.devices[s]
        if not self.plan.activation_cache:
            return device.parameter_cache_bytes
        largest = max(self.activation_bytes[v] for v in members)
        table = device.cache_by_activation
        if largest <= table[0][0]:
            return table[0][1]
        for (low, much), (high, little) in pairwise(table):
            if largest <= high:
                return much + (little - much) * (largest - low) / (high - low)
        return table[-1][1]

    def place(self, t: int, stage: Sequence[int]) -> int | None:
        """The stage whose accelerator tensor t is made on; None for the host's memory."""
        producer = int(self.graph.tensor_producer[t])
        on_host = producer == MODEL_INPUT or producer in self.on_host
        return None if on_host else stage[producer]

    def moves(self, t: int, stage: Sequence[int]) -> tuple[int | None, set[int]]:
        """The stage that tensor t is fetched from, if any, and those it is sent to."""
        home = self.place(t, stage)
        readers = _readers(self.graph, t)
        to = {stage[v] for v in readers if v not in self.on_host} - {home}
        wanted = to or self.graph.tensor_is_output[t] or self.on_host.intersection(readers)
        return home if wanted else None, to


def own_bound(prices: _Prices) -> float:
    """A bound that no plan of the same problem can beat, by three arguments.

    One of K stages has at least the K-th part of all that must be done: every operator once,
    every stage's overhead, what the host gives and gets in any case, all parameters beyond K
    caches streamed. Some stage has the largest operator. An operator in stage s has its
    ancestors in the stages up to s and its descendants in those from s on, so that, whatever s
    is, one of the first s + 1 or of the last K - s stages has an even share of them. Where
    devices differ, each thing costs what it costs at the cheapest of the stages.
    """
    plan, graph, devices = prices.plan, prices.graph, prices.devices
    k, n = plan.n_stages, graph.n_nodes
    node_ms = [[prices.node_ms(s, v) for v in range(n)] for s in range(k)]
    cache = [max(prices.cache_bytes(s, [v]) for v in range(n)) for s in range(k)]
    cheapest = {
        (a, b): tuple(min(ms) for ms in zip(*node_ms[a:b], strict=True))
        for a, b in {*((0, s + 1) for s in range(k)), *((s, k) for s in range(k))}
    }

    def work(nodes: Iterable[int]) -> tuple[int, dict[tuple[float, ...], float]]:
        """Their bytes, and their time by what each takes."""
        members = sorted(nodes)
        held = sum(prices.param_bytes[v] for v in members)
        return held, {ms: math.fsum(ms[v] for v in members) for ms in set(cheapest.values())}

    def least(
        held: int, times: dict[tuple[float, ...], float], a: int, b: int, given_ms: float = 0.0
    ) -> float:
        """Of the slowest of stages a to b - 1, which do this work among other."""
        if plan.objective == "peak-memory":
            return -(-held // (b - a))
        beyond = max(held - sum(cache[a:b]), 0)
        stream_ms = beyond / MIB * min(device.stream_ms_per_mib for device in devices[a:b])
        overhead_ms = math.fsum(device.stage_overhead_ms for device in devices[a:b])
        return (times[cheapest[a, b]] + stream_ms + overhead_ms + given_ms) / (b - a)

    given = 0.0
    for t in range(graph.n_tensors):
        mib = int(graph.tensor_bytes[t]) / MIB
        # Were all operators in one stage, only what the host has and gets would move.
        fetched, sent = prices.moves(t, [0] * n)
        given += len(sent) * mib * min(device.in_ms_per_mib for device in devices)
        if fetched is not None:
            given += mib * min(device.out_ms_per_mib for device in devices)
    everything = least(*work(range(n)), 0, k, given)
    if plan.objective == "latency":
        return k * everything
    bound = everything
    order = graph.topological_order.tolist()
    before = _closures(order, graph.predecessors)
    after = _closures(order[::-1], graph.successors)
    for v in order:
        up, down = work(before[v]), work(after[v])
        shares = (max(least(*up, 0, s + 1), least(*down, s, k)) for s in range(k))
        bound = max(bound, min(shares))
        if plan.objective == "peak-memory":
            bound = max(bound, prices.param_bytes[v])
            continue
        bound = max(
            bound,
            min(
                node_ms[s][v]
                + max(prices.param_bytes[v] - cache[s], 0) / MIB * devices[s].stream_ms_per_mib
                + devices[s].stage_overhead_ms
                for s in range(k)
            ),
        )
    return bound


def own_crossings_bound(prices: _Prices) -> int:
    """Hop-weighted crossings that no plan has fewer of.

    Every border between stages has operators on both sides; where all operators hang together,
    an edge crosses it.
    """
    graph = prices.graph
    reached, waiting = {0}, [0]
    while waiting:
        v = waiting.pop()
        new = {*graph.predecessors[v], *graph.successors[v]} - reached
        reached |= new
        waiting += new
    return prices.plan.n_stages - 1 if len(reached) == graph.n_nodes else 0


def _closures(order: Sequence[int], neighbours: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    closed: dict[int, set[int]] = {}
    for v in order:
        closed[v] = {v}.union(*(closed[u] for u in neighbours[v]))
    return closed


def _readers(graph: ComputeGraph, t: int) -> list[int]:
    readers = graph.consumers[graph.consumer_start[t] : graph.consumer_start[t + 1]]
    return [int(v) for v in readers]


class _Costs:
    """What each stage costs, in plain lists of K entries; and the sum of crossings."""

    def __init__(self, prices: _Prices, stage: Sequence[int]) -> None:
        graph, devices, k = prices.graph, prices.devices, prices.plan.n_stages
        members: list[list[int]] = [[] for _ in range(k)]
        for v, s in enumerate(stage):
            members[s].append(v)
        self.param_bytes = [sum(prices.param_bytes[v] for v in mine) for mine in members]
        self.in_bytes = [0] * k
        self.out_bytes = [0] * k
        edges = set()
        for t in range(graph.n_tensors):
            size, producer = int(graph.tensor_bytes[t]), int(graph.tensor_producer[t])
            fetched, sent = prices.moves(t, stage)
            if fetched is not None:
                self.out_bytes[fetched] += size
            for s in sent:
                self.in_bytes[s] += size
            if producer != MODEL_INPUT:
                edges |= {(producer, v) for v in _readers(graph, t)}
        self.hop_weighted_crossings = sum(stage[v] - stage[u] for u, v in edges)
        beyond = [
            max(held - prices.cache_bytes(s, members[s]), 0)
            for s, held in enumerate(self.param_bytes)
        ]
        # A part of a byte is none; what rounding makes of a whole one is.
        self.streamed_bytes = [math.ceil(b - 1e-6) for b in beyond]
        self.compute_ms = [
            math.fsum(prices.node_ms(s, v) for v in mine) for s, mine in enumerate(members)
        ]
        by_stage = list(enumerate(devices))
        self.in_ms = [self.in_bytes[s] / MIB * d.in_ms_per_mib for s, d in by_stage]
        self.out_ms = [self.out_bytes[s] / MIB * d.out_ms_per_mib for s, d in by_stage]
        self.stream_ms = [beyond[s] / MIB * d.stream_ms_per_mib for s, d in by_stage]
        self.stage_ms = [
            math.fsum(parts) + devices[s].stage_overhead_ms
            for s, parts in enumerate(
                zip(self.compute_ms, self.in_ms, self.out_ms, self.stream_ms, strict=True)
            )
        ]

    def value(self, objective: str) -> float:
        if objective == "bottleneck":
            return max(self.stage_ms)
        return math.fsum(self.stage_ms) if objective == "latency" else max(self.param_bytes)


def _identity(
    plan: Plan, graph: ComputeGraph, devices: Sequence[DeviceModel], host: DeviceModel | None
) -> list[str]:
    if plan.objective not in OBJECTIVES:
        return [f"objective {plan.objective!r} is not known"]
    if len(devices) != plan.n_stages:
        return [f"n_stages is {plan.n_stages} for {len(devices)} devices"]
    if plan.activation_cache and not all(device.cache_by_activation for device in devices):
        return ["activation_cache is true for a device that says nothing of it"]
    if plan.host_operators and host is None:
        return ["host is None; it must be the name of what runs host_operators"]
    names, digests = [d.name for d in devices], [d.digest for d in devices]
    chain = hashlib.sha256(",".join(digests).encode()).hexdigest()
    runner = host if plan.host_operators else None
    expected = {
        "graph_name": graph.name,
        "graph_digest": graph.digest,
        "device": names[0] if len(set(names)) == 1 else ",".join(names),
        "device_digest": digests[0] if len(set(digests)) == 1 else chain,
        "simulated": any(d.simulated for d in devices),
        "host": runner and runner.name,
        "host_digest": runner and runner.digest,
        "unit": UNITS[plan.objective],
    }
    differences = [
        _differs(name, getattr(plan, name), right)
        for name, right in expected.items()
        if type(getattr(plan, name)) is not type(right) or getattr(plan, name) != right
    ]
    for name in ("children_together", "proven_optimal", "activation_cache"):
        if type(getattr(plan, name)) is not bool:
            differences.append(f"{name} is {getattr(plan, name)!r}; it must be true or false")
    for name in ("planner", "planner_version"):
        if not isinstance(getattr(plan, name), str) or not getattr(plan, name):
            differences.append(f"{name} is {getattr(plan, name)!r}; it must be a name")
    for name in ("value", "lower_bound", "solve_seconds"):
        if not _is_amount(getattr(plan, name)):
            differences.append(f"{name} is {getattr(plan, name)!r}; it must be a number from 0")
    for name in ("memory_limit_bytes", "crossings_lower_bound"):
        amount = getattr(plan, name)
        if amount is not None and (type(amount) is not int or amount < 0):
            differences.append(f"{name} is {amount!r}; it must be a whole number from 0 or null")
    if list(plan.host_operators) != sorted(set(plan.host_operators)):
        differences.append("host_operators must be different numbers in rising order")
    if not isinstance(plan.stages, Mapping):
        differences.append("stages is no object with the costs of the stages")
    return differences


def _feasibility(plan: Plan, graph: ComputeGraph, prices: _Prices) -> list[str]:
    stage, k = plan.stage, plan.n_stages
    if len(stage) != graph.n_nodes:
        return [f"stage has {len(stage)} entries for {graph.n_nodes} operators"]
    differences = []
    limit = plan.memory_limit_bytes
    for s in range(k):
        if s not in stage:
            differences.append(f"stage {s} of {k} is empty")
        held = sum(prices.param_bytes[v] for v, at in enumerate(stage) if at == s)
        if limit is not None and held > limit:
            differences.append(f"stage {s} holds {held} bytes; memory_limit_bytes is {limit}")
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


def _claims(plan: Plan, costs: _Costs) -> list[str]:
    """What the plan says about its bounds, against its value."""
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
    fewest, claimed = plan.crossings_lower_bound, plan.objective == "peak-memory" and proven
    if (fewest is not None) != claimed:
        right = "a whole number" if claimed else "null"
        differences.append(f"crossings_lower_bound is {fewest!r}, should be {right}")
    elif fewest is not None and fewest > costs.hop_weighted_crossings:
        differences.append(
            f"crossings_lower_bound {fewest} is above the {costs.hop_weighted_crossings} crossings"
        )
    return differences


def _prove(plan: Plan, prices: _Prices, seconds: float) -> tuple[str, float | None, int | None]:
    """Another exact planner, the bound it proves, and the one on crossings.

    Raises:
        UserError: It finds a plan that the given plan's bounds rule out.
    """
    prover = next(name for name in PROVERS if name in planner_names() and name != plan.planner)
    problem = plan.problem(prices.graph, tuple(prices.devices), prices.host)
    try:
        proof = make_plan(problem, prover, Effort(time_limit_s=seconds))
    except PlanError:
        # In so little time it may find no plan within a memory limit.
        return prover, None, None
    costs = _Costs(prices, proof.stage)
    value, crossings = costs.value(plan.objective), costs.hop_weighted_crossings
    refuted = None
    if value < plan.lower_bound * (1 - OPTIMALITY_TOLERANCE):
        refuted = f"lower_bound is {plan.lower_bound}, but {prover} found a plan of {value}"
    elif value <= plan.value and crossings < (plan.crossings_lower_bound or 0):
        refuted = (
            f"crossings_lower_bound is {plan.crossings_lower_bound}, but {prover} found a plan "
            f"with {crossings} at {value}"
        )
    if refuted:
        raise UserError(f"the plan is wrong: {refuted} {plan.unit}; make it again")
    return prover, proof.lower_bound, proof.crossings_lower_bound


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
