"""Staging: which pipeline stage (accelerator) does each operator belong to?

A plan gives every operator a stage from 0 to K - 1 such that no edge goes backwards and no
stage is empty. The pipeline is driven by the host, as libcoral's PipelinedModelRunner does: a
tensor that crosses stages is fetched once by the host after the stage that writes it and sent
once to each later stage that reads it.

The time of one stage is

    compute + in + out + streaming of parameters beyond the cache + overhead

with the constants of the device model (coralline.devices).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coralline.devices.model import MIB, DeviceModel
from coralline.errors import PlanError, UserError, parse_json, read_text
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.staging.bounds import cut_bound, work_bound

SCHEMA = "coralline.plan/v1"

Objective = Literal["bottleneck", "peak-memory", "latency"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
UNITS: Mapping[Objective, str] = {"bottleneck": "ms", "peak-memory": "bytes", "latency": "ms"}


@dataclass(frozen=True)
class StagingProblem:
    """Put the operators of `graph` on `n_stages` equal devices in a row.

    Attributes:
        objective: `bottleneck`, the time of the slowest stage in ms; `peak-memory`, the largest
            parameter bytes of a stage; `latency`, the sum of the stages' times in ms.
        children_together: The published Edge TPU rule of RESPECT: all operators that read
            from one operator share a stage.

    Raises:
        UserError: The number of stages does not suit the graph.
    """

    graph: ComputeGraph
    n_stages: int
    device: DeviceModel
    objective: Objective = "bottleneck"
    children_together: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UserError(
                f"objective {self.objective!r} is not known; choose {', '.join(OBJECTIVES)}"
            )
        if self.n_stages < 1:
            raise UserError(f"{self.n_stages} stages: a pipeline has at least 1 stage")
        if self.n_stages > self.graph.n_nodes:
            raise UserError(
                f"{self.n_stages} stages for {self.graph.n_nodes} operators of "
                f"{self.graph.name!r}: every stage needs one; ask for fewer stages"
            )

    @cached_property
    def node_ms(self) -> NDArray[np.float64]:
        """float64 (V,): compute time of each operator on the device, in ms."""
        return self.device.node_ms(self.graph)


@dataclass(frozen=True)
class Evaluation:
    """What a staging costs, stage by stage; every array has K entries.

    Attributes:
        value: The problem's objective, in its unit.
        param_bytes: Parameters of each stage.
        compute_ms, in_ms, out_ms, stream_ms: The parts of a stage's time.
        stage_ms: Their sum with the overhead.
        in_bytes, out_bytes: What the host sends to and fetches from each stage.
        hop_weighted_crossings: Sum over edges of the number of stage borders they cross.
    """

    value: float
    param_bytes: NDArray[np.int64]
    compute_ms: NDArray[np.float64]
    in_ms: NDArray[np.float64]
    out_ms: NDArray[np.float64]
    stream_ms: NDArray[np.float64]
    stage_ms: NDArray[np.float64]
    in_bytes: NDArray[np.int64]
    out_bytes: NDArray[np.int64]
    hop_weighted_crossings: int

    def to_json(self) -> dict[str, Any]:
        """Per stage, for a plan's record."""
        return {
            key: np.asarray(getattr(self, key)).tolist()
            for key in [
                "param_bytes",
                "compute_ms",
                "in_ms",
                "out_ms",
                "stream_ms",
                "stage_ms",
                "in_bytes",
                "out_bytes",
                "hop_weighted_crossings",
            ]
        }


def check(problem: StagingProblem, stage: ArrayLike) -> NDArray[np.int64]:
    """The stages as int64 (V,) if they are a feasible plan of the problem.

    Raises:
        PlanError: Names the first node or edge that breaks a rule.
    """
    graph, k = problem.graph, problem.n_stages
    s = np.asarray(stage)
    if s.shape != (graph.n_nodes,) or not np.issubdtype(s.dtype, np.integer):
        raise PlanError(
            f"a plan for {graph.name!r} needs one whole stage number for each of its "
            f"{graph.n_nodes} operators"
        )
    s = s.astype(np.int64)
    bad = np.flatnonzero((s < 0) | (s >= k))
    if len(bad):
        name = graph.node_names[bad[0]]
        raise PlanError(f"node {bad[0]} ({name!r}) is in stage {s[bad[0]]} of 0 to {k - 1}")
    u, v = graph.edges.T
    bad = np.flatnonzero(s[u] > s[v])
    if len(bad):
        a, b = u[bad[0]], v[bad[0]]
        raise PlanError(
            f"the edge {graph.node_names[a]!r} -> {graph.node_names[b]!r} goes backwards, "
            f"from stage {s[a]} to stage {s[b]}"
        )
    empty = np.setdiff1d(np.arange(k), s)
    if len(empty):
        raise PlanError(f"stage {empty[0]} is empty")
    if problem.children_together:
        for node, children in enumerate(graph.successors):
            if len(set(s[list(children)].tolist())) > 1:
                raise PlanError(f"the children of {graph.node_names[node]!r} are in several stages")
    return s


def evaluate(problem: StagingProblem, stage: ArrayLike) -> Evaluation:
    """What a feasible staging costs.

    Args:
        stage: (V,) stage of each operator, 0 to K - 1.

    Raises:
        PlanError: The staging is not feasible.
    """
    s = check(problem, stage)
    graph, device, k = problem.graph, problem.device, problem.n_stages
    size, producer = graph.tensor_bytes, graph.tensor_producer
    home = np.where(producer == MODEL_INPUT, -1, s[producer])
    # A tensor is sent once to a stage, however many of the stage's operators read it.
    readings = np.unique(graph.consumer_tensor * k + s[graph.consumers])
    tensor, reader = np.divmod(readings, k)
    sent = home[tensor] != reader
    in_bytes = np.bincount(reader[sent], weights=size[tensor[sent]], minlength=k)
    leaves = graph.tensor_is_output & (home >= 0)
    leaves[tensor[sent]] |= home[tensor[sent]] >= 0
    out_bytes = np.bincount(home[leaves], weights=size[leaves], minlength=k)
    params = np.bincount(s, weights=graph.param_bytes, minlength=k)
    compute = np.bincount(s, weights=problem.node_ms, minlength=k)
    in_ms = in_bytes / MIB * device.in_ms_per_mib
    out_ms = out_bytes / MIB * device.out_ms_per_mib
    beyond = np.maximum(params - device.parameter_cache_bytes, 0)
    stream = beyond / MIB * device.stream_ms_per_mib
    stage_ms = compute + in_ms + out_ms + stream + device.stage_overhead_ms
    if problem.objective == "bottleneck":
        value = stage_ms.max()
    elif problem.objective == "latency":
        value = stage_ms.sum()
    else:
        value = params.max()
    u, v = graph.edges.T
    return Evaluation(
        value=float(value),
        param_bytes=params.astype(np.int64),
        compute_ms=compute.astype(np.float64),
        in_ms=in_ms,
        out_ms=out_ms,
        stream_ms=stream,
        stage_ms=stage_ms,
        in_bytes=in_bytes.astype(np.int64),
        out_bytes=out_bytes.astype(np.int64),
        hop_weighted_crossings=int((s[v] - s[u]).sum()),
    )


@dataclass(frozen=True)
class Plan:
    """A staging with the evidence of how good it is.

    Attributes:
        graph_digest: Of the graph it was made for.
        stage: Stage of each operator, in the graph's order.
        value: Of the objective, in `unit`.
        lower_bound: Proven: no plan has a smaller value.
        gap: value / lower_bound - 1, or None when only the bound is 0.
        proven_optimal: Whether the gap is within OPTIMALITY_TOLERANCE.
        solve_seconds: Wall time of the planner alone, without loading its libraries.
        stages: Per-stage costs, `Evaluation.to_json`.
    """

    graph_name: str
    graph_digest: str
    n_stages: int
    device: str
    device_digest: str
    simulated: bool
    objective: Objective
    children_together: bool
    planner: str
    planner_version: str
    stage: tuple[int, ...]
    value: float
    unit: str
    lower_bound: float
    gap: float | None
    proven_optimal: bool
    solve_seconds: float
    stages: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A `coralline.plan/v1` object."""
        data = {name: getattr(self, name) for name in Plan.__dataclass_fields__}
        return {"schema": SCHEMA, **data, "stage": list(self.stage)}

    @staticmethod
    def from_json(data: Any) -> Plan:
        """Read what `to_json` wrote.

        Raises:
            UserError: Names the field that is missing or malformed.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise UserError(f"is not a plan; its `schema` must be {SCHEMA}")
        missing = [name for name in Plan.__dataclass_fields__ if name not in data]
        if missing:
            raise UserError(f"the plan lacks {', '.join(missing)}; make it again")
        values = {name: data[name] for name in Plan.__dataclass_fields__}
        stage = values["stage"]
        if not isinstance(stage, list) or not all(type(s) is int and s >= 0 for s in stage):
            raise UserError("the plan's `stage` must be a list of whole numbers from 0")
        if type(values["n_stages"]) is not int or values["n_stages"] < 1:
            raise UserError("the plan's `n_stages` must be a whole number from 1")
        for name in ("value", "lower_bound", "solve_seconds"):
            if type(values[name]) not in (int, float) or not np.isfinite(values[name]):
                raise UserError(f"the plan's `{name}` must be a number; make the plan again")
        return Plan(**{**values, "stage": tuple(stage)})

    def check_graph(self, graph: ComputeGraph) -> None:
        """Raise UserError unless the plan was made for this graph."""
        if graph.digest != self.graph_digest:
            raise UserError(
                f"the plan was made for {self.graph_name!r} ({self.graph_digest[:12]}), not for "
                f"{graph.name!r} ({graph.digest[:12]}); make one with `coralline schedule`"
            )

    def with_bound(self, bound: float) -> Plan:
        """The plan with a better proven bound, if this one is better."""
        best = max(self.lower_bound, min(bound, self.value))
        gap = _gap(self.value, best)
        proven = gap is not None and gap <= OPTIMALITY_TOLERANCE
        return replace(self, lower_bound=best, gap=gap, proven_optimal=proven)


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        UserError: The file is missing, is not JSON, or is no plan.
    """
    data = parse_json(read_text(path, "a plan that `coralline schedule --out` wrote"), str(path))
    try:
        return Plan.from_json(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


@dataclass(frozen=True)
class Effort:
    """How hard a planner may try.

    Attributes:
        time_limit_s: Wall time after which it returns the best plan it has.
        seed: For everything random.
        workers: Threads.
        policy: Path of the trained network that the planner `policy` reads; None for the one
            in the package.
    """

    time_limit_s: float = 60.0
    seed: int = 0
    workers: int = 2
    policy: str | None = None


@dataclass(frozen=True)
class Proposal:
    """What a planner returns: the stages and, if it has one, a proven bound on any plan."""

    stage: NDArray[np.int64]
    lower_bound: float | None = None


Planner = Callable[[StagingProblem, Effort], Proposal]

OPTIMALITY_TOLERANCE = 1e-6
"""Relative; solvers that count in whole nanoseconds cannot prove more."""

_PLANNERS: dict[str, tuple[str, Planner, Callable[[], object] | None]] = {}


def register(
    name: str, version: str, load: Callable[[], object] | None = None
) -> Callable[[Planner], Planner]:
    """Make a planner available by name.

    Args:
        version: Raise it when the planner's plans may change.
        load: Imports and compiles what the planner uses; not counted as time to solve.
    """

    def add(planner: Planner) -> Planner:
        _PLANNERS[name] = (version, planner, load)
        return planner

    return add


def planner_names() -> tuple[str, ...]:
    """Names of the registered planners."""
    return tuple(sorted(_PLANNERS))


def make_plan(problem: StagingProblem, planner: str, effort: Effort | None = None) -> Plan:
    """Run a planner by name; check, evaluate and bound what it returns.

    Raises:
        UserError: No planner has that name.
        PlanError: No plan satisfies the problem, or the planner returned an infeasible one.
    """
    if planner not in _PLANNERS:
        raise UserError(
            f"planner {planner!r} is not known; choose one of {', '.join(planner_names())}"
        )
    version, function, load = _PLANNERS[planner]
    groups = sibling_groups(problem.graph) if problem.children_together else None
    solved = problem
    if groups is not None:
        merged = contract(problem.graph, groups)
        if merged.n_nodes < problem.n_stages:
            raise PlanError(
                f"with all children of a node in one stage {problem.graph.name!r} has only "
                f"{merged.n_nodes} groups for {problem.n_stages} stages; ask for fewer stages"
            )
        merged = merged.with_compute_ms(
            np.bincount(groups, weights=problem.node_ms, minlength=merged.n_nodes)
        )
        solved = replace(problem, graph=merged, children_together=False)
    if load is not None:
        load()
    start = perf_counter()
    proposal = function(solved, effort or Effort())
    seconds = perf_counter() - start
    stage = proposal.stage if groups is None else np.asarray(proposal.stage)[groups]
    evaluation = evaluate(problem, stage)
    plan = Plan(
        graph_name=problem.graph.name,
        graph_digest=problem.graph.digest,
        n_stages=problem.n_stages,
        device=problem.device.name,
        device_digest=problem.device.digest,
        simulated=problem.device.simulated,
        objective=problem.objective,
        children_together=problem.children_together,
        planner=planner,
        planner_version=version,
        stage=tuple(np.asarray(stage).tolist()),
        value=evaluation.value,
        unit=UNITS[problem.objective],
        lower_bound=0.0,
        gap=_gap(evaluation.value, 0.0),
        proven_optimal=False,
        solve_seconds=seconds,
        stages=evaluation.to_json(),
    )
    # The merged problem's bound is the tighter one; both are valid.
    bounds = [work_bound(problem), work_bound(solved)]
    if proposal.lower_bound is not None:
        bounds.append(proposal.lower_bound)
    plan = plan.with_bound(max(bounds))
    return plan if plan.proven_optimal else plan.with_bound(cut_bound(solved))


def sibling_groups(graph: ComputeGraph) -> NDArray[np.int64]:
    """int64 (V,): a group number for each node such that all children of a node share one.

    Groups that would depend on each other in a cycle are joined. Groups are numbered in a
    topological order of the contracted graph.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [(c[0], w) for c in graph.successors if len(c) > 1 for w in c[1:]]
    n = graph.n_nodes
    group = np.arange(n)
    if pairs:
        a, b = np.array(pairs).T
        joined = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
        _, group = connected_components(joined, directed=False)
    u, v = graph.edges.T
    m = int(group.max()) + 1
    quotient = coo_array((np.ones(len(u), np.int8), (group[u], group[v])), shape=(m, m))
    _, strong = connected_components(quotient.tocsr(), directed=True, connection="strong")
    group = strong[group]
    contracted = contract(graph, group)
    rank = np.empty(contracted.n_nodes, np.int64)
    rank[contracted.topological_order] = np.arange(contracted.n_nodes)
    return rank[group]


def contract(graph: ComputeGraph, group: NDArray[np.int64]) -> ComputeGraph:
    """The graph in which each group of nodes, numbered from 0, is one node.

    Tensors that stay inside a group and are no outputs are dropped, except that a group keeps
    at least one tensor. `compute_ms` is the sum where every member has one; operator types
    are lost.
    """
    m = int(group.max()) + 1
    producer = np.where(
        graph.tensor_producer == MODEL_INPUT, MODEL_INPUT, group[graph.tensor_producer]
    )
    readers: list[Iterable[int]] = []
    for t in range(graph.n_tensors):
        nodes = graph.consumers[graph.consumer_start[t] : graph.consumer_start[t + 1]]
        readers.append(set(group[nodes].tolist()) - {int(producer[t])})
    first = {int(p): t for t, p in reversed(list(enumerate(producer)))}
    keep = [
        t
        for t in range(graph.n_tensors)
        if readers[t] or graph.tensor_is_output[t] or first[int(producer[t])] == t
    ]
    size = np.where(
        [bool(readers[t]) or graph.tensor_is_output[t] for t in keep], graph.tensor_bytes[keep], 0
    )
    names = [""] * m
    for node in range(graph.n_nodes - 1, -1, -1):
        names[group[node]] = graph.node_names[node]
    return ComputeGraph.build(
        graph.name,
        node_names=names,
        ops=[""] * m,
        param_bytes=np.bincount(group, weights=graph.param_bytes, minlength=m),
        macs=np.bincount(group, weights=graph.macs, minlength=m),
        compute_ms=np.bincount(group, weights=graph.compute_ms, minlength=m),
        tensor_bytes=size,
        tensor_producer=producer[keep],
        consumers=[readers[t] for t in keep],
        tensor_is_output=graph.tensor_is_output[keep],
    )


def _gap(value: float, bound: float) -> float | None:
    if value <= bound:
        return 0.0
    return value / bound - 1.0 if bound > 0 else None
