from __future__ import annotations

import json
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from coralline.devices import check
from coralline.devices.check import Figure, Prediction, published_error, summarise
from coralline.devices.model import DeviceModel, device_names, load_device
from coralline.errors import UserError
from training import devices_cli


def figure(value: float, *, fitted: bool = False, quantity: str = "latency_ms") -> Figure:
    return Figure("edgetpu-usb", quantity, "vgg16", 224, 1, value, "here", fitted)  # type: ignore[arg-type]


def test_the_label_is_the_median_over_held_out_latencies() -> None:
    result = summarise(
        load_device("edgetpu-usb"),
        [
            Prediction(figure(10.0), 11.0),
            Prediction(figure(10.0), 7.0),
            Prediction(figure(10.0), 12.0),
            Prediction(figure(10.0, fitted=True), 10.5),
            Prediction(figure(10.0, quantity="off_chip_mib"), 100.0),
        ],
    )
    assert result.median_held_out == pytest.approx(0.2)
    assert result.median_fitted == pytest.approx(0.05)
    assert (result.n_held_out, result.n_fitted) == (3, 1)
    assert "edgetpu-usb (simulated): median error 20 % over 3 published" in result.label


@pytest.mark.parametrize("name", ["edgetpu-usb", "edgetpu-pcie"])
def test_the_stored_comparison_belongs_to_the_shipped_device(name: str) -> None:
    result = published_error(name)
    assert [p.figure for p in result.predictions] == list(check.published_figures(name))
    assert result.n_held_out >= 6 and result.n_fitted >= 1
    assert result.median_held_out is not None and 0 < result.median_held_out < 1
    assert all(p.figure.source.startswith("https://") for p in result.predictions)


def test_a_device_that_changed_needs_a_new_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(name: str) -> DeviceModel:
        return replace(load_device(name), stream_ms_per_mib=9.0)

    monkeypatch.setattr(check, "load_device", changed)
    with pytest.raises(UserError, match="run `coralline devices check --write`"):
        published_error("edgetpu-usb")


def test_a_device_without_published_figures_says_so() -> None:
    board = replace(load_device("edgetpu-usb"), name="my-board")
    assert (
        summarise(board, []).label == "my-board (simulated): no published latency to compare with"
    )
    assert published_error("host-cpu").label == "host-cpu: no published latency to compare with"


def test_list_shows_each_device_with_its_label() -> None:
    app = typer.Typer()
    devices_cli.add(app)
    result = CliRunner().invoke(app, ["devices", "list"])
    assert result.exit_code == 0
    for name in device_names():
        assert published_error(name).label in result.stdout
    data = json.loads(CliRunner().invoke(app, ["devices", "list", "--json"]).stdout)
    errors = {d["name"]: d["median_error_held_out"] for d in data["devices"]}
    assert errors["edgetpu-usb"] == published_error("edgetpu-usb").median_held_out
