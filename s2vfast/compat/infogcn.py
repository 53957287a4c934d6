"""The published naming of InfoGCN's parameters and buffers, both ways.

The published class has a convolution a head and a branch; here their weights are one tensor, and so are those of their
batch norms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from s2vfast import errors

_STATE = ("weight", "bias", "running_mean", "running_var")
_STEM = {"linear.weight": "to_joint_embedding.weight", "linear.bias": "to_joint_embedding.bias"}
_GRAPH = {"norm": "attn.ln", "qk": "attn.to_qk", "batch_norm": "bn", "down.linear": "down.0", "down.norm": "down.1"}
_LINEARS = ("fc", "fc_mu", "fc_logvar", "decoder")


def from_infogcn(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names: ``encoder.*`` of the network, ``head.*`` of the objective.

    Args:
        published: parameters, buffers or gradients by the authors' names, without ``num_batches_tracked``; those of
            some may be missing where all that belong to one tensor of ours are.

    Raises:
        CheckpointError: a name that no parameter has, or one without the others of its tensor.
    """
    state, used = {}, set()
    for name, parts, how in table(published):
        present = [part for part in parts if part in published]
        if not present:
            continue
        if len(present) < len(parts):
            raise errors.CheckpointError(f"{min(set(parts) - set(present))}: missing, though {present[0]} is there")
        used |= set(parts)
        state[name] = _join([published[part] for part in parts], name, how)
    if unknown := sorted(set(published) - used):
        raise errors.CheckpointError(f"{unknown[0]}: no parameter of the published InfoGCN")
    return state


def to_infogcn(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way round; `CheckpointError` for a name that is not of this network."""
    published, used = {}, set()
    for name, parts, how in table(state):
        if name in state:
            used.add(name)
            published |= dict(zip(parts, _split(state[name], name, len(parts), how), strict=True))
    if unknown := sorted(set(state) - used):
        raise errors.CheckpointError(f"{unknown[0]}: no parameter of InfoGCN")
    return published


def table(names: Mapping[str, Tensor]) -> Iterator[tuple[str, list[str], str]]:
    """(our name, the published ones, how they are put together): ``stack``, ``cat``, or ``same`` for one.

    Args:
        names: tensors under either naming, by which depth and heads are known.
    """
    for own, published in _STEM.items():
        yield f"encoder.stem.{own}", [published], "same"
    yield "encoder.stem.joint", ["pos_embedding"], "same"
    for field in _STATE:
        yield f"encoder.stem.norm.{field}", [f"data_bn.{field}"], "same"
    for linear in _LINEARS:
        for field in ("weight", "bias"):
            yield f"head.{linear}.{field}", [f"{linear}.{field}"], "same"
    matches = [re.match(r"l(\d+)\.|encoder\.blocks\.(\d+)\.", name) for name in names]
    depth = max((int(match[1]) if match[1] else int(match[2]) + 1 for match in matches if match), default=0)
    heads = max((int(m[1]) + 1 for name in names if (m := re.search(r"conv_d\.(\d+)\.", name))), default=0)
    for name, tensor in names.items():
        if re.fullmatch(r"encoder\.blocks\.\d+\.graph\.(weight|bias)", name):
            heads = len(tensor)
    for i in range(depth):
        graph, agcn = f"encoder.blocks.{i}.graph", f"l{i + 1}.agcn"
        yield f"{graph}.topology", [f"{agcn}.shared_topology"], "same"
        for field in ("weight", "bias"):
            yield f"{graph}.{field}", [f"{agcn}.conv_d.{h}.{field}" for h in range(heads)], "stack"
        for own, published in _GRAPH.items():
            for field in _STATE:
                yield f"{graph}.{own}.{field}", [f"{agcn}.{published}.{field}"], "same"
        temporal, tcn = f"encoder.blocks.{i}.temporal", f"l{i + 1}.tcn.branches"
        for field in _STATE:
            yield f"{temporal}.expand_norm.{field}", [f"{tcn}.{b}.1.{field}" for b in range(3)], "cat"
            last = [f"{tcn}.0.3.bn.{field}", f"{tcn}.1.3.bn.{field}", f"{tcn}.2.4.{field}", f"{tcn}.3.1.{field}"]
            yield f"{temporal}.norm.{field}", last, "cat"
            yield f"encoder.blocks.{i}.residual.norm.{field}", [f"l{i + 1}.residual.bn.{field}"], "same"
        for field in ("weight", "bias"):
            yield f"{temporal}.expand.{field}", [f"{tcn}.{b}.0.{field}" for b in range(3)], "cat"
            yield f"{temporal}.{field}", [f"{tcn}.{b}.3.conv.{field}" for b in range(2)], "stack"
            yield f"{temporal}.others.0.{field}", [f"{tcn}.3.0.{field}"], "same"
            yield f"encoder.blocks.{i}.residual.linear.{field}", [f"l{i + 1}.residual.conv.{field}"], "same"


def _join(tensors: list[Tensor], name: str, how: str) -> Tensor:
    """Of one tensor of ours; convolutions lose the axes of length 1 behind them."""
    if name.endswith("weight"):
        tensors = [t[..., 0] if t.ndim == 4 else t for t in tensors]  # [out, in, k]
        if not name.endswith("temporal.weight"):
            tensors = [t[..., 0] if t.ndim == 3 else t for t in tensors]
    if name == "encoder.stem.joint":
        return tensors[0][0]
    if how == "same":
        return tensors[0]
    return torch.stack(tensors) if how == "stack" else torch.cat(tensors)


def _split(tensor: Tensor, name: str, count: int, how: str) -> list[Tensor]:
    if name == "encoder.stem.joint":
        return [tensor[None]]
    parts = {"same": lambda: [tensor], "stack": lambda: list(tensor), "cat": lambda: list(tensor.chunk(count))}[how]()
    convolution = ("graph.weight", "down.linear.weight", "residual.linear.weight", "expand.weight", "others.0.weight")
    if name.endswith("temporal.weight"):
        return [part[..., None] for part in parts]
    return [part[..., None, None] for part in parts] if name.endswith(convolution) else parts
