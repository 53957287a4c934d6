"""What a network offers; training, evaluation, export and pictures ask this and nothing else.

A network is a class in a file of this folder, or of a plugin, under a name:

    @dataclass
    class MixerConfig:
        width: int = option(64, ge=1)
        \"\"\"Channels of a token.\"\"\"

    @register("mixer")
    class Mixer(Network):
        Section = MixerConfig

        @classmethod
        def build(cls, config, layout):
            return cls(config.model, layout.num_joints)

        def tokens(self, clips, visible=None): ...

``model.name: mixer`` then chooses it, and ``model.width`` is a field of its config. docs/adding.md has a whole one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from s2vfast.config.registry import NETWORKS
from s2vfast.networks.noise import Draws

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout

register = NETWORKS.register
"""Enters a subclass of `Network` under the name that model.name calls it."""


@dataclass
class NoFields:
    """A section without fields."""


@dataclass(frozen=True)
class TokenMaps:
    """Tokens of joints in segments, how they look at each other, and what a network or an objective looks at."""

    grid: tuple[int, int]
    """(S, V): token s * V + v is joint v in segment s."""
    segment_frames: int
    features: Tensor
    """[N, L, D]."""
    attention: Iterable[Tensor]
    """[N, H, L, L], layer after layer; rows sum to 1."""
    layers: int = 1
    """How many these are."""
    salience: Tensor | None = None
    """[N, L] in [0, 1]; None: there is none."""


class Network(nn.Module):
    """Clips to tokens.

    N tracks (bodies of a sample next to each other), T frames, V joints, C channels, L tokens, D = `width`. Buffers
    (running statistics) are saved, averaged, broadcast and exported like parameters.
    """

    Section: ClassVar[type] = NoFields
    """Dataclass of the config's model section."""
    independent_tracks: ClassVar[bool] = True
    """Whether, in evaluation mode, the tokens of a track depend on that track alone. Where they do, absent bodies are
    computed once for all."""
    any_frames: ClassVar[bool] = False
    """Whether the weights fit clips of any number of frames."""
    accepts_visible: ClassVar[bool] = False
    """Whether `tokens` can look at some of the tokens alone, as masked objectives ask; there is a `grid` then."""
    branches: ClassVar[int] = 0
    """Residual branches of a layer that stochastic depth may leave out, see `with_drop_path`; 0: none."""

    width: int
    """D: channels of a token."""
    depth: int = 1
    """Layers, as `hidden` and `layer_of` count them."""
    reads: ClassVar[tuple[str, ...]] = ("skeletons",)
    """What its clips may be of: ``skeletons``, whose V are joints, or ``points``, whose V are points in no order."""
    grid: tuple[int, int] | None = None
    """(S, V) where token s * V + v is joint v in segment s; None: tokens have no such meaning."""
    segment_frames: int | None = None
    """Frames of a segment, where there is a grid."""
    final_norm: nn.LayerNorm | None = None
    """The layer norm between `stream` and `tokens`; None: they are the same."""

    @classmethod
    def build(cls, config: Config, layout: Layout) -> Network:
        """The network of a config for skeletons of a layout.

        Weights may be drawn from PyTorch's own generator: `build_network` seeds it with train.seed.
        """
        raise NotImplementedError(f"{cls.__name__}.build")

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Raise `ConfigError`, naming the field, where values do not fit together; ``layout`` may not be known yet."""

    @classmethod
    def segments(cls, config: Config) -> int | None:
        """S of `grid`, before there is a network; None: no grid."""
        return None

    def tokens(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """Features of clips.

        Args:
            clips: float32 [N, T, V, C].
            visible: int32 [N, K], the only tokens that are looked at (`accepts_visible`); None: all.

        Returns:
            [N, K, D], or [N, L, D].
        """
        raise NotImplementedError(f"{type(self).__name__}.tokens")

    def stream(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """`tokens` before `final_norm`; arguments and shapes as of `tokens`."""
        return self.tokens(clips, visible)

    def hidden(self, clips: Tensor, last: int) -> list[Tensor]:
        """Outputs of the last ``last`` layers, at most `depth`, each [N, L, D]."""
        if last > 1:
            raise NotImplementedError(f"{type(self).__name__}.hidden, for more than the last layer")
        return [self.stream(clips)]

    def forward(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """`tokens`."""
        return self.tokens(clips, visible)

    def with_drop_path(self, clips: Tensor, factors: Tensor, rates: list[float]) -> Tensor:
        """All `tokens`, with residual branches multiplied by factors (stochastic depth).

        Args:
            clips: [N, T, V, C].
            factors: float32 [N, depth, branches].
            rates: how often each layer's branches are left out; layers of rate 0 run as they are.
        """
        raise NotImplementedError(f"{type(self).__name__}.with_drop_path")

    def draw_noise(self, clips: Tensor, draws: Draws) -> Any:
        """What is random in a training pass, dropout or noise, as tensors; None: nothing.

        Rows of the tensors are tracks where `independent_tracks` are.

        Args:
            clips: [N, T, V, C], of the pass.
            draws: Philox's words.
        """
        return None

    def with_noise(self, clips: Tensor, noise: Any) -> Tensor:
        """All `tokens` of a training pass with the noise that `draw_noise` drew."""
        raise NotImplementedError(f"{type(self).__name__}.with_noise")

    def layer_of(self, name: str) -> int:
        """Layer of a parameter: 0 before the first layer, i + 1 in layer i, depth + 1 after the last."""
        return self.depth + 1

    def attention(self, clips: Tensor) -> Iterator[Tensor] | None:
        """Attention weights [N, H, L, L], layer after layer; None: the network has none to show."""
        return None

    def token_maps(self, clips: Tensor) -> TokenMaps | None:
        """What `s2vfast view attention` shows of clips [N, T, V, C]; None: there is no attention, or no grid."""
        layers = self.attention(clips)
        if layers is None or self.grid is None or self.segment_frames is None:
            return None
        return TokenMaps(self.grid, self.segment_frames, self(clips), layers, self.depth)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay acts on a parameter."""
        return decays(name, parameter)

    def activation_numbers(self) -> int:
        """Numbers a track of the largest activation, from which the size of micro-batches on a CPU follows."""
        segments, joints = self.grid or (1, 1)
        return 4 * self.width * segments * joints


def decays(name: str, parameter: nn.Parameter) -> bool:
    """The rule of most recipes: matrices and kernels called weight decay; biases, norms and embeddings do not."""
    return parameter.ndim >= 2 and name.endswith("weight")


def operand_weights(module: nn.Module) -> Iterator[nn.Parameter]:
    """Weights that may be narrower than float32 where matrix products are: those that modules offer as such.

    A module offers them by a method ``operand_weights``: its forward pass then takes a float32 stream and a narrower
    matrix. Others, such as a plain `torch.nn.Linear`, stay float32.
    """
    for part in module.modules():
        offered: Any = getattr(part, "operand_weights", None)
        if offered is not None:
            yield from offered()


def linear_weights(*maps: nn.Linear | None) -> Iterable[nn.Parameter]:
    """The matrices of linear maps."""
    return [linear.weight for linear in maps if linear is not None]  # type: ignore[misc]  # to PyTorch a Tensor


def build_network(config: Config, layout: Layout) -> Network:
    """The network of a config, as it stands before the first step of a run: a function of train.seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2 * config.train.seed)
        return config.network_class.build(config, layout)
