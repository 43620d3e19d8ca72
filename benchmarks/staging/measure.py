"""Running the attempts, so that an interrupted run can go on."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.staging.sets import ROOT, Attempt, ProblemSet, Size
from coralline.errors import PlanError
from coralline.files import make_folder
from coralline.home import home_folder
from coralline.staging import Effort, Plan, StagingProblem, make_plan

WORKERS = 2
"""Threads of every planner that takes more than one."""

REPEATED_S = 0.2
"""What takes longer is run once: noise is small beside its time."""


@dataclass(frozen=True)
class Record:
    """What an attempt on a problem came to.

    Attributes:
        graph, digest, nodes: Of the problem's graph.
        limit_s, fills: Of the attempt.
        value, lower_bound: In the objective's unit; None for an attempt without a plan.
        proven: Whether the value is the optimum, with proof.
        crossings, crossings_proven: For `peak-memory`, what comes after the value.
        seconds: Time of the planner, the median of `runs`.
    """

    set: str
    graph: str
    digest: str
    nodes: int
    stages: int
    planner: str
    limit_s: float
    fills: bool
    value: float | None
    lower_bound: float
    proven: bool
    crossings: int | None
    crossings_proven: bool
    seconds: float
    runs: int

    @property
    def case(self) -> tuple[str, str, int]:
        """What the attempts on one problem have in common."""
        return self.set, self.digest, self.stages

    @property
    def stopped(self) -> bool:
        """Whether the time limit ended it."""
        return not self.proven and self.seconds >= 0.9 * self.limit_s


class Journal:
    """What a run has finished, kept until it ends.

    It is found again only by a run of the same size and program since the machine was started:
    numbers from different moments of another state do not meet in one table.
    """

    def __init__(self, size: Size) -> None:
        state = hashlib.sha256(repr(size).encode())
        for part in ("coralline", "training", "benchmarks"):
            for path in sorted((ROOT / part).rglob("*.py")):
                state.update(path.read_bytes())
        boot = Path("/proc/sys/kernel/random/boot_id")
        state.update(boot.read_bytes() if boot.is_file() else b"")
        self.folder = make_folder(home_folder() / "bench-staging" / state.hexdigest()[:16])
        self._path = self.folder / "journal.jsonl"
        text = self._path.read_text(encoding="utf-8") if self._path.is_file() else ""
        # The last line of an interrupted run may be cut short.
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._path.write_text(whole, encoding="utf-8")
        self._done = dict(json.loads(line) for line in whole.splitlines())
        self.found = len(self._done)

    def keep(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` returned, a JSON value; it is not called again for a key that is kept."""
        if key not in self._done:
            self._done[key] = make()
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, self._done[key]]) + "\n")
        return self._done[key]

    def close(self) -> None:
        """Forget everything: the run is over."""
        shutil.rmtree(self.folder)


def measure(sets: Iterable[ProblemSet], size: Size, journal: Journal) -> list[Record]:
    """Make every attempt on every problem."""
    start = perf_counter()
    records = []
    for problems in sets:
        for i, problem in enumerate(problems.problems):
            graph = problem.graph
            print(
                f"{perf_counter() - start:6.0f} s  {problems.name} {i + 1} of "
                f"{len(problems.problems)}: {graph.name}, {problem.n_stages} stages",
                file=sys.stderr,
            )
            key = f"{problems.name} {graph.digest} {problem.n_stages}"
            found = journal.keep(key, lambda p=problem, s=problems: _attempts(s, p, size))
            records += [Record(**one) for one in found]
    return records


def _attempts(problems: ProblemSet, problem: StagingProblem, size: Size) -> list[dict[str, Any]]:
    plans: dict[Attempt, Plan | None] = {}
    seconds: dict[Attempt, list[float]] = {attempt: [] for attempt in problems.attempts}
    # The planners take turns, so that a busy moment of the machine meets all of them.
    for repetition in range(size.repetitions):
        for attempt in problems.attempts:
            if repetition and (attempt.fills or seconds[attempt][0] > REPEATED_S):
                continue
            plan, spent = _plan(problem, attempt)
            plans.setdefault(attempt, plan)
            seconds[attempt].append(spent)
    return [
        asdict(
            Record(
                set=problems.name,
                graph=problem.graph.name,
                digest=problem.graph.digest,
                nodes=problem.graph.n_nodes,
                stages=problem.n_stages,
                planner=attempt.planner,
                limit_s=attempt.limit_s,
                fills=attempt.fills,
                value=plan.value if plan else None,
                lower_bound=plan.lower_bound if plan else 0.0,
                proven=plan is not None and plan.proven_optimal,
                crossings=int(plan.stages["hop_weighted_crossings"]) if plan else None,
                crossings_proven=plan is not None and plan.crossings_proven,
                seconds=median(seconds[attempt]),
                runs=len(seconds[attempt]),
            )
        )
        for attempt, plan in plans.items()
    ]


def _plan(problem: StagingProblem, attempt: Attempt) -> tuple[Plan | None, float]:
    """The plan, and the planner's time; the whole of it where the planner found none."""
    best: Plan | None = None
    spent, seed = 0.0, 0
    while True:
        effort = Effort(time_limit_s=attempt.limit_s - spent, seed=seed, workers=WORKERS)
        try:
            plan = make_plan(problem, attempt.planner, effort)
        except PlanError:
            return best, attempt.limit_s
        spent += plan.solve_seconds
        if best is None:
            best = plan
        else:
            bound = max(best.lower_bound, plan.lower_bound)
            best = min(best, plan, key=lambda p: p.value).with_bound(bound)
        if not attempt.fills or best.proven_optimal or spent >= 0.95 * attempt.limit_s:
            return best, spent
        seed += 1
