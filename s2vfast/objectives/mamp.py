"""MAMP: predict the normalised motion of the masked tokens (Mao et al., ICCV 2023)."""

from __future__ import annotations

from s2vfast.objectives.base import register
from s2vfast.objectives.masked import MaskedObjective


@register("mamp")
class MAMP(MaskedObjective):
    """The target of a token is its s * 3 differences from frame to frame, normalised by themselves.

    Tokens that move are masked more often.
    """

    mask_kind = "motion_token"
    target_name = "motion"
