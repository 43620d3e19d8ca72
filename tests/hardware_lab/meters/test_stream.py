"""Times of samples that came without one."""

from __future__ import annotations

import numpy as np
import pytest

from hardware_lab.meters import stream
from hardware_lab.meters.stream import Arrivals


@pytest.mark.parametrize("gains", [0.0, 1e-4])
def test_late_arrivals_and_a_clock_of_its_own(
    monkeypatch: pytest.MonkeyPatch, gains: float
) -> None:
    """Blocks of ten arrive up to 30 ms late, the soonest at once; the instrument's clock gains."""
    rng = np.random.default_rng(0)
    arrivals, taken = Arrivals(1000.0), []
    for block in range(2000):
        index = 10 * block + 9
        taken.append(100.0 + index / 1000 / (1 + gains))
        late = 0.0 if block % 20 == 0 else rng.uniform(0, 0.03)
        monkeypatch.setattr(stream.time, "monotonic", lambda at=taken[-1] + late: at)
        arrivals.note(index)
    t_s, bound_s = arrivals.times(np.arange(9, 20000, 10))
    assert np.abs(t_s - taken).max() < 0.0005
    assert 0.005 < bound_s < 0.03


def test_a_short_recording_takes_the_instruments_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = Arrivals(1000.0)
    for at, index in ((5.0, 0), (5.5, 400), (6.1, 1100)):
        monkeypatch.setattr(stream.time, "monotonic", lambda at=at: at)
        arrivals.note(index)
    t_s, _ = arrivals.times(np.array([0.0, 1000.0]))
    assert t_s == pytest.approx([5.0, 6.0])
