"""Golden numbers of Skeleton2vec: the kind of file, and what of it is compared."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2vfast import errors, ops
from s2vfast.compat import golden as shared
from s2vfast.compat.skeleton2vec import from_published, to_published
from s2vfast.networks.block import BlockOptions
from s2vfast.networks.transformer import Transformer
from s2vfast.objectives.decoder import Decoder
from s2vfast.objectives.masks import MaskSampler
from s2vfast.objectives.skeleton2vec import Skeleton2vec
from s2vfast.reference import skeleton2vec as reference
from s2vfast.reference.adamw_ema import ema


def fits(golden: dict[str, np.ndarray], meta: dict[str, Any]) -> bool:
    """Files with a student and a teacher."""
    return "layer_norm_of_targets" in meta and any(name.startswith("teacher/") for name in golden)


def check(
    golden: dict[str, np.ndarray], meta: dict[str, Any], impl: str, dtype: torch.dtype, device: torch.device | str
) -> dict[str, float]:
    """Errors of loss, mask, visible_latent, prediction, target, gradients and teacher_after_ema.

    ``mask`` and ``visible_latent`` are compared as sets of tokens. ``impl="reference"`` also runs
    `s2vfast.reference.skeleton2vec`, and the larger errors count.
    """
    inputs = tuple(shared.cast(value, dtype, device) for value in _inputs(golden, meta))
    keep = _keep(golden, meta)
    runs = [_run_model(*inputs, meta, keep, impl)]
    if impl == "reference":
        runs.append(_run_reference(*inputs, meta, keep))
    results = [_compare(golden, meta, run) for run in runs]
    return {name: max(result[name] for result in results) for name in results[0]}


def _inputs(golden: dict, meta: dict) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
    """Student and teacher under our names, clips [N, T, V, C], noise [N, tubes, V]."""

    def group(prefix: str) -> dict[str, Tensor]:
        return from_published({k[len(prefix) :]: torch.tensor(v) for k, v in golden.items() if k.startswith(prefix)})

    clips = torch.tensor(golden["src"]).reshape(-1, *golden["src"].shape[-3:])
    student, teacher = group("student/"), group("teacher/")
    if all(
        np.array_equal(golden[k.replace("teacher/", "teacher_after_ema/", 1)], golden[k])
        for k in golden
        if k.startswith("teacher/")
    ):
        # The file holds the teacher after the update under both names: go back to the one that made the target.
        tau = meta["ema_decay_used"]
        teacher = {name: (value - (1.0 - tau) * student[name]) / tau for name, value in teacher.items()}
    return student, teacher, clips, torch.tensor(golden["noise"])


def _keep(golden: dict, meta: dict) -> int:
    """Visible joints of a tube, by the file's own mask: published code computes int(25 * (1 - 0.8)) = 4, not 5."""
    segments = meta["frames"] // meta["segment_frames"]
    visible = (golden["mask"].reshape(-1, segments, meta["joints"]) == 0).sum(-1)
    if (visible != visible.flat[0]).any():
        raise errors.DataError("mask: tubes with different numbers of visible joints; one number is expected")
    return int(visible.flat[0])


def _run_reference(student: dict, teacher: dict, clips: Tensor, noise: Tensor, meta: dict, keep: int) -> dict:
    teacher = {name: value.clone() for name, value in teacher.items()}
    settings = reference.Settings(
        heads=meta["heads"],
        depth=meta["encoder_depth"],
        decoder_depth=meta["decoder_depth"],
        segment_frames=meta["segment_frames"],
        tube_len=meta["tube_len"],
        keep=keep,
        motion_weight=meta["motion_weight"],
        top_k=meta["top_k"],
        target_norm=meta["layer_norm_of_targets"].removesuffix("_norm"),
        norm_eps=meta["norm_eps"],
        placement="published",
    )
    student = {name: value.clone().requires_grad_() for name, value in student.items()}
    encoder_only = {k.removeprefix("encoder."): v for k, v in teacher.items() if k.startswith("encoder.")}
    out = reference.step(student, encoder_only, clips, settings, noise)
    out.loss.backward()
    with torch.no_grad():
        for name, value in teacher.items():
            ema(value, student[name], meta["ema_decay_used"])
    return {
        "loss": out.loss,
        "visible": out.visible,
        "masked": out.masked,
        "latent": out.latent,
        "prediction": out.prediction,
        "target": out.target,
        "gradients": {name: value.grad for name, value in student.items()},
        "teacher": teacher,
    }


def _run_model(student: dict, teacher: dict, clips: Tensor, noise: Tensor, meta: dict, keep: int, impl: str) -> dict:
    model = Skeleton2vec(
        *network(meta, student, layer_scale=1.0),
        MaskSampler(
            kind="motion_tube",
            segment_frames=meta["segment_frames"],
            keep=keep,
            tube_len=meta["tube_len"],
            motion_weight=meta["motion_weight"],
            placement="published",
        ),
        top_k=meta["top_k"],
        target_norm=meta["layer_norm_of_targets"].removesuffix("_norm"),
    ).to(clips)
    for module, prefix, state in (
        (model.encoder, "encoder.", student),
        (model.decoder, "decoder.", student),
        (model.teacher, "encoder.", teacher),
    ):
        module.load_state_dict(shared.under(prefix, state))
    with ops.use_impl(impl):
        visible, masked = model.sampler.sample_tokens(clips, noise=noise)
        latent = model.encoder(clips, visible)
        prediction = model.decoder(latent, model.sampler.published_tokens(clips, noise=noise))
        target = model.target(clips, None)
        out = model(clips, noise=noise)
        out.loss.backward()
        with torch.no_grad():
            for teacher_param, student_param in zip(
                model.teacher.parameters(), model.encoder.parameters(), strict=True
            ):
                ema(teacher_param, student_param, meta["ema_decay_used"])
    return {
        "loss": out.loss,
        "visible": visible,
        "masked": masked,
        "latent": latent,
        "prediction": prediction,
        "target": target,
        "gradients": {name: value.grad for name, value in model.named_parameters() if value.requires_grad},
        "teacher": {f"encoder.{name}": value for name, value in model.teacher.state_dict().items()},
    }


def network(
    meta: dict, state: dict[str, Tensor], layer_scale: float | None, out: int | None = None
) -> tuple[Transformer, Decoder]:
    """Encoder and decoder of a file's sizes."""
    mlp_ratio = state["encoder.blocks.0.fc1.weight"].shape[0] / meta["dim"]
    blocks = BlockOptions(meta["dim"], meta["heads"], mlp_ratio, layer_scale, meta["norm_eps"])
    shape = {"joints": meta["joints"], "segments": meta["frames"] // meta["segment_frames"], "blocks": blocks}
    encoder = Transformer(
        segment_frames=meta["segment_frames"], channels=meta["channels"], depth=meta["encoder_depth"], **shape
    )
    return encoder, Decoder(depth=meta["decoder_depth"], out=out, **shape)


def _compare(golden: dict, meta: dict, run: dict) -> dict[str, float]:
    run, mask = shared.on_host(run), mask_error(golden, run)
    # The published visible tokens stand in (segment, ascending score) order; ours ascend. Compare row by row as sets.
    latents = run["latent"].detach().numpy()
    golden_latents = golden["visible_latent"]
    N, S = len(golden["mask"]), meta["frames"] // meta["segment_frames"]
    latent = 0.0
    for rows, golden_rows in zip(
        latents.reshape(N * S, -1, latents.shape[-1]), golden_latents.reshape(N * S, -1, latents.shape[-1]), strict=True
    ):
        distance = np.abs(rows[:, None] - golden_rows[None]).max(-1)
        latent = max(latent, distance.min(0).max(), distance.min(1).max()) if np.isfinite(distance).all() else math.inf

    gradients, teacher = (
        to_published(run["gradients"], meta["channels"]),
        to_published(run["teacher"], meta["channels"]),
    )
    return {
        "loss": shared.relative(run["loss"], golden["loss"]),
        "mask": mask,
        "visible_latent": float(latent / np.abs(golden_latents).max()),
        "prediction": shared.relative(run["prediction"], golden["pred"]),
        "target": shared.relative(run["target"], golden["target"]),
        "gradients": shared.gradient_error(golden, gradients),
        "teacher_after_ema": max(shared.relative(v, golden[f"teacher_after_ema/{k}"]) for k, v in teacher.items()),
    }


def mask_error(golden: dict, run: dict) -> float:
    """1 where a token is masked in one and visible in the other."""
    mask = np.ones(golden["mask"].shape)
    np.put_along_axis(mask, run["visible"].cpu().numpy().astype(np.int64), 0.0, axis=1)
    return float(np.abs(mask - golden["mask"]).max())
