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


def place(theirs: str) -> tuple[str, str] | None:
    """Where a published parameter goes: our name, and how it gets there (a key of `CHANGES`); None: nowhere."""
    name, _, kind = theirs.rpartition(".")
    match = re.fullmatch(r"(blocks|decoder_blocks)\.(\d+)\.(.+)", name)
    if theirs in _POSITIONS:
        return _POSITIONS[theirs], "rows"
    if theirs == "mask_token":
        return "decoder.mask_token", "flat"
    if theirs == "joints_embed.proj.weight":
        return "encoder.embedding.weight", "convolution"
    if theirs == "joints_embed.proj.bias":
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
    ours = {}
    for theirs, value in state.items():
        found = place(theirs)
        if found is None:
            raise errors.CheckpointError(f"{theirs}: no parameter of the published MAMP has this name")
        ours[found[0]] = CHANGES[found[1]](value)
    return ours


def to_mamp(state: Mapping[str, Tensor], channels: int = 3) -> dict[str, Tensor]:
    """The inverse of `from_mamp`, bit by bit.

    Args:
        state: parameters under our names.
        channels: C of the model, which the flat embedding weight does not show.

    Raises:
        CheckpointError: a name that MAMP has not, such as LayerScale's.
    """
    block = {ours: theirs for theirs, ours in _BLOCK.items()}
    linear = {ours: theirs for theirs, ours in _LINEAR.items()}
    stacks = {ours: theirs for theirs, ours in _STACKS.items()}
    positions = {ours: theirs for theirs, ours in _POSITIONS.items()}
    published = {}
    for ours, value in state.items():
        name, _, kind = ours.rpartition(".")
        match = re.fullmatch(r"((?:en|de)coder\.blocks)\.(\d+)\.(.+)", name)
        if ours in positions:
            theirs = positions[ours]
            published[theirs] = value[None, :, None] if "temp" in theirs else value[None, None]
        elif ours == "decoder.mask_token":
            published["mask_token"] = value.reshape(1, 1, -1)
        elif ours == "encoder.embedding.weight":
            weight = value.reshape(len(value), -1, channels).transpose(1, 2)[..., None]
            published["joints_embed.proj.weight"] = weight.contiguous()
        elif ours == "encoder.embedding.bias":
            published["joints_embed.proj.bias"] = value
        elif kind in ("weight", "bias") and name in linear:
            published[f"{linear[name]}.{kind}"] = value
        elif kind in ("weight", "bias") and match and match[3] in block:
            published[f"{stacks[match[1]]}.{match[2]}.{block[match[3]]}.{kind}"] = value
        else:
            raise errors.CheckpointError(f"{ours}: no parameter of MAMP has this name")
    return published
