"""What all objectives share: the network, masks, empty bodies, the loss at the masked tokens, and a registry.

An objective is a class in a file of this folder, under a name, that says what the target is:

    @register("mine")
    class Mine(Objective):
        mask_kind = "random"

        @classmethod
        def predicted(cls, config):
            return 3

        def target(self, clips, masked, bodies=None, empty=None):
            return …  # [r * N, M, 3]

Engine, optimizer, checkpoints and evaluation ask what `Objective` declares and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from s2vfast import errors, ops
from s2vfast.config import Config
from s2vfast.nn import Decoder, Encoder, build_decoder, build_encoder
from s2vfast.objectives.masks import Masking, Masks
from s2vfast.objectives.targets import TARGETS, numbers_of_token

OBJECTIVES: dict[str, type[Objective]] = {}
"""Name in a config → class."""
Class = TypeVar("Class", bound="type[Objective]")


def register(name: str) -> Callable[[Class], Class]:
    """Let a subclass of `Objective` be found under a name, which must be free."""

    def enter(given: Class) -> Class:
        if name in OBJECTIVES:
            raise ValueError(f"objective {name}: {OBJECTIVES[name].__qualname__} has this name")
        OBJECTIVES[name] = given
        return given

    return enter


def objective_class(name: str) -> type[Objective]:
    """The class registered under a name; ConfigError names those that there are."""
    if name not in OBJECTIVES:
        raise errors.ConfigError(f"objective.name: {name!r} is not one of {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name]


@dataclass(frozen=True)
class Losses:
    """What a step reports, on the device."""

    loss: Tensor  # scalar with gradient: the mean over `count` clips' masked tokens
    count: int | Tensor  # clips (tracks times masks) that the mean is over
    target: tuple[Tensor, Tensor]  # [D] each: variance and mean of the target's channels over masked tokens
    prediction: tuple[Tensor, Tensor]  # the same of the prediction

    @property
    def target_var(self) -> Tensor:
        """Mean variance of the target's channels; near 0: the teacher, where there is one, has collapsed."""
        return self.target[0].mean()

    @property
    def pred_var(self) -> Tensor:
        """Mean variance of the prediction's channels."""
        return self.prediction[0].mean()


@dataclass(frozen=True)
class Bodies:
    """The tracks of a batch, those with a body first."""

    order: Tensor  # int64 [N]
    places: Tensor  # int64 [N], each track's place in `order`, which for all empty ones is that of the first of them
    filled: int  # no fewer than have a body

    @classmethod
    def of(cls, clips: Tensor) -> Bodies:
        """Look for them in clips [N, T, V, C], which makes the host wait for the device."""
        return cls.known(_filled(clips))

    @classmethod
    def known(cls, present: Tensor, room: int | None = None) -> Bodies:
        """From bool [N], which may say of an empty track that it is none: it is then one of its own.

        Args:
            present: on the device of the result.
            room: ``filled``, if it is to be more than there are: shapes depend on it.
        """
        rank = torch.cumsum(present, 0)
        filled = int(rank[-1]) if len(rank) else 0
        places = torch.where(present, rank - 1, filled)
        order = torch.argsort((~present).to(torch.uint8), stable=True)
        return cls(order, places, filled if room is None else room)

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, always in the same order."""
        return self.order, self.places


class Objective(nn.Module):
    """An encoder that sees the visible tokens, a decoder that predicts something of the others, maybe a teacher.

    Args:
        encoder: the student's, and what is evaluated where there is no teacher.
        decoder: predicts, with its second head the auxiliary target.
        masking: which tokens are visible.
        teacher: the moving average of the encoder, which the optimizer keeps; None: there is none.
        empty_bodies: of the config; ``share`` is ``compute`` where there is no teacher.
        auxiliary: the second head's target, a name of `s2vfast.objectives.targets.TARGETS`; None: there is no such
            head.
        auxiliary_weight: of its loss.
    """

    mask_kind: ClassVar[str] = "random"
    """What mask.kind ``auto`` stands for."""
    with_teacher: ClassVar[bool] = False
    """Whether there is a teacher, whose encoder is then the one that is evaluated."""
    predicts: ClassVar[str | None] = None
    """The target's name in `s2vfast.objectives.targets.TARGETS`, where it is one of these."""

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        masking: Masking,
        *,
        teacher: Encoder | None = None,
        empty_bodies: str = "compute",
        auxiliary: str | None = None,
        auxiliary_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.masking = encoder, decoder, masking
        self.teacher = teacher
        self.empty_bodies = "compute" if empty_bodies == "share" and teacher is None else empty_bodies
        self.auxiliary, self.auxiliary_weight = auxiliary, auxiliary_weight

    @classmethod
    def build(cls, config: Config, joints: int, parts: dict[str, tuple[int, ...]] | None = None) -> Objective:
        """The objective of ``config``, as it stands before the first step; arguments as of `build_objective`."""
        objective, auxiliary = config.objective, None
        masking = Masking.of(config, joints, cls.mask_kind, parts)
        if objective.auxiliary != "none":
            auxiliary = objective.auxiliary
            if auxiliary == cls.predicts:
                raise errors.ConfigError(
                    f"objective.auxiliary: {auxiliary} is what {objective.name} predicts already; give none or another"
                )
        return cls(
            build_encoder(config, joints),
            build_decoder(
                config, joints, cls.predicted(config), None if auxiliary is None else numbers_of_token(config)
            ),
            masking,
            empty_bodies=objective.empty_bodies,
            auxiliary=auxiliary,
            auxiliary_weight=objective.auxiliary_weight,
            **cls.options(config),
        )

    @classmethod
    def options(cls, config: Config) -> dict[str, Any]:
        """Further arguments of the class."""
        return {}

    @classmethod
    def predicted(cls, config: Config) -> int | None:
        """Numbers predicted a token; None: model.dim."""
        return None if cls.predicts is None else numbers_of_token(config)

    @classmethod
    def evaluated(cls) -> str:
        """What the names of the evaluated encoder's parameters begin with in a checkpoint."""
        return "teacher." if cls.with_teacher else "student.encoder."

    @property
    def rest(self) -> list[nn.Module]:
        """What is trained beside the encoder; checkpoints name their parameters after their classes."""
        return [self.decoder]

    @property
    def width(self) -> int:
        """Channels of target and prediction."""
        return self.decoder.head.out_features

    def target(
        self, clips: Tensor, masked: Tensor | None, bodies: Bodies | None = None, empty: Tensor | None = None
    ) -> Tensor:
        """What is to be predicted.

        Args:
            clips: [N, T, V, C].
            masked: int32 [r * N, M], the tokens wanted, mask after mask; None for all L.
            bodies: which tracks are empty, where ``empty_bodies`` is ``share``.
            empty: what `empty_target` gave.

        Returns:
            [r * N, M, width], or [N, L, width].
        """
        if self.predicts is None:
            raise NotImplementedError(f"{type(self).__name__}.target")
        return TARGETS[self.predicts](clips, masked, self.masking.segment_frames)

    def empty_target(self, clips: Tensor) -> Tensor | None:
        """The target of a track of zeros, once for several batches like clips [N, T, V, C]; None: nothing to share."""
        return None

    def draw(
        self,
        clips: Tensor,
        *,
        noise: Tensor | None = None,
        seed: int = 0,
        epoch: int = 0,
        sample_ids: Tensor | None = None,
    ) -> Masks:
        """The masks of clips [N, T, V, C]; arguments as of `forward`."""
        return self.masking.masks(clips, noise=noise, seed=seed, epoch=epoch, sample_ids=sample_ids)

    def forward(
        self,
        clips: Tensor,
        masks: Masks | None = None,
        *,
        bodies: Bodies | None = None,
        empty: Tensor | None = None,
        noise: Tensor | None = None,
        seed: int = 0,
        epoch: int = 0,
        sample_ids: Tensor | None = None,
    ) -> Losses:
        """The loss of a batch.

        Args:
            clips: [N, T, V, C], bodies of a sample next to each other.
            masks: what `draw` gave for these clips; None draws it from the arguments below.
            bodies: which tracks hold one; None looks for them where that matters, which makes the host wait for the
                device.
            empty: what `empty_target` gave, for ``empty_bodies="share"``; None: a track of the batch stands for all.
            noise: draws of the masks, of masks_per_clip * N tracks; None draws them from (seed, epoch, sample_ids).
            seed: seed of the masks.
            epoch: epoch of the masks.
            sample_ids: int64 [B] with N a multiple of B.

        Returns:
            Loss and variances.
        """
        if masks is None:
            masks = self.draw(clips, noise=noise, seed=seed, epoch=epoch, sample_ids=sample_ids)
        visible, masked, places = masks.visible, masks.masked, masks.places
        r, count = self.masking.per_clip, clips.shape[0]
        if bodies is None and self.empty_bodies != "compute":
            bodies = Bodies.of(clips)
        kept = None
        if self.empty_bodies == "drop":
            chosen = bodies.order[: bodies.filled]
            rows = (torch.arange(r, device=clips.device)[:, None] * count + chosen).reshape(-1)
            visible, masked, places = visible[rows], masked[rows], places[rows]
            clips = clips[chosen]
            kept = _filled(clips).repeat(r)  # [r * n], False where ``filled`` is more than there are

        with torch.no_grad():
            target = self.target(clips, masked, bodies if self.empty_bodies == "share" else None, empty)
        stream = self.encoder.stream(clips.repeat(r, 1, 1, 1) if r > 1 else clips, visible)
        stream = self.decoder.stream(stream, places, masked, norm=self.encoder.norm)  # [r * N, M, D]
        prediction = self.decoder.predict(stream, self.decoder.head)
        loss = _mean_error(prediction, target, kept)
        if self.auxiliary is not None:
            with torch.no_grad():
                beside = TARGETS[self.auxiliary](clips, masked, self.masking.segment_frames)
            found = self.decoder.predict(stream, self.decoder.auxiliary)
            loss = loss + self.auxiliary_weight * _mean_error(found, beside, kept)
        with torch.no_grad():
            number = masked.shape[0] if kept is None else kept.sum()
            return Losses(loss, number, moments(target, kept), moments(prediction, kept))


def _mean_error(prediction: Tensor, target: Tensor, kept: Tensor | None) -> Tensor:
    """Mean squared error of [N, M, D], of the rows ``kept`` where that is given."""
    if kept is None:
        return ops.masked_mse(prediction, target)
    # What is there too much differs from nothing, and the mean is over the others.
    whole = torch.where(kept[:, None, None], prediction.to(target.dtype), target)
    return ops.masked_mse(whole, target) * (kept.numel() / kept.sum().clamp(min=1))


def _filled(clips: Tensor) -> Tensor:
    """bool [N]: whether a track of clips [N, T, V, C] holds anything."""
    return (clips != 0).flatten(1).any(dim=1)


def moments(x: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Variance and mean over all tokens of each channel of [N, M, D], of the rows ``kept`` where that is given."""
    x = x if x.dtype == torch.float64 else x.float()
    if kept is None:
        rows = x.reshape(-1, x.shape[-1])
        if x.is_cuda:
            return torch.var_mean(rows, dim=0, correction=0)
        # Fifteen times as fast on a CPU.
        mean = rows.mean(0)
        return (rows - mean).square().mean(0), mean
    weight = (kept / (kept.sum().clamp(min=1) * x.shape[1]))[:, None, None]  # [N, 1, 1]
    mean = (x * weight).sum((0, 1))
    return ((x - mean).square() * weight).sum((0, 1)), mean
