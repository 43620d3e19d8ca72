"""ComputeGraph and what makes one."""

from pathlib import Path

from coralline.graph.compute_graph import ComputeGraph

__all__ = ["ComputeGraph", "read_graph"]


def read_graph(path: Path) -> ComputeGraph:
    """Read a `.tflite` model or a graph JSON file, told apart by their content.

    Raises:
        UserError: The file is missing or is neither.
    """
    from coralline.graph.tflite_file import is_tflite

    if is_tflite(path):
        from coralline.graph.tflite_reader import read_tflite

        return read_tflite(path)
    from coralline.graph.json_format import read_json

    return read_json(path)
