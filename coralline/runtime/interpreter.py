"""One .tflite file in LiteRT: load it, feed it, run it, and ask what really ran it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coralline.errors import DeviceError, UserError
from coralline.tflite.verify import random_inputs

Array = NDArray[Any]


class Model:
    """A loaded .tflite file. One thread at a time may use it.

    Args:
        path: The file.
        threads: CPU threads that LiteRT may use for one inference.

    Raises:
        UserError: LiteRT cannot read the file or lacks one of its operators.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        from ai_edge_litert.interpreter import Interpreter

        if not path.is_file():
            raise UserError(f"{path}: no such file; give the path of a .tflite model")
        try:
            self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path.name}: LiteRT cannot load it ({reason}); convert the model without what "
                "it refuses"
            ) from None
        self.path = path
        self.input_details = self._interpreter.get_input_details()
        self.output_details = self._interpreter.get_output_details()
        # `tensor` gives a fresh view on each call: LiteRT forbids keeping one over an invoke.
        self._inputs = [self._interpreter.tensor(d["index"]) for d in self.input_details]
        self._outputs = [self._interpreter.tensor(d["index"]) for d in self.output_details]

    def feed(self, arrays: Sequence[Array]) -> None:
        """Copy the inputs in, in the order of the file's inputs."""
        for view, array in zip(self._inputs, arrays, strict=True):
            np.copyto(view(), array, casting="no")

    def invoke(self) -> None:
        """Run one inference; the interpreter lock is released meanwhile.

        Raises:
            DeviceError: LiteRT reports a failure.
        """
        try:
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise DeviceError(f"{self.path}: the inference failed ({error})") from None

    def fetch(self, arrays: Sequence[Array]) -> None:
        """Copy the outputs out, in the order of the file's outputs."""
        for view, array in zip(self._outputs, arrays, strict=True):
            np.copyto(array, view(), casting="no")

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """One inference from inputs to fresh outputs."""
        self.feed(arrays)
        self.invoke()
        return [view().copy() for view in self._outputs]

    def random_inputs(self, rng: np.random.Generator) -> list[Array]:
        """One random value for each input."""
        return random_inputs(self.input_details, rng)

    def empty_outputs(self) -> list[Array]:
        """One uninitialised array for each output."""
        return [np.empty(d["shape"], d["dtype"]) for d in self.output_details]

    def partitions(self) -> dict[str, Any]:
        """Which operators the CPU delegate (XNNPACK) took and which the plain kernels ran.

        LiteRT appends one DELEGATE node for each partition; an operator whose output a
        partition produces, or keeps to itself, no longer runs alone.

        Returns:
            `operators`: in the file; `delegated`: how many a delegate runs; `partitions`: how
            many pieces; `plain`: number of the others by type.
        """
        nodes = self._interpreter._get_ops_details()
        partitions = [n for n in nodes if n["op_name"] == "DELEGATE"]
        operators = [n for n in nodes if n["op_name"] != "DELEGATE"]
        producer = {int(t): i for i, node in enumerate(operators) for t in node["outputs"]}
        taken: set[int] = set()
        for partition in partitions:
            sources = {int(t) for t in partition["inputs"]}
            waiting = [int(t) for t in partition["outputs"]]
            while waiting:
                node = producer.get(waiting.pop())
                if node is None or node in taken:
                    continue
                taken.add(node)
                waiting += [int(t) for t in operators[node]["inputs"] if int(t) not in sources]
        plain = Counter(n["op_name"] for i, n in enumerate(operators) if i not in taken)
        return {
            "operators": len(operators),
            "delegated": len(taken),
            "partitions": len(partitions),
            "plain": dict(sorted(plain.items())),
        }
