"""The published naming of Hi-TRS's parameters, both ways.

The published class has a matrix each of queries, keys and values; here they are one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from s2vfast import errors

_PARTS = ("w_qs", "w_ks", "w_vs")
_NAMES = {
    "clip_fuse_token": "encoder.clip_token",
    "video_fuse_token": "encoder.video_token",
    "s_pe.pe": "encoder.frame_position",
    "c_pe.pe": "encoder.clip_position",
    "v_pe.pe": "encoder.video_position",
}
_PREFIXES = {
    "s_input_map.": "encoder.embedding.",
    "c_input_map.": "encoder.clip_map.",
    "v_input_map.": "encoder.video_map.",
    "s_enc.layer_stack.": "encoder.frame_blocks.",
    "c_enc.layer_stack.": "encoder.clip_blocks.",
    "v_enc.layer_stack.": "encoder.video_blocks.",
    "s_pose_reg.": "pose_head.",
    "c_motion_cls.": "clip_head.",
    "v_motion_cls.": "video_head.",
    "v_ft_reg.": "future_head.",
    "v_cls.": "head.",
}
_INNER = {
    "self_attn_norm": "norm1",
    "pff_norm": "norm2",
    "slf_attn.qkv": "qkv",
    "slf_attn.fc": "out",
    "pos_ffn.w_1": "fc1",
    "pos_ffn.w_2": "fc2",
}
_TOKENS = ("clip_fuse_token", "video_fuse_token")


def from_hitrs(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names: ``encoder.*`` of the network, heads of the objective.

    Args:
        published: parameters or gradients by the authors' names.

    Raises:
        CheckpointError: a name that no parameter has, or a projection without its two others.
    """
    state = {}
    for name, value in published.items():
        if any(f".{part}." in name for part in _PARTS):
            names = [_with_part(name, part) for part in _PARTS]
            if missing := sorted(set(names) - set(published)):
                raise errors.CheckpointError(f"{missing[0]}: missing, though {name} is there")
            state[_own(_with_part(name, "qkv"))] = torch.cat([published[one] for one in names])
        else:
            state[_own(name)] = value.flatten() if name in _TOKENS else value
    return state


def to_hitrs(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way round; `CheckpointError` for a name that is not of this network."""
    published = {}
    for own, value in state.items():
        name = _published(own)
        if name in _TOKENS:
            published[name] = value[None, None]
        elif ".qkv." in name:
            published |= {name.replace("qkv", part): rows for part, rows in zip(_PARTS, value.chunk(3), strict=True)}
        else:
            published[name] = value
    return published


def _with_part(name: str, part: str) -> str:
    for other in _PARTS:
        name = name.replace(f".{other}.", f".{part}.")
    return name


def _own(name: str) -> str:
    own = _translated(name, _NAMES, _PREFIXES, _INNER)
    if own is None:
        raise errors.CheckpointError(f"{name}: no parameter of the published Hi-TRS")
    return own


def _published(own: str) -> str:
    name = _translated(own, *({new: old for old, new in table.items()} for table in (_NAMES, _PREFIXES, _INNER)))
    if name is None:
        raise errors.CheckpointError(f"{own}: no parameter of Hi-TRS")
    return name


def _translated(name: str, names: dict[str, str], prefixes: dict[str, str], inner: dict[str, str]) -> str | None:
    if name in names:
        return names[name]
    for prefix, other in prefixes.items():
        if name.startswith(prefix):
            number, dot, last = name.removeprefix(prefix).partition(".")
            middle, _, kind = last.rpartition(".")
            if not middle:
                return other + number + dot + last
            return f"{other}{number}.{inner[middle]}.{kind}" if middle in inner else None
    return None
