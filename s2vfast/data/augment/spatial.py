"""Steps that change where joints are: shear, rotation, size, mirror image, and joints that are moved or lost.

A body that is all zeros in a frame is absent there and stays all zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from s2vfast.config.fields import option
from s2vfast.data.augment.base import Augmentation, ViewBatch, choose, constant, register_augmentation, uniform
from s2vfast.data.layout import Layout
from s2vfast.errors import ConfigError
from s2vfast.reference import philox

Range = tuple[float, float]


def linear_map(clips: Tensor, matrix: Tensor) -> Tensor:
    """Every point x of a sample as ``matrix @ x``: clips [B, M, T, V, 3], matrix [B, 3, 3]."""
    return torch.einsum("bij,bmtvj->bmtvi", matrix, clips)


@register_augmentation("shear", stream=18)
@dataclass(frozen=True)
class Shear(Augmentation):
    """x ← R x with R = 1 on the diagonal and uniform numbers beside it (SkeAttnCLR, Hi-TRS: amplitude 0.5).

    Recordings of 2 coordinates stay in their plane.
    """

    amplitude: float = option(0.5, ge=0)
    """Largest entry beside the diagonal."""

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: 6, a0 a1 a2 b0 b1 b2 of R = [[1, a0, b0], [a1, 1, b1], [a2, b2, 1]]."""
        entries = uniform(self.draws(batch, 6), -self.amplitude, self.amplitude, batch.clips.dtype)
        if batch.layout.planar:  # a2 and b2 make a z
            entries = entries * constant((1.0, 1.0, 0.0) * 2, entries.device, entries.dtype)
        return replace(batch, clips=linear_map(batch.clips, shear_matrix(entries)))


def shear_matrix(entries: Tensor) -> Tensor:
    """[B, 3, 3] of a0 a1 a2 b0 b1 b2 [B, 6]."""
    a0, a1, a2, b0, b1, b2 = entries.unbind(-1)
    one = torch.ones_like(a0)
    return torch.stack([one, a0, b0, a1, one, b1, a2, b2, one], dim=-1).unflatten(-1, (3, 3))


@register_augmentation("rotate", stream=19)
@dataclass(frozen=True)
class Rotate(Augmentation):
    """x ← R x with R the product of a rotation about each axis, right-handed, each angle uniform in its range.

    NTU (CTR-GCN's loader, InfoGCN, FreqMixFormer): the defaults, Rz Ry Rx and ±0.3 rad. NW-UCLA (the same): order
    ``xyz``, unit ``whole_degrees``, x and y ±60, z 0. ``axes: one`` is AimCLR's kind: one axis, drawn anew for every
    sample, turns by its range and the other two by ``others``.
    """

    x: Range = (-0.3, 0.3)
    """Smallest and largest angle about x."""
    y: Range = (-0.3, 0.3)
    """About y."""
    z: Range = (-0.3, 0.3)
    """About z."""
    unit: Literal["radians", "degrees", "whole_degrees"] = "radians"
    """``whole_degrees``: only whole numbers are drawn, both ends of a range included."""
    order: Literal["xyz", "xzy", "yxz", "yzx", "zxy", "zyx"] = "zyx"
    """The product R, its factors from left to right; the last one acts first."""
    axes: Literal["all", "one"] = "all"
    """``one``: one axis of the three, each as likely, turns by its range."""
    others: Range = (0.0, 0.0)
    """Range of the two axes that were not drawn (``one``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("x", "y", "z", "others"):
            low, high = getattr(self, name)
            self.require(low <= high, name, "a range from the smaller to the larger angle")
            if self.unit == "whole_degrees":
                self.require(low == int(low) and high == int(high), name, "two whole numbers")

    def check_layout(self, layout: Layout) -> None:
        """Recordings of 2 coordinates turn about z alone."""
        if any(self.x) or any(self.y) or (self.axes == "one" and any(self.others)):
            self.refuse_planar(layout, "give x and y [0, 0]")

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: 4, the angles about x, y and z and the axis (``one``)."""
        draws, dtype = self.draws(batch, 4), batch.clips.dtype
        ranges = [self._angle(draws[:, axis], getattr(self, name), dtype) for axis, name in enumerate("xyz")]
        angles = torch.stack(ranges, dim=-1)  # [B, 3]
        if self.axes == "one":
            minor = torch.stack([self._angle(draws[:, axis], self.others, dtype) for axis in range(3)], dim=-1)
            axis = philox.randint(draws[:, 3:], 3)
            angles = torch.where(torch.arange(3, device=axis.device) == axis, angles, minor)
        return replace(batch, clips=linear_map(batch.clips, rotation_matrix(angles, self.order)))

    def _angle(self, draws: Tensor, ends: Range, dtype: torch.dtype) -> Tensor:
        """Radians [B]."""
        low, high = ends
        if self.unit == "whole_degrees":
            return torch.deg2rad((low + philox.randint(draws, int(high) - int(low) + 1)).to(dtype))
        angles = uniform(draws, low, high, dtype)
        return torch.deg2rad(angles) if self.unit == "degrees" else angles


def rotation_matrix(angles: Tensor, order: str = "zyx") -> Tensor:
    """[B, 3, 3]: the product, in ``order`` from left to right, of right-handed rotations about x, y and z.

    Args:
        angles: [B, 3] radians about x, y and z.
        order: e.g. ``zyx`` for Rz Ry Rx.
    """
    product = None
    for name in order:
        axis = "xyz".index(name)
        one, two = (axis + 1) % 3, (axis + 2) % 3
        cosine, sine = torch.cos(angles[:, axis]), torch.sin(angles[:, axis])
        factor = torch.zeros(angles.shape[0], 3, 3, dtype=angles.dtype, device=angles.device)
        factor[:, axis, axis] = 1.0
        factor[:, one, one], factor[:, one, two] = cosine, -sine
        factor[:, two, one], factor[:, two, two] = sine, cosine
        product = factor if product is None else product @ factor
    return product


@register_augmentation("scale", stream=20)
@dataclass(frozen=True)
class Scale(Augmentation):
    """x ← s x, s uniform (NW-UCLA: 0.5 to 1.5; Hi-TRS: 0.8 to 1.2)."""

    low: float = option(0.8, gt=0)
    """Smallest factor."""
    high: float = 1.2
    """Largest."""
    per_axis: bool = False
    """One factor for each of x, y and z in place of one for all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.high >= self.low, "high", "a number that is no smaller than low")

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: 3, of which one factor for all axes takes the first."""
        factors = uniform(self.draws(batch, 3), self.low, self.high, batch.clips.dtype)
        factors = factors if self.per_axis else factors[:, :1]
        return replace(batch, clips=batch.clips * factors[:, None, None, None, :])


@register_augmentation("flip", stream=21)
@dataclass(frozen=True)
class Flip(Augmentation):
    """The mirror image: one coordinate changes its sign and the left joints become the right ones."""

    axis: Literal["x", "y", "z"] = "x"
    """The coordinate."""
    probability: float = option(0.5, ge=0, le=1)
    """Of a flip."""

    def check_layout(self, layout: Layout) -> None:
        """The skeleton must have left and right joints."""
        if not layout.mirror:
            raise ConfigError(f"flip: layout {layout.name} names no left and right joints; give it mirror")

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: 1."""
        clips = batch.clips
        turned = philox.uniform(self.draws(batch, 1)[:, 0]) < self.probability
        order = constant(mirror_order(batch.layout), clips.device, torch.int64)
        signs = constant(tuple(-1.0 if name == self.axis else 1.0 for name in "xyz"), clips.device, clips.dtype)
        mirrored = clips.index_select(3, order) * signs
        return replace(batch, clips=torch.where(turned[:, None, None, None, None], mirrored, clips))


def mirror_order(layout: Layout) -> tuple[int, ...]:
    """For every joint the joint of the other side that takes its number in a mirror image; itself on the midline."""
    order = list(range(layout.num_joints))
    for left, right in layout.mirror:
        order[left], order[right] = right, left
    return tuple(order)


@register_augmentation("jitter", stream=22)
@dataclass(frozen=True)
class Jitter(Augmentation):
    """Some joints are moved, each by a constant of its own in all frames (Hi-TRS: 5 joints, ±0.2 m a coordinate).

    Recordings of 2 coordinates stay in their plane.
    """

    joints: int = option(5, ge=1)
    """Joints that are moved, drawn without replacement; the bodies of a sample share them."""
    amplitude: float = option(0.2, ge=0)
    """Largest move along an axis, in the clips' unit."""

    def check_layout(self, layout: Layout) -> None:
        """The skeleton must have as many joints."""
        _check_joint_count(self, layout)

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: V to choose the joints, then x, y and z of the first chosen, of the second, and so on."""
        clips, V = batch.clips, batch.clips.shape[3]
        draws = self.draws(batch, V + 3 * self.joints)
        joints = choose(draws[:, :V], self.joints)
        moves = uniform(draws[:, V:], -self.amplitude, self.amplitude, clips.dtype).unflatten(1, (self.joints, 3))
        if batch.layout.planar:
            moves = moves * constant((1.0, 1.0, 0.0), moves.device, moves.dtype)
        offsets = torch.zeros(clips.shape[0], V, 3, dtype=clips.dtype, device=clips.device)
        offsets = offsets.scatter(1, joints[:, :, None].expand(-1, -1, 3), moves)
        return replace(batch, clips=torch.where(batch.present, clips + offsets[:, None, None], clips))


@register_augmentation("drop_joints", stream=23)
@dataclass(frozen=True)
class DropJoints(Augmentation):
    """Some joints become zeros in all frames and bodies."""

    joints: int = option(5, ge=1)
    """Joints that are lost, drawn without replacement."""

    def check_layout(self, layout: Layout) -> None:
        """The skeleton must have as many joints."""
        _check_joint_count(self, layout)

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: V."""
        clips, V = batch.clips, batch.clips.shape[3]
        joints = choose(self.draws(batch, V), self.joints)
        lost = torch.zeros(clips.shape[0], V, dtype=torch.bool, device=clips.device).scatter(1, joints, True)
        return replace(batch, clips=clips.masked_fill(lost[:, None, None, :, None], 0.0))


@register_augmentation("drop_axis", stream=24)
@dataclass(frozen=True)
class DropAxis(Augmentation):
    """One coordinate, each as likely as the others, becomes zero everywhere."""

    probability: float = option(0.5, ge=0, le=1)
    """Of losing one."""

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: 2, whether and which."""
        draws = self.draws(batch, 2)
        happens = philox.uniform(draws[:, :1]) < self.probability
        axis = philox.randint(draws[:, 1:], 3)
        lost = happens & (torch.arange(3, device=axis.device) == axis)  # [B, 3]
        return replace(batch, clips=batch.clips.masked_fill(lost[:, None, None, None], 0.0))


@register_augmentation("swap", stream=25)
@dataclass(frozen=True)
class Swap(Augmentation):
    """A block of body parts × frames of every sample is that of another sample of the batch (SkeAttnCLR).

    The block covers some of the layout's body parts, drawn without replacement, and a stretch of frames on a grid. All
    bodies of a sample change theirs. Sample i takes from sample (i + n) mod B. It is the one step that looks at the
    batch: ranks that share a batch gather clips and sample ids, swap in the whole, and go on with their own rows.
    """

    parts: tuple[int, int] = (3, 4)
    """Fewest and most body parts."""
    cells: tuple[int, int] = (4, 7)
    """Shortest and longest stretch, in cells of the grid; at most the whole clip."""
    cell_frames: int = option(4, ge=1)
    """Frames of a cell."""
    block: Literal["sample", "batch"] = "batch"
    """``batch``: the draws of the batch's first sample give n and one block for all, as published. ``sample``: every
    sample draws its own block, which does not depend on the batch; n still comes from the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(1 <= self.parts[0] <= self.parts[1], "parts", "1 or more, and no more than the second number,")
        self.require(1 <= self.cells[0] <= self.cells[1], "cells", "1 or more, and no more than the second number,")

    def check_layout(self, layout: Layout) -> None:
        """The skeleton must have as many body parts."""
        if len(layout.parts) < self.parts[1]:
            raise ConfigError(
                f"swap.parts: {list(self.parts)}; layout {layout.name} has {len(layout.parts)} body parts"
            )

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: the parts of the layout to choose among them, then n, how many parts, how long, where it starts."""
        draws = self.draws(batch, self.draw_count(batch.layout))
        return replace(batch, clips=self.exchange(batch.clips, draws, batch.layout))

    def draw_count(self, layout: Layout) -> int:
        """Draws a sample."""
        return len(layout.parts) + 4

    def exchange(self, clips: Tensor, draws: Tensor, layout: Layout) -> Tensor:
        """Clips [B, M, T, V, C] with blocks of one another, by draws [B, `draw_count`]."""
        B = clips.shape[0]
        if B == 0:
            return clips
        shift = philox.randint(draws[0, -4], max(B - 2, 1)) + min(B - 1, 1)
        donors = (torch.arange(B, device=clips.device) + shift) % B
        region = self.region(draws if self.block == "sample" else draws[:1], clips.shape[2], layout)
        return blend(clips, donors, region)

    def region(self, draws: Tensor, frames: int, layout: Layout) -> Tensor:
        """The blocks: bool [n, frames, V] of draws [n, parts + 4]."""
        P, device = len(layout.parts), draws.device
        count = self.parts[0] + philox.randint(draws[:, -3:-2], self.parts[1] - self.parts[0] + 1)
        rank = torch.argsort(choose(draws[:, :P], P), dim=1)  # which place in the order drawn a part has
        members = tuple(tuple(joint in part for joint in range(layout.num_joints)) for part in layout.parts.values())
        joints = ((rank < count)[:, :, None] & constant(members, device, torch.bool)).any(1)  # [n, V]
        grid = frames // self.cell_frames
        low, high = min(self.cells[0], grid), min(self.cells[1], grid)
        length = low + philox.randint(draws[:, -2:-1], high - low + 1)
        start = philox.randint(draws[:, -1:], grid - length + 1)
        cell = torch.arange(frames, device=device) // self.cell_frames
        within = (cell >= start) & (cell < start + length)  # [n, frames]
        return within[:, :, None] & joints[:, None, :]


def blend(clips: Tensor, donors: Tensor, region: Tensor) -> Tensor:
    """Clips [B, M, T, V, C] that are those of samples ``donors`` [B] where ``region`` [1 or B, T, V] says so."""
    return torch.where(region[:, None, :, :, None], clips.index_select(0, donors), clips)


def _check_joint_count(step: Augmentation, layout: Layout) -> None:
    if step.joints > layout.num_joints:
        raise ConfigError(f"{step.name}.joints: {step.joints}; layout {layout.name} has {layout.num_joints} joints")


__all__ = [
    "DropAxis",
    "DropJoints",
    "Flip",
    "Jitter",
    "Rotate",
    "Scale",
    "Shear",
    "Swap",
    "blend",
    "linear_map",
    "mirror_order",
    "rotation_matrix",
    "shear_matrix",
]
