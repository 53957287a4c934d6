"""Networks of a config, with the published start: truncated normal weights, zero biases."""

from __future__ import annotations

import torch
from torch import nn

from s2vfast.config import Config
from s2vfast.nn.decoder import Decoder
from s2vfast.nn.encoder import Encoder


def build_encoder(config: Config, joints: int) -> Encoder:
    """The encoder of ``config`` for skeletons of ``joints`` joints, as it stands before the first step of a run.

    The weights are a function of train.seed alone.
    """
    model = config.model
    encoder = Encoder(
        joints=joints,
        segments=config.segments,
        segment_frames=model.segment_frames,
        channels=config.channels,
        dim=model.dim,
        heads=model.heads,
        depth=model.depth,
        mlp_ratio=model.mlp_ratio,
        layer_scale=model.layer_scale,
        norm_eps=model.norm_eps,
    )
    return _start(encoder, config, part=0)


def build_decoder(config: Config, joints: int, out: int | None = None, auxiliary: int | None = None) -> Decoder:
    """The decoder of ``config``.

    Args:
        config: the run.
        joints: V.
        out: numbers predicted a token; None: dim.
        auxiliary: numbers that a second head predicts a token; None: there is none.
    """
    model = config.model
    decoder = Decoder(
        joints=joints,
        segments=config.segments,
        dim=model.dim,
        heads=model.heads,
        depth=model.decoder_depth,
        mlp_ratio=model.mlp_ratio,
        layer_scale=model.layer_scale,
        norm_eps=model.norm_eps,
        out=out,
        auxiliary=auxiliary,
    )
    return _start(decoder, config, part=1)


def _start(module: nn.Module, config: Config, part: int) -> nn.Module:
    """Matrices as model.init says, embeddings and mask token truncated normal, biases 0; norms and LayerScale stay.

    The generator runs on the CPU, so that a run starts from the same weights on any device.
    """
    generator = torch.Generator().manual_seed(2 * config.train.seed + part)
    fixed = ("norm", "gamma")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            leaf, _, kind = name.rpartition(".")
            if kind == "bias" and "norm" not in leaf:
                parameter.zero_()
            elif kind == "weight" and parameter.ndim == 2 and config.model.init == "xavier":
                nn.init.xavier_uniform_(parameter, generator=generator)
            elif not any(word in name for word in fixed):
                std = config.model.init_std
                nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)
    return module
