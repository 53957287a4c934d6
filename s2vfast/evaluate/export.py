"""A run's network as a file that needs no s2vfast: ONNX, or PyTorch's own export; checked before it gets its name.

What is exported is the specification in plain PyTorch (``impl="reference"``), so that no operator of ours is in the
graph. Input: clips float32 [batch, bodies, frames, joints, channels], any batch, prepared as the metadata says; an
absent body is all zeros. Outputs: ``logits`` [batch, classes] and ``features`` [batch, joints * width] of a fine-tuned
run, ``tokens`` [batch, bodies, tokens, width] and ``features`` [batch, width] (the published pooling) of a pretrained
one. The metadata is one JSON text called ``s2vfast``: ONNX's metadata, or the extra file ``s2vfast.json``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import s2vfast
import s2vfast.errors as errors
from s2vfast import ops
from s2vfast.config import Config
from s2vfast.evaluate import features, finetune, runs
from s2vfast.evaluate.checks import check_choice, whole_file
from s2vfast.objectives.classify import Supervised

TARGETS = ("onnx", "torch")
TOLERANCE = 1e-5
"""Largest difference from PyTorch, relative to the largest number of an output where that is above 1."""
METADATA = "s2vfast"
_NEEDS = ("onnx", "onnxscript", "onnxruntime")
_BATCHES = (1, 3)
_PLAIN = "reference,voxelize=torch,sparse_conv=torch"
"""Implementations in an exported graph; the reference of these two goes through points one by one."""


class _Tokens(nn.Module):
    """A pretrained encoder: tokens and their mean."""

    names = ("tokens", "features")

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Of clips [B, M, T, V, C]: [B, M, L, D] and [B, D]."""
        tokens = self.encoder(clips.flatten(0, 1)).unflatten(0, (-1, clips.shape[1]))
        return tokens, tokens.mean(dim=(1, 2))


class _Classes(nn.Module):
    """A fine-tuned network: logits and what the head sees."""

    names = ("logits", "features")

    def __init__(self, model: Supervised) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Of clips [B, M, T, V, C]: [B, classes] and [B, features]."""
        pooled = self.model.pool(self.model.encoder(clips.flatten(0, 1)), clips.shape[1])
        return self.model.head(pooled), pooled


def export(
    run_dir: str | Path,
    to: str,
    out: str | Path,
    *,
    overwrite: bool = False,
    log: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Write a run's network to a file, which gets its name only if it gives PyTorch's numbers.

    Args:
        run_dir: a run's folder; of a fine-tuned one the head is exported too.
        to: "onnx" or "torch" (`torch.export`, which `torch.export.load` reads).
        out: the file.
        overwrite: replace an existing file.
        log: told of what is odd.

    Returns:
        ``out``, ``to``, ``input`` (its shape), ``outputs`` (their names), ``error`` (largest difference from the
        network as s2vfast runs it), ``checked_by`` and ``bytes``.

    Raises:
        S2vfastError: no such run, packages that are missing, a file that cannot be written or gives other numbers.
    """
    check_choice("to", to, TARGETS)
    config, about = runs.read(run_dir)
    if to == "onnx":
        _require_packages()
    if finetune.has_classes(config):
        model, config, about = finetune.load_classifier(run_dir, log=log)
        network: nn.Module = _Classes(model)
    else:
        encoder, config, step = features.load_encoder(run_dir, log=log)
        network, about = _Tokens(encoder), {**about, "step": step}
    network.eval().requires_grad_(False)
    # A layout without joints is that of point clouds.
    each = len(about["layout"]["joints"]) or config.data.points
    shape = [config.data.bodies, config.data.frames, each, config.channels]
    metadata = json.dumps(_metadata(network, config, about, shape))
    with whole_file(Path(out), overwrite) as file:
        content = (_to_onnx if to == "onnx" else _to_torch)(network, shape, metadata)
        run, checked_by = _runner(to, content)
        error = _compare(network, run, shape)
        if not error <= TOLERANCE:
            raise errors.S2vfastError(
                f"{out}: the exported network differs from PyTorch by {error:.1e}, {TOLERANCE:.0e} is allowed; nothing "
                f"was written. Please report it with the output of `s2vfast doctor`"
            )
        file.write(content)
    return {
        "out": str(out),
        "to": to,
        "input": "[" + ", ".join(["batch", *map(str, shape)]) + "]",
        "outputs": list(network.names),
        "error": error,
        "checked_by": checked_by,
        "bytes": len(content),
    }


def _require_packages() -> None:
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.S2vfastError(
            f"--to onnx: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
            f"pip install {' '.join(missing)} (or s2vfast[export]), or export with --to torch"
        )


def _metadata(network: nn.Module, config: Config, about: dict[str, Any], shape: list[int]) -> dict[str, Any]:
    """What one needs to know to use the file."""
    data = config.to_dict()["data"]
    clip = {
        name: data[name] for name in ("bodies", "frames", "sampling", "center", "scale", "align", "stream", "velocity")
    }
    return {
        "made_by": f"s2vfast {s2vfast.__version__}",
        "objective": config.objective.name,
        "finetuned_from": finetune.origin(about),
        "step": about["step"],
        "layout": about["layout"],
        "classes": about["classes"] if "logits" in network.names else None,
        "input": {"name": "clips", "dtype": "float32", "shape": ["batch", *shape]},
        "outputs": list(network.names),
        "clip": clip,
        "prepare": _preparation(config, about["layout"], about.get("unit") or "m"),
    }


def _preparation(config: Config, layout: dict[str, Any], unit: str) -> list[str]:
    """How evaluation makes a clip of a recording, a line a step."""
    data, joints = config.data, layout["joints"]
    if not joints:
        return _point_preparation(config)
    root, unit = _anchor(layout["root"], joints), "metres" if unit == "m" else unit
    lines = [
        f"joints in {unit}, in the layout's order; the first {data.bodies} bodies, main body first, absent ones zero",
        "drop frames in which every joint of the main body is zero",
    ]
    views = [] if data.stream == "joint" else [f"the stream {data.stream} of the joints (s2vfast.data.streams)"]
    if data.velocity:
        views.append(
            f"append the difference to the next frame times {data.velocity:g} (6 channels; 0 in the last frame)"
        )
    if data.confidence:
        views.append("append the detector's confidence of each joint (1 channel)")
    if data.test_steps:
        steps = [f"step of s2vfast.data.augment: {json.dumps(step)}" for step in data.test_steps]
        return [*lines, *steps, *views]
    if data.sampling == "bins":
        picks = "the middle one of each of equal bins; of a shorter recording all frames, wrapping round"
    else:
        picks = "evenly over the whole recording, both ends included, interpolated linearly"
    lines.append(f"take {data.frames} frames: {picks}")
    if data.center != "none":
        when = "the recording's first kept frame" if data.center == "first" else "every frame"
        lines.append(f"subtract the main body's {root} of {when}")
    if data.scale == "torso":
        ends = " to ".join(_anchor(end, joints) for end in layout["torso"])
        lines.append(f"divide by the main body's mean torso length ({ends}) in the clip")
    if data.align == "yaw":
        lines.append(f"turn about the vertical {layout['up']} so that the main body faces the same way on average")
    lines.append("joints that were zero stay zero")
    return [*lines, *views, "exactly: s2vfast.ops.clip_sample with training=False, s2vfast/reference/clip_sample.py"]


def _point_preparation(config: Config) -> list[str]:
    """The same of recordings of points."""
    data = config.data
    picks = f"{data.stride} apart, from the middle of the recording; of a shorter one, frames are repeated"
    lines = [
        "points in metres, x to the right of the picture, y up, z away from the camera",
        f"take {data.frames} frames: {'the middle one of each of equal bins' if data.sampling == 'bins' else picks}",
        f"take {data.points} points of every frame: the middle one of each of equal bins, in the picture's order",
    ]
    if data.center != "none":
        lines.append("subtract the median of the points of the recording's first frame")
    return [*lines, "exactly: s2vfast.ops.point_sample with training=False, s2vfast/reference/point_sample.py"]


def _anchor(anchor: int | list[int], joints: list[str]) -> str:
    """A joint, or several, as a layout's file has them, in words."""
    return joints[anchor] if isinstance(anchor, int) else f"mean of {' and '.join(joints[joint] for joint in anchor)}"


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """The specification's operations, and no talk of the exporter's own."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with ops.use_impl(_PLAIN, everywhere=False), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _example(batch: int, shape: list[int]) -> Tensor:
    """Clips of random numbers whose last body, where there are several, is absent from the first."""
    clips = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))
    if shape[0] > 1:
        clips[0, -1] = 0.0
    return clips


def _to_torch(network: nn.Module, shape: list[int], metadata: str) -> bytes:
    with _plain():
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(network, (_example(2, shape),), dynamic_shapes=({0: batch},), strict=False)
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={f"{METADATA}.json": metadata})
    return content.getvalue()


def _to_onnx(network: nn.Module, shape: list[int], metadata: str) -> bytes:
    import onnx

    with _plain(), contextlib.redirect_stdout(io.StringIO()), _told_of_onnx():
        program = torch.onnx.export(
            network,
            (_example(2, shape),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["clips"],
            output_names=list(network.names),
            verbose=False,
        )
        model = program.model_proto
    onnx.helper.set_model_props(model, {METADATA: metadata})
    onnx.checker.check_model(model)
    return model.SerializeToString()


@contextlib.contextmanager
def _told_of_onnx() -> Iterator[None]:
    """What ONNX has no operator for, as an error of ours."""
    try:
        yield
    except torch.onnx.OnnxExporterError as error:
        missing = sorted(set(re.findall(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(error))))
        which = f" ({', '.join(missing)})" if missing else ""
        raise errors.S2vfastError(
            f"--to onnx: this network has an operation that ONNX does not have{which}; export with --to torch"
        ) from error


def _runner(to: str, content: bytes) -> tuple[Callable[[Tensor], list[np.ndarray]], str]:
    """What runs the file, and its name."""
    if to == "torch":
        program = torch.export.load(io.BytesIO(content)).module()
        return lambda clips: [output.numpy() for output in program(clips)], f"PyTorch {torch.__version__}"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda clips: session.run(None, {"clips": clips.numpy()}), f"ONNX Runtime {onnxruntime.__version__}"


def _compare(network: nn.Module, run: Callable[[Tensor], list[np.ndarray]], shape: list[int]) -> float:
    """Largest difference from the network with the operations that s2vfast itself would take."""
    worst = 0.0
    for batch in _BATCHES:
        clips = _example(batch, shape)
        with torch.no_grad():
            expected = [output.numpy() for output in network(clips)]
        for expected_output, output in zip(expected, run(clips), strict=True):
            difference = np.abs(expected_output - output).max() if expected_output.shape == output.shape else np.inf
            worst = max(worst, float(difference / max(1.0, np.abs(expected_output).max())))
    return worst
