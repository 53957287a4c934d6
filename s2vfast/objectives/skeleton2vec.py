"""Skeleton2vec: predict a moving-average teacher's contextual features of the masked tokens (arXiv 2401.00921)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.config import Config
from s2vfast.nn import Decoder, Encoder, build_decoder, build_encoder
from s2vfast.reference import philox
from s2vfast.reference.tube_mask import published_places, tube_scores


@dataclass(frozen=True)
class Losses:
    """What a step reports: scalars, on the device."""

    loss: Tensor  # with gradient
    target_var: Tensor  # variance of the target over masked tokens, mean over channels; near 0: the teacher collapsed
    pred_var: Tensor  # the same of the prediction


class Skeleton2vec(nn.Module):
    """Student (encoder, decoder) and teacher (the average of the student's encoder, without gradient)."""

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        *,
        tube_len: int,
        keep: int,
        motion_weight: float,
        top_k: int,
        target_norm: str = "instance",
        masks_per_clip: int = 1,
        empty_bodies: str = "compute",
        placement: str = "token",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.tube_len, self.keep, self.motion_weight = tube_len, keep, motion_weight
        self.top_k, self.target_norm = top_k, target_norm
        self.masks_per_clip = masks_per_clip
        self.empty_bodies = empty_bodies
        self.placement = placement

    def forward(
        self,
        clips: Tensor,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        epoch: int = 0,
        sample_ids: Tensor | None = None,
    ) -> Losses:
        """The loss of a batch.

        Args:
            clips: [N, T, V, C], bodies of a sample next to each other.
            noise: [masks_per_clip * N, tubes, V] draws of the masks; None draws them from (seed, epoch, sample_ids).
            seed: seed of the masks.
            epoch: epoch of the masks.
            sample_ids: int64 [B] with N a multiple of B.

        Returns:
            Loss and variances.
        """
        tracks = torch.arange(clips.shape[0], device=clips.device)
        empty = (clips == 0).flatten(1).all(dim=1)  # [N]
        if self.empty_bodies == "drop":
            tracks = tracks[~empty]
        ids = None if sample_ids is None else self._track_ids(sample_ids, clips.shape[0])
        draws = {"noise": noise, "seed": seed, "epoch": epoch, "ids": ids}
        visible, masked = self.draw_mask(clips, **draws)  # [r * N, K], [r * N, M]
        places = visible if self.placement == "token" else self.places(clips, **draws)
        r = self.masks_per_clip
        rows = (torch.arange(r, device=clips.device)[:, None] * clips.shape[0] + tracks).reshape(-1)
        visible, masked, places = visible[rows], masked[rows], places[rows]
        clips, empty = clips[tracks], empty[tracks]

        target = self.target(clips, masked, empty)  # [r * N, M, D]
        latent = self.encoder(clips.repeat(r, 1, 1, 1) if r > 1 else clips, visible)
        prediction = self.decoder(latent, places, masked)
        loss = ops.masked_mse(prediction, target)
        with torch.no_grad():
            return Losses(loss, _variance(target), _variance(prediction))

    def _track_ids(self, sample_ids: Tensor, tracks: int) -> Tensor:
        bodies = tracks // sample_ids.shape[0]
        return torch.cat([philox.track_ids(sample_ids, bodies, mask) for mask in range(self.masks_per_clip)])

    def draw_mask(
        self, clips: Tensor, *, noise: Tensor | None = None, seed: int = 0, epoch: int = 0, ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """visible int32 [r * N, K] and masked int32 [r * N, M] of clips [N, T, V, C], r = masks_per_clip."""
        return ops.tube_mask(
            self._moving(clips), keep=self.keep, **self._tubes(clips), noise=noise, seed=seed, epoch=epoch, ids=ids
        )

    def places(self, clips: Tensor, **draws: Any) -> Tensor:
        """Where the authors' code puts the latents of `draw_mask`'s visible tokens: int32 [r * N, K]."""
        score = tube_scores(self._moving(clips), **self._tubes(clips), **draws)
        return published_places(score, self.tube_len, self.keep)

    def _moving(self, clips: Tensor) -> Tensor:
        """Coordinates, once a mask; velocities, where they are input, say nothing new about motion."""
        return clips[..., :3].repeat(self.masks_per_clip, 1, 1, 1)

    def _tubes(self, clips: Tensor) -> dict[str, Any]:
        segment_frames = self.encoder.embedding.weight.shape[1] // clips.shape[-1]
        return {
            "segment_frames": segment_frames,
            "tube_len": self.tube_len,
            "motion_weight": self.motion_weight,
        }

    @torch.no_grad()
    def target(self, clips: Tensor, masked: Tensor | None, empty: Tensor | None = None) -> Tensor:
        """The teacher's features.

        Args:
            clips: [N, T, V, C].
            masked: int32 [r * N, M], the tokens wanted, mask after mask; None for all L.
            empty: bool [N], tracks of zeros. With ``empty_bodies="share"`` the teacher sees one of them.

        Returns:
            [r * N, M, D], or [N, L, D].
        """
        places = None
        if self.empty_bodies == "share" and empty is not None and int(empty.sum()) > 1:
            # Bodies first, one empty track after them: place of every track among these.
            full = torch.nonzero(~empty).flatten()
            chosen = torch.cat([full, torch.nonzero(empty).flatten()[:1]])
            places = torch.where(empty, full.numel(), torch.cumsum(~empty, 0) - 1)
            clips = clips[chosen]
        hidden = self.teacher.hidden(clips, self.top_k)
        if places is None and (masked is None or masked.shape[0] == clips.shape[0]):
            return ops.teacher_target(hidden, masked, self.target_norm)
        target = ops.teacher_target(hidden, None, self.target_norm)  # [N', L, D]
        if places is not None:
            target = target[places]
        if masked is None:
            return target
        target = target.repeat(masked.shape[0] // target.shape[0], 1, 1)
        return target.gather(1, masked.long()[..., None].expand(-1, -1, target.shape[-1]))


def build_skeleton2vec(config: Config, joints: int) -> Skeleton2vec:
    """The objective of ``config`` for skeletons of ``joints`` joints, as it stands before the first step."""
    return Skeleton2vec(
        build_encoder(config, joints),
        build_decoder(config, joints),
        tube_len=config.mask.tube_len,
        keep=config.keep(joints),
        motion_weight=config.mask.motion_weight,
        top_k=config.objective.top_k,
        target_norm=config.objective.target_norm,
        masks_per_clip=config.mask.masks_per_clip,
        empty_bodies=config.objective.empty_bodies,
        placement=config.objective.placement,
    )


def _variance(x: Tensor) -> Tensor:
    """Variance over all tokens, mean over channels, of [N, M, D]."""
    return torch.var(x.reshape(-1, x.shape[-1]), dim=0, correction=0).mean()
