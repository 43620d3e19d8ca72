"""Staging: which pipeline stage (accelerator) does each operator belong to?

A plan gives every operator a stage from 0 to K - 1 such that no edge goes backwards and no
stage is empty. The pipeline is driven by the host, as libcoral's PipelinedModelRunner does: a
tensor that crosses stages is fetched once by the host after the stage that writes it and sent
once to each later stage that reads it.

The time of one stage is

    compute + in + out + streaming of parameters beyond the cache + overhead

with the constants of the stage's device model (coralline.devices).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coralline.devices.model import MIB, DeviceModel, load_device, load_devices
from coralline.errors import PlanError, UserError, parse_json, read_text
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.staging.bounds import crossings_bound, cut_bound, work_bound
from coralline.staging.reduction import Costs, reduce_problem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SCHEMA = "coralline.plan/v1"

Objective = Literal["bottleneck", "peak-memory", "latency"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
UNITS: Mapping[Objective, str] = {"bottleneck": "ms", "peak-memory": "bytes", "latency": "ms"}


@dataclass(frozen=True)
class StagingProblem:
    """Put the operators of `graph` on `n_stages` devices in a row.

    Attributes:
        device: Of every stage, or one for each of the K stages.
        objective: `bottleneck`, the time of the slowest stage in ms; `peak-memory`, the largest
            parameter bytes of a stage and, among plans equal in that, the fewest hop-weighted
            crossings; `latency`, the sum of the stages' times in ms.
        children_together: The published Edge TPU rule of RESPECT: all operators that read
            from one operator share a stage.
        host_operators: Numbers, rising, of the operators that no accelerator runs. In their
            stage they take the host's time and leave the accelerator's memory alone; a tensor
            is moved where it passes between host and accelerator, within a stage too.
        host: What they cost there; without it the shipped model `host-cpu`.
        memory_limit_bytes: The most parameters that a stage may hold; None for no limit.
        activation_cache: Whether a stage's largest activation makes its cache smaller, as the
            devices' `cache_by_activation` says; else caches have `parameter_cache_bytes`.
        costs: In place of what graph and devices say, for a problem that another was reduced to.

    Raises:
        UserError: The numbers of stages, devices or operators do not suit the graph, a device
            does not know how its cache depends on activations, or the limit is below 1.
    """

    graph: ComputeGraph
    n_stages: int
    device: DeviceModel | tuple[DeviceModel, ...]
    objective: Objective = "bottleneck"
    children_together: bool = False
    host_operators: tuple[int, ...] = ()
    host: DeviceModel | None = None
    memory_limit_bytes: int | None = None
    activation_cache: bool = False
    costs: Costs | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        graph = self.graph
        if self.objective not in OBJECTIVES:
            raise UserError(
                f"objective {self.objective!r} is not known; choose {', '.join(OBJECTIVES)}"
            )
        if self.n_stages < 1:
            raise UserError(f"{self.n_stages} stages: a pipeline has at least 1 stage")
        if self.n_stages > graph.n_nodes:
            raise UserError(
                f"{self.n_stages} stages for {graph.n_nodes} operators of "
                f"{graph.name!r}: every stage needs one; ask for fewer stages"
            )
        if len(self.devices) != self.n_stages:
            raise UserError(
                f"{len(self.devices)} devices for {self.n_stages} stages: give one for all "
                "stages, or one for each"
            )
        if self.memory_limit_bytes is not None and self.memory_limit_bytes < 1:
            raise UserError(f"a memory limit of {self.memory_limit_bytes} bytes holds nothing")
        bad = [v for v in self.host_operators if not 0 <= v < graph.n_nodes]
        if bad or list(self.host_operators) != sorted(set(self.host_operators)):
            raise UserError(
                f"host operators {list(self.host_operators)} must be different numbers from 0 to "
                f"{graph.n_nodes - 1}, in rising order"
            )
        _ = self.cache_bytes

    @cached_property
    def devices(self) -> tuple[DeviceModel, ...]:
        """The device of each stage; K entries."""
        if isinstance(self.device, DeviceModel):
            return (self.device,) * self.n_stages
        return tuple(self.device)

    @property
    def host_model(self) -> DeviceModel:
        """What runs the host operators."""
        return self.host or load_device("host-cpu")

    @cached_property
    def on_host(self) -> NDArray[np.bool_]:
        """bool (V,): whether the host runs the operator."""
        on_host = np.zeros(self.graph.n_nodes, bool)
        on_host[list(self.host_operators)] = True
        return on_host

    @cached_property
    def param_bytes(self) -> Ints:
        """int64 (V,): parameters that each operator keeps on its accelerator."""
        return np.where(self.on_host, 0, self.graph.param_bytes)

    @cached_property
    def node_ms(self) -> Floats:
        """float64 (K, V): compute time of each operator on each stage's device, in ms."""
        if self.costs is not None:
            return self.costs.node_ms
        different = {id(device): device for device in self.devices}
        times = {key: device.node_ms(self.graph) for key, device in different.items()}
        node_ms = np.stack([times[id(device)] for device in self.devices])
        if self.host_operators:
            node_ms[:, self.on_host] = self.host_model.node_ms(self.graph)[self.on_host]
        return node_ms

    @cached_property
    def cache_bytes(self) -> Floats:
        """float64 (K, V): the cache that each operator alone leaves for parameters.

        The cache of a stage is the least of its operators'.
        """
        if self.costs is not None:
            return self.costs.cache_bytes
        shape = (self.n_stages, self.graph.n_nodes)
        if not self.activation_cache:
            fixed = self.of_stages("parameter_cache_bytes")
            return np.array(np.broadcast_to(fixed[:, None], shape))
        activations = np.where(self.on_host, 0, self.graph.activation_bytes)
        return np.stack([device.cache_bytes(activations) for device in self.devices])

    @cached_property
    def edge_weight(self) -> Ints:
        """int64 (E,): what a crossing of each of the graph's edges counts."""
        if self.costs is not None:
            return self.costs.edge_weight
        return np.ones(len(self.graph.edges), np.int64)

    @property
    def device_name(self) -> str:
        """The device's name, or those of the chain with commas between them."""
        names = [device.name for device in self.devices]
        return names[0] if len(set(names)) == 1 else ",".join(names)

    @property
    def device_digest(self) -> str:
        """The device's digest, or one over those of the chain."""
        return _chain_digest(self.devices)

    def of_stages(self, constant: str) -> Floats:
        """float64 (K,): a constant of the device model, of each stage's device."""
        return np.array([getattr(device, constant) for device in self.devices], float)


def _chain_digest(devices: Sequence[DeviceModel]) -> str:
    digests = [device.digest for device in devices]
    if len(set(digests)) == 1:
        return digests[0]
    return hashlib.sha256(",".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class Evaluation:
    """What a staging costs, stage by stage; every array has K entries.

    Attributes:
        value: The problem's objective, in its unit.
        param_bytes: Parameters of each stage.
        streamed_bytes: Those beyond its cache.
        compute_ms, in_ms, out_ms, stream_ms: The parts of a stage's time.
        stage_ms: Their sum with the overhead.
        in_bytes, out_bytes: What the host sends to and fetches from each stage.
        hop_weighted_crossings: Sum over edges of the number of stage borders they cross, as in
            the authors' integer programme (Yu-Maryland/Differentiable_Scheduler_ICML24).
        key: What plans are compared by: the value and, for `peak-memory`, the crossings.
    """

    value: float
    param_bytes: Ints
    streamed_bytes: Ints
    compute_ms: Floats
    in_ms: Floats
    out_ms: Floats
    stream_ms: Floats
    stage_ms: Floats
    in_bytes: Ints
    out_bytes: Ints
    hop_weighted_crossings: int
    key: tuple[float, int]

    def to_json(self) -> dict[str, Any]:
        """Per stage, for a plan's record."""
        return {
            f.name: np.asarray(getattr(self, f.name)).tolist()
            for f in fields(self)
            if f.name not in ("value", "key")
        }


def check(problem: StagingProblem, stage: ArrayLike) -> Ints:
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
    if problem.memory_limit_bytes is not None:
        held = np.bincount(s, weights=problem.param_bytes, minlength=k)
        if held.max() > problem.memory_limit_bytes:
            raise PlanError(
                f"stage {int(held.argmax())} holds {held.max() / MIB:.3f} MiB of parameters; the "
                f"limit is {problem.memory_limit_bytes / MIB:.3f} MiB"
            )
    return s


def evaluate(problem: StagingProblem, stage: ArrayLike) -> Evaluation:
    """What a feasible staging costs.

    Args:
        stage: (V,) stage of each operator, 0 to K - 1.

    Raises:
        PlanError: The staging is not feasible.
    """
    s = check(problem, stage)
    graph, k = problem.graph, problem.n_stages
    size, producer = graph.tensor_bytes, graph.tensor_producer
    # What the host makes or reads is in its memory.
    made_by_host = (producer == MODEL_INPUT) | problem.on_host[producer]
    home = np.where(made_by_host, -1, s[producer])
    on_device = ~problem.on_host[graph.consumers]
    # A tensor is sent once to a stage, however many of the stage's operators read it.
    readings = np.unique((graph.consumer_tensor * k + s[graph.consumers])[on_device])
    tensor, reader = np.divmod(readings, k)
    sent = home[tensor] != reader
    in_bytes = np.bincount(reader[sent], weights=size[tensor[sent]], minlength=k)
    leaves = graph.tensor_is_output.copy()
    leaves[graph.consumer_tensor[~on_device]] = True
    leaves[tensor[sent]] = True
    leaves &= home >= 0
    out_bytes = np.bincount(home[leaves], weights=size[leaves], minlength=k)
    params = np.bincount(s, weights=problem.param_bytes, minlength=k)
    node = np.arange(graph.n_nodes)
    compute = np.bincount(s, weights=problem.node_ms[s, node], minlength=k)
    cache = np.full(k, np.inf)
    np.minimum.at(cache, s, problem.cache_bytes[s, node])
    in_ms = in_bytes / MIB * problem.of_stages("in_ms_per_mib")
    out_ms = out_bytes / MIB * problem.of_stages("out_ms_per_mib")
    beyond = np.maximum(params - cache, 0)
    stream = beyond / MIB * problem.of_stages("stream_ms_per_mib")
    stage_ms = compute + in_ms + out_ms + stream + problem.of_stages("stage_overhead_ms")
    u, v = graph.edges.T
    crossings = int((problem.edge_weight * (s[v] - s[u])).sum())
    if problem.objective == "bottleneck":
        value = stage_ms.max()
    elif problem.objective == "latency":
        value = stage_ms.sum()
    else:
        value = params.max()
    return Evaluation(
        value=float(value),
        param_bytes=params.astype(np.int64),
        streamed_bytes=np.ceil(beyond).astype(np.int64),
        compute_ms=compute.astype(np.float64),
        in_ms=in_ms,
        out_ms=out_ms,
        stream_ms=stream,
        stage_ms=stage_ms,
        in_bytes=in_bytes.astype(np.int64),
        out_bytes=out_bytes.astype(np.int64),
        hop_weighted_crossings=crossings,
        key=(float(value), crossings if problem.objective == "peak-memory" else 0),
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
        host_operators, host, host_digest: Operators that the host runs, and its device model;
            the last two are None without any.
        memory_limit_bytes, activation_cache: As in the problem.
        crossings_lower_bound: For `peak-memory`: no plan of this value has fewer hop-weighted
            crossings; None for other objectives and where the value is not proven optimal.
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
    host_operators: tuple[int, ...] = ()
    host: str | None = None
    host_digest: str | None = None
    memory_limit_bytes: int | None = None
    activation_cache: bool = False
    crossings_lower_bound: int | None = None

    @property
    def crossings_proven(self) -> bool:
        """Whether no plan of this peak memory has fewer hop-weighted crossings, with proof."""
        return self.crossings_lower_bound == self.stages["hop_weighted_crossings"]

    def to_json(self) -> dict[str, Any]:
        """A `coralline.plan/v1` object."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        lists = {"stage": list(self.stage), "host_operators": list(self.host_operators)}
        return {"schema": SCHEMA, **data, **lists}

    @staticmethod
    def from_json(data: Any) -> Plan:
        """Read what `to_json` wrote.

        Raises:
            UserError: Names the field that is missing or malformed.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise UserError(f"is not a plan; its `schema` must be {SCHEMA}")
        known = fields(Plan)
        missing = [f.name for f in known if f.default is MISSING and f.name not in data]
        if missing:
            raise UserError(f"the plan lacks {', '.join(missing)}; make it again")
        values = {f.name: data.get(f.name, f.default) for f in known}
        stage, hosted = values["stage"], values["host_operators"]
        if not isinstance(stage, list) or not all(type(s) is int and s >= 0 for s in stage):
            raise UserError("the plan's `stage` must be a list of whole numbers from 0")
        if not isinstance(hosted, (list, tuple)) or not all(
            type(v) is int and 0 <= v < len(stage) for v in hosted
        ):
            raise UserError("the plan's `host_operators` must be numbers of its operators")
        if type(values["n_stages"]) is not int or values["n_stages"] < 1:
            raise UserError("the plan's `n_stages` must be a whole number from 1")
        for name in ("value", "lower_bound", "solve_seconds"):
            if type(values[name]) not in (int, float) or not np.isfinite(values[name]):
                raise UserError(f"the plan's `{name}` must be a number; make the plan again")
        return Plan(**{**values, "stage": tuple(stage), "host_operators": tuple(hosted)})

    def check_graph(self, graph: ComputeGraph) -> None:
        """Raise UserError unless the plan was made for this graph."""
        if graph.digest != self.graph_digest:
            raise UserError(
                f"the plan was made for {self.graph_name!r} ({self.graph_digest[:12]}), not for "
                f"{graph.name!r} ({graph.digest[:12]}); make one with `coralline schedule`"
            )

    def has_devices(self, device: DeviceModel | tuple[DeviceModel, ...]) -> bool:
        """Whether the plan was made for this version of this device or chain."""
        chain = (device,) if isinstance(device, DeviceModel) else device
        return self.device_digest == _chain_digest(chain)

    def problem(
        self,
        graph: ComputeGraph,
        device: DeviceModel | tuple[DeviceModel, ...] | None = None,
        host: DeviceModel | None = None,
    ) -> StagingProblem:
        """The problem that the plan is for.

        Args:
            graph: That the plan was made for.
            device, host: As in the problem; without them those that the plan names.

        Raises:
            UserError: The plan is for another graph, or names a device that is not known.
        """
        self.check_graph(graph)
        if host is None and self.host is not None:
            host = load_device(self.host)
        return StagingProblem(
            graph,
            self.n_stages,
            device or load_devices(self.device),
            self.objective,
            self.children_together,
            self.host_operators,
            host,
            self.memory_limit_bytes,
            self.activation_cache,
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
    """What a planner returns.

    Attributes:
        stage: int64 (V,).
        lower_bound: Proven for the value of any plan, if the planner has one.
        crossings_bound: For `peak-memory`: proven for the hop-weighted crossings of any plan
            whose value is the optimum; counts only where that is proven too.
    """

    stage: Ints
    lower_bound: float | None = None
    crossings_bound: int | None = None


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


def check_planner(name: str) -> None:
    """Refuse a name that is no planner's.

    Raises:
        UserError: It is not.
    """
    if name not in _PLANNERS:
        raise UserError(
            f"planner {name!r} is not known; choose one of {', '.join(planner_names())}"
        )


def make_plan(problem: StagingProblem, planner: str, effort: Effort | None = None) -> Plan:
    """Run a planner by name; check, evaluate and bound what it returns.

    Raises:
        UserError: No planner has that name.
        PlanError: No plan satisfies the problem, or the planner returned an infeasible one.
    """
    check_planner(planner)
    version, function, load = _PLANNERS[planner]
    _refuse_hopeless(problem)
    solved, groups = reduce_problem(problem)
    if load is not None:
        load()
    start = perf_counter()
    proposal = function(solved, effort or Effort())
    seconds = perf_counter() - start
    stage = np.asarray(proposal.stage)[groups]
    evaluation = evaluate(problem, stage)
    host = problem.host_model if problem.host_operators else None
    plan = Plan(
        graph_name=problem.graph.name,
        graph_digest=problem.graph.digest,
        n_stages=problem.n_stages,
        device=problem.device_name,
        device_digest=problem.device_digest,
        simulated=any(device.simulated for device in problem.devices),
        objective=problem.objective,
        children_together=problem.children_together,
        planner=planner,
        planner_version=version,
        stage=tuple(stage.tolist()),
        value=evaluation.value,
        unit=UNITS[problem.objective],
        lower_bound=0.0,
        gap=_gap(evaluation.value, 0.0),
        proven_optimal=False,
        solve_seconds=seconds,
        stages=evaluation.to_json(),
        host_operators=problem.host_operators,
        host=None if host is None else host.name,
        host_digest=None if host is None else host.digest,
        memory_limit_bytes=problem.memory_limit_bytes,
        activation_cache=problem.activation_cache,
    )
    plan = plan.with_bound(max(work_bound(solved), proposal.lower_bound or 0.0))
    if not plan.proven_optimal:
        plan = plan.with_bound(cut_bound(solved))
    if problem.objective == "peak-memory" and plan.proven_optimal:
        found, fewest = evaluation.hop_weighted_crossings, proposal.crossings_bound or 0
        if fewest < found:
            fewest = max(fewest, crossings_bound(solved, plan.value))
        plan = replace(plan, crossings_lower_bound=min(fewest, found))
    return plan


def no_plan(problem: StagingProblem) -> PlanError:
    """The error of a planner that proved that no plan keeps to the memory limit."""
    return PlanError(f"no plan {_keeps_to(problem)}; ask for more stages or a higher limit")


def none_found(problem: StagingProblem) -> PlanError:
    """The error of a planner that found no plan within the memory limit."""
    return PlanError(
        f"this planner found no plan that {_keeps_to(problem)}; there may be one: ask the planner "
        "exact, more stages or a higher limit"
    )


def _keeps_to(problem: StagingProblem) -> str:
    limit = problem.memory_limit_bytes or 0
    return (
        f"keeps each of {problem.n_stages} stages of {problem.graph.name!r} within "
        f"{limit / MIB:.3f} MiB of parameters"
    )


def _refuse_hopeless(problem: StagingProblem) -> None:
    limit, params = problem.memory_limit_bytes, problem.param_bytes
    if limit is None:
        return
    largest = int(params.argmax())
    if params[largest] > limit:
        raise PlanError(
            f"{problem.graph.node_names[largest]!r} alone has {params[largest] / MIB:.3f} MiB of "
            f"parameters; the limit of a stage is {limit / MIB:.3f} MiB"
        )
    if params.sum() > limit * problem.n_stages:
        raise no_plan(problem)


def _gap(value: float, bound: float) -> float | None:
    if value <= bound:
        return 0.0
    return value / bound - 1.0 if bound > 0 else None
