"""The published namings of networks that are trained with labels: InfoGCN and FreqMixFormer, and their sizes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from s2vfast import errors
from s2vfast.compat import freqmixformer, infogcn

_NTU, _UCLA = 25, 20
"""Joints of the datasets that weights are published of."""


@dataclass(frozen=True)
class RecogniserSizes:
    """What a network's weights say of its size."""

    joints: int
    channels: int
    bodies: int
    classes: int
    frames: int | None
    """None: no weight shows it."""
    model: dict[str, Any]
    """Fields of the model section."""


@dataclass(frozen=True)
class Recogniser:
    """A published naming of a network with its classifier."""

    name: str
    """Also the network's, in a config."""
    published: str
    marks: tuple[str, ...]
    """Parameters that no other network has."""
    presets: str
    """What the names of its presets end with."""
    sizes: Callable[[Mapping[str, Tensor]], RecogniserSizes]
    """Of the weights; `CheckpointError` where one that says it is missing or of another rank."""
    table: Callable[[Mapping[str, Tensor], Sequence[int]], Iterator[tuple[str, Sequence[str]]]]
    """Every name of the objective's (``encoder.…``, ``head.…``) with the published ones, of a file and its stages."""
    from_published: Callable[[Mapping[str, Tensor], Sequence[int]], dict[str, Tensor]]
    unused: Callable[[str], bool]
    """Whether a published tensor is never used."""
    assumed: tuple[str, ...]
    """Fields of the model section that change what the network computes and that no weight shows."""
    evaluated: str = "student"

    def preset(self, sizes: RecogniserSizes) -> str:
        """Name of the preset of its dataset, as far as sizes tell datasets apart."""
        data = "nwucla" if sizes.joints == _UCLA else "ntu120" if sizes.classes == 120 else "ntu60"
        return f"{data}_{self.presets}"


def _shape(state: Mapping[str, Tensor], name: str, axes: str) -> tuple[int, ...]:
    """Of a tensor with as many axes as ``axes`` has words."""
    if name not in state:
        raise errors.CheckpointError(f"{name}: missing; all parameters of the network and its classifier are expected")
    shape = tuple(state[name].shape)
    if len(shape) != len(axes.split()) or 0 in shape:
        raise errors.CheckpointError(f"{name}: shape {list(shape)}; [{', '.join(axes.split())}] is expected")
    return shape


def _depth(state: Mapping[str, Tensor]) -> int:
    numbers = {int(match[1]) for name in state if (match := re.match(r"l(\d+)\.", name))}
    for number in range(1, max(numbers, default=1) + 1):
        if number not in numbers:
            raise errors.CheckpointError(f"l{number}: missing; there are {len(numbers)} others of its kind")
    return len(numbers)


def _stem(state: Mapping[str, Tensor]) -> tuple[int, int, int, int]:
    """Base, channels, joints, bodies."""
    base, channels = _shape(state, "to_joint_embedding.weight", "base channels")
    _, joints, _ = _shape(state, "pos_embedding", "1 joints base")
    (numbers,) = _shape(state, "data_bn.weight", "bodies*joints*base")
    if numbers % (joints * base):
        raise errors.CheckpointError(
            f"data_bn.weight: shape [{numbers}]; a multiple of {joints * base} is expected, joints times base, as in "
            f"pos_embedding"
        )
    return base, channels, joints, numbers // (joints * base)


def _infogcn_sizes(state: Mapping[str, Tensor]) -> RecogniserSizes:
    base, channels, joints, bodies = _stem(state)
    blocks = [f"l{i + 1}" for i in range(_depth(state))]
    widths = [_shape(state, f"{block}.agcn.conv_d.0.weight", "out in 1 1")[0] for block in blocks]
    heads, *_ = _shape(state, "l1.agcn.shared_topology", "heads joints joints")
    numbers, width = _shape(state, "l1.agcn.attn.to_qk.weight", "2*heads*d in")
    model = {
        "base": base,
        "stages": [len(list(blocks_of)) for _, blocks_of in itertools.groupby(widths)],
        "heads": heads,
        "head_ratio": max(2 * heads * width // numbers, 1),
        "kernel": _shape(state, "l1.tcn.branches.0.3.conv.weight", "out in kernel 1")[2],
        **_published_graph(joints),
    }
    return RecogniserSizes(joints, channels, bodies, _shape(state, "decoder.weight", "classes in")[0], None, model)


def _freqmixformer_sizes(state: Mapping[str, Tensor]) -> RecogniserSizes:
    base, channels, joints, bodies = _stem(state)
    depth = _depth(state)
    firsts = [i for i in range(depth) if f"l{i + 1}.spa_mixf.down.0.weight" in state]
    subsets, groups, *_ = _shape(state, "l1.spa_mixf.A_GEME", "subsets groups joints joints")
    branches = {m[1] for name in state if (m := re.match(r"l1\.tem_mixf\.branches\.(\d+)\.", name))}
    frames, _ = _shape(state, f"l1.tem_mixf.branches.{len(branches) - 2}.0.linear.weight", "frames frames")
    model = {
        "base": base,
        "stages": [end - begin for begin, end in itertools.pairwise([0, *firsts, depth])],
        "subsets": subsets,
        "groups": groups,
        "kernel": _shape(state, "l1.tem_mixf.branches.0.3.conv.weight", "out in kernel 1")[2],
        "split": 13,  # of 25 and of 20 joints alike
        **_published_graph(joints),
    }
    return RecogniserSizes(joints, channels, bodies, _shape(state, "fc.weight", "classes in")[0], frames, model)


def _published_graph(joints: int) -> dict[str, str]:
    return {} if joints == _NTU else {"graph": "published"}


def _infogcn_state(state: Mapping[str, Tensor], stages: Sequence[int]) -> dict[str, Tensor]:
    return infogcn.from_infogcn({name: value for name, value in state.items() if not _counts(name)})


def _counts(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


RECOGNISERS = {
    recogniser.name: recogniser
    for recogniser in (
        Recogniser(
            name="infogcn",
            published="InfoGCN",
            marks=("l1.agcn.shared_topology",),
            presets="infogcn",
            sizes=_infogcn_sizes,
            table=lambda state, stages: ((name, parts) for name, parts, _ in infogcn.table(state)),
            from_published=_infogcn_state,
            unused=_counts,
            assumed=("k", "graph"),
        ),
        Recogniser(
            name="freqmixformer",
            published="FreqMixFormer",
            marks=("l1.spa_mixf.A_GEME",),
            presets="freqmixformer",
            sizes=_freqmixformer_sizes,
            table=lambda state, stages: (
                (freqmixformer.own_name(name), parts) for name, parts in freqmixformer.parameters(stages)
            ),
            from_published=lambda state, stages: {
                freqmixformer.own_name(name): value
                for name, value in freqmixformer.from_freqmixformer(state, stages).items()
            },
            unused=freqmixformer.is_unused,
            assumed=("k", "graph", "units", "split", "dilations"),
        ),
    )
}
"""The namings that can be read, by name."""
