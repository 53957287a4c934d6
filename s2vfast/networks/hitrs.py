"""Hi-TRS: joints of a frame, frames of a window, windows of a video, a transformer each (Chen et al., ECCV 2022).

Only what there is goes through a level: frames without a body share one row, windows are those of each sequence, and
sequences of as many windows go through attention together. As windows beyond a sequence were masked as keys and there
is no batch norm, the numbers are those of padded batches. The published step is `s2vfast.reference.hitrs`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.config.fields import Section, option
from s2vfast.errors import ConfigError
from s2vfast.networks.base import Network, TokenMaps, register
from s2vfast.networks.linear import Linear
from s2vfast.networks.noise import Draws
from s2vfast.networks.windows import (
    PAIRS,
    LevelNoise,
    Packing,
    Scale,
    level_noise,
    pack,
    pack_fixed,
    pad_and_span,
    scales,
    window_count,
    window_shares,
)

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
    readout: Literal["video", "windows"] = "video"
    """What a sequence is read by: the ``video``'s token (published), or the mean over its ``windows``' tokens, to which
    the video level does not belong."""
    dropout: float = option(0.2, ge=0, lt=1)
    """Of what attention and MLP add in every block, to 1/256, in training passes: those of the objective hitrs, and of
    classify where objective.noise asks for it."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); queries, keys and values without bias."""

    def __init__(self, width: int, hidden: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * heads * head_width, bias=False)
        self.out = Linear(heads * head_width, width, bias=False)
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)

    def forward(self, x: Tensor, attend: Callable[[Tensor], Tensor], factors: Tensor | None = None) -> Tensor:
        """Rows to rows.

        Args:
            x: [..., D].
            attend: queries, keys and values [..., 3, H, d] to [..., H, d].
            factors: [2, …], of both branches, broadcast over x; None: 1.
        """
        return self._finished(x, attend(self.queries_keys_values(x)), factors)

    def queries_keys_values(self, x: Tensor) -> Tensor:
        """[..., 3, H, d]."""
        return self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))

    def token(self, x: Tensor, mask: Tensor | None = None, factors: Tensor | None = None) -> Tensor:
        """The last token's row [n, D] of what comes of x [n, L, D]: its query alone looks at all rows.

        Keys and values are not made: q (k_w y) is (q k_w) y, and the weighted mean of v_w y is v_w times that of y.

        Args:
            x: rows.
            mask: bool [n, L], True where a row may be looked at.
            factors: [2, …], of both branches, broadcast over the result.
        """
        y, weights, v_weight = self._token_weights(x, mask)
        values = torch.einsum("nhD,hdD->nhd", weights @ y, v_weight)
        return self._finished(x[:, -1], values, factors)

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What each row of x [n, L, D] looks at, [n, H, L, L]; mask bool, broadcast over it."""
        q, k, _ = self.queries_keys_values(x).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)

    def _token_weights(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised rows, what the last one looks at [n, H, L], and the matrices of values [H, d, D]."""
        y = self.norm1(x)
        q_weight, k_weight, v_weight = self.qkv.weight.unflatten(0, (3, self.heads, -1))  # each [H, d, D]
        q = torch.einsum("nD,hdD->nhd", y[:, -1], q_weight)
        scores = torch.einsum("nhd,hdD->nhD", q, k_weight) @ y.transpose(1, 2) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        return y, scores.softmax(-1), v_weight

    def _finished(self, x: Tensor, values: Tensor, factors: Tensor | None) -> Tensor:
        """x with both branches; values [..., H, d]."""
        y = self.out(values.flatten(-2))
        x = x + y if factors is None else torch.addcmul(x, y, factors[0])
        y = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + y if factors is None else torch.addcmul(x, y, factors[1])


def sinusoids(count: int, width: int) -> Tensor:
    """[count, width]: sines in even channels, cosines in odd ones, of wavelengths from 2 pi to 10,000 times that."""
    angles = torch.arange(count)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]


@register("hitrs")
class HiTRS(Network):
    """Frame, clip and video level. One token a track: the embedding of the video, or what model.readout says.

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
        self.reads_windows = section.readout == "windows"
        self.width, self.depth = widths[1 if self.reads_windows else 2], 3 * section.depth
        self.embedding = nn.Sequential(nn.Linear(channels, widths[0]), nn.GELU(), nn.LayerNorm(widths[0]))
        self.clip_map, self.video_map = Linear(widths[0], widths[1]), Linear(widths[1], widths[2])
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

    @classmethod
    def build(cls, config: Config, layout: Layout) -> HiTRS:
        """Of the config's model section, with the published start."""
        return cls(config.model, layout.num_joints, config.data.bodies, config.channels)

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Even widths, and positions for all windows."""
        model, frames = config.model, config.data.frames
        if model.width % 2:
            raise ConfigError(f"model.width: {model.width}; an even number is expected")
        if frames >= PAIRS:
            raise ConfigError(f"data.frames: {frames}; fewer than {PAIRS} are expected by model.name: hitrs")
        count = window_count(frames, model)
        if count > model.positions:
            raise ConfigError(f"model.positions: {model.positions}; data.frames = {frames} make {count} windows")

    @property
    def pad(self) -> int:
        """Empty frames before and after a clip."""
        return pad_and_span(self.section)[0]

    def tokens(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """Embeddings of sequences, [N, 1, D]; clips as of `Network.tokens`."""
        return self._read(clips, self._packing_of(clips))

    def hidden(self, clips: Tensor, last: int) -> list[Tensor]:
        """The video token after each of the last ``last`` blocks, at most those of the video level."""
        if self.reads_windows:
            raise NotImplementedError("HiTRS.hidden: model.readout: windows has no tokens of the video")
        if last > self.section.depth:
            raise NotImplementedError(
                f"HiTRS.hidden: layers below the {self.section.depth} of the video level have no token of the video; "
                f"last = {last}"
            )
        return [state[:, None] for state in self._states(clips, self._packing_of(clips))[-last:]]

    def with_drop_path(self, clips: Tensor, factors: Tensor, rates: list[float]) -> Tensor:
        """As of `Network`; layers are those of the frame, then the clip, then the video level.

        The empty frame, which all tracks share, is never left out.
        """
        packing, depth = self._packing_of(clips), self.section.depth
        by_layer = factors.to(clips.dtype).permute(1, 2, 0)  # [depth, 2, N]
        of_videos = packing.tracks[2].split([len(video) for video in packing.videos])

        def frames(layer: int) -> Tensor:
            of_rows = by_layer[layer][:, packing.tracks[0]].clone()
            of_rows[:, 0] = 1.0
            return of_rows[..., None, None]

        def windows(layer: int) -> Tensor:
            of_rows = by_layer[depth + layer][:, packing.tracks[1], None]
            return of_rows if layer == depth - 1 else of_rows[..., None]

        def videos(layer: int) -> Tensor:
            groups = zip(packing.videos, of_videos, strict=True)
            rows = [by_layer[2 * depth + layer][:, of].repeat_interleave(v.shape[1] + 1, 1) for v, of in groups]
            return torch.cat(rows, 1)[..., None]

        return self._read(clips, packing, (frames, windows, videos))

    def draw_noise(self, clips: Tensor, draws: Draws) -> tuple[Packing, LevelNoise] | None:
        """What dropout keeps of clips [N, T, V, C], and what goes through the levels; None where nothing is dropped."""
        if not self.section.dropout:
            return None
        packing = (pack_fixed if clips.is_cuda else pack)(clips, self.bodies, self.section)
        return packing, level_noise(packing, self.section, self.joints, draws)

    def with_noise(self, clips: Tensor, noise: tuple[Packing, LevelNoise]) -> Tensor:
        """Tokens with dropout, what it keeps being `draw_noise`'s."""
        packing, keep = noise
        return self._read(clips, packing, scales(keep, self.section.dropout))

    def frames(self, rows: Tensor, scale: Scale | None = None) -> Tensor:
        """Frame level: packed frames [1 + F, V, width], the empty one first, of those that there are [F, V, C]."""
        x = self.embedding(torch.cat([rows.new_zeros(1, *rows.shape[1:]), rows])) + self.frame_position
        for layer, block in enumerate(self.frame_blocks):
            x = block(x, ops.attention, scale and scale(layer))
        return x

    def windows(self, frames: Tensor, windows: Tensor, scale: Scale | None = None) -> Tensor:
        """Clip level: embeddings [W, 2 * width] of windows [W, window] of packed frames."""
        x = self._joints(frames, windows)
        *before, last = self.clip_blocks
        for layer, block in enumerate(before):
            x = block(x, self.clip_attention, scale and scale(layer))
        return last.token(x, None, scale and scale(len(before)))

    def _joints(self, frames: Tensor, windows: Tensor) -> Tensor:
        """Rows [W, window * V + 1, 2 * width] that the clip level begins with."""
        mapped = self.clip_map(frames)
        x = mapped.index_select(0, windows.flatten()).unflatten(0, (-1, windows.shape[1])) + self.clip_position
        return torch.cat([x.flatten(1, 2), self.clip_token.expand(x.shape[0], 1, -1)], 1)

    def clip_attention(self, qkv: Tensor) -> Tensor:
        """[N, L, 3, H, d] to [N, L, H, d]: a joint does not look at other joints of its frame."""
        # Kernels for GPUs know no groups, whichever are asked for.
        return ops.attention(qkv, group=self.joints, impl="torch" if qkv.is_cuda else None)

    def videos(self, windows: Tensor, packing: Packing, scale: Scale | None = None) -> Tensor:
        """Video level: embeddings [R, 4 * width] of videos of windows [W, 2 * width]."""
        return deque(self._video_states(windows, packing, scale), maxlen=1).pop()

    def _video_states(self, windows: Tensor, packing: Packing, scale: Scale | None) -> Iterator[Tensor]:
        """The videos' tokens [R, 4 * width] after each block."""
        if not packing.videos:
            yield windows.new_zeros(0, self.width)
            return
        mapped, parts = self.video_map(windows), []
        for video in packing.videos:
            x = mapped[video] + self.video_position[: video.shape[1]]
            parts.append(torch.cat([x, self.video_token.expand(x.shape[0], 1, -1)], 1))
        shapes = [part.shape[:2] for part in parts]
        sizes = [n * k for n, k in shapes]
        x = torch.cat([part.flatten(0, 1) for part in parts])  # linear maps see all rows at once
        mask = None if packing.present is None else F.pad(packing.present, (0, 1), value=True)

        def groups(rows: Tensor) -> list[Tensor]:
            if len(shapes) == 1:  # whose size may be left open, exported
                return [rows.unflatten(0, (-1, shapes[0][1]))]
            return [part.unflatten(0, shape) for part, shape in zip(rows.split(sizes), shapes, strict=True)]

        def attend(qkv: Tensor) -> Tensor:
            mixed = [
                ops.attention(part) if mask is None else _masked_attention(part, mask[:, None, None])
                for part in groups(qkv)
            ]
            return torch.cat([part.flatten(0, 1) for part in mixed])

        *before, last = self.video_blocks
        for layer, block in enumerate(before):
            x = block(x, attend, scale and scale(layer))
            yield torch.cat([part[:, -1] for part in groups(x)])[packing.order]
        factors = [None] * len(parts)
        if scale is not None:
            of_groups = zip(scale(len(before)).split(sizes, 1), shapes, strict=True)
            factors = [part.unflatten(1, shape)[:, :, -1] for part, shape in of_groups]
        tokens = [last.token(part, mask, of) for part, of in zip(groups(x), factors, strict=True)]
        yield torch.cat(tokens)[packing.order]

    def token_maps(self, clips: Tensor) -> TokenMaps:
        """Joints of windows as tokens, a window being a segment of model.stride frames.

        Features are those of the frame level, the mean over a window's frames. In a block, a window looks at others as
        it does at the video level, and at the joints of each as that window's token does at the clip level, summed over
        frames. Salience is what the video's token looks at in the last block, as a share of the most.
        """
        section, packing = self.section, pack_fixed(clips, self.bodies, self.section)
        N, S, V = len(clips), clips.shape[1] // section.stride, self.joints
        frames = self.frames(clips.flatten(0, 1))
        features = frames[packing.windows].mean(1).unflatten(0, (N, -1))[:, :S]  # [N, S, V, D]
        x, joints = self._joints(frames, packing.windows), []
        for block in self.clip_blocks:
            of_token = block._token_weights(x, None)[1][..., :-1].unflatten(-1, (-1, V)).sum(-2)  # [W, H, V]
            joints.append((of_token / of_token.sum(-1, keepdim=True)).unflatten(0, (N, -1))[:, :S])  # [N, S, H, V]
            x = block(x, self.clip_attention)
        present = F.pad(packing.present, (0, 1), value=True)[:, None, None]
        video = self.video_map(x[:, -1]).unflatten(0, (N, -1)) + self.video_position[: packing.videos[0].shape[1]]
        video, windows = torch.cat([video, self.video_token.expand(N, 1, -1)], 1), []
        for block in self.video_blocks:
            windows.append(block.attention_weights(video, present))
            video = block(video, lambda qkv: _masked_attention(qkv, present))
        attention = []
        for of_windows, of_joints in zip(windows, joints, strict=True):
            among = of_windows[:, :, :S, :S]
            among = among / among.sum(-1, keepdim=True)
            weights = among[..., None] * of_joints.transpose(1, 2)[:, :, None]  # [N, H, S, S, V]
            attention.append(weights.flatten(3).repeat_interleave(V, 2))
        salience = (windows[-1][:, :, -1, :S, None] * joints[-1].transpose(1, 2)).mean(1).flatten(1)
        salience = salience / salience.amax(1, keepdim=True)
        return TokenMaps((S, V), section.stride, features.flatten(1, 2), attention, section.depth, salience)

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

    def _packing_of(self, clips: Tensor) -> Packing:
        """Of what there is; of fixed shapes where the number of windows may not be asked for: exported, captured."""
        exported = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
        captured = clips.is_cuda and torch.is_grad_enabled()
        return (pack_fixed if exported or captured else pack)(clips, self.bodies, self.section)

    def _read(self, clips: Tensor, packing: Packing, scales: tuple[Scale | None, ...] = (None, None, None)) -> Tensor:
        """Tokens [N, 1, D] of all clips."""
        if not self.reads_windows:
            return self._states(clips, packing, scales)[-1][:, None]
        windows, N = self._windows(clips, packing, scales), clips.shape[0]  # len would fix the number in an export
        windows = windows * window_shares(packing, N, windows.dtype)[:, None]
        return windows.new_zeros(N, self.width).index_add(0, packing.tracks[1], windows)[:, None]

    def _states(
        self, clips: Tensor, packing: Packing, scales: tuple[Scale | None, ...] = (None, None, None)
    ) -> list[Tensor]:
        """The videos' tokens [N, 4 * width] after each block of the video level."""
        return list(self._video_states(self._windows(clips, packing, scales), packing, scales[2]))

    def _windows(self, clips: Tensor, packing: Packing, scales: tuple[Scale | None, ...]) -> Tensor:
        """The windows' tokens [W, 2 * width]."""
        return self.windows(self.frames(clips.flatten(0, 1)[packing.frames], scales[0]), packing.windows, scales[1])


def _masked_attention(qkv: Tensor, mask: Tensor) -> Tensor:
    """[N, L, 3, H, d] to [N, L, H, d]; mask bool, broadcast over [N, H, L, L], True where a row may be looked at."""
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
