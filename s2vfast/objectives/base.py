"""What an objective offers: views of a clip, modules and state beside the network, and a loss with named terms.

An objective is a class in a file of this folder, or of a plugin, under a name:

    @dataclass
    class ContrastConfig:
        temperature: float = option(0.1, gt=0)
        \"\"\"Of the softmax over negatives.\"\"\"

    @register("contrast")
    class Contrast(Objective):
        Section = ContrastConfig
        views = 2
        terms = ("similarity",)

        def __init__(self, encoder, config, classes):
            super().__init__(encoder)
            self.head = nn.Linear(encoder.width, 128)

        def step_loss(self, batch, shared=None):
            first, second = (self.head(self.encoder(view).mean(1)) for view in batch.views)
            return Loss(..., terms={"similarity": ...})

``objective.name: contrast`` trains it, and ``objective.temperature`` is a field of its config. The trainer, its CUDA
graph, ranks, resume, evaluation and export ask what `Objective` declares and nothing else. docs/adding.md has a whole
one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from s2vfast.config.registry import OBJECTIVES
from s2vfast.data.augment import Compose, ViewKey
from s2vfast.errors import ConfigError
from s2vfast.networks.base import Network, NoFields, build_network
from s2vfast.networks.noise import Draws
from s2vfast.objectives.bodies import Bodies
from s2vfast.reference import philox

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout

_PART_SHIFT = 42
"""Of a row's part in an id; a view is below it."""

register = OBJECTIVES.register
"""Enters a subclass of `Objective` under the name that objective.name calls it."""


@dataclass(frozen=True)
class Draw:
    """What random draws of a micro-batch are functions of (`s2vfast.reference.philox`)."""

    seed: int
    epoch: int
    sample_ids: Tensor  # int64 [n], on the host: sequence numbers of the store
    labels: Tensor | None = None  # int64 [n], on the device, for objectives with ``needs_labels``
    shapes_repeat: bool = False  # whether steps are captured or compiled: few shapes are to come of `Objective.prepare`

    def words(self, stream: int, bodies: int, device: torch.device, view: int = 0) -> Draws:
        """Random words of tracks, for `Network.draw_noise`.

        Args:
            stream: what they are for, see `s2vfast.reference.philox`.
            bodies: tracks a sample.
            device: where they are needed.
            view: which of up to four passes.
        """
        ids = philox.track_ids(self.sample_ids.to(device, non_blocking=True), bodies, view)

        def draws(count: int, tracks: Tensor | None = None, parts: Tensor | None = None) -> Tensor:
            of_rows = ids if tracks is None else ids[tracks]
            if parts is not None:
                of_rows = of_rows | parts << _PART_SHIFT
            return philox.random_bits(self.seed, self.epoch, of_rows, stream, count)

        return draws


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the networks at once."""

    views: tuple[Tensor, ...]  # float32 [n * M, T, V, C] each: bodies of a sample next to each other
    inputs: Any = None  # what `Objective.prepare` gave: tensors, or dataclasses and tuples of them
    bodies: Bodies | None = None  # which tracks hold one; None: it does not matter
    weight: float = 1.0  # share of the step's samples

    @property
    def clips(self) -> Tensor:
        """The first view."""
        return self.views[0]

    def tensors(self) -> list[Tensor]:
        """All tensors, each once, always in the same order."""
        return list({id(tensor): tensor for tensor in _leaves((self.views, self.inputs, self.bodies))}.values())

    def map(self, function: Callable[[Tensor], Tensor]) -> MicroBatch:
        """The same of other tensors."""
        images = {id(tensor): function(tensor) for tensor in self.tensors()}
        return replace(self, **{name: _mapped(getattr(self, name), images) for name in ("views", "inputs", "bodies")})


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _leaves(entry)
    elif is_dataclass(value):
        for leaf in fields(value):
            yield from _leaves(getattr(value, leaf.name))


def _mapped(value: Any, images: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return images[id(value)]
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(entry, images) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{leaf.name: _mapped(getattr(value, leaf.name), images) for leaf in fields(value)})
    return value


@dataclass(frozen=True)
class Loss:
    """What a step reports, on the device."""

    loss: Tensor
    """Scalar with gradient: a mean over ``count`` samples or tracks."""
    count: int | Tensor = 1
    """What micro-batches and ranks are weighted by, where `Objective.weighted_by_count`."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Scalars without gradient by the names in `Objective.terms`, averaged like the loss."""
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """[D] each, variance and mean of channels by the names in `Objective.moments`; the mean of the variances over all
    micro-batches and ranks is reported."""


class Collectives(Protocol):
    """What an objective may ask the ranks of a run: `s2vfast.train.distributed.Ranks`."""

    rank: int
    world_size: int

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, [sum of n, …], in the order of ranks; gradients go back to the rows of this one."""


class _OneRank:
    """The only process of a run."""

    rank, world_size = 0, 1

    def all_gather(self, rows: Tensor) -> Tensor:
        return rows


class Objective(nn.Module):
    """A network with what is trained beside it, its state, and the loss of a micro-batch.

    Modules and buffers are found by their attribute: ``self.head`` is trained, and saved as ``student.head``; a module
    that `averages` names is a moving average, saved under its own name. Buffers (a queue, running statistics) are
    saved, resumed, kept the same on all ranks, and put back where a step was not finite.

    Args:
        encoder: the network that is trained.
    """

    Section: ClassVar[type] = NoFields
    """Dataclass of the config's objective section."""
    masks_tokens: ClassVar[bool] = False
    """Whether the config has a section ``mask``."""
    needs_labels: ClassVar[bool] = False
    """Whether `Draw.labels` are needed: sequences without a label are then left out."""
    gathers: ClassVar[bool] = False
    """Whether `step_loss` asks for the rows of all ranks, who then need as many samples each."""
    views_by_body: ClassVar[bool] = False
    """Whether what is compared of two views is each body, and not their mean."""
    views: int = 1
    """Views of a clip: draws of `s2vfast.ops.clip_sample`, each with a seed of its own, then `augment`."""
    pipelines: Sequence[Compose] = ()
    """What `augment` does to the coordinates of each view, to which velocities are appended; empty: views are as
    `s2vfast.ops.clip_sample` makes them."""
    averages: ClassVar[dict[str, str]] = {}
    """Attribute of a moving average → attribute of the module that it follows."""
    average_buffers: ClassVar[bool] = True
    """Whether running statistics of averages are averages too, and averages run in evaluation mode; else they are
    their own, as they run in training mode (MoCo)."""
    averages_train: ClassVar[bool] = False
    """Whether averages run in training mode although their running statistics are averages too (SkeAttnCLR)."""
    evaluated: ClassVar[str] = "encoder"
    """Attribute of the network that evaluation takes."""
    terms: tuple[str, ...] = ()
    """Names of the loss's terms, for metrics.jsonl."""
    moments: dict[str, int] = {}  # noqa: RUF012 - replaced, never changed
    """Names of moments, and channels of each."""
    weighted_by_count: bool = False
    """Whether the loss is a mean over a count that only the device knows."""
    empty_bodies: str = "compute"
    """``compute``: empty tracks are like others. ``share``, ``drop``: `MicroBatch.bodies` says which are empty."""

    def __init__(self, encoder: Network) -> None:
        super().__init__()
        self.encoder = encoder
        self.ranks: Collectives = _OneRank()
        """The ranks of the run; the trainer sets it."""

    @classmethod
    def build(cls, config: Config, layout: Layout, classes: Sequence[str] = ()) -> Objective:
        """The objective of a config, as it stands before the first step; arguments as of `build_objective`."""
        return cls(build_network(config, layout), config, classes)  # type: ignore[call-arg]  # as subclasses take it

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Raise `ConfigError`, naming the field, where values do not fit together; ``layout`` may not be known yet."""

    def check_declared(self) -> None:
        """Raise `ConfigError` unless what the class declares is there: views, averages, what learns."""
        name = type(self).__name__
        if self.pipelines and len(self.pipelines) != self.views:
            raise ConfigError(f"{name}.pipelines: {len(self.pipelines)} for {self.views} views; one a view is expected")
        modules = dict(self.named_children())
        for owner, attribute in (("evaluated", self.evaluated), *(("averages", key) for key in self.averages)):
            if attribute not in modules:
                raise ConfigError(f"{name}.{owner}: {attribute} is no module of its own; make it in __init__")
        for average, followed in self.averages.items():
            sides = [
                {key: list(tensor.shape) for key, tensor in getattr(self, side).named_parameters()}
                for side in (average, followed)
            ]
            if sides[0] != sides[1]:
                raise ConfigError(
                    f"{name}.averages: {average} has other parameters than {followed}, which it follows; make it with "
                    f"average_of"
                )
        for key, parameter in self.named_parameters():
            if not parameter.requires_grad and key.partition(".")[0] not in self.averages:
                raise ConfigError(f"{name}: {key} has no gradient; what does not learn is a buffer, not a parameter")

    @classmethod
    def checkpoint_prefix(cls) -> str:
        """What the names of the evaluated network begin with in a checkpoint."""
        return f"{cls.evaluated}." if cls.evaluated in cls.averages else f"student.{cls.evaluated}."

    def average_of(self, module: nn.Module) -> nn.Module:
        """A copy without gradient, for `averages`."""
        average = copy.deepcopy(module).requires_grad_(False)
        return average.train(self._average_mode)

    @property
    def _average_mode(self) -> bool:
        """Whether averages run in training mode."""
        return self.averages_train or not self.average_buffers

    def train(self, mode: bool = True) -> Objective:
        """As of `torch.nn.Module`; averages stay in evaluation mode where they run in it."""
        super().train(mode)
        for name in self.averages:
            getattr(self, name).train(mode and self._average_mode)
        return self

    def ema_decay(self, step: int, total_steps: int) -> float:
        """tau of all averages after a step, numbered from 0: average = tau * average + (1 - tau) * followed."""
        return 1.0

    def augment(self, clips: Tensor, view: int, draw: Draw) -> Tensor:
        """A view [n * M, T, V, C] of clips [n * M, T, V, C]; draws are functions of ``draw`` and ``view`` alone."""
        if not self.pipelines:
            return clips
        key = ViewKey(draw.seed, draw.epoch, draw.sample_ids.to(clips.device), view)
        augmented, _ = self.pipelines[view](clips.unflatten(0, (len(draw.sample_ids), -1)), key)
        return augmented.flatten(0, 1)

    def prepare(self, views: tuple[Tensor, ...], draw: Draw) -> Any:
        """Tensors that the loss needs beside the views: masks, labels, drops. Made with the clips, ahead of the step.

        Everything random belongs here or into `augment`: the step itself may be captured as a CUDA graph.
        """
        return None

    def shared(self, batches: Sequence[MicroBatch]) -> Tensor | None:
        """What is computed once for all micro-batches of a step; None: nothing."""
        return None

    def step_loss(self, batch: MicroBatch, shared: Tensor | None = None) -> Loss:
        """The loss of a micro-batch.

        Nothing in it may wait for the device. State may be changed in place.

        Args:
            batch: views, and what `prepare` made.
            shared: what `shared` gave.
        """
        raise NotImplementedError(f"{type(self).__name__}.step_loss")

    def token_weights(self, clips: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the objective looks at in clips [N, T, V, C], for pictures; None: there is nothing to show.

        Returns:
            Salience of each token, [N, L] in [0, 1], and the attention that it comes from, [N, H, L, L].
        """
        return None

    def warning(self, reported: dict[str, float]) -> str | None:
        """What to tell the user after a step with these terms and moments, once a run; None: nothing."""
        return None

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay acts on a parameter, which is named from here."""
        owner, _, inner = name.partition(".")
        module = getattr(self, owner)
        if isinstance(module, Network):
            return module.decays(inner, parameter)
        return parameter.ndim >= 2 and name.endswith("weight")

    def layer_of(self, name: str) -> int:
        """Layer of a parameter, as of `Network.layer_of`: what is beside the network is above it."""
        owner, _, inner = name.partition(".")
        return self.encoder.layer_of(inner) if owner == "encoder" else self.encoder.depth + 1


def build_objective(config: Config, layout: Layout, classes: Sequence[str] = ()) -> Objective:
    """The objective named by ``config``, as it stands before the first step: a function of train.seed alone.

    Args:
        config: the run.
        layout: the skeleton.
        classes: names of the store's classes, for objectives with ``needs_labels``.

    Raises:
        ConfigError: no such objective, or values that do not fit together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2 * config.train.seed + 1)
        return config.objective_class.build(config, layout, classes)
