from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from coralline.devices.model import (
    KINDS,
    DeviceModel,
    device_names,
    load_device,
    operator_kind,
)
from coralline.errors import UserError
from coralline.graph.compute_graph import ComputeGraph


@pytest.mark.parametrize("name", ["edgetpu-usb", "edgetpu-pcie"])
def test_every_constant_of_a_shipped_model_has_a_source(name: str) -> None:
    device = load_device(name)
    assert device.simulated
    without = {"name", "description", "simulated", "sources", "macs_per_ms"}
    constants = {field.name for field in fields(DeviceModel)} - without
    constants |= {f"macs_per_ms.{kind}" for kind in KINDS}
    assert set(device.sources) == constants
    for source in device.sources.values():
        assert source


def test_compute_time_by_kind() -> None:
    device = replace(
        load_device("edgetpu-usb"),
        macs_per_ms={"conv": 100, "depthwise": 50, "dense": 20, "elementwise": 10, "other": 1000},
        op_overhead_ms=0.5,
    )
    ops = ["CONV_2D", "DepthwiseConv2D", "Dense", "ADD", "RESHAPE", "", "BatchNormalization"]
    graph = ComputeGraph.build(
        "g",
        ops=ops,
        param_bytes=[0] * 7,
        macs=[1000, 1000, 1000, 1000, 1000, 1000, 0],
        compute_ms=[np.nan, np.nan, np.nan, np.nan, np.nan, 7.0, np.nan],
        tensor_bytes=[0] * 7,
        tensor_producer=range(7),
        consumers=[[] for _ in ops],
    )
    # A node's own time wins, and an operator without MACs was folded into another.
    assert device.node_ms(graph).tolist() == [10.5, 20.5, 50.5, 100.5, 1.5, 7.0, 0.0]
    assert operator_kind("HARD_SWISH") == "elementwise"


def test_the_digest_is_of_the_constants_alone() -> None:
    device = load_device("edgetpu-usb")
    assert replace(device, description="x", sources={}).digest == device.digest
    assert replace(device, stream_ms_per_mib=1.0).digest != device.digest


def test_a_device_file_round_trips(tmp_path: Path) -> None:
    device = load_device("edgetpu-pcie")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(device.to_json()))
    assert load_device(str(path)) == device


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "x"}, "its `schema` must be coralline.device/v1"),
        ({"idle_w": -1}, "idle_w is -1; it must be a number 0 or more"),
        ({"idle_w": "low"}, "idle_w is 'low'"),
        ({"active_w": float("nan")}, "active_w is nan"),
        ({"surprise": 1}, "fields missing: none; unknown: surprise"),
        ({"macs_per_ms": {"conv": 1}}, "macs_per_ms needs a rate for each of conv, depthwise"),
        (
            {"macs_per_ms": dict.fromkeys(KINDS, 0)},
            r"macs_per_ms.conv is 0; it must be a number above 0",
        ),
    ],
)
def test_a_wrong_device_file_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**load_device("edgetpu-usb").to_json(), **change}))
    with pytest.raises(UserError, match=message) as error:
        load_device(str(path))
    assert str(path) in str(error.value)


def test_an_unknown_device_is_refused_with_the_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"device 'abacus' is not known; choose .*edgetpu-usb"):
        load_device("abacus")
    assert "edgetpu-pcie" in device_names()
    path = tmp_path / "broken.yaml"
    path.write_text("{")
    with pytest.raises(UserError, match="is not YAML"):
        load_device(str(path))
