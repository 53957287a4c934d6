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
from s2vfast import config_checks


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
    layer_scale: float | None = 1e-4
    """First value of LayerScale's gamma; null: no LayerScale."""
    norm_eps: float = 1e-6
    """Added to the variance by layer norms."""
    init: Literal["normal", "xavier"] = "normal"
    """Where matrices start: truncated normal of init_std (published), or Xavier uniform, which suits narrow models."""
    init_std: float = 0.02
    """Standard deviation of the truncated normal that embeddings, mask token and (normal) matrices start from."""


@dataclass
class MaskConfig:
    """Which tokens the student sees."""

    kind: Literal["auto", "random", "tube", "motion_tube", "motion_token", "frame_joint"] = "auto"
    """``random``: any tokens. ``tube``: joints that are masked for tube_len segments. ``motion_tube``: the same, moving
    joints more often (Skeleton2vec). ``motion_token``: any tokens, those that move more often, by Gumbel noise (MAMP).
    ``frame_joint``: some segments whole, and joints or body parts of the others (SkeletonMAE). ``auto``: what was
    published for the objective."""
    ratio: float = 0.9
    """Share that is masked: of the joints of a tube; of all tokens (random, motion_token); of the joints of a segment
    that is not masked whole (frame_joint)."""
    keep: int | None = None
    """What stays visible, in place of ratio: joints a tube; tokens a track (random, motion_token); joints a segment
    (frame_joint). null: floor(V * (1 - ratio)) joints, int(L * (1 - ratio)) tokens."""
    tube_len: int = 5
    """Segments that share one choice of joints (tubes). Divides frames / segment_frames."""
    motion_weight: float = 0.1
    """w: weight of the normalised motion intensity against uniform noise in [0, 1) (motion_tube)."""
    tau: float = 0.8
    """Temperature of the softmax of motion (motion_token): the smaller, the more often moving tokens are masked."""
    frame_ratio: float = 0.4
    """Share of the segments that is masked whole (frame_joint): floor(S * frame_ratio) of them."""
    joints: Literal["clip", "segment"] = "clip"
    """Whether joints are chosen once a ``clip`` or anew for every ``segment`` (frame_joint)."""
    parts: int | None = None
    """Body parts of the layout that are masked whole, in place of ratio (frame_joint). As parts differ in size and
    counts do not, joints chosen at random fill up to the joints of the so many largest parts. null: joints by ratio."""
    masks_per_clip: int = 1
    """Masks drawn for each clip, sharing one pass of the teacher (data2vec 2.0)."""


@dataclass
class ObjectiveConfig:
    """What the student predicts."""

    name: str = "skeleton2vec"
    """``skeleton2vec``: a moving-average teacher's features. ``skeletonmae``: coordinates. ``mamp``: motion, normalised
    for each token. Or one of your own (CONTRIBUTING.md)."""
    auxiliary: Literal["none", "coordinates", "motion"] = "none"
    """What a second head predicts beside it, of the same tokens: ``coordinates`` as in skeletonmae, ``motion`` as in
    mamp."""
    auxiliary_weight: float = 0.1
    """Weight of the second head's loss in the loss that is reported."""
    top_k: int = 8
    """The last k encoder blocks whose outputs make the target (skeleton2vec)."""
    target_norm: Literal["instance", "layer"] = "instance"
    """Normalisation of each block's output before the mean over blocks (skeleton2vec)."""
    ema_start: float = 0.9999
    """tau of the teacher's moving average at step 0."""
    ema_end: float = 1.0
    """tau once ema_steps have passed."""
    ema_steps: int | None = None
    """Steps over which tau rises linearly; null: the whole run."""
    placement: Literal["token", "published"] = "token"
    """Where the decoder gets a visible latent: ``token``: at its own token (the paper). ``published``: where the
    authors' released code of Skeleton2vec puts it under tube masking, which is in the first segments, whatever its
    token."""
    empty_bodies: Literal["compute", "share", "drop"] = "share"
    """All-zero tracks: ``compute`` treats them like any other (published), ``share`` runs the teacher once
    for all of them (same loss; as ``compute`` where there is no teacher), ``drop`` leaves them out (another loss)."""


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
        """Visible joints, of ``joints``, of a tube or (frame_joint) of a segment that is not masked whole."""
        if self.mask.keep is not None:
            return self.mask.keep
        # The small term mends 20 * (1 - 0.9) = 1.9999999999999996.
        return math.floor(joints * (1.0 - self.mask.ratio) + 1e-9)

    def validate(self, joints: int | None = None) -> None:
        """Raise `ConfigError`, naming the field, unless every value is possible.

        Args:
            joints: V of the store that will be used; checks that depend on it are left out without it.
        """
        config_checks.check(self, joints)

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
