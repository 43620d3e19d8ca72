"""Operator times of a real model, and the device model fitted to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from coralline.cli.profile import add
from coralline.devices.model import DeviceModel, load_device
from coralline.errors import UserError
from coralline.graph import read_graph
from coralline.runtime.profile import Profile, fit_device, profile_model

INT8 = Path(__file__).parents[1] / "data" / "small_int8.tflite"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return profile_model(INT8, repetitions=20)


def test_every_operator_is_timed(profile: Profile) -> None:
    plain = read_graph(INT8)
    assert profile.graph.node_names == plain.node_names
    assert (profile.graph.compute_ms > 0).all()
    assert profile.whole_ms > 0 and profile.handoff_ms > 0
    assert profile.in_ms_per_mib > 0 and profile.out_ms_per_mib > 0
    # A measured time wins over whatever the device model would say.
    told = load_device("edgetpu-usb").node_ms(profile.graph)
    np.testing.assert_array_equal(told, profile.graph.compute_ms)


def test_fitted_rates_give_back_the_times_they_were_made_from(profile: Profile) -> None:
    rates = {"conv": 2e5, "depthwise": 3e4, "dense": 1e4, "elementwise": 5e3, "other": 5e3}
    truth = replace(load_device("host-cpu"), macs_per_ms=rates, op_overhead_ms=0.0)
    graph = read_graph(INT8)
    made = replace(profile, graph=graph.with_compute_ms(truth.node_ms(graph)))
    fitted = fit_device([made])
    # The overhead is taken from the smallest operator, so the total stays within it.
    slack = fitted.op_overhead_ms * graph.n_nodes
    assert fitted.node_ms(graph).sum() == pytest.approx(truth.node_ms(graph).sum(), abs=slack)
    assert fitted.macs_per_ms["conv"] == pytest.approx(2e5, rel=0.2)
    assert "not seen, so as elementwise: other" in fitted.sources["macs_per_ms"]


def test_fitted_device_is_a_device_model(profile: Profile) -> None:
    device = fit_device([profile])
    assert DeviceModel.from_json(device.to_json()) == device
    assert not device.simulated


def test_the_verb(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.callback()(lambda: None)
    add(app)
    graph, device = tmp_path / "g.json", tmp_path / "d.yaml"
    said = CliRunner().invoke(
        app,
        f"profile {INT8} -n 5 --json --out {graph} --device-out {device}",
    )
    assert said.exit_code == 0
    row = json.loads(said.stdout)["models"][0]
    assert row["predicted_over_measured"] == pytest.approx(
        row["operators_sum_ms"] / row["whole_ms"]
    )
    assert (read_graph(graph).compute_ms > 0).all()
    assert load_device(str(device)).name == "host-cpu"
    two = CliRunner().invoke(app, ["profile", str(INT8), str(INT8), "--out", str(graph)])
    assert isinstance(two.exception, UserError)
