"""Seeded synthetic graphs, generated in batches of arrays.

Eight families:

- `respect`: the training graphs of RESPECT (Yin et al., DAC 2023), after the generator in the
  authors' repository (Yu-Maryland/RESPECT, dataset/dataset_generator.py): V = 30 nodes on
  V/3 to 5V/6 levels (10 to 25), at most 2 to 6 inputs a node, the same number of graphs for
  each limit, parameter weights uniform from 0. Inputs come from anywhere above.
- `branch`: blocks of parallel chains that fork from one node and meet in one, as in Inception
  (Szegedy et al., CVPR 2015) and ResNeXt.
- `skip`: one to three chains side by side with skip connections of every length, as in
  DenseNet (Huang et al., CVPR 2017), U-Net (Ronneberger et al., MICCAI 2015) and feature
  pyramids (Lin et al., CVPR 2017).
- `cell`: repeated cells of five blocks, each adding two transformed earlier states, unused
  states joined at the end: the search space of NASNet (Zoph et al., CVPR 2018).
- `window`: one to three inputs each, from among the last 4 to 12 nodes: wide everywhere and
  local, as the randomly wired networks of Xie et al. (ICCV 2019) are in a ring.
- `tower`: two to four towers side by side, each with its own input, residual connections and
  a rare connection to another tower, joined in one head: two-stream and Siamese networks
  (Simonyan and Zisserman, NIPS 2014; Bromley et al., NIPS 1993).
- `pyramid`: a backbone whose last three to five resolutions are fused from coarse to fine and
  back in turn: feature pyramids (Lin et al., CVPR 2017), PANet (Liu et al., CVPR 2018) and
  BiFPN (Tan et al., CVPR 2020).
- `unetpp`: the triangle of UNet++ (Zhou et al., DLMIA 2018): a cell of convolutions at
  resolution i and column j reads all earlier cells of its resolution and the cell below it.

Every node writes one tensor; all nodes without inputs read the model's input. The costs are
in the proportions of the ten networks that RESPECT evaluates: parameters and MACs of a graph
are drawn as totals and shared out, so that a node of a large graph is a small operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from coralline.errors import UserError
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_NODES = 10_000

PARAM_BYTES = (2 * 2**20, 64 * 2**20)
"""Range of a graph's parameters: int8 MobileNetV2 has 2.3 MB, ResNet152 58 MB."""

MACS = (0.3e9, 13e9)
"""Range of a graph's MACs: MobileNetV2 has 0.3 G, InceptionResNetV2 13 G."""

TENSOR_BYTES = (8 * 2**10, 512 * 2**10)
"""Range of a tensor: 7 x 7 x 160 int8 values of MobileNetV2 to 56 x 56 x 160 of DenseNet."""

INPUT_BYTES = 224 * 224 * 3

_BATCH_NODES = 2**13
"""About as many nodes are drawn from one random stream, so that the first graphs of a set do not
depend on its size."""


@dataclass(frozen=True)
class Structure:
    """The edges of G graphs of V nodes, numbered in topological order.

    Attributes:
        parents: int64 (G, V, D): inputs of each node, -1 for none; repeats count once.
        parameter_growth: How many times larger a node's expected share of the parameters is
            at the coarsest resolution than at the finest; tensors shrink by its cube root as
            resolution falls faster than channels rise.
        coarseness: float64 (G, V) or (V,), 0 to 1: how far down the resolution is; without it,
            it falls all along the network.
    """

    parents: Ints
    parameter_growth: float
    coarseness: Floats | None = None


def generate(
    family: str, n_graphs: int, n_nodes: int, seed: int, *, start: int = 0, **options: int
) -> list[ComputeGraph]:
    """Graphs of one family; the same arguments give the same graphs.

    A set made in parts is the set made at once.

    Args:
        family: One of `family_names()`.
        n_nodes: V of every graph, 2 to MAX_NODES.
        seed: 0 or more.
        start: Number of the first graph in its set, from 0; those before it are not made.
        options: `max_in_degree`, 2 to 6: a fixed limit in place of the mixture of `respect`
            and the 6 of `branch` and `skip`; not for the others.

    Raises:
        UserError: An argument is out of range.
    """
    if family not in _FAMILIES:
        raise UserError(f"family {family!r} is not known; choose {', '.join(family_names())}")
    if n_graphs < 1:
        raise UserError(f"{n_graphs} graphs: ask for 1 or more")
    if not 2 <= n_nodes <= MAX_NODES:
        raise UserError(f"{n_nodes} nodes: a synthetic graph has 2 to {MAX_NODES}")
    if seed < 0:
        raise UserError(f"seed {seed}: a seed is 0 or more")
    if start < 0:
        raise UserError(f"start {start}: graphs are numbered from 0")
    max_in_degree = options.pop("max_in_degree", None)
    if options:
        raise UserError(f"family {family!r} has no option {', '.join(options)}")
    if max_in_degree is not None and (family not in _LIMITED or not 2 <= max_in_degree <= 6):
        raise UserError(f"max_in_degree {max_in_degree}: it is 2 to 6, for {', '.join(_LIMITED)}")
    # A multiple of the number of limits that `respect` mixes.
    batch = 5 * max(_BATCH_NODES // n_nodes // 5, 1)
    graphs: list[ComputeGraph] = []
    stop = start + n_graphs
    for first in range(start - start % batch, stop, batch):
        rng = np.random.default_rng([seed, first, n_nodes, list(_FAMILIES).index(family)])
        structure = _FAMILIES[family](rng, batch, n_nodes, max_in_degree)
        wanted = range(max(start - first, 0), min(stop - first, batch))
        graphs += _with_costs(rng, structure, f"{family}-{n_nodes}-s{seed}", first, wanted)
    return graphs


def family_names() -> tuple[str, ...]:
    """Names of the families."""
    return tuple(sorted(_FAMILIES))


def _respect(rng: np.random.Generator, g: int, v: int, max_in_degree: int | None) -> Structure:
    node = np.arange(v)
    n_levels = rng.integers(max(v // 3, 1), max(5 * v // 6, 1), (g, 1), endpoint=True)
    # One node for each level, the others anywhere; then numbered level by level.
    level = np.where(node < n_levels, node, (rng.random((g, v)) * n_levels).astype(np.int64))
    level.sort(axis=1)
    opens = np.diff(level, axis=1, prepend=-1) > 0
    start = np.maximum.accumulate(np.where(opens, node, 0), axis=1)
    start_above = np.take_along_axis(start, np.maximum(start - 1, 0), axis=1)
    if max_in_degree is None:
        limit = 2 + np.arange(g)[:, None] % 5
    else:
        limit = np.full((g, 1), max_in_degree)
    wanted = rng.integers(1, limit, (g, v), endpoint=True)
    parents = (rng.random((g, v, int(limit.max()))) * start[:, :, None]).astype(np.int64)
    # The first input keeps the node on its level.
    parents[:, :, 0] = start_above + (rng.random((g, v)) * (start - start_above)).astype(np.int64)
    absent = np.arange(parents.shape[2]) >= wanted[:, :, None]
    parents[absent | (level == 0)[:, :, None]] = -1
    return Structure(parents, parameter_growth=1.0)


def _branch(rng: np.random.Generator, g: int, v: int, max_in_degree: int | None) -> Structure:
    node = np.arange(v)
    # Node 0 is the stem; a block is `width` chains of `length` nodes and the node they meet in.
    n_blocks = max(v // 3, 1) + 1
    width = rng.integers(2, max_in_degree or 6, (g, n_blocks), endpoint=True)
    length = rng.integers(1, 4, (g, n_blocks), endpoint=True)
    block, base = _locate(node, width * length + 1)
    width = np.take_along_axis(width, block, axis=1)
    length = np.take_along_axis(length, block, axis=1)
    offset = node - 1 - base
    meets = offset == width * length
    chain = np.arange(max_in_degree or 6)
    tails = node[:, None] - 1 - length[:, :, None] * chain
    parents = np.where(meets[:, :, None] & (chain < width[:, :, None]), tails, -1)
    along = np.where(offset % length == 0, base, node - 1)
    parents[:, :, 0] = np.where(meets, parents[:, :, 0], along)
    parents[:, 0] = -1
    return Structure(parents, parameter_growth=64.0)


def _locate(node: Ints, size: Ints) -> tuple[Ints, Ints]:
    """For nodes 1, 2, ... laid out in blocks: their block and the node before it, (G, V)."""
    g = len(size)
    end = np.cumsum(size, axis=1)
    # Rows shifted apart make one sorted array of them all.
    shift = np.arange(g)[:, None] * (int(end[:, -1].max()) + len(node) + 1)
    flat = np.searchsorted((end + shift).ravel(), (node + shift).ravel() - 1, side="right")
    block = np.clip(flat.reshape(g, -1) - np.arange(g)[:, None] * size.shape[1], 0, None)
    return block, np.take_along_axis(end - size, block, axis=1)


def _skip(rng: np.random.Generator, g: int, v: int, max_in_degree: int | None) -> Structure:
    node = np.arange(v)
    n_chains = rng.integers(1, 3, (g, 1), endpoint=True)
    degree = max_in_degree or 6
    # Lengths uniform in the logarithm: most skips are short, some span the network.
    length = np.exp(rng.random((g, v, degree)) * np.log(np.maximum(node, 1))[:, None])
    parents = node[:, None] - np.maximum(length.astype(np.int64), 1)
    # Half of the nodes have no skip; longer lists of inputs are ever rarer.
    extra = np.minimum(rng.geometric(0.5, (g, v)) - 1, degree - 1)
    parents[np.arange(degree) > extra[:, :, None]] = -1
    parents[:, :, 0] = np.maximum(node - n_chains, 0)
    parents[:, 0] = -1
    return Structure(parents, parameter_growth=64.0)


def _cell(rng: np.random.Generator, g: int, v: int, max_in_degree: int | None) -> Structure:
    node, n_blocks = np.arange(v), 5
    size = 3 * n_blocks + 1
    # A graph repeats one cell. Block k transforms and adds two states: 0 and 1 are the last
    # cell but one and the last cell, j + 2 is block j < k.
    choice = (rng.random((g, n_blocks, 2)) * (np.arange(n_blocks)[:, None] + 2)).astype(np.int64)
    unused = ~(choice[:, :, :, None] == np.arange(n_blocks) + 2).any(axis=(1, 2))
    cell, offset = np.divmod(node - 1, size)
    block, part = np.divmod(offset, 3)
    joins = offset == size - 1
    first = 1 + cell * size
    state = choice[:, np.minimum(block, n_blocks - 1), np.minimum(part, 1)]
    earlier = np.where(
        state >= 2,
        first + 3 * (state - 2) + 2,
        np.maximum(first + size * (state - 1) - 1, 0),
    )
    parents = np.full((g, v, n_blocks), -1)
    parents[:, :, 0] = np.where(part == 2, node - 1, earlier)
    parents[:, :, 1] = np.where(part == 2, node - 2, -1)
    ends = first[:, None] + 3 * np.arange(n_blocks) + 2
    parents[:, joins] = np.where(unused[:, None, :], ends[joins], -1)
    parents[:, 0] = -1
    return Structure(parents, parameter_growth=64.0)


def _window(rng: np.random.Generator, g: int, v: int, _: int | None) -> Structure:
    node = np.arange(v)
    width = rng.integers(4, 12, (g, 1, 1), endpoint=True)
    reach = np.minimum(width, np.maximum(node, 1)[:, None])
    parents = node[:, None] - 1 - (rng.random((g, v, 3)) * reach).astype(np.int64)
    wanted = rng.integers(1, 3, (g, v), endpoint=True)
    parents[np.arange(3) >= wanted[:, :, None]] = -1
    parents[:, 0] = -1
    return Structure(parents, parameter_growth=8.0)


def _tower(rng: np.random.Generator, g: int, v: int, _: int | None) -> Structure:
    node = np.arange(v)
    # The towers lie one after the other; the head, a chain, is the last eighth of the nodes.
    head = v - max(v // 8, 1)
    n_towers = rng.integers(2, 4, (g, 1), endpoint=True)
    share = np.where(np.arange(4) < n_towers, 0.5 + rng.random((g, 4)), 0.0)
    end = np.round(np.cumsum(share, axis=1) / share.sum(axis=1, keepdims=True) * head)
    end = end.astype(np.int64)
    start = np.concatenate([np.zeros((g, 1), np.int64), end[:, :-1]], axis=1)
    tower = np.minimum((node[:, None] >= end[:, None, :]).sum(axis=2), n_towers - 1)
    first, last = np.take_along_axis(start, tower, 1), np.take_along_axis(end, tower, 1)
    place = (node - first) / np.maximum(last - first, 1)
    parents = np.full((g, v, 4), -1)
    parents[:, :, 0] = np.where(node > first, node - 1, -1)
    back = node - rng.integers(2, 5, (g, v))
    parents[:, :, 1] = np.where((back >= first) & (rng.random((g, v)) < 0.25), back, -1)
    # A node of the tower before it at the same place.
    beside = np.take_along_axis(start, np.maximum(tower - 1, 0), 1)
    beside += (place * (first - beside)).astype(np.int64)
    crosses = (tower > 0) & (node > first) & (rng.random((g, v)) < 0.05)
    parents[:, :, 2] = np.where(crosses, beside, -1)
    parents[:, head] = np.where(end > start, end - 1, -1)
    parents[:, head + 1 :] = -1
    parents[:, head + 1 :, 0] = node[head:-1]
    return Structure(parents, 64.0, np.where(node < head, 0.8 * place, 0.8 + 0.2 * node / v))


def _pyramid(rng: np.random.Generator, g: int, v: int, _: int | None) -> Structure:
    node = np.arange(v)
    levels = np.minimum(rng.integers(3, 5, (g, 1), endpoint=True), max(v // 2, 1))
    # Each level taps the end of a part of the backbone; levels are numbered from the finest.
    part = np.maximum((v * rng.uniform(0.2, 0.6, (g, 1)) / levels).astype(np.int64), 1)
    stem = part * levels
    layer, step = np.divmod(node - stem, levels)
    fuses = layer >= 0
    down = layer % 2 == 0
    level = np.where(down, levels - 1 - step, step)
    before = np.where(
        layer == 0,
        (level + 1) * part - 1,
        stem + (layer - 1) * levels + np.where(down, level, levels - 1 - level),
    )
    skips = fuses & (layer % 2 == 1) & (rng.random((g, v)) < 0.5)
    parents = np.full((g, v, 3), -1)
    parents[:, :, 0] = np.where(fuses, before, node - 1)
    parents[:, :, 1] = np.where(fuses & (step > 0), node - 1, -1)
    parents[:, :, 2] = np.where(skips, (level + 1) * part - 1, -1)
    coarseness = np.where(fuses, (level + 1) / levels, node / stem)
    return Structure(parents, 64.0, coarseness)


def _unetpp(rng: np.random.Generator, g: int, v: int, _: int | None) -> Structure:
    parents, coarseness = np.full((g, v, 6), -1), np.empty((g, v))
    levels = rng.integers(3, 6, g, endpoint=True)
    dropped = rng.random((g, v)) < 0.2
    for n_levels in range(3, 7):
        # Diagonal by diagonal, and down along each: a topological order of the cells.
        cells = [(d - j, j) for d in range(n_levels) for j in range(d + 1)]
        size = max(v // len(cells), 1)
        number = {cell: n for n, cell in enumerate(cells)}
        pattern, row = np.full((v, 6), -1), np.empty(v)
        for node in range(v):
            n = min(node // size, len(cells) - 1)
            i, j = cells[n]
            row[node] = i / (n_levels - 1)
            if node > n * size:
                pattern[node, 0] = node - 1
                continue
            reads = [(i, k) for k in range(j - 1, -1, -1)]
            reads.insert(0, (i + 1, j - 1) if j else (i - 1, 0))
            ends = [(number[cell] + 1) * size - 1 for cell in reads if cell in number]
            pattern[node, : len(ends)] = ends
        parents[levels == n_levels] = pattern
        coarseness[levels == n_levels] = row
    # Some cells read only the last of the earlier cells of their resolution.
    parents[:, :, 2:][dropped] = -1
    return Structure(parents, 64.0, coarseness)


_FAMILIES: dict[str, Callable[[np.random.Generator, int, int, int | None], Structure]] = {
    "branch": _branch,
    "cell": _cell,
    "respect": _respect,
    "skip": _skip,
    "window": _window,
    "tower": _tower,
    "pyramid": _pyramid,
    "unetpp": _unetpp,
}
"""In the order in which they were added: a family's number is part of its seed."""

_LIMITED = ("respect", "branch", "skip")
"""Those with the option `max_in_degree`."""


def _with_costs(
    rng: np.random.Generator, structure: Structure, name: str, first: int, wanted: range
) -> list[ComputeGraph]:
    """The `wanted` graphs of a batch whose first one has the number `first` in its set."""
    parents, growth = structure.parents, structure.parameter_growth
    g, v, _ = parents.shape
    depth = np.arange(v) / v if structure.coarseness is None else structure.coarseness
    n_inputs = (parents >= 0).sum(axis=2)
    size = _log_uniform(rng, TENSOR_BYTES, (g, v))
    # In the networks that these families stand for, resolution falls with depth and
    # operators with several inputs (add, concatenate) have no parameters.
    merges = (n_inputs > 1) & (growth > 1)
    size = np.maximum(size * growth ** (-depth / 3), TENSOR_BYTES[0]).astype(np.int64)
    weight = rng.random((g, v)) * np.where(merges, 0.0, growth**depth)
    params = _share(weight, _log_uniform(rng, PARAM_BYTES, (g, 1)))
    work = np.where(merges, 0.0, _log_uniform(rng, (1.0, 30.0), (g, v)))
    macs = _share(work, _log_uniform(rng, MACS, (g, 1)))
    macs = np.where(merges, size * n_inputs, macs)

    # Tensor 0 is the model's input, tensor u + 1 what node u writes; every graph's readings
    # (tensor, reader) as one sorted list of keys.
    reads = np.where(parents >= 0, parents + 1, -1)
    reads[:, :, 0] = np.where(n_inputs == 0, 0, reads[:, :, 0])
    graph, reader, slot = np.nonzero(reads >= 0)
    keys = np.unique((graph * (v + 1) + reads[graph, reader, slot]) * v + reader)
    tensor, consumers = np.divmod(keys, v)
    starts = np.searchsorted(tensor, np.arange(g * (v + 1) + 1))
    producer = np.arange(-1, v)
    assert producer[0] == MODEL_INPUT
    names, ops, unmeasured = _node_names(v), ("",) * v, np.full(v, np.nan)
    graphs = []
    for i in wanted:
        start = starts[i * (v + 1) : (i + 1) * (v + 1) + 1]
        graphs.append(
            ComputeGraph.from_arrays(
                name=f"{name}-{first + i}",
                node_names=names,
                ops=ops,
                param_bytes=params[i],
                macs=macs[i],
                compute_ms=unmeasured,
                tensor_bytes=np.concatenate(([INPUT_BYTES], size[i])),
                tensor_producer=producer,
                consumer_start=start - start[0],
                consumers=consumers[start[0] : start[-1]],
                tensor_is_output=np.diff(start) == 0,
            )
        )
    return graphs


@cache
def _node_names(v: int) -> tuple[str, ...]:
    return tuple(f"n{i}" for i in range(v))


def _log_uniform(
    rng: np.random.Generator, bounds: tuple[float, float], shape: tuple[int, ...]
) -> Floats:
    low, high = np.log(bounds)
    return np.exp(rng.uniform(low, high, shape))


def _share(weight: Floats, total: Floats) -> Ints:
    return (total * weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-9)).astype(np.int64)
