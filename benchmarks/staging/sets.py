"""What is planned, by whom, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.staging.keras_graphs import Model, keras_graphs
from coralline.devices.model import load_device
from coralline.errors import UserError
from coralline.graph import read_graph, synthetic
from coralline.graph.compute_graph import ComputeGraph
from coralline.staging import StagingProblem, planner_names

DEVICE = "edgetpu-usb"
"""Its costs are a model's: every time of a stage or a pipeline here is simulated."""

ROOT = Path(__file__).parents[2]
FOLDERS = (
    ROOT.parent / "shared" / "data" / "respect_graphs",
    ROOT / "tests" / "data" / "respect_graphs",
)
"""All ten published graphs where they lie beside the checkout, else the two in the tests."""

RESPECT = (
    *("xception", "resnet50", "resnet101", "resnet152", "densenet121"),
    *("resnet101_v2", "resnet152_v2", "densenet169", "densenet201", "inception_resnet_v2"),
)
"""The ten models of RESPECT (Yin et al., DAC 2023), by their names in the zoo."""

PUBLISHED_NAMES = {"resnet101_v2": "resnet101v2", "resnet152_v2": "resnet152v2"}
"""Files of published graphs that are called something else."""

CLASSIC = (
    *("xception", "vgg16", "vgg19", "resnet50", "resnet101", "resnet152"),
    *("resnet50_v2", "resnet101_v2", "resnet152_v2"),
    *("densenet121", "densenet169", "densenet201", "inception_v3", "inception_resnet_v2"),
    *("mobilenet", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3"),
    *("efficientnet_b4", "efficientnet_v2_b0", "efficientnet_v2_b1", "efficientnet_v2_b2"),
    *("efficientnet_v2_b3", "efficientnet_v2_s", "convnext_tiny"),
)
"""Families with next to no choice of order."""

SOLVERS = ("exact-cpsat-cold", "exact-cpsat", "exact-milp-cold", "exact-milp")
PROVERS = ("exact", "auto")
SEARCHES = ("annealing", "brkga", "policy")
TIMED = (*SEARCHES, "auto")
"""Those compared at equal time."""

DECODERS = tuple(n for n in planner_names() if n.startswith("policy-"))
RULES = tuple(n for n in planner_names() if n not in (*SOLVERS, *PROVERS, *SEARCHES, *DECODERS))

PUBLISHED, LAYERS = "published graphs, peak-memory", "layer graphs, bottleneck"
OPERATORS, WIDE = "operator graphs, bottleneck", "wide operator graphs, bottleneck"
SYNTHETIC = "synthetic graphs, bottleneck"

SEED = 424242
"""Of the synthetic graphs; in no recipe of the policy."""


@dataclass(frozen=True)
class Attempt:
    """A planner on a problem.

    Attributes:
        limit_s: The planner's time limit.
        fills: Whether a planner that is done early, without a proof, starts again with another
            seed until the time is up, so that all have the same.
    """

    planner: str
    limit_s: float
    fills: bool = False


@dataclass(frozen=True)
class ProblemSet:
    """Problems that the same attempts are made on."""

    name: str
    problems: tuple[StagingProblem, ...]
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        models: Of RESPECT.
        operators: Models whose operator graphs are planned for 4 and 6 stages.
        wide: Models with many orders, and the seconds in which `exact` may prove an optimum.
        wide_times_s: What the searching planners get on those, one after the other.
        synthetic: Nodes: graphs of each family, seconds of each planner, seconds for a proof.
        solver_limits_s: Of CP-SAT and HiGHS on the published and the layer graphs.
        operator_limit_s: Of all of them on the operator graphs.
        scaling: Nodes.
        started: Planners whose start as a process is timed.
        process_runs: How often each is started.
        repetitions: Of what takes less than `REPEATED_S`.
    """

    models: tuple[str, ...] = RESPECT
    stages: tuple[int, ...] = (4, 5, 6)
    operators: tuple[str, ...] = CLASSIC
    wide: Mapping[str, float] = field(
        default_factory=lambda: {"nasnet_mobile": 30.0, "hrnet_w32": 30.0, "nasnet_large": 60.0}
    )
    wide_times_s: tuple[float, ...] = (0.1, 1.0, 4.0)
    synthetic: Mapping[int, tuple[int, float, float]] = field(
        default_factory=lambda: {
            30: (40, 0.01, 2.0),
            50: (20, 0.01, 2.0),
            100: (8, 0.05, 2.0),
            300: (4, 0.2, 2.0),
            1000: (1, 1.0, 5.0),
            5000: (1, 2.0, 4.0),
        }
    )
    solver_limits_s: Mapping[str, float] = field(
        default_factory=lambda: dict(zip(SOLVERS, (10.0, 3.0, 5.0, 3.0), strict=True))
    )
    operator_limit_s: float = 1.0
    scaling: tuple[int, ...] = (100, 300, 1000, 3000, 10_000)
    started: tuple[str, ...] = ("topo-dp", "exact", "auto", "policy", "exact-cpsat")
    process_runs: int = 3
    repetitions: int = 5


QUICK = Size(
    models=("resnet50",),
    stages=(4,),
    operators=("mobilenet", "mobilenet_v2"),
    wide={},
    wide_times_s=(),
    synthetic={30: (1, 0.01, 0.5), 300: (1, 0.1, 0.5)},
    solver_limits_s=dict.fromkeys(SOLVERS, 1.0),
    operator_limit_s=0.5,
    scaling=(100, 1000),
    started=("auto",),
    process_runs=1,
    repetitions=3,
)


def problem_sets(size: Size, folder: Path) -> list[ProblemSet]:
    """Everything that is planned.

    Args:
        folder: Keeps the graphs of the Keras models.
    """
    device = load_device(DEVICE)
    wanted: list[Model] = [("layers", name) for name in size.models]
    wanted += [("operators", name) for name in (*size.operators, *size.wide)]
    keras = keras_graphs(wanted, folder) if wanted else {}
    fast = [Attempt(name, 60.0) for name in (*RULES, *PROVERS)]
    fast += [Attempt(name, 0.5) for name in (*SEARCHES, *DECODERS)]
    slow = [Attempt(name, size.solver_limits_s[name]) for name in SOLVERS]
    slow_operators = [Attempt(name, size.operator_limit_s) for name in SOLVERS]

    sets = [
        ProblemSet(
            PUBLISHED,
            tuple(
                StagingProblem(graph, k, device, "peak-memory")
                for graph in _published(size.models)
                for k in size.stages
            ),
            (*fast, *slow),
        ),
        ProblemSet(
            LAYERS,
            tuple(
                StagingProblem(keras["layers", name], k, device)
                for name in size.models
                for k in size.stages
            ),
            (*fast, *slow),
        ),
        ProblemSet(
            OPERATORS,
            tuple(
                StagingProblem(keras["operators", name], k, device)
                for name in size.operators
                for k in (4, 6)
            ),
            (*fast, *slow_operators),
        ),
    ]
    for name, proof_s in size.wide.items():
        timed = [
            Attempt(planner, seconds, fills=True)
            for seconds in size.wide_times_s
            for planner in TIMED
        ]
        sets.append(
            ProblemSet(
                WIDE,
                tuple(StagingProblem(keras["operators", name], k, device) for k in (4, 6)),
                (*timed, Attempt("topo-dp-orders", 60.0), Attempt("exact", proof_s)),
            )
        )
    for nodes, (count, seconds, proof_s) in size.synthetic.items():
        timed = [Attempt(planner, seconds, fills=True) for planner in TIMED]
        sets.append(
            ProblemSet(
                SYNTHETIC,
                tuple(
                    StagingProblem(graph, 4, device)
                    for family in synthetic.family_names()
                    for graph in synthetic.generate(family, count, nodes, SEED)
                ),
                (
                    *timed,
                    *(Attempt(name, seconds) for name in ("policy", *DECODERS)),
                    Attempt("topo-dp-orders", 60.0),
                    Attempt("auto", proof_s),
                ),
            )
        )
    return sets


def _published(names: tuple[str, ...]) -> list[ComputeGraph]:
    folder = next((f for f in FOLDERS if f.is_dir()), None)
    if folder is None:
        raise UserError(f"{FOLDERS[-1]}: no such folder; run this in a checkout")
    paths = [folder / f"{PUBLISHED_NAMES.get(name, name)}.json" for name in names]
    return [read_graph(path) for path in paths if path.is_file()]
