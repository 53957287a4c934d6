"""Skeleton2vec: predict a moving-average teacher's contextual features of the masked tokens (arXiv 2401.00921)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from s2vfast import ops
from s2vfast.config.fields import option
from s2vfast.errors import ConfigError
from s2vfast.networks.base import Network
from s2vfast.objectives.base import register
from s2vfast.objectives.bodies import Bodies
from s2vfast.objectives.decoder import Decoder
from s2vfast.objectives.masked import MaskedConfig, MaskedObjective
from s2vfast.objectives.masks import MaskSampler

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout

COLLAPSED_VARIANCE = 0.01
"""A teacher whose targets vary less than this over tokens has collapsed. Targets are layer-normed, so that 1 is the
most there can be; data2vec's reference stops at a standard deviation of 0.1, which is the same."""


@dataclass
class Skeleton2vecConfig(MaskedConfig):
    """The teacher and its features."""

    top_k: int = option(8, ge=1)
    """The last k layers of the network whose outputs make the target."""
    target_norm: Literal["instance", "layer"] = "instance"
    """Normalisation of each layer's output before the mean over layers."""
    ema_start: float = option(0.9999, ge=0, le=1)
    """tau of the teacher's moving average at step 0."""
    ema_end: float = option(1.0, ge=0, le=1)
    """tau once ema_steps have passed."""
    ema_steps: int | None = option(None, ge=1)
    """Steps over which tau rises linearly; null: the whole run."""


@register("skeleton2vec")
class Skeleton2vec(MaskedObjective):
    """Student (encoder, decoder) and teacher (the average of the student's encoder, without gradient).

    Args:
        encoder: the student's.
        decoder: the student's.
        sampler: which tokens are visible.
        top_k: the last k layers whose outputs make the target.
        target_norm: ``instance`` or ``layer``.
        ema: tau at step 0, at the end, and the steps between; None: all steps of the run.
        options: of `MaskedObjective`.
    """

    Section = Skeleton2vecConfig
    averages = {"teacher": "encoder"}  # noqa: RUF012 - of the class
    evaluated = "teacher"
    mask_kind = "motion_tube"

    def __init__(
        self,
        encoder: Network,
        decoder: Decoder,
        sampler: MaskSampler,
        *,
        top_k: int,
        target_norm: str = "instance",
        ema: tuple[float, float, int | None] = (0.9999, 1.0, None),
        **options: Any,
    ) -> None:
        super().__init__(encoder, decoder, sampler, **options)
        self.teacher = self.average_of(encoder)
        self.top_k, self.target_norm, self.ema = top_k, target_norm, ema

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """What a teacher needs."""
        super().check(config, layout)
        objective, depth = config.objective, getattr(config.model, "depth", None)
        if depth is not None and objective.top_k > depth:
            raise ConfigError(f"objective.top_k: {objective.top_k} is more than model.depth = {depth}")
        if objective.ema_end < objective.ema_start:
            raise ConfigError(
                f"objective.ema_end: {objective.ema_end} is below objective.ema_start = {objective.ema_start}"
            )

    @classmethod
    def options(cls, config: Config) -> dict[str, Any]:
        """Of the objective's section."""
        section = config.objective
        ema = (section.ema_start, section.ema_end, section.ema_steps)
        return {"top_k": section.top_k, "target_norm": section.target_norm, "ema": ema}

    def ema_decay(self, step: int, total_steps: int) -> float:
        """tau, rising linearly, then staying (method of data2vec)."""
        start, end, steps = self.ema
        steps = steps or total_steps
        return end if step >= steps else start + (end - start) * step / steps

    def warning(self, reported: dict[str, float]) -> str | None:
        """A teacher that says the same of every token."""
        variance = reported["target_var"]
        if variance >= COLLAPSED_VARIANCE:
            return None
        return (
            f"the teacher has collapsed: its targets vary by {variance:.2g} over tokens (1 at most, below "
            f"{COLLAPSED_VARIANCE} is a collapse), so that there is nothing left to predict. A slower EMA "
            f"(objective.ema_start, objective.ema_end), a lower optim.lr or objective.target_norm instance may help"
        )

    @torch.no_grad()
    def target(
        self, clips: Tensor, masked: Tensor | None, bodies: Bodies | None = None, empty: Tensor | None = None
    ) -> Tensor:
        """The teacher's features.

        Args:
            clips: [N, T, V, C].
            masked: int32 [r * N, U], the tokens to predict, mask after mask; None for all L.
            bodies: which tracks are empty, all of which then share what the teacher says of one.
            empty: float [1, L, D], what it says of one; None: it is asked.

        Returns:
            [r * N, U, D], or [N, L, D].
        """
        rank, extra = None, 0 if empty is not None else 1
        # One row for the empty ones; without a second there is nothing to share.
        if bodies is not None and bodies.capacity + extra < clips.shape[0]:
            clips, rank = clips[bodies.order[: bodies.capacity + extra]], bodies.rank
        hidden = self.teacher.hidden(clips, self.top_k)
        if rank is None and (masked is None or masked.shape[0] == clips.shape[0]):
            return ops.teacher_target(hidden, masked, self.target_norm)
        target = ops.teacher_target(hidden, None, self.target_norm)  # [N', L, D]
        if rank is not None and empty is not None:
            target = torch.cat([target, empty])
        if masked is None:
            return target if rank is None else target[rank]
        track = torch.arange(target.shape[0], device=target.device) if rank is None else rank
        if masked.shape[0] > track.shape[0]:
            track = track.repeat(masked.shape[0] // track.shape[0])
        return target[track[:, None], masked]

    @torch.no_grad()
    def empty_target(self, clips: Tensor) -> Tensor:
        """The teacher's features of a track of zeros, for all tokens, [1, L, D], for clips like these [N, T, V, C]."""
        hidden = self.teacher.hidden(torch.zeros_like(clips[:1]), self.top_k)
        return ops.teacher_target(hidden, None, self.target_norm)
