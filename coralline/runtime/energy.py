"""Energy of an inference from a power trace and the markers that bound its windows.

Gross energy is what the meter saw in a window, by inference. Net energy is gross less what the
machine draws anyway: the power of an idle window, taken when the model is loaded and has run once
(an Edge TPU on USB idles at a third of a watt before its first inference, at nearly one after it:
github.com/google-coral/edgetpu, issues 758 and 109).

An uncertainty is half the width of an interval that holds the value in about 95 of 100 cases. Its
parts, which are added as squares:

- accuracy: of the instrument, as its maker or a calibration says, a share of its reading: so it
  weighs on net energy by the net. Without it there is no sum.
- borders: a marker falls between two samples, and the clocks of marker and sample may differ.
- sampling: what another window of that length would give, by batch means: the window is cut
  into equal batches, whose means are nearly independent however the samples hang together
  (Law, Simulation Modeling and Analysis, chapter 9.5.3).
- idle (net only): all of this for the idle window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from coralline.errors import DeviceError
from coralline.runtime.power import Samples, Trace, Window

SCHEMA = "coralline.energy/v1"

BATCHES = 20
FEWEST_SAMPLES = 4
"""Without which a window says nothing."""
LEAST_HZ = 350.0
"""Slower samples of power miss too much: at 350 Hz they agree with 4 kHz, at 1 Hz they are off by
up to 80 % (arXiv 2206.10377, abstract; on one board). A counter integrates by itself."""
MOST_LOST = 0.001
"""Share of lost samples at which EEMBC's EnergyRunner, for MLPerf Tiny, fails a run
(github.com/eembc/energyrunner, emon-drop-thresh-pct)."""
MOST_UNCERTAIN = 0.01
"""MLPerf Power refuses what is less certain (mlcommons/power-dev, compliance/check.py)."""
LEAST_S, LEAST_INFERENCES = 10.0, 10
"""Of a window, by MLPerf Tiny (github.com/eembc/energyrunner)."""


@dataclass(frozen=True)
class Identity:
    """Which meter it was, and where it sat.

    Attributes:
        name: In the inventory.
        kind: As the inventory writes it.
        device: As the instrument calls itself.
        at: The supply point: `usb-vbus`, `rail`, `battery`, `wall`, `dc-in` or `package`.
        accuracy_percent: Of its reading; None when not known.
    """

    name: str
    kind: str
    device: str
    at: str
    accuracy_percent: float | None


@dataclass(frozen=True)
class Spent:
    """Energy of one window.

    Attributes:
        inferences, seconds: Of the window.
        power_w: Mean.
        gross_mj, net_mj: Of one inference.
        gross_uncertainty_mj: Parts by name, and `total`, which is None when a part is.
        net_uncertainty_mj: Likewise.
        samples: Of the meter, in the window.
        lost_share: Of those that there should be.
        rate_hz: Samples a second.
    """

    inferences: int
    seconds: float
    power_w: float
    gross_mj: float
    net_mj: float
    gross_uncertainty_mj: Mapping[str, float | None]
    net_uncertainty_mj: Mapping[str, float | None]
    samples: int
    lost_share: float
    rate_hz: float


@dataclass(frozen=True)
class EnergyRecord:
    """`coralline.energy/v1`: the energy of one measurement.

    Attributes:
        meter: Which, and where.
        counter: Whether it integrates by itself.
        idle_w: Power of the idle window.
        idle_uncertainty_w: But for the instrument's accuracy.
        windows: By name: `alone`, one inference in flight; `full`, the pipeline kept full.
        notes: Of the meter, against its samples.
    """

    meter: Identity
    counter: bool
    idle_w: float
    idle_uncertainty_w: float
    windows: Mapping[str, Spent]
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> Spent:
        """With the pipeline full, where it was."""
        return self.windows.get("full") or self.windows["alone"]

    @property
    def rate_adequate(self) -> bool:
        """Whether the meter sampled often enough: see LEAST_HZ."""
        return self.counter or all(s.rate_hz >= LEAST_HZ for s in self.windows.values())

    @property
    def marks(self) -> tuple[str, ...]:
        """What speaks against the figures, one line each."""
        found = [f"energy: {note}" for note in self.notes]
        if not self.rate_adequate:
            slowest = min(spent.rate_hz for spent in self.windows.values())
            found.append(f"energy: sampled at {slowest:.0f} Hz; power needs {LEAST_HZ:.0f} Hz")
        lost = max(spent.lost_share for spent in self.windows.values())
        if lost > MOST_LOST and not self.counter:
            found.append(f"energy: {lost:.2%} of the power samples were lost; 0.1 % may be")
        if self.meter.accuracy_percent is None:
            found.append(
                f"energy: uncertain, since the accuracy of meter {self.meter.name} is not known"
            )
        for name, spent in self.windows.items():
            total = spent.gross_uncertainty_mj["total"]
            if total is not None and total > MOST_UNCERTAIN * abs(spent.gross_mj):
                share = total / abs(spent.gross_mj) if spent.gross_mj else math.inf
                found.append(f"energy: known to {share:.1%} only ({name}); 1 % is asked for")
            if spent.seconds < LEAST_S or spent.inferences < LEAST_INFERENCES:
                found.append(
                    f"energy: measured over {spent.seconds:.3g} s and {spent.inferences} "
                    f"inferences only ({name}); ask for more repetitions: {LEAST_S:.0f} s and "
                    f"{LEAST_INFERENCES} inferences are the least"
                )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """A `coralline.energy/v1` object; what follows from it is added for readers."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "rate_adequate": self.rate_adequate,
            "marks": list(self.marks),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> EnergyRecord:
        """Read what `to_json` wrote."""
        return EnergyRecord(
            meter=Identity(**data["meter"]),
            counter=data["counter"],
            idle_w=data["idle_w"],
            idle_uncertainty_w=data["idle_uncertainty_w"],
            windows={name: Spent(**spent) for name, spent in data["windows"].items()},
            notes=tuple(data["notes"]),
        )

    @staticmethod
    def merged(parts: Sequence[EnergyRecord]) -> EnergyRecord:
        """One record of several by one meter, weighted by their inferences.

        The instrument errs the same way in all of them, so its share does not shrink; the other
        shares do. Where the parts differ by more than their windows say, that counts.
        """
        first = parts[0]
        return EnergyRecord(
            meter=first.meter,
            counter=first.counter,
            idle_w=float(np.mean([part.idle_w for part in parts])),
            idle_uncertainty_w=_independent(
                [part.idle_uncertainty_w for part in parts], np.full(len(parts), 1 / len(parts))
            ),
            windows={
                name: _merged([part.windows[name] for part in parts]) for name in first.windows
            },
            notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        )


def energy_record(trace: Trace, windows: Sequence[Window], meter: Identity) -> EnergyRecord:
    """Integrate a trace over the windows.

    Raises:
        DeviceError: The trace does not hold the windows, or has too few samples in one.
    """
    if not any(window.name == "idle" for window in windows):
        raise DeviceError("no idle window was marked")
    idle = next(window for window in windows if window.name == "idle")
    idle_w, idle_uncertainty_w = _power(trace, idle)
    spent = {
        window.name: _spent(trace, window, idle_w, idle_uncertainty_w, meter.accuracy_percent)
        for window in windows
        if window is not idle
    }
    if not spent:
        raise DeviceError("no window with inferences was marked")
    return EnergyRecord(
        meter, trace.is_counter, idle_w, idle_uncertainty_w, spent, notes=trace.notes
    )


def mean_power(trace: Trace) -> dict[str, float]:
    """Power of a whole trace: `power_w`, `seconds`, `samples`, `rate_hz`, `lost_share`.

    Raises:
        DeviceError: It has too few samples.
    """
    if len(trace.t_s) < FEWEST_SAMPLES:
        raise DeviceError(f"the meter gave {len(trace.t_s)} samples; at least 4 are needed")
    begin_s, end_s = float(trace.t_s[0]), float(trace.t_s[-1])
    return {
        "power_w": float(trace.energy_until(end_s)) / (end_s - begin_s),
        "seconds": end_s - begin_s,
        "samples": len(trace.t_s),
        "rate_hz": (len(trace.t_s) - 1) / (end_s - begin_s),
        "lost_share": _lost_share(trace, begin_s, end_s),
    }


def _spent(
    trace: Trace, window: Window, idle_w: float, idle_uncertainty_w: float, accuracy: float | None
) -> Spent:
    if window.inferences < 1:
        raise DeviceError(f"no inference ended in window {window.name!r}")
    n, seconds = window.inferences, window.end_s - window.begin_s
    energy_j = _energy(trace, window)
    gross, net = 1e3 * energy_j / n, 1e3 * (energy_j - idle_w * seconds) / n
    borders = 1e3 * _borders(trace, window) / n
    sampling = 1e3 * seconds * _batch_means(trace, window) / n
    idle = 1e3 * seconds * idle_uncertainty_w / n

    def parts(value: float, **more: float) -> dict[str, float | None]:
        known: dict[str, float | None] = {
            "accuracy": None if accuracy is None else abs(value) * accuracy / 100,
            "borders": borders,
            "sampling": sampling,
            **more,
        }
        return {**known, "total": _total(known)}

    inside = (trace.t_s >= window.begin_s) & (trace.t_s <= window.end_s)
    return Spent(
        inferences=n,
        seconds=seconds,
        power_w=energy_j / seconds,
        gross_mj=gross,
        net_mj=net,
        gross_uncertainty_mj=parts(gross),
        net_uncertainty_mj=parts(net, idle=idle),
        samples=int(inside.sum()),
        lost_share=_lost_share(trace, window.begin_s, window.end_s),
        rate_hz=float(inside.sum()) / seconds,
    )


def _power(trace: Trace, window: Window) -> tuple[float, float]:
    """Mean power of a window, and its uncertainty but for the instrument's accuracy, in W."""
    seconds = window.end_s - window.begin_s
    borders = _borders(trace, window) / seconds
    return _energy(trace, window) / seconds, math.hypot(borders, _batch_means(trace, window))


def _energy(trace: Trace, window: Window) -> float:
    inside = (trace.t_s >= window.begin_s) & (trace.t_s <= window.end_s)
    if inside.sum() < FEWEST_SAMPLES:
        raise DeviceError(
            f"the meter gave {inside.sum()} samples in window {window.name!r}; at least "
            f"{FEWEST_SAMPLES} are needed"
        )
    if window.begin_s < trace.t_s[0] or window.end_s > trace.t_s[-1]:
        raise DeviceError(f"the meter did not record the whole of window {window.name!r}")
    return float(np.diff(trace.energy_until([window.begin_s, window.end_s]))[0])


def _borders(trace: Trace, window: Window) -> float:
    """How far the energy of a window may be off for where its borders are, in J."""
    shift = window.bound_s + trace.bound_s + (0.0 if trace.is_counter else trace.stale_s)
    # The clocks shift both borders alike: how long the window is, one clock has told.
    ends = np.array([window.begin_s, window.end_s]) + np.array([[-shift], [0.0], [shift]])
    within = np.clip(ends, trace.t_s[0], trace.t_s[-1])
    early, here, late = np.diff(trace.energy_until(within))[:, 0]
    moved = max(abs(early - here), abs(late - here))
    return math.hypot(moved, *(_border(trace, at) for at in (window.begin_s, window.end_s)))


def _border(trace: Trace, at_s: float) -> float:
    """What one border may cost that falls between two samples, in J: power may have changed from
    the one to the other anywhere between them."""
    i = int(np.clip(np.searchsorted(trace.t_s, at_s), 1, len(trace.t_s) - 1))
    gap = trace.t_s[i] - trace.t_s[i - 1]
    if trace.energy_j is None:
        assert trace.power_w is not None
        return float(gap * np.ptp(trace.power_w[i - 1 : i + 1]) / 2)
    near = slice(max(i - 2, 0), i + 2)
    powers = np.diff(trace.energy_j[near]) / np.diff(trace.t_s[near])
    return float(gap * np.ptp(powers) / 2 + trace.stale_s * powers.max())


def _batch_means(trace: Trace, window: Window) -> float:
    """Uncertainty of the mean power of a window by batch means, in W."""
    from scipy.stats import t

    inside = int(((trace.t_s >= window.begin_s) & (trace.t_s <= window.end_s)).sum())
    batches = min(BATCHES, inside // 2)
    edges = np.linspace(window.begin_s, window.end_s, batches + 1)
    means = np.diff(trace.energy_until(edges)) / np.diff(edges)
    return float(t.ppf(0.975, batches - 1) * means.std(ddof=1) / math.sqrt(batches))


def _lost_share(trace: Trace, begin_s: float, end_s: float) -> float:
    """Samples that are missing between these times, as a share of those that should be there.

    A gap of two usual intervals has lost one sample; drivers put samples where the instrument's
    own count says, so what it dropped shows as a gap too. Where a sample is the mean of several,
    the channel `lost_share` tells how many of these were lost.
    """
    first, last = np.searchsorted(trace.t_s, [begin_s, end_s])
    gaps = np.diff(trace.t_s[max(first - 1, 0) : last + 1])
    steps = np.rint(gaps / np.median(gaps))
    lost = float((steps[steps > 1] - 1).sum())
    due = lost + len(gaps)
    if "lost_share" in trace.channels:
        lost += float(trace.channels["lost_share"][first:last].sum())
    return lost / due


def _total(parts: Mapping[str, float | None]) -> float | None:
    known = [part for part in parts.values() if part is not None]
    return math.hypot(*known) if len(known) == len(parts) else None


def _merged(parts: Sequence[Spent]) -> Spent:
    counts = np.array([part.inferences for part in parts], dtype=np.float64)
    weights = counts / counts.sum()
    seconds = np.array([part.seconds for part in parts])

    def mean(values: Sequence[float]) -> float:
        return float(weights @ np.array(values))

    def uncertainty(values: Sequence[float], shares: Sequence[Mapping[str, float | None]]) -> Any:
        found: dict[str, float | None] = {}
        for name in shares[0].keys() - {"total"}:
            known = [share[name] for share in shares]
            each = [value for value in known if value is not None]
            if len(each) < len(known):
                found[name] = None
            else:
                found[name] = mean(each) if name == "accuracy" else _independent(each, weights)
        found["sampling"] = max(found["sampling"] or 0.0, _spread(values))
        return {**found, "total": _total(found)}

    gross, net = ([getattr(part, name) for part in parts] for name in ("gross_mj", "net_mj"))
    samples = np.array([part.samples for part in parts])
    return Spent(
        inferences=int(counts.sum()),
        seconds=float(seconds.sum()),
        power_w=float(seconds @ np.array([part.power_w for part in parts]) / seconds.sum()),
        gross_mj=mean(gross),
        net_mj=mean(net),
        gross_uncertainty_mj=uncertainty(gross, [part.gross_uncertainty_mj for part in parts]),
        net_uncertainty_mj=uncertainty(net, [part.net_uncertainty_mj for part in parts]),
        samples=int(samples.sum()),
        lost_share=float(samples @ np.array([p.lost_share for p in parts]) / samples.sum()),
        rate_hz=float(samples.sum() / seconds.sum()),
    )


def _independent(uncertainties: Sequence[float], weights: Samples) -> float:
    return math.hypot(*(weights * np.array(uncertainties)))


def _spread(values: Sequence[float]) -> float:
    """Uncertainty of the mean of values by how they differ."""
    from scipy.stats import t

    if len(values) < 2:
        return 0.0
    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
