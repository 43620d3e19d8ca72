"""Training the policy: REINFORCE with a greedy-rollout baseline against exact labels.

As in RESPECT (Yin et al., DAC 2023; details from the authors' repository) and Kool et al.
(ICLR 2019), from whom it took the method: sampled orders are compared with the greedy order
of a frozen copy of the network, which the network replaces when a one-sided paired t-test
says it is better. What differs, and why:

- The cost of an order is the value of its best split over the label's, minus 1: the thing
  wanted. RESPECT's is one minus the cosine similarity of the labels' stages in the learned
  order with the same stages sorted, a stand-in that is cheap on a GPU; here a split takes
  microseconds.
- Several orders are sampled for each graph, so that one encoding is used several times, and
  advantages are divided by their deviation over the batch.
- Greedy copies are tested on graphs held out from training, not on the training graphs.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import DeviceModel
from coralline.errors import UserError
from coralline.files import make_folder
from coralline.graph.compute_graph import ComputeGraph
from coralline.staging.decoder import PolicyInput, Rollouts, decode, policy_input, project
from coralline.staging.policy import (
    N_CONTEXT,
    N_DYNAMIC,
    N_FEATURES,
    Arrays,
    Policy,
    save_policy,
)
from coralline.staging.problem import Plan, StagingProblem
from coralline.staging.split import SplitArguments, split_arguments, split_value
from training.quiet import load_tensorflow

if TYPE_CHECKING:
    from training.network import Network

SCHEMA = "coralline.policy-metrics/v1"


@dataclass(frozen=True)
class PolicyConfig:
    """How to train. The default suits about 256 graphs of 30 nodes and one minute on 2 cores.

    Attributes:
        hidden, layers: Width of the network and rounds of message passing.
        epochs: Passes over the training graphs.
        time_limit_s: Wall time after which training stops after the epoch at hand.
        batch_graphs: Graphs a step; all of one size.
        samples: Orders sampled for each graph.
        learning_rate: Of Adam at the start; it falls to a tenth along a
            cosine over the epochs, or over the time if that runs out sooner.
        clip_norm: Bound on the norm of the gradient, as in RESPECT.
        significance: Of the t-test for a new baseline, as in RESPECT.
        validation_share: Of the graphs, held out to choose baseline and final weights.
        seed: Of weights, batches and samples.
    """

    hidden: int = 64
    layers: int = 4
    epochs: int = 80
    time_limit_s: float = 60.0
    batch_graphs: int = 32
    samples: int = 16
    learning_rate: float = 2e-3
    clip_norm: float = 1.0
    significance: float = 0.05
    validation_share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in [
            ("hidden", 4, 1024),
            ("layers", 0, 64),
            ("epochs", 1, 10**6),
            ("time_limit_s", 0.001, 1e9),
            ("batch_graphs", 1, 10**4),
            ("samples", 1, 10**4),
            ("learning_rate", 1e-8, 1.0),
            ("clip_norm", 1e-6, 1e6),
            ("significance", 1e-6, 1.0),
            ("validation_share", 0.05, 0.9),
            ("seed", 0, 2**32 - 1),
        ]:
            value, kind = getattr(self, name), type(low)
            number = isinstance(value, (int, kind)) and not isinstance(value, bool)
            if not number or not low <= value <= high:
                raise UserError(f"{name} is {value!r}; it must be {kind.__name__}, {low} to {high}")

    @staticmethod
    def from_mapping(data: Any, where: str) -> PolicyConfig:
        """From a recipe's `training` section.

        Raises:
            UserError: Names the field that is unknown or out of range.
        """
        known = {field.name for field in fields(PolicyConfig)}
        if not isinstance(data, dict) or not set(data) <= known:
            unknown = sorted(set(data) - known) if isinstance(data, dict) else [repr(data)]
            raise UserError(
                f"{where}: unknown {', '.join(unknown)}; fields are {', '.join(sorted(known))}"
            )
        try:
            return PolicyConfig(**data)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


@dataclass(frozen=True)
class Epoch:
    """One point of the learning curve. Gaps are value over label minus 1, means over graphs.

    Attributes:
        sampled_gap: Of the orders sampled in training, before the steps that learn from them.
        greedy_gap: Of the greedy orders of the validation graphs, after the epoch.
        baseline_gap: The same for the baseline copy.
        new_baseline: Whether the network became the baseline.
        seconds: Since training began.
    """

    epoch: int
    sampled_gap: float
    greedy_gap: float
    baseline_gap: float
    new_baseline: bool
    seconds: float


@dataclass(frozen=True)
class PolicyMetrics:
    """What training did.

    Attributes:
        untrained_gap: Mean gap of greedy orders on the validation graphs before training.
        greedy_gap: The same for the weights that are kept.
        graphs, validation_graphs: How many were learned from and held out.
        labels_proven: Share of all labels that are proven optimal.
        steps: Gradient steps.
        seconds: Wall time.
        curve: One Epoch each.
    """

    untrained_gap: float
    greedy_gap: float
    graphs: int
    validation_graphs: int
    labels_proven: float
    steps: int
    seconds: float
    curve: tuple[Epoch, ...]

    def to_json(self) -> dict[str, Any]:
        """A `coralline.policy-metrics/v1` object."""
        return {"schema": SCHEMA, **asdict(self)}


@dataclass(frozen=True)
class LabelledProblem:
    """One graph with what rollouts need, made once.

    Attributes:
        label_value: Of the plan that is the label; above 0.
    """

    problem: StagingProblem
    inputs: PolicyInput
    split_arguments: SplitArguments
    label_value: float

    @property
    def n_nodes(self) -> int:
        """V."""
        return self.problem.graph.n_nodes

    def gaps(self, orders: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 (S,): value over label minus 1 for the best split of each order."""
        values = [split_value(self.split_arguments, order) for order in orders]
        return np.array(values) / self.label_value - 1.0


def labelled_problems(
    graphs: Sequence[ComputeGraph], labels: Sequence[Plan], device: DeviceModel
) -> list[LabelledProblem]:
    """Join graphs with their labels.

    Raises:
        UserError: A label was made for another graph or device, or its value is 0.
    """
    if len(graphs) != len(labels):
        raise UserError(f"{len(graphs)} graphs but {len(labels)} labels; label the set again")
    if not graphs:
        raise UserError("no graphs; make some with `coralline generate`")
    joined = []
    for graph, label in zip(graphs, labels, strict=True):
        label.check_graph(graph)
        if label.device_digest != device.digest:
            raise UserError(
                f"the label of {graph.name!r} was made for another version of {label.device!r}; "
                "label the set again"
            )
        if label.children_together:
            raise UserError(f"the label of {graph.name!r} keeps children together; train without")
        if not label.value > 0:
            raise UserError(f"the label of {graph.name!r} is {label.value}: nothing to compare to")
        problem = StagingProblem(graph, label.n_stages, device, label.objective)
        joined.append(
            LabelledProblem(
                problem,
                policy_input(problem),
                split_arguments(problem),
                label.value,
            )
        )
    return joined


def train_policy(
    graphs: Sequence[ComputeGraph],
    labels: Sequence[Plan],
    config: PolicyConfig,
    out_dir: Path,
    on_epoch: Callable[[Epoch], None] | None = None,
    *,
    device: DeviceModel | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> PolicyMetrics:
    """Train a network and write it to `out_dir / "policy.npz"`.

    Args:
        on_epoch: Called after every epoch.
        device: That the labels were made for; without it the shipped one of that name.
        recipe: Kept in the file beside the configuration: where graphs and labels come from.

    Raises:
        UserError: Too few graphs, labels that do not fit, or an unwritable folder.
    """
    from coralline.devices.model import load_device

    make_folder(out_dir)
    if not labels:
        raise UserError("no labels; make some with `coralline train label`")
    joined = labelled_problems(graphs, labels, device or load_device(labels[0].device))
    rng = np.random.default_rng(config.seed)
    shuffled = rng.permutation(len(joined))
    n_held = round(config.validation_share * len(joined))
    if n_held < 2 or len(joined) - n_held < 1:
        raise UserError(f"{len(joined)} graphs are too few to train and validate; give 10 or more")
    validation = [joined[i] for i in shuffled[:n_held]]
    training = [joined[i] for i in shuffled[n_held:]]
    trainer = _Trainer(training, validation, config, rng)
    start = perf_counter()
    untrained = float(trainer.baseline_validation.mean())
    curve: list[Epoch] = []
    best_gap, best = untrained, trainer.network.weights()
    for number in range(config.epochs):
        spent = (perf_counter() - start) / config.time_limit_s
        sampled, greedy, renewed = trainer.epoch(min(max(number / config.epochs, spent), 1.0))
        if greedy < best_gap:
            best_gap, best = greedy, trainer.network.weights()
        baseline = float(trainer.baseline_validation.mean())
        point = Epoch(number + 1, sampled, greedy, baseline, renewed, perf_counter() - start)
        curve.append(point)
        if on_epoch is not None:
            on_epoch(point)
        if point.seconds > config.time_limit_s:
            break
    metrics = PolicyMetrics(
        untrained_gap=untrained,
        greedy_gap=best_gap,
        graphs=len(training),
        validation_graphs=len(validation),
        labels_proven=float(np.mean([label.proven_optimal for label in labels])),
        steps=trainer.steps,
        seconds=perf_counter() - start,
        curve=tuple(curve),
    )
    digests = "".join(graph.digest for graph in graphs)
    metadata = {
        "hidden": config.hidden,
        "layers": config.layers,
        "config": asdict(config),
        "recipe": dict(recipe or {}),
        "graphs_digest": hashlib.sha256(digests.encode()).hexdigest(),
        "device": labels[0].device,
        "device_digest": labels[0].device_digest,
        "metrics": metrics.to_json(),
    }
    save_policy(out_dir / "policy.npz", Policy(best, metadata))
    return metrics


class _Trainer:
    """The state of a training run."""

    def __init__(
        self,
        training: list[LabelledProblem],
        validation: list[LabelledProblem],
        config: PolicyConfig,
        rng: np.random.Generator,
    ) -> None:
        tf = load_tensorflow()
        from training.network import Network

        self.training, self.validation = training, validation
        self.config, self.rng = config, rng
        self.network = Network(config.hidden, config.layers, config.seed)
        self.sizes = np.array([item.n_nodes for item in training])
        self.steps = 0
        self.optimizer = tf.keras.optimizers.Adam(
            config.learning_rate, global_clipnorm=config.clip_norm
        )
        self.step = _step(self.network, self.optimizer)
        self.threads = ThreadPoolExecutor(2)
        self._renew_baseline(greedy_gaps(self.validation, self.network.weights()))

    def epoch(self, progress: float) -> tuple[float, float, bool]:
        """One pass; mean sampled gap, greedy gap on the validation graphs, new baseline?"""
        from scipy.stats import ttest_rel

        decay = 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2
        self.optimizer.learning_rate.assign(self.config.learning_rate * decay)
        sampled = []
        for chosen in self._batches():
            items = [self.training[i] for i in chosen]
            rollouts = self._roll(items, self.network.weights())
            gaps = np.stack([i.gaps(r.order) for i, r in zip(items, rollouts, strict=True)])
            advantage = gaps - self.baseline_training[chosen][:, None]
            self.step(training_batch(items, rollouts, advantage))
            self.steps += 1
            sampled.append(gaps.mean())
        greedy = greedy_gaps(self.validation, self.network.weights())
        better = ttest_rel(greedy, self.baseline_validation, alternative="less")
        renewed = bool(better.pvalue < self.config.significance)
        if renewed:
            self._renew_baseline(greedy)
        return float(np.mean(sampled)), float(greedy.mean()), renewed

    def _renew_baseline(self, greedy: NDArray[np.float64]) -> None:
        # The copy is frozen, so its rollouts are computed once.
        self.baseline_validation = greedy
        self.baseline_training = greedy_gaps(self.training, self.network.weights())

    def _batches(self) -> list[NDArray[np.int64]]:
        """Shuffled batches of indices, each of graphs of one size."""
        batches = []
        for size in np.unique(self.sizes):
            group = self.rng.permutation(np.flatnonzero(self.sizes == size))
            size_of_batch = self.config.batch_graphs
            batches += np.split(group, range(size_of_batch, len(group), size_of_batch))
        self.rng.shuffle(batches)
        return batches

    def _roll(self, items: list[LabelledProblem], weights: Arrays) -> list[Rollouts]:
        uniforms = [self.rng.random((self.config.samples, item.n_nodes)) for item in items]

        def one(pair: tuple[LabelledProblem, NDArray[np.float64]]) -> Rollouts:
            item, uniform = pair
            return decode(item.inputs, project(weights, item.inputs), uniform, record=True)

        return list(self.threads.map(one, zip(items, uniforms, strict=True)))


def greedy_gaps(items: Sequence[LabelledProblem], weights: Arrays) -> NDArray[np.float64]:
    """float64 (graphs,): the gap of each graph's greedy order."""
    gaps = []
    for item in items:
        projected = project(weights, item.inputs)
        unused = np.empty((1, item.n_nodes))
        gaps.append(item.gaps(decode(item.inputs, projected, unused, n_greedy=1).order)[0])
    return np.array(gaps)


def training_batch(
    items: list[LabelledProblem], rollouts: list[Rollouts], advantage: NDArray[np.float64]
) -> dict[str, Any]:
    """What `Network.log_policy` and a training step read, as tensors."""
    import tensorflow as tf

    arrays = {
        "features": np.stack([item.inputs.features for item in items]),
        "before": np.stack([item.inputs.predecessor_mean.toarray() for item in items]),
        "after": np.stack([item.inputs.successor_mean.toarray() for item in items]),
        "order": np.stack([r.order for r in rollouts]).astype(np.int32),
        "context": np.stack([r.context for r in rollouts]),
        "dynamic": np.stack([r.dynamic for r in rollouts]),
        "ready": np.stack([r.ready for r in rollouts]),
        "advantage": advantage.astype(np.float32),
    }
    return {name: tf.constant(array) for name, array in arrays.items()}


def _step(network: Network, optimizer: Any) -> Callable[..., None]:
    import tensorflow as tf

    variables = list(network.variables.values())
    optimizer.build(variables)
    # One trace for batches of every size.
    orders, floats = (None, None, None), tf.float32
    signature = {
        "features": tf.TensorSpec((None, None, N_FEATURES), floats),
        "before": tf.TensorSpec((None, None, None), floats),
        "after": tf.TensorSpec((None, None, None), floats),
        "order": tf.TensorSpec(orders, tf.int32),
        "context": tf.TensorSpec((*orders, N_CONTEXT), floats),
        "dynamic": tf.TensorSpec((*orders, None, N_DYNAMIC), floats),
        "ready": tf.TensorSpec((*orders, None), tf.bool),
        "advantage": tf.TensorSpec((None, None), floats),
    }

    @tf.function(autograph=False, input_signature=[signature])
    def step(batch: dict[str, tf.Tensor]) -> None:
        with tf.GradientTape() as tape:
            log_policy = network.log_policy(batch)
            taken = tf.gather(log_policy, batch["order"][..., None], batch_dims=3)[..., 0]
            advantage = batch["advantage"]
            advantage /= tf.math.reduce_std(advantage) + 1e-6
            loss = tf.reduce_mean(advantage * tf.reduce_sum(taken, axis=2))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    return step
