"""What a job's page says of its result: charts and tables, worked out once a result."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import scipy.special  # noqa: F401  # the first result that is looked at would wait for it

from coralline.report.page import number
from coralline.runtime.child import never
from coralline.runtime.measurement import Measurement
from coralline.runtime.power import read_trace
from coralline.runtime.statistics import Estimate
from hardware_lab.artifacts import Artifacts, Files
from hardware_lab.artifacts.download import Patience, download
from hardware_lab.compare import Comparison
from hardware_lab.meters.metering import TRACE_FILE
from hardware_lab.service import charts
from hardware_lab.service.charts import Box, Chart, Dot, PowerTrace, Said, Samples

PERCENTS = (50, 90, 99)
FETCH_S = 10.0
"""How long a page waits for a power trace."""


@dataclass(frozen=True)
class Percentile:
    """A row of the table of percentiles.

    Attributes:
        value, low, high: In ms; the ends are those of a 95 % interval.
        at_most: What it does not exceed with a confidence of 99 %; None with too few samples.
    """

    name: str
    value: float
    low: float
    high: float
    at_most: float | None


@dataclass(frozen=True)
class Stage:
    """A row of the table of stages: medians in ms, pipeline full, and how they are drawn."""

    name: str
    busy_ms: float
    transfer_ms: float
    wait_ms: float
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Figure:
    """A number that is looked for first; its note says how sure it is."""

    name: str
    value: str
    unit: str
    note: str = ""


@dataclass(frozen=True)
class Energy:
    """A row of the table of energies: one window. Numbers with their uncertainty are texts."""

    window: str
    gross_mj: str
    net_mj: str
    power_w: float
    seconds: float
    inferences: int
    rate_hz: float
    lost_share: float


@dataclass(frozen=True)
class Part:
    """One plan's measurement.

    Attributes:
        name: `A` or `B` of a comparison; empty when there is only one.
        model: What was measured.
        facts: Name and value of what is said in a line.
    """

    name: str
    model: str
    simulated: bool
    figures: tuple[Figure, ...]
    percentiles: tuple[Percentile, ...]
    stages: tuple[Stage, ...]
    energies: tuple[Energy, ...]
    facts: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]
    marks: tuple[str, ...]

    @property
    def said(self) -> Said:
        """What its numbers are."""
        return "simulated" if self.simulated else "measured"


@dataclass(frozen=True)
class Ratio:
    """A row of the table of a comparison."""

    name: str
    a: float | None
    b: float | None
    ratio: Estimate
    dot: Dot
    differs: bool


@dataclass(frozen=True)
class Result:
    """All that is said of a result.

    Attributes:
        said: `simulated` when any number comes from a device model.
        charts: Of the latency, for one or both plans.
        windows: That the markers bound, as `PowerTrace` has them.
    """

    said: Said
    parts: tuple[Part, ...]
    ratios: tuple[Ratio, ...]
    charts: tuple[Chart, ...]
    windows: tuple[tuple[str, float, float], ...]


def describe(found: Measurement | Comparison) -> Result:
    """Work out what is shown of a result."""
    named = {"": found} if isinstance(found, Measurement) else {"A": found.a, "B": found.b}
    said: Said = "simulated" if any(m.simulated for m in named.values()) else "measured"
    told = {name: m.statistics() for name, m in named.items()}
    sampled = [
        Samples(name, np.array(m.latency_ms), np.array(m.at_s), told[name])
        for name, m in named.items()
        if m.latency_ms
    ]
    drawn = []
    if sampled:
        drawn = [
            charts.histogram(sampled, said),
            charts.cumulative(sampled, said),
            charts.over_time(sampled, said),
        ]
    return Result(
        said=said,
        parts=tuple(_part(name, m, told[name]) for name, m in named.items()),
        ratios=() if isinstance(found, Measurement) else _ratios(found),
        charts=tuple(chart for chart in drawn if chart is not None),
        windows=tuple(
            (f"{name} {window.name}".strip(), window.begin_s, window.end_s)
            for name, m in named.items()
            for window in m.windows
        ),
    )


def traces_of(files: Files) -> tuple[str, ...]:
    """The artifacts with what the meter saw: one, or one a turn of a comparison."""
    kept = files.kept.items()
    return tuple(file.ref for name, file in kept if Path(name).name == TRACE_FILE)


def describe_power(artifacts: Artifacts, refs: Sequence[str], result: Result) -> Chart:
    """What the meter saw.

    Args:
        refs: At least one; see `traces_of`.

    Raises:
        DeviceError: The artifact store does not answer.
        UserError: A trace is missing, or cannot be read.
    """
    traces = []
    with TemporaryDirectory() as folder:
        for ref in refs:
            path = Path(folder) / TRACE_FILE
            download(artifacts, ref, path, Patience("the power trace", FETCH_S, never))
            traces.append(read_trace(path))
            path.unlink()
    traces.sort(key=lambda trace: float(trace.t_s[0]))
    bounded = [
        PowerTrace(
            trace,
            [w for w in result.windows if trace.t_s[0] <= w[1] and w[2] <= trace.t_s[-1]],
        )
        for trace in traces
    ]
    return charts.power(bounded, result.said)


def _part(name: str, m: Measurement, told: Mapping[str, Any]) -> Part:
    return Part(
        name=name,
        model=m.model,
        simulated=m.simulated,
        figures=tuple(_figures(m, told)),
        percentiles=tuple(
            Percentile(f"p{percent}", **told[f"p{percent}"]) for percent in PERCENTS if told
        ),
        stages=_stages(m),
        energies=_energies(m),
        facts=tuple(_facts(m)),
        environment=tuple(
            (key.replace("_", " "), text(value))
            for key, value in sorted(m.environment.items())
            if value not in (None, "", {}, [])
        ),
        marks=m.marks,
    )


def _figures(m: Measurement, told: Mapping[str, Any]) -> list[Figure]:
    found = []
    for percent in PERCENTS if told else ():
        surely = told[f"p{percent}"]
        between = f"{number(surely['low'])} to {number(surely['high'])}"
        found.append(Figure(f"p{percent}", number(surely["value"]), "ms", between))
    for name, value in (m.latency_reported_ms or {}).items():
        if name == "count":
            found.append(Figure("inferences", f"{value:,.0f}", "", "reported without samples"))
        else:
            found.append(Figure(name, number(value), "ms"))
    if m.full_latency_ms:
        found.append(Figure("throughput", number(m.throughput_fps), "inferences/s"))
    if m.energy_mj_per_inference is not None:
        note = "by a device model"
        if m.energy is not None:
            total = m.energy.whole.gross_uncertainty_mj["total"]
            known = "not known how surely" if total is None else f"± {total:.2g}"
            note = f"{known}, {m.energy.meter.at}"
        found.append(Figure("energy", number(m.energy_mj_per_inference), "mJ an inference", note))
    return found


def _facts(m: Measurement) -> list[tuple[str, str]]:
    facts = [
        ("model", m.model),
        ("plan", f"{len(m.stage_busy_ms)} stages by {m.plan.get('planner', 'no planner')}"),
        ("ran on", f"{m.processor_ran or 'not told'}: {m.processor}"),
        ("asked for", m.processor_asked or "not told"),
    ]
    if m.delegated_share is not None:
        facts.append(("delegated", f"{100 * m.delegated_share:.1f} % of the operators"))
    facts.append(("first inference", f"{number(m.first_inference_ms)} ms"))
    if m.full_latency_ms:
        facts.append(("slowest stage", f"{number(m.measured_bottleneck_ms)} ms"))
    if m.energy is not None:
        meter = m.energy.meter
        facts += [
            ("power meter", f"{meter.name} ({meter.device}) at {meter.at}"),
            ("power when idle", f"{number(m.energy.idle_w)} W, the model loaded and run once"),
        ]
    else:
        why = m.environment.get("meter_failure", "no meter")
        facts.append(("power meter", "a device model" if m.energy_source else text(why)))
    facts += [
        ("samples", f"{len(m.latency_ms):,} in each mode, after {m.warmup:,} to warm up"),
        (
            "outputs",
            {True: "the whole model's bits", False: "DIFFER from the whole model's"}.get(
                m.outputs_equal,  # type: ignore[arg-type]
                "not checked",
            ),
        ),
        ("model file", f"sha256 {m.model_digest[:16]}…"),
    ]
    return facts


def _stages(m: Measurement) -> tuple[Stage, ...]:
    if not m.latency_ms:
        return ()
    kinds = {"busy": m.stage_busy_ms, "transfer": m.transfer_ms, "wait": m.queue_wait_ms}
    medians = {
        kind: [float(np.median(samples)) for samples in stages] for kind, stages in kinds.items()
    }
    most = max(map(sum, zip(*medians.values(), strict=True)), default=0.0) or 1.0
    found = []
    for stage in range(len(m.stage_busy_ms)):
        boxes: list[Box] = []
        for kind, values in medians.items():
            begin = sum(box.width for box in boxes)
            boxes.append(Box(begin, 20, 100 * values[stage] / most, 60, kind))
        busy, transfer, wait = (values[stage] for values in medians.values())
        found.append(Stage(str(stage + 1), busy, transfer, wait, tuple(boxes)))
    return tuple(found)


def _energies(m: Measurement) -> tuple[Energy, ...]:
    if m.energy is None:
        return ()
    return tuple(
        Energy(
            {"alone": "one alone", "full": "pipeline full"}.get(name, name),
            _surely(spent.gross_mj, spent.gross_uncertainty_mj),
            _surely(spent.net_mj, spent.net_uncertainty_mj),
            spent.power_w,
            spent.seconds,
            spent.inferences,
            spent.rate_hz,
            spent.lost_share,
        )
        for name, spent in m.energy.windows.items()
    )


def _surely(value: float, uncertainty: Mapping[str, float | None]) -> str:
    total = uncertainty["total"]
    return f"{value:.4g}" if total is None else f"{value:.4g} ± {total:.2g}"


def _ratios(found: Comparison) -> tuple[Ratio, ...]:
    axis = charts.ratio_axis(list(found.ratios.values()))
    a, b = found.a.summary(), found.b.summary()
    return tuple(
        Ratio(
            name=metric(name),
            a=a.get(name),
            b=b.get(name),
            ratio=ratio,
            dot=Dot(
                axis.place(ratio.value),
                50,
                "ratio",
                ends=(axis.place(ratio.low), axis.place(ratio.high)),
                of_x=True,
            ),
            differs=not ratio.low <= 1 <= ratio.high,
        )
        for name, ratio in found.ratios.items()
    )


_UNITS = {
    "_mj_per_inference": ", mJ an inference",
    "_ms": ", ms",
    "_fps": ", inferences/s",
    "_mj": ", mJ",
}


def metric(name: str) -> str:
    """A metric's name for people, with its unit."""
    for ending, unit in _UNITS.items():
        if name.endswith(ending):
            return name.removesuffix(ending).replace("_", " ") + unit
    return name.replace("_", " ")


def text(value: Any) -> str:
    """A JSON value in a line."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not known"}[value]
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        known = {key: one for key, one in value.items() if one is not None}
        return ", ".join(f"{key.replace('_', ' ')} {text(one)}" for key, one in known.items())
    if isinstance(value, Sequence):
        return ", ".join(map(text, value))
    return json.dumps(value)
