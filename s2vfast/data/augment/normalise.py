"""Steps that bring bodies into a common frame. None of them draws anything.

A body that is all zeros in a frame is absent there and stays all zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from s2vfast.data.augment.base import Augmentation, ViewBatch, constant, register_augmentation
from s2vfast.data.layout import Layout
from s2vfast.errors import ConfigError
from s2vfast.reference.clip_sample import anchor, mark_origin


@register_augmentation("centre", stream=40)
@dataclass(frozen=True)
class Centre(Augmentation):
    """A joint, or the mean of several that is the layout's root, becomes the origin.

    SkeAttnCLR: joint ``spine_shoulder``, ``at: frame``, ``body: own``. NTU (CTR-GCN's loader) and NW-UCLA: the
    defaults; the layouts' roots are ``spine_mid`` and ``spine``.
    """

    joint: str | int | None = None
    """Name or number of the joint; null: the layout's root."""
    at: Literal["first", "frame"] = "first"
    """``first``: its position in the first frame in which the body is there. ``frame``: in every frame its position in
    that frame."""
    body: Literal["main", "own"] = "main"
    """``main``: the first body's joint for all bodies, so that they keep their places. ``own``: every body's own."""

    def check_layout(self, layout: Layout) -> None:
        """The joint must be one of the skeleton's."""
        _joints(self, layout)

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: none."""
        clips = batch.clips
        source = clips if self.body == "own" else clips[:, :1]
        origin = _mean(source, _joints(self, batch.layout))[:, :, :, None]  # [B, M or 1, T, 1, 3]
        if self.at == "first":
            origin = take_first_present(origin, batch.present if self.body == "own" else batch.present[:, :1])
        clips = torch.where(batch.present, clips - origin, clips)
        return replace(batch, clips=mark_origin(clips, batch.present))


def _joints(step: Centre, layout: Layout) -> tuple[int, ...]:
    if step.joint is None:
        return layout.root
    if isinstance(step.joint, str) and step.joint in layout.joints:
        return (layout.joints.index(step.joint),)
    if isinstance(step.joint, int) and 0 <= step.joint < layout.num_joints:
        return (step.joint,)
    raise ConfigError(f"centre.joint: {step.joint!r} is no joint of layout {layout.name} ({', '.join(layout.joints)})")


def _mean(clips: Tensor, joints: tuple[int, ...]) -> Tensor:
    """Of those of some joints of [..., V, 3] that are not zeros: [..., 3]."""
    return anchor(clips, (clips != 0).any(-1), joints)[0]


def take_first_present(values: Tensor, present: Tensor) -> Tensor:
    """Values [B, M, T, V, C] at the first frame in which a body is there: [B, M, 1, V, C]."""
    first = present.to(torch.uint8).argmax(dim=2, keepdim=True)  # the first of the largest; 0 for an absent body
    return torch.gather(values, 2, first.expand(-1, -1, -1, *values.shape[3:]))


@register_augmentation("min_max", stream=41)
@dataclass(frozen=True)
class MinMax(Augmentation):
    """Every axis of a sample is mapped to [low, high], by its smallest and largest coordinate (NW-UCLA: [-1, 1]).

    The extremes are over all frames, bodies and joints that are there. An axis without extent goes to the middle, but
    the z of recordings of 2 coordinates stays 0.
    """

    low: float = -1.0
    """Where the smallest coordinate goes."""
    high: float = 1.0
    """Where the largest goes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.high > self.low, "high", "a number above low")

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: none."""
        clips, present = batch.clips, batch.present
        infinity = torch.full((), float("inf"), dtype=clips.dtype, device=clips.device)
        smallest = torch.where(present, clips, infinity).amin(dim=(1, 2, 3), keepdim=True)
        largest = torch.where(present, clips, -infinity).amax(dim=(1, 2, 3), keepdim=True)
        extent = largest - smallest
        relative = torch.where(extent > 0, (clips - smallest) / extent, 0.5)
        clips = torch.where(present, self.low + (self.high - self.low) * relative, 0.0)
        if batch.layout.planar:
            clips = clips * constant((1.0, 1.0, 0.0), clips.device, clips.dtype)
        return replace(batch, clips=clips)


@register_augmentation("person_frame", stream=42)
@dataclass(frozen=True)
class PersonFrame(Augmentation):
    """Every body in axes of its own, x ← R⁻¹ x, taken from one of its frames (InfoGCN's preprocessing of NTU).

    v1 is the unit vector up the spine, v2 that from the right hip to the left made orthogonal to v1, v3 the unit vector
    of v2 × v1; R has the columns v2, v3, v1. (As published: R is orthogonal with determinant -1.)
    """

    frame: Literal["first_seen", "first"] = "first_seen"
    """``first_seen``: the first frame in which the body is there. ``first``: frame 0, and a body that is absent in it
    becomes all zeros, as the published code leaves it."""

    def check_layout(self, layout: Layout) -> None:
        """The skeleton must have hips, and its joints a depth."""
        self.refuse_planar(layout, "leave the step out")
        if layout.hips is None:
            raise ConfigError(f"person_frame: layout {layout.name} names no hips; give it hips (left, right)")

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: none."""
        clips, layout = batch.clips, batch.layout
        pose = clips[:, :, :1] if self.frame == "first" else take_first_present(clips, batch.present)
        pose = pose[:, :, 0]  # [B, M, V, 3]
        (lower, upper), (left, right) = layout.spine, layout.hips
        v1 = _unit(_mean(pose, upper) - _mean(pose, lower))
        across = pose[:, :, left] - pose[:, :, right]
        v2 = _unit(across - (across * v1).sum(-1, keepdim=True) * v1)
        v3 = _unit(torch.linalg.cross(v2, v1))
        axes = torch.stack([v2, v3, v1], dim=-2)  # [B, M, 3, 3]: R transposed, which is its inverse
        return replace(batch, clips=torch.einsum("bmij,bmtvj->bmtvi", axes, clips))


def _unit(vector: Tensor) -> Tensor:
    """The vector at length 1; zeros stay zeros."""
    length = vector.square().sum(-1, keepdim=True).sqrt()
    return vector / torch.where(length > 0, length, 1.0)


@register_augmentation("align_shoulders", stream=43)
@dataclass(frozen=True)
class AlignShoulders(Augmentation):
    """Every body is turned about y, in every frame anew, until its shoulder line is parallel to x (SkeAttnCLR).

    With v the line from the left to the right shoulder without its y, θ = arccos(vx / (|v| + 1e-4)) turns by -θ where
    the sum of vz over the frames is 0 or more, else by +θ: one sign for a whole clip of a body, as published, so that
    the frames in which the line points the other way are turned away from x.
    """

    def check_layout(self, layout: Layout) -> None:
        """y must be the vertical, and joints must have a depth."""
        self.refuse_planar(layout, "leave the step out")
        if abs(layout.up[1]) < 0.999:
            raise ConfigError(f"align_shoulders: it turns about y, and layout {layout.name} has up = {layout.up}")

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: none."""
        clips = batch.clips
        left, right = batch.layout.sides
        line = clips[:, :, :, right] - clips[:, :, :, left]  # [B, M, T, 3]
        x, z = line[..., 0], line[..., 2]
        cosine = x / ((x.square() + z.square()).sqrt() + 1e-4)
        angle = torch.arccos(cosine)
        angle = torch.where(z.sum(dim=2, keepdim=True) >= 0, -angle, angle)[..., None]  # [B, M, T, 1]
        turned_x = clips[..., 0] * angle.cos() - clips[..., 2] * angle.sin()
        turned_z = clips[..., 0] * angle.sin() + clips[..., 2] * angle.cos()
        return replace(batch, clips=torch.stack([turned_x, clips[..., 1], turned_z], dim=-1))
