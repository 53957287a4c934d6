"""MAMP: predict the normalised motion of the masked tokens (Mao et al., ICCV 2023)."""

from __future__ import annotations

from s2vfast.objectives.base import Objective, register


@register("mamp")
class MAMP(Objective):
    """The target of a token is its s * 3 differences from frame to frame, normalised by themselves.

    Tokens that move are masked more often.
    """

    mask_kind = "motion_token"
    predicts = "motion"
