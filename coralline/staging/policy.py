"""The learned planner: a network reads the graph and decodes an order, which is then split.

As in RESPECT (Yin et al., DAC 2023) a pointer network puts the operators in a sequence and a
further step turns the sequence into stages. What differs, and why:

- The decoder points at ready operators only, so every sequence is a topological order. RESPECT
  masks nothing but what is already chosen and repairs broken edges afterwards.
- The encoder passes messages along the edges in both directions instead of running an LSTM
  over a list of nodes: node numbers mean nothing, a graph may have any size and in-degree.
- The decoder builds stages: beside the ready operators it may point at the end of the stage.
  So it sees what the stage would cost, transfers included, if it ended now, and with each
  operator more, against the value that the network expects of a good plan. Samples aim at
  values around that one.
- The decoder has no recurrent state. Its query is made of the last operator, the mean of all
  chosen ones and those sums, after the attention model of Kool et al. (ICLR 2019). So training
  computes all steps at once.
- The order is split by dynamic programming (coralline.staging.split), which no other cut of
  the same order beats; RESPECT fills stages greedily under a searched memory cap.

Here are the file of a trained network and the planners; coralline.staging.decoder computes, with
numpy and numba only. `training.network` is the same network in TensorFlow.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
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

N_FEATURES = 26
N_CONTEXT = 14
N_DYNAMIC = 9
N_HIDDEN = 16

CLIP = 10.0
"""Scores are clipped to CLIP * tanh(score), as in RESPECT's pointer."""

SAMPLES = 16
"""Orders that `policy` and `policy-sample` try: the greedy one and samples."""

STEPS = 1000
"""Of its local search: with the samples below 10 ms on graphs of 50 operators."""

BEAM = 16
"""Width of the search of `policy-beam`."""

_SAMPLED_NODES, _SEARCHED_NODES = 32_000, 400_000
"""Bounds on SAMPLES and STEPS times V, so that large graphs stay within seconds."""

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
        uniform = np.random.default_rng(seed).random((n_samples, inputs.n_steps))
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
        "key.close": (h,),
        "query.last": (h, h),
        "query.start": (h,),
        "query.chosen": (h, h),
        "query.graph": (h, h),
        "query.context": (N_CONTEXT, h),
        "query.b": (h,),
        "hidden.node": (h, N_HIDDEN),
        "hidden.close": (N_HIDDEN,),
        "hidden.query": (h, N_HIDDEN),
        "hidden.dynamic": (N_DYNAMIC, N_HIDDEN),
        "hidden.out": (N_HIDDEN,),
        "target.w": (h,),
        "target.b": (),
    }


@cache
def load_decoder() -> None:
    """Import and compile what decodes: once over a single operator."""
    from coralline.devices.model import load_device
    from coralline.graph.compute_graph import ComputeGraph
    from coralline.staging.decoder import beam, decode, policy_input, project

    load_split()
    graph = ComputeGraph.build(
        "one", param_bytes=[0], tensor_bytes=[0], tensor_producer=[0], consumers=[[]]
    )
    inputs = policy_input(StagingProblem(graph, 1, load_device("edgetpu-usb")))
    weights = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(8, 1).items()}
    projection = project(weights, inputs)
    decode(inputs, projection, np.zeros((1, 1)), n_greedy=1)
    beam(inputs, projection, 1)


class _Attempt:
    """The best order that was found for a problem, so far."""

    def __init__(self, problem: StagingProblem, effort: Effort) -> None:
        from coralline.staging.decoder import policy_input, project
        from coralline.staging.split import split_arguments

        self.deadline = perf_counter() + effort.time_limit_s
        self.problem, self.rng = problem, np.random.default_rng(effort.seed)
        self.inputs = policy_input(problem)
        self.projection = project(load_policy(effort.policy).weights, self.inputs)
        self.arguments = split_arguments(problem)
        self.order, self.value = problem.graph.topological_order, np.inf
        self.greedy()

    @property
    def in_time(self) -> bool:
        return perf_counter() < self.deadline

    def offer(self, orders: Iterable[NDArray[np.int64]]) -> None:
        from coralline.staging.split import split

        for order in orders:
            _, value = split(self.arguments, order, self.value)
            if value < self.value:
                self.order, self.value = order, value

    def greedy(self) -> None:
        from coralline.staging.decoder import decode

        chances = np.empty((1, self.inputs.n_steps))
        self.offer(decode(self.inputs, self.projection, chances, n_greedy=1).order)

    def sample(self, count: int) -> None:
        """Orders sampled at targets around the expected value."""
        from coralline.staging.decoder import SPREAD, decode

        # One by one where an order takes long, so that the time limit is kept.
        batch = max(_SAMPLED_NODES // (8 * self.problem.graph.n_nodes), 1)
        for first in range(0, count, batch):
            if not self.in_time:
                break
            n = min(batch, count - first)
            target = self.projection.target_ms * np.exp(SPREAD * self.rng.standard_normal(n))
            chances = self.rng.random((n, self.inputs.n_steps))
            self.offer(decode(self.inputs, self.projection, chances, target_ms=target).order)

    def refine(self, steps: int) -> None:
        """Local search from the best order."""
        from coralline.staging.split import search_orders

        batch = max(_SEARCHED_NODES // (8 * self.problem.graph.n_nodes), 1)
        for first in range(0, steps, batch):
            if not self.in_time:
                break
            seed = int(self.rng.integers(2**31))
            self.order, _, self.value = search_orders(
                self.arguments, self.order, min(batch, steps - first), seed
            )

    def proposal(self) -> Proposal:
        from coralline.staging.split import split_order

        return Proposal(split_order(self.problem, self.order))


@register("policy", version="2", load=load_decoder)
def policy(problem: StagingProblem, effort: Effort) -> Proposal:
    """The network's greedy order and sampled ones, the best of them refined by local search."""
    attempt = _Attempt(problem, effort)
    n = problem.graph.n_nodes
    attempt.sample(min(SAMPLES, max(_SAMPLED_NODES // n, 1)) - 1)
    attempt.refine(min(STEPS, _SEARCHED_NODES // n))
    return attempt.proposal()


@register("policy-greedy", version="1", load=load_decoder)
def policy_greedy(problem: StagingProblem, effort: Effort) -> Proposal:
    """The best split of the network's greedy order."""
    return _Attempt(problem, effort).proposal()


@register("policy-sample", version="1", load=load_decoder)
def policy_sample(problem: StagingProblem, effort: Effort) -> Proposal:
    """The best split of the greedy order and of sampled ones."""
    attempt = _Attempt(problem, effort)
    attempt.sample(SAMPLES - 1)
    return attempt.proposal()


@register("policy-beam", version="1", load=load_decoder)
def policy_beam(problem: StagingProblem, effort: Effort) -> Proposal:
    """The best split of the greedy order and of those that a beam search finds."""
    from coralline.staging.decoder import beam

    attempt = _Attempt(problem, effort)
    if attempt.in_time:
        attempt.offer(beam(attempt.inputs, attempt.projection, BEAM).order)
    return attempt.proposal()
