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
    """What a step reports, on the device."""

    loss: Tensor  # scalar with gradient: the mean over `count` clips' masked tokens
    count: int | Tensor  # clips (tracks times masks) that the mean is over
    target: tuple[Tensor, Tensor]  # [D] each: variance and mean of the target's channels over masked tokens
    prediction: tuple[Tensor, Tensor]  # the same of the prediction

    @property
    def target_var(self) -> Tensor:
        """Mean variance of the target's channels; near 0: the teacher has collapsed."""
        return self.target[0].mean()

    @property
    def pred_var(self) -> Tensor:
        """Mean variance of the prediction's channels."""
        return self.prediction[0].mean()


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
class Bodies:
    """The tracks of a batch, those with a body first."""

    order: Tensor  # int64 [N]
    places: Tensor  # int64 [N], each track's place in `order`, which for all empty ones is that of the first of them
    filled: int  # no fewer than have a body

    @classmethod
    def of(cls, clips: Tensor) -> Bodies:
        """Look for them in clips [N, T, V, C], which makes the host wait for the device."""
        return cls.known(_filled(clips))

    @classmethod
    def known(cls, present: Tensor, room: int | None = None) -> Bodies:
        """From bool [N], which may say of an empty track that it is none: it is then one of its own.

        Args:
            present: on the device of the result.
            room: ``filled``, if it is to be more than there are: shapes depend on it.
        """
        rank = torch.cumsum(present, 0)
        filled = int(rank[-1]) if len(rank) else 0
        places = torch.where(present, rank - 1, filled)
        order = torch.argsort((~present).to(torch.uint8), stable=True)
        return cls(order, places, filled if room is None else room)

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, always in the same order."""
        return self.order, self.places


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
        masks: Masks | None = None,
        *,
        bodies: Bodies | None = None,
        empty: Tensor | None = None,
        noise: Tensor | None = None,
        seed: int = 0,
        epoch: int = 0,
        sample_ids: Tensor | None = None,
    ) -> Losses:
        """The loss of a batch.

        Args:
            clips: [N, T, V, C], bodies of a sample next to each other.
            masks: what `draw` gave for these clips; None draws it from the arguments below.
            bodies: which tracks hold one; None looks for them where that matters, which makes the host wait for the
                device.
            empty: what `empty_target` gave, for ``empty_bodies="share"``; None: a track of the batch stands for all.
            noise: [masks_per_clip * N, tubes, V] draws of the masks; None draws them from (seed, epoch, sample_ids).
            seed: seed of the masks.
            epoch: epoch of the masks.
            sample_ids: int64 [B] with N a multiple of B.

        Returns:
            Loss and variances.
        """
        if masks is None:
            masks = self.draw(clips, noise=noise, seed=seed, epoch=epoch, sample_ids=sample_ids)
        visible, masked, places = masks.visible, masks.masked, masks.places
        r, count = self.masks_per_clip, clips.shape[0]
        if bodies is None and self.empty_bodies != "compute":
            bodies = Bodies.of(clips)
        kept = None
        if self.empty_bodies == "drop":
            chosen = bodies.order[: bodies.filled]
            rows = (torch.arange(r, device=clips.device)[:, None] * count + chosen).reshape(-1)
            visible, masked, places = visible[rows], masked[rows], places[rows]
            clips = clips[chosen]
            kept = _filled(clips).repeat(r)  # [r * n], False where ``filled`` is more than there are

        target = self.target(clips, masked, bodies if self.empty_bodies == "share" else None, empty)  # [r * N, M, D]
        stream = self.encoder.stream(clips.repeat(r, 1, 1, 1) if r > 1 else clips, visible)
        prediction = self.decoder(stream, places, masked, norm=self.encoder.norm)
        if kept is None:
            loss, number = ops.masked_mse(prediction, target), masked.shape[0]
        else:
            # What is there too much differs from nothing, and the mean is over the others.
            whole = torch.where(kept[:, None, None], prediction.to(target.dtype), target)
            number = kept.sum()
            loss = ops.masked_mse(whole, target) * (kept.numel() / number.clamp(min=1))
        with torch.no_grad():
            return Losses(loss, number, _moments(target, kept), _moments(prediction, kept))

    def draw(
        self,
        clips: Tensor,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        epoch: int = 0,
        sample_ids: Tensor | None = None,
    ) -> Masks:
        """The masks of clips [N, T, V, C]; arguments as of `forward`."""
        ids = None
        if sample_ids is not None:  # which may be on the CPU, where numbers are cheaper than launches
            ids = self._track_ids(sample_ids, clips.shape[0]).to(clips.device, non_blocking=True)
        draws = {"noise": noise, "seed": seed, "epoch": epoch, "ids": ids}
        visible, masked = self.draw_mask(clips, **draws)
        return Masks(visible, masked, visible if self.placement == "token" else self.places(clips, **draws))

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
        places = clips[..., :3]
        return places.repeat(self.masks_per_clip, 1, 1, 1) if self.masks_per_clip > 1 else places

    def _tubes(self, clips: Tensor) -> dict[str, Any]:
        segment_frames = self.encoder.embedding.weight.shape[1] // clips.shape[-1]
        return {
            "segment_frames": segment_frames,
            "tube_len": self.tube_len,
            "motion_weight": self.motion_weight,
        }

    @torch.no_grad()
    def target(
        self, clips: Tensor, masked: Tensor | None, bodies: Bodies | None = None, empty: Tensor | None = None
    ) -> Tensor:
        """The teacher's features.

        Args:
            clips: [N, T, V, C].
            masked: int32 [r * N, M], the tokens wanted, mask after mask; None for all L.
            bodies: which tracks are empty, all of which then share what the teacher says of one.
            empty: float [1, L, D], what it says of one; None: it is asked.

        Returns:
            [r * N, M, D], or [N, L, D].
        """
        places, asked = None, 0 if empty is not None else 1
        # One row for the empty ones; without a second there is nothing to share.
        if bodies is not None and bodies.filled + asked < clips.shape[0]:
            clips, places = clips[bodies.order[: bodies.filled + asked]], bodies.places
        hidden = self.teacher.hidden(clips, self.top_k)
        if places is None and (masked is None or masked.shape[0] == clips.shape[0]):
            return ops.teacher_target(hidden, masked, self.target_norm)
        target = ops.teacher_target(hidden, None, self.target_norm)  # [N', L, D]
        if places is not None and empty is not None:
            target = torch.cat([target, empty])
        if masked is None:
            return target if places is None else target[places]
        track = torch.arange(target.shape[0], device=target.device) if places is None else places
        if masked.shape[0] > track.shape[0]:
            track = track.repeat(masked.shape[0] // track.shape[0])
        return target[track[:, None], masked]

    @torch.no_grad()
    def empty_target(self, clips: Tensor) -> Tensor:
        """The teacher's features of a track of zeros, for all tokens, [1, L, D], for clips like these [N, T, V, C]."""
        hidden = self.teacher.hidden(torch.zeros_like(clips[:1]), self.top_k)
        return ops.teacher_target(hidden, None, self.target_norm)


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


def _filled(clips: Tensor) -> Tensor:
    """bool [N]: whether a track of clips [N, T, V, C] holds anything."""
    return (clips != 0).flatten(1).any(dim=1)


def _moments(x: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Variance and mean over all tokens of each channel of [N, M, D], of the rows ``kept`` where that is given."""
    x = x if x.dtype == torch.float64 else x.float()
    if kept is None:
        rows = x.reshape(-1, x.shape[-1])
        if x.is_cuda:
            return torch.var_mean(rows, dim=0, correction=0)
        # Fifteen times as fast on a CPU.
        mean = rows.mean(0)
        return (rows - mean).square().mean(0), mean
    weight = (kept / (kept.sum().clamp(min=1) * x.shape[1]))[:, None, None]  # [N, 1, 1]
    mean = (x * weight).sum((0, 1))
    return ((x - mean).square() * weight).sum((0, 1)), mean
