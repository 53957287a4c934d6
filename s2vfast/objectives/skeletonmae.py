"""SkeletonMAE: predict the coordinates of the masked tokens (Wu et al., arXiv 2209.02399)."""

from __future__ import annotations

from s2vfast.objectives.base import register
from s2vfast.objectives.masked import MaskedObjective


@register("skeletonmae")
class SkeletonMAE(MaskedObjective):
    """The target of a token is its s * 3 coordinates; some segments are masked whole, and joints of the others."""

    mask_kind = "frame_joint"
    target_name = "coordinates"
