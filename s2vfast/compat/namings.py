"""The published namings of parameters: the marks of each, its parameters, and a network's sizes by its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from s2vfast import errors
from s2vfast.compat import mamp, skeleton2vec
from s2vfast.networks.block import BlockOptions
from s2vfast.networks.transformer import Transformer
from s2vfast.objectives.decoder import Decoder

SIZES = {
    "D": "width",
    "C": "channels",
    "s": "frames of a segment",
    "V": "joints",
    "S": "segments",
    "hidden": "hidden width of the MLP",
}
"""What the letters in `Naming.shapes` are."""


@dataclass(frozen=True)
class Sizes:
    """What a network's weights say of its size. The number of heads is not among it: no weight shows it."""

    dim: int
    channels: int
    segment_frames: int
    joints: int
    segments: int
    hidden: int
    depth: int
    decoder_depth: int
    """0: there is no decoder."""
    layer_scale: bool
    sources: dict[str, str] = field(compare=False)
    """The tensor that each field was read from."""


@dataclass(frozen=True)
class Naming:
    """A published naming of parameters."""

    name: str
    """Also the objective's, in a config."""
    published: str
    marks: tuple[str, ...]
    """Parameters that no other network has."""
    shapes: dict[str, tuple[str | int, ...]]
    """Shapes of the parameters that sizes are read from, in the letters of `SIZES`."""
    stacks: tuple[str, str]
    """What names of the encoder's and the decoder's blocks begin with."""
    gammas: tuple[str, ...]
    """Last words of the parameters that only networks with LayerScale have."""
    target_of: Callable[[str], tuple[str, str] | None]
    """A published name → our name and how the value is moved; None: no parameter has this name."""
    from_published: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    to_published: Callable[[Mapping[str, Tensor], int], dict[str, Tensor]]
    evaluated: str
    """Which encoder is taken, ``student`` or ``teacher``, where the file has both."""
    norm_eps: float
    """As published; the weights do not show it."""
    preset: str
    """Of the published setting."""

    def sizes(self, state: Mapping[str, Tensor]) -> Sizes:
        """The sizes of a network.

        Raises:
            CheckpointError: a parameter that is missing, of an impossible shape, or at odds with another.
        """
        values: dict[str | int, int] = {1: 1}
        sources: dict[str, str] = {}
        for name, letters in self.shapes.items():
            if name not in state:
                raise errors.CheckpointError(f"{name}: missing; all of an encoder's parameters are expected")
            shape = tuple(state[name].shape)
            constraints = "".join(f", {k} = {values[k]} as in {sources[k]}" for k in letters if k in sources)
            wrong = errors.CheckpointError(
                f"{name}: shape {list(shape)}; [{', '.join(map(str, letters))}] is expected{constraints}"
            )
            if len(shape) != len(letters) or 0 in shape:
                raise wrong
            for letter, size in zip(letters, shape, strict=True):
                if values.setdefault(letter, size) != size:
                    raise wrong
                sources.setdefault(str(letter), name)
        depths = [_blocks(stack, state) for stack in self.stacks]
        fields = {"D": "dim", "C": "channels", "s": "segment_frames", "V": "joints", "S": "segments"}
        return Sizes(
            **{name: values[letter] for letter, name in fields.items()},
            hidden=values["hidden"],
            depth=depths[0],
            decoder_depth=depths[1],
            layer_scale=any(name.rpartition(".")[2] in self.gammas for name in state),
            sources={name: sources[letter] for letter, name in {**fields, "hidden": "hidden"}.items()},
        )

    def expected(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Shapes of all published parameters of a network of these sizes, its decoder included where it has one."""
        blocks = BlockOptions(sizes.dim, 1, sizes.hidden / sizes.dim, layer_scale=1.0 if sizes.layer_scale else None)
        shape = {"joints": sizes.joints, "segments": sizes.segments, "blocks": blocks}
        with torch.device("meta"):
            encoder = Transformer(
                segment_frames=sizes.segment_frames, channels=sizes.channels, depth=sizes.depth, **shape
            )
            state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
            if sizes.decoder_depth:
                # What is predicted a token: features, or the motion of coordinates.
                out = sizes.dim if self.name == "skeleton2vec" else 3 * sizes.segment_frames
                decoder = Decoder(depth=sizes.decoder_depth, out=out, **shape)
                state |= {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
            published = self.to_published(state, sizes.channels)
        return {name: tuple(value.shape) for name, value in published.items()}


def _blocks(stack: str, state: Mapping[str, Tensor]) -> int:
    """Blocks of a stack, which are numbered without a gap."""
    matches = (re.match(rf"{re.escape(stack)}([0-9]+)\.", name) for name in state)
    numbers = {match[1] for match in matches if match}
    for number in map(str, range(len(numbers))):
        if number not in numbers:
            raise errors.CheckpointError(f"{stack}{number}: missing; there are {len(numbers)} others of its kind")
    return len(numbers)


NAMINGS = {
    naming.name: naming
    for naming in (
        Naming(
            name="skeleton2vec",
            published="Skeleton2vec",
            marks=(
                "encoder_embedding.projection.1.weight",
                "encoder_embedding.projection.1.bias",
                "encoder_embedding.spatio_pos_emb",
            ),
            shapes={
                "encoder_embedding.projection.1.weight": ("D", "C", "s", 1),
                "encoder_embedding.spatio_pos_emb": (1, "D", 1, "V"),
                "encoder_embedding.temporal_pos_emb": (1, "D", "S", 1),
                "encoder.layers.0.mlp.fc1.weight": ("hidden", "D"),
            },
            stacks=("encoder.layers.", "decoder.layers."),
            gammas=("gamma_1", "gamma_2"),
            target_of=skeleton2vec.target_of,
            from_published=skeleton2vec.from_published,
            to_published=skeleton2vec.to_published,
            evaluated="teacher",
            norm_eps=1e-6,
            preset="ntu60",
        ),
        Naming(
            name="mamp",
            published="MAMP",
            marks=("joints_embed.proj.weight", "joints_embed.proj.bias", "temp_embed"),
            shapes={
                "joints_embed.proj.weight": ("D", "C", "s", 1),
                "pos_embed": (1, 1, "V", "D"),
                "temp_embed": (1, "S", 1, "D"),
                "blocks.0.mlp.fc1.weight": ("hidden", "D"),
            },
            stacks=("blocks.", "decoder_blocks."),
            gammas=(),
            target_of=mamp.target_of,
            from_published=mamp.from_mamp,
            to_published=mamp.to_mamp,
            evaluated="student",
            norm_eps=1e-5,
            preset="ntu60_mamp",
        ),
    )
}
"""The namings that can be read, by name."""
