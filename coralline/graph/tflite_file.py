"""A .tflite file, opened and checked: tensors, operators, constants, nothing loaded.

The file is mapped, not read: weights stay on disk until somebody asks for them. Everything that
the planners cannot treat is refused here, with what to do about it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from coralline.errors import UserError

MAGIC = b"TFL3"
"""File identifier at bytes 4 to 8 (TensorFlow Lite schema, `file_identifier`)."""

NO_TENSOR = -1
"""An optional input that is absent."""

LARGEST_COUNT = 2**48
"""Elements or multiply-accumulates of one operator; every sum over a graph then fits int64."""

_BITS = {
    "INT2": 2,
    "INT4": 4,
    "UINT4": 4,
    "BOOL": 8,
    "INT8": 8,
    "UINT8": 8,
    "FLOAT8_E4M3FN": 8,
    "FLOAT8_E5M2": 8,
    "FLOAT16": 16,
    "BFLOAT16": 16,
    "INT16": 16,
    "UINT16": 16,
    "FLOAT32": 32,
    "INT32": 32,
    "UINT32": 32,
    "FLOAT64": 64,
    "INT64": 64,
    "UINT64": 64,
    "COMPLEX64": 64,
    "COMPLEX128": 128,
}
_CONTROL_FLOW = frozenset(
    "IF WHILE CALL STABLEHLO_WHILE STABLEHLO_CASE STABLEHLO_COMPOSITE".split()
)
_STATE = frozenset(
    "CALL_ONCE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT "
    "HASHTABLE_SIZE".split()
)


@dataclass(frozen=True)
class TfliteTensor:
    """One tensor of the subgraph.

    Attributes:
        name: Unique in the file and stable: a repeated name gets a number, an empty one the
            tensor's index.
        dtype: As the schema names it: `INT8`, `FLOAT32`, ...
        shape: Without unknown dimensions unless the tensor is constant.
        buffer: Index of the buffer that holds its constant; of no meaning otherwise.
        constant: Whether its value is in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    buffer: int
    constant: bool

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Size in memory; sub-byte types are packed."""
        return -(-self.elements * _BITS[self.dtype] // 8)


@dataclass(frozen=True)
class TfliteOperator:
    """One operator, in the file's (execution) order.

    Attributes:
        op: As the schema names it: `CONV_2D`, ...; for a custom operator its own name.
        inputs: Indices of tensors, NO_TENSOR where an optional one is absent.
        outputs: Indices of tensors.
        table: The schema's lazy `Operator`, for its options.
    """

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    table: Any


@dataclass(frozen=True)
class TfliteFile:
    """A model of one subgraph with fixed shapes and no state.

    Attributes:
        name: The file's name without its ending.
        buffer_bytes: Size of each constant buffer.
        data: The mapped bytes.
        table: The schema's lazy `Model`.
    """

    path: Path
    name: str
    tensors: tuple[TfliteTensor, ...]
    operators: tuple[TfliteOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    buffer_bytes: tuple[int, ...]
    data: mmap.mmap
    table: Any

    def names(self, tensors: Iterable[int]) -> tuple[str, ...]:
        """Names of tensors, given their indices."""
        return tuple(self.tensors[t].name for t in tensors)

    def constant(self, buffer: int) -> memoryview:
        """The bytes of a buffer, without a copy."""
        table = self.table.Buffers(buffer)
        if table.Offset() > 1:
            return memoryview(self.data)[table.Offset() : table.Offset() + table.Size()]
        return memoryview(b"" if table.DataIsNone() else table.DataAsNumpy())


def is_tflite(path: Path) -> bool:
    """Whether the content, or else the name, says that a file is meant as .tflite."""
    try:
        with path.open("rb") as file:
            return file.read(8)[4:] == MAGIC or path.suffix == ".tflite"
    except OSError:
        return path.suffix == ".tflite"


def open_tflite(path: Path) -> TfliteFile:
    """Open and check a .tflite file.

    Raises:
        UserError: The file is missing, truncated or damaged, or holds what cannot be planned:
            several subgraphs, control flow, state, dynamic shapes, weights in other files.
    """
    data = _map(path)
    if data[4:8] != MAGIC:
        raise UserError(
            f"{path}: is not a .tflite model, or its beginning is damaged "
            f"(no {MAGIC.decode()} mark); convert or copy it again"
        )
    with damage_reported(path):
        return _parse(path, data)


@cache
def schema() -> Any:
    """The module of the TensorFlow Lite schema that the runtime ships."""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


@cache
def enum_names(enum: str) -> dict[int, str]:
    """Number to name of an enumeration of the schema."""
    members = vars(getattr(schema(), enum)).items()
    return {value: name for name, value in members if isinstance(value, int)}


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a .tflite model") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory; give the path of a .tflite model") from None
    except ValueError:
        raise UserError(f"{path}: is empty; convert or copy the model again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Offsets that lead nowhere surface as one of many errors; all mean a damaged file."""
    try:
        yield
    except UserError:
        raise
    except (
        struct.error,
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(
            f"{path}: is truncated or damaged ({error or type(error).__name__}); "
            "convert or copy the model again"
        ) from None


def _parse(path: Path, data: mmap.mmap) -> TfliteFile:
    table = schema().Model.GetRootAs(data)
    codes = [_op_name(code, path) for code in _each(table, "OperatorCodes")]
    if table.ExternalBuffersLength() or table.ExternalBufferGroupsLength():
        raise UserError(f"{path}: keeps its weights in other files; export one self-contained file")
    subgraphs = _each(table, "Subgraphs")
    if not subgraphs:
        raise ValueError("no subgraph")
    graph = subgraphs[0]
    operators = []
    for operator in _each(graph, "Operators"):
        operators.append(
            TfliteOperator(
                op=codes[operator.OpcodeIndex()],
                inputs=_ints(operator, "Inputs"),
                outputs=_ints(operator, "Outputs"),
                table=operator,
            )
        )
    if not operators:
        raise UserError(f"{path}: has no operators, so there is nothing to plan")
    _refuse_operators(path, operators)
    if len(subgraphs) > 1:
        names = ", ".join(repr(_text(s.Name()) or f"subgraph {i}") for i, s in enumerate(subgraphs))
        raise UserError(
            f"{path}: has {len(subgraphs)} subgraphs ({names}) and a plan is for one; "
            "export each signature as a model of its own"
        )
    buffer_bytes = tuple(_buffer_bytes(b, len(data)) for b in _each(table, "Buffers"))
    tensors = _tensors(path, graph, operators, buffer_bytes)
    found = TfliteFile(
        path=path,
        name=path.stem,
        tensors=tensors,
        operators=tuple(operators),
        inputs=_ints(graph, "Inputs"),
        outputs=_ints(graph, "Outputs"),
        buffer_bytes=buffer_bytes,
        data=data,
        table=table,
    )
    _check_order(found)
    return found


def _refuse_operators(path: Path, operators: list[TfliteOperator]) -> None:
    for i, operator in enumerate(operators):
        if operator.op in _CONTROL_FLOW:
            raise UserError(
                f"{path}: operator {i} is {operator.op}: control flow runs a varying set of "
                "operators, which no fixed plan covers; export the model without it "
                "(unroll loops, resolve conditions before conversion)"
            )
        if operator.op in _STATE:
            raise UserError(
                f"{path}: operator {i} is {operator.op}: the model keeps state between "
                "inferences, which a pipeline of stages cannot share; export it with its "
                "variables frozen into constants"
            )
        if operator.table.LargeCustomOptionsOffset() > 1:
            raise UserError(
                f"{path}: operator {i} ({operator.op}) keeps its options behind the model, as "
                "custom operators of models beyond 2 GiB may; export a smaller model"
            )
        if operator.op == "edgetpu-custom-op":
            raise UserError(
                f"{path}: is compiled for the Edge TPU already; give the model that "
                "edgetpu_compiler was given"
            )


def _op_name(code: Any, path: Path) -> str:
    # Old files have the code in one byte, new ones in an int that the byte cannot hold.
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = enum_names("BuiltinOperator").get(number)
    if name is None:
        raise UserError(
            f"{path}: has an operator of type {number}, which this version of LiteRT does not "
            "know; the file is damaged or newer than the runtime"
        )
    return (_text(code.CustomCode()) or name) if name == "CUSTOM" else name


def _buffer_bytes(buffer: Any, file_bytes: int) -> int:
    if buffer.Offset() > 1:
        # Weights after the flatbuffer, for files beyond 2 GiB (schema, `Buffer.offset`).
        if buffer.Offset() + buffer.Size() > file_bytes:
            raise ValueError("a weight lies beyond the end of the file")
        return int(buffer.Size())
    # The lazy accessor would believe a length that runs past the end.
    return 0 if buffer.DataIsNone() else len(buffer.DataAsNumpy())


def _tensors(
    path: Path, graph: Any, operators: list[TfliteOperator], buffer_bytes: tuple[int, ...]
) -> tuple[TfliteTensor, ...]:
    tables = _each(graph, "Tensors")
    written = {t for operator in operators for t in operator.outputs}
    written |= set(_ints(graph, "Inputs"))
    # Files from before `has_rank` leave it false everywhere; then no shape means a scalar.
    tells_rank = any(table.HasRank() for table in tables)
    taken: set[str] = set()
    tensors = []
    for i, table in enumerate(tables):
        name = _unique(_text(table.Name()) or f"tensor_{i}", taken)
        shape = _ints(table, "Shape")
        dtype = enum_names("TensorType").get(table.Type(), str(table.Type()))
        has_data = buffer_bytes[table.Buffer()] > 0
        constant = i not in written and (has_data or 0 in shape)
        where = f"{path}: tensor {name!r}"
        if table.IsVariable() or dtype in ("RESOURCE", "VARIANT"):
            raise UserError(
                f"{where} keeps state between inferences, which a pipeline of stages cannot "
                "share; export the model with its state as inputs and outputs"
            )
        if not constant:
            unknown_rank = tells_rank and not table.HasRank() and not shape
            if unknown_rank or min((1, *shape, *_ints(table, "ShapeSignature"))) <= 0:
                given = list(_ints(table, "ShapeSignature") or shape)
                raise UserError(
                    f"{where} has a dynamic shape ({given if given else 'unknown rank'}), so its "
                    "cost is not known before it runs; convert the model again with a fixed input "
                    "shape, in Keras keras.Input(batch_shape=(1, ...))"
                )
            if dtype not in _BITS:
                raise UserError(
                    f"{where} is of type {dtype}, which has no fixed size; take that part out of "
                    "the model"
                )
            if prod(shape) >= LARGEST_COUNT:
                raise ValueError(f"tensor {name!r} has {prod(shape)} elements")
        tensors.append(TfliteTensor(name, dtype, shape, table.Buffer(), constant))
    return tuple(tensors)


def _check_order(file: TfliteFile) -> None:
    """Every tensor is written once, and before it is read."""
    n = len(file.tensors)
    for t in (*file.inputs, *file.outputs):
        if not 0 <= t < n:
            raise ValueError(f"tensor {t} of {n} is an input or output")
    known = {t for t, tensor in enumerate(file.tensors) if tensor.constant} | set(file.inputs)
    for i, operator in enumerate(file.operators):
        for t in operator.inputs:
            if t != NO_TENSOR and t not in known:
                raise ValueError(f"operator {i} ({operator.op}) reads tensor {t}, not yet written")
        if not operator.outputs:
            raise ValueError(f"operator {i} ({operator.op}) writes no tensor")
        for t in operator.outputs:
            if not 0 <= t < n or t in known:
                raise ValueError(f"operator {i} ({operator.op}) may not write tensor {t}")
            known.add(t)
    for t in file.outputs:
        if t not in known:
            raise ValueError(f"output tensor {t} is never written")


def _unique(name: str, taken: set[str]) -> str:
    unique, k = name, 0
    while unique in taken:
        k += 1
        unique = f"{name}_{k}"
    taken.add(unique)
    return unique


def _each(owner: Any, field: str) -> list[Any]:
    """All elements of a vector of tables, whose length is checked against the file's."""
    n = getattr(owner, f"{field}Length")()
    if n * 4 > len(owner._tab.Bytes):
        raise ValueError(f"{n} {field.lower()} do not fit the file")
    return [getattr(owner, field)(i) for i in range(n)]


def _ints(owner: Any, field: str) -> tuple[int, ...]:
    if getattr(owner, f"{field}IsNone")():
        return ()
    return tuple(getattr(owner, f"{field}AsNumpy")().tolist())


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode(errors="replace")
