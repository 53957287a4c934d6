"""The published naming of MAMP's parameters (ICCV 2023), both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from s2vfast import errors

_BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "qkv",
    "attn.proj": "proj",
    "norm2": "norm2",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
_LINEAR = {
    "norm": "encoder.norm",
    "decoder_embed": "decoder.embed",
    "decoder_norm": "decoder.norm",
    "decoder_pred": "decoder.head",
}
_STACKS = {"blocks": "encoder.blocks", "decoder_blocks": "decoder.blocks"}
_POSITIONS = {  # published [1, S, 1, D] or [1, 1, V, D] -> ours [S, D] or [V, D]
    "temp_embed": "encoder.embedding.segment",
    "pos_embed": "encoder.embedding.joint",
    "decoder_temp_embed": "decoder.segment",
    "decoder_pos_embed": "decoder.joint",
}
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "same": lambda value: value,
    "flat": lambda value: value.reshape(-1),
    "rows": lambda value: value.reshape(-1, value.shape[-1]),
    # [D, C, s, 1] -> [D, s * C]
    "convolution": lambda value: value[..., 0].transpose(1, 2).reshape(len(value), -1).contiguous(),
}
"""What becomes of a published parameter, by name."""


def target_of(source_name: str) -> tuple[str, str] | None:
    """Where a published parameter goes: our name, and how it gets there (a key of `CHANGES`); None: nowhere."""
    name, _, kind = source_name.rpartition(".")
    match = re.fullmatch(r"(blocks|decoder_blocks)\.(\d+)\.(.+)", name)
    if source_name in _POSITIONS:
        return _POSITIONS[source_name], "rows"
    if source_name == "mask_token":
        return "decoder.mask_token", "flat"
    if source_name == "joints_embed.proj.weight":
        return "encoder.embedding.weight", "convolution"
    if source_name == "joints_embed.proj.bias":
        return "encoder.embedding.bias", "same"
    if kind in ("weight", "bias") and name in _LINEAR:
        return f"{_LINEAR[name]}.{kind}", "same"
    if kind in ("weight", "bias") and match and match[3] in _BLOCK:
        return f"{_STACKS[match[1]]}.{match[2]}.{_BLOCK[match[3]]}.{kind}", "same"
    return None


def from_mamp(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in MAMP's naming under the names of `s2vfast.objectives.mamp.MAMP`.

    The encoder alone, or encoder and decoder. Exact: values are moved, never computed.

    Raises:
        CheckpointError: a name that is not of the published model.
    """
    moved = {}
    for source_name, value in state.items():
        target = target_of(source_name)
        if target is None:
            raise errors.CheckpointError(f"{source_name}: no parameter of the published MAMP has this name")
        moved[target[0]] = CHANGES[target[1]](value)
    return moved


def to_mamp(state: Mapping[str, Tensor], channels: int = 3) -> dict[str, Tensor]:
    """The inverse of `from_mamp`, bit by bit.

    Args:
        state: parameters under our names.
        channels: C of the model, which the flat embedding weight does not show.

    Raises:
        CheckpointError: a name that MAMP has not, such as LayerScale's.
    """
    block = {own_name: source_name for source_name, own_name in _BLOCK.items()}
    linear = {own_name: source_name for source_name, own_name in _LINEAR.items()}
    stacks = {own_name: source_name for source_name, own_name in _STACKS.items()}
    positions = {own_name: source_name for source_name, own_name in _POSITIONS.items()}
    published = {}
    for name, value in state.items():
        parameter, _, kind = name.rpartition(".")
        match = re.fullmatch(r"((?:en|de)coder\.blocks)\.(\d+)\.(.+)", parameter)
        if name in positions:
            source_name = positions[name]
            published[source_name] = value[None, :, None] if "temp" in source_name else value[None, None]
        elif name == "decoder.mask_token":
            published["mask_token"] = value.reshape(1, 1, -1)
        elif name == "encoder.embedding.weight":
            weight = value.reshape(len(value), -1, channels).transpose(1, 2)[..., None]
            published["joints_embed.proj.weight"] = weight.contiguous()
        elif name == "encoder.embedding.bias":
            published["joints_embed.proj.bias"] = value
        elif kind in ("weight", "bias") and parameter in linear:
            published[f"{linear[parameter]}.{kind}"] = value
        elif kind in ("weight", "bias") and match and match[3] in block:
            published[f"{stacks[match[1]]}.{match[2]}.{block[match[3]]}.{kind}"] = value
        else:
            raise errors.CheckpointError(f"{name}: no parameter of MAMP has this name")
    return published
