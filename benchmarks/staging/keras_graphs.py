"""Graphs of the zoo's models, made in a process of their own.

TensorFlow's threads and its hundreds of megabytes stay out of the process that times planners.
A model that was converted before comes from the model cache, so an interrupted run goes on where
it stopped.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from coralline.errors import DeviceError
from coralline.graph import read_graph
from coralline.graph.compute_graph import ComputeGraph
from coralline.graph.json_format import write_json

Model = tuple[str, str]
"""Kind of graph, `layers` or `operators`, and name of the model."""


def keras_graphs(models: Iterable[Model], folder: Path) -> dict[Model, ComputeGraph]:
    """The Keras layer graphs and the int8 .tflite operator graphs of models of the zoo.

    Args:
        folder: Keeps the graphs as JSON.

    Raises:
        DeviceError: They could not be made.
    """
    paths = {model: _path(folder, model) for model in models}
    missing = ["/".join(model) for model, path in paths.items() if not path.is_file()]
    if missing:
        command = [sys.executable, "-m", __name__, str(folder), *missing]
        if subprocess.run(command, stdout=sys.stderr.fileno(), check=False).returncode:
            raise DeviceError("the graphs of the Keras models could not be made; see above")
    return {model: read_graph(path) for model, path in paths.items()}


def _path(folder: Path, model: Model) -> Path:
    return folder / f"{model[1]}.{model[0]}.json"


def _make(folder: Path, models: list[Model]) -> None:
    from training.keras_graph import keras_graph
    from training.zoo import build_model

    for i, (kind, name) in enumerate(models):
        print(f"graph {i + 1} of {len(models)}: {kind} of {name}", file=sys.stderr)
        if kind == "layers":
            graph = keras_graph(name)
        else:
            with tempfile.TemporaryDirectory() as models_folder:
                graph = read_graph(build_model(name, Path(models_folder)))
        write_json(graph, _path(folder, (kind, name)))


if __name__ == "__main__":
    _make(Path(sys.argv[1]), [(kind, name) for kind, name in (m.split("/") for m in sys.argv[2:])])
