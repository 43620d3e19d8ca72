"""Great Expectations suites for what flows through a pipeline: graphs, labels, measurements.

Each suite judges a table with one row an item. The Data Docs (static HTML) are written whether
the expectations hold or not; a violated one raises UserError with the rows that break it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coralline.errors import UserError, parse_json, read_text
from coralline.files import make_folder
from coralline.graph.compute_graph import ComputeGraph
from coralline.runtime.measurement import Measurement
from coralline.staging.problem import OBJECTIVES, Plan

if TYPE_CHECKING:
    import pandas as pd

ROWS_NAMED = 5
"""Of the rows that break an expectation, so many are named in the message; the docs have all."""

LONGEST_MS = 3_600_000.0
"""No inference takes an hour: a larger time is a clock gone wrong."""

SIMULATED_SUFFIX = "-sim"
"""Board kinds that end so are simulated; all others measure."""


@dataclass(frozen=True)
class Validation:
    """What a suite found when every expectation held.

    Attributes:
        suite: `graphs`, `labels` or `measurements`.
        rows: Items judged.
        expectations: All met.
        docs: The Data Docs' first page.
    """

    suite: str
    rows: int
    expectations: int
    docs: Path

    def to_json(self) -> dict[str, Any]:
        """For a pipeline's metrics."""
        return {**asdict(self), "docs": str(self.docs)}


def validate_graphs(path: Path, docs_dir: Path) -> Validation:
    """Judge a graph set, one row a graph.

    Args:
        path: A `.jsonl` of `coralline.graph/v1` objects.
        docs_dir: Where the Data Docs go.

    Raises:
        UserError: The file cannot be read, or names the expectation and the rows that break it.
    """
    import pandas as pd

    from coralline.graph.graph_set import read_graph_set

    table = pd.DataFrame(
        [{"row": i, "name": g.name, **_graph_row(g)} for i, g in enumerate(read_graph_set(path))]
    )
    gxe = _great_expectations().expectations
    return _judge(
        "graphs",
        table,
        [
            _at_least(gxe, "nodes", 2, "a graph has at least 2 operators"),
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A="edges",
                column_B="nodes_but_one",
                or_equal=True,
                description="a graph has at least as many edges as a tree of its operators",
            ),
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A="nodes",
                column_B="max_in_degree",
                description="no operator reads from as many operators as the graph has",
            ),
            _at_least(gxe, "max_in_degree", 1, "some operator reads from another"),
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A="nodes",
                column_B="depth",
                description="the longest path has fewer edges than the graph has operators",
            ),
            _at_least(gxe, "depth", 1, "the longest path has at least 1 edge"),
            _at_least(gxe, "param_bytes", 1, "a graph has parameters"),
            _at_least(gxe, "macs", 0, "multiply-accumulates are 0 or more"),
            _at_least(gxe, "tensor_bytes", 1, "a graph has tensors that hold bytes"),
            gxe.ExpectColumnValuesToBeUnique(
                column="digest", description="every graph is in the set once"
            ),
        ],
        docs_dir,
    )


def validate_labels(
    labels_dir: Path, graphs_path: Path, docs_dir: Path, *, min_proven_share: float = 0.9
) -> Validation:
    """Judge exact labels against the graph set they were solved for, one row a label.

    Args:
        labels_dir: Shards of `coralline.plan/v1` objects.
        graphs_path: The graph set.
        docs_dir: Where the Data Docs go.
        min_proven_share: Least share of the labels that must be proven optimal.

    Raises:
        UserError: A file cannot be read, or names the expectation and the rows that break it.
    """
    import pandas as pd

    from coralline.graph.graph_set import read_graph_set
    from training.labels import read_labels

    graphs = {graph.digest: graph for graph in read_graph_set(graphs_path)}
    table = pd.DataFrame(
        [
            {"row": i, "name": p.graph_name, **_label_row(p, graphs.get(p.graph_digest))}
            for i, p in enumerate(read_labels(labels_dir))
        ]
    )
    numbers = ("value", "lower_bound", "solve_seconds")
    gxe = _great_expectations().expectations
    return _judge(
        "labels",
        table,
        [
            *(_present(gxe, column) for column in numbers),
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A="value",
                column_B="lower_bound",
                or_equal=True,
                description="value is no smaller than the proven lower bound",
            ),
            _at_least(gxe, "gap", 0, "gap is 0 or more"),
            _at_least(gxe, "solve_seconds", 0, "solve_seconds is 0 or more"),
            gxe.ExpectColumnValuesToBeInSet(
                column="objective",
                value_set=list(OBJECTIVES),
                description=f"objective is one of {', '.join(OBJECTIVES)}",
            ),
            _true(gxe, "in_graph_set", "the label's graph is in the graph set"),
            _true(gxe, "stages_in_range", "stages run from 0 to n_stages - 1 and none is empty"),
            _true(gxe, "stages_forward", "there is one stage an operator and no edge goes back"),
            gxe.ExpectCompoundColumnsToBeUnique(
                column_list=["digest", "objective", "n_stages", "device"],
                description="every problem is labelled once",
            ),
            gxe.ExpectColumnMeanToBeBetween(
                column="proven",
                min_value=min_proven_share,
                description=f"at least {100 * min_proven_share:g} % of labels are proven optimal",
            ),
        ],
        docs_dir,
    )


def validate_measurements(
    measurements_dir: Path, docs_dir: Path, *, min_samples: int = 20
) -> Validation:
    """Judge measurements, one row a measurement.

    Args:
        measurements_dir: A folder of `coralline.measurement/v1` files (`.json`).
        docs_dir: Where the Data Docs go.
        min_samples: Least inferences of a measurement.

    Raises:
        UserError: A file cannot be read, or names the expectation and the rows that break it.
    """
    import pandas as pd

    found = read_measurements(measurements_dir)
    table = pd.DataFrame(
        [{"row": i, "name": title(m), **_measurement_row(m)} for i, m in enumerate(found)]
    )
    times = ("latency_min_ms", "latency_max_ms", "first_inference_ms", "busy_min_ms")
    gxe = _great_expectations().expectations
    return _judge(
        "measurements",
        table,
        [
            *(_present(gxe, column) for column in (*times, "throughput_fps")),
            *(_positive(gxe, column) for column in (*times[:3], "throughput_fps")),
            _at_least(gxe, "busy_min_ms", 0, "busy, waiting and transfer times are 0 or more"),
            _at_least(gxe, "samples", min_samples, f"at least {min_samples} latency samples"),
            _true(gxe, "stage_samples_match", "every stage has one sample an inference"),
            _true(
                gxe,
                "simulated_as_its_board",
                f"simulated is true exactly on boards of a kind that ends in {SIMULATED_SUFFIX}",
            ),
            _true(gxe, "outputs_unharmed", "outputs_equal is not False"),
            _true(gxe, "energy_sourced", "energy is given only with a meter or when simulated"),
            gxe.ExpectColumnValuesToBeUnique(
                column="id", description="every measurement is there once"
            ),
        ],
        docs_dir,
    )


def read_measurements(folder: Path) -> list[Measurement]:
    """The measurements in a folder's `.json` files, in the order of the file names.

    Raises:
        UserError: The folder holds none, or a file is damaged.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"{folder}: holds no measurement (.json); run the jobs first")
    found = []
    for path in paths:
        data = parse_json(read_text(path, "a measurement"), str(path))
        try:
            found.append(Measurement.from_json(data))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return found


def title(measurement: Measurement) -> str:
    """A measurement for people: model, stages, planner, board."""
    plan = measurement.plan
    return f"{measurement.model}, {plan['n_stages']} stages, {plan['planner']}, {measurement.board}"


def _graph_row(graph: ComputeGraph) -> dict[str, Any]:
    return {
        "nodes": graph.n_nodes,
        "nodes_but_one": graph.n_nodes - 1,
        "edges": len(graph.edges),
        "max_in_degree": max(map(len, graph.predecessors)),
        "depth": int(graph.level.max()),
        "param_bytes": int(graph.param_bytes.sum()),
        "macs": int(graph.macs.sum()),
        "tensor_bytes": int(graph.tensor_bytes.sum()),
        "digest": graph.digest,
    }


def _label_row(plan: Plan, graph: ComputeGraph | None) -> dict[str, Any]:
    stage = np.array(plan.stage)
    forward = graph is not None and len(stage) == graph.n_nodes
    if graph is not None and forward:
        producers, consumers = graph.edges.T
        forward = bool((stage[producers] <= stage[consumers]).all())
    return {
        "digest": plan.graph_digest,
        "in_graph_set": graph is not None,
        "device": plan.device,
        "objective": plan.objective,
        "planner": plan.planner,
        "n_stages": plan.n_stages,
        "stages_in_range": set(plan.stage) == set(range(plan.n_stages)),
        "stages_forward": forward,
        "value": _number(plan.value),
        "lower_bound": _number(plan.lower_bound),
        "gap": _number(plan.gap),
        "proven": float(plan.proven_optimal),
        "solve_seconds": _number(plan.solve_seconds),
    }


def _measurement_row(m: Measurement) -> dict[str, Any]:
    samples = (*m.latency_ms, *m.full_latency_ms)
    latency = np.array([_number(ms) for ms in samples] or [np.nan])
    per_stage = (m.stage_busy_ms, m.queue_wait_ms, m.transfer_ms)
    parts = [_number(ms) for rows in per_stage for row in rows for ms in row]
    return {
        "id": m.id,
        "board_kind": m.board_kind,
        "simulated": m.simulated,
        "simulated_as_its_board": m.simulated == m.board_kind.endswith(SIMULATED_SUFFIX),
        "samples": len(m.latency_ms),
        "stage_samples_match": all(
            len(rows) == m.plan["n_stages"] and {len(row) for row in rows} == {len(m.latency_ms)}
            for rows in per_stage
        ),
        # NaN in the samples shows as a missing minimum and maximum.
        "latency_min_ms": latency.min(),
        "latency_max_ms": latency.max(),
        "first_inference_ms": _number(m.first_inference_ms),
        "busy_min_ms": min(parts, default=np.nan),
        "throughput_fps": m.throughput_fps if _number(m.wall_s) > 0 else np.nan,
        "energy_mj_per_inference": _number(m.energy_mj_per_inference),
        "energy_sourced": (m.energy_mj_per_inference is None or m.meter is not None or m.simulated),
        "outputs_equal": str(m.outputs_equal),
        "outputs_unharmed": m.outputs_equal is not False,
    }


def _number(value: Any) -> float:
    """The value as a float; NaN, which a suite reports as missing, when it is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else float("nan")


def _present(gxe: Any, column: str) -> Any:
    return gxe.ExpectColumnValuesToNotBeNull(column=column, description=f"{column} is a number")


def _at_least(gxe: Any, column: str, least: float, description: str) -> Any:
    return gxe.ExpectColumnValuesToBeBetween(
        column=column, min_value=least, description=description
    )


def _positive(gxe: Any, column: str) -> Any:
    return gxe.ExpectColumnValuesToBeBetween(
        column=column,
        min_value=0,
        max_value=LONGEST_MS,
        strict_min=True,
        description=f"{column} is positive and finite",
    )


def _true(gxe: Any, column: str, description: str) -> Any:
    return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[True], description=description)


def _great_expectations() -> Any:
    """The package, imported (some seconds) without a word to its makers."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations
    import great_expectations.expectations

    return great_expectations


def _judge(
    suite: str, table: pd.DataFrame, expectations: Sequence[Any], docs_dir: Path
) -> Validation:
    """Run the expectations on the table, write the Data Docs, and raise on a violation."""
    gx = _great_expectations()
    from great_expectations.checkpoint import UpdateDataDocsAction
    from great_expectations.data_context.types.base import ProgressBarsConfig

    if table.empty:
        raise UserError(f"{suite}: there are none to validate; the step before wrote nothing")
    make_folder(docs_dir)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batch = (
        context.data_sources.add_pandas("coralline")
        .add_dataframe_asset(suite)
        .add_batch_definition_whole_dataframe("all")
    )
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(
            name=suite,
            data=batch,
            suite=context.suites.add(gx.ExpectationSuite(suite, expectations=list(expectations))),
        )
    )
    context.add_data_docs_site(
        site_name="docs",
        site_config={
            "class_name": "SiteBuilder",
            "site_name": "Coralline",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(docs_dir.resolve()),
            },
        },
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=suite,
            validation_definitions=[definition],
            actions=[UpdateDataDocsAction(name="docs", site_names=["docs"])],
            result_format={
                "result_format": "COMPLETE",
                "unexpected_index_column_names": ["row", "name"],
            },
        )
    )
    outcome = checkpoint.run(batch_parameters={"dataframe": table})
    results = [r for run in outcome.run_results.values() for r in run.results]
    docs = docs_dir / "index.html"
    broken = [_violation(r) for r in results if not r.success]
    if broken:
        raise UserError(f"{suite}: {'; '.join(broken)}. All checks: {docs}")
    return Validation(suite, len(table), len(results), docs)


def _violation(result: Any) -> str:
    """One violated expectation and the rows that break it, in a clause."""
    what = f"expected that {result.expectation_config.description}"
    found = result.result
    if "observed_value" in found:
        return f"{what}, found {found['observed_value']:.4g}"
    if "unexpected_index_list" not in found:
        raise RuntimeError(f"{what}: could not be evaluated: {result.exception_info}")
    rows = found["unexpected_index_list"]
    # Great Expectations leaves values out where the check is that there is none.
    named = [f"row {row['row']} ({row['name']}{_values(row)})" for row in rows[:ROWS_NAMED]]
    more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
    return f"{what}, not so in {', '.join(named)}{more}"


def _values(row: dict[str, Any]) -> str:
    shown = [
        f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
        if key not in ("row", "name", "digest") and not isinstance(value, (bool, np.bool_))
    ]
    return ": " + ", ".join(shown) if shown else ""
