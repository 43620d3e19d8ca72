"""A graph set: many graphs in one file, a `coralline.graph/v1` object on each line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TextIO

from coralline.errors import UserError, parse_json
from coralline.files import replacing
from coralline.graph.compute_graph import ComputeGraph
from coralline.graph.json_format import from_json, to_json


def write_graph_set(path: Path, graphs: Iterable[ComputeGraph]) -> int:
    """Write the graphs, whole or not at all; returns how many.

    Raises:
        UserError: The file cannot be written.
    """
    n = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for graph in graphs:
            file.write(json.dumps(to_json(graph)) + "\n")
            n += 1
    return n


def read_graph_set(path: Path, start: int = 0, stop: int | None = None) -> list[ComputeGraph]:
    """The graphs on lines `start` to `stop` - 1, counted from 0; without `stop` to the end.

    Raises:
        UserError: The file is missing or a line is no graph; names file and line.
    """
    graphs = []
    with _open(path) as file:
        for number, line in enumerate(islice(file, start, stop), start + 1):
            where = f"{path}: line {number}"
            data = parse_json(line, where)
            try:
                graphs.append(from_json(data))
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
    return graphs


def count_graphs(path: Path) -> int:
    """The number of lines of a graph set.

    Raises:
        UserError: The file is missing or empty.
    """
    with _open(path) as file:
        n = sum(1 for _ in file)
    if n == 0:
        raise UserError(f"{path}: holds no graphs; make some with `coralline generate`")
    return n


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8") as file:
            yield file
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not text; give the path of a graph set") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of a graph set") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
