"""The learned planner: a network reads the graph and decodes an order, which is then split.

As in RESPECT (Yin et al., DAC 2023) a pointer network puts the operators in a sequence and a
further step turns the sequence into stages. What differs, and why:

- The decoder points at ready operators only, so every sequence is a topological order. RESPECT
  masks nothing but what is already chosen and repairs broken edges afterwards.
- The encoder passes messages along the edges in both directions instead of running an LSTM
  over a list of nodes: node numbers mean nothing, a graph may have any size and in-degree.
- The decoder has no recurrent state. Its query is made of the last operator, the mean of all
  chosen ones and a few sums (how full the present stage is, which bytes are open), after the
  attention model of Kool et al. (ICLR 2019). So training computes all steps at once.
- The order is split by dynamic programming (coralline.staging.split), which no other cut of
  the same order beats; RESPECT fills stages greedily under a searched memory cap.

Here are the file of a trained network and the planner; coralline.staging.decoder computes, with
numpy and numba only. `training.network` is the same network in TensorFlow.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coralline.errors import UserError
from coralline.files import replacing
from coralline.staging.baselines import load_split
from coralline.staging.problem import Effort, Proposal, StagingProblem, register

if TYPE_CHECKING:
    from coralline.staging.decoder import Rollouts

SCHEMA = "coralline.policy/v1"

N_FEATURES = 20
N_CONTEXT = 8
N_DYNAMIC = 4

CLIP = 10.0
"""Scores are clipped to CLIP * tanh(score), as in RESPECT's pointer."""

SAMPLES = 64
"""Orders the planner tries: the greedy one and samples."""

_SAMPLED_NODES = 64_000
"""Bound on SAMPLES times V, so that large graphs stay within seconds."""

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Policy:
    """A trained network.

    Attributes:
        weights: As named by `training.network.weight_shapes`.
        metadata: Recipe, data and metrics that made it.
    """

    weights: Arrays
    metadata: Mapping[str, Any]

    def rollouts(
        self, problem: StagingProblem, n_samples: int, seed: int = 0, greedy: bool = True
    ) -> Rollouts:
        """Sampled orders; with `greedy` the first one takes the likeliest node every time."""
        from coralline.staging.decoder import decode, policy_input, project

        inputs = policy_input(problem)
        uniform = np.random.default_rng(seed).random((n_samples, problem.graph.n_nodes))
        return decode(inputs, project(self.weights, inputs), uniform, n_greedy=int(greedy))


def save_policy(path: Path, policy: Policy) -> None:
    """Write a policy as .npz, whole or not at all."""
    metadata = json.dumps({"schema": SCHEMA, **policy.metadata}, allow_nan=False)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, metadata=metadata, **policy.weights)


def load_policy(path: str | Path | None = None) -> Policy:
    """Read a policy; without a path, the one in the package.

    Raises:
        UserError: The file is missing or is no policy of this version.
    """
    if path is None:
        path = Path(str(resources.files("coralline.staging") / "data" / "policy.npz"))
    path = Path(path)
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        raise UserError(f"{path}: no such file; train one with `coralline train run`") from None
    return _load(path, stamp)


@lru_cache(maxsize=4)
def _load(path: Path, stamp: int) -> Policy:
    remedy = "train one with `coralline train run`"
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        metadata = json.loads(str(arrays.pop("metadata")))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        raise UserError(f"{path}: is damaged or is no policy; {remedy}") from None
    if metadata.get("schema") != SCHEMA:
        raise UserError(f"{path}: schema {metadata.get('schema')!r} is not {SCHEMA}; {remedy}")
    try:
        shapes = weight_shapes(int(metadata["hidden"]), int(metadata["layers"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: does not say how large the network is; {remedy}") from None
    found = {name: array.shape for name, array in arrays.items()}
    if found != shapes or not all(np.isfinite(a).all() for a in arrays.values()):
        raise UserError(f"{path}: the weights do not fit this version; {remedy}")
    return Policy({n: a.astype(np.float32) for n, a in arrays.items()}, metadata)


def weight_shapes(hidden: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network's weights, in the order of their creation."""
    h = hidden
    shapes: dict[str, tuple[int, ...]] = {"input.w": (N_FEATURES, h), "input.b": (h,)}
    for i in range(layers):
        for part in ("self", "predecessors", "successors", "graph"):
            shapes[f"layer{i}.{part}"] = (h, h)
        shapes[f"layer{i}.b"] = (h,)
    return shapes | {
        "key": (h, h),
        "query.last": (h, h),
        "query.chosen": (h, h),
        "query.graph": (h, h),
        "query.context": (N_CONTEXT, h),
        "query.b": (h,),
        "query.start": (h,),
        "dynamic": (h, N_DYNAMIC),
    }


@cache
def load_decoder() -> None:
    """Import and compile what decodes: once over a single operator."""
    from coralline.devices.model import load_device
    from coralline.graph.compute_graph import ComputeGraph
    from coralline.staging.decoder import decode, policy_input, project

    load_split()
    graph = ComputeGraph.build(
        "one", param_bytes=[0], tensor_bytes=[0], tensor_producer=[0], consumers=[[]]
    )
    inputs = policy_input(StagingProblem(graph, 1, load_device("edgetpu-usb")))
    weights = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(8, 1).items()}
    decode(inputs, project(weights, inputs), np.zeros((1, 1)), n_greedy=1)


@register("policy", version="1", load=load_decoder)
def policy(problem: StagingProblem, effort: Effort) -> Proposal:
    """The best split of the network's greedy order and of sampled ones."""
    from coralline.staging.decoder import decode, policy_input, project
    from coralline.staging.split import split_arguments, split_order, split_value

    start = perf_counter()
    network = load_policy(effort.policy)
    inputs = policy_input(problem)
    projected = project(network.weights, inputs)
    rng = np.random.default_rng(effort.seed)
    arguments = split_arguments(problem)
    n = problem.graph.n_nodes
    best, best_value = problem.graph.topological_order, np.inf
    left = min(SAMPLES, max(_SAMPLED_NODES // n, 1))
    n_greedy = 1
    while left > 0 and (n_greedy or perf_counter() - start < effort.time_limit_s):
        # One by one where an order takes long, so that the time limit is kept.
        batch = min(left, max(_SAMPLED_NODES // (8 * n), 1))
        orders = decode(inputs, projected, rng.random((batch, n)), n_greedy=n_greedy).order
        values = [split_value(arguments, order) for order in orders]
        if min(values) < best_value:
            best_value = min(values)
            best = orders[int(np.argmin(values))]
        left -= batch
        n_greedy = 0
    return Proposal(split_order(problem, best))
