"""Does a chain of segments compute its model, bit for bit?

Run in a process of its own: LiteRT ends the process, instead of raising, on some models.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coralline.errors import DeviceError, UserError
from coralline.tflite.segments import SegmentSet

COMMAND = ["-P", "-m", "coralline.tflite.verify"]
"""What the child process runs."""

WHOLE, CHAIN = "the whole model", "the segments"


def verify_chain(segments: SegmentSet, n_inputs: int, seed: int) -> None:
    """Run model and segments on random inputs; their outputs must have the same bits.

    The manifest need not be written yet.

    Raises:
        UserError: LiteRT cannot run the whole model.
        DeviceError: LiteRT cannot run the segments, or they compute something else.
    """
    child = subprocess.run(
        [sys.executable, *COMMAND],
        input=json.dumps(chain_of(segments, n_inputs, seed)),
        capture_output=True,
        text=True,
        check=False,
    )
    running = WHOLE
    for line in child.stdout.splitlines():
        said = json.loads(line)
        running = said.get("running", running)
        if "error" in said:
            raise _cannot_run(segments.model, running, said["error"])
        if "differs" in said:
            if said["differs"] is None:
                return
            raise DeviceError(
                f"{segments.model}: the segments do not compute what the model computes "
                f"(output {said['differs']!r} differs); nothing was written"
            )
    how = signal.strsignal(-child.returncode) if child.returncode < 0 else child.stderr.strip()
    raise _cannot_run(segments.model, running, f"its process ended: {how}")


def chain_of(segments: SegmentSet, n_inputs: int, seed: int) -> dict[str, Any]:
    """What `run_chain` needs to know, as JSON for the child process."""
    return {
        "whole": str(segments.folder / segments.model_file),
        "segments": [
            [str(segments.folder / s.file), list(s.inputs), list(s.outputs)]
            for s in segments.segments
        ],
        "inputs": list(segments.inputs),
        "outputs": list(segments.outputs),
        "n_inputs": n_inputs,
        "seed": seed,
    }


def random_inputs(
    details: Iterable[Mapping[str, Any]], rng: np.random.Generator
) -> list[NDArray[Any]]:
    """One array for each entry of LiteRT's `get_input_details()`.

    8-bit and 16-bit integers over their whole range, floats from -1 to 1; wider integers, which
    are mostly indices and counts, 0 or 1.
    """
    return [_random(tuple(d["shape"]), np.dtype(d["dtype"]), rng) for d in details]


def _random(shape: tuple[int, ...], dtype: np.dtype[Any], rng: np.random.Generator) -> NDArray[Any]:
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.uniform(-1, 1, shape).astype(dtype)


def _cannot_run(model: str, running: str, why: str) -> Exception:
    text = f"LiteRT cannot run {running} of {model}: {' '.join(why.split())}"
    if running != WHOLE:
        return DeviceError(text)
    if "custom op" in why:
        return UserError(
            f"{text}; LiteRT has no such operator: convert the model without it, or cut it "
            "unchecked with --verify-inputs 0"
        )
    return UserError(f"{text}; check the file")


def run_chain(chain: Mapping[str, Any]) -> str | None:
    """Name of the first output that differs on some input; None when all are equal.

    Args:
        chain: See `chain_of`.
    """
    _say(running=WHOLE)
    whole = _interpreter(chain["whole"])
    rng = np.random.default_rng(chain["seed"])
    details = whole.get_input_details()
    samples = [random_inputs(details, rng) for _ in range(chain["n_inputs"])]
    wanted = [_infer(whole, sample) for sample in samples]
    _say(running=CHAIN)
    stages = [(_interpreter(path), inputs, outputs) for path, inputs, outputs in chain["segments"]]
    for sample, want in zip(samples, wanted, strict=True):
        known = dict(zip(chain["inputs"], sample, strict=True))
        for stage, inputs, outputs in stages:
            known |= zip(outputs, _infer(stage, [known[n] for n in inputs]), strict=True)
        for name, value in zip(chain["outputs"], want, strict=True):
            if value.tobytes() != known[name].tobytes():
                return str(name)
    return None


def _interpreter(path: str) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    interpreter.allocate_tensors()
    return interpreter


def _infer(interpreter: Any, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def _say(**said: Any) -> None:
    print(json.dumps(said), flush=True)


def _main() -> None:
    try:
        _say(differs=run_chain(json.load(sys.stdin)))
    except (ValueError, RuntimeError) as error:  # what LiteRT raises on a model it refuses
        _say(error=str(error))


if __name__ == "__main__":
    _main()
