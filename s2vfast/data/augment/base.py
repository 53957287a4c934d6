"""What an augmentation is: its draws, its batch, its name in a config, and how steps make a view.

A view is a list of steps in plain data: ``[{name: crop_resize, frames: 64}, {name: shear, amplitude: 0.5}]``. Every
step is a frozen dataclass that was registered under its name; its fields are its settings. Every draw is a Philox
number of (seed, epoch, sample, view), so a clip comes out the same on any device, in any batch, at any number of ranks.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from s2vfast.config.fields import check_section, option, section_from_tree, tree_of
from s2vfast.data.layout import Layout
from s2vfast.errors import ConfigError, ShapeError
from s2vfast.reference import philox

AUGMENTATIONS: dict[str, type[Augmentation]] = {}
"""The registered augmentations by name."""
FIRST_STREAM = 16
"""Philox streams of augmentations begin here; those below belong to `s2vfast.reference.philox`."""
# Where they stand in a Philox id, above the 32 bits of the sample and the 8 of a body slot.
_OCCURRENCE_SHIFT, _VIEW_SHIFT = 40, 48

Step = TypeVar("Step", bound="type[Augmentation]")


@dataclass(frozen=True)
class ViewKey:
    """What the draws of a view depend on."""

    seed: int
    """Seed of the run, in [0, 2**64)."""
    epoch: int
    """Pass over the data, in [0, 2**32)."""
    sample_ids: Tensor
    """int64 [B]: numbers of the sequences, below 2**32, on the clips' device."""
    view: int = 0
    """Which view of the sample, in [0, 256)."""

    def draws(self, stream: int, count: int, occurrence: int = 0) -> Tensor:
        """int64 [B, count], uniform in [0, 2**32).

        Args:
            stream: what the draws are for, see `register_augmentation`.
            count: draws a sample.
            occurrence: which of the steps of one kind in a view, in [0, 256).
        """
        ids = self.sample_ids | (occurrence << _OCCURRENCE_SHIFT) | (self.view << _VIEW_SHIFT)
        return philox.random_bits(self.seed, self.epoch, ids, stream, count)


@dataclass(frozen=True)
class ViewBatch:
    """What a step takes and gives."""

    clips: Tensor
    """[B, M, T, V, 3], floating: coordinates of M bodies a sample. Frames from ``lengths`` on are zeros."""
    lengths: Tensor
    """int64 [B]: frames that a sample has, at most T; shared by its bodies."""
    layout: Layout
    """The skeleton, V joints."""
    key: ViewKey
    """What the draws depend on."""

    @property
    def present(self) -> Tensor:
        """bool [B, M, T, 1, 1]: a body is there in a frame unless all its coordinates are zero."""
        return (self.clips != 0).any(-1, keepdim=True).any(-2, keepdim=True)

    @property
    def in_length(self) -> Tensor:
        """bool [B, 1, T, 1, 1]: the frames before a sample's length."""
        frames = torch.arange(self.clips.shape[2], device=self.clips.device)
        return (frames < self.lengths[:, None])[:, None, :, None, None]


@dataclass(frozen=True)
class Augmentation:
    """One step of a view: ``step(batch)`` is the batch with other clips. Never waits for the device.

    Its fields are those of a config's section: their types and ranges are checked wherever a step is made.
    """

    name: ClassVar[str]
    stream: ClassVar[int]

    occurrence: int = field(default=0, init=False, repr=False)
    """How many steps of this kind come before it in its view; `Compose` counts them. Not part of a config."""

    def __post_init__(self) -> None:
        check_section(self, self.name)

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """The batch after this step."""
        raise NotImplementedError

    def check_layout(self, layout: Layout) -> None:
        """Raise `ConfigError` unless the step can be done on this skeleton."""

    def frames_out(self, frames: int) -> int:
        """T after the step, for clips of ``frames`` before it."""
        return frames

    def draws(self, batch: ViewBatch, count: int) -> Tensor:
        """This step's draws: int64 [B, count], uniform in [0, 2**32)."""
        return batch.key.draws(self.stream, count, self.occurrence)

    def refuse_planar(self, layout: Layout, remedy: str) -> None:
        """Raise `ConfigError` for recordings of 2 coordinates, which this step would turn out of their plane."""
        if layout.planar:
            reason = "the recordings have 2 coordinates a joint, which turn in their plane alone"
            raise ConfigError(f"{self.name}: {reason}; {remedy}")

    def require(self, holds: bool, field_name: str, expected: str) -> None:
        """Raise `ConfigError`, naming field, value and what was expected, unless ``holds``."""
        if not holds:
            raise ConfigError(f"{self.name}.{field_name}: {getattr(self, field_name)!r}; {expected} is expected")


def register_augmentation(name: str, stream: int) -> Callable[[Step], Step]:
    """Class decorator: make a frozen dataclass an augmentation that configs can name.

    Args:
        name: its name in a config.
        stream: Philox stream of its draws, 16 to 255, no other augmentation's.

    Raises:
        ValueError: name or stream is another's, or stream is out of range.
    """

    def add(cls: Step) -> Step:
        if not FIRST_STREAM <= stream < 256:
            raise ValueError(f"augmentation {name}: stream {stream}; {FIRST_STREAM} to 255 is expected")
        for other in AUGMENTATIONS.values():
            if name == other.name or stream == other.stream:
                raise ValueError(f"augmentation {name}: name or stream {stream} is that of {other.name}")
        cls.name, cls.stream = name, stream
        AUGMENTATIONS[name] = cls
        return cls

    return add


def uniform(draws: Tensor, low: float, high: float, dtype: torch.dtype) -> Tensor:
    """Draws as numbers in [low, high) of ``dtype``, in steps of (high - low) / 2**24."""
    return low + (high - low) * philox.uniform(draws).to(dtype)


def choose(draws: Tensor, count: int) -> Tensor:
    """``count`` different columns a row, in the order drawn: int64 [B, count] from draws [B, n]."""
    return torch.argsort(draws, dim=1, stable=True)[:, :count]


@functools.lru_cache(maxsize=64)
def constant(values: tuple, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor of plain numbers on a device, copied there once: a copy in every step would wait for the host."""
    return torch.tensor(values, dtype=dtype, device=device)


@register_augmentation("one_of", stream=16)
@dataclass(frozen=True)
class OneOf(Augmentation):
    """Every sample goes through one of several lists of steps, each as likely as the others.

    All lists are computed and one is taken a sample, so that shapes and draws depend on no draw.
    """

    options: tuple[tuple[Augmentation, ...], ...] = ()
    """The lists."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.options) > 0, "options", "one list of steps or more")

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: 1."""
        option = philox.randint(self.draws(batch, 1)[:, 0], len(self.options))
        result = _run(self.options[0], batch)
        for number, steps in enumerate(self.options[1:], 1):
            result = _where(option == number, _run(steps, batch), result)
        return result

    def check_layout(self, layout: Layout) -> None:
        """Every step of every list must fit the skeleton."""
        for steps in self.options:
            for step in steps:
                step.check_layout(layout)

    def frames_out(self, frames: int) -> int:
        """T after any of the lists, which must be one."""
        lengths = [_frames_out(steps, frames) for steps in self.options]
        if len(set(lengths)) > 1:
            raise ConfigError(f"one_of.options: clips of {lengths} frames come out of the options; one length must")
        return lengths[0]


@register_augmentation("maybe", stream=17)
@dataclass(frozen=True)
class Maybe(Augmentation):
    """A list of steps that every sample goes through with some probability."""

    steps: tuple[Augmentation, ...] = ()
    """The list."""
    probability: float = option(0.5, ge=0, le=1)
    """Of going through it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.steps) > 0, "steps", "one step or more")

    def __call__(self, batch: ViewBatch) -> ViewBatch:
        """Draws: 1."""
        through = philox.uniform(self.draws(batch, 1)[:, 0]) < self.probability
        return _where(through, _run(self.steps, batch), batch)

    def check_layout(self, layout: Layout) -> None:
        """Every step must fit the skeleton."""
        for step in self.steps:
            step.check_layout(layout)

    def frames_out(self, frames: int) -> int:
        """T, which the steps must not change."""
        after = _frames_out(self.steps, frames)
        if after != frames:
            raise ConfigError(
                f"maybe.steps: they make {after} frames of {frames}; a step that may be left out must not"
            )
        return frames


class Compose:
    """A view of clips: steps one after the other.

    Args:
        steps: augmentations, or plain data as `augmentation` takes it.
        layout: the skeleton.
        where: path of the steps in their config, for messages.

    Raises:
        ConfigError: a step that is unknown, has impossible values, or cannot be done on this skeleton.
    """

    def __init__(self, steps: Iterable[Augmentation | dict[str, Any]], layout: Layout, where: str = "view") -> None:
        unnumbered = tuple(
            step if isinstance(step, Augmentation) else augmentation(step, f"{where}.{number}")
            for number, step in enumerate(steps)
        )
        self.layout = layout
        self.steps: tuple[Augmentation, ...] = _numbered(unnumbered, Counter())
        for number, step in enumerate(self.steps):
            try:
                step.check_layout(layout)
            except ConfigError as error:  # noqa: PERF203 (once a view)
                raise ConfigError(f"{where}.{number}.{error}") from None

    def __call__(self, clips: Tensor, key: ViewKey, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One view of each sample.

        Args:
            clips: [B, M, T, V, 3], floating, zeros where a body is absent.
            key: what the draws depend on.
            lengths: int64 [B], frames that a sample has; None: T each.

        Returns:
            The view's clips [B, M, T', V, 3] and their lengths, int64 [B]; T' is `frames_out` (T).

        Raises:
            ShapeError: clips, lengths or key.sample_ids of other shapes.
        """
        if clips.ndim != 5 or clips.shape[3:] != (self.layout.num_joints, 3) or not clips.is_floating_point():
            expected = f"floating [B, M, T, {self.layout.num_joints}, 3]"
            raise ShapeError(f"views: clips: {expected} is expected, found {clips.dtype} {list(clips.shape)}")
        B, T = clips.shape[0], clips.shape[2]
        if lengths is None:
            lengths = torch.full((B,), T, dtype=torch.int64, device=clips.device)
        for name, ids in (("lengths", lengths), ("sample_ids", key.sample_ids)):
            if ids.shape != (B,) or ids.dtype != torch.int64:
                raise ShapeError(f"views: {name}: int64 [{B}] is expected, found {ids.dtype} {list(ids.shape)}")
        after = _run(self.steps, ViewBatch(clips, lengths, self.layout, key))
        return after.clips, after.lengths

    def frames_out(self, frames: int) -> int:
        """T of the view, for clips of ``frames``; `ConfigError` where it would depend on a draw."""
        return _frames_out(self.steps, frames)

    def to_data(self) -> list[dict[str, Any]]:
        """Plain data, every field written out: what makes the same view again."""
        return [to_data(step) for step in self.steps]


def augmentation(data: Any, where: str = "view") -> Augmentation:
    """A step of plain data: ``{"name": "shear", "amplitude": 0.5}``; fields that are left out have their defaults.

    Args:
        data: name and fields.
        where: path of the data in its config, for messages.

    Raises:
        ConfigError: an unknown name or field, with the nearest that there is, or an impossible value.
    """
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise ConfigError(f"{where}: a name and fields are expected, as in {{name: shear}}, found {data!r}")
    name, fields = data["name"], {key: value for key, value in data.items() if key != "name"}
    if name not in AUGMENTATIONS:
        raise ConfigError(f"{where}.name: {name!r} is not one of {', '.join(AUGMENTATIONS)}")
    cls = AUGMENTATIONS[name]
    hints = typing.get_type_hints(cls)
    for key, value in fields.items():
        fields[key] = _with_steps(value, hints.get(key), f"{where}.{name}.{key}")
    try:
        return section_from_tree(cls, fields, name)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None


def to_data(step: Augmentation) -> dict[str, Any]:
    """The plain data of a step, which `augmentation` reads back."""
    return {"name": step.name} | {key: _without_steps(value) for key, value in tree_of(step).items()}


def _with_steps(value: Any, hint: Any, path: str) -> Any:
    """The steps of a field that has steps, built from their plain data; other values as they are."""
    if hint is Augmentation:
        return augmentation(value, path)
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None
    if inner is not Augmentation and typing.get_origin(inner) is not tuple:
        return value
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{path}: {value!r}; a list of steps is expected")
    return [_with_steps(entry, inner, f"{path}.{number}") for number, entry in enumerate(value)]


def _without_steps(value: Any) -> Any:
    if isinstance(value, Augmentation):
        return to_data(value)
    return [_without_steps(entry) for entry in value] if isinstance(value, list) else value


def _numbered(steps: tuple, counts: Counter) -> tuple:
    """The steps, also those within steps, with their occurrence: two of one kind in a view draw different numbers."""
    numbered = []
    for step in steps:
        if isinstance(step, tuple):
            numbered.append(_numbered(step, counts))
            continue
        changes: dict[str, Any] = {}
        occurrence = counts[step.name]
        counts[step.name] += 1
        for entry in dataclasses.fields(step):
            value = getattr(step, entry.name)
            if isinstance(value, tuple) and value and isinstance(value[0], (tuple, Augmentation)):
                changes[entry.name] = _numbered(value, counts)
        numbered.append(replace(step, **changes))
        object.__setattr__(numbered[-1], "occurrence", occurrence)  # steps are frozen, and this one is new
    return tuple(numbered)


def _run(steps: Iterable[Augmentation], batch: ViewBatch) -> ViewBatch:
    for step in steps:
        batch = step(batch)
    return batch


def _frames_out(steps: Iterable[Augmentation], frames: int) -> int:
    for step in steps:
        frames = step.frames_out(frames)
    return frames


def _where(condition: Tensor, one: ViewBatch, other: ViewBatch) -> ViewBatch:
    """Samples of ``one`` where ``condition`` [B], else of ``other``."""
    clips = torch.where(condition[:, None, None, None, None], one.clips, other.clips)
    return replace(other, clips=clips, lengths=torch.where(condition, one.lengths, other.lengths))
