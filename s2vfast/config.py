"""What a run is made of: one dataclass a section, one place where values are checked.

Every field is documented under its definition; ``s2vfast pretrain --help`` prints these texts and
``s2vfast pretrain --print_config`` the values. ``configs/*.yaml`` holds the presets.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import s2vfast.errors as errors


@dataclass
class DataConfig:
    """Which sequences are read and how a clip is made of one (see `s2vfast.ops.clip_sample`)."""

    split: str = "xsub"
    """Named split of the store; its ``train`` part is used."""
    bodies: int = 2
    """Bodies (tracks) per sequence; an absent body is all zeros."""
    frames: int = 90
    """T: frames in a clip. A multiple of model.segment_frames."""
    sampling: Literal["bins", "crop"] = "bins"
    """``bins``: the published sampling (wrap, random skips, one frame of each of T bins).
    ``crop``: a random stretch of the sequence, resampled to T frames by linear interpolation."""
    crop_min: float = 0.5
    """Shortest stretch that ``crop`` takes, as a share of the sequence, in (0, 1]."""
    center: Literal["first", "frame", "none"] = "first"
    """``first``: subtract the main body's root joint of its first frame (published).
    ``frame``: subtract the main body's root joint of every frame."""
    scale: Literal["none", "torso"] = "none"
    """``torso``: divide by the main body's mean torso length in the clip."""
    align: Literal["none", "yaw"] = "none"
    """``yaw``: turn the clip about the vertical so that the main body faces the same way on average."""
    rotate: tuple[float, float, float] = (0.3, 0.3, 0.3)
    """Largest random rotation about x, y and z in radians (training only)."""
    scale_jitter: float = 0.0
    """Random size change: a factor in 1 ± scale_jitter (training only)."""
    velocity: float = 0.0
    """Append the frame-to-frame difference times this factor to the coordinates: 6 input channels; 0: coordinates
    alone."""
    workers: int = 0
    """Threads that prepare batches ahead of the step; 0 prepares them in line. The numbers are the same."""
    resident: Literal["auto", "device", "host"] = "auto"
    """Where the recordings lie during training: on the ``device``, which makes its clips itself, or on the ``host``,
    whose threads send clips ahead through pinned memory. ``auto``: on the device where they fit into half of what is
    free there."""


@dataclass
class ModelConfig:
    """The network: tokens, encoder and decoder."""

    segment_frames: int = 3
    """s: frames of one joint that make one token."""
    dim: int = 256
    """D: width of tokens in encoder and decoder. A multiple of model.heads."""
    heads: int = 8
    """H: attention heads."""
    depth: int = 8
    """Encoder blocks."""
    decoder_depth: int = 3
    """Decoder blocks."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP as a multiple of dim."""
    layer_scale: float = 1e-4
    """First value of LayerScale's gamma."""
    init: Literal["normal", "xavier"] = "normal"
    """Where matrices start: truncated normal of init_std (published), or Xavier uniform, which suits narrow models."""
    init_std: float = 0.02
    """Standard deviation of the truncated normal that embeddings, mask token and (normal) matrices start from."""


@dataclass
class MaskConfig:
    """Motion-aware tube masking (arXiv 2401.00921, section 3.3)."""

    ratio: float = 0.9
    """Share of the joints of a tube that is masked."""
    keep: int | None = None
    """Visible joints a tube; null: floor(V * (1 - ratio))."""
    tube_len: int = 5
    """Segments that share one choice of joints. Divides frames / segment_frames."""
    motion_weight: float = 0.1
    """w: weight of the normalised motion intensity against uniform noise in [0, 1)."""
    masks_per_clip: int = 1
    """Masks drawn for each clip, sharing one pass of the teacher (data2vec 2.0)."""


@dataclass
class ObjectiveConfig:
    """What the student predicts."""

    name: Literal["skeleton2vec"] = "skeleton2vec"
    """The objective."""
    top_k: int = 8
    """The last k encoder blocks whose outputs make the target."""
    target_norm: Literal["instance", "layer"] = "instance"
    """Normalisation of each block's output before the mean over blocks."""
    ema_start: float = 0.9999
    """tau at step 0."""
    ema_end: float = 1.0
    """tau once ema_steps have passed."""
    ema_steps: int | None = None
    """Steps over which tau rises linearly; null: the whole run."""
    placement: Literal["token", "published"] = "token"
    """Where the decoder gets a visible latent: ``token``: at its own token (the paper). ``published``: where the
    authors' released code puts it under tube masking, which is in the first segments, whatever its token."""
    empty_bodies: Literal["compute", "share", "drop"] = "share"
    """All-zero tracks: ``compute`` treats them like any other (published), ``share`` runs the teacher once
    for all of them (same loss), ``drop`` leaves them out (another loss)."""


@dataclass
class OptimConfig:
    """AdamW with warm-up and cosine decay by the step."""

    lr: float = 1e-3
    """Peak learning rate."""
    lr_min: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = 20.0
    """Epochs of linear warm-up."""
    weight_decay: float = 0.05
    """Decoupled weight decay on matrices; biases, norms, embeddings, LayerScale and the mask token have none."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    clip: float = 4.0
    """Largest global gradient norm; 0 leaves gradients as they are."""


@dataclass
class TrainConfig:
    """Length, batch and machine of a run."""

    epochs: float = 800.0
    """Length of the run in passes over the training sequences. Ignored where steps is given."""
    steps: int | None = None
    """Length of the run in optimizer steps; null: from epochs."""
    batch: int = 128
    """Clips a step, over all ranks and parts."""
    accumulate: int | None = None
    """Parts that a rank's share of a step is done in, one after the other. null: 1 on a GPU; on a CPU so many that what
    a part computes stays in the caches."""
    seed: int = 1
    """Seed of weights, order, clips and masks."""
    device: str = "auto"
    """``auto`` takes a GPU where there is one; else ``cpu``, ``cuda`` or ``cuda:N``."""
    impl: str = "auto"
    """Implementation of the operations: ``auto``, ``reference``, ``torch``, ``triton`` or ``native``; for single
    operations as in ``torch,tube_mask=native``."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Operands of matrix products; the residual stream, statistics, parameters and moments are float32 always.
    ``auto``: bfloat16 on a GPU, float32 on a CPU."""
    mode: Literal["auto", "eager", "graph", "compile"] = "auto"
    """How a step is run: ``eager``, operation by operation; ``graph``, captured once as a CUDA graph and replayed, with
    the same numbers; ``compile``, by torch.compile (and captured, on a GPU). ``auto``: graph on a GPU, else eager."""
    threads: int | None = None
    """CPU threads; null: PyTorch's own choice."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""


@dataclass
class CheckpointConfig:
    """When the run is saved."""

    every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 3
    """Checkpoints that stay; older ones are removed."""


@dataclass
class Config:
    """One pretraining run."""

    data: DataConfig = field(default_factory=DataConfig)
    """Sequences and clips."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Masking."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The target."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, batch, machine."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""

    @property
    def channels(self) -> int:
        """C: input channels of a clip."""
        return 6 if self.data.velocity else 3

    @property
    def segments(self) -> int:
        """S: segments in a clip."""
        return self.data.frames // self.model.segment_frames

    def keep(self, joints: int) -> int:
        """Visible joints a tube for a skeleton of ``joints`` joints."""
        if self.mask.keep is not None:
            return self.mask.keep
        # The small term mends 20 * (1 - 0.9) = 1.9999999999999996.
        return math.floor(joints * (1.0 - self.mask.ratio) + 1e-9)

    def validate(self, joints: int | None = None) -> None:
        """Raise `ConfigError`, naming the field, unless every value is possible.

        Args:
            joints: V of the store that will be used; checks that depend on it are left out without it.
        """
        for check in (_check_types, _check_ranges, _check_relations):
            check(self)
        if joints is not None:
            keep = self.keep(joints)
            if not 1 <= keep < joints:
                name = "mask.keep" if self.mask.keep is not None else "mask.ratio"
                value = self.mask.keep if self.mask.keep is not None else self.mask.ratio
                raise errors.ConfigError(
                    f"{name}: {value} leaves {keep} of {joints} joints visible; between 1 and {joints - 1} must stay"
                )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, in the order of the fields."""
        tree = dataclasses.asdict(self)
        tree["data"]["rotate"] = list(tree["data"]["rotate"])
        return tree

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Config:
        """The config of nested plain values; unknown sections and fields raise `ConfigError`."""
        known = {f.name: f.default_factory for f in dataclasses.fields(cls)}
        _refuse_unknown("", tree, known)
        sections = {}
        for name, section_class in known.items():
            values = {} if tree.get(name) is None else tree[name]
            if not isinstance(values, dict):
                raise errors.ConfigError(f"{name}: a section of fields is expected, not {values!r}")
            _refuse_unknown(f"{name}.", values, {f.name: f for f in dataclasses.fields(section_class)})
            values = dict(values)
            if isinstance(values.get("rotate"), list):
                values["rotate"] = tuple(values["rotate"])
            sections[name] = section_class(**values)
        config = cls(**sections)
        config.validate()
        return config


def _refuse_unknown(prefix: str, given: dict, known: dict) -> None:
    import difflib

    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
            raise errors.ConfigError(f"{prefix}{name}: no such field; {hint}")


def _leaves(config: Config):
    """(path, dataclass field, value) of every field."""
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        for leaf in dataclasses.fields(values):
            yield f"{section.name}.{leaf.name}", leaf, getattr(values, leaf.name)


def _check_types(config: Config) -> None:
    import typing

    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        hints = typing.get_type_hints(type(values))
        for leaf in dataclasses.fields(values):
            value, hint = getattr(values, leaf.name), hints[leaf.name]
            path = f"{section.name}.{leaf.name}"
            allowed = typing.get_args(hint)
            if typing.get_origin(hint) is Literal:
                if value not in allowed:
                    raise errors.ConfigError(f"{path}: {value!r} is not one of {', '.join(map(str, allowed))}")
            elif typing.get_origin(hint) is tuple:
                if (
                    not isinstance(value, (tuple, list))
                    or len(value) != len(allowed)
                    or not all(_is_number(v) for v in value)
                ):
                    raise errors.ConfigError(f"{path}: {value!r}; {len(allowed)} numbers are expected")
            else:
                _check_scalar(path, value, allowed or (hint,))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_scalar(path: str, value: Any, types: tuple[type, ...]) -> None:
    good = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: _is_number(value),
        str: isinstance(value, str),
        type(None): value is None,
    }
    if not any(good[t] for t in types):
        names = {
            int: "a whole number",
            float: "a finite number",
            str: "text",
            bool: "true or false",
            type(None): "null",
        }
        raise errors.ConfigError(f"{path}: {value!r}; {' or '.join(names[t] for t in types)} is expected")


_AT_LEAST_ONE = (
    "data.bodies data.frames model.segment_frames model.dim model.heads model.depth model.decoder_depth "
    "mask.keep mask.tube_len mask.masks_per_clip objective.top_k objective.ema_steps train.steps train.batch "
    "train.accumulate train.threads train.log_every checkpoint.every checkpoint.keep"
).split()
_POSITIVE = "model.mlp_ratio model.init_std optim.lr optim.eps train.epochs".split()
_NOT_NEGATIVE = (
    "data.scale_jitter data.velocity data.workers model.layer_scale mask.motion_weight optim.lr_min "
    "optim.warmup_epochs optim.weight_decay optim.clip train.seed"
).split()


def _check_ranges(config: Config) -> None:
    for path, _, value in _leaves(config):
        if value is None:
            continue
        if path in _AT_LEAST_ONE and value < 1:
            raise errors.ConfigError(f"{path}: {value}; 1 or more is expected")
        if path in _POSITIVE and value <= 0:
            raise errors.ConfigError(f"{path}: {value}; a positive number is expected")
        if path in _NOT_NEGATIVE and value < 0:
            raise errors.ConfigError(f"{path}: {value}; 0 or more is expected")
    bounds = [
        ("data.crop_min", config.data.crop_min, 0.0, 1.0, "(]"),
        ("data.scale_jitter", config.data.scale_jitter, 0.0, 1.0, "[)"),
        ("mask.ratio", config.mask.ratio, 0.0, 1.0, "()"),
        ("objective.ema_start", config.objective.ema_start, 0.0, 1.0, "[]"),
        ("objective.ema_end", config.objective.ema_end, 0.0, 1.0, "[]"),
        ("optim.beta1", config.optim.beta1, 0.0, 1.0, "[)"),
        ("optim.beta2", config.optim.beta2, 0.0, 1.0, "[)"),
    ]
    for path, value, low, high, ends in bounds:
        above = value >= low if ends[0] == "[" else value > low
        below = value <= high if ends[1] == "]" else value < high
        if not (above and below):
            raise errors.ConfigError(f"{path}: {value}; a number in {ends[0]}{low:g}, {high:g}{ends[1]} is expected")
    if config.train.seed >= 2**63:
        raise errors.ConfigError(f"train.seed: {config.train.seed}; a number below 2**63 is expected")


def _check_relations(config: Config) -> None:
    data, model, mask, objective = config.data, config.model, config.mask, config.objective
    if data.frames % model.segment_frames:
        raise errors.ConfigError(
            f"data.frames: {data.frames} is no multiple of model.segment_frames = {model.segment_frames}"
        )
    if config.segments % mask.tube_len:
        raise errors.ConfigError(
            f"mask.tube_len: {mask.tube_len} does not divide the {config.segments} segments of a clip "
            f"(data.frames / model.segment_frames)"
        )
    if model.dim % model.heads:
        raise errors.ConfigError(f"model.dim: {model.dim} is no multiple of model.heads = {model.heads}")
    if objective.top_k > model.depth:
        raise errors.ConfigError(f"objective.top_k: {objective.top_k} is more than model.depth = {model.depth}")
    if objective.ema_end < objective.ema_start:
        raise errors.ConfigError(
            f"objective.ema_end: {objective.ema_end} is below objective.ema_start = {objective.ema_start}"
        )
    if config.optim.lr_min > config.optim.lr:
        raise errors.ConfigError(f"optim.lr_min: {config.optim.lr_min} is above optim.lr = {config.optim.lr}")
