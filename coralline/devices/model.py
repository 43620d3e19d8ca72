"""DeviceModel: what an operator, a transfer and a byte of parameters cost on a device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from coralline.errors import UserError, read_text
from coralline.graph.compute_graph import ComputeGraph

SCHEMA = "coralline.device/v1"
MIB = 2**20

KINDS = ("conv", "depthwise", "dense", "elementwise", "other")
"""Operator kinds that a device model prices apart."""

_KIND_OF_OP = {
    # TFLite builtin operators.
    "CONV_2D": "conv",
    "CONV_3D": "conv",
    "TRANSPOSE_CONV": "conv",
    "DEPTHWISE_CONV_2D": "depthwise",
    "FULLY_CONNECTED": "dense",
    "BATCH_MATMUL": "dense",
    # Keras layers.
    "Conv1D": "conv",
    "Conv2D": "conv",
    "Conv2DTranspose": "conv",
    "SeparableConv2D": "conv",
    "DepthwiseConv2D": "depthwise",
    "Dense": "dense",
    "EinsumDense": "dense",
    "MultiHeadAttention": "dense",
    # Synthetic graphs carry no operator type; their MACs stand for convolutions.
    "": "conv",
}
_MOVES_ONLY = frozenset(
    [
        "RESHAPE",
        "SQUEEZE",
        "EXPAND_DIMS",
        "Reshape",
        "Flatten",
        "InputLayer",
        "Dropout",
        "Input",
        "source",
        "sink",
    ]
)


def operator_kind(op: str) -> str:
    """The kind, one of KINDS, of a TFLite builtin operator or Keras layer type."""
    if op in _MOVES_ONLY:
        return "other"
    return _KIND_OF_OP.get(op, "elementwise")


@dataclass(frozen=True)
class DeviceModel:
    """Cost constants of one device. Times in ms, sizes in bytes, power in watts.

    Attributes:
        name: As given to `--device`.
        description: One line for people.
        simulated: Whether numbers from this model stand in for hardware that is absent here.
        macs_per_ms: For each kind in KINDS, multiply-accumulates (for elementwise and other:
            output elements) per ms.
        op_overhead_ms: Fixed cost of one operator.
        stage_overhead_ms: Fixed cost of one inference of one stage.
        parameter_cache_bytes: Parameters beyond it are streamed on every inference.
        cache_by_activation: Rising (activation bytes, cache bytes) pairs: the cache that is left
            for parameters beside activations of that size; linear between them. Empty where
            it is not known.
        stream_ms_per_mib: Cost of one MiB of parameters beyond the cache.
        in_ms_per_mib: Host to device.
        out_ms_per_mib: Device to host.
        active_w: Power while a stage works.
        idle_w: Power while a stage waits.
        sources: For each constant, where it comes from.
    """

    name: str
    description: str
    simulated: bool
    macs_per_ms: Mapping[str, float]
    op_overhead_ms: float
    stage_overhead_ms: float
    parameter_cache_bytes: int
    stream_ms_per_mib: float
    in_ms_per_mib: float
    out_ms_per_mib: float
    active_w: float
    idle_w: float
    sources: Mapping[str, str]
    cache_by_activation: tuple[tuple[int, int], ...] = ()

    def cache_bytes(self, activation_bytes: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64, the shape of `activation_bytes`: the cache beside activations of that size.

        Raises:
            UserError: The model does not say how the cache depends on activations.
        """
        if not self.cache_by_activation:
            raise UserError(
                f"device {self.name!r} does not say how its cache depends on activations "
                "(cache_by_activation); plan with a fixed cache"
            )
        activations, caches = np.array(self.cache_by_activation, float).T
        return np.asarray(np.interp(activation_bytes, activations, caches))

    def node_ms(self, graph: ComputeGraph) -> NDArray[np.float64]:
        """float64 (V,): compute time of each operator, in ms.

        A node's own `compute_ms` wins over the model. An operator without MACs was folded into
        another or only renames its input: it costs nothing.
        """
        rate = np.array([self.macs_per_ms[operator_kind(op)] for op in graph.ops])
        modelled = np.where(graph.macs > 0, graph.macs / rate + self.op_overhead_ms, 0.0)
        return np.where(np.isnan(graph.compute_ms), modelled, graph.compute_ms)

    @property
    def digest(self) -> str:
        """SHA-256 over the constants: plans and measurements name the model by it."""
        data = {k: v for k, v in self.to_json().items() if k not in ("description", "sources")}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As in a device file, with its schema."""
        data = asdict(self)
        table = [list(pair) for pair in data.pop("cache_by_activation")]
        return {"schema": SCHEMA, **data, **({"cache_by_activation": table} if table else {})}

    @staticmethod
    def from_json(data: Any, where: str = "device") -> DeviceModel:
        """Read what `to_json` wrote or a device file holds.

        Raises:
            UserError: Names the field that is missing, unknown or out of range.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise UserError(f"{where}: is not a device model; its `schema` must be {SCHEMA}")
        names = {field.name for field in fields(DeviceModel)} - {"cache_by_activation"}
        given = set(data) - {"schema", "cache_by_activation"}
        if given != names:
            missing, unknown = sorted(names - given), sorted(given - names)
            raise UserError(
                f"{where}: fields missing: {', '.join(missing) or 'none'}; "
                f"unknown: {', '.join(unknown) or 'none'}"
            )
        values = {k: data[k] for k in names}
        rates = values["macs_per_ms"]
        if not isinstance(rates, dict) or set(rates) != set(KINDS):
            raise UserError(f"{where}: macs_per_ms needs a rate for each of {', '.join(KINDS)}")
        numbers = {f"macs_per_ms.{k}": v for k, v in rates.items()}
        plain = {"name", "description", "simulated", "macs_per_ms", "sources"}
        numbers |= {k: values[k] for k in names - plain}
        for key, value in sorted(numbers.items()):
            lowest = "above 0" if key.startswith("macs_per_ms") else "0 or more"
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not np.isfinite(value)
                or value < 0
                or (lowest == "above 0" and value == 0)
            ):
                raise UserError(f"{where}: {key} is {value!r}; it must be a number {lowest}")
        table = data.get("cache_by_activation", [])
        return DeviceModel(**values, cache_by_activation=_checked_table(table, where))


def _checked_table(table: Any, where: str) -> tuple[tuple[int, int], ...]:
    whole = isinstance(table, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(x) is int and x >= 0 for x in pair)
        for pair in table
    )
    pairs = [tuple(pair) for pair in table] if whole else []
    ordered = all(a[0] < b[0] and a[1] >= b[1] for a, b in pairwise(pairs))
    if not whole or not ordered:
        raise UserError(
            f"{where}: cache_by_activation must be pairs [activation bytes, cache bytes] of whole "
            "numbers, rising in the first and not rising in the second"
        )
    return tuple(pairs)


@cache
def load_device(name: str) -> DeviceModel:
    """A device model by the name of a shipped one, or by the path of a YAML file.

    Raises:
        UserError: No such device, or the file breaks the schema.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        text, where = read_text(path, "a device model file"), str(path)
    elif name in device_names():
        text, where = (_data() / f"{name}.yaml").read_text(encoding="utf-8"), name
    else:
        raise UserError(
            f"device {name!r} is not known; choose {', '.join(device_names())} "
            "or give the path of a device file (.yaml)"
        )
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: is not YAML ({error})".replace("\n", " ")) from None
    return DeviceModel.from_json(data, where)


def load_devices(names: str) -> DeviceModel | tuple[DeviceModel, ...]:
    """One device model, or the models of a chain from names or files with commas between them.

    Raises:
        UserError: As `load_device`.
    """
    models = tuple(load_device(name.strip()) for name in names.split(","))
    return models[0] if len(models) == 1 else models


def device_names() -> tuple[str, ...]:
    """Names of the shipped device models."""
    return tuple(sorted(p.name[:-5] for p in _data().iterdir() if p.name.endswith(".yaml")))


def _data() -> Any:
    return resources.files("coralline.devices") / "data"
