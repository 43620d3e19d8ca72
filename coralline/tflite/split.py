"""Cut a .tflite model into one segment a stage, operator by operator.

Any assignment whose edges never go backwards will do: what a stage reads from an earlier one, be
it far back, is an input of its segment by name. The graph of tensors is kept as it is; a segment
holds the operators, tensors, constants and quantisation of its stage and nothing else.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coralline.errors import PlanError, UserError
from coralline.files import make_folder
from coralline.graph.tflite_file import (
    MAGIC,
    NO_TENSOR,
    TfliteFile,
    damage_reported,
    open_tflite,
    schema,
)
from coralline.graph.tflite_reader import graph_of
from coralline.staging.problem import Plan
from coralline.tflite.segments import MANIFEST, Segment, SegmentSet
from coralline.tflite.verify import verify_chain

ALIGNMENT = 16
"""Of constant buffers, in bytes (TensorFlow Lite schema, `Buffer.data`)."""

_UNPACKING = frozenset(["DEQUANTIZE", "DENSIFY"])
"""Operators that turn a packed constant (float16, sparse) into the weights of their reader."""

_TENSOR_FIELDS = ("inputs", "outputs", "intermediates")

_KEPT_METADATA = frozenset([b"min_runtime_version", b"CONVERSION_METADATA"])
"""Metadata that is as true of a part as of the whole; other entries describe the whole model's
inputs, outputs or memory plan."""


def split_model(
    model: Path, plan: Plan, out: Path, *, verify_inputs: int = 3, seed: int = 0
) -> SegmentSet:
    """Write a folder of segments, one a stage, and prove that they compute the model.

    The folder appears whole or not at all. One that an earlier split wrote is replaced.

    Args:
        model: A .tflite file.
        plan: Made for this model.
        out: The folder.
        verify_inputs: Random inputs on which the chain must give the whole model's bits; 0 skips
            the check.
        seed: Of those inputs.

    Raises:
        UserError: The model cannot be read, planned or run, the plan is for another model, or
            `out` cannot be written or holds something else.
        PlanError: The plan's stages are not feasible.
        DeviceError: The chain does not compute what the model computes.
    """
    file = open_tflite(model)
    with damage_reported(model):
        plan.check_graph(graph_of(file))
        whole = schema().SubGraphT.InitFromObj(file.table.Subgraphs(0))
    _check_stages(file, plan)
    with _new_folder(out) as folder:
        (folder / f"{file.name}.tflite").write_bytes(file.data)
        segments = []
        for stage, part in enumerate(_parts(file, plan)):
            name = f"{file.name}_segment_{stage}_of_{plan.n_stages}.tflite"
            with damage_reported(model):
                data = _flatbuffer(file, whole, part)
            (folder / name).write_bytes(data)
            segments.append(Segment(name, file.names(part.inputs), file.names(part.outputs)))
        found = SegmentSet(
            folder=folder,
            model=file.name,
            model_file=f"{file.name}.tflite",
            model_digest=hashlib.sha256(file.data).hexdigest(),
            inputs=file.names(file.inputs),
            outputs=file.names(file.outputs),
            segments=tuple(segments),
            plan=plan.to_json(),
            bit_equal_inputs=verify_inputs,
        )
        if verify_inputs:
            verify_chain(found, verify_inputs, seed)
        found.write()
    return replace(found, folder=out)


def _check_stages(file: TfliteFile, plan: Plan) -> None:
    """The rules of staging.check that a split relies on, for plans from a file."""
    if len(plan.stage) != len(file.operators):
        raise PlanError(
            f"the plan has {len(plan.stage)} operators and {file.name} has {len(file.operators)}; "
            "make it again"
        )
    used = set(plan.stage)
    if len(used) != plan.n_stages or max(used) >= plan.n_stages:
        raise PlanError(f"the plan does not use each of its {plan.n_stages} stages; make it again")
    home: dict[int, int] = {}
    for operator, stage in zip(file.operators, plan.stage, strict=True):
        for t in operator.inputs:
            if home.get(t, 0) > stage:
                raise PlanError(
                    f"tensor {file.tensors[t].name!r} goes backwards, from stage {home[t]} to "
                    f"stage {stage}; make the plan again"
                )
        home |= dict.fromkeys(operator.outputs, stage)


@dataclass(frozen=True)
class _Part:
    """Indices of the operators of a segment, and of the tensors it reads and writes."""

    operators: list[int]
    inputs: list[int]
    outputs: list[int]


def _parts(file: TfliteFile, plan: Plan) -> list[_Part]:
    """What each stage holds; inputs and outputs in the order in which they come to exist."""
    weights, places = _places(file, plan)
    order = [*file.inputs, *(t for operator in file.operators for t in operator.outputs)]
    readers: dict[int, set[int]] = {}
    for operator, stages in zip(file.operators, places, strict=True):
        for t in operator.inputs:
            readers.setdefault(t, set()).update(stages)
    parts = []
    for stage in range(plan.n_stages):
        operators = [i for i, stages in enumerate(places) if stage in stages]
        written = {t for i in operators for t in file.operators[i].outputs}
        inputs = [t for t in order if stage in readers.get(t, ()) and t not in written]
        outputs = [
            t
            for t in order
            if t in written
            and (t in file.outputs or (t not in weights and readers.get(t, {stage}) != {stage}))
        ]
        parts.append(_Part(operators, inputs, outputs))
    # An output that is a constant belongs to no operator; somebody must give it.
    constants = {t for t in file.outputs if file.tensors[t].constant}
    parts[-1].outputs.extend(sorted(constants))
    return parts


def _places(file: TfliteFile, plan: Plan) -> tuple[set[int], list[set[int]]]:
    """Unpacked weights, and for each operator the stages whose segments hold it.

    That is the plan's stage, except for operators that unpack weights: kernels take such a pair
    of operator and reader as one, so each reader's segment gets its own.
    """
    weights: set[int] = set()
    for operator in file.operators:
        if operator.op in _UNPACKING and all(
            t == NO_TENSOR or t in weights or file.tensors[t].constant for t in operator.inputs
        ):
            weights.update(operator.outputs)
    places: list[set[int]] = []
    needed: dict[int, set[int]] = {}
    for operator, stage in reversed(list(zip(file.operators, plan.stage, strict=True))):
        here = {stage}
        if weights.issuperset(operator.outputs) and not set(file.outputs) & set(operator.outputs):
            here = set().union(*(needed.get(t, set()) for t in operator.outputs))
        for t in operator.inputs:
            needed.setdefault(t, set()).update(here)
        places.append(here)
    return weights, places[::-1]


def _flatbuffer(file: TfliteFile, whole: Any, kept: _Part) -> bytes:
    """The .tflite of some operators of a model, whose subgraph is `whole` (SubGraphT)."""
    s = schema()
    touched = [t for i in kept.operators for t in _tensors_of(whole.operators[i])]
    used = sorted({*kept.inputs, *touched, *kept.outputs} - {NO_TENSOR})
    tensor_at = {t: k for k, t in enumerate(used)} | {NO_TENSOR: NO_TENSOR}
    # Buffer 0 is the empty one by convention; tensors without a constant refer to it.
    constants = sorted({file.tensors[t].buffer for t in used if file.tensors[t].constant})
    buffer_at = {b: k for k, b in enumerate(constants, start=1)}
    codes = sorted({whole.operators[i].opcodeIndex for i in kept.operators})
    code_at = {c: k for k, c in enumerate(codes)}

    part = s.SubGraphT()
    part.name = whole.name
    part.tensors = []
    for t in used:
        tensor = copy.copy(whole.tensors[t])
        tensor.name = file.tensors[t].name
        tensor.buffer = buffer_at[tensor.buffer] if file.tensors[t].constant else 0
        part.tensors.append(tensor)
    part.operators = []
    for i in kept.operators:
        operator = copy.copy(whole.operators[i])
        operator.opcodeIndex = code_at[operator.opcodeIndex]
        for field in _TENSOR_FIELDS:
            given = getattr(operator, field)
            if given is not None:
                setattr(operator, field, [tensor_at[int(t)] for t in given])
        operator.debugMetadataIndex = -1
        part.operators.append(operator)
    part.inputs = [tensor_at[t] for t in kept.inputs]
    part.outputs = [tensor_at[t] for t in kept.outputs]

    model = s.ModelT()
    model.version = file.table.Version()
    model.description = f"part of {file.name}, split by Coralline"
    model.operatorCodes = [s.OperatorCodeT.InitFromObj(file.table.OperatorCodes(c)) for c in codes]
    model.subgraphs = [part]
    model.buffers = [_AlignedBuffer(b"")] + [_AlignedBuffer(file.constant(b)) for b in constants]
    model.metadata = []
    for k in range(file.table.MetadataLength()):
        entry = file.table.Metadata(k)
        if entry.Name() in _KEPT_METADATA:
            metadata = s.MetadataT()
            metadata.name, metadata.buffer = entry.Name(), len(model.buffers)
            model.metadata.append(metadata)
            model.buffers.append(_AlignedBuffer(file.constant(entry.Buffer())))
    return _pack(model)


def _tensors_of(operator: Any) -> list[int]:
    """All tensors an OperatorT refers to; `intermediates` are of quantised LSTMs."""
    fields = (getattr(operator, field) for field in _TENSOR_FIELDS)
    return [int(t) for field in fields if field is not None for t in field]


class _AlignedBuffer:
    """A constant as ModelT packs it; the generated class leaves its data unaligned."""

    def __init__(self, data: memoryview | bytes) -> None:
        self.data = data

    def Pack(self, builder: Any) -> int:  # noqa: N802  # the name that ModelT.Pack calls
        s = schema()
        n = len(self.data)
        if n:
            builder.StartVector(1, n, ALIGNMENT)
            builder.head -= n
            builder.Bytes[builder.head : builder.head + n] = self.data
            vector = builder.EndVector()
        s.BufferStart(builder)
        if n:
            s.BufferAddData(builder, vector)
        return int(s.BufferEnd(builder))


def _pack(model: Any) -> bytes:
    import flatbuffers

    size = sum(len(buffer.data) + 64 for buffer in model.buffers)
    builder = flatbuffers.Builder(size + 2**16)
    builder.Finish(model.Pack(builder), file_identifier=MAGIC)
    return bytes(builder.Output())


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block succeeds."""
    _check_replaceable(out)
    make_folder(out.parent)
    try:
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise _unwritable(out, error) from None
    try:
        folder.chmod(0o755)
        yield folder
        old = folder.with_name(f"{folder.name}.old")
        if out.exists():
            out.rename(old)
        folder.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _unwritable(out, error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder to write the segments into")
    present = {path.name for path in out.iterdir()}
    own = set()
    if MANIFEST in present:
        old = SegmentSet.read(out)
        own = {MANIFEST, old.model_file, *(segment.file for segment in old.segments)}
        own |= {segment.compiled["file"] for segment in old.segments if segment.compiled}
    if present - own:
        raise UserError(
            f"{out}: holds {min(present - own)!r}, which no split wrote; choose another folder"
        )


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(
        f"{out}: cannot be written ({error.strerror}); free space or choose another place"
    )
