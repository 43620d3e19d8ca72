"""Training the policy: imitation of exact plans, then REINFORCE with a greedy-rollout baseline.

The method is that of RESPECT (Yin et al., DAC 2023; details from the authors' repository) and
Kool et al. (ICLR 2019), from whom it took it. What differs, and why:

- The cost of an order is the value of its best split: the thing wanted. RESPECT's is one minus
  the cosine similarity of the labels' stages in the learned order with the same stages sorted,
  a stand-in that is cheap on a GPU; here a split takes microseconds. So graphs without a label
  can be learned from too.
- The baseline is the greedy order of the network as it is (Rennie et al., CVPR 2017), not of a
  frozen copy: several orders are sampled for each graph, and one more costs little. Advantages
  are shares of the baseline, divided by their deviation over the batch.
- It starts with imitation, which gets much further in the first minutes: the decoder is led
  along the label's plan, in an order of its own choice, and learns to give all its probability
  to those candidates that fit the plan: ready nodes of the present stage, or closing the stage
  when none is left.
- Beside its decisions the network learns what value to expect of a good plan, at which the
  decoder then aims: the mean square of the logarithm's error is part of the loss.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
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
from coralline.staging.decoder import (
    SPREAD,
    PolicyInput,
    Projection,
    Rollouts,
    decode,
    policy_input,
    project,
    shared_projection,
)
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
from training.distributed import Workers, workers
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
        imitation_share: Of the epochs, or of the time if that runs out sooner, in which
            labels are imitated; REINFORCE follows.
        batch_nodes: Nodes of all graphs of a step; these are of one size.
        guides: Decodings led along the label's plan for each graph, in imitation.
        samples: Orders sampled for each graph, in REINFORCE.
        learning_rate: Of Adam at the start; it falls to a fiftieth along a cosine over the
            epochs, or over the time if that runs out sooner.
        reinforce_rate: What the learning rate is multiplied with in REINFORCE.
        clip_norm: Bound on the norm of the gradient, as in RESPECT.
        validation_share: Of the labelled graphs, held out to choose the final weights.
        seed: Of weights, batches and samples.
    """

    hidden: int = 64
    layers: int = 4
    epochs: int = 80
    time_limit_s: float = 60.0
    imitation_share: float = 0.6
    batch_nodes: int = 960
    guides: int = 2
    samples: int = 8
    learning_rate: float = 2e-3
    reinforce_rate: float = 0.5
    clip_norm: float = 1.0
    validation_share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in [
            ("hidden", 4, 1024),
            ("layers", 0, 64),
            ("epochs", 1, 10**6),
            ("time_limit_s", 0.001, 1e9),
            ("imitation_share", 0.0, 1.0),
            ("batch_nodes", 1, 10**6),
            ("guides", 1, 10**4),
            ("samples", 1, 10**4),
            ("learning_rate", 1e-8, 1.0),
            ("reinforce_rate", 1e-6, 1e3),
            ("clip_norm", 1e-6, 1e6),
            ("validation_share", 0.01, 0.9),
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
        imitation: 1 for imitation, 0 for REINFORCE.
        sampled_gap: Of one sampled order for each validation graph, after the epoch.
        greedy_gap: Of their greedy orders.
        target_error: Mean absolute error of the logarithm of the expected value.
        seconds: Since training began.
    """

    epoch: int
    imitation: int
    sampled_gap: float
    greedy_gap: float
    target_error: float
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

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> PolicyMetrics:
        """What `to_json` wrote."""
        values = {name: value for name, value in data.items() if name != "schema"}
        curve = tuple(Epoch(**point) for point in data["curve"])
        return PolicyMetrics(**{**values, "curve": curve})


@dataclass(frozen=True)
class Exercise:
    """One problem with what rollouts need, made once.

    Attributes:
        stage: int64 (V,): the label's plan; None without a label.
        label_value: The label's value, above 0; NaN without.
    """

    problem: StagingProblem
    inputs: PolicyInput
    split_arguments: SplitArguments
    stage: NDArray[np.int64] | None
    label_value: float

    @property
    def n_nodes(self) -> int:
        """V."""
        return self.problem.graph.n_nodes

    def values(self, orders: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 (S,): the value of the best split of each order."""
        return np.array([split_value(self.split_arguments, order) for order in orders])


def exercise(problem: StagingProblem, label: Plan | None) -> Exercise:
    """Prepare a problem.

    Raises:
        UserError: The label was made for another problem, or its value is 0.
    """
    stage, value = None, math.nan
    if label is not None:
        label.check_graph(problem.graph)
        if label.device_digest != problem.device_digest:
            raise UserError(
                f"the label of {problem.graph.name!r} was made for another version of "
                f"{label.device!r}; label the set again"
            )
        if not label.value > 0:
            raise UserError(
                f"the label of {problem.graph.name!r} is {label.value}: nothing to compare to"
            )
        stage, value = np.array(label.stage), label.value
    return Exercise(problem, policy_input(problem), split_arguments(problem), stage, value)


def label_problems(
    graphs: Sequence[ComputeGraph], labels: Sequence[Plan], device: DeviceModel
) -> list[StagingProblem]:
    """The problems that the labels of one device solve.

    Raises:
        UserError: There are more graphs than labels or the reverse, or none.
    """
    if len(graphs) != len(labels):
        raise UserError(f"{len(graphs)} graphs but {len(labels)} labels; label the set again")
    if not graphs:
        raise UserError("no graphs; make some with `coralline generate`")
    for label in labels:
        if label.children_together:
            raise UserError(
                f"the label of {label.graph_name!r} keeps children together; train without"
            )
    return [
        StagingProblem(graph, label.n_stages, device, label.objective)
        for graph, label in zip(graphs, labels, strict=True)
    ]


def train_policy(
    graphs: Sequence[ComputeGraph],
    labels: Sequence[Plan],
    config: PolicyConfig,
    out_dir: Path,
    on_epoch: Callable[[Epoch], None] | None = None,
    *,
    device: DeviceModel | None = None,
) -> PolicyMetrics:
    """Train a network on labels of one device and write it to `out_dir / "policy.npz"`.

    Args:
        on_epoch: Called after every epoch.
        device: That the labels were made for; without it the shipped one of that name.

    Raises:
        UserError: Too few graphs, labels that do not fit, or an unwritable folder.
    """
    from coralline.devices.model import load_device

    make_folder(out_dir)
    if not labels:
        raise UserError("no labels; make some with `coralline train label`")
    problems = label_problems(graphs, labels, device or load_device(labels[0].device))
    return train(problems, labels, config, out_dir, on_epoch)


def train(
    problems: Sequence[StagingProblem],
    labels: Sequence[Plan | None],
    config: PolicyConfig,
    out_dir: Path,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> PolicyMetrics:
    """Train a network and write it to `out_dir / "policy.npz"`.

    Several processes may do it together (`training.distributed`): each must be called with the
    same arguments, and the first alone calls `on_epoch` and writes.

    Args:
        labels: One a problem, or None: those serve REINFORCE alone.

    Raises:
        UserError: Too few graphs, labels that do not fit, or an unwritable folder.
        DeviceError: Another of the processes has gone.
    """
    group = workers()
    with group.staying():
        return _train(problems, labels, config, out_dir, on_epoch, group)


def _train(
    problems: Sequence[StagingProblem],
    labels: Sequence[Plan | None],
    config: PolicyConfig,
    out_dir: Path,
    on_epoch: Callable[[Epoch], None] | None,
    workers: Workers,
) -> PolicyMetrics:
    make_folder(out_dir)
    exercises = [exercise(p, label) for p, label in zip(problems, labels, strict=True)]
    rng = np.random.default_rng(config.seed)
    labelled = [e for e in exercises if e.stage is not None]
    shuffled = rng.permutation(len(labelled))
    n_held = round(config.validation_share * len(labelled))
    if n_held < 2 or len(labelled) - n_held < 1:
        raise UserError(
            f"{len(labelled)} labelled graphs are too few to train and validate; give 10 or more"
        )
    validation = [labelled[i] for i in shuffled[:n_held]]
    training = [labelled[i] for i in shuffled[n_held:]]
    training += [e for e in exercises if e.stage is None]
    trainer = _Trainer(training, config, rng, workers)
    begin = perf_counter()

    def validated(weights: Arrays) -> list[float]:
        mine = workers.share(validation)
        sums = [len(mine) * mean for mean in validate(mine, weights, config.seed)]
        *totals, n = workers.total([*sums, len(mine)])
        return [total / n for total in totals]

    untrained, _, _ = validated(trainer.network.weights())
    curve: list[Epoch] = []
    best_gap, best = untrained, trainer.network.weights()
    for number in range(config.epochs):
        # The first process's clock counts: all must take the same steps.
        spent = workers.chiefs((perf_counter() - begin) / config.time_limit_s)
        progress = min(max(number / config.epochs, spent), 1.0)
        imitates = progress < config.imitation_share
        trainer.epoch(progress, imitates)
        weights = trainer.network.weights()
        greedy, sampled, error = validated(weights)
        if greedy < best_gap:
            best_gap, best = greedy, weights
        seconds = workers.chiefs(perf_counter() - begin)
        point = Epoch(number + 1, int(imitates), sampled, greedy, error, seconds)
        curve.append(point)
        if on_epoch is not None and workers.is_chief:
            on_epoch(point)
        if seconds > config.time_limit_s:
            break
    metrics = PolicyMetrics(
        untrained_gap=untrained,
        greedy_gap=best_gap,
        graphs=len(training),
        validation_graphs=len(validation),
        labels_proven=float(np.mean([p.proven_optimal for p in labels if p is not None])),
        steps=trainer.steps,
        seconds=perf_counter() - begin,
        curve=tuple(curve),
    )
    digests = "".join(problem.graph.digest for problem in problems)
    devices = {p.device_digest: p.device_name for p in problems}
    metadata = {
        "hidden": config.hidden,
        "layers": config.layers,
        "config": asdict(config),
        "graphs_digest": hashlib.sha256(digests.encode()).hexdigest(),
        "devices": sorted(set(devices.values())),
        "devices_digest": hashlib.sha256("".join(sorted(devices)).encode()).hexdigest(),
        "metrics": metrics.to_json(),
    }
    if workers.is_chief:
        save_policy(out_dir / "policy.npz", Policy(best, metadata))
    return metrics


class _Trainer:
    """The state of a training run, in one of its processes.

    Args:
        rng: Orders the batches; gives the same in all processes.
    """

    def __init__(
        self,
        training: list[Exercise],
        config: PolicyConfig,
        rng: np.random.Generator,
        workers: Workers,
    ) -> None:
        tf = load_tensorflow()
        from training.network import Network

        self.training, self.config, self.workers = training, config, workers
        self.order = rng
        self.rng = np.random.default_rng([config.seed, workers.index])
        self.steps = 0
        with workers.strategy.scope():
            self.network = Network(config.hidden, config.layers, config.seed)
            # Each process clips its part of the gradient before the parts are summed.
            self.optimizer = tf.keras.optimizers.Adam(
                config.learning_rate, global_clipnorm=config.clip_norm / workers.count
            )
            self.step = _step(self.network, self.optimizer, workers)
        self.project = _project(self.network)

    def epoch(self, progress: float, imitates: bool) -> None:
        """One pass over the graphs; in imitation over those with labels."""
        rate = self.config.learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        if not imitates:
            rate *= self.config.reinforce_rate
        self.optimizer.learning_rate.assign(rate)
        sizes = np.array([0 if imitates and e.stage is None else e.n_nodes for e in self.training])
        for chosen in self._batches(sizes):
            items = [self.training[i] for i in self.workers.share(list(chosen))]
            batch = graph_batch(items)
            projections = self._project(items, batch)
            roll = self._imitate if imitates else self._sample
            self.step(batch | roll(items, projections))
            self.steps += 1

    def _batches(self, sizes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Shuffled batches of indices, each of graphs of one size; size 0 is left out."""
        batches = []
        for size in np.unique(sizes[sizes > 0]):
            group = self.order.permutation(np.flatnonzero(sizes == size))
            n = max(self.config.batch_nodes // int(size), 1)
            batches += np.split(group, range(n, len(group), n))
        self.order.shuffle(batches)
        return batches

    def _project(self, items: list[Exercise], batch: dict[str, Any]) -> list[Projection]:
        parts = {name: x.numpy() for name, x in self.project(batch).items()}
        log_target = parts.pop("log_target")
        shared = shared_projection(self.network.weights())
        return [
            Projection(
                **{name: x[i] for name, x in parts.items()},
                **shared,
                target_ms=item.inputs.unit_ms * math.exp(log_target[i]),
            )
            for i, item in enumerate(items)
        ]

    def _imitate(
        self, items: list[Exercise], projections: list[Projection]
    ) -> dict[str, NDArray[Any]]:
        shape = len(items), self.config.guides
        noise = np.exp(SPREAD * self.rng.standard_normal(shape))
        rollouts = [
            decode(
                item.inputs,
                projection,
                self.rng.random((self.config.guides, item.inputs.n_steps)),
                target_ms=item.label_value * spread,
                guide=item.stage,
                record=True,
            )
            for item, projection, spread in zip(items, projections, noise, strict=True)
        ]
        best = np.array([item.label_value for item in items])
        return rollout_batch(items, rollouts, np.ones(shape), best)

    def _sample(
        self, items: list[Exercise], projections: list[Projection]
    ) -> dict[str, NDArray[Any]]:
        rollouts, values = [], []
        for item, projection in zip(items, projections, strict=True):
            # The greedy order aims at what the network expects; it is the baseline.
            spread = SPREAD * self.rng.standard_normal(self.config.samples + 1)
            spread[0] = 0.0
            rolled = decode(
                item.inputs,
                projection,
                self.rng.random((len(spread), item.inputs.n_steps)),
                n_greedy=1,
                target_ms=projection.target_ms * np.exp(spread),
                record=True,
            )
            rollouts.append(rolled)
            values.append(item.values(rolled.order))
        value = np.stack(values)
        advantage = 1.0 - value / value[:, :1]
        advantage /= advantage[:, 1:].std() + 1e-6
        known = np.array([item.label_value for item in items])
        return rollout_batch(items, rollouts, advantage, np.fmin(known, value.min(axis=1)))


def validate(items: Sequence[Exercise], weights: Arrays, seed: int) -> tuple[float, float, float]:
    """Mean gap of greedy and of sampled orders, mean absolute error of the log of the target."""
    rng = np.random.default_rng(seed)
    greedy, sampled, error = [], [], []
    for item in items:
        projection = project(weights, item.inputs)
        uniform = rng.random((2, item.inputs.n_steps))
        values = item.values(decode(item.inputs, projection, uniform, n_greedy=1).order)
        greedy.append(values[0] / item.label_value - 1)
        sampled.append(values[1] / item.label_value - 1)
        error.append(abs(math.log(projection.target_ms / item.label_value)))
    return float(np.mean(greedy)), float(np.mean(sampled)), float(np.mean(error))


def graph_batch(items: Sequence[Exercise]) -> dict[str, NDArray[np.float32]]:
    """What the encoder reads of graphs of one size."""
    return {
        "features": np.stack([item.inputs.features for item in items]),
        "before": np.stack([item.inputs.predecessor_mean.toarray() for item in items]),
        "after": np.stack([item.inputs.successor_mean.toarray() for item in items]),
    }


def rollout_batch(
    items: Sequence[Exercise],
    rollouts: Sequence[Rollouts],
    weight: NDArray[np.float64],
    best: NDArray[np.float64],
) -> dict[str, NDArray[Any]]:
    """What a training step reads beside the graphs; B graphs, S recorded rollouts each.

    Args:
        weight: float64 (B, S): of each rollout's log-probability.
        best: float64 (B,): the value that the network should expect.
    """
    records = [r.record for r in rollouts if r.record is not None]
    n_rollouts = len(records[0].taken)
    length = max(r.taken.shape[1] for r in records)

    def padded(name: str, fill: int) -> NDArray[Any]:
        parts = [getattr(r, name) for r in records]
        shape = (len(parts), n_rollouts, length, *parts[0].shape[2:])
        array = np.full(shape, fill, parts[0].dtype)
        for i, part in enumerate(parts):
            array[i, :, : part.shape[1]] = part
        return array

    steps = []
    for i, record in enumerate(records):
        rollout, step = np.divmod(record.step, record.taken.shape[1])
        steps.append((i * n_rollouts + rollout) * length + step)
    units = np.array([item.inputs.unit_ms for item in items])
    return {
        "context": padded("context", 0),
        "previous": padded("previous", 0),
        "taken": padded("taken", -1),
        "step": np.concatenate(steps).astype(np.int32),
        "node": np.concatenate([r.node for r in records]),
        "dynamic": np.concatenate([r.dynamic for r in records]),
        "good": np.concatenate([r.good for r in records]).astype(np.float32),
        "weight": weight.astype(np.float32),
        "log_target": np.log(best / units).astype(np.float32),
    }


def _step(network: Network, optimizer: Any, workers: Workers) -> Callable[..., None]:
    import tensorflow as tf

    variables = list(network.variables.values())
    optimizer.build(variables)
    # One trace for batches of every size.
    decodings, floats, ints = (None, None, None), tf.float32, tf.int32
    signature = _graph_signature() | {
        "context": tf.TensorSpec((*decodings, N_CONTEXT), floats),
        "previous": tf.TensorSpec(decodings, ints),
        "taken": tf.TensorSpec(decodings, ints),
        "step": tf.TensorSpec((None,), ints),
        "node": tf.TensorSpec((None,), ints),
        "dynamic": tf.TensorSpec((None, N_DYNAMIC), floats),
        "good": tf.TensorSpec((None,), floats),
        "weight": tf.TensorSpec((None, None), floats),
        "log_target": tf.TensorSpec((None,), floats),
    }

    def own_part(batch: dict[str, tf.Tensor]) -> None:
        with tf.GradientTape() as tape:
            projection = network.project(batch)
            log_policy = tf.reduce_mean(network.log_policy(batch, projection), axis=2)
            error = projection["log_target"] - batch["log_target"]
            loss = tf.reduce_mean(error**2) - tf.reduce_mean(batch["weight"] * log_policy)
            loss /= workers.count
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    @tf.function(autograph=False, input_signature=[signature])
    def step(batch: dict[str, tf.Tensor]) -> None:
        workers.strategy.run(own_part, args=(batch,))

    return step


def _project(network: Network) -> Callable[..., dict[str, Any]]:
    import tensorflow as tf

    @tf.function(autograph=False, input_signature=[_graph_signature()])
    def project(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return network.project(batch)

    return project


def _graph_signature() -> dict[str, Any]:
    import tensorflow as tf

    shape = (None, None, None)
    return {
        "features": tf.TensorSpec((None, None, N_FEATURES), tf.float32),
        "before": tf.TensorSpec(shape, tf.float32),
        "after": tf.TensorSpec(shape, tf.float32),
    }
