"""The published naming of FreqMixFormer's parameters and buffers (wenhanwu95/FreqMixFormer), both ways.

Convolutions of one frame are matrices here. The 1x1 convolutions of the branches over time, and their norms, are one
matrix and two norms here: rows of each branch follow one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from s2vfast import errors

_NORM = ("weight", "bias", "running_mean", "running_var")
_LINEAR = ("weight", "bias")
UNUSED = (
    *("spa_mixf.alpha", "spa_mixf.fc.weight", "spa_mixf.fc.bias"),
    *(f"spa_mixf.Spa_Att.bn.{name}" for name in _NORM),
)
"""What every block of the published network has and never uses; and the inner norm of the last branch over time."""


def parameters(stages: Sequence[int], dilations: int = 2) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Our name, and the published names whose rows follow one another in it; of all parameters and buffers.

    Args:
        stages: blocks of each stage.
        dilations: convolutions over time of a block.
    """
    yield "stem.joint", ("pos_embedding",)
    yield from _each("stem.linear", ("to_joint_embedding",), _LINEAR)
    yield from _each("stem.norm", ("data_bn",), _NORM)
    firsts = {sum(stages[:stage]) for stage in range(1, len(stages))}
    for block in range(sum(stages)):
        here, source_block = f"blocks.{block}", f"l{block + 1}"
        spatial, published = f"{here}.spatial", f"{source_block}.spa_mixf"
        yield f"{spatial}.learned", (f"{published}.A_GEME",)
        yield f"{spatial}.gate.weight", (f"{published}.ChaRef_conv.weight",)
        for name, source in (("linear", "conv"), ("within", "Spa_Att.linear"), ("across", "linear")):
            yield from _each(f"{spatial}.{name}", (f"{published}.{source}",), _LINEAR)
        yield from _each(f"{spatial}.norm", (f"{published}.bn",), _NORM)
        if block in firsts:
            yield from _each(f"{spatial}.down", (f"{published}.down.0",), _LINEAR)
            yield from _each(f"{spatial}.down.norm", (f"{published}.down.1",), _NORM)
            yield from _each(f"{here}.residual", (f"{source_block}.residual.conv",), _LINEAR)
            yield from _each(f"{here}.residual.norm", (f"{source_block}.residual.bn",), _NORM)
        temporal, branches = f"{here}.temporal", f"{source_block}.tem_mixf.branches"
        convolutions = [f"{branches}.{number}.3" for number in range(dilations)]
        pool, attention, gate = (f"{branches}.{dilations + number}" for number in range(3))
        first = [f"{branches}.{number}" for number in range(dilations + 1)]
        yield from _each(f"{temporal}.expand", [f"{name}.0" for name in first], _LINEAR)
        yield from _each(f"{temporal}.expand_norm", [f"{name}.1" for name in first], _NORM)
        for name in _LINEAR:
            yield f"{temporal}.{name}", tuple(f"{source}.conv.{name}" for source in convolutions)
        last = [*(f"{name}.bn" for name in convolutions), f"{pool}.4", f"{attention}.1", f"{gate}.1"]
        yield from _each(f"{temporal}.norm", last, _NORM)
        more = f"{temporal}.others"
        for name, source in (("0", f"{attention}.0.conv"), ("0.frames", f"{attention}.0.linear")):
            yield from _each(f"{more}.{name}", (source,), _LINEAR)
        yield from _each(f"{more}.0.norm", (f"{attention}.0.bn",), _NORM)
        for name, source in (("1", f"{gate}.0.conv"), ("1.gate", f"{gate}.0.combine_conv")):
            yield from _each(f"{more}.{name}", (source,), _LINEAR)
    for number, published in zip(range(len(stages) - 1), ("first_tram", "second_tram"), strict=False):
        yield from _each(f"skips.{number}.projection", (f"{published}.1",), _LINEAR)
        yield from _each(f"skips.{number}.projection.norm", (f"{published}.2",), _NORM)
    yield from _each("fc", ("fc",), _LINEAR)


def _each(name: str, sources: Sequence[str], kinds: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for kind in kinds:
        yield f"{name}.{kind}", tuple(f"{source}.{kind}" for source in sources)


def from_freqmixformer(state: Mapping[str, Tensor], stages: Sequence[int] = (4, 3, 3)) -> dict[str, Tensor]:
    """Published parameters and buffers under our names; ``fc`` is the classifier.

    Exact: values are moved, never computed. What is missing as a whole is left out, as buffers are of gradients.

    Raises:
        CheckpointError: a name that is not of the published network, or a part of one of our parameters alone.
    """
    result, taken_names = {}, set()
    for name, sources in parameters(stages):
        present = [source for source in sources if source in state]
        if not present:
            continue
        if len(present) < len(sources):
            raise errors.CheckpointError(f"{next(s for s in sources if s not in state)}: missing beside {present[0]}")
        taken_names.update(sources)
        values = [_flat(name, state[source]) for source in sources]
        result[name] = torch.stack(values) if _is_stacked(name) else torch.cat(values) if len(values) > 1 else values[0]
    for name in state:
        if name not in taken_names and not is_unused(name):
            raise errors.CheckpointError(f"{name}: no parameter of the published FreqMixFormer has this name")
    return result


def to_freqmixformer(state: Mapping[str, Tensor], stages: Sequence[int] = (4, 3, 3)) -> dict[str, Tensor]:
    """The inverse of `from_freqmixformer`, flat where its values were: compare them as rows of numbers."""
    result = {}
    for name, sources in parameters(stages):
        if name in state:
            parts = state[name].unbind(0) if _is_stacked(name) else state[name].chunk(len(sources))
            result |= dict(zip(sources, parts, strict=True))
    return result


def own_name(name: str) -> str:
    """A name of `from_freqmixformer` as the objective's."""
    return f"head.{name.removeprefix('fc.')}" if name.startswith("fc.") else f"encoder.{name}"


def is_unused(name: str) -> bool:
    """Whether a published parameter or buffer is never used, or counts batches."""
    inner = name.partition(".")[2]
    return inner in UNUSED or name.endswith(".num_batches_tracked") or inner.startswith("tem_mixf.branches.4.0.bn.")


def _is_stacked(name: str) -> bool:
    return name.endswith((".temporal.weight", ".temporal.bias"))


def _flat(name: str, value: Tensor) -> Tensor:
    """A published value in the shape that it has here, but for stacking."""
    if name == "stem.joint":
        return value[0]
    if value.ndim == 4 and not name.endswith(".learned"):
        return value[..., 0] if _is_stacked(name) else value[:, :, 0, 0]
    return value
