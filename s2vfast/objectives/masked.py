"""Objectives that predict something of masked tokens: masks, decoder, empty bodies and the loss at the masked tokens.

An objective of this family says what the target is:

    @register("mine")
    class Mine(MaskedObjective):
        mask_kind = "random"

        @classmethod
        def target_dim(cls, config):
            return 3

        def target(self, clips, masked, bodies=None, empty=None):
            return …  # [r * N, U, 3]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from s2vfast import ops
from s2vfast.config.fields import option
from s2vfast.errors import ConfigError
from s2vfast.networks.base import Network, build_network
from s2vfast.networks.block import BlockOptions
from s2vfast.networks.transformer import TransformerConfig, initialise
from s2vfast.objectives.base import Draw, Loss, MicroBatch, Objective
from s2vfast.objectives.bodies import Bodies, has_body
from s2vfast.objectives.decoder import DECODERS, Decoder
from s2vfast.objectives.masks import MaskBatch, MaskSampler, check_masks
from s2vfast.objectives.targets import TARGETS, motion_weights, token_numbers

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout


@dataclass
class MaskedConfig:
    """The decoder, a second target, and what becomes of empty bodies."""

    decoder: Literal["self", "cross"] = "self"
    """How the decoder's tokens look at each other: ``self``: latents and mask tokens in one sequence, all at all
    (published). ``cross``: mask tokens at the latents alone (CrossMAE, arXiv 2401.14391)."""
    decoder_depth: int = option(3, ge=1)
    """Decoder blocks; their width, heads and start are the network's."""
    auxiliary: Literal["none", "coordinates", "motion"] = "none"
    """What a second head predicts, of the same tokens: ``coordinates`` as in skeletonmae, ``motion`` as in mamp."""
    auxiliary_weight: float = option(0.1, ge=0)
    """Weight of the second head's loss in the loss that is reported."""
    motion_loss: float = option(0.0, ge=0, le=1)
    """Share of a masked token's weight in the loss that goes by its motion energy (after AMR, arXiv 2606.11450), mean 1
    over the masked tokens of a track; 0: all tokens count alike (published)."""
    placement: Literal["token", "published"] = "token"
    """Where the decoder gets a visible latent: ``token``: at its own token (the paper). ``published``: where the
    authors' released code of Skeleton2vec puts it under tube masking, which is in the first segments, whatever its
    token."""
    empty_bodies: Literal["compute", "share", "drop"] = "share"
    """All-zero tracks: ``compute`` treats them like any other (published), ``share`` runs the teacher once
    for all of them (same loss; as ``compute`` where there is no teacher), ``drop`` leaves them out (another loss)."""


class MaskedObjective(Objective):
    """An encoder that sees the visible tokens, a decoder that predicts something of the others, maybe a teacher.

    Args:
        encoder: the student's, and what is evaluated where there is no teacher.
        decoder: predicts, with its second head the auxiliary target.
        sampler: which tokens are visible.
        empty_bodies: of the config; ``share`` is ``compute`` where nothing can be shared.
        auxiliary: the second head's target, a name of `s2vfast.objectives.targets.TARGETS`; None: there is no such
            head.
        auxiliary_weight: of its loss.
        motion_loss: of the config.
    """

    Section = MaskedConfig
    masks_tokens = True
    mask_kind: ClassVar[str] = "random"
    """What mask.kind ``auto`` stands for."""
    target_name: ClassVar[str | None] = None
    """The target's name in `s2vfast.objectives.targets.TARGETS`, where it is one of these."""

    def __init__(
        self,
        encoder: Network,
        decoder: Decoder,
        sampler: MaskSampler,
        *,
        empty_bodies: str = "compute",
        auxiliary: str | None = None,
        auxiliary_weight: float = 0.0,
        motion_loss: float = 0.0,
    ) -> None:
        super().__init__(encoder)
        self.decoder, self.sampler = decoder, sampler
        self.empty_bodies = "compute" if empty_bodies == "share" and not self.averages else empty_bodies
        self.weighted_by_count = empty_bodies == "drop"
        self.auxiliary, self.auxiliary_weight, self.motion_loss = auxiliary, auxiliary_weight, motion_loss
        width = decoder.head.out_features
        self.moments = {"target_var": width, "pred_var": width}

    @classmethod
    def build(cls, config: Config, layout: Layout, classes: Sequence[str] = ()) -> MaskedObjective:
        """The objective of ``config``, as it stands before the first step; arguments as of `build_objective`."""
        cls.check(config, layout)
        objective, encoder = config.objective, build_network(config, layout)
        auxiliary = None if objective.auxiliary == "none" else objective.auxiliary
        return cls(
            encoder,
            build_decoder(
                config,
                encoder,
                cls.target_dim(config),
                None if auxiliary is None else token_numbers(encoder.segment_frames),
            ),
            MaskSampler.from_config(config, encoder, layout, cls.mask_kind),
            empty_bodies=objective.empty_bodies,
            auxiliary=auxiliary,
            auxiliary_weight=objective.auxiliary_weight,
            motion_loss=objective.motion_loss,
            **cls.options(config),
        )

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Masks that can be drawn, of tokens that the network can leave out; a second target that is another one."""
        network, objective = config.network_class, config.objective
        segments = network.segments(config)
        if segments is None or not network.accepts_visible:
            raise ConfigError(
                f"objective.name: {objective.name} masks tokens of joints and segments; model.name: "
                f"{config.model.name} cannot leave tokens out. Choose another objective or network"
            )
        if not network.independent_tracks and objective.empty_bodies != "compute":
            raise ConfigError(
                f"objective.empty_bodies: {objective.empty_bodies} needs a network whose tracks do not depend on each "
                f"other, which model.name: {config.model.name} is not; give compute"
            )
        if objective.auxiliary == cls.target_name:
            raise ConfigError(
                f"objective.auxiliary: {objective.auxiliary} is what {objective.name} predicts already; give none or "
                f"another"
            )
        if objective.decoder == "cross" and objective.placement == "published":
            raise ConfigError(
                "objective.placement: published says where objective.decoder: self gets the latents; cross "
                "looks at them wherever they are. Give token"
            )
        check_masks(config, cls.mask_kind, segments, layout)

    @classmethod
    def options(cls, config: Config) -> dict[str, Any]:
        """Further arguments of the class."""
        return {}

    @classmethod
    def target_dim(cls, config: Config) -> int | None:
        """Numbers predicted a token; None: the network's width."""
        return None if cls.target_name is None else token_numbers(config.model.segment_frames)

    def target(
        self, clips: Tensor, masked: Tensor | None, bodies: Bodies | None = None, empty: Tensor | None = None
    ) -> Tensor:
        """What is to be predicted.

        Args:
            clips: [N, T, V, C].
            masked: int32 [r * N, U], the tokens to predict, mask after mask; None for all L.
            bodies: which tracks are empty, where ``empty_bodies`` is ``share``.
            empty: what `empty_target` gave.

        Returns:
            [r * N, U, width], or [N, L, width].
        """
        if self.target_name is None:
            raise NotImplementedError(f"{type(self).__name__}.target")
        return TARGETS[self.target_name](clips, masked, self.sampler.segment_frames)

    def empty_target(self, clips: Tensor) -> Tensor | None:
        """The target of a track of zeros, once for several batches like clips [N, T, V, C]; None: nothing to share."""
        return None

    def draw(
        self,
        clips: Tensor,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        epoch: int = 0,
        sample_ids: Tensor | None = None,
    ) -> MaskBatch:
        """The masks of clips [N, T, V, C]; arguments as of `forward`."""
        return self.sampler.sample(clips, noise=noise, seed=seed, epoch=epoch, sample_ids=sample_ids)

    def prepare(self, views: tuple[Tensor, ...], draw: Draw) -> MaskBatch:
        """The masks of the one view."""
        return self.draw(views[0], seed=draw.seed, epoch=draw.epoch, sample_ids=draw.sample_ids)

    def shared(self, batches: Sequence[MicroBatch]) -> Tensor | None:
        """The target of an empty body, where several micro-batches have any."""
        if len(batches) == 1 or self.empty_bodies != "share":
            return None
        if all(batch.bodies.capacity == batch.clips.shape[0] for batch in batches):
            return None
        return self.empty_target(batches[0].clips)

    def step_loss(self, batch: MicroBatch, shared: Tensor | None = None) -> Loss:
        """`forward` of a micro-batch."""
        return self(batch.clips, batch.inputs, bodies=batch.bodies, empty=shared)

    def forward(
        self,
        clips: Tensor,
        masks: MaskBatch | None = None,
        *,
        bodies: Bodies | None = None,
        empty: Tensor | None = None,
        noise: Tensor | None = None,
        seed: int = 0,
        epoch: int = 0,
        sample_ids: Tensor | None = None,
    ) -> Loss:
        """The loss of a batch.

        Args:
            clips: [N, T, V, C], bodies of a sample next to each other.
            masks: what `draw` gave for these clips; None draws it from the arguments below.
            bodies: which tracks hold one; None looks for them where that matters, which makes the host wait for the
                device.
            empty: what `empty_target` gave, for ``empty_bodies="share"``; None: a track of the batch stands for all.
            noise: draws of the masks, of masks_per_clip * N tracks; None draws them from (seed, epoch, sample_ids).
            seed: seed of the masks.
            epoch: epoch of the masks.
            sample_ids: int64 [B] with N a multiple of B.

        Returns:
            The mean over masked tokens of all tracks, weighed by motion as ``motion_loss`` says, and moments of target
            and prediction.
        """
        if masks is None:
            masks = self.draw(clips, noise=noise, seed=seed, epoch=epoch, sample_ids=sample_ids)
        visible, masked, latent_tokens = masks.visible, masks.masked, masks.latent_tokens
        r, count = self.sampler.per_clip, clips.shape[0]
        if bodies is None and self.empty_bodies != "compute":
            bodies = Bodies.from_clips(clips)
        filled = None
        if self.empty_bodies == "drop":
            tracks = bodies.order[: bodies.capacity]
            rows = (torch.arange(r, device=clips.device)[:, None] * count + tracks).reshape(-1)
            visible, masked, latent_tokens = visible[rows], masked[rows], latent_tokens[rows]
            clips = clips[tracks]
            filled = has_body(clips).repeat(r)  # [r * n], False where ``capacity`` is more than there are

        with torch.no_grad():
            target = self.target(clips, masked, bodies if self.empty_bodies == "share" else None, empty)
            frames, mix = self.sampler.segment_frames, self.motion_loss
            weights = motion_weights(clips, masked, frames, mix) if mix else None
        stream = self.encoder.stream(clips.repeat(r, 1, 1, 1) if r > 1 else clips, visible)
        stream = self.decoder.stream(stream, latent_tokens, masked, norm=self.encoder.final_norm)  # [r * N, U, D]
        prediction = self.decoder.predict(stream, self.decoder.head)
        loss = _mean_squared_error(prediction, target, weights, filled)
        if self.auxiliary is not None:
            with torch.no_grad():
                auxiliary_target = TARGETS[self.auxiliary](clips, masked, frames)
            auxiliary_prediction = self.decoder.predict(stream, self.decoder.auxiliary)
            second = _mean_squared_error(auxiliary_prediction, auxiliary_target, weights, filled)
            loss = loss + self.auxiliary_weight * second
        with torch.no_grad():
            tracks_in_loss = masked.shape[0] if filled is None else filled.sum()
            moments = {"target_var": channel_moments(target, filled), "pred_var": channel_moments(prediction, filled)}
            return Loss(loss, tracks_in_loss, moments=moments)


def build_decoder(config: Config, encoder: Network, out: int | None = None, auxiliary: int | None = None) -> Decoder:
    """The decoder of a config, a function of train.seed.

    Args:
        config: the run; of its model section heads, mlp_ratio, layer_scale, norm_eps, init and init_std are taken where
            it has them, else the transformer's defaults.
        encoder: whose tokens are decoded.
        out: numbers predicted a token; None: the encoder's width.
        auxiliary: numbers that a second head predicts a token; None: there is none.
    """
    segments, joints = encoder.grid
    blocks = BlockOptions.of(config.model, dim=encoder.width)
    kind, depth = DECODERS[config.objective.decoder], config.objective.decoder_depth
    decoder = kind(joints, segments, depth, blocks, out=out, auxiliary=auxiliary)
    start = {name: getattr(config.model, name, getattr(TransformerConfig(), name)) for name in ("init", "init_std")}
    return initialise(decoder, start["init"], start["init_std"], seed=2 * config.train.seed + 1)


def _mean_squared_error(prediction: Tensor, target: Tensor, weights: Tensor | None, filled: Tensor | None) -> Tensor:
    """Mean squared error of [N, U, D], tokens weighed by [N, U], of the rows ``filled``, where these are given."""
    if weights is not None:
        root = weights.sqrt()[..., None]
        prediction, target = prediction * root, target * root
    if filled is None:
        return ops.masked_mse(prediction, target)
    # Rows beyond those with a body differ from nothing, and the mean is over the others.
    filled_prediction = torch.where(filled[:, None, None], prediction.to(target.dtype), target)
    return ops.masked_mse(filled_prediction, target) * (filled.numel() / filled.sum().clamp(min=1))


def channel_moments(x: Tensor, filled: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Variance and mean over all tokens of each channel of [N, U, D], of the rows ``filled`` where that is given."""
    x = x if x.dtype == torch.float64 else x.float()
    if filled is None:
        rows = x.reshape(-1, x.shape[-1])
        if x.is_cuda:
            return torch.var_mean(rows, dim=0, correction=0)
        # Fifteen times as fast on a CPU.
        mean = rows.mean(0)
        return (rows - mean).square().mean(0), mean
    weight = (filled / (filled.sum().clamp(min=1) * x.shape[1]))[:, None, None]  # [N, 1, 1]
    mean = (x * weight).sum((0, 1))
    return ((x - mean).square() * weight).sum((0, 1)), mean
