"""What the components that work on shards do, as plain functions.

A shard is a range of a graph set, written "START-STOP" with STOP left out of it. It says nothing
of the size of the set: when the set grows, the shards that are done stay what they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from coralline.errors import UserError
from coralline.files import make_folder, replacing

MOST_SHARDS = 100
"""KFP hands a step that collects two artifacts of each shard all their descriptions in one
argument, which Linux limits to 128 KiB."""


def cut(count: int, size: int) -> list[str]:
    """The shards of `count` graphs, `size` graphs each; the last may be smaller.

    Raises:
        UserError: A number is below 1, or the shards are too many.
    """
    if count < 1 or size < 1:
        raise UserError(f"{count} graphs in shards of {size}: both must be 1 or more")
    n = -(-count // size)
    if n > MOST_SHARDS:
        raise UserError(
            f"{count} graphs in shards of {size} are {n} shards; {MOST_SHARDS} at most: make them "
            f"of {-(-count // MOST_SHARDS)} graphs or more"
        )
    return [f"{start}-{min(start + size, count)}" for start in range(0, count, size)]


def generate_shard(family: str, nodes: int, seed: int, shard: str, folder: Path) -> None:
    """Write the graphs of a shard to `folder/<shard>.jsonl`."""
    from coralline.graph.graph_set import write_graph_set
    from coralline.graph.synthetic import generate

    start, stop = (int(part) for part in shard.split("-"))
    graphs = generate(family, stop - start, nodes, seed, start=start)
    write_graph_set(make_folder(folder) / f"{shard}.jsonl", graphs)


def shard_file(folder: Path) -> Path:
    """The one file of a shard: of graphs or of labels."""
    [file] = folder.glob("*.jsonl")
    return file


def join(graphs: Sequence[Path], labels: Sequence[Path], graph_set: Path, out: Path) -> None:
    """Make one graph set and one folder of labels of all shards, in whatever order they come.

    Args:
        graphs: Folder of each shard's graphs.
        labels: Of its labels.
        graph_set: To be written.
        out: Folder for the labels, likewise.

    Raises:
        UserError: The shards of graphs and labels are not the same, or do not make a whole set.
    """
    from training.labels import shard_name

    found = sorted(map(shard_file, graphs), key=_range)
    solved = sorted(map(shard_file, labels), key=_range)
    names = [file.name for file in found]
    ranges = [_range(file) for file in found]
    starts = [0, *(stop for _, stop in ranges)]
    if names != [file.name for file in solved] or [start for start, _ in ranges] != starts[:-1]:
        raise UserError(
            f"shards of graphs {', '.join(names)} and of labels "
            f"{', '.join(file.name for file in solved)} make no whole set"
        )
    with replacing(graph_set) as temporary, temporary.open("wb") as file:
        for part in found:
            file.write(part.read_bytes())
    make_folder(out)
    for i, part in enumerate(solved):
        shutil.copyfile(part, out / shard_name(i, len(solved)))


def _range(file: Path) -> tuple[int, int]:
    start, stop = file.stem.split("-")
    return int(start), int(stop)
