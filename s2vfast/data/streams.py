"""Streams: what of a clip a network sees. Joints, bones, their motion, and InfoGCN's modes.

Every stream is a linear map over joints, then optionally a difference over time. In a config a stream is plain data:
``{name: bone}`` or ``{name: mode, k: 2, motion: forward}``.

The bones of a skeleton are `s2vfast.data.layout.Layout.bone_parents`: for Kinect v2 (NTU) the tree of CTR-GCN and
SkeAttnCLR, whose root is the joint between the shoulders; for Kinect v1 (NW-UCLA) that of CTR-GCN and InfoGCN, whose
root is ``shoulder_center``. InfoGCN hangs NTU's tree from ``spine_mid``: say ``root: spine_mid`` for its modes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from s2vfast.config.fields import check_section, option, section_from_tree, tree_of
from s2vfast.data.augment.base import constant
from s2vfast.data.layout import Layout
from s2vfast.errors import ConfigError

STREAMS = ("joint", "bone", "motion", "bone_motion", "mode")
"""Names of streams."""


@dataclass(frozen=True)
class Stream:
    """A stream by name. ``motion`` is joint with a difference over time, ``bone_motion`` is bone with one."""

    name: Literal["joint", "bone", "motion", "bone_motion", "mode"] = "joint"
    """``joint``: x. ``bone``: joint minus its parent, the root 0. ``mode``: (I - P^k) x."""
    motion: Literal["none", "forward", "backward"] | None = None
    """Difference over time. ``forward``: x[t + 1] - x[t], the last frame 0 (NTU, NW-UCLA, SkeAttnCLR). ``backward``:
    x[t] - x[t - 1], the first frame 0 (Hi-TRS). null: forward for motion and bone_motion, else none."""
    k: int = option(1, ge=1)
    """Generations (mode). Where no joint has so many ancestors, as with k = 8 on NTU, joints stay raw."""
    direction: Literal["ancestors", "descendants"] = "ancestors"
    """``ancestors``: joint minus its k-th ancestor, raw where it has none. ``descendants``: joint minus the sum of its
    k-th descendants, which InfoGCN's and FreqMixFormer's code does on NW-UCLA (mode), as its edges are listed the other
    way round."""
    root: str | None = None
    """Joint that the tree hangs from (bone, bone_motion, mode); null: the root of the layout's bone_parents."""

    def __post_init__(self) -> None:
        check_section(self, "stream")
        if self.motion == "none" and self.name.endswith("motion"):
            raise ConfigError(f"stream.motion: none, and the stream is {self.name}; name joint or bone")

    @classmethod
    def from_data(cls, data: Any) -> Stream:
        """A stream of plain data: name and fields; `ConfigError` for an unknown or impossible one."""
        return section_from_tree(cls, data, "stream")

    def to_data(self) -> dict[str, Any]:
        """Plain data, every field written out."""
        return tree_of(self)

    def matrix(self, layout: Layout) -> tuple[tuple[int, ...], ...]:
        """The map over joints, V rows of V whole numbers: row v says what joint v becomes."""
        if self.name in ("joint", "motion"):
            return _identity(layout.num_joints)
        parents = layout.bone_parents
        if self.root is not None:
            if self.root not in layout.joints:
                raise ConfigError(
                    f"stream.root: {self.root!r} is no joint of layout {layout.name} ({', '.join(layout.joints)})"
                )
            parents = reroot(parents, layout.joints.index(self.root))
        if self.name == "mode":
            return mode_matrix(parents, self.k, self.direction)
        return bone_matrix(parents)

    def __call__(self, clips: Tensor, layout: Layout, lengths: Tensor | None = None) -> Tensor:
        """The stream of clips [B, M, T, V, C], of their shape and dtype; a body of zeros stays one.

        Args:
            clips: coordinates.
            layout: the skeleton, V joints.
            lengths: int64 [B], frames that a sample has: frames after them are left out of differences and stay as
                they are; None: T each.
        """
        if self.name not in ("joint", "motion"):
            clips = torch.einsum("vw,bmtwc->bmtvc", constant(self.matrix(layout), clips.device, clips.dtype), clips)
        motion = self.motion or ("forward" if self.name.endswith("motion") else "none")
        return clips if motion == "none" else difference(clips, motion, lengths)


def difference(clips: Tensor, motion: Literal["forward", "backward"], lengths: Tensor | None = None) -> Tensor:
    """x[t + 1] - x[t] with the last frame 0, or x[t] - x[t - 1] with the first 0: of clips [B, M, T, V, C]."""
    step = clips[:, :, 1:] - clips[:, :, :-1]
    if lengths is not None:  # the step from a sample's last frame into the padding is none
        within = torch.arange(1, clips.shape[2], device=clips.device) < lengths[:, None]
        step = step.masked_fill(~within[:, None, :, None, None], 0.0)
    edge = torch.zeros_like(clips[:, :, :1])
    return torch.cat([step, edge] if motion == "forward" else [edge, step], dim=2)


def bone_matrix(parents: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Joint minus its parent; the row of a joint without one is zeros."""
    rows = []
    for joint, parent in enumerate(parents):
        row = [0] * len(parents)
        if parent >= 0:
            row[joint], row[parent] = 1, -1
        rows.append(tuple(row))
    return tuple(rows)


def mode_matrix(
    parents: tuple[int, ...], k: int, direction: Literal["ancestors", "descendants"] = "ancestors"
) -> tuple[tuple[int, ...], ...]:
    """I - P^k, with P[joint, parent] = 1 (``ancestors``) or P[parent, joint] = 1 (``descendants``).

    Args:
        parents: parent of every joint, -1 at a root.
        k: generations, 1 or more.
        direction: which of the two.
    """
    V = len(parents)
    rows = [[int(joint == other) for other in range(V)] for joint in range(V)]
    for joint in range(V):
        ancestor = joint
        for _ in range(k):
            ancestor = parents[ancestor] if ancestor >= 0 else -1
        if ancestor >= 0:
            row, column = (joint, ancestor) if direction == "ancestors" else (ancestor, joint)
            rows[row][column] -= 1
    return tuple(map(tuple, rows))


def reroot(parents: tuple[int, ...], root: int) -> tuple[int, ...]:
    """The same tree, hung from another joint: parents on the way from ``root`` to the old root change sides.

    Raises:
        ConfigError: the parents are several trees.
    """
    if sum(parent < 0 for parent in parents) != 1:
        raise ConfigError("stream.root: the layout's bones are several trees; one tree can be hung from another joint")
    turned = list(parents)
    joint, above = root, -1
    while joint >= 0:
        turned[joint], joint, above = above, parents[joint], joint
    return tuple(turned)


def _identity(count: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(row == column) for column in range(count)) for row in range(count))
