"""What networks of point clouds have in common: one vector for every stretch of so many frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from s2vfast.errors import ConfigError
from s2vfast.networks.base import Network

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout


class ClipEncoder(Network):
    """Stretches of ``segment_frames`` frames, each by itself, to a token each; a subclass writes `encode`.

    The tokens of a clip of T frames are S = T // segment_frames of them. The stretches cover the clip evenly: they lie
    side by side where T is a multiple, and have equal gaps (of a frame at most more than others) where it is none.

    Args:
        frames: T of the config, from which `grid` follows; `tokens` takes any T from segment_frames on.
        segment_frames: frames of a stretch.
        width: D.
    """

    reads = ("points",)
    any_frames = True

    def __init__(self, frames: int, segment_frames: int, width: int) -> None:
        super().__init__()
        self.segment_frames, self.width = segment_frames, width
        self.grid = (frames // segment_frames, 1)

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """A stretch fits into the clip, which is of coordinates alone."""
        if config.data.frames < config.model.segment_frames:
            raise ConfigError(
                f"model.segment_frames: {config.model.segment_frames} is more than data.frames = {config.data.frames}"
            )
        if config.channels != 3:
            raise ConfigError(
                f"model.name: {config.model.name} takes coordinates alone; data.velocity 0 and data.confidence false "
                f"are expected"
            )

    @classmethod
    def segments(cls, config: Config) -> int | None:
        """S."""
        return config.data.frames // config.model.segment_frames

    def encode(self, clips: Tensor) -> Tensor:
        """[N, D] of clips [N, segment_frames, P, 3], in metres."""
        raise NotImplementedError(f"{type(self).__name__}.encode")

    def tokens(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """[N, S, D], a token a stretch, of clips float32 [N, T, P, 3], in metres."""
        N, T = clips.shape[:2]
        frames = torch.arange(self.segment_frames)[None] + stretch_starts(T, self.segment_frames)[:, None]  # [S, s]
        stretches = clips[:, frames.to(clips.device)]  # [N, S, s, P, 3]
        return self.encode(stretches.flatten(0, 1)).unflatten(0, (N, -1))


def stretch_starts(frames: int, segment_frames: int) -> Tensor:
    """int64 [S]: first frames of the S = frames // segment_frames stretches that cover a clip evenly."""
    count = frames // segment_frames
    slack = frames - segment_frames
    return torch.arange(count) * slack // max(count - 1, 1) if count > 1 else torch.tensor([slack // 2])
