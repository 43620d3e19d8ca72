"""One pipeline run as a single HTML page for people, with nothing to load from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coralline.cost import StepCost
from coralline.devices.check import PublishedError
from coralline.devices.model import MIB
from coralline.files import write_text
from coralline.graph.compute_graph import ComputeGraph
from coralline.report import figures
from coralline.report.record import (
    RULE,
    Case,
    ReportInput,
    cases,
    predicted_over_measured,
)
from coralline.runtime.measurement import Measurement
from coralline.staging.problem import Plan

if TYPE_CHECKING:
    from jinja2 import Environment

_SVG = "http://www.w3.org/2000/svg"


def write_report(record: ReportInput, out: Path, figures_dir: Path | None = None) -> Path:
    """Write the page, whole or not at all; returns its path.

    Args:
        figures_dir: Where to write the figures as .svg files too.

    Raises:
        UserError: A file cannot be written.
    """
    page = _page(record)
    text = templates("coralline.report").get_template("report.html.j2").render(page)
    write_text(out, text.lstrip() + "\n")
    if figures_dir is not None:
        for name, svg in _figures(page).items():
            file = re.sub(r"[^\w.-]+", "_", name) + ".svg"
            write_text(figures_dir / file, svg.replace("<svg", f'<svg xmlns="{_SVG}"', 1) + "\n")
    return out


def templates(*packages: str) -> Environment:
    """The templates of packages, each in its folder `templates`; the first that has one counts."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@dataclass(frozen=True)
class Cell:
    """A table's cell.

    Attributes:
        text: As shown.
        order: What the column is sorted by.
        simulated: Whether the word must stand beside it.
        number: Whether it is set flush right.
    """

    text: str
    order: float | str
    simulated: bool = False
    number: bool = True


@dataclass(frozen=True)
class Table:
    """A table that readers can sort."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def number(value: float) -> str:
    """Three significant digits without an exponent, thousands apart."""
    if value == 0 or not np.isfinite(value):
        return "0" if value == 0 else str(value)
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def amount(value: float, unit: str) -> str:
    """A plan's value with its unit."""
    return f"{number(value / MIB)} MiB" if unit == "bytes" else f"{number(value)} {unit}"


def duration(seconds: float) -> str:
    """A planner's time with its unit."""
    return f"{number(seconds)} s" if seconds >= 1 else f"{number(1000 * seconds)} ms"


def _page(record: ReportInput) -> dict[str, Any]:
    found = cases(record)
    colours = figures.planner_colours(
        list(dict.fromkeys(p.planner for c in found for p in c.plans))
    )
    models = dict.fromkeys(case.best.graph_name for case in found)
    any_simulated = any(plan.simulated for case in found for plan in case.plans) or any(
        measurement.simulated for measurement in record.measurements
    )
    return {
        "record": record,
        "any_simulated": any_simulated,
        "headlines": [
            _headline([case for case in found if case.best.graph_name == model]) for model in models
        ],
        "plans": _plan_table(found),
        "measurements": _measurement_table(found, record.graphs) if record.measurements else None,
        "strips": figures.planner_strips(
            found, colours, "Proven gap and solve time of every plan, by planner"
        )
        if found
        else "",
        "models": [
            {
                "name": model,
                "cases": [
                    _case(record, case, colours) for case in found if case.best.graph_name == model
                ],
            }
            for model in models
        ],
        "policy": _policy(record),
        "devices": [record.devices[name] for name in sorted(record.devices)],
        "checks": [_check_table(c) for c in record.device_checks if c.predictions],
        "parameters": _facts(record.parameters),
        "provenance": _facts(record.provenance),
        "boards": _board_table(record.measurements) if record.measurements else None,
        "steps": _step_table(record.steps) if record.steps else None,
        "amount": amount,
        "number": number,
    }


def _figures(page: Mapping[str, Any]) -> dict[str, str]:
    """The page's figures by name, without those it does not have."""
    found = {"planners": page["strips"], "policy": page["policy"] and page["policy"]["curve"]}
    for model in page["models"]:
        for case in model["cases"]:
            where = f"{model['name']}-{case['stages']}-{case['device']}-{case['objective']}"
            for kind in ("bars", "cut", "latencies"):
                found[f"{where}-{kind}"] = case[kind]
    return {name: svg for name, svg in found.items() if svg}


def _headline(own: Sequence[Case]) -> dict[str, Any]:
    """The best plan of a model in its deepest pipeline, and a line for each other depth."""
    lines = []
    for case in own:
        best = case.best
        rule = None if best.planner == RULE else case.rule
        lines.append(
            {
                "stages": best.n_stages,
                "objective": best.objective,
                "planner": best.planner,
                "equals": case.equals,
                "value": amount(best.value, best.unit),
                "simulated": best.simulated and best.unit == "ms",
                "proven": best.proven_optimal,
                "gap": best.gap,
                "rule": None if rule is None else amount(rule.value, rule.unit),
                "less": None if rule is None else 100 * (1 - best.value / rule.value),
                "boards": [_on_board(case, board) for board in case.boards],
            }
        )
    return {"model": own[0].best.graph_name, "lines": lines}


def _on_board(case: Case, board: str) -> dict[str, Any]:
    """Throughput of the best plan on a board, beside the rule's."""
    best = case.measurements[case.best.planner].get(board)
    rule = case.measurements.get(RULE, {}).get(board)
    ratio = None
    if best is not None and rule is not None and best is not rule:
        ratio = best.throughput_fps / rule.throughput_fps
    return {"board": board, "best": best, "ratio": ratio}


def _plan_table(found: Sequence[Case]) -> Table:
    rows = []
    for case in found:
        for plan in case.plans:
            timed = plan.simulated and plan.unit == "ms"
            percent = None if plan.gap is None else 100 * plan.gap
            rows.append(
                (
                    _words(plan.graph_name),
                    Cell(str(plan.n_stages), plan.n_stages),
                    _words(plan.planner),
                    _words(plan.objective),
                    Cell(amount(plan.value, plan.unit), plan.value, timed),
                    Cell(amount(plan.lower_bound, plan.unit), plan.lower_bound, timed),
                    _none()
                    if percent is None
                    else Cell(
                        "optimal" if plan.proven_optimal else f"{number(percent)} %", percent
                    ),
                    Cell(
                        f"{number(max(plan.stages['param_bytes']) / MIB)} MiB",
                        max(plan.stages["param_bytes"]),
                    ),
                    Cell(duration(plan.solve_seconds), plan.solve_seconds),
                )
            )
    return Table(
        "Every plan: value, proven lower bound and cost of finding it",
        (
            "model",
            "stages",
            "planner",
            "objective",
            "value",
            "lower bound",
            "gap at most",
            "fullest stage",
            "solve time",
        ),
        tuple(rows),
    )


def _measurement_table(found: Sequence[Case], graphs: Mapping[str, ComputeGraph]) -> Table:
    rows = []
    for case in found:
        for plan in case.plans:
            for board, m in case.measurements[plan.planner].items():
                ratio = predicted_over_measured(plan, m, graphs.get(plan.graph_digest))
                values = m.summary()
                rows.append(
                    (
                        _words(plan.graph_name),
                        Cell(str(plan.n_stages), plan.n_stages),
                        _words(plan.planner),
                        _words(board),
                        *(
                            Cell(f"{number(values[key])} ms", values[key], m.simulated)
                            for key in (
                                "latency_p50_ms",
                                "latency_p90_ms",
                                "latency_p99_ms",
                                "first_inference_ms",
                            )
                        ),
                        Cell(f"{number(m.throughput_fps)} fps", m.throughput_fps, m.simulated),
                        _energy(m),
                        _none() if ratio is None else Cell(number(ratio), ratio),
                        _words({True: "yes", False: "NO", None: "not run"}[m.outputs_equal]),
                    )
                )
    return Table(
        "Every plan on every board: latency of one inference, throughput of the full pipeline",
        (
            "model",
            "stages",
            "planner",
            "board",
            "p50",
            "p90",
            "p99",
            "first",
            "throughput",
            "energy",
            "predicted / measured",
            "same bits",
        ),
        tuple(rows),
    )


def _energy(m: Measurement) -> Cell:
    if m.energy_mj_per_inference is None or (m.meter is None and not m.simulated):
        return _none()
    return Cell(f"{number(m.energy_mj_per_inference)} mJ", m.energy_mj_per_inference, m.simulated)


def _case(record: ReportInput, case: Case, colours: Mapping[str, str]) -> dict[str, Any]:
    best = case.best
    device = record.devices.get(best.device)
    graph = record.graphs.get(best.graph_digest)
    where = f"{best.graph_name}, {best.n_stages} stages on {best.device}"
    simulated = " (simulated)" if best.simulated else ""
    drawing = ""
    if graph is not None and device is not None:
        drawing = figures.graph_cut(
            graph,
            best,
            device.node_ms(graph),
            f"{where}: the {graph.n_nodes} operators in a row, cut into stages of "
            f"{', '.join(str(best.stage.count(s)) for s in range(best.n_stages))} by "
            f"{best.planner}; the bars are the operators' times{simulated}",
        )
    latencies = ""
    if case.boards:
        latencies = figures.latency_curves(
            case, colours, f"{where}: share of inferences by latency, for each board and planner"
        )
    return {
        "stages": best.n_stages,
        "device": best.device,
        "objective": best.objective,
        "simulated": best.simulated,
        "best": best.planner,
        "bars": figures.stage_bars(
            case,
            device,
            f"{where}: time{simulated} and parameters of each stage, for each planner; slowest "
            "stage: "
            + ", ".join(f"{p.planner} {number(max(p.stages['stage_ms']))} ms" for p in case.plans)
            + simulated,
        ),
        "cut": drawing,
        "latencies": latencies,
        "tensors": None if graph is None else _cut_tensors(best),
    }


def _cut_tensors(plan: Plan) -> str:
    """What the host carries at each inference, in words."""
    sent = sum(plan.stages["in_bytes"]) / MIB
    fetched = sum(plan.stages["out_bytes"]) / MIB
    return f"{number(sent)} MiB to the stages, {number(fetched)} MiB back"


def _policy(record: ReportInput) -> dict[str, Any] | None:
    if record.policy is None:
        return None
    policy = record.policy
    drawn = figures.gap_names(policy.curve)
    alt = f"Learning curve of the policy over {len(policy.curve)} epochs: {', '.join(drawn)}"
    return {
        "curve": figures.learning_curve(policy.curve, alt) if drawn else "",
        "methods": _method_table(policy.methods) if policy.methods else None,
        "recipe": _facts(policy.recipe),
        "verdict": policy.verdict,
    }


def _method_table(methods: Sequence[Mapping[str, Any]]) -> Table:
    def percent(share: float) -> Cell:
        return Cell(f"{number(100 * share)} %", share)

    return Table(
        "Gap to the labels on graphs the policy has not seen, beside other ways to plan",
        ("method", "graphs", "mean gap", "median", "p90", "time a graph"),
        tuple(
            (
                _words(row["method"]),
                Cell(str(row["all"]["graphs"]), row["all"]["graphs"]),
                *(percent(row["all"][key]) for key in ("mean", "median", "p90")),
                Cell(duration(row["seconds"]), row["seconds"]),
            )
            for row in methods
        ),
    )


def _check_table(check: PublishedError) -> Table:
    units = {"latency_ms": "ms", "off_chip_mib": "MiB"}
    rows = []
    for prediction in check.predictions:
        figure, error = prediction.figure, prediction.relative_error
        unit = units[figure.quantity]
        rows.append(
            (
                _words(f"{figure.model} {figure.input_size}"),
                Cell(str(figure.stages), figure.stages),
                Cell(f"{number(figure.value)} {unit}", figure.value),
                Cell(f"{number(prediction.predicted)} {unit}", prediction.predicted, True),
                Cell(f"{100 * error:+.0f} %", error),
                _words("fitted" if figure.fitted else "held out"),
                _words(figure.source),
            )
        )
    return Table(
        f"Device model {check.device} against published figures",
        ("model", "stages", "published", "predicted", "error", "constants", "source"),
        tuple(rows),
    )


def _board_table(measurements: Sequence[Measurement]) -> Table:
    rows = {}
    for m in measurements:
        rows[m.board] = (
            _words(m.board),
            _words(m.board_kind),
            _words("simulated" if m.simulated else "measured"),
            _words(m.processor),
            _words(m.meter or "none"),
        )
    return Table(
        "Boards",
        ("board", "kind", "numbers are", "what ran the operators", "power meter"),
        tuple(rows.values()),
    )


def _step_table(steps: Sequence[StepCost]) -> Table:
    rows = [
        (
            _words(step.name),
            Cell(str(step.times), step.times),
            Cell(str(step.reused), step.reused),
            Cell(duration(step.seconds), step.seconds),
            Cell(duration(step.cpu_seconds), step.cpu_seconds),
            Cell(f"{number(step.peak_bytes / MIB)} MiB", step.peak_bytes),
        )
        for step in steps
    ]
    return Table(
        "What the steps used; a reused one was paid for by an earlier run",
        ("step", "times", "reused", "time", "processor time", "most memory"),
        tuple(rows),
    )


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _fact(value)) for name, value in values.items()]


def _fact(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_fact, value))
    return json.dumps(value)


def _words(text: str) -> Cell:
    return Cell(text, text, number=False)


def _none() -> Cell:
    return Cell("–", -1.0)
