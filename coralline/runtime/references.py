"""Inputs, and the whole model's outputs for them on this machine: what a board far away is held to.

They are made in a process of their own, since LiteRT ends it on some models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coralline.runtime.child import Progress, run_in_child, serve
from coralline.runtime.interpreter import Array, Model
from coralline.runtime.pipeline import CHECKED_INPUTS
from coralline.tflite.segments import SegmentSet

TIME_LIMIT_S = 600.0


def write_references(segments: SegmentSet, out: Path, *, seed: int = 0) -> None:
    """Write an .npz: `n_samples`, and `input-I-J` and `output-I-J`, tensor J of sample I.

    The same model, seed and LiteRT give the same bytes.

    Args:
        segments: The whole model lies beside them.
        out: A path that ends in .npz.
        seed: Of the random inputs.

    Raises:
        UserError: LiteRT cannot run the model.
        DeviceError: It crashed.
    """
    model = segments.folder / segments.model_file
    request = {"model": str(model), "out": str(out), "seed": seed}
    run_in_child(__name__, request, f"references of {model}", time_limit_s=TIME_LIMIT_S)


def write_stage_references(segments: SegmentSet, out: Path, *, seed: int = 0) -> None:
    """Write an .npz: `input-S-J` and `output-S-J`, tensor J of segment S, for one random input.

    Args:
        out: A path that ends in .npz.
        seed: Of the random input of the whole model.

    Raises:
        UserError: LiteRT cannot run a segment.
        DeviceError: It crashed.
    """
    request = {
        "stages": [
            {"model": str(segments.folder / s.file), "inputs": s.inputs, "outputs": s.outputs}
            for s in segments.segments
        ],
        "out": str(out),
        "seed": seed,
    }
    what = f"references of the segments of {segments.model}"
    run_in_child(__name__, request, what, time_limit_s=TIME_LIMIT_S)


def _serve(request: Mapping[str, Any], on_progress: Progress) -> None:
    if "stages" in request:
        _write_stages_here(request)
    else:
        _write_here(request)


def _write_stages_here(request: Mapping[str, Any]) -> None:
    rng = np.random.default_rng(request["seed"])
    tensors: dict[str, Array] = {}
    arrays: dict[str, Array] = {}
    for s, stage in enumerate(request["stages"]):
        model = Model(Path(stage["model"]))
        # Only inputs of the whole model are not there yet; no earlier segment writes them.
        fresh = model.random_inputs(rng)
        for name, array in zip(stage["inputs"], fresh, strict=True):
            tensors.setdefault(name, array)
        inputs = [tensors[name] for name in stage["inputs"]]
        outputs = model.run(inputs)
        tensors |= zip(stage["outputs"], outputs, strict=True)
        arrays |= {f"input-{s}-{j}": array for j, array in enumerate(inputs)}
        arrays |= {f"output-{s}-{j}": array for j, array in enumerate(outputs)}
    np.savez(request["out"], allow_pickle=False, **arrays)


def _write_here(request: Mapping[str, Any]) -> None:
    model = Model(Path(request["model"]))
    rng = np.random.default_rng(request["seed"])
    arrays: dict[str, Array] = {"n_samples": np.array(CHECKED_INPUTS)}
    for i in range(CHECKED_INPUTS):
        inputs = model.random_inputs(rng)
        arrays |= {f"input-{i}-{j}": array for j, array in enumerate(inputs)}
        arrays |= {f"output-{i}-{j}": array for j, array in enumerate(model.run(inputs))}
    np.savez(request["out"], allow_pickle=False, **arrays)


if __name__ == "__main__":
    serve(_serve)
