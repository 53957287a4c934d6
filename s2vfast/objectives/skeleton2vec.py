"""Skeleton2vec: predict a moving-average teacher's contextual features of the masked tokens (arXiv 2401.00921)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from s2vfast import ops
from s2vfast.config import Config
from s2vfast.nn import Decoder, Encoder
from s2vfast.objectives.base import Bodies, Objective, register
from s2vfast.objectives.masks import Masking


@register("skeleton2vec")
class Skeleton2vec(Objective):
    """Student (encoder, decoder) and teacher (the average of the student's encoder, without gradient).

    Args:
        encoder: the student's.
        decoder: the student's.
        masking: which tokens are visible.
        top_k: the last k blocks whose outputs make the target.
        target_norm: ``instance`` or ``layer``.
        others: of `Objective`.
    """

    mask_kind = "motion_tube"
    with_teacher = True

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        masking: Masking,
        *,
        top_k: int,
        target_norm: str = "instance",
        **others: Any,
    ) -> None:
        super().__init__(encoder, decoder, masking, teacher=copy.deepcopy(encoder).requires_grad_(False), **others)
        self.top_k, self.target_norm = top_k, target_norm

    @classmethod
    def options(cls, config: Config) -> dict[str, Any]:
        """Of the objective's section."""
        return {"top_k": config.objective.top_k, "target_norm": config.objective.target_norm}

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
