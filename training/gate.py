"""Whether a newly trained policy takes the place of the one in use: by numbers, on unseen graphs.

Both plan every held-out graph, in turns and in one process, so that what slows the machine slows
both. Judged is the network itself, one greedy order and its best split; sampling and local search
would hide what it knows.

The rule. The new policy takes the place of the present one only if

- its gap is not worse: the 95 % interval of the mean difference of the gaps (paired bootstrap over
  the graphs) reaches 0 or below, and the mean difference is at most `GAP_MARGIN`;
- its speed is not lower: the 95 % interval of the ratio of their times reaches `TIME_MARGIN` or
  below.

Where there is no present one, it must beat each of `BASELINES`: the interval of the mean difference
lies below 0. With fewer than `FEWEST_GRAPHS` nothing is decided and the present one stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np

from coralline.devices.model import load_device
from coralline.errors import UserError
from coralline.graph.compute_graph import ComputeGraph
from coralline.staging.policy import Policy
from coralline.staging.problem import Effort, Plan, make_plan
from training.evaluate import Floats, best_of, interval
from training.policy import label_problems

SCHEMA = "coralline.policy-verdict/v1"

GAP_MARGIN = 0.01
"""Of the optimum; an interval of few graphs reaches 0 even where the mean is far worse."""

TIME_MARGIN = 1.05
"""New over present; below it, clocks and caches make the difference."""

BASELINES = ("topo-dp", "edgetpu-compiler")
"""A learned order must beat a plain topological one with the same split, and the rule that
people have without Coralline."""

FEWEST_GRAPHS = 16

_ROUNDS = 5
"""Times that each graph is planned by each; the shortest counts, for nothing makes it shorter."""


@dataclass(frozen=True)
class Verdict:
    """What was decided about a policy, and why.

    Attributes:
        promoted: Whether it takes the place of the present one.
        reason: One sentence with the numbers.
        compared_with: Version of the present one; None where there was none.
        metrics: By name, gaps as shares: `gate_gap`, `gate_ms` of the new one;
            `gate_present_gap`, `gate_present_ms` of the present one; `gate_gap_difference` and
            `gate_time_ratio`, each also with `_low` and `_high`; `gate_gap_NAME` of a baseline.
        graphs: Held out, that both planned; 0 where nothing was to be tried.
    """

    promoted: bool
    reason: str
    compared_with: int | None
    metrics: Mapping[str, float]
    graphs: int

    @property
    def word(self) -> str:
        """`promoted`, `kept back`, or `unchanged` where it is the present one already."""
        if self.promoted:
            return "promoted"
        return "kept back" if self.graphs else "unchanged"

    def to_json(self) -> dict[str, Any]:
        """A `coralline.policy-verdict/v1` object."""
        return {"schema": SCHEMA, **asdict(self)}

    @staticmethod
    def from_json(data: Any) -> Verdict:
        """Read what `to_json` wrote.

        Raises:
            UserError: It is something else.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise UserError(f"is no verdict on a policy; its `schema` must be {SCHEMA}")
        return Verdict(**{name: data[name] for name in Verdict.__dataclass_fields__})


@dataclass(frozen=True)
class Trial:
    """How a policy did on each graph.

    Attributes:
        gap: float64 (N,): value over the label's, minus 1.
        ms: float64 (N,): shortest time of encoding, one order and its split.
    """

    gap: Floats
    ms: Floats


def judge(
    new: Policy,
    present: Policy | None,
    present_version: int | None,
    graphs: Sequence[ComputeGraph],
    labels: Sequence[Plan],
) -> Verdict:
    """Decide whether `new` takes the place of `present`.

    Args:
        graphs, labels: That neither was trained on; the labels' devices are shipped ones.

    Raises:
        UserError: The labels do not fit the graphs.
    """
    if present is None:
        [trial] = try_in_turns([new], graphs, labels)
        return against_baselines(trial, gaps_of_planners(BASELINES, graphs, labels))
    trial, champion = try_in_turns([new, present], graphs, labels)
    return against_present(trial, champion, present_version)


def try_in_turns(
    policies: Sequence[Policy], graphs: Sequence[ComputeGraph], labels: Sequence[Plan]
) -> list[Trial]:
    """How each policy does on each graph; they take turns, and the first turn changes too."""
    problems = label_problems(graphs, labels, load_device(labels[0].device))
    value = np.empty((len(policies), len(problems)))
    ms = np.full_like(value, np.inf)
    for policy in policies:
        best_of(policy, problems[0], 1, seed=0)  # the first call may compile
    for j, problem in enumerate(problems):
        for turn in range(_ROUNDS):
            order = list(enumerate(policies))
            for i, policy in order if turn % 2 else reversed(order):
                start = perf_counter()
                value[i, j] = best_of(policy, problem, 1, seed=0)
                ms[i, j] = min(ms[i, j], 1000 * (perf_counter() - start))
    gap = value / [label.value for label in labels] - 1
    return [Trial(gap[i], ms[i]) for i in range(len(policies))]


def gaps_of_planners(
    names: Sequence[str], graphs: Sequence[ComputeGraph], labels: Sequence[Plan]
) -> dict[str, Floats]:
    """The gaps of other planners, float64 (N,) each."""
    problems = label_problems(graphs, labels, load_device(labels[0].device))
    best = np.array([label.value for label in labels])
    return {
        name: np.array([make_plan(p, name, Effort()).value for p in problems]) / best - 1
        for name in names
    }


def against_present(new: Trial, present: Trial, present_version: int | None) -> Verdict:
    """The rule of the module's text where there is a present policy."""
    difference = new.gap - present.gap
    worse_by, (low, high) = float(difference.mean()), interval(difference)
    ratio, (fast, slow) = _ratio(new.ms, present.ms)
    metrics = {
        "gate_gap": float(new.gap.mean()),
        "gate_present_gap": float(present.gap.mean()),
        "gate_gap_difference": worse_by,
        "gate_gap_difference_low": low,
        "gate_gap_difference_high": high,
        "gate_ms": float(new.ms.mean()),
        "gate_present_ms": float(present.ms.mean()),
        "gate_time_ratio": ratio,
        "gate_time_ratio_low": fast,
        "gate_time_ratio_high": slow,
    }
    n = len(difference)
    numbers = (
        f"gap {_percent(new.gap.mean())} against {_percent(present.gap.mean())} of version "
        f"{present_version} on {n} held-out graphs (difference {100 * worse_by:+.2f} points, "
        f"95 % interval {100 * low:+.2f} to {100 * high:+.2f}), time {ratio:.2f} times as long "
        f"({fast:.2f} to {slow:.2f})"
    )
    if n < FEWEST_GRAPHS:
        why = f"{n} graphs are too few to judge by, {FEWEST_GRAPHS} are needed"
    elif low > 0:
        why = "its gap is worse"
    elif worse_by > GAP_MARGIN:
        why = f"its gap is worse by more than {100 * GAP_MARGIN:g} point"
    elif fast > TIME_MARGIN:
        why = "it is slower"
    else:
        return Verdict(True, f"not worse and not slower: {numbers}", present_version, metrics, n)
    return Verdict(False, f"{why}: {numbers}", present_version, metrics, n)


def against_baselines(new: Trial, baselines: Mapping[str, Floats]) -> Verdict:
    """The rule of the module's text where there is no present policy."""
    n = len(new.gap)
    metrics = {"gate_gap": float(new.gap.mean()), "gate_ms": float(new.ms.mean())}
    metrics |= {f"gate_gap_{name}": float(gap.mean()) for name, gap in baselines.items()}
    means = ", ".join(f"{_percent(gap.mean())} of {name}" for name, gap in baselines.items())
    numbers = f"gap {_percent(new.gap.mean())} against {means} on {n} held-out graphs"
    if n < FEWEST_GRAPHS:
        why = f"{n} graphs are too few to judge by, {FEWEST_GRAPHS} are needed"
        return Verdict(False, f"{why}: {numbers}", None, metrics, n)
    for name, gap in baselines.items():
        if interval(new.gap - gap)[1] >= 0:
            why = f"it does not beat {name}"
            return Verdict(False, f"{why}: {numbers}", None, metrics, n)
    return Verdict(True, f"the first that beats the baselines: {numbers}", None, metrics, n)


def _ratio(a: Floats, b: Floats, resamples: int = 2000) -> tuple[float, tuple[float, float]]:
    """Sum of a over sum of b with its 95 % interval: bootstrap over pairs."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(a), size=(resamples, len(a)))
    ratios = a[chosen].sum(axis=1) / b[chosen].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(a.sum() / b.sum()), (float(low), float(high))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
