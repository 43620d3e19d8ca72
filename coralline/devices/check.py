"""Published measurements, and how far the device models are from them.

The predictions need models that only TensorFlow builds, so `coralline devices check --write`
(training.device_check) makes them and they are kept here, beside the device models: whoever
shows a simulated number shows `published_error` with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any, Literal

import yaml

from coralline.devices.model import DeviceModel, load_device
from coralline.errors import UserError

SCHEMA = "coralline.devicecheck/v1"

Quantity = Literal["latency_ms", "off_chip_mib"]


@dataclass(frozen=True)
class Figure:
    """One published number.

    Attributes:
        device: Name of the device model that stands for the measured device.
        quantity: `latency_ms`, one inference through all stages, warm; or `off_chip_mib`, what
            is streamed for one inference, summed over the stages.
        model: A name of the zoo, or `sparta` for that study's synthetic network.
        input_size: Side of the square input in pixels.
        stages: Devices in a row, with the compiler's own split.
        value: In the quantity's unit.
        source: Where it was published.
        fitted: Whether constants of the device model were fitted to it.
    """

    device: str
    quantity: Quantity
    model: str
    input_size: int
    stages: int
    value: float
    source: str
    fitted: bool


@dataclass(frozen=True)
class Prediction:
    """What the device model says for a figure, in its unit (simulated)."""

    figure: Figure
    predicted: float

    @property
    def relative_error(self) -> float:
        """Signed: positive when the model is too slow (or streams too much)."""
        return self.predicted / self.figure.value - 1


@dataclass(frozen=True)
class PublishedError:
    """The honest label of a device model: how far it is from published latencies.

    Attributes:
        device: Name of the device model.
        simulated: As the device model says.
        median_fitted, median_held_out: Median absolute relative error (0.1 is 10 %) over the
            latencies that constants were fitted to, and over those never looked at in fitting.
        n_fitted, n_held_out: How many latencies each median is over.
        predictions: All of them, of every quantity.
    """

    device: str
    simulated: bool
    median_fitted: float | None
    median_held_out: float | None
    n_fitted: int
    n_held_out: int
    predictions: tuple[Prediction, ...]

    @property
    def label(self) -> str:
        """One sentence for people."""
        name = f"{self.device} (simulated)" if self.simulated else self.device
        if self.median_held_out is None:
            return f"{name}: no published latency to compare with"
        return (
            f"{name}: median error {100 * self.median_held_out:.0f} % over "
            f"{self.n_held_out} published latencies that no constant was fitted to"
        )


def summarise(device: DeviceModel, predictions: Sequence[Prediction]) -> PublishedError:
    """Medians over a device's predictions."""
    latencies = [p for p in predictions if p.figure.quantity == "latency_ms"]
    errors = {
        fitted: [abs(p.relative_error) for p in latencies if p.figure.fitted == fitted]
        for fitted in (True, False)
    }
    return PublishedError(
        device=device.name,
        simulated=device.simulated,
        median_fitted=median(errors[True]) if errors[True] else None,
        median_held_out=median(errors[False]) if errors[False] else None,
        n_fitted=len(errors[True]),
        n_held_out=len(errors[False]),
        predictions=tuple(predictions),
    )


def published_error(device_name: str) -> PublishedError:
    """The stored comparison of a shipped device model; without predictions where nothing fits.

    Raises:
        UserError: The device model has changed since the comparison was made.
    """
    device = load_device(device_name)
    data = json.loads(_check_file().read_text(encoding="utf-8"))
    stored = data["devices"].get(device_name)
    if stored is None:
        return summarise(device, ())
    if stored["device_digest"] != device.digest:
        raise UserError(
            f"device {device_name!r} has changed since it was compared with published figures; "
            "run `coralline devices check --write`"
        )
    return summarise(
        device,
        [Prediction(Figure(**p["figure"]), p["predicted"]) for p in stored["predictions"]],
    )


def store(results: Sequence[PublishedError]) -> Path:
    """Keep comparisons in the package, in place of the ones before."""
    from coralline.files import write_text

    devices = {
        result.device: {
            "device_digest": load_device(result.device).digest,
            "predictions": [asdict(p) for p in result.predictions],
        }
        for result in results
    }
    path = Path(str(_check_file()))
    write_text(path, json.dumps({"schema": SCHEMA, "devices": devices}, indent=1) + "\n")
    return path


@cache
def published_figures(device_name: str) -> tuple[Figure, ...]:
    """The published figures of a device."""
    data = _published()
    return tuple(
        Figure(**{**figure, "source": data["sources"][figure["source"]]})
        for figure in data["figures"]
        if figure["device"] == device_name
    )


def remarks() -> tuple[dict[str, str], dict[str, str]]:
    """Notes by model, and the public figures left out with the reason."""
    data = _published()
    return data["notes"], data["left_out"]


@cache
def _published() -> Any:
    text = (_figures() / "published.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def _figures() -> Any:
    return resources.files("coralline.devices") / "figures"


def _check_file() -> Any:
    return _figures() / "check.json"
