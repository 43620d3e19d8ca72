"""Every table, from the records alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, geometric_mean, median, stdev

from benchmarks.frame import BenchResult, Cell
from benchmarks.staging.measure import Record
from benchmarks.staging.processes import LIMIT_S, SCALED, SCALED_FAMILY, STAGES, Started
from benchmarks.staging.sets import (
    DECODERS,
    LAYERS,
    OPERATORS,
    PUBLISHED,
    SEARCHES,
    SOLVERS,
    SYNTHETIC,
    TIMED,
    WIDE,
)
from coralline.staging.problem import OPTIMALITY_TOLERANCE

MIB = 2**20

Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Case:
    """All attempts on one problem."""

    records: tuple[Record, ...]

    def of(self, planner: str, equal_s: float | None = None) -> Record:
        """The attempt of a planner: the one at equal time, or the one that has its own."""
        return next(
            r
            for r in self.records
            if r.planner == planner and (r.limit_s if r.fills else None) == equal_s
        )

    @property
    def times_s(self) -> list[float]:
        """The times of the attempts at equal time."""
        return sorted({r.limit_s for r in self.records if r.fills})

    @property
    def bound(self) -> float:
        """The best that any attempt has proven."""
        return max(r.lower_bound for r in self.records)

    @cached_property
    def best(self) -> float:
        """The best value that any attempt has found."""
        return min(r.value for r in self.records if r.value is not None)

    @cached_property
    def crossings(self) -> int:
        """The fewest of any plan of that value."""
        return min(r.crossings for r in self.records if r.crossings is not None and self.optimal(r))

    @property
    def crossings_proven(self) -> bool:
        """Whether they are the fewest there are."""
        return any(
            r.crossings_proven and r.crossings == self.crossings
            for r in self.records
            if self.optimal(r)
        )

    @property
    def proven(self) -> bool:
        """Whether the best value is the optimum."""
        return self.best <= self.bound * (1 + OPTIMALITY_TOLERANCE)

    def gap(self, record: Record) -> float:
        """Percent above the optimum, or above the best value known; inf without a plan."""
        return math.inf if record.value is None else 100 * max(record.value / self.best - 1, 0.0)

    def optimal(self, record: Record) -> bool:
        """Whether it is no worse than the best value known."""
        return self.gap(record) <= 100 * OPTIMALITY_TOLERANCE


class Cases:
    """The records, problem by problem."""

    def __init__(self, records: Iterable[Record]) -> None:
        groups: dict[tuple[str, str, int], list[Record]] = {}
        for record in records:
            groups.setdefault(record.case, []).append(record)
        self._cases = [Case(tuple(group)) for group in groups.values()]

    def __call__(self, *sets: str) -> list[Case]:
        """Those of some sets."""
        return [case for case in self._cases if case.records[0].set in sets]


@dataclass(frozen=True)
class Bounded:
    """A number, or a lower bound on it where a time limit cut the measurement short."""

    value: float
    bound: bool

    def __str__(self) -> str:
        text = f"{self.value:.3g}" if self.value < 1000 else f"{self.value:,.0f}"
        return f"≥ {text}" if self.bound else text


def ratios(cases: Sequence[Case], slow: str, fast: str) -> list[Bounded]:
    """How many times as long one planner takes as another, case by case."""
    pairs = [(case.of(slow), case.of(fast)) for case in cases]
    return [Bounded(a.seconds / b.seconds, a.stopped) for a, b in pairs]


def overall(found: Sequence[Bounded], average: Callable[[list[float]], float]) -> Bounded:
    """An average; a bound where any of them is."""
    return Bounded(average([r.value for r in found]), any(r.bound for r in found))


def goals(cases: Cases, started: Sequence[Started], scaled: Sequence[Started]) -> BenchResult:
    """What was aimed at, and what came out."""
    return BenchResult(
        title="The staging planners: what was aimed at, and what came out",
        columns=("what", "aim", "measured", "reached"),
        rows=(
            *_goals_of_exact(cases),
            *_goals_of_policy(cases),
            *_goals_of_processes(started, scaled),
        ),
        note="Costs of stages are those of the device model: simulated. Every solve time is the "
        "planner's alone, without the start of a process, unless a table says otherwise.",
    )


def _goal(what: str, aim: str, measured: str, reached: bool) -> Row:
    return what, aim, measured, "yes" if reached else "no"


def _goals_of_exact(cases: Cases) -> Iterator[Row]:
    ten, memory = cases(PUBLISHED, LAYERS), cases(PUBLISHED)
    name = "`exact`, RESPECT models"
    proven = sum(case.of("exact").proven for case in ten)
    yield _goal(f"{name}: proven", "all", f"{proven} of {len(ten)}", proven == len(ten))
    fewest = sum(case.of("exact").crossings_proven for case in memory)
    found = f"{fewest} of {len(memory)}"
    yield _goal(f"{name}, peak-memory: crossings too", "all", found, fewest == len(memory))
    times = [1000 * case.of("exact").seconds for case in ten]
    middle, longest = median(times), max(times)
    yield _goal(f"{name}: median time", "≤ 10 ms", f"{middle:.1f} ms", middle <= 10)
    yield _goal(f"{name}: longest time", "≤ 100 ms", f"{longest:.1f} ms", longest <= 100)
    cold = ratios(ten, "exact-cpsat-cold", "exact")
    mean, least = overall(cold, geometric_mean), min(cold, key=lambda r: r.value)
    yield _goal(f"{name}: CP-SAT cold takes", "≥ 500 times as long", str(mean), mean.value >= 500)
    yield _goal(f"{name}: and at least", "≥ 1 times as long", str(least), least.value >= 1)
    middle = median(1000 * case.of("exact").seconds for case in cases(OPERATORS))
    what = "`exact`, operator graphs of classic models: median time"
    yield _goal(what, "≤ 5 ms", f"{middle:.1f} ms", middle <= 5)
    for case in cases(WIDE):
        record = case.of("exact")
        what = f"`exact`, operator graph of {record.graph}, {record.stages} stages"
        if record.graph.startswith("nasnet_mobile"):
            reached = record.proven and record.seconds <= 30
            yield _goal(what, "proven within 30 s", _proof(record), reached)
        elif record.graph.startswith("nasnet_large"):
            yield _goal(what, "gap ≤ 5 % within 60 s", _proof(record), _own_gap(record) <= 5)


def _goals_of_policy(cases: Cases) -> Iterator[Row]:
    for nodes, group in _by_nodes(cases(SYNTHETIC)).items():
        seconds = group[0].times_s[0]
        gaps = {p: fmean(c.gap(c.of(p, seconds)) for c in group) for p in SEARCHES}
        mine = gaps.pop("policy")
        yield _goal(
            f"`policy`, {nodes:,} synthetic nodes, {1000 * seconds:g} ms each: mean gap",
            "less than annealing and BRKGA",
            f"{mine:.2f} %, " + ", ".join(f"{p} {gap:.2f} %" for p, gap in gaps.items()),
            mine < min(gaps.values()),
        )
        if nodes <= 50:
            for planner in ("policy", *DECODERS):
                aim = {"policy": 1.0, "policy-greedy": 5.0}.get(planner, 2.0)
                alone = [case.of(planner) for case in group]
                gap = fmean(c.gap(r) for c, r in zip(group, alone, strict=True))
                took = 1000 * fmean(r.seconds for r in alone)
                what = f"`{planner}`, {nodes:,} synthetic nodes: mean gap"
                reached = gap <= aim and took <= 10
                yield _goal(what, f"≤ {aim:g} % in 10 ms", f"{gap:.2f} % in {took:.1f} ms", reached)
    largest = max(cases(LAYERS), key=lambda case: case.records[0].nodes)
    for planner in DECODERS:
        record = largest.of(planner)
        took = 1000 * record.seconds
        what = f"`{planner}`, {record.graph}, {record.nodes} layers: time"
        yield _goal(what, "≤ 10 ms", f"{took:.1f} ms", took <= 10)


def _goals_of_processes(started: Sequence[Started], scaled: Sequence[Started]) -> Iterator[Row]:
    for first in (s.wall_s for s in started if s.cold and s.planner == "auto"):
        yield _goal("first `coralline schedule`, compiling", "≤ 3 s", f"{first:.1f} s", first <= 3)
    for planner in SCALED:
        runs = [s for s in scaled if s.planner == planner and s.solve_s < 0.9 * LIMIT_S]
        if len(runs) > 1:
            power = _power(runs[0], runs[-1])
            what = f"`{planner}`, {runs[0].nodes:,} to {runs[-1].nodes:,} nodes: grows as nodes to"
            yield _goal(what, "≤ 1.2", f"{power:.2f}", power <= 1.2)


def planners(cases: Cases, name: str) -> BenchResult:
    """Every planner on one set, and how much faster it is than the solvers."""
    group = cases(name)
    rows: list[Row] = []
    for planner in (r.planner for r in group[0].records):
        records = [case.of(planner) for case in group]
        pairs = list(zip(group, records, strict=True))
        gaps = [case.gap(r) for case, r in pairs]
        fewest = sum(case.optimal(r) and r.crossings == case.crossings for case, r in pairs)
        finite = [gap for gap in gaps if gap < math.inf]
        rows.append(
            (
                planner,
                sum(case.optimal(r) for case, r in pairs),
                *([fewest] if "memory" in name else []),
                sum(r.proven for r in records),
                sum(r.stopped for r in records),
                len(gaps) - len(finite),
                round(fmean(finite), 2) if finite else None,
                round(max(finite), 2) if finite else None,
                1000 * median(r.seconds for r in records),
                1000 * max(r.seconds for r in records),
                *(
                    str(overall(ratios(group, solver, planner), geometric_mean))
                    for solver in SOLVERS
                ),
            )
        )
    limits = ", ".join(f"{planner} {group[0].of(planner).limit_s:g} s" for planner in SOLVERS)
    return BenchResult(
        title=f"{len(group)} {name}: every planner",
        columns=(
            *("planner", "optimal", *(["and fewest crossings"] if "memory" in name else [])),
            *("proven", "stopped", "no plan"),
            *("mean gap (%)", "worst gap (%)", "median solve (ms)", "longest solve (ms)"),
            *("CP-SAT cold / it", "CP-SAT / it", "HiGHS cold / it", "HiGHS / it"),
        ),
        rows=tuple(rows),
        note="Gaps are above the optimum, or the best value known where none is proven. The last "
        "four columns are geometric means of the solver's time over the planner's; ≥ where the "
        f"time limit stopped the solver in some cases. Limits: {limits}. Cold is the solver left "
        "to itself; warm it starts from the best of 16 orders' splits, which is part of its time.",
    )


def models(cases: Cases, name: str) -> BenchResult:
    """Case by case on one set."""
    memory = "memory" in name
    rows: list[Row] = []
    for case in cases(name):
        solvers = [case.of(planner) for planner in SOLVERS]
        rows.append(
            (
                case.records[0].graph,
                case.records[0].nodes,
                case.records[0].stages,
                round(case.best / MIB, 4) if memory else round(case.best, 3),
                "yes" if case.proven else f"no, bound {case.bound:.4g}",
                *([case.crossings, "yes" if case.crossings_proven else "no"] if memory else []),
                *(
                    round(case.gap(case.of(p)), 2)
                    for p in ("edgetpu-compiler", "topo-dp", "policy")
                ),
                *(1000 * case.of(p).seconds for p in ("topo-dp", "policy", "exact", "auto")),
                *(str(Bounded(1000 * record.seconds, record.stopped)) for record in solvers),
                str(*ratios([case], "exact-cpsat-cold", "exact")),
            )
        )
    return BenchResult(
        title=f"{name}: case by case",
        columns=(
            *("graph", "nodes", "stages", "best (MiB)" if memory else "best (ms, simulated)"),
            *("proven", *(["crossings", "fewest, proven"] if memory else [])),
            *("rule's gap (%)", "topo-dp's gap (%)", "policy's gap (%)"),
            *("topo-dp (ms)", "policy (ms)", "exact (ms)", "auto (ms)"),
            *("CP-SAT cold (ms)", "CP-SAT (ms)", "HiGHS cold (ms)", "HiGHS (ms)"),
            "CP-SAT cold / exact",
        ),
        rows=tuple(rows),
        note="The rule is `edgetpu-compiler`. ≥: the time limit stopped the solver.",
    )


def claims(cases: Cases) -> BenchResult:
    """RESPECT's claims beside what came out here."""
    rows: list[Row] = []
    for name in (PUBLISHED, LAYERS):
        group = cases(name)
        for planner in ("exact", "policy"):
            records = [(case, case.of(planner)) for case in group]
            optimal = sum(case.optimal(record) for case, record in records)
            for solver in SOLVERS:
                found = ratios(group, solver, planner)
                rows.append(
                    (
                        name,
                        planner,
                        f"{optimal} of {len(group)}",
                        round(fmean(case.gap(record) for case, record in records), 2),
                        solver,
                        sum(r.bound for r in found),
                        str(min(found, key=lambda r: r.value)),
                        str(overall(found, median)),
                        str(overall(found, geometric_mean)),
                        str(max(found, key=lambda r: r.value)),
                    )
                )
    return BenchResult(
        title="RESPECT's claims side by side",
        columns=(
            *("problems", "planner", "optimal", "mean gap (%)", "times faster than", "stopped"),
            *("least", "median", "geometric mean", "most"),
        ),
        rows=tuple(rows),
        note="RESPECT (Yin et al., DAC 2023, arXiv 2304.04716) claims in its abstract to match an "
        "exact solver in up to 930 times less time, and to be up to 683 times faster than the "
        "commercial compiler. Its solver, machine and threads are others, so claim and columns "
        "are no like for like; cold is nearest to it. The compiler, edgetpu_compiler, cannot be "
        "installed here: its time is not compared. Its documented rule, equal parameter bytes, "
        "is the planner `edgetpu-compiler`, which takes a fraction of a millisecond; its plans "
        "are in the other tables.",
    )


def consequence(cases: Cases, error: str) -> BenchResult:
    """What the plans would mean on devices, if the model were right."""
    models: dict[str, list[Case]] = {}
    for case in cases(LAYERS):
        models.setdefault(case.records[0].graph, []).append(case)
    rows: list[Row] = []
    found: list[list[float]] = []
    for name, group in models.items():
        pairs = [(case.of("edgetpu-compiler").value, case.of("auto").value) for case in group]
        found.append([rule / auto for rule, auto in pairs])
        cells = [(round(rule, 2), round(auto, 2), round(rule / auto, 2)) for rule, auto in pairs]
        rows.append((name, *(cell for triple in cells for cell in triple)))
    means = [round(geometric_mean(column), 2) for column in zip(*found, strict=True)]
    rows.append(("geometric mean", *(cell for mean in means for cell in (None, None, mean))))
    stages = [case.records[0].stages for case in next(iter(models.values()))]
    return BenchResult(
        title="Simulated slowest stage: the compiler's documented rule and `auto`",
        columns=(
            "model",
            *(
                f"{k} stages, {what}"
                for k in stages
                for what in ("rule (ms, simulated)", "auto (ms, simulated)", "rule / auto")
            ),
        ),
        rows=tuple(rows),
        note=f"Simulated, not measured: {error}. RESPECT claims inference up to 2.5 times faster "
        "on hardware. Layer graphs of Keras models, int8, at their usual input sizes.",
    )


def wide_graphs(cases: Cases) -> BenchResult:
    """How far the searching planners come in equal time, and what is proven in the end."""
    rows: list[Row] = []
    for case in cases(WIDE):
        for seconds in case.times_s:
            rows.append(
                (
                    case.records[0].graph,
                    case.records[0].nodes,
                    case.records[0].stages,
                    seconds,
                    *(round(case.gap(case.of(p, seconds)), 2) for p in TIMED),
                    round(case.gap(case.of("topo-dp-orders")), 2),
                    round(case.best, 3),
                    round(case.bound, 3),
                    _proof(case.of("exact")),
                )
            )
    return BenchResult(
        title=f"{WIDE}: gap at equal time",
        columns=(
            *("model", "nodes", "stages", "each has (s)"),
            *(f"{p} (%)" for p in TIMED),
            *("best of four orders (%)", "best (ms, simulated)", "best bound (ms)"),
            f"exact with up to {max(c.of('exact').limit_s for c in cases(WIDE)):g} s",
        ),
        rows=tuple(rows),
        note="Gaps are above the best value that any planner found in any time. A planner that is "
        "done before its time starts again with another seed. The last column's gap is to its own "
        "bound.",
    )


def synthetic_graphs(cases: Cases) -> BenchResult:
    """The same on graphs that no policy was trained on."""
    alone = ("policy", *DECODERS, "topo-dp-orders")
    rows: list[Row] = []
    for nodes, group in _by_nodes(cases(SYNTHETIC)).items():
        seconds = group[0].times_s[0]
        families: dict[str, list[Case]] = {}
        for case in group:
            families.setdefault(case.records[0].graph.partition("-")[0], []).append(case)
        for family, some in {**families, "all": group}.items():
            rows.append(
                (
                    nodes,
                    family,
                    len(some),
                    sum(case.proven for case in some),
                    1000 * seconds,
                    *(_mean([case.gap(case.of(p, seconds)) for case in some]) for p in TIMED),
                    *(_mean([case.gap(case.of(p)) for case in some]) for p in alone),
                    *(1000 * fmean(case.of(p).seconds for case in some) for p in alone),
                    round(100 * fmean(case.best / case.bound - 1 for case in some), 2),
                )
            )
    return BenchResult(
        title=f"Unseen {SYNTHETIC}, {STAGES} stages: mean gap at equal time",
        columns=(
            *("nodes", "family", "graphs", "proven", "each has (ms)"),
            *(f"{p} (%)" for p in TIMED),
            *(f"{p} alone (%)" for p in alone),
            *(f"{p} alone (ms)" for p in alone),
            "best above bound (%)",
        ),
        rows=tuple(rows),
        note="Gaps are above the optimum where it is proven and above the best value known "
        "elsewhere, with 95 % intervals of the mean. A planner that is done before its time "
        "starts again with another seed; one whose first plan takes longer returns that. Alone is "
        "one call, with the same limit.",
    )


def growth(scaled: Sequence[Started]) -> BenchResult:
    """Time and memory against the number of nodes."""
    rows: list[Row] = []
    for planner in SCALED:
        before: Started | None = None
        for run in (s for s in scaled if s.planner == planner):
            power = kib = None
            if before is not None:
                power = round(_power(before, run), 2)
                more_mib = run.memory_mib - before.memory_mib
                kib = round(1024 * more_mib / (run.nodes - before.nodes), 1)
            gap = None if run.gap is None else round(100 * run.gap, 2)
            proven = "yes" if run.proven else "no"
            memory = round(run.memory_mib)
            milliseconds = 1000 * run.solve_s
            rows.append(
                (planner, run.nodes, milliseconds, power, run.wall_s, memory, kib, gap, proven)
            )
            before = run
    return BenchResult(
        title=f"Growth: `{SCALED_FAMILY}` graphs, {STAGES} stages, bottleneck, one process each",
        columns=(
            *("planner", "nodes", "solve (ms)", "grows as nodes to", "process (s)"),
            *("most memory (MiB)", "more memory a node (KiB)", "gap to its bound (%)", "proven"),
        ),
        rows=tuple(rows),
        note=f"1 is linear, from the row above. `exact` and `auto` have {LIMIT_S:g} s: "
        "where they prove nothing they take all of it, which says nothing of growth.",
    )


def process_starts(started: Sequence[Started]) -> BenchResult:
    """The whole command, for the first time and later."""
    rows: list[Row] = []
    for planner in dict.fromkeys(s.planner for s in started):
        first, later = (
            next(s for s in started if s.planner == planner and s.cold == cold)
            for cold in (True, False)
        )
        rows.append((planner, first.wall_s, later.wall_s, later.solve_s, round(later.memory_mib)))
    return BenchResult(
        title=f"`coralline schedule` as a process: {started[0].graph}, {STAGES} stages",
        columns=(
            *("planner", "first run, compiling (s)", "later runs, median (s)"),
            *("of which solving (s)", "most memory (MiB)"),
        ),
        rows=tuple(rows),
        note="The first run has an empty numba cache, as after installation.",
    )


def _own_gap(record: Record) -> float:
    """Percent above the record's own bound."""
    return 100 * (record.value / record.lower_bound - 1) if record.value else math.inf


def _proof(record: Record) -> str:
    found = "proven" if record.proven else f"gap {_own_gap(record):.1f} %"
    return f"{found}, {record.seconds:.1f} s"


def _by_nodes(cases: Sequence[Case]) -> dict[int, list[Case]]:
    groups: dict[int, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.records[0].nodes, []).append(case)
    return groups


def _mean(values: Sequence[float]) -> str:
    """With half its 95 % interval."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{fmean(values):.2f} ± {1.96 * stdev(values) / math.sqrt(len(values)):.2f}"


def _power(small: Started, large: Started) -> float:
    """The p for which time grows as the number of nodes to the power p."""
    return math.log(large.solve_s / small.solve_s) / math.log(large.nodes / small.nodes)
