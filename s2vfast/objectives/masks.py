"""Which tokens of a batch the student sees: every kind of mask behind one interface."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from s2vfast import ops
from s2vfast.errors import ConfigError
from s2vfast.reference import philox
from s2vfast.reference.tube_mask import published_slots, tube_scores

if TYPE_CHECKING:
    from s2vfast.config import Config, MaskConfig
    from s2vfast.data.layout import Layout
    from s2vfast.networks.base import Network

TUBE_KINDS = ("tube", "motion_tube")
"""Kinds of masks that choose joints a tube."""
TOKEN_KINDS = ("random", "motion_token")
"""Kinds of masks that choose tokens a track."""


@dataclass(frozen=True)
class MaskBatch:
    """Which tokens of a batch are seen: masks_per_clip times N rows, mask after mask."""

    visible: Tensor  # int32 [r * N, K]
    masked: Tensor  # int32 [r * N, U]
    latent_tokens: Tensor  # int32 [r * N, K], the tokens at which the decoder gets the latents


@dataclass(frozen=True)
class MaskSampler:
    """How masks are drawn; the fields of a kind that is not this one do not matter."""

    kind: str
    """``random``, ``tube``, ``motion_tube``, ``motion_token`` or ``frame_joint``."""
    segment_frames: int
    keep: int
    """Visible joints a tube or a segment that is not masked whole; visible tokens a track (random, motion_token)."""
    tube_len: int = 1
    motion_weight: float = 0.0
    tau: float = 0.8
    whole_segments: int = 0
    per_segment: bool = False
    parts: tuple[tuple[int, ...], ...] = ()
    masked_parts: int = 0
    per_clip: int = 1
    placement: str = "token"

    @classmethod
    def from_config(cls, config: Config, network: Network, layout: Layout, default_kind: str) -> MaskSampler:
        """The masks of a config.

        Args:
            config: the run.
            network: whose tokens are masked.
            layout: the skeleton.
            default_kind: what mask.kind ``auto`` stands for.

        Raises:
            ConfigError: a kind that cannot be drawn with these values.
        """
        mask, (segments, _) = config.mask, network.grid
        kind = default_kind if mask.kind == "auto" else mask.kind
        keep = check_masks(config, default_kind, segments, layout)
        masked_parts = 0 if mask.parts is None else mask.parts
        return cls(
            kind=kind,
            segment_frames=network.segment_frames,
            keep=keep,
            tube_len=mask.tube_len,
            motion_weight=mask.motion_weight if kind == "motion_tube" else 0.0,
            tau=mask.tau,
            whole_segments=int(segments * mask.frame_ratio + 1e-9) if kind == "frame_joint" else 0,
            per_segment=mask.joints == "segment",
            parts=tuple(tuple(members) for members in layout.parts.values()) if masked_parts else (),
            masked_parts=masked_parts,
            per_clip=mask.masks_per_clip,
            placement=config.objective.placement,
        )

    def visible(self, segments: int) -> int:
        """K: tokens of a track that stay visible."""
        return self.keep if self.kind in TOKEN_KINDS else (segments - self.whole_segments) * self.keep

    def sample(
        self,
        clips: Tensor,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        epoch: int = 0,
        sample_ids: Tensor | None = None,
    ) -> MaskBatch:
        """The masks of clips [N, T, V, C]; arguments as of `s2vfast.objectives.Objective.forward`."""
        ids = None
        if sample_ids is not None:  # which may be on the CPU, where numbers are cheaper than launches
            ids = self.track_ids(sample_ids, clips.shape[0]).to(clips.device, non_blocking=True)
        draws = {"noise": noise, "seed": seed, "epoch": epoch, "ids": ids}
        visible, masked = self.sample_tokens(clips, **draws)
        latent_tokens = visible if self.placement == "token" else self.published_tokens(clips, **draws)
        return MaskBatch(visible, masked, latent_tokens)

    def track_ids(self, sample_ids: Tensor, tracks: int) -> Tensor:
        """int64 [r * N]: ids of the tracks of samples [B], mask after mask."""
        bodies = tracks // sample_ids.shape[0]
        return torch.cat([philox.track_ids(sample_ids, bodies, mask) for mask in range(self.per_clip)])

    def sample_tokens(
        self, clips: Tensor, *, noise: Tensor | None = None, seed: int = 0, epoch: int = 0, ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """visible int32 [r * N, K] and masked int32 [r * N, U] of clips [N, T, V, C], r = masks_per_clip."""
        draws = {"noise": noise, "seed": seed, "epoch": epoch, "ids": ids}
        moving = self._moving(clips)
        if self.kind in TUBE_KINDS:
            return ops.tube_mask(moving, keep=self.keep, **self._tubes(), **draws)
        return ops.token_mask(
            moving,
            kind=self.kind,
            segment_frames=self.segment_frames,
            keep=self.keep,
            tau=self.tau,
            whole_segments=self.whole_segments,
            per_segment=self.per_segment,
            parts=_members(self.parts, clips.shape[2], clips.device) if self.parts else None,
            masked_parts=self.masked_parts,
            **draws,
        )

    def published_tokens(self, clips: Tensor, **draws: Any) -> Tensor:
        """Where the authors' code of Skeleton2vec puts the latents of `sample_tokens`: int32 [r * N, K]."""
        score = tube_scores(self._moving(clips), **self._tubes(), **draws)
        return published_slots(score, self.tube_len, self.keep)

    def _moving(self, clips: Tensor) -> Tensor:
        """Coordinates, once a mask; velocities, where they are input, say nothing new about motion."""
        joints = clips[..., :3]
        return joints.repeat(self.per_clip, 1, 1, 1) if self.per_clip > 1 else joints

    def _tubes(self) -> dict[str, Any]:
        return {
            "segment_frames": self.segment_frames,
            "tube_len": self.tube_len,
            "motion_weight": self.motion_weight,
        }


@functools.lru_cache(maxsize=16)
def _members(parts: tuple[tuple[int, ...], ...], joints: int, device: torch.device) -> Tensor:
    """bool [P, V]: the joints of each part; made once, as the host would wait for the device."""
    table = torch.zeros(len(parts), joints, dtype=torch.bool)
    for number, members in enumerate(parts):
        table[number, list(members)] = True
    return table.to(device)


def check_masks(config: Config, default_kind: str, segments: int, layout: Layout | None) -> int | None:
    """Raise `ConfigError` unless the masks of a config can be drawn.

    Args:
        config: the run.
        default_kind: what mask.kind ``auto`` stands for.
        segments: S.
        layout: the skeleton; checks that depend on it are left out without it.

    Returns:
        What stays visible: joints a tube or a segment, or (`TOKEN_KINDS`) tokens a track; None without a layout.
    """
    mask, S = config.mask, segments
    kind = default_kind if mask.kind == "auto" else mask.kind
    if kind in TUBE_KINDS and S % mask.tube_len:
        raise ConfigError(
            f"mask.tube_len: {mask.tube_len} does not divide the {S} segments of a clip "
            f"(data.frames / model.segment_frames)"
        )
    if kind not in TUBE_KINDS and config.objective.placement == "published":
        raise ConfigError(
            f"objective.placement: published is what the authors' code does with tubes; mask.kind is {kind}"
        )
    if mask.parts is not None and kind != "frame_joint":
        raise ConfigError(f"mask.parts: {mask.parts} is for mask.kind frame_joint, and it is {kind}; give null")
    if mask.parts is not None and mask.keep is not None:
        raise ConfigError(f"mask.keep: {mask.keep} and mask.parts: {mask.parts}; give one of them")
    if layout is None:
        return None
    joints = layout.num_joints
    name, value = ("mask.ratio", mask.ratio) if mask.keep is None else ("mask.keep", mask.keep)
    if kind in TOKEN_KINDS:
        total, what = S * joints, "tokens"
        # As published, where 750 tokens at a ratio of 0.9 keep 74.
        keep = int(total * (1.0 - mask.ratio)) if mask.keep is None else mask.keep
    elif mask.parts is not None:
        name, value, total, what = "mask.parts", mask.parts, joints, "joints"
        keep = joints - _masked_by_parts(layout.parts, mask.parts)
    else:
        total, what, keep = joints, "joints", visible_joints(mask, joints)
    if not 1 <= keep < total:
        raise ConfigError(
            f"{name}: {value} leaves {keep} of {total} {what} visible; between 1 and {total - 1} must stay"
        )
    return keep


def visible_joints(mask: MaskConfig, joints: int) -> int:
    """Visible joints, of ``joints``, of a tube or (frame_joint) of a segment that is not masked whole."""
    # The small term corrects 20 * (1 - 0.9) = 1.9999999999999996.
    return math.floor(joints * (1.0 - mask.ratio) + 1e-9) if mask.keep is None else mask.keep


def _masked_by_parts(parts: dict[str, tuple[int, ...]], count: int) -> int:
    """Joints that are masked where ``count`` body parts are: as many as the largest have."""
    listed = [joint for members in parts.values() for joint in members]
    if len(parts) < count:
        raise ConfigError(
            f"mask.parts: {count}, and the skeleton's layout has {len(parts)} body parts; list them under parts in its "
            f"JSON file, or give mask.parts null to mask joints by mask.ratio"
        )
    if twice := sorted({joint for joint in listed if listed.count(joint) > 1}):
        raise ConfigError(f"mask.parts: joint {twice[0]} is in several body parts of the skeleton's layout")
    return sum(sorted(map(len, parts.values()))[-count:])
