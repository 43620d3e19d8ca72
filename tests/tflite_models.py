"""Variants of the small models, made through the schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


def edited(name: str, edit: Callable[[Any], None], folder: Path) -> Path:
    """A copy of a small model after `edit` has changed its ModelT."""
    from ai_edge_litert import schema_py_generated as schema

    data = (DATA / f"{name}.tflite").read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    edit(model)
    path = folder / "edited.tflite"
    path.write_bytes(packed(model))
    return path


def packed(model: Any) -> bytes:
    """The flatbuffer of a ModelT."""
    import flatbuffers

    builder = flatbuffers.Builder(2**14)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def weights_at_the_end(name: str, folder: Path) -> Path:
    """The model with its constants after the flatbuffer, as files beyond 2 GiB have them."""
    from ai_edge_litert import schema_py_generated as schema

    data = (DATA / f"{name}.tflite").read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    tail = bytearray()
    start = 0
    for _ in range(2):  # the offsets change no lengths, so the second round is final
        constants = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data)).buffers
        tail.clear()
        for buffer, constant in zip(model.buffers, constants, strict=True):
            if constant.data is not None:
                tail.extend(b"\0" * (-len(tail) % 16))
                buffer.data = None
                buffer.offset, buffer.size = start + len(tail) + 16, len(constant.data)
                tail.extend(constant.data.tobytes())
        head = packed(model)
        start = len(head) + -len(head) % 16 - 16
    path = folder / f"{name}.tflite"
    path.write_bytes(head + b"\0" * (start + 16 - len(head)) + tail)
    return path


def single_operator(
    folder: Path, code: int, shapes: list[list[int]], inputs: list[int], options: Any = None
) -> Path:
    """A float32 model of one builtin operator; the last shape is its output's, the rest are the
    shapes of the model's inputs, and `inputs` is what the operator reads."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.SubGraphT()
    graph.tensors = []
    for i, shape in enumerate(shapes):
        tensor = schema.TensorT()
        tensor.shape, tensor.hasRank, tensor.name = shape, True, f"t{i}"
        graph.tensors.append(tensor)
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = inputs, [len(shapes) - 1]
    if options is not None:
        kind = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.builtinOptions = options
    graph.operators = [operator]
    graph.inputs, graph.outputs = list(range(len(shapes) - 1)), [len(shapes) - 1]
    model = schema.ModelT()
    model.version = 3
    model.operatorCodes = [schema.OperatorCodeT()]
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = code
    model.subgraphs, model.buffers = [graph], [schema.BufferT()]
    path = folder / "single.tflite"
    path.write_bytes(packed(model))
    return path
