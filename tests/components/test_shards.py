"""Shards: cut, made apart, and joined again in any order."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.shards import MOST_SHARDS, cut, generate_shard, join, shard_file
from coralline.errors import UserError
from coralline.graph import synthetic
from coralline.graph.graph_set import read_graph_set, write_graph_set
from training.labels import LabelOptions, label_graphs, read_labels, solve_labels

FAST = LabelOptions(n_stages=2, planner="topo-dp")


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_shards_cover_the_set_and_stay_when_it_grows(count: int, size: int) -> None:
    if count > MOST_SHARDS * size:
        with pytest.raises(UserError, match="100 at most: make them of") as raised:
            cut(count, size)
        assert len(cut(count, int(str(raised.value).split()[-4]))) <= MOST_SHARDS
        return
    shards = cut(count, size)
    numbers = [int(part) for shard in shards for part in shard.split("-")]
    assert numbers[0] == 0
    assert numbers[1:-1:2] == numbers[2::2]
    assert numbers[-1] == count
    grown = cut(min(count + size, MOST_SHARDS * size), size)
    assert grown[: len(shards) - 1] == shards[:-1]


@pytest.mark.parametrize(("count", "size"), [(0, 5), (5, 0), (5, -1)])
def test_no_graphs_and_no_size_are_refused(count: int, size: int) -> None:
    with pytest.raises(UserError, match="both must be 1 or more"):
        cut(count, size)


def made(folder: Path, count: int, size: int) -> tuple[list[Path], list[Path]]:
    """Folders of the graphs and of the labels of each shard, as the steps leave them."""
    graphs, labels = [], []
    for shard in cut(count, size):
        graphs.append(folder / "graphs" / shard)
        labels.append(folder / "labels" / shard)
        generate_shard("branch", 8, 3, shard, graphs[-1])
        file = shard_file(graphs[-1])
        label_graphs(read_graph_set(file), labels[-1] / file.name, FAST)
    return graphs, labels


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 24), st.integers(1, 25), st.randoms(use_true_random=False))
def test_shards_joined_in_any_order_are_the_set_labelled_at_once(
    tmp_path_factory: pytest.TempPathFactory, count: int, size: int, order: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    graphs, labels = made(folder, count, size)
    order.shuffle(graphs)
    order.shuffle(labels)
    join(graphs, labels, folder / "graphs.jsonl", folder / "joined")

    whole = folder / "whole.jsonl"
    write_graph_set(whole, synthetic.generate("branch", count, 8, 3))
    assert (folder / "graphs.jsonl").read_bytes() == whole.read_bytes()
    solve_labels(whole, folder / "at-once", 0, 1, FAST)
    apart, at_once = read_labels(folder / "joined"), read_labels(folder / "at-once")
    assert [plan.graph_digest for plan in apart] == [plan.graph_digest for plan in at_once]
    assert [plan.stage for plan in apart] == [plan.stage for plan in at_once]


def test_a_shard_made_twice_is_the_same(tmp_path: Path) -> None:
    for name in ("once", "again"):
        generate_shard("cell", 20, 0, "5-12", tmp_path / name)
    assert shard_file(tmp_path / "once").read_bytes() == shard_file(tmp_path / "again").read_bytes()
    names = [
        json.loads(line)["name"] for line in shard_file(tmp_path / "once").read_text().splitlines()
    ]
    assert names == [f"cell-20-s0-{i}" for i in range(5, 12)]


@pytest.mark.parametrize("lost", ["graphs", "labels", "both"])
def test_a_lost_shard_is_not_joined_over(lost: str, tmp_path: Path) -> None:
    graphs, labels = made(tmp_path, 9, 3)
    if lost != "labels":
        del graphs[1]
    if lost != "graphs":
        del labels[1]
    with pytest.raises(UserError, match="make no whole set"):
        join(graphs, labels, tmp_path / "graphs.jsonl", tmp_path / "joined")
    assert not (tmp_path / "graphs.jsonl").exists()
