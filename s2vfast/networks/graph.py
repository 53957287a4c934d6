"""The graph of a skeleton as matrices: who passes its value to whom, and the modes I - P^k.

All of them are float32 [V, V], or a stack [K, V, V], and are read one way: ``matrix[source, destination]``, so that
``out[w] = sum over v of x[v] * matrix[v, w]``. Modes are the exception that papers make: ``mode @ x``, a row a joint.

Trees come from `s2vfast.data.layout.Layout.bone_parents`. ``graph`` says whose edges they are:

- ``right``: an edge points from a joint to its parent in every layout.
- ``published``: as the authors' files list them. InfoGCN and FreqMixFormer list NW-UCLA's edges the other way round
  than NTU's: on NW-UCLA modes then subtract sums of descendants, and "in" and "out" change sides.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from s2vfast.data.layout import Layout
from s2vfast.data.streams import mode_matrix, reroot
from s2vfast.errors import ConfigError

Graph = Literal["right", "published"]

_REVERSED = ("kinect_v1",)
"""Layouts whose edges the authors list as (child, parent); those of all others are (parent, child)."""


def tree(layout: Layout) -> tuple[int, ...]:
    """Parent of every joint, -1 at a root, in the tree of InfoGCN and FreqMixFormer: see `Layout.graph_centre`.

    Graph convolutions of ST-GCN take `Layout.bone_parents` as they are.
    """
    hangs = layout.bone_parents[layout.graph_centre] < 0
    return layout.bone_parents if hangs else reroot(layout.bone_parents, layout.graph_centre)


def adjacency(parents: tuple[int, ...]) -> Tensor:
    """P: [V, V], 1 at [joint, parent]. As a map of values: every parent takes the sum of its children."""
    matrix = torch.zeros(len(parents), len(parents))
    for joint, parent in enumerate(parents):
        if parent >= 0:
            matrix[joint, parent] = 1.0
    return matrix


def normalised(matrix: Tensor, over: Literal["sources", "destinations"] = "sources") -> Tensor:
    """Columns (``over="sources"``) or rows divided by their sums; those that are empty stay so: [..., V, V]."""
    total = matrix.sum(-2 if over == "sources" else -1, keepdim=True)
    return torch.where(total > 0, matrix / total.clamp(min=torch.finfo(matrix.dtype).tiny), matrix)


def spatial_graph(parents: tuple[int, ...]) -> Tensor:
    """ST-GCN's partition (Yan et al., AAAI 2018, spatial configuration), [3, V, V], columns divided by their sums.

    A joint takes its own value; a child takes its parent's; a parent takes the mean of its children.
    """
    children = adjacency(parents)
    return torch.stack([torch.eye(len(parents)), normalised(children.T), normalised(children)])


def in_out_graph(layout: Layout, graph: Graph = "right") -> Tensor:
    """Identity, "in" and "out" of FreqMixFormer and CTR-GCN, [3, V, V], columns divided by their sums.

    "in" is 1 at [j, i] for a listed edge (i, j), and "out" at [i, j]. With an edge from a parent i to its child j, as
    NTU's are listed, a parent takes the mean of its children by "in", and a child its parent's value by "out".

    Args:
        layout: the skeleton.
        graph: whose edges, see the module's text.
    """
    identity, from_parent, from_children = spatial_graph(tree(layout))
    edges = (from_parent, from_children) if _is_reversed(layout, graph) else (from_children, from_parent)
    return torch.stack([identity, *edges])


def mode(layout: Layout, k: int, graph: Graph = "right") -> Tensor:
    """I - P^k of InfoGCN's multi-modal representation, [V, V]; ``mode @ x`` for x [V, C].

    A joint becomes what it is without its k-th ancestor; joints with fewer ancestors stay raw.

    Args:
        layout: the skeleton.
        k: generations, 1 or more. 1: bones. Where no joint has so many ancestors (8 on NTU), all stay raw.
        graph: whose edges, see the module's text.

    Raises:
        ConfigError: k is 0 or less.
    """
    check_generations(k)
    direction = "descendants" if _is_reversed(layout, graph) else "ancestors"
    return torch.tensor(mode_matrix(tree(layout), k, direction), dtype=torch.float32)


def check_generations(k: int) -> None:
    """Raise `ConfigError` for a k of which no `mode` is."""
    if k < 1:
        raise ConfigError(
            f"model.k: {k}; 1 or more is expected: k = 0, the default of InfoGCN's code, subtracts every joint from "
            f"itself"
        )


def _is_reversed(layout: Layout, graph: Graph) -> bool:
    return graph == "published" and layout.name in _REVERSED
