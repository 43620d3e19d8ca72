"""Planners that prove how good their plan is.

`exact` searches over down-sets (coralline.staging.ideals); `auto` does the same, with the
policy's help where that takes long. CP-SAT, and HiGHS on the integer linear programme, solve one
formulation over the cumulative binaries of RESPECT's exact method (Yin et al., arXiv 2304.04716;
its linear programme is public in Yu-Maryland/Differentiable_Scheduler_ICML24):

    y[v, s] = 1 when operator v is in stage s or earlier,    x[v, s] = y[v, s] - y[v, s - 1]

    y[v, s - 1] <= y[v, s];   y[w, s] <= y[v, s] for an edge v -> w;   sum_v x[v, s] >= 1
    sum_v param_bytes[v] x[v, s] <= memory limit
    fetch[t, s] >= x[producer, s] - x[reader, s]       for each reader of a tensor t
    send[t, s]  >= x[reader, s] - x[producer, s]
    time[s]     >= overhead + sum_v ms[v] x[v, s] + sum_t (out[t] fetch[t, s] + in[t] send[t, s])
    time[s]     >= the same + streaming of (sum_v param_bytes[v] x[v, s] - cache)

Where activations make the cache smaller, what that adds to the streaming is a further column,
at least as large as any operator in the stage has it. For `peak-memory` a second programme
minimises the crossings, sum over edges v -> w and s < K - 1 of y[v, s] - y[w, s], with the
optimal peak as memory limit.

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
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import MIB
from coralline.errors import PlanError
from coralline.graph.compute_graph import MODEL_INPUT
from coralline.staging.baselines import load_split
from coralline.staging.bounds import crossings_bound, stage_windows, work_bound
from coralline.staging.orders import least_live_order, priority_order, stack_order
from coralline.staging.problem import (
    OPTIMALITY_TOLERANCE,
    Effort,
    Proposal,
    StagingProblem,
    evaluate,
    no_plan,
    none_found,
    register,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

Goal = Literal["bottleneck", "peak-memory", "latency", "crossings"]
"""What a programme minimises; the last one is the second aim of `peak-memory`."""

_ZERO, _ONE = 0, 1
"""Columns that are constants."""

_LOGIC, _COST, _BYTES = 0, 1, 2
"""Kinds of rows, by what their coefficients count."""

_INFEASIBLE = 2
"""What scipy.optimize.milp says of a programme without a solution."""

_MARGIN = 1e-7
"""A plan must be better by this share to be searched for; floating-point sums err less."""

_FIRST_ORDERS = 16

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
    """All but the search itself: many models are solved without, and it takes long to compile."""
    load_split()
    import coralline.staging.ideals  # noqa: F401


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
    if not search.proven:
        # The one of the simple orders that the search does not begin with.
        search.offer(least_live_order(problem.graph))
    if not search.proven and effort.time_limit_s >= _POLICY_S:
        load_decoder()
        effort = replace(effort, time_limit_s=effort.time_limit_s * _ALONE)
        with suppress(PlanError):
            search.offer(order_of(problem, policy(problem, effort).stage))
    return conclude(problem, search, deadline)


@register("exact-cpsat", version="2", load=_load_cpsat)
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


@register("exact-milp", version="2", load=_load_highs)
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
    start = first_plan(problem, effort, deadline) if warm else None
    stage, bound = _minimise(problem, problem.objective, start, solver, effort, deadline, warm)
    peak = evaluate(problem, stage).value
    proven = bound is not None and peak <= bound * (1 + OPTIMALITY_TOLERANCE)
    if problem.objective != "peak-memory" or not proven:
        return Proposal(stage, bound)
    capped = replace(problem, memory_limit_bytes=max(int(peak), 1))
    stage, fewest = _minimise(capped, "crossings", stage, solver, effort, deadline, warm)
    return Proposal(stage, bound, None if fewest is None else int(fewest))


def _minimise(
    problem: StagingProblem,
    goal: Goal,
    start: Ints | None,
    solver: _CpSat | _Highs,
    effort: Effort,
    deadline: float,
    narrow: bool,
) -> tuple[Ints, float | None]:
    """The best plan found, int64 (V,), and a bound that no plan beats, if there is one.

    Args:
        start: A plan, if one is known.
        narrow: Whether bounds of ours may help the solver.

    Raises:
        PlanError: There is no plan, or none was found in time.
    """
    whole = goal in ("peak-memory", "crossings")
    most = _most(problem, goal)
    least = 0.0
    if narrow:
        least = crossings_bound(problem) if goal == "crossings" else work_bound(problem)
    value = most if start is None else _value(problem, goal, start)
    if start is not None and value <= least:
        return start, value
    target = most if start is None else solver.target(value, whole)
    programme = formulate(problem, target, goal, narrow=narrow)
    stage, bound = None, None
    if programme is None:
        bound = np.inf
    elif perf_counter() < deadline:
        unit = value if start is not None else work_bound(problem) or most or 1.0
        stage, bound = solver.run(programme, target, unit, whole, deadline, effort, start)
    found = [s for s in (start, stage) if s is not None and _value(problem, goal, s) < np.inf]
    if not found:
        if bound == np.inf:
            raise no_plan(problem)
        if problem.memory_limit_bytes is not None:
            raise none_found(problem)
        raise PlanError(
            f"no plan of {problem.graph.name!r} was found in {effort.time_limit_s:g} s; "
            "give it more time"
        )
    if bound is not None:
        # Where nothing is better than the start, it is as good as the target allows to say.
        bound = min(bound, value, target + 1 if whole else target)
    return min(found, key=lambda stage: _value(problem, goal, stage)), bound


def _value(problem: StagingProblem, goal: Goal, stage: Ints) -> float:
    """What is minimised; infinite where rounding let a solver break a rule."""
    try:
        evaluation = evaluate(problem, stage)
    except PlanError:
        return np.inf
    return evaluation.hop_weighted_crossings if goal == "crossings" else evaluation.value


def _most(problem: StagingProblem, goal: Goal) -> float:
    """A value that no plan exceeds."""
    graph, k = problem.graph, problem.n_stages
    if goal == "crossings":
        return float(problem.edge_weight.sum() * (k - 1))
    held = float(problem.param_bytes.sum())
    if goal == "peak-memory":
        return min(held, problem.memory_limit_bytes or held)
    in_ms, out_ms = problem.of_stages("in_ms_per_mib"), problem.of_stages("out_ms_per_mib")
    return float(
        problem.node_ms.max(axis=0).sum()
        + problem.of_stages("stage_overhead_ms").sum()
        + graph.tensor_bytes.sum() / MIB * (in_ms.sum() + out_ms.max())
        + held / MIB * problem.of_stages("stream_ms_per_mib").max()
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
        hint: Ints | None,
    ) -> tuple[Ints | None, float | None]:
        """A plan of value <= `target`, if one was found, and a bound on such plans, if known.

        The bound is infinite where there is none; `hint` is a plan to start from.
        """
        cp_model = _load_cpsat()
        # V roundings of at most one tick each stay below the tolerance of optimality, and the
        # sums within 64 bits.
        n = len(programme.y)
        tick = 1.0 if whole else max(unit * _MARGIN / max(n, 100), target * 1e-15)
        # Costs have negative coefficients: rounding up brings them closer to 0.
        scale = np.where(programme.row_kind == _COST, 1 / tick, 1.0)
        model = cp_model.CpModel()
        limit = int(np.floor(target / tick))
        is_amount = programme.is_amount
        upper = np.where(is_amount, np.ceil(programme.upper / tick), programme.upper)
        upper[programme.objective] = limit
        columns = [
            model.new_int_var(lo, hi, "")
            for lo, hi in zip(programme.lower.astype(int), upper.astype(int), strict=True)
        ]
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
        if hint is not None:
            for v, s in np.argwhere(programme.y[:, 1:] > _ONE):
                model.add_hint(columns[programme.y[v, s + 1]], int(hint[v] <= s))

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
        hint: Ints | None,
    ) -> tuple[Ints | None, float | None]:
        """A plan of value <= `target`, if one was found, and a bound on such plans, if known.

        The bound is infinite where there is none; `hint` is a plan to start from.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        # The unit becomes 1000, so that absolute tolerances of 1e-6 are 1e-9 of it.
        scale = np.choose(programme.row_kind, [1.0, 1000 / unit, 1000 / programme.most_bytes])
        per_entry = np.repeat(scale, np.diff(programme.row_start))
        is_amount = programme.is_amount[programme.column]
        data = programme.coefficient * np.where(is_amount, 1.0, per_entry)
        # Half a byte more changes nothing but what a solver's rounding can do.
        row_lower = programme.row_lower - 0.5 * (programme.row_kind == _BYTES)
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
                bounds=Bounds(
                    programme.lower,
                    np.where(programme.is_amount, np.inf, programme.upper),
                ),
                constraints=[
                    LinearConstraint(rows, row_lower * scale, np.inf),
                    LinearConstraint(weight[None, :], -np.inf, target * 1000 / unit),
                ],
                options={"time_limit": max(deadline - perf_counter(), 0.0), "mip_rel_gap": 0.0},
            )
        if result.status == _INFEASIBLE:
            # Which it is not if there is a plan.
            return None, np.inf if hint is None else None
        bound = None
        if result.mip_dual_bound is not None and np.isfinite(result.mip_dual_bound):
            bound = result.mip_dual_bound * unit / 1000 * (1 - _MARGIN)
            if whole:
                bound = float(np.ceil(bound))
        return None if result.x is None else programme.stages(np.round(result.x)), bound


def first_plan(problem: StagingProblem, effort: Effort, deadline: float) -> Ints | None:
    """The best split, int64 (V,), of a few topological orders; None if none is a plan.

    The orders: the graph's own, depth first, by level, and some at random; fewer when the
    deadline, in seconds of `perf_counter`, passes.
    """
    from coralline.staging.split import split_order

    graph = problem.graph
    rng = np.random.default_rng(effort.seed)
    best, least = None, (np.inf, 0)
    for attempt in range(_FIRST_ORDERS):
        if attempt and perf_counter() > deadline:
            break
        if attempt == 0:
            order = graph.topological_order
        elif attempt == 1:
            order = stack_order(graph)
        elif attempt == 2:
            order = np.argsort(graph.level, kind="stable")
        else:
            order = priority_order(graph, rng.random(graph.n_nodes))
        try:
            stage = split_order(problem, order)
            key = evaluate(problem, stage).key
        except PlanError:
            continue
        if key < least:
            best, least = stage, key
    return best


@dataclass(frozen=True)
class Programme:
    """Minimise the sum of some columns subject to rows `sum coefficient * column >= lower`.

    Attributes:
        lower, upper: (N,) bounds of the columns.
        is_binary: bool (N,); the other columns may be fractional.
        is_amount: bool (N,): in ms or, for a whole objective, in its unit.
        objective: The columns to sum.
        row_start, column, coefficient: The rows, compressed.
        row_lower: (R,).
        row_kind: int64 (R,): _LOGIC; _COST where all but the amounts' coefficients, and the
            lower bound, are in the amounts' unit; _BYTES where they are parameter bytes.
        most_bytes: Of the rows of that kind, the most that a stage may hold.
        y: int64 (V, K + 1): column of "v is in stage s - 1 or earlier".
    """

    lower: Floats
    upper: Floats
    is_binary: NDArray[np.bool_]
    is_amount: NDArray[np.bool_]
    objective: Ints
    row_start: Ints
    column: Ints
    coefficient: Floats
    row_lower: Floats
    row_kind: Ints
    most_bytes: int
    y: Ints

    def stages(self, values: Floats) -> Ints:
        """int64 (V,): the stages that a solution, (N,), stands for."""
        return (values[self.y[:, 1:]] < 0.5).sum(axis=1).astype(np.int64)


def formulate(
    problem: StagingProblem, target: float, goal: Goal | None = None, *, narrow: bool = True
) -> Programme | None:
    """The programme whose solutions are all plans of value `target` or less.

    Args:
        goal: What the value is; the problem's objective without it.
        narrow: Whether to leave out the stages in which an operator cannot be in such a plan.

    Returns:
        None when there is obviously no such plan.
    """
    graph, k = problem.graph, problem.n_stages
    n, goal = graph.n_nodes, goal or problem.objective
    earliest, latest = np.zeros(n, np.int64), np.full(n, k - 1)
    if narrow:
        earliest, latest = stage_windows(problem, np.inf if goal == "crossings" else target)
    if (earliest > latest).any():
        return None
    border = np.arange(-1, k)
    y = np.full((n, k + 1), -1, np.int64)
    y[border[None, :] < earliest[:, None]] = _ZERO
    y[border[None, :] >= latest[:, None]] = _ONE
    free = y < 0
    rows = _Rows()
    y[free] = rows.columns(int(free.sum()), 1.0, binary=True)

    before, after = y[:, :-1], y[:, 1:]
    rows.add(_stack(before, after), [-1, 1], keep=(before > _ONE) & (after > _ONE))
    u, w = graph.edges.T
    rows.add(_stack(y[w], y[u]), [-1, 1], keep=(y[w] != _ZERO) & (y[u] != _ONE))
    # The columns and coefficients that, with a number for each operator, sum those in stage s.
    members = np.concatenate([after, before])
    sign = np.repeat([1.0, -1.0], n)
    for s in range(k):
        rows.add_one(members[:, s], sign, 1.0, _LOGIC)

    amounts = rows.columns(k if goal == "latency" else 1, np.inf, amount=True)
    limit = problem.memory_limit_bytes
    held = np.tile(problem.param_bytes, 2) * sign
    if limit is not None and goal != "peak-memory":
        for s in range(k):
            rows.add_one(members[:, s], -held, -limit, _BYTES)
    if goal == "peak-memory":
        for s in range(k):
            rows.add_one(np.append(members[:, s], amounts), np.append(-held, 1.0), 0.0, _COST)
    elif goal == "crossings":
        # An edge crosses a border when of its ends only the first is before it.
        weight = problem.edge_weight
        net = np.bincount(w, weight, minlength=n) - np.bincount(u, weight, minlength=n)
        columns = np.append(after[:, :-1].T.ravel(), amounts)
        rows.add_one(columns, np.append(np.tile(net, k - 1), 1.0), 0.0, _COST)
    else:
        _add_times(problem, rows, y, members, np.broadcast_to(amounts, k))
    return rows.programme(amounts, limit or 1, y)


def _add_times(problem: StagingProblem, rows: _Rows, y: Ints, members: Ints, amount: Ints) -> None:
    """Rows that keep each stage's column of `amount`, (K,), at its time or above.

    Args:
        members: int64 (2 V, K): the columns whose difference says which operators are in a stage.
    """
    graph, n = problem.graph, problem.graph.n_nodes
    send, fetch = _add_moves(problem, rows, y)
    params, mib = problem.param_bytes, graph.tensor_bytes / MIB
    # What the caller of the model gets is always fetched: it counts with its producer.
    given = graph.tensor_is_output & (graph.tensor_producer != MODEL_INPUT)
    given_mib = np.bincount(graph.tensor_producer[given], weights=mib[given], minlength=n)
    in_ms, out_ms = problem.of_stages("in_ms_per_mib"), problem.of_stages("out_ms_per_mib")
    stream_ms = problem.of_stages("stream_ms_per_mib") / MIB
    overhead_ms = problem.of_stages("stage_overhead_ms")

    def add(s: int, work: Floats, constant: float, less: Ints) -> None:
        columns = [members[:, s], send[:, s], fetch[:, s], less, amount[s : s + 1]]
        values = [-work, work, -mib * in_ms[s], -mib * out_ms[s], -np.ones(len(less)), [1.0]]
        rows.add_one(np.concatenate(columns), np.concatenate(values), constant, _COST)

    for s in range(problem.n_stages):
        work = problem.node_ms[s] + given_mib * out_ms[s]
        add(s, work, overhead_ms[s], np.zeros(0, np.int64))
        cache = problem.cache_bytes[s]
        if stream_ms[s] == 0 or params.sum() <= cache.min():
            continue
        # What the streaming of all parameters but the largest cache falls short of.
        short = stream_ms[s] * (cache.max() - cache)
        less = rows.columns(int(short.any()), short.max(), amount=True)
        for v in np.flatnonzero(short):
            columns = np.append(members[[v, n + v], s], less)
            rows.add_one(columns, np.array([-short[v], short[v], 1.0]), 0.0, _COST)
        most = overhead_ms[s] - stream_ms[s] * cache.max()
        add(s, work + stream_ms[s] * params, most, less)


def _add_moves(problem: StagingProblem, rows: _Rows, y: Ints) -> tuple[Ints, Ints]:
    """Columns, int64 (T, K) each: whether a tensor is sent to, and fetched from, a stage.

    Without those of the model's outputs being fetched.
    """
    graph, k = problem.graph, problem.n_stages
    reader, tensor = graph.consumers, graph.consumer_tensor
    home = graph.tensor_producer[tensor]
    inner = home != MODEL_INPUT
    # A model input is at home before the first stage.
    y_reader, y_home = y[reader], np.where(inner[:, None], y[home], _ONE)
    send, fetch = (
        rows.columns(graph.n_tensors * k, 1.0).reshape(graph.n_tensors, k) for _ in range(2)
    )
    r0, r1, h0, h1 = y_reader[:, :-1], y_reader[:, 1:], y_home[:, :-1], y_home[:, 1:]
    rows.add(
        _stack(send[tensor], r0, r1, h0, h1),
        [1, 1, -1, -1, 1],
        keep=(r1 != _ZERO) & (r0 != _ONE) & (h0 != _ZERO),
    )
    rows.add(
        _stack(fetch[tensor], r0, r1, h0, h1),
        [1, -1, 1, 1, -1],
        keep=(h1 != _ZERO)
        & (h0 != _ONE)
        & (r1 != _ONE)
        & (inner & ~graph.tensor_is_output[tensor])[:, None],
    )
    return send, fetch


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
    """Collects columns and rows."""

    def __init__(self) -> None:
        # The constants 0 and 1.
        self._upper: list[Floats] = [np.array([0.0, 1.0])]
        self._kinds: list[tuple[bool, bool]] = [(True, False)]
        self._columns: list[Ints] = []
        self._coefficients: list[Floats] = []
        self._lengths: list[Ints] = []
        self._lower: list[Floats] = []
        self._row_kinds: list[Ints] = []
        self._n_columns = 2

    def columns(
        self, count: int, upper: float, *, binary: bool = False, amount: bool = False
    ) -> Ints:
        """New columns, int64 (count,), from 0 to `upper`."""
        first = self._n_columns
        self._n_columns += count
        self._upper.append(np.full(count, upper))
        self._kinds.append((binary, amount))
        return np.arange(first, self._n_columns)

    def add(self, columns: Ints, coefficients: list[int], keep: NDArray[np.bool_]) -> None:
        """Rows of logic: columns (..., M), of which those in `keep` (...) are needed."""
        rows = columns[keep]
        count, length = rows.shape
        self._columns.append(rows.ravel())
        self._coefficients.append(np.tile(np.array(coefficients, float), count))
        self._lengths.append(np.full(count, length))
        self._lower.append(np.zeros(count))
        self._row_kinds.append(np.full(count, _LOGIC))

    def add_one(self, columns: Ints, coefficients: Floats, lower: float, kind: int) -> None:
        """One row: columns (M,), of which those with coefficient 0 are dropped."""
        used = coefficients != 0
        self._columns.append(columns[used])
        self._coefficients.append(coefficients[used])
        self._lengths.append(np.array([used.sum()]))
        self._lower.append(np.array([lower]))
        self._row_kinds.append(np.array([kind]))

    def programme(self, objective: Ints, most_bytes: int, y: Ints) -> Programme:
        """All of them."""
        upper = np.concatenate(self._upper)
        lower = np.zeros(len(upper))
        lower[_ONE] = 1.0
        counts = [len(columns) for columns in self._upper]
        binary, amount = np.repeat(np.array(self._kinds), counts, axis=0).T
        return Programme(
            lower=lower,
            upper=upper,
            is_binary=binary,
            is_amount=amount,
            objective=objective,
            row_start=np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))]),
            column=np.concatenate(self._columns),
            coefficient=np.concatenate(self._coefficients),
            row_lower=np.concatenate(self._lower),
            row_kind=np.concatenate(self._row_kinds),
            most_bytes=most_bytes,
            y=y,
        )
