from __future__ import annotations

import numpy as np
import pytest

from coralline.devices.model import load_device
from coralline.errors import UserError
from coralline.graph.synthetic import generate
from coralline.staging import Effort, StagingProblem, make_plan
from coralline.staging.policy import load_policy
from training.evaluate import random_orders
from training.gate import (
    BASELINES,
    FEWEST_GRAPHS,
    Trial,
    Verdict,
    against_baselines,
    against_present,
    judge,
)

RNG = np.random.default_rng(0)
GAPS = RNG.gamma(1.0, 0.1, 64)
MS = RNG.uniform(1.0, 2.0, 64)


def trial(gap: float = 0.0, times: float = 1.0, noise: float = 0.0, n: int = 64) -> Trial:
    spread = np.random.default_rng(1).normal(size=64)
    return Trial((GAPS + gap + noise * (spread - spread.mean()))[:n], (MS * times)[:n])


@pytest.mark.parametrize(
    ("new", "promoted", "because"),
    [
        (trial(), True, "not worse and not slower"),
        (trial(gap=-0.02), True, "not worse and not slower"),
        (trial(gap=0.004, noise=0.1), True, "not worse and not slower"),
        (trial(gap=0.004), False, "its gap is worse:"),
        (trial(gap=0.03, noise=0.3), False, "its gap is worse by more than 1 point"),
        (trial(times=1.04), True, "not worse and not slower"),
        (trial(times=1.06), False, "it is slower"),
        (trial(gap=-0.02, times=2.0), False, "it is slower"),
        (trial(times=0.5), True, "not worse and not slower"),
    ],
)
def test_the_rule_against_the_present_one(new: Trial, promoted: bool, because: str) -> None:
    verdict = against_present(new, trial(), 7)
    assert (verdict.promoted, verdict.compared_with) == (promoted, 7)
    assert verdict.reason.startswith(because)
    assert "of version 7 on 64 held-out graphs" in verdict.reason
    metrics = verdict.metrics
    difference = metrics["gate_gap"] - metrics["gate_present_gap"]
    assert metrics["gate_gap_difference"] == pytest.approx(difference)
    assert (
        metrics["gate_gap_difference_low"]
        <= metrics["gate_gap_difference"]
        <= metrics["gate_gap_difference_high"]
    )
    assert Verdict.from_json(verdict.to_json()) == verdict


def test_the_rule_without_a_present_one() -> None:
    baselines = {"topo-dp": GAPS + 0.05, "edgetpu-compiler": GAPS + 0.5}
    first = against_baselines(trial(), baselines)
    assert first.promoted
    assert first.metrics["gate_gap_topo-dp"] == pytest.approx(GAPS.mean() + 0.05)
    worse = against_baselines(trial(gap=0.1), baselines)
    assert not worse.promoted
    assert worse.reason.startswith("it does not beat topo-dp")


def test_few_graphs_decide_nothing() -> None:
    n = FEWEST_GRAPHS - 1
    for verdict in (
        against_present(trial(gap=-0.1, n=n), trial(n=n), 1),
        against_baselines(trial(n=n), {"topo-dp": GAPS[:n] + 0.5}),
    ):
        assert not verdict.promoted
        assert f"{n} graphs are too few" in verdict.reason


def test_a_trained_policy_beats_chance_and_not_the_reverse() -> None:
    graphs = generate("respect", 24, 20, 5)
    device = load_device("edgetpu-usb")
    labels = [make_plan(StagingProblem(g, 4, device), "exact", Effort(10)) for g in graphs]
    shipped, chance = load_policy(), random_orders()
    found = judge(chance, shipped, 3, graphs, labels)
    assert not found.promoted
    assert found.reason.startswith("its gap is worse")
    first = judge(shipped, None, None, graphs, labels)
    assert first.promoted
    assert {f"gate_gap_{name}" for name in BASELINES} < set(first.metrics)
    with pytest.raises(UserError, match="labels"):
        judge(shipped, None, None, graphs, labels[:-1])
