"""Hi-TRS: poses of masked joints, orders of frames and of windows, and the window to come (Chen et al., ECCV 2022).

All four are losses of one step on one masked sequence. A body that is there is a sequence of its own. Augmentations
are steps of data.train_steps, as docs/views.md lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast.config.fields import Section, option
from s2vfast.errors import ConfigError
from s2vfast.networks.base import build_network
from s2vfast.networks.hitrs import HiTRS, Packing, grouped, lengths_of, packed_frames, window_count, window_frames
from s2vfast.objectives.base import Draw, Loss, MicroBatch, Objective, register
from s2vfast.reference import philox

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout

MASK, ORDERS = 70, 71
"""What the draws are for: streams of `s2vfast.reference.philox`."""
_MASK_VALUE = 1.0
_LEAST = 3
"""Windows of the shortest sequence that is looked at: two to exchange, and the one to come."""


@dataclass
class HiTRSLossConfig(Section):
    """The four losses; the defaults are the published ones."""

    pose: float = option(1.0, ge=0)
    """Weight of the masked joints' coordinates."""
    clip: float = option(1.0, ge=0)
    """Weight of the order of a window's frames."""
    video: float = option(1.0, ge=0)
    """Weight of the order of a video's windows."""
    future: float = option(1.0, ge=0)
    """Weight of the last window's embedding, which is told from those of other videos."""
    mask: float = option(0.15, ge=0, le=1)
    """Share of the joints that are selected. Of these 80 % are put at (1, 1, 1), 10 % where another joint of another
    frame is, and 10 % stay."""
    pose_scale: float = option(10.0, gt=0)
    """Factor of coordinates, in metres, before the smooth L1 loss."""
    temperature: float = option(0.07, gt=0)
    """Of the softmax over last windows."""


@dataclass(frozen=True)
class HiTRSInputs:
    """What the loss needs: frames and windows that there are, P pairs of windows, U sequences."""

    rows: Tensor  # [F, V, C], masked
    packing: Packing  # windows: those of videos, P as they are, P swapped; videos: U as they are, U exchanged
    masked: Tensor  # int64 [K]: selected joints, numbered in (F + 1) * V
    joints: Tensor  # [K, C], where they are
    pairs: Tensor  # int64 [2 * P]: windows, as they are and swapped
    future: Tensor  # int64 [U]: windows
    tracks: Tensor  # int64 [U]


def smooth_l1_sum(prediction: Tensor, target: Tensor) -> Tensor:
    """Sum over rows of the mean over their values."""
    return F.smooth_l1_loss(prediction, target, reduction="sum") / max(target.shape[-1], 1)


@register("hitrs")
class HiTRSLoss(Objective):
    """Four heads on the three levels.

    Args:
        encoder: the network.
        options: the section.
        channels: of clips.
    """

    Section = HiTRSLossConfig
    gathers = True
    terms = ("pose", "clip", "video", "future")

    def __init__(self, encoder: HiTRS, options: HiTRSLossConfig, channels: int = 3) -> None:
        super().__init__(encoder)
        self.options = options
        frame, clip, video = (encoder.section.width * 2**level for level in range(3))
        self.pose_head = nn.Linear(frame, channels)
        self.clip_head, self.video_head = nn.Linear(clip, 2), nn.Linear(video, 2)
        self.future_head = nn.Linear(video, clip)

    @classmethod
    def build(cls, config: Config, layout: Layout, classes: Sequence[str] = ()) -> HiTRSLoss:
        """The objective of a config, as it stands before the first step."""
        return cls(build_network(config, layout), config.objective, config.channels)

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Its own network, and clips that have windows enough."""
        if not issubclass(config.network_class, HiTRS):
            raise ConfigError(f"objective.name: hitrs looks at three levels; model.name: {config.model.name} has none")
        if window_count(config.data.frames, config.model) < _LEAST:
            raise ConfigError(f"data.frames: {config.data.frames}; {_LEAST} windows do not fit, give more frames")

    def prepare(self, views: tuple[Tensor, ...], draw: Draw) -> HiTRSInputs:
        """Masks, pairs and exchanges, and all numbers that shapes depend on."""
        return self.arrange(views[0], **self.drawn(views[0], draw))

    def drawn(self, clips: Tensor, draw: Draw) -> dict[str, Any]:
        """All that is random in a step: the arguments of `arrange` beside the clips [N, T, V, C]."""
        encoder = self.encoder
        seen, lengths = (clips != 0).any(-1).any(-1), lengths_of(clips, encoder.bodies)
        counts = [window_count(length, encoder.section) for length in lengths.tolist()]
        seen = seen & torch.tensor([count >= _LEAST for count in counts], device=seen.device)[:, None]
        tracks = seen.any(1).nonzero()[:, 0].tolist()
        ids = philox.track_ids(draw.sample_ids.to(clips.device), encoder.bodies)
        masked, selected = self.mask(clips, seen, draw.seed, draw.epoch, ids)
        bits = philox.random_bits(draw.seed, draw.epoch, ids, ORDERS, 3)
        orders = bits[:, 2].tolist()
        return {
            "masked": masked,
            "seen": seen,
            "selected": selected,
            "counts": {track: counts[track] for track in tracks},
            "pairs": self.pairs(clips, seen, lengths, bits),
            # Two windows are exchanged, though they touch.
            "exchanges": [_apart(counts[i] - 1, 2 if counts[i] > _LEAST else 1, orders[i]) for i in tracks],
        }

    def mask(self, clips: Tensor, seen: Tensor, seed: int, epoch: int, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Masked clips, and which joints of frames were selected, bool [N, T, V].

        Args:
            clips: [N, T, V, C].
            seen: bool [N, T], the frames whose joints may be selected.
            seed: of the draws.
            epoch: of the draws.
            ids: int64 [N], of the tracks.
        """
        N, T, V, _ = clips.shape
        bits = philox.random_bits(seed, epoch, ids, MASK, 2 * T * V).view(N, 2, T, V)
        rate, kind = self.options.mask, philox.uniform(bits[:, 0])
        selected = (kind < rate) & seen[..., None]
        # Another joint of another of the frames where the body is seen.
        count, at = seen.sum(1), torch.argsort((~seen).to(torch.uint8), dim=1, stable=True)  # [N], [N, T]
        other_frames = (count - 1).clamp(min=1)[:, None, None]
        other = philox.randint(bits[:, 1], other_frames * (V - 1))
        rank = (seen.cumsum(1) - 1)[..., None]
        frame = (rank + 1 + other // (V - 1)) % count.clamp(min=1)[:, None, None]
        frame = torch.gather(at, 1, frame.flatten(1)).view(N, T, V)
        joint = (torch.arange(V, device=clips.device) + 1 + other % (V - 1)) % V
        swapped = clips[torch.arange(N, device=clips.device)[:, None, None], frame, joint]
        masked = torch.where((selected & (kind < 0.8 * rate))[..., None], _MASK_VALUE, clips)
        moved = selected & (kind >= 0.8 * rate) & (kind < 0.9 * rate)
        return torch.where(moved[..., None], swapped, masked), selected

    def pairs(self, clips: Tensor, seen: Tensor, lengths: Tensor, draws: Tensor) -> list[tuple[int, int, int, int]]:
        """(track, first frame in the padded clip, two places in the window) of tracks that have a window that moves.

        Args:
            clips: [N, T, V, C], before masking.
            seen: bool [N, T]; tracks without such a frame have no pair.
            lengths: int64 [N].
            draws: int64 [N, 3]: the first chooses the window, the second the places.
        """
        section, pad = self.encoder.section, self.encoder.pad
        padded = F.pad(clips, (0, 0, 0, 0, pad, pad))
        step = section.dilation
        moves = (padded[:, step:] != padded[:, :-step]).any(-1).any(-1)  # [N, T + 2 * pad - step]
        span = (section.window - 1) * step
        starts = padded.shape[1] - span
        moving = torch.stack([moves[:, i * step : i * step + starts] for i in range(section.window - 1)]).any(0)
        moving &= torch.arange(starts, device=clips.device) < (lengths + 2 * pad - span)[:, None]
        moving &= seen.any(1, keepdim=True)
        nth = philox.randint(draws[:, 0], moving.sum(1))
        start = (moving.cumsum(1) == nth[:, None] + 1).int().argmax(1)
        valid = moving.any(1).tolist()
        return [
            (track, first, *_apart(section.window, 2, bits))
            for track, (first, bits) in enumerate(zip(start.tolist(), draws[:, 1].tolist(), strict=True))
            if valid[track]
        ]

    def arrange(
        self,
        clips: Tensor,
        masked: Tensor,
        seen: Tensor,
        selected: Tensor,
        counts: dict[int, int],
        pairs: list[tuple[int, int, int, int]],
        exchanges: list[tuple[int, int]],
    ) -> HiTRSInputs:
        """What goes through the levels.

        Args:
            clips: [N, T, V, C].
            masked: [N, T, V, C].
            seen: bool [N, T], frames that are there.
            selected: bool [N, T, V], joints whose coordinates are to be told.
            counts: windows of each track that is looked at, the last of which is the future.
            pairs: as `HiTRSLoss.pairs` gives them.
            exchanges: two windows of each of the tracks in ``counts``.
        """
        encoder, device = self.encoder, clips.device
        section, offsets = encoder.section, encoder.offsets.to(device)
        frames, number = packed_frames(seen)
        of_windows, starts, videos, exchanged, future = [], [], [], [], []
        for (track, count), (one, two) in zip(counts.items(), exchanges, strict=True):
            first = len(starts)
            of_windows += [track] * count
            starts += [i * section.stride for i in range(count)]
            videos.append(list(range(first, first + count - 1)))
            other = list(videos[-1])
            other[one], other[two] = other[two], other[one]
            exchanged.append(other)
            future.append(first + count - 1)
        positions = []
        for _, _, one, two in pairs:
            order = list(range(section.window))
            order[one], order[two] = order[two], order[one]
            positions.append(order)

        def index(values: list) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        of_pairs, at = index([pair[0] for pair in pairs]), index([pair[1] for pair in pairs])
        swapped = offsets[index(positions).view(-1, section.window)]
        windows = [
            window_frames(number, index(of_windows), index(starts), offsets, encoder.pad),
            window_frames(number, of_pairs, at, offsets, encoder.pad),
            window_frames(number, of_pairs, at, swapped, encoder.pad),
        ]
        groups, order = grouped([*videos, *exchanged], device)
        selected_rows = selected.flatten(0, 1)[frames]
        return HiTRSInputs(
            masked.flatten(0, 1)[frames],
            Packing(frames, torch.cat(windows), groups, order),
            selected_rows.flatten().nonzero()[:, 0] + clips.shape[2],
            clips.flatten(0, 1)[frames][selected_rows],
            len(starts) + torch.arange(2 * len(pairs), device=device),
            index(future),
            index(list(counts)),
        )

    def outputs(self, inputs: HiTRSInputs) -> dict[str, Tensor]:
        """Embeddings of each level by name, what the heads make of them, and ``target``."""
        frames = self.encoder.frames(inputs.rows, inputs.packing)
        windows = self.encoder.windows(frames, inputs.packing)
        videos = self.encoder.videos(windows, inputs.packing)
        return {
            "frames": frames,
            "windows": windows,
            "videos": videos,
            "pose": self.pose_head(frames.flatten(0, 1)[inputs.masked]),
            "clip": self.clip_head(windows[inputs.pairs]),
            "video": self.video_head(videos),
            "prediction": self.future_head(videos[: len(inputs.tracks)]),
            "target": windows[inputs.future].detach(),
        }

    def step_loss(self, batch: MicroBatch, shared: Tensor | None = None) -> Loss:
        """The weighted sum; means are over all ranks' joints, pairs and sequences."""
        inputs, options = batch.inputs, self.options
        out = self.outputs(inputs)
        scale = options.pose_scale
        sums = {
            "pose": smooth_l1_sum(scale * out["pose"], scale * inputs.joints),
            "clip": _order_sum(out["clip"]),
            "video": _order_sum(out["video"]),
            "future": self._future_sum(out["prediction"], out["target"], inputs.tracks, len(batch.clips)),
        }
        sizes = [len(inputs.joints), len(inputs.pairs), 2 * len(inputs.tracks), len(inputs.tracks)]
        counts = self.ranks.all_gather(out["pose"].new_tensor([sizes])).sum(0).clamp(min=1)
        means = {
            name: value * self.ranks.world_size / count
            for (name, value), count in zip(sums.items(), counts, strict=True)
        }
        loss = sum(getattr(options, name) * mean for name, mean in means.items())
        return Loss(loss, len(batch.clips), {name: mean.detach() for name, mean in means.items()})

    def _future_sum(self, prediction: Tensor, target: Tensor, tracks: Tensor, size: int) -> Tensor:
        """InfoNCE over the sequences of all ranks; tracks that are not looked at are no negatives."""
        rows = target.new_zeros(size, target.shape[1] + 1)
        rows[tracks] = F.pad(target, (0, 1), value=1.0)
        rows = self.ranks.all_gather(rows)
        similarity = F.normalize(prediction, dim=-1, eps=1e-8) @ F.normalize(rows[:, :-1], dim=-1, eps=1e-8).T
        logits = (similarity / self.options.temperature).masked_fill(rows[:, -1] == 0, -torch.inf)
        return F.cross_entropy(logits, self.ranks.rank * size + tracks, reduction="sum")


def _order_sum(logits: Tensor) -> Tensor:
    """Cross-entropy of logits [2 n, 2]: the first half is in order (1), the second is not (0)."""
    half = len(logits) // 2
    labels = (torch.arange(len(logits), device=logits.device) < half).long()
    return F.cross_entropy(logits, labels, reduction="sum")


def _apart(count: int, distance: int, bits: int) -> tuple[int, int]:
    """Two of ``count`` places at least ``distance`` apart, each two as likely, by 32 random bits."""
    every = [(one, two) for one in range(count) for two in range(one + distance, count)]
    return every[bits * len(every) >> 32]
