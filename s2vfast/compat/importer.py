"""A run of ours made of a published checkpoint: a config that fits its weights, and the weights under our names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from s2vfast import errors, presets
from s2vfast.compat import import_recogniser, report
from s2vfast.compat.imported_run import home, write_run
from s2vfast.compat.published_checkpoint import PublishedCheckpoint, read_checkpoint
from s2vfast.config import Config
from s2vfast.objectives import build_objective
from s2vfast.train import rundir


def import_checkpoint(
    path: str | Path,
    out: str | Path,
    naming: str = "auto",
    *,
    config: str | Path | None = None,
    store: str | Path | None = None,
    layout: str | Path | None = None,
    role: str = "auto",
    heads: int | None = None,
    leave_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Make a run of a published checkpoint, which evaluation, features, export and pictures take like a pretrained one.

    Args:
        path: as in `s2vfast.compat.read_checkpoint`; so are naming, role and leave_out.
        out: the run's folder: empty or missing.
        naming: skeleton2vec, mamp, infogcn, freqmixformer or auto.
        config: a preset or YAML file that the weights must fit. None: the published preset, with the sizes of the
            weights.
        store: a store of the skeleton that the run is to be used with. None: there is none, and commands ask for one.
        layout: the skeleton where there is no store: a name or a JSON file. None: the built-in one of as
            many joints.
        role: auto, teacher or student.
        heads: attention heads, which no weight shows. None: of the settings in the file, else of the config.
        leave_out: patterns of names to skip.

    Returns:
        The report (`s2vfast.compat.report.describe`), which is also in the run's folder, as import.json.

    Raises:
        CheckpointError: a file that cannot be read or used, or a folder that is not free.
        ConfigError: a config that the weights do not fit; the message names the tensor and the field.
        DataError: no such store or layout.
        TrainingError: the folder cannot be written.
    """
    out = Path(out)
    rundir.check_free(out)
    if weights_of := import_recogniser.find(path, naming, leave_out):
        if role != "auto" or heads is not None:
            option = "part" if role != "auto" else "heads"
            raise errors.ConfigError(
                f"--{option}: {path} is of {weights_of.kind.published}: there is no teacher, and weights show the "
                f"heads; leave it out"
            )
        return import_recogniser.import_recogniser(weights_of, out, config=config, store=store, layout=layout)
    weights = read_checkpoint(path, naming, role=role, leave_out=leave_out)
    where = home(path, weights.sizes.joints, weights.sizes.sources["joints"], store, layout)
    run_config, config_source, assumed = _config(weights, config, heads)
    run_config.validate(where.layout)
    build_objective(run_config, where.layout)
    about = {
        "file": str(weights.path.resolve()),
        "sha256": weights.sha256,
        "naming": weights.naming.name,
        "role": weights.role,
        "prefix": weights.prefix,
    }
    summary = report.describe(weights, run_config, config_source, assumed) | {
        "run": str(out),
        "store": None if store is None else str(store),
    }
    write_run(out, run_config, where, about, summary, weights.tensors)
    return summary


def _config(
    weights: PublishedCheckpoint, config: str | Path | None, heads: int | None
) -> tuple[Config, str, dict[str, Any]]:
    """The run's config, what to call where it is from, and the values in it that no weight shows."""
    naming, sizes = weights.naming, weights.sizes
    if heads is not None and heads < 1:
        raise errors.ConfigError(f"--heads: {heads}; 1 or more is expected")
    if heads is not None and weights.heads not in (None, heads):
        raise errors.ConfigError(f"--heads: {heads}; the settings in {weights.path} say {weights.heads}; leave it out")
    tree = presets.read_for(config or naming.preset, naming.name)
    config_source = f"--config {config}" if config else f"preset {naming.preset}"
    heads_source = (
        "--heads" if heads is not None else "settings in the file" if weights.heads is not None else config_source
    )
    heads = weights.heads if heads is None else heads
    if config is None:
        tree = presets.merge(tree, _fitted(tree, weights))
    if heads is not None:
        config_heads = tree.get("model", {}).get("heads")
        if config is not None and heads_source != "--heads" and config_heads not in (None, heads):
            raise errors.ConfigError(
                f"model.heads: {config_heads} in {config_source}; the settings in {weights.path} say {heads}; change "
                f"one, or give --heads"
            )
        tree = presets.merge(tree, {"model": {"heads": heads}})
    run_config = Config.from_dict(tree)
    if config is not None:
        _check(weights, run_config, config_source)
    if sizes.dim % run_config.model.heads:
        raise errors.ConfigError(f"model.heads: {run_config.model.heads} does not divide the width {sizes.dim}")
    if run_config.objective.auxiliary != "none":
        raise errors.ConfigError(
            f"objective.auxiliary: {run_config.objective.auxiliary} in {config_source}; published weights have no "
            f"second head; give none"
        )
    assumed = {
        "model.heads": {"value": run_config.model.heads, "from": heads_source},
        "model.norm_eps": {"value": run_config.model.norm_eps, "from": config_source, "published": naming.norm_eps},
    }
    return run_config, config_source, assumed


def _fitted(tree: dict[str, Any], weights: PublishedCheckpoint) -> dict[str, Any]:
    """Changes that give the published preset the sizes of the weights."""
    sizes, base = weights.sizes, Config.from_dict(tree)
    if sizes.channels != base.channels:
        raise errors.ConfigError(
            f"--config: needed; {_shaped(weights, sizes.sources['channels'])} of {weights.path} takes {sizes.channels} "
            f"channels, the published clips have {base.channels}, and data.velocity is what makes 6 of them"
        )
    top_k = getattr(base.objective, "top_k", None)
    top_k = {} if top_k is None else {"top_k": min(top_k, sizes.depth)}
    return {
        "data": {
            "frames": sizes.segments * sizes.segment_frames,
        },
        "model": {
            "dim": sizes.dim,
            "segment_frames": sizes.segment_frames,
            "depth": sizes.depth,
            "mlp_ratio": sizes.hidden / sizes.dim,
            "layer_scale": (base.model.layer_scale or 1e-4) if sizes.layer_scale else None,
        },
        # What masks and targets are made with is of no use to weights that are not trained on; it must be possible.
        "mask": {
            "tube_len": max(n for n in range(1, base.mask.tube_len + 1) if sizes.segments % n == 0),
            "keep": base.mask.keep if int(sizes.joints * (1.0 - base.mask.ratio) + 1e-9) else 1,
        },
        "objective": {"decoder_depth": sizes.decoder_depth or base.objective.decoder_depth, **top_k},
    }


def _check(weights: PublishedCheckpoint, config: Config, config_source: str) -> None:
    """Raise `ConfigError` where a config is of another network than the weights."""
    sizes, model = weights.sizes, config.model
    names = weights.naming.stacks
    source: Callable[[str], str] = sizes.sources.__getitem__
    held = [
        ("model.dim", model.dim, sizes.dim, source("dim")),
        ("model.segment_frames", model.segment_frames, sizes.segment_frames, source("segment_frames")),
        ("data.frames", config.data.frames, sizes.segments * sizes.segment_frames, source("segments")),
        ("model.depth", model.depth, sizes.depth, f"{names[0]}{sizes.depth - 1}"),
        ("model.mlp_ratio", round(model.dim * model.mlp_ratio) / model.dim, sizes.hidden / sizes.dim, source("hidden")),
    ]
    if sizes.decoder_depth:
        last = f"{names[1]}{sizes.decoder_depth - 1}"
        held.append(("objective.decoder_depth", config.objective.decoder_depth, sizes.decoder_depth, last))
    for path, value, expected, tensor in held:
        if value != expected:
            raise errors.ConfigError(
                f"{path}: {value} in {config_source}; {expected:g} by {_shaped(weights, tensor)} of {weights.path}; "
                f"change the config, or leave --config out"
            )
    if config.channels != sizes.channels:
        raise errors.ConfigError(
            f"data.velocity: {config.data.velocity} in {config_source} makes clips of {config.channels} channels; "
            f"{sizes.channels} by {_shaped(weights, source('channels'))} of {weights.path}"
        )
    if (model.layer_scale is not None) != sizes.layer_scale:
        verb, value = ("has", "a number") if sizes.layer_scale else ("has no", "null")
        raise errors.ConfigError(
            f"model.layer_scale: {model.layer_scale} in {config_source}; {weights.path} {verb} LayerScale: give {value}"
        )


def _shaped(weights: PublishedCheckpoint, tensor: str) -> str:
    """A tensor of the file with its shape."""
    for one in weights.mapped:
        for name in one.source_names:
            if name == tensor or name.endswith(f".{tensor}"):
                return f"{tensor} {list(one.source_shape)}"
    return tensor
