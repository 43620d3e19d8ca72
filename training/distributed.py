"""Training in several processes that share every batch, as Kubeflow's TFJob starts them.

Its operator gives each process the environment variable TF_CONFIG, which names all of them and
this one (https://www.tensorflow.org/guide/distributed_training#TF_CONFIG). The weights are
mirrored and the gradients summed by `tf.distribute.MultiWorkerMirroredStrategy`. Without
TF_CONFIG a process trains alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from coralline.errors import DeviceError, UserError
from training.quiet import load_tensorflow

VARIABLE = "TF_CONFIG"
Item = TypeVar("Item")


class Workers:
    """The processes that train together; `workers` gives those of this process.

    Attributes:
        index: Of this one, from 0.
        count: Of all.
        strategy: The scope of the weights and the optimizer.
    """

    def __init__(self) -> None:
        self.index, self.count = place()
        tf = load_tensorflow()
        if self.count > 1:
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        else:
            self.strategy = tf.distribute.get_strategy()

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.float64)])
        def total(values: Any) -> Any:
            parts = self.strategy.run(lambda part: part, args=(values,))
            return self.strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)

        self._total = total

    @property
    def is_chief(self) -> bool:
        """Whether this process reports and writes what all of them have made."""
        return self.index == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """What this process takes of something that all have; never nothing of something."""
        return items[self.index :: self.count] or items[:1]

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes, each of which must call this."""
        return [float(value) for value in self._total(values)]

    def chiefs(self, value: float) -> float:
        """What the chief says; each process must ask."""
        return self.total([value if self.is_chief else 0.0])[0]

    @contextmanager
    def staying(self) -> Iterator[None]:
        """Leave the block when all processes do.

        Raises:
            DeviceError: Another has gone; which is retryable, with all of them.
        """
        tf = load_tensorflow()
        try:
            yield
            self.chiefs(0.0)
        except tf.errors.OpError as error:
            if self.count == 1:
                raise
            reason = str(error.message).strip().splitlines()[-1].strip()
            raise DeviceError(
                f"worker {self.index} of {self.count}: another has gone ({reason}); start all of "
                "them again",
                retryable=True,
            ) from None


@cache
def workers() -> Workers:
    """Join the others, or train alone; before anything else of TensorFlow is used.

    Raises:
        UserError: As `place`.
    """
    return Workers()


def place() -> tuple[int, int]:
    """Which of the processes this is, from 0, and how many they are.

    Raises:
        UserError: TF_CONFIG cannot be read, or has others than workers.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return 0, 1
    wrong = f"{VARIABLE} is {text!r}"
    try:
        found = json.loads(text)
        workers = found["cluster"]["worker"]
        kind, index = found["task"]["type"], int(found["task"]["index"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{wrong}, which does not say {{"cluster": {{"worker": [...]}}, "task": {{"type": '
            f'"worker", "index": 0}}}} ({error!r})'
        ) from None
    if set(found["cluster"]) != {"worker"} or kind != "worker":
        raise UserError(f"{wrong}; all processes must be workers: no chief, no parameter server")
    if not 0 <= index < len(workers):
        raise UserError(f"{wrong}; there are {len(workers)} workers, and this is number {index}")
    return index, len(workers)
