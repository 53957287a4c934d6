"""Hi-TRS: poses of masked joints, orders of frames and of windows, and the window to come (Chen et al., ECCV 2022).

All four are losses of one step on one masked sequence. A body that is there is a sequence of its own. Augmentations
are steps of data.train_steps, as docs/views.md lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast.config.fields import Section, option
from s2vfast.errors import ConfigError
from s2vfast.networks.base import build_network
from s2vfast.networks.hitrs import HiTRS
from s2vfast.networks.windows import (
    PAIRS,
    LevelNoise,
    Packing,
    grouped,
    lengths_of,
    level_noise,
    offsets,
    pack,
    pack_fixed,
    packed_frames,
    pad_and_span,
    rounded_up,
    scales,
    window_count,
    window_frames,
    window_noise,
    window_shares,
)
from s2vfast.objectives.base import Draw, Loss, MicroBatch, Objective, register
from s2vfast.reference import philox

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout

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
    future_target: Literal["last", "other"] = "last"
    """What is told from those of other sequences. ``last``: the embedding of the last window of the same masked
    sequence, which does not learn by it (published). ``other``: the mean over all windows of an other draw of the
    sequence, unmasked and without dropout, which does."""


@dataclass(frozen=True)
class OtherView:
    """An unmasked sequence: W windows of F frames."""

    rows: Tensor  # [F, V, C]
    windows: Tensor  # int64 [W, window]: packed frames
    tracks: Tensor  # int64 [W]
    weights: Tensor  # [W]: shares of a track's mean


@dataclass(frozen=True)
class HiTRSInputs:
    """What the loss needs: P pairs of windows, U sequences. Weights are 1, or 0 of rows that fill up a shape."""

    rows: Tensor  # [F, V, C], frames that there are, masked
    packing: Packing  # windows: those of videos, P as they are, P swapped; videos: U as they are, U exchanged
    joints: Tensor  # [F, V, C], where they are
    selected: Tensor  # [F, V], weights of the joints that are told
    pairs: Tensor  # [P], weights
    future: Tensor  # int64 [U, window]: packed frames of the last windows
    tracks: Tensor  # int64 [U]
    videos: Tensor  # [U], weights
    noise: LevelNoise | None = None  # of the packing
    future_noise: LevelNoise | None = None  # of the last windows
    other: OtherView | None = None  # what is told in place of the last windows


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
    views_by_body = True
    terms = ("pose", "clip", "video", "future")

    def __init__(self, encoder: HiTRS, options: HiTRSLossConfig, channels: int = 3) -> None:
        super().__init__(encoder)
        self.options = options
        self.views = 2 if options.future_target == "other" else 1
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
        inputs = self.arrange(views[0], **self.drawn(views[0], draw), fixed=draw.shapes_repeat)
        if len(views) == 2:
            inputs = replace(inputs, other=self.other_view(views[1], draw.shapes_repeat))
        return self.with_noise(inputs, draw)

    def drawn(self, clips: Tensor, draw: Draw) -> dict[str, Any]:
        """All that is random in a step: the arguments of `arrange` beside the clips [N, T, V, C]."""
        encoder = self.encoder
        seen, lengths = (clips != 0).any(-1).any(-1), lengths_of(clips, encoder.bodies)
        counts = [window_count(length, encoder.section) for length in lengths.tolist()]
        seen = seen & torch.tensor([count >= _LEAST for count in counts], device=seen.device)[:, None]
        tracks = seen.any(1).nonzero()[:, 0].tolist()
        ids = philox.track_ids(draw.sample_ids.to(clips.device), encoder.bodies)
        masked, selected = self.mask(clips, seen, draw.seed, draw.epoch, ids)
        bits = philox.random_bits(draw.seed, draw.epoch, ids, philox.HITRS_ORDERS, 3)
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
        bits = philox.random_bits(seed, epoch, ids, philox.HITRS_MASK, 2 * T * V).view(N, 2, T, V)
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
        fixed: bool = False,
    ) -> HiTRSInputs:
        """What goes through the levels, without noise.

        Args:
            clips: [N, T, V, C].
            masked: [N, T, V, C].
            seen: bool [N, T], frames that are there.
            selected: bool [N, T, V], joints whose coordinates are to be told.
            counts: windows of each track that is looked at, the last of which is the future.
            pairs: as `HiTRSLoss.pairs` gives them.
            exchanges: two windows of each of the tracks in ``counts``.
            fixed: fill up with rows of weight 0, so that shapes repeat from step to step.
        """
        section, device = self.encoder.section, clips.device
        (N, T), (pad, _), after = clips.shape[:2], pad_and_span(section), offsets(section, device)
        most = window_count(T, section) - 1
        frames, number = packed_frames(seen)
        tracks, weights, swaps = list(counts), [1.0] * len(counts), list(exchanges)
        if fixed:
            swap_of = dict(zip(counts, exchanges, strict=True))
            tracks, weights = list(range(N)), [float(track in counts) for track in range(N)]
            swaps = [swap_of.get(track, (0, 0)) for track in tracks]
        visible = [(track, i) for track in counts for i in range(counts[track] - 1)]
        first_of = {track: row for row, (track, i) in enumerate(visible) if i == 0}
        videos = [[first_of[track] + i for i in range(counts.get(track, 1) - 1)] for track in tracks]
        exchanged = [list(video) for video in videos]
        for video, (one, two) in zip(exchanged, swaps, strict=True):
            if video:
                video[one], video[two] = video[two], video[one]
        positions = [list(range(section.window)) for _ in pairs]
        for order, (_, _, one, two) in zip(positions, pairs, strict=True):
            order[one], order[two] = order[two], order[one]

        def index(values: list, capacity: int = 0) -> Tensor:
            return torch.tensor(values + [0] * (capacity - len(values) if fixed else 0), device=device).long()

        def windows_of(of: list[int], starts: list[int], steps: Tensor, capacity: int) -> Tensor:
            rows = window_frames(number, index(of), index(starts), steps, pad)
            return F.pad(rows, (0, 0, 0, capacity - len(rows))) if fixed else rows

        capacity = rounded_up(len(visible), N * most)
        of_visible, numbers = [track for track, _ in visible], [i for _, i in visible]
        of_pairs, at = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        swapped = after[index(positions).view(-1, section.window)]
        windows = [
            windows_of(of_visible, [i * section.stride for i in numbers], after, capacity),
            windows_of(of_pairs, at, after, N),
            windows_of(of_pairs, at, swapped, N),
        ]
        present, both = None, [*videos, *exchanged]
        if fixed:
            present = torch.arange(most, device=device) < index([len(video) for video in both])[:, None]
            groups = (index([video + [0] * (most - len(video)) for video in both]),)
            order = torch.arange(len(both), device=device)
        else:
            groups, order = grouped(both, device)
        turn, count = order.argsort(), max(len(tracks), 1)
        of_rows = F.pad(frames, (0, rounded_up(len(frames), N * T) - len(frames))) if fixed else frames
        weight = (torch.arange(len(of_rows), device=device) < len(frames))[:, None].to(clips.dtype)  # [F, 1]
        empty, of_pair = frames.new_zeros(1), torch.full_like(windows[1][:, 0], PAIRS)
        packing = Packing(
            of_rows,
            torch.cat(windows),
            groups,
            order,
            (
                torch.cat([empty, of_rows // T]),
                torch.cat([index(of_visible, capacity), index(of_pairs, N), index(of_pairs, N)]),
                index(tracks)[turn % count],
            ),
            (
                torch.cat([empty, of_rows % T]),
                torch.cat([index(numbers, capacity), of_pair, of_pair + 1]),
                turn // count,
            ),
            present,
        )
        return HiTRSInputs(
            masked.flatten(0, 1)[of_rows] * weight[..., None],
            packing,
            clips.flatten(0, 1)[of_rows],
            selected.flatten(0, 1)[of_rows] * weight,
            (torch.arange(len(windows[1]), device=device) < len(pairs)).to(clips.dtype),
            windows_of(tracks, [(counts.get(track, 1) - 1) * section.stride for track in tracks], after, len(tracks)),
            index(tracks),
            torch.tensor(weights, dtype=clips.dtype, device=device),
        )

    def other_view(self, clips: Tensor, fixed: bool = False) -> OtherView:
        """All windows of clips [N, T, V, C]; ``fixed``: as of `arrange`."""
        packing = (pack_fixed if fixed else pack)(clips, self.encoder.bodies, self.encoder.section)
        rows, weights = clips.flatten(0, 1)[packing.frames], window_shares(packing, len(clips), clips.dtype)
        return OtherView(rows, packing.windows, packing.tracks[1], weights)

    def with_noise(self, inputs: HiTRSInputs, draw: Draw) -> HiTRSInputs:
        """The same with what dropout keeps."""
        encoder, packing = self.encoder, inputs.packing
        if not encoder.section.dropout:
            return inputs
        draws = draw.words(philox.HITRS_NOISE, encoder.bodies, inputs.rows.device)
        sizes = (encoder.section, encoder.joints)
        last = torch.full_like(inputs.tracks, PAIRS - 1)
        inputs = replace(inputs, noise=level_noise(packing, *sizes, draws))
        if inputs.other is not None:
            return inputs
        return replace(inputs, future_noise=LevelNoise((), window_noise(*sizes, inputs.tracks, last, draws), ()))

    def outputs(self, inputs: HiTRSInputs) -> dict[str, Tensor]:
        """Embeddings of each level by name, what the heads make of them, and ``target``."""
        encoder, packing, rate = self.encoder, inputs.packing, self.encoder.section.dropout
        of_frames, of_windows, of_videos = scales(inputs.noise, rate)
        frames = encoder.frames(inputs.rows, of_frames)
        windows = encoder.windows(frames, packing.windows, of_windows)
        videos = encoder.videos(windows, packing, of_videos)
        if inputs.other is not None:
            target = self._means(inputs.other)[inputs.tracks]
        else:
            with torch.no_grad():
                target = encoder.windows(frames, inputs.future, scales(inputs.future_noise, rate)[1])
        return {
            "frames": frames,
            "windows": windows,
            "videos": videos,
            "pose": self.pose_head(frames[1:]),
            "clip": self.clip_head(windows[len(windows) - 2 * len(inputs.pairs) :]),
            "video": self.video_head(videos),
            "prediction": self.future_head(videos[: len(inputs.tracks)]),
            "target": target,
        }

    def _means(self, view: OtherView) -> Tensor:
        """Means of window embeddings, each in the row of its track: [W, 2 * width]."""
        windows = self.encoder.windows(self.encoder.frames(view.rows), view.windows) * view.weights[:, None]
        return windows.new_zeros(len(view.tracks), windows.shape[1]).index_add(0, view.tracks, windows)

    def step_loss(self, batch: MicroBatch, shared: Tensor | None = None) -> Loss:
        """The weighted sum; means are over all ranks' joints, pairs and sequences."""
        inputs, options = batch.inputs, self.options
        out = self.outputs(inputs)
        scale = options.pose_scale
        pose = F.smooth_l1_loss(scale * out["pose"], scale * inputs.joints, reduction="none").mean(-1)
        sums = {
            "pose": (pose * inputs.selected).sum(),
            "clip": _order_sum(out["clip"], inputs.pairs),
            "video": _order_sum(out["video"], inputs.videos),
            "future": self._future_sum(out["prediction"], out["target"], inputs, len(batch.clips)),
        }
        sequences = inputs.videos.sum()
        sizes = torch.stack([inputs.selected.sum(), 2 * inputs.pairs.sum(), 2 * sequences, sequences])
        counts = self.ranks.all_gather(sizes[None]).sum(0).clamp(min=1)
        means = {
            name: value * self.ranks.world_size / count
            for (name, value), count in zip(sums.items(), counts, strict=True)
        }
        loss = sum(getattr(options, name) * mean for name, mean in means.items())
        return Loss(loss, len(batch.clips), {name: mean.detach() for name, mean in means.items()})

    def _future_sum(self, prediction: Tensor, target: Tensor, inputs: HiTRSInputs, size: int) -> Tensor:
        """InfoNCE over the sequences of all ranks; tracks that are not looked at are no negatives."""
        rows = target.new_zeros(size, target.shape[1] + 1)
        rows[inputs.tracks] = torch.cat([target, inputs.videos[:, None].to(target.dtype)], 1)
        rows = self.ranks.all_gather(rows)
        similarity = F.normalize(prediction, dim=-1, eps=1e-8) @ F.normalize(rows[:, :-1], dim=-1, eps=1e-8).T
        logits = (similarity / self.options.temperature).masked_fill(rows[:, -1] == 0, -torch.inf)
        logits = torch.where(inputs.videos[:, None] > 0, logits, 0.0)  # whose own track is not among them
        losses = F.cross_entropy(logits, self.ranks.rank * size + inputs.tracks, reduction="none")
        return (losses * inputs.videos).sum()


def _order_sum(logits: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of logits [2 n, 2]: the first half is in order (1), the second is not (0); weights [n]."""
    labels = (torch.arange(len(logits), device=logits.device) < len(weights)).long()
    return (F.cross_entropy(logits, labels, reduction="none") * weights.repeat(2)).sum()


def _apart(count: int, distance: int, bits: int) -> tuple[int, int]:
    """Two of ``count`` places at least ``distance`` apart, each two as likely, by 32 random bits."""
    every = [(one, two) for one in range(count) for two in range(one + distance, count)]
    return every[bits * len(every) >> 32]
