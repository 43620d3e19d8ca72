"""Planners that prove how good their plan is.

`exact` searches over down-sets (coralline.staging.ideals); `auto` does the same, with the
policy's help where that takes long. CP-SAT, and HiGHS on the integer linear programme, solve one
formulation over the cumulative binaries of RESPECT's exact method (Yin et al., arXiv 2304.04716;
its linear programme is public in Yu-Maryland/Differentiable_Scheduler_ICML24):

    y[v, s] = 1 when operator v is in stage s or earlier,    x[v, s] = y[v, s] - y[v, s - 1]

    y[v, s - 1] <= y[v, s];   y[w, s] <= y[v, s] for an edge v -> w;   sum_v x[v, s] >= 1
    fetch[t, s] >= x[producer, s] - x[reader, s]       for each reader of a tensor t
    send[t, s]  >= x[reader, s] - x[producer, s]
    time[s]     >= overhead + sum_v ms[v] x[v, s] + sum_t (out[t] fetch[t, s] + in[t] send[t, s])
    time[s]     >= the same + streaming of (sum_v param_bytes[v] x[v, s] - cache)

The best split of a few topological orders gives a first plan. Only better plans are searched
for, so an operator cannot be in a stage so early that it and its ancestors would not fit
into the stages up to there at that value, and likewise for late stages: most y are constants
before a solver starts. The planners called cold do without both, to show what the solvers do by
themselves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import MIB
from coralline.errors import PlanError
from coralline.graph.compute_graph import MODEL_INPUT
from coralline.staging.baselines import load_split
from coralline.staging.bounds import work_bound
from coralline.staging.orders import priority_order, stack_order
from coralline.staging.problem import Effort, Proposal, StagingProblem, evaluate, register

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_ZERO, _ONE = 0, 1
"""Columns that are constants."""

_MARGIN = 1e-7
"""A plan must be better by this share to be searched for; floating-point sums err less."""

_FIRST_ORDERS = 15

_ALONE, _ALONE_S = 0.1, 1.0
"""Share of the time, and seconds at most, in which `auto` leaves the policy aside."""

_POLICY_S = 10.0
"""Below this time limit `auto` does without the policy: its decoder takes about that long to
compile, once."""


def _load_cpsat() -> Any:
    """The module of CP-SAT, usable beside TensorFlow.

    TensorFlow makes the symbols of its protobuf global; OR-Tools, loaded after it, would call
    those instead of its own and crash.
    """
    load_split()
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | getattr(os, "RTLD_DEEPBIND", 0))
    try:
        from ortools.sat.python import cp_model
    finally:
        sys.setdlopenflags(flags)
    return cp_model


def _load_highs() -> None:
    load_split()
    import scipy.optimize
    import scipy.sparse  # noqa: F401


def _load_ideals() -> None:
    from coralline.staging.ideals import compile_search

    compile_search()


@register("exact", version="2", load=_load_ideals)
def exact(problem: StagingProblem, effort: Effort) -> Proposal:
    """The optimum by search over down-sets, or the best plan and bound when time is up."""
    from coralline.staging.ideals import Search, conclude

    deadline = perf_counter() + effort.time_limit_s
    return conclude(problem, Search(problem, effort.seed), deadline)


@register("auto", version="2", load=_load_ideals)
def auto(problem: StagingProblem, effort: Effort) -> Proposal:
    """The best plan and bound of all means: `exact`, and where that takes long the policy.

    The policy's plan gives the search over orders and down-sets another start.
    """
    from coralline.staging.ideals import Search, conclude, order_of
    from coralline.staging.policy import load_decoder, policy

    start = perf_counter()
    deadline = start + effort.time_limit_s
    search = Search(problem, effort.seed)
    search.run(start + min(effort.time_limit_s * _ALONE, _ALONE_S))
    if not search.proven and effort.time_limit_s >= _POLICY_S:
        load_decoder()
        effort = replace(effort, time_limit_s=effort.time_limit_s * _ALONE)
        with suppress(PlanError):
            search.offer(order_of(problem, policy(problem, effort).stage))
    return conclude(problem, search, deadline)


@register("exact-cpsat", version="1", load=_load_cpsat)
def exact_cpsat(problem: StagingProblem, effort: Effort) -> Proposal:
    """The optimum by OR-Tools CP-SAT, or the best plan and bound when time is up."""
    return _solve(problem, effort, _CpSat(), warm=True)


@register("exact-cpsat-cold", version="1", load=_load_cpsat)
def exact_cpsat_cold(problem: StagingProblem, effort: Effort) -> Proposal:
    """CP-SAT left to itself: no first plan, and every operator may be in every stage.

    Raises:
        PlanError: It found no plan in time.
    """
    return _solve(problem, effort, _CpSat(), warm=False)


@register("exact-milp", version="1", load=_load_highs)
def exact_milp(problem: StagingProblem, effort: Effort) -> Proposal:
    """The optimum by HiGHS on the integer linear programme, or the best plan and bound.

    HiGHS takes no seed through scipy, and only looks at the clock between its steps; the seed
    draws the orders of the first plan.
    """
    return _solve(problem, effort, _Highs(), warm=True)


@register("exact-milp-cold", version="1", load=_load_highs)
def exact_milp_cold(problem: StagingProblem, effort: Effort) -> Proposal:
    """HiGHS left to itself: no first plan, and every operator may be in every stage.

    Raises:
        PlanError: It found no plan in time.
    """
    return _solve(problem, effort, _Highs(), warm=False)


def _solve(
    problem: StagingProblem, effort: Effort, solver: _CpSat | _Highs, *, warm: bool
) -> Proposal:
    deadline = perf_counter() + effort.time_limit_s
    found: list[Ints] = []
    value = most = _most(problem)
    unit = work_bound(problem) or most or 1.0
    if warm:
        start, value = first_plan(problem, effort, deadline)
        if value == 0:
            return Proposal(start, 0.0)
        found, unit = [start], value
    whole = problem.objective == "peak-memory"
    target = solver.target(value, whole) if warm else most
    programme = formulate(problem, target if warm else np.inf)
    # No plan is better than the target, should that turn out to be out of reach.
    beyond = min(value, target + 1 if whole else target)
    if programme is None:
        return Proposal(found[0], beyond)
    bound = None
    if perf_counter() < deadline:
        stage, bound = solver.run(programme, target, unit, whole, deadline, effort, found)
        if bound is not None:
            bound = min(bound, beyond)
        if stage is not None:
            found.append(stage)
    if not found:
        raise PlanError(
            f"no plan of {problem.graph.name!r} was found in {effort.time_limit_s:g} s; "
            "give it more time"
        )
    return Proposal(min(found, key=lambda stage: evaluate(problem, stage).value), bound)


def _most(problem: StagingProblem) -> float:
    """A value that no plan exceeds."""
    graph, device, k = problem.graph, problem.device, problem.n_stages
    if problem.objective == "peak-memory":
        return float(graph.param_bytes.sum())
    per_mib = k * device.in_ms_per_mib + device.out_ms_per_mib
    return float(
        problem.node_ms.sum()
        + k * device.stage_overhead_ms
        + graph.tensor_bytes.sum() / MIB * per_mib
        + graph.param_bytes.sum() / MIB * device.stream_ms_per_mib
    ) * (1 + 1e-9)


class _CpSat:
    """OR-Tools CP-SAT.

    It counts in whole numbers, so costs are rounded down to ticks: what it proves of the rounded
    problem holds for the real one.
    """

    def target(self, value: float, whole: bool) -> float:
        """Only better plans are searched for: that there are none is a proof."""
        return value - 1 if whole else value * (1 - _MARGIN)

    def run(
        self,
        programme: Programme,
        target: float,
        unit: float,
        whole: bool,
        deadline: float,
        effort: Effort,
        hint: list[Ints],
    ) -> tuple[Ints | None, float | None]:
        """A plan of value <= `target`, if one was found, and a bound on such plans."""
        cp_model = _load_cpsat()
        # V roundings of at most one tick each stay below the tolerance of optimality, and the
        # sums within 64 bits.
        n = len(programme.y)
        tick = 1.0 if whole else max(unit * _MARGIN / max(n, 100), target * 1e-15)
        # Costs have negative coefficients: rounding up brings them closer to 0.
        scale = np.where(programme.row_is_cost, 1 / tick, 1.0)
        model = cp_model.CpModel()
        limit = int(np.floor(target / tick))
        columns = [
            model.new_int_var(int(lo), int(hi) if hi < np.inf else limit, "")
            for lo, hi in zip(programme.lower, programme.upper, strict=True)
        ]
        is_amount = programme.upper == np.inf
        for r in range(len(programme.row_lower)):
            part = slice(programme.row_start[r], programme.row_start[r + 1])
            column = programme.column[part]
            coefficient = np.where(
                is_amount[column],
                programme.coefficient[part],
                np.ceil(programme.coefficient[part] * scale[r]),
            ).astype(np.int64)
            expression = cp_model.LinearExpr.weighted_sum(
                [columns[c] for c in column], coefficient.tolist()
            )
            model.add(expression >= int(np.floor(programme.row_lower[r] * scale[r])))
        objective = cp_model.LinearExpr.sum([columns[c] for c in programme.objective])
        model.add(objective <= limit)
        model.minimize(objective)
        for stage in hint:
            for v, s in np.argwhere(programme.y[:, 1:] > _ONE):
                model.add_hint(columns[programme.y[v, s + 1]], int(stage[v] <= s))

        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = max(deadline - perf_counter(), 0.0)
        solver.parameters.random_seed = effort.seed % 2**31
        solver.parameters.num_workers = effort.workers
        solver.parameters.relative_gap_limit = 0.0
        status = solver.solve(model)
        if status == cp_model.INFEASIBLE:
            return None, np.inf
        bound = solver.best_objective_bound * tick
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, bound
        return programme.stages(np.array([solver.value(column) for column in columns])), bound


class _Highs:
    """HiGHS, by way of scipy.

    It works in floating point, to about 1e-9 of the value as scaled here; its bound is lowered
    by more than that.
    """

    def target(self, value: float, whole: bool) -> float:
        """The first plan stays feasible, with room for rounding.

        A solver that calls the rest infeasible within its tolerance must not be taken for a
        proof.
        """
        return value * (1 + 1e-6)

    def run(
        self,
        programme: Programme,
        target: float,
        unit: float,
        whole: bool,
        deadline: float,
        effort: Effort,
        hint: list[Ints],
    ) -> tuple[Ints | None, float | None]:
        """A plan of value <= `target`, if one was found, and a bound on such plans."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        # The unit becomes 1000, so that absolute tolerances of 1e-6 are 1e-9 of it.
        scale = np.where(programme.row_is_cost, 1000 / unit, 1.0)
        is_amount = programme.upper == np.inf
        per_entry = np.repeat(scale, np.diff(programme.row_start))
        data = programme.coefficient * np.where(is_amount[programme.column], 1.0, per_entry)
        n_columns = len(programme.lower)
        rows = csr_array(
            (data, programme.column, programme.row_start),
            shape=(len(programme.row_lower), n_columns),
        )
        rows.sum_duplicates()
        weight = np.zeros(n_columns)
        weight[programme.objective] = 1.0
        with _stdout_to_stderr():
            result = milp(
                weight,
                integrality=programme.is_binary.astype(np.int64),
                bounds=Bounds(programme.lower, programme.upper),
                constraints=[
                    LinearConstraint(rows, programme.row_lower * scale, np.inf),
                    LinearConstraint(weight[None, :], -np.inf, target * 1000 / unit),
                ],
                options={"time_limit": max(deadline - perf_counter(), 0.0), "mip_rel_gap": 0.0},
            )
        bound = None
        if result.mip_dual_bound is not None and np.isfinite(result.mip_dual_bound):
            bound = result.mip_dual_bound * unit / 1000 * (1 - _MARGIN)
            if whole:
                bound = float(np.ceil(bound))
        return None if result.x is None else programme.stages(np.round(result.x)), bound


def first_plan(problem: StagingProblem, effort: Effort, deadline: float) -> tuple[Ints, float]:
    """The best split, int64 (V,), of a few topological orders, and its value.

    The orders: the graph's own, depth first, by level, and some at random; fewer when the
    deadline, in seconds of `perf_counter`, passes.
    """
    from coralline.staging.split import split_arguments, split_order, split_value

    graph = problem.graph
    rng = np.random.default_rng(effort.seed)
    arguments = split_arguments(problem)
    best = graph.topological_order
    least = split_value(arguments, best)
    for attempt in range(_FIRST_ORDERS):
        if perf_counter() > deadline:
            break
        if attempt == 0:
            order = stack_order(graph)
        elif attempt == 1:
            order = np.argsort(graph.level, kind="stable")
        else:
            order = priority_order(graph, rng.random(graph.n_nodes))
        value = split_value(arguments, order)
        if value < least:
            best, least = order, value
    stage = split_order(problem, best)
    return stage, evaluate(problem, stage).value


@dataclass(frozen=True)
class Programme:
    """Minimise the sum of some columns subject to rows `sum coefficient * column >= lower`.

    Attributes:
        lower, upper: (N,) bounds of the columns; an amount in ms or bytes has upper inf.
        is_binary: bool (N,); the other columns may be fractional.
        objective: The columns to sum.
        row_start, column, coefficient: The rows, compressed.
        row_lower: (R,).
        row_is_cost: bool (R,): all but the amounts' coefficients of the row, and its lower
            bound, are in ms or bytes.
        y: int64 (V, K + 1): column of "v is in stage s - 1 or earlier".
    """

    lower: Floats
    upper: Floats
    is_binary: NDArray[np.bool_]
    objective: Ints
    row_start: Ints
    column: Ints
    coefficient: Floats
    row_lower: Floats
    row_is_cost: NDArray[np.bool_]
    y: Ints

    def stages(self, values: Floats) -> Ints:
        """int64 (V,): the stages that a solution, (N,), stands for."""
        return (values[self.y[:, 1:]] < 0.5).sum(axis=1).astype(np.int64)


def formulate(problem: StagingProblem, target: float) -> Programme | None:
    """The programme whose solutions are all plans of value `target` or less.

    Returns:
        None when there is obviously no such plan.
    """
    graph, device, k = problem.graph, problem.devices[0], problem.n_stages
    n, n_tensors = graph.n_nodes, graph.n_tensors
    earliest, latest = stage_windows(problem, target)
    if (earliest > latest).any():
        return None
    border = np.arange(-1, k)
    y = np.full((n, k + 1), -1, np.int64)
    y[border[None, :] < earliest[:, None]] = _ZERO
    y[border[None, :] >= latest[:, None]] = _ONE
    free = y < 0
    y[free] = 2 + np.arange(free.sum())
    n_columns = 2 + int(free.sum())
    rows = _Rows()

    before, after = y[:, :-1], y[:, 1:]
    rows.add(_stack(before, after), [-1, 1], 0.0, keep=(before > _ONE) & (after > _ONE))
    u, w = graph.edges.T
    rows.add(_stack(y[w], y[u]), [-1, 1], 0.0, keep=(y[w] != _ZERO) & (y[u] != _ONE))
    for s in range(k):
        ones = np.repeat([1.0, -1.0], n)
        rows.add_one(np.concatenate([after[:, s], before[:, s]]), ones, 1.0, is_cost=False)

    amounts = np.arange(n_columns, n_columns + (k if problem.objective == "latency" else 1))
    n_columns += len(amounts)
    amount = np.broadcast_to(amounts, k)
    costs: list[tuple[Floats, float]]
    if problem.objective == "peak-memory":
        costs = [(graph.param_bytes.astype(float), 0.0)]
        moves: list[tuple[Ints, Floats]] = []
    else:
        reader, tensor = graph.consumers, graph.consumer_tensor
        home = graph.tensor_producer[tensor]
        inner = home != MODEL_INPUT
        y_reader, y_home = y[reader], np.where(inner[:, None], y[home], _ONE)
        # A model input is at home before the first stage.
        send = n_columns + tensor[:, None] * k + np.arange(k)
        fetch = send + n_tensors * k
        n_columns += 2 * n_tensors * k
        r0, r1, h0, h1 = y_reader[:, :-1], y_reader[:, 1:], y_home[:, :-1], y_home[:, 1:]
        rows.add(
            _stack(send, r0, r1, h0, h1),
            [1, 1, -1, -1, 1],
            0.0,
            keep=(r1 != _ZERO) & (r0 != _ONE) & (h0 != _ZERO),
        )
        rows.add(
            _stack(fetch, r0, r1, h0, h1),
            [1, -1, 1, 1, -1],
            0.0,
            keep=(h1 != _ZERO)
            & (h0 != _ONE)
            & (r1 != _ONE)
            & (inner & ~graph.tensor_is_output[tensor])[:, None],
        )
        in_ms = graph.tensor_bytes / MIB * device.in_ms_per_mib
        out_ms = graph.tensor_bytes / MIB * device.out_ms_per_mib
        # What the caller of the model gets is always fetched: it counts with its producer.
        given = graph.tensor_is_output & (graph.tensor_producer != MODEL_INPUT)
        work = problem.node_ms[0] + np.bincount(
            graph.tensor_producer[given], weights=out_ms[given], minlength=n
        )
        stream = device.stream_ms_per_mib / MIB
        costs = [(work, device.stage_overhead_ms)]
        if stream > 0 and graph.param_bytes.sum() > device.parameter_cache_bytes:
            costs.append(
                (
                    work + stream * graph.param_bytes,
                    device.stage_overhead_ms - stream * device.parameter_cache_bytes,
                )
            )
        first = int(amounts[-1]) + 1
        at = np.arange(n_tensors) * k
        moves = [(first + at, in_ms), (first + n_tensors * k + at, out_ms)]
    for s in range(k):
        for cost, constant in costs:
            columns = [after[:, s], before[:, s], *(c + s for c, _ in moves), amount[s : s + 1]]
            values = [-cost, cost, *(-ms for _, ms in moves), np.ones(1)]
            rows.add_one(np.concatenate(columns), np.concatenate(values), constant, is_cost=True)

    lower, upper = np.zeros(n_columns), np.ones(n_columns)
    lower[_ONE], upper[_ZERO] = 1.0, 0.0
    upper[amounts] = np.inf
    is_binary = np.zeros(n_columns, bool)
    is_binary[: amounts[0]] = True
    return rows.programme(lower, upper, is_binary, amounts, y)


def stage_windows(problem: StagingProblem, target: float) -> tuple[Ints, Ints]:
    """First and last stage, int64 (V,) each, of every operator in plans of value <= `target`.

    An operator in stage s has its ancestors in stages 0 to s and its descendants in stages s to
    K - 1; neither set may need more stages than that.
    """
    graph, device, k = problem.graph, problem.devices[0], problem.n_stages
    n = graph.n_nodes
    if problem.objective == "latency" or target == np.inf:
        return np.zeros(n, np.int64), np.full(n, k - 1, np.int64)
    costs = np.stack([graph.param_bytes.astype(float), problem.node_ms[0]], axis=1)

    def stages_needed(order: Ints, neighbours: tuple[tuple[int, ...], ...]) -> Ints:
        closed = np.zeros((n, -(-n // 8)), np.uint8)
        total = np.empty((n, 2))
        for v in order.tolist():
            for u in neighbours[v]:
                closed[v] |= closed[u]
            closed[v, v >> 3] |= 128 >> (v & 7)
            total[v] = costs[np.unpackbits(closed[v], count=n).view(bool)].sum(axis=0)
        params, ms = total.T
        needed = np.full(n, k + 1, np.int64)
        for stages in range(k, 0, -1):
            if problem.objective == "peak-memory":
                fits = params <= stages * target
            else:
                beyond = np.maximum(params - stages * device.parameter_cache_bytes, 0)
                busy = ms + beyond / MIB * device.stream_ms_per_mib
                # The margin keeps a sum that is exactly at the limit inside it.
                room = stages * (target - device.stage_overhead_ms)
                fits = busy <= room + 1e-9 * stages * target
            needed[fits] = stages
        return needed

    order = graph.topological_order
    earliest = stages_needed(order, graph.predecessors) - 1
    latest = k - stages_needed(order[::-1], graph.successors)
    return earliest, latest


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """HiGHS prints stray lines to the process's standard output even when told to be silent."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _stack(*columns: Ints) -> Ints:
    return np.stack(np.broadcast_arrays(*columns), axis=-1)


class _Rows:
    """Collects rows."""

    def __init__(self) -> None:
        self._columns: list[Ints] = []
        self._coefficients: list[Floats] = []
        self._lengths: list[Ints] = []
        self._lower: list[float] = []
        self._is_cost: list[bool] = []

    def add(
        self, columns: Ints, coefficients: list[int], lower: float, keep: NDArray[np.bool_]
    ) -> None:
        """Rows of one shape: columns (..., M), of which those in `keep` (...) are needed."""
        rows = columns[keep]
        count, length = rows.shape
        self._columns.append(rows.ravel())
        self._coefficients.append(np.tile(np.array(coefficients, float), count))
        self._lengths.append(np.full(count, length))
        self._lower += [lower] * count
        self._is_cost += [False] * count

    def add_one(self, columns: Ints, coefficients: Floats, lower: float, *, is_cost: bool) -> None:
        """One row: columns (M,), of which those with coefficient 0 are dropped."""
        used = coefficients != 0
        self._columns.append(columns[used])
        self._coefficients.append(coefficients[used])
        self._lengths.append(np.array([used.sum()]))
        self._lower.append(lower)
        self._is_cost.append(is_cost)

    def programme(
        self,
        lower: Floats,
        upper: Floats,
        is_binary: NDArray[np.bool_],
        objective: Ints,
        y: Ints,
    ) -> Programme:
        return Programme(
            lower=lower,
            upper=upper,
            is_binary=is_binary,
            objective=objective,
            row_start=np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))]),
            column=np.concatenate(self._columns),
            coefficient=np.concatenate(self._coefficients),
            row_lower=np.array(self._lower),
            row_is_cost=np.array(self._is_cost),
            y=y,
        )
