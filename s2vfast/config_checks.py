"""The checks of a `s2vfast.config.Config`: one line that starts with the field's path for everything that is wrong."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import TYPE_CHECKING, Any, Literal

import s2vfast.errors as errors

if TYPE_CHECKING:
    from s2vfast.config import Config

TUBES = ("tube", "motion_tube")
"""Masking kinds that choose joints a tube."""
TOKENS = ("random", "motion_token")
"""Masking kinds that choose tokens a track."""


def check(config: Config, joints: int | None = None) -> None:
    """Raise `ConfigError`, naming the field, unless every value is possible.

    What depends on the objective is checked here for skeleton2vec alone; `s2vfast.objectives` knows the others and
    checks what they need when one is built.
    """
    for part in (_check_types, _check_ranges, _check_relations):
        part(config)
    published = config.objective.name == "skeleton2vec"
    if published:
        _check_teacher(config)
    if config.mask.kind != "auto" or published:
        check_mask(config, "motion_tube" if config.mask.kind == "auto" else config.mask.kind, joints)


def check_mask(
    config: Config, kind: str, joints: int | None = None, parts: dict[str, tuple[int, ...]] | None = None
) -> int | None:
    """Raise `ConfigError` unless masks of a kind, which is not ``auto``, can be drawn.

    Args:
        config: the run.
        kind: what mask.kind says or stands for.
        joints: V; checks that depend on it are left out without it.
        parts: body parts of the skeleton's layout; None: not known here.

    Returns:
        What stays visible: joints a tube or a segment, or (`TOKENS`) tokens a track; None: not known here.
    """
    mask, S = config.mask, config.segments
    if kind in TUBES and S % mask.tube_len:
        raise errors.ConfigError(
            f"mask.tube_len: {mask.tube_len} does not divide the {S} segments of a clip "
            f"(data.frames / model.segment_frames)"
        )
    if kind not in TUBES and config.objective.placement == "published":
        raise errors.ConfigError(
            f"objective.placement: published is what the authors' code does with tubes; mask.kind is {kind}"
        )
    if mask.parts is not None and kind != "frame_joint":
        raise errors.ConfigError(f"mask.parts: {mask.parts} is for mask.kind frame_joint, and it is {kind}; give null")
    if mask.parts is not None and mask.keep is not None:
        raise errors.ConfigError(f"mask.keep: {mask.keep} and mask.parts: {mask.parts}; give one of them")
    if joints is None or (mask.parts is not None and parts is None):
        return None
    name = "mask.ratio" if mask.keep is None else "mask.keep"
    value = mask.ratio if mask.keep is None else mask.keep
    if kind in TOKENS:
        total, what = S * joints, "tokens"
        # As published, where 750 tokens at a ratio of 0.9 keep 74.
        keep = int(total * (1.0 - mask.ratio)) if mask.keep is None else mask.keep
    elif mask.parts is not None:
        name, value, total, what = "mask.parts", mask.parts, joints, "joints"
        keep = joints - _masked_by_parts(parts, mask.parts)
    else:
        total, what, keep = joints, "joints", config.keep(joints)
    if not 1 <= keep < total:
        raise errors.ConfigError(
            f"{name}: {value} leaves {keep} of {total} {what} visible; between 1 and {total - 1} must stay"
        )
    return keep


def _masked_by_parts(parts: dict[str, tuple[int, ...]], count: int) -> int:
    """Joints that are masked where ``count`` body parts are: as many as the largest have."""
    listed = [joint for members in parts.values() for joint in members]
    if len(parts) < count:
        raise errors.ConfigError(
            f"mask.parts: {count}, and the skeleton's layout has {len(parts)} body parts; list them under parts in its "
            f"JSON file, or give mask.parts null to mask joints by mask.ratio"
        )
    if twice := sorted({joint for joint in listed if listed.count(joint) > 1}):
        raise errors.ConfigError(f"mask.parts: joint {twice[0]} is in several body parts of the skeleton's layout")
    return sum(sorted(map(len, parts.values()))[-count:])


def _check_teacher(config: Config) -> None:
    """What skeleton2vec's teacher needs."""
    objective, depth = config.objective, config.model.depth
    if objective.top_k > depth:
        raise errors.ConfigError(f"objective.top_k: {objective.top_k} is more than model.depth = {depth}")
    if objective.ema_end < objective.ema_start:
        raise errors.ConfigError(
            f"objective.ema_end: {objective.ema_end} is below objective.ema_start = {objective.ema_start}"
        )


def _leaves(config: Config):
    """(path, dataclass field, value) of every field."""
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        for leaf in dataclasses.fields(values):
            yield f"{section.name}.{leaf.name}", leaf, getattr(values, leaf.name)


def _check_types(config: Config) -> None:
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
    "mask.keep mask.tube_len mask.parts mask.masks_per_clip objective.top_k objective.ema_steps train.steps "
    "train.batch train.accumulate train.threads train.log_every checkpoint.every checkpoint.keep"
).split()
_POSITIVE = "model.norm_eps model.mlp_ratio model.init_std mask.tau optim.lr optim.eps train.epochs".split()
_NOT_NEGATIVE = (
    "data.scale_jitter data.velocity data.workers model.layer_scale mask.motion_weight objective.auxiliary_weight "
    "optim.lr_min optim.warmup_epochs optim.weight_decay optim.clip train.seed"
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
        ("mask.frame_ratio", config.mask.frame_ratio, 0.0, 1.0, "[)"),
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
    data, model = config.data, config.model
    if data.frames % model.segment_frames:
        raise errors.ConfigError(
            f"data.frames: {data.frames} is no multiple of model.segment_frames = {model.segment_frames}"
        )
    if model.dim % model.heads:
        raise errors.ConfigError(f"model.dim: {model.dim} is no multiple of model.heads = {model.heads}")
    if config.optim.lr_min > config.optim.lr:
        raise errors.ConfigError(f"optim.lr_min: {config.optim.lr_min} is above optim.lr = {config.optim.lr}")
