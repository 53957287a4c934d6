"""What a run is made of: one dataclass a section, one place where values are checked.

``model`` and ``objective`` are unions by name: the network and the objective that they name bring their own sections
(`s2vfast.config.registry`). Every field is documented under its definition; ``s2vfast pretrain --help`` prints these
texts and ``s2vfast pretrain --print_config`` the values. ``configs/*.yaml`` holds the presets.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from s2vfast.config.fields import Section, check_section, option, refuse_unknown, section_from_tree, tree_of
from s2vfast.config.registry import NETWORKS, OBJECTIVES, Registry
from s2vfast.errors import ConfigError

if TYPE_CHECKING:
    from s2vfast.data.layout import Layout
    from s2vfast.networks import Network
    from s2vfast.objectives import Objective

DEFAULT_NETWORK, DEFAULT_OBJECTIVE = "transformer", "skeleton2vec"


@dataclass
class DataConfig(Section):
    """Which sequences are read and how a clip is made of one (see `s2vfast.ops.clip_sample`)."""

    split: str = "xsub"
    """Named split of the store; its ``train`` part is used."""
    bodies: int = option(2, ge=1)
    """Bodies (tracks) per sequence; an absent body is all zeros."""
    frames: int = option(90, ge=1)
    """T: frames in a clip."""
    points: int = option(1024, ge=1)
    """P: points drawn of every frame of a point cloud."""
    sampling: Literal["bins", "crop", "window"] = "bins"
    """``bins``: the published sampling (wrap, random skips, one frame of each of T bins); of point clouds one frame of
    each of T bins. ``crop``: a random stretch of the sequence, resampled to T frames by linear interpolation
    (skeletons). ``window``: T frames, stride apart, from a random one on (point clouds); a shorter sequence is
    stretched."""
    stride: int = option(1, ge=1)
    """Frames of the sequence from one of the clip's to the next (window)."""
    crop_min: float = option(0.5, gt=0, le=1)
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
    scale_jitter: float = option(0.0, ge=0, lt=1)
    """Random size change: a factor in 1 ± scale_jitter, of point clouds one for each of x, y and z (training only)."""
    shift: float = option(0.0, ge=0)
    """Random shift of point clouds: up to so many metres along x, y and z (training only)."""
    train_steps: tuple[dict[str, Any], ...] = ()
    """Steps of docs/views.md that make a clip of a whole recording, in place of sampling, center, scale, align, rotate
    and scale_jitter; frames comes out of them. None: those fields."""
    test_steps: tuple[dict[str, Any], ...] = ()
    """The same for evaluation, prediction and export; given where train_steps is."""
    stream: Literal["joint", "bone", "motion", "bone_motion"] = "joint"
    """What of the coordinates a network sees (see `s2vfast.data.streams`)."""
    velocity: float = option(0.0, ge=0)
    """Append the frame-to-frame difference times this factor to the coordinates: 6 input channels; 0: coordinates
    alone."""
    confidence: bool = False
    """Append the detector's confidence of each joint: one more input channel, the last. The store must have them."""
    camera_pairs: float = option(0.0, ge=0, le=1)
    """For objectives that compare two views of a sample: the share of performances whose second view is of another
    training camera's recording of the same performance. A performance that one camera saw has both views of that one.
    The store needs subject, repetition and view of every sequence; objective.empty_bodies is to be compute."""
    workers: int = option(0, ge=0)
    """Threads that prepare batches ahead of the step; 0 prepares them in line. The numbers are the same."""
    resident: Literal["auto", "device", "host"] = "auto"
    """Where the recordings lie during training: on the ``device``, which makes its clips itself, or on the ``host``,
    whose threads send clips ahead through pinned memory. ``auto``: on the device where they fit into half of what is
    free there."""


@dataclass
class MaskConfig(Section):
    """Which tokens the student sees."""

    kind: Literal["auto", "random", "tube", "motion_tube", "motion_token", "frame_joint"] = "auto"
    """``random``: any tokens. ``tube``: joints that are masked for tube_len segments. ``motion_tube``: the same, moving
    joints more often (Skeleton2vec). ``motion_token``: any tokens, those that move more often, by Gumbel noise (MAMP).
    ``frame_joint``: some segments whole, and joints or body parts of the others (SkeletonMAE). ``auto``: what was
    published for the objective."""
    ratio: float = option(0.9, gt=0, lt=1)
    """Share that is masked: of the joints of a tube; of all tokens (random, motion_token); of the joints of a segment
    that is not masked whole (frame_joint)."""
    keep: int | None = option(None, ge=1)
    """What stays visible, in place of ratio: joints a tube; tokens a track (random, motion_token); joints a segment
    (frame_joint). null: floor(V * (1 - ratio)) joints, int(L * (1 - ratio)) tokens."""
    tube_len: int = option(5, ge=1)
    """Segments that share one choice of joints (tubes). Divides frames / segment_frames."""
    motion_weight: float = option(0.1, ge=0)
    """w: weight of the normalised motion intensity against uniform noise in [0, 1) (motion_tube)."""
    tau: float = option(0.8, gt=0)
    """Temperature of the softmax of motion (motion_token): the smaller, the more often moving tokens are masked."""
    frame_ratio: float = option(0.4, ge=0, lt=1)
    """Share of the segments that is masked whole (frame_joint): floor(S * frame_ratio) of them."""
    joints: Literal["clip", "segment"] = "clip"
    """Whether joints are chosen once a ``clip`` or anew for every ``segment`` (frame_joint)."""
    parts: int | None = option(None, ge=1)
    """Body parts of the layout that are masked whole, in place of ratio (frame_joint). As parts differ in size and
    counts do not, joints chosen at random fill up to the joints of the so many largest parts. null: joints by ratio."""
    masks_per_clip: int = option(1, ge=1)
    """Masks drawn for each clip, sharing one pass of the teacher (data2vec 2.0)."""


@dataclass
class OptimConfig(Section):
    """The optimizer, with warm-up and a schedule by the step."""

    name: Literal["adamw", "sgd"] = "adamw"
    """``adamw``: decoupled weight decay. ``sgd``: momentum, and weight decay that is added to the gradient."""
    lr: float = option(1e-3, gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "steps"] = "cosine"
    """After the warm-up: a ``cosine`` or a ``linear`` descent to lr_min at the end of the run, or ``steps``: times
    gamma at each of the milestones."""
    lr_min: float = option(1e-5, ge=0)
    """Learning rate at the end of the descent (cosine, linear)."""
    milestones: tuple[float, ...] = ()
    """Epochs at which the rate is multiplied by gamma, ascending (steps)."""
    gamma: float = option(0.1, gt=0, le=1)
    """Factor at a milestone (steps)."""
    warmup_epochs: float = option(20.0, ge=0)
    """Epochs of linear warm-up."""
    weight_decay: float = option(0.05, ge=0)
    """Weight decay on what ``decay`` names."""
    decay: Literal["network", "all"] = "network"
    """``network``: what the network says decays: matrices and kernels, no biases, norms or embeddings. ``all``: every
    parameter."""
    beta1: float = option(0.9, ge=0, lt=1)
    """Decay of the first moment (adamw)."""
    beta2: float = option(0.95, ge=0, lt=1)
    """Decay of the second moment (adamw)."""
    eps: float = option(1e-8, gt=0)
    """Added to the root of the second moment (adamw)."""
    momentum: float = option(0.9, ge=0, lt=1)
    """Factor of the velocity from a step to the next (sgd)."""
    nesterov: bool = False
    """Nesterov's momentum (sgd)."""
    clip: float = option(4.0, ge=0)
    """Largest global gradient norm; 0 leaves gradients as they are."""
    layer_decay: float = option(1.0, gt=0, le=1)
    """Factor of the learning rate from a layer of the network to the one below it; the head has the full rate."""


@dataclass
class TrainConfig(Section):
    """Length, batch and machine of a run."""

    epochs: float = option(800.0, gt=0)
    """Length of the run in passes over the training sequences. Ignored where steps is given."""
    steps: int | None = option(None, ge=1)
    """Length of the run in optimizer steps; null: from epochs."""
    min_steps: int = option(0, ge=0)
    """Least length of the run in steps, where it is given in epochs."""
    batch: int = option(128, ge=1)
    """Clips a step, over all ranks and micro-batches."""
    accumulate: int | None = option(None, ge=1)
    """Micro-batches that a rank does its clips of a step in, one after the other. null: 1 on a GPU, and for networks
    with batch norm, whose statistics are those of a micro-batch; else, on a CPU, so many that what a micro-batch
    computes stays in the caches."""
    seed: int = option(1, ge=0, lt=2**63)
    """Seed of weights, order, clips and masks."""
    device: str = "auto"
    """``auto`` takes a GPU where there is one; else ``cpu``, ``cuda`` or ``cuda:N``."""
    impl: str = "auto"
    """Implementation of the operations: ``auto`` (on a GPU by calibration), ``reference``, ``torch``, ``triton`` or
    ``native``; for single operations as in ``torch,tube_mask=native``."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Operands of matrix products; the residual stream, statistics, parameters and moments are float32 always.
    ``auto``: bfloat16 on a GPU, float32 on a CPU."""
    matmul_precision: Literal["auto", "highest", "high"] = "auto"
    """Of products whose operands are float32, as torch.set_float32_matmul_precision has it, which is called with it and
    holds for the rest of the process. ``high``: on CPUs with AMX wide linear maps and graph_attention take a number as
    the sum of two bfloat16 (errors of some 1e-5); on GPUs PyTorch may take TF32 (1e-3). ``auto``: as the process has
    it, ``highest`` unless it was changed."""
    mode: Literal["auto", "eager", "graph", "compile"] = "auto"
    """How a step is run: ``eager``, operation by operation; ``graph``, captured once as a CUDA graph and replayed, with
    the same numbers; ``compile``, by torch.compile (and captured, on a GPU). ``auto``: graph on a GPU, else eager."""
    threads: int | None = option(None, ge=1)
    """CPU threads; null: PyTorch's own choice."""
    log_every: int = option(10, ge=1)
    """Steps between lines of metrics.jsonl."""


@dataclass
class CheckpointConfig(Section):
    """When the run is saved."""

    every: int = option(1000, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep: int = option(3, ge=1)
    """Checkpoints that stay; older ones are removed."""
    final: Literal["full", "weights"] = "full"
    """What stays of a finished run: ``full`` checkpoints, or the last one's ``weights`` alone."""


@dataclass
class Config(Section):
    """One training run."""

    data: DataConfig = field(default_factory=DataConfig)
    """Sequences and clips."""
    model: Any = None
    """The network: the section of the class that ``model.name`` names."""
    mask: MaskConfig | None = None
    """Masking, where the objective masks tokens."""
    objective: Any = None
    """The loss: the section of the class that ``objective.name`` names."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, batch, machine."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""

    def __post_init__(self) -> None:
        if self.model is None:
            self.model = NETWORKS.get(DEFAULT_NETWORK).Section()
        if self.objective is None:
            self.objective = OBJECTIVES.get(DEFAULT_OBJECTIVE).Section()
        if self.mask is None and self.objective_class.masks_tokens:
            self.mask = MaskConfig()

    @property
    def network_class(self) -> type[Network]:
        """The class that ``model.name`` names."""
        return NETWORKS.get(self.model.name)

    @property
    def objective_class(self) -> type[Objective]:
        """The class that ``objective.name`` names."""
        return OBJECTIVES.get(self.objective.name)

    @property
    def channels(self) -> int:
        """C: input channels of a clip."""
        return (6 if self.data.velocity else 3) + self.data.confidence

    def sections(self) -> dict[str, Any]:
        """The sections that this run has, by name, in their order."""
        everything = {leaf.name: getattr(self, leaf.name) for leaf in dataclasses.fields(self)}
        return {name: section for name, section in everything.items() if section is not None}

    def validate(self, layout: Layout | None = None) -> None:
        """Raise `ConfigError`, naming the field, unless every value is possible.

        Args:
            layout: the skeleton of the store that will be used; checks that depend on it are left out without it.
        """
        for name, section in self.sections().items():
            check_section(section, name)
        optim = self.optim
        if optim.lr_min > optim.lr:
            raise ConfigError(f"optim.lr_min: {optim.lr_min} is above optim.lr = {optim.lr}")
        if bool(optim.milestones) != (optim.schedule == "steps"):
            raise ConfigError("optim.milestones: epochs are expected where optim.schedule is steps, and only there")
        if list(optim.milestones) != sorted({epoch for epoch in optim.milestones if epoch > 0}):
            raise ConfigError(f"optim.milestones: {list(optim.milestones)}; ascending epochs above 0 are expected")
        if bool(self.data.train_steps) != bool(self.data.test_steps):
            raise ConfigError("data.test_steps: steps are expected where data.train_steps has some, and only there")
        if layout is not None and layout.kind not in self.network_class.reads:
            kinds = " or ".join(self.network_class.reads)
            raise ConfigError(f"model.name: {self.model.name} reads {kinds}, the store holds {layout.kind}")
        self.network_class.check(self, layout)
        self.objective_class.check(self, layout)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, in the order of the fields; names first."""
        tree = {name: tree_of(section) for name, section in self.sections().items()}
        for name in ("model", "objective"):
            tree[name] = {"name": getattr(self, name).name, **tree[name]}
        return tree

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Config:
        """The config of nested plain values; unknown sections and fields raise `ConfigError`."""
        refuse_unknown(tree, [leaf.name for leaf in dataclasses.fields(cls)])
        sections = {
            "model": _named_section(NETWORKS, DEFAULT_NETWORK, tree.get("model"), "model"),
            "objective": _named_section(OBJECTIVES, DEFAULT_OBJECTIVE, tree.get("objective"), "objective"),
        }
        plain = {"data": DataConfig, "optim": OptimConfig, "train": TrainConfig, "checkpoint": CheckpointConfig}
        if OBJECTIVES.get(sections["objective"].name).masks_tokens:
            plain["mask"] = MaskConfig
        elif tree.get("mask"):
            raise ConfigError(
                f"mask: objective.name: {sections['objective'].name} masks nothing; leave the section out"
            )
        for name, section in plain.items():
            sections[name] = section_from_tree(section, tree.get(name), name)
        config = cls(**sections)
        config.validate()
        return config

    @staticmethod
    def from_preset(name_or_file: str | Path, changes: dict[str, dict[str, Any]] | None = None) -> Config:
        """The config of a preset or of a YAML file, with single fields replaced.

        Args:
            name_or_file: a name in ``s2vfast.presets.names()``, or a file.
            changes: fields by section, such as ``{"train": {"batch": 32}}``.

        Raises:
            ConfigError: no such preset or file, or a value that is impossible.
        """
        from s2vfast import presets  # which imports this module

        return presets.load(name_or_file, changes)


def _named_section(registry: Registry, default: str, values: Any, path: str) -> Any:
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a section of fields is expected, not {values!r}")
    values = dict(values)
    return section_from_tree(registry.get(values.pop("name", default)).Section, values, path)
