"""Which tokens of a batch the student sees: every masking kind behind one face."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s2vfast import ops
from s2vfast.config import Config
from s2vfast.config_checks import TOKENS, TUBES, check_mask
from s2vfast.reference import philox
from s2vfast.reference.tube_mask import published_places, tube_scores


@dataclass(frozen=True)
class Masks:
    """Which tokens of a batch are seen: masks_per_clip times N rows, mask after mask."""

    visible: Tensor  # int32 [r * N, K]
    masked: Tensor  # int32 [r * N, M]
    places: Tensor  # int32 [r * N, K], where the decoder gets the latents

    def tensors(self) -> tuple[Tensor, ...]:
        """The different tensors among them."""
        return (self.visible, self.masked, *(() if self.places is self.visible else (self.places,)))


@dataclass(frozen=True)
class Masking:
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
    def of(
        cls, config: Config, joints: int, published: str, parts: dict[str, tuple[int, ...]] | None = None
    ) -> Masking:
        """The masks of a config.

        Args:
            config: the run.
            joints: V.
            published: the kind that ``auto`` stands for.
            parts: body parts of the skeleton's layout.

        Raises:
            ConfigError: a kind that cannot be drawn with these values.
        """
        mask, parts = config.mask, parts or {}
        kind = published if mask.kind == "auto" else mask.kind
        keep = check_mask(config, kind, joints, parts)
        by_parts = 0 if mask.parts is None else mask.parts
        return cls(
            kind=kind,
            segment_frames=config.model.segment_frames,
            keep=keep,
            tube_len=mask.tube_len,
            motion_weight=mask.motion_weight if kind == "motion_tube" else 0.0,
            tau=mask.tau,
            whole_segments=int(config.segments * mask.frame_ratio + 1e-9) if kind == "frame_joint" else 0,
            per_segment=mask.joints == "segment",
            parts=tuple(tuple(members) for members in parts.values()) if by_parts else (),
            masked_parts=by_parts,
            per_clip=mask.masks_per_clip,
            placement=config.objective.placement,
        )

    def visible(self, segments: int) -> int:
        """K: tokens of a track that stay visible."""
        return self.keep if self.kind in TOKENS else (segments - self.whole_segments) * self.keep

    def masks(
        self,
        clips: Tensor,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        epoch: int = 0,
        sample_ids: Tensor | None = None,
    ) -> Masks:
        """The masks of clips [N, T, V, C]; arguments as of `s2vfast.objectives.Objective.forward`."""
        ids = None
        if sample_ids is not None:  # which may be on the CPU, where numbers are cheaper than launches
            ids = self.track_ids(sample_ids, clips.shape[0]).to(clips.device, non_blocking=True)
        draws = {"noise": noise, "seed": seed, "epoch": epoch, "ids": ids}
        visible, masked = self.draw(clips, **draws)
        return Masks(visible, masked, visible if self.placement == "token" else self.places(clips, **draws))

    def track_ids(self, sample_ids: Tensor, tracks: int) -> Tensor:
        """int64 [r * N]: ids of the tracks of samples [B], mask after mask."""
        bodies = tracks // sample_ids.shape[0]
        return torch.cat([philox.track_ids(sample_ids, bodies, mask) for mask in range(self.per_clip)])

    def draw(
        self, clips: Tensor, *, noise: Tensor | None = None, seed: int = 0, epoch: int = 0, ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """visible int32 [r * N, K] and masked int32 [r * N, M] of clips [N, T, V, C], r = masks_per_clip."""
        draws = {"noise": noise, "seed": seed, "epoch": epoch, "ids": ids}
        moving = self._moving(clips)
        if self.kind in TUBES:
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

    def places(self, clips: Tensor, **draws: Any) -> Tensor:
        """Where the authors' code of Skeleton2vec puts the latents of `draw`'s visible tokens: int32 [r * N, K]."""
        score = tube_scores(self._moving(clips), **self._tubes(), **draws)
        return published_places(score, self.tube_len, self.keep)

    def _moving(self, clips: Tensor) -> Tensor:
        """Coordinates, once a mask; velocities, where they are input, say nothing new about motion."""
        places = clips[..., :3]
        return places.repeat(self.per_clip, 1, 1, 1) if self.per_clip > 1 else places

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
