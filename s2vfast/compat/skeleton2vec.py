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
PARTS = ("queries", "keys", "values")  # in this order in our qkv
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


def place(theirs: str) -> tuple[str, str] | None:
    """Where a published parameter goes: our name, and how (a key of `CHANGES`, or a name in `PARTS`); None: nowhere."""
    match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", theirs)
    if theirs in _PLAIN:
        return _PLAIN[theirs], "same"
    if theirs in _POSITIONS:
        return _POSITIONS[theirs][0], "columns"
    if theirs == _PROJECTION:
        return "encoder.embedding.weight", "convolution"
    if theirs == "mask_token_emb":
        return "decoder.mask_token", "flat"
    if match and match[3] in _BLOCK:
        return f"{match[1]}.blocks.{match[2]}.{_BLOCK[match[3]]}", "same"
    if match and (part := re.fullmatch(r"attn\.(queries|keys|values)\.(weight|bias)", match[3])):
        return f"{match[1]}.blocks.{match[2]}.qkv.{part[2]}", part[1]
    return None


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the published naming as one of `s2vfast.objectives.skeleton2vec.Skeleton2vec`.

    The encoder alone, or encoder and decoder. Exact: values are moved, never computed.

    Raises:
        CheckpointError: a name that is not of the published model, or a part that is missing.
    """
    ours: dict[str, Tensor] = {}
    packed: dict[str, dict[str, str]] = {}
    for theirs, value in state.items():
        found = place(theirs)
        if found is None:
            raise errors.CheckpointError(f"{theirs}: no parameter of the published Skeleton2vec has this name")
        name, how = found
        if how in PARTS:
            packed.setdefault(name, {})[how] = theirs
        else:
            ours[name] = CHANGES[how](value)
    for name, parts in packed.items():
        for part in PARTS:
            if part not in parts:
                there, theirs = next(iter(parts.items()))
                raise errors.CheckpointError(f"{theirs.replace(there, part)}: missing beside {theirs}")
        ours[name] = torch.cat([state[parts[part]] for part in PARTS])
    return ours


def to_published(state: Mapping[str, Tensor], channels: int = 3) -> dict[str, Tensor]:
    """The inverse of `from_published`, bit by bit.

    Args:
        state: parameters under our names.
        channels: C of the model, which the flat embedding weight does not show.

    Raises:
        CheckpointError: a name that is not ours.
    """
    plain = {ours: theirs for theirs, ours in _PLAIN.items()}
    block = {ours: theirs for theirs, ours in _BLOCK.items()}
    positions = {ours: (theirs, axis) for theirs, (ours, axis) in _POSITIONS.items()}
    published = {}
    for name, value in state.items():
        match = re.fullmatch(r"(encoder|decoder)\.blocks\.(\d+)\.(.+)", name)
        if name in plain:
            published[plain[name]] = value
        elif name in positions:
            theirs, axis = positions[name]
            flat = value.t()[None].contiguous()  # [1, D, V] or [1, D, S]
            published[theirs] = flat[:, :, None, :] if axis == "joint" else flat[..., None]
        elif name == "encoder.embedding.weight":
            D = value.shape[0]
            published[_PROJECTION] = value.reshape(D, -1, channels).transpose(1, 2)[..., None].contiguous()
        elif name == "decoder.mask_token":
            published["mask_token_emb"] = value.reshape(1, 1, -1)
        elif match and match[3] in block:
            published[f"{match[1]}.layers.{match[2]}.{block[match[3]]}"] = value
        elif match and match[3] in ("qkv.weight", "qkv.bias"):
            for part, piece in zip(PARTS, value.chunk(3), strict=True):
                published[f"{match[1]}.layers.{match[2]}.attn.{part}.{match[3][4:]}"] = piece.contiguous()
        else:
            raise errors.CheckpointError(f"{name}: no parameter of Skeleton2vec has this name")
    return published
