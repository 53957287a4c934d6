"""Hi-TRS: joints of a frame, frames of a window, windows of a video, a transformer each (Chen et al., ECCV 2022).

Only what there is goes through a level: frames without a body share one row, windows are those of each sequence, and
sequences of as many windows go through attention together. As windows beyond a sequence were masked as keys and there
is no batch norm, the numbers are those of padded batches. The published step is `s2vfast.reference.hitrs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.config.fields import Section, option
from s2vfast.errors import ConfigError
from s2vfast.networks.base import Network, register

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout


@dataclass
class HiTRSConfig(Section):
    """Levels of Hi-TRS; the defaults are the published ones."""

    width: int = option(128, ge=2)
    """Channels of a joint in a frame. A window has twice, a video four times as many. Even."""
    depth: int = option(3, ge=1)
    """Blocks of each level."""
    heads: int = option(8, ge=1)
    """H: attention heads of every block."""
    head_width: int = option(64, ge=1)
    """d: queries and keys of a head, the same at every level."""
    window: int = option(7, ge=2)
    """Frames of a window."""
    stride: int = option(7, ge=1)
    """Frames from the start of one window to the next."""
    dilation: int = option(2, ge=1)
    """Frames from one frame of a window to the next."""
    positions: int = option(200, ge=1)
    """Windows that a video can have."""


@dataclass(frozen=True)
class Packing:
    """Which frames, windows and videos go through the levels."""

    frames: Tensor
    """int64 [F]: rows of clips [N * T, V, C]. Packed frame 0 is empty, frame i + 1 is ``frames[i]``."""
    windows: Tensor
    """int64 [W, window]: packed frames of each window."""
    videos: tuple[Tensor, ...]
    """int64 [n, k] each: windows of n videos that have k; all n together are R."""
    order: Tensor
    """int64 [R]: where each video stands among those of ``videos`` in turn."""
    owners: Tensor | None = None
    """int64 [1 + F + W + R]: the track of every packed frame (0 for the empty one), window, and video of ``videos`` in
    turn; needed for stochastic depth."""


def window_count(length: int, section: HiTRSConfig) -> int:
    """Windows of a sequence of ``length`` frames with ``window // 2 * dilation`` empty frames put at both ends.

    All that lie within it, and as many more as it takes to see the last frame; `data.augment.temporal.sliding_windows`
    lists their frames.
    """
    pad, span = section.window // 2 * section.dilation, (section.window - 1) * section.dilation + 1
    within = (length + 2 * pad - span) // section.stride + 1 if length + 2 * pad >= span else 0
    return max(within, max(0, -(-(pad + length - span) // section.stride)) + 1)


def lengths_of(clips: Tensor, bodies: int) -> Tensor:
    """int64 [N]: frames of each track, up to the last one in which any body of its sample is seen.

    Args:
        clips: [N, T, V, C], bodies of a sample next to each other, zeros where a body is absent.
        bodies: of a sample.
    """
    seen = (clips != 0).any(-1).any(-1).unflatten(0, (-1, bodies)).any(1)  # [B, T]
    steps = torch.arange(1, clips.shape[1] + 1, device=clips.device)
    return (seen * steps).amax(1).repeat_interleave(bodies)


def packed_frames(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the frames where a body is seen, and of every frame the number that it has when packed (0: empty).

    Args:
        seen: bool [N, T].

    Returns:
        (int64 [F], int64 [N, T]).
    """
    number = seen.flatten().cumsum(0).reshape(seen.shape) * seen
    return seen.flatten().nonzero()[:, 0], number


def window_frames(number: Tensor, tracks: Tensor, starts: Tensor, offsets: Tensor, pad: int) -> Tensor:
    """Packed frames [W, window] of windows of tracks [W]; frames before and after a clip are empty.

    Args:
        number: as `packed_frames` gives it.
        tracks: int64 [W].
        starts: int64 [W], first frame of a window in the padded clip.
        offsets: int64 [window] or [W, window], frames after the start.
        pad: empty frames before the clip.
    """
    at = starts[:, None] + offsets - pad
    within = (at >= 0) & (at < number.shape[1])
    return number[tracks[:, None], at.clamp(0, number.shape[1] - 1)] * within


def grouped(videos: Sequence[Sequence[int]], device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
    """Videos of as many windows together: `Packing.videos` and `Packing.order`."""
    by_count: dict[int, list[int]] = {}
    for number, video in enumerate(videos):
        by_count.setdefault(len(video), []).append(number)
    row_of = [0] * len(videos)
    turn = [number for count in sorted(by_count) for number in by_count[count]]
    for position, number in enumerate(turn):
        row_of[number] = position
    groups = tuple(torch.tensor([videos[i] for i in by_count[count]], device=device) for count in sorted(by_count))
    return groups, torch.tensor(row_of, device=device)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); queries, keys and values without bias."""

    def __init__(self, width: int, hidden: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, attend: Callable[[Tensor], Tensor], factors: Tensor | None = None) -> Tensor:
        """Rows to rows.

        Args:
            x: [..., D].
            attend: queries, keys and values [..., 3, H, d] to [..., H, d].
            factors: [2, …, 1], of both branches, broadcast over x; None: 1.
        """
        return self.mlp(self.attended(x, attend(self.queries_keys_values(x)), factors), factors)

    def queries_keys_values(self, x: Tensor) -> Tensor:
        """[..., 3, H, d]."""
        return self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))

    def attended(self, x: Tensor, values: Tensor, factors: Tensor | None) -> Tensor:
        """x with the first branch."""
        y = self.out(values.flatten(-2))
        return x + (y if factors is None else y * factors[0])

    def mlp(self, x: Tensor, factors: Tensor | None) -> Tensor:
        """x with the second branch."""
        y = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + (y if factors is None else y * factors[1])

    def token(self, x: Tensor, mask: Tensor | None = None, factors: Tensor | None = None) -> Tensor:
        """The last token's row [..., D] of what comes of x [..., L, D]: its query alone looks at all keys.

        Args:
            x: rows.
            mask: bool, broadcast over scores [..., H, 1, L], True where a key may be looked at.
            factors: [2, …, 1], of both branches, broadcast over the result.
        """
        q_weight, kv_weight = self.qkv.weight.split([self.out.in_features, 2 * self.out.in_features])
        y = self.norm1(x)
        q = F.linear(y[..., -1:, :], q_weight).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
        k, v = F.linear(y, kv_weight).unflatten(-1, (2, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        values = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(-2, -3)[..., 0, :, :]
        return self.mlp(self.attended(x[..., -1, :], values, factors), factors)


def sinusoids(count: int, width: int) -> Tensor:
    """[count, width]: sines in even channels, cosines in odd ones, of wavelengths from 2 pi to 10,000 times that."""
    angles = torch.arange(count)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]


@register("hitrs")
class HiTRS(Network):
    """Frame, clip and video level. One token a track: the video's embedding.

    Args:
        section: the sizes.
        joints: V.
        bodies: M: tracks of a sample, whose longest is the video's length.
        channels: of clips.
    """

    Section = HiTRSConfig
    # A body that is absent in the last frames has windows as far as its sample has frames.
    independent_tracks = False
    branches = 2

    def __init__(self, section: HiTRSConfig, joints: int, bodies: int, channels: int = 3) -> None:
        super().__init__()
        self.section, self.bodies, self.joints = section, bodies, joints
        widths = [section.width * 2**level for level in range(3)]
        self.width, self.depth = widths[2], 3 * section.depth
        self.embedding = nn.Sequential(nn.Linear(channels, widths[0]), nn.GELU(), nn.LayerNorm(widths[0]))
        self.clip_map, self.video_map = nn.Linear(widths[0], widths[1]), nn.Linear(widths[1], widths[2])
        hidden = (section.width, section.width, 2 * section.width)
        self.frame_blocks, self.clip_blocks, self.video_blocks = (
            nn.ModuleList(Block(widths[i], hidden[i], section.heads, section.head_width) for _ in range(section.depth))
            for i in range(3)
        )
        self.frame_position = nn.Parameter(sinusoids(joints, widths[0]))
        by_joint = sinusoids(joints, widths[0]).expand(section.window, -1, -1)
        by_frame = sinusoids(section.window, widths[0])[:, None].expand(-1, joints, -1)
        self.clip_position = nn.Parameter(torch.cat([by_joint, by_frame], -1).contiguous())
        self.video_position = nn.Parameter(sinusoids(section.positions, widths[2]))
        self.clip_token = nn.Parameter(torch.rand(widths[1]))
        self.video_token = nn.Parameter(torch.rand(widths[2]))
        frame = torch.arange(section.window * joints + 1) // joints
        mask = (frame[:, None] != frame) | torch.eye(len(frame), dtype=torch.bool)
        self.register_buffer("clip_mask", mask, persistent=False)
        self.register_buffer("offsets", torch.arange(section.window) * section.dilation, persistent=False)

    @classmethod
    def build(cls, config: Config, layout: Layout) -> HiTRS:
        """Of the config's model section, with the published start."""
        return cls(config.model, layout.num_joints, config.data.bodies, config.channels)

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Even widths, and positions for all windows."""
        model = config.model
        if model.width % 2:
            raise ConfigError(f"model.width: {model.width}; an even number is expected")
        count = window_count(config.data.frames, model)
        if count > model.positions:
            raise ConfigError(
                f"model.positions: {model.positions}; data.frames = {config.data.frames} make {count} windows"
            )

    @property
    def pad(self) -> int:
        """Empty frames before and after a clip."""
        return self.section.window // 2 * self.section.dilation

    def tokens(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """Embeddings of videos, [N, 1, 4 * model.width]; clips as of `Network.tokens`."""
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
            return self.dense(clips)[:, None]
        packing = self.packing(clips)
        frames = self.frames(clips.flatten(0, 1)[packing.frames], packing)
        return self.videos(self.windows(frames, packing), packing)[:, None]

    def with_drop_path(self, clips: Tensor, factors: Tensor, rates: list[float]) -> Tensor:
        """As of `Network`; layers are those of the frame, then the clip, then the video level.

        The empty frame, which all tracks share, is never left out.
        """
        packing = self.packing(clips)
        factors = factors.to(clips.dtype)
        frames = self.frames(clips.flatten(0, 1)[packing.frames], packing, factors)
        windows = self.windows(frames, packing, factors)
        return self.videos(windows, packing, factors)[:, None]

    def packing(self, clips: Tensor) -> Packing:
        """All windows of every track. Waits for the device, as numbers of windows are shapes."""
        frames, number = packed_frames((clips != 0).any(-1).any(-1))
        counts = [window_count(length, self.section) for length in lengths_of(clips, self.bodies).tolist()]
        starts = torch.tensor([i * self.section.stride for count in counts for i in range(count)], device=clips.device)
        tracks = torch.arange(len(counts), device=clips.device)
        of_window = tracks.repeat_interleave(torch.tensor(counts, device=clips.device))
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        videos = [list(range(first, first + count)) for first, count in zip(firsts, counts, strict=True)]
        groups, order = grouped(videos, clips.device)
        windows = window_frames(number, of_window, starts, self.offsets, self.pad)
        of_frame = torch.cat([frames.new_zeros(1), frames // clips.shape[1]])
        return Packing(frames, windows, groups, order, torch.cat([of_frame, of_window, order.argsort()]))

    def frames(self, rows: Tensor, packing: Packing, factors: Tensor | None = None) -> Tensor:
        """Frame level: packed frames [1 + F, V, width], the empty one first, of those that there are [F, V, C]."""
        x = self.embedding(torch.cat([rows.new_zeros(1, *rows.shape[1:]), rows])) + self.frame_position
        for layer, block in enumerate(self.frame_blocks):
            x = block(x, ops.attention, self._factors(factors, packing, 0, layer, 2))
        return x

    def windows(self, frames: Tensor, packing: Packing, factors: Tensor | None = None) -> Tensor:
        """Clip level: embeddings [W, 2 * width] of windows of packed frames."""
        # Before frames are gathered: most of them are in two windows.
        mapped = self.clip_map(frames)
        x = mapped.index_select(0, packing.windows.flatten()).unflatten(0, packing.windows.shape) + self.clip_position
        x = torch.cat([x.flatten(1, 2), self.clip_token.expand(len(x), 1, -1)], 1)
        *before, last = self.clip_blocks
        for layer, block in enumerate(before):
            x = block(x, self.clip_attention, self._factors(factors, packing, 1, layer, 2))
        return last.token(x, None, self._factors(factors, packing, 1, len(before), 1))

    def clip_attention(self, qkv: Tensor) -> Tensor:
        """[N, L, 3, H, d] to [N, L, H, d]: a joint does not look at other joints of its frame."""
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.clip_mask).transpose(1, 2)

    def videos(self, windows: Tensor, packing: Packing, factors: Tensor | None = None) -> Tensor:
        """Video level: embeddings [R, 4 * width] of videos of windows [W, 2 * width]."""
        if not packing.videos:
            return windows.new_zeros(0, self.width)
        mapped, parts = self.video_map(windows), []
        for video in packing.videos:
            x = mapped[video] + self.video_position[: video.shape[1]]
            parts.append(torch.cat([x, self.video_token.expand(len(x), 1, -1)], 1))
        shapes = [part.shape[:2] for part in parts]
        sizes = [n * k for n, k in shapes]
        x = torch.cat([part.flatten(0, 1) for part in parts])  # linear maps see all rows at once

        def attend(qkv: Tensor) -> Tensor:
            groups = zip(qkv.split(sizes), shapes, strict=True)
            return torch.cat([ops.attention(rows.unflatten(0, shape)).flatten(0, 1) for rows, shape in groups])

        *before, last = self.video_blocks
        for layer, block in enumerate(before):
            of_videos = self._factors(factors, packing, 2, layer, 1)
            if of_videos is not None:
                repeats = torch.cat([v.new_full((len(v),), v.shape[1] + 1) for v in packing.videos])
                of_videos = of_videos.repeat_interleave(repeats, 1)
            x = block(x, attend, of_videos)
        of_videos = self._factors(factors, packing, 2, len(before), 1)
        of_groups = [None] * len(shapes) if of_videos is None else of_videos.split([n for n, _ in shapes], 1)
        groups = zip(x.split(sizes), shapes, of_groups, strict=True)
        return torch.cat([last.token(rows.unflatten(0, shape), None, of) for rows, shape, of in groups])[packing.order]

    def _factors(self, factors: Tensor | None, packing: Packing, level: int, layer: int, ones: int) -> Tensor | None:
        """Of a layer's branches for the rows of a level, [2, rows, 1, …] with as many ones."""
        if factors is None:
            return None
        sizes = [len(packing.frames) + 1, len(packing.windows), len(packing.order)]
        tracks = packing.owners.split(sizes)[level]
        of_rows = factors[tracks, level * self.section.depth + layer]
        if level == 0:
            of_rows = torch.cat([torch.ones_like(of_rows[:1]), of_rows[1:]])
        return of_rows.T.reshape(2, len(tracks), *[1] * ones)

    def dense(self, clips: Tensor) -> Tensor:
        """The same embeddings [N, D] by fixed shapes: all windows that a clip can have, and masks. For export."""
        section, N = self.section, len(clips)
        count = window_count(clips.shape[1], section)
        starts = torch.arange(count, device=clips.device) * section.stride
        at = (starts[:, None] + self.offsets).flatten()
        after = int(at.max()) + 1 - clips.shape[1] - self.pad
        padded = F.pad(clips, (0, 0, 0, 0, self.pad, max(after, 0)))
        x = self.embedding(padded) + self.frame_position
        T = x.shape[1]
        x = x.flatten(0, 1)
        for block in self.frame_blocks:
            x = block(x, ops.attention)
        x = self.clip_map(x).unflatten(0, (-1, T)).index_select(1, at)
        x = x.unflatten(1, (count, section.window)).flatten(0, 1) + self.clip_position
        x = torch.cat([x.flatten(1, 2), self.clip_token.expand(x.shape[0], 1, -1)], 1)
        for block in self.clip_blocks[:-1]:
            x = block(x, self.clip_attention)
        x = self.clip_blocks[-1].token(x)
        x = self.video_map(x).unflatten(0, (-1, count)) + self.video_position[:count]
        x = torch.cat([x, self.video_token.expand(x.shape[0], 1, -1)], 1)
        # Window i is there if it lies in the padded clip, or the frames before its last ones do not show the end.
        length = lengths_of(clips, self.bodies)[:, None]
        span = (section.window - 1) * section.dilation + 1
        within = starts + span <= length + 2 * self.pad
        needed = starts - section.stride + span < self.pad + length
        is_window = (within | needed | (starts == 0)).expand(N, -1)
        mask = F.pad(is_window, (0, 1), value=True)[:, None, None]

        def attend(qkv: Tensor) -> Tensor:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

        for block in self.video_blocks[:-1]:
            x = block(x, attend)
        return self.video_blocks[-1].token(x, mask)

    def layer_of(self, name: str) -> int:
        """0: what comes before the frame level; i + 1: block i, counted through the levels; maps: the block before."""
        first, _, remainder = name.partition(".")
        level = ("frame", "clip", "video").index(first.split("_")[0]) if "_" in first else 0
        if first.endswith("_blocks"):
            return level * self.section.depth + int(remainder.partition(".")[0]) + 1
        return level * self.section.depth

    def activation_numbers(self) -> int:
        """Queries, keys and values of the joints of two clips' frames."""
        return 6 * self.section.heads * self.section.head_width * self.section.window * self.joints
