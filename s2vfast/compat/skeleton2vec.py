"""The published naming of Skeleton2vec's parameters, both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from s2vfast import errors

_BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.proj.weight": "proj.weight",
    "attn.proj.bias": "proj.bias",
    "gamma_1": "gamma1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "fc1.weight",
    "mlp.fc1.bias": "fc1.bias",
    "mlp.fc2.weight": "fc2.weight",
    "mlp.fc2.bias": "fc2.bias",
    "gamma_2": "gamma2",
}
QKV = ("queries", "keys", "values")  # in this order in our qkv
_PLAIN = {
    "encoder_embedding.projection.1.bias": "encoder.embedding.bias",
    "encoder_norm.weight": "encoder.norm.weight",
    "encoder_norm.bias": "encoder.norm.bias",
    "decoder_embedding.weight": "decoder.embed.weight",
    "decoder_embedding.bias": "decoder.embed.bias",
    "decoder_norm.weight": "decoder.norm.weight",
    "decoder_norm.bias": "decoder.norm.bias",
    "decoder_feat_head.weight": "decoder.head.weight",
    "decoder_feat_head.bias": "decoder.head.bias",
}
_POSITIONS = {  # published [1, D, 1, V] or [1, D, S, 1] -> ours [V, D] or [S, D]
    "encoder_embedding.spatio_pos_emb": ("encoder.embedding.joint", "joint"),
    "encoder_embedding.temporal_pos_emb": ("encoder.embedding.segment", "segment"),
    "decoder_spatio_pos_emb": ("decoder.joint", "joint"),
    "decoder_temporal_pos_emb": ("decoder.segment", "segment"),
}
_PROJECTION = "encoder_embedding.projection.1.weight"


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "same": lambda value: value,
    "flat": lambda value: value.reshape(-1),
    "columns": lambda value: value.reshape(value.shape[1], -1).t().contiguous(),
    # [D, C, s, 1] -> [D, s * C]
    "convolution": lambda value: value[..., 0].transpose(1, 2).reshape(len(value), -1).contiguous(),
}
"""What becomes of a published parameter, by name; queries, keys and values become one."""


def target_of(source_name: str) -> tuple[str, str] | None:
    """Where a published parameter goes: our name, and how (a key of `CHANGES`, or a name in `QKV`); None: nowhere."""
    match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", source_name)
    if source_name in _PLAIN:
        return _PLAIN[source_name], "same"
    if source_name in _POSITIONS:
        return _POSITIONS[source_name][0], "columns"
    if source_name == _PROJECTION:
        return "encoder.embedding.weight", "convolution"
    if source_name == "mask_token_emb":
        return "decoder.mask_token", "flat"
    if match and match[3] in _BLOCK:
        return f"{match[1]}.blocks.{match[2]}.{_BLOCK[match[3]]}", "same"
    if match and (projection := re.fullmatch(r"attn\.(queries|keys|values)\.(weight|bias)", match[3])):
        return f"{match[1]}.blocks.{match[2]}.qkv.{projection[2]}", projection[1]
    return None


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the published naming as one of `s2vfast.objectives.skeleton2vec.Skeleton2vec`.

    The encoder alone, or encoder and decoder. Exact: values are moved, never computed.

    Raises:
        CheckpointError: a name that is not of the published model, or a part that is missing.
    """
    moved: dict[str, Tensor] = {}
    packed: dict[str, dict[str, str]] = {}
    for source_name, value in state.items():
        target = target_of(source_name)
        if target is None:
            raise errors.CheckpointError(f"{source_name}: no parameter of the published Skeleton2vec has this name")
        name, how = target
        if how in QKV:
            packed.setdefault(name, {})[how] = source_name
        else:
            moved[name] = CHANGES[how](value)
    for name, by_projection in packed.items():
        for projection in QKV:
            if projection not in by_projection:
                present, source_name = next(iter(by_projection.items()))
                raise errors.CheckpointError(
                    f"{source_name.replace(present, projection)}: missing beside {source_name}"
                )
        moved[name] = torch.cat([state[by_projection[projection]] for projection in QKV])
    return moved


def to_published(state: Mapping[str, Tensor], channels: int = 3) -> dict[str, Tensor]:
    """The inverse of `from_published`, bit by bit.

    Args:
        state: parameters under our names.
        channels: C of the model, which the flat embedding weight does not show.

    Raises:
        CheckpointError: a name that is not ours.
    """
    plain = {own_name: source_name for source_name, own_name in _PLAIN.items()}
    block = {own_name: source_name for source_name, own_name in _BLOCK.items()}
    positions = {own_name: (source_name, axis) for source_name, (own_name, axis) in _POSITIONS.items()}
    published = {}
    for name, value in state.items():
        match = re.fullmatch(r"(encoder|decoder)\.blocks\.(\d+)\.(.+)", name)
        if name in plain:
            published[plain[name]] = value
        elif name in positions:
            source_name, axis = positions[name]
            flat = value.t()[None].contiguous()  # [1, D, V] or [1, D, S]
            published[source_name] = flat[:, :, None, :] if axis == "joint" else flat[..., None]
        elif name == "encoder.embedding.weight":
            D = value.shape[0]
            published[_PROJECTION] = value.reshape(D, -1, channels).transpose(1, 2)[..., None].contiguous()
        elif name == "decoder.mask_token":
            published["mask_token_emb"] = value.reshape(1, 1, -1)
        elif match and match[3] in block:
            published[f"{match[1]}.layers.{match[2]}.{block[match[3]]}"] = value
        elif match and match[3] in ("qkv.weight", "qkv.bias"):
            for projection, piece in zip(QKV, value.chunk(3), strict=True):
                published[f"{match[1]}.layers.{match[2]}.attn.{projection}.{match[3][4:]}"] = piece.contiguous()
        else:
            raise errors.CheckpointError(f"{name}: no parameter of Skeleton2vec has this name")
    return published
