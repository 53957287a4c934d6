"""Golden numbers: the results of the published code, compared with those of the models here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2vfast import errors, ops
from s2vfast.compat.mamp import from_mamp, to_mamp
from s2vfast.compat.skeleton2vec import from_published, to_published
from s2vfast.networks.block import BlockOptions
from s2vfast.networks.transformer import Transformer
from s2vfast.objectives.decoder import Decoder
from s2vfast.objectives.mamp import MAMP
from s2vfast.objectives.masks import MaskSampler
from s2vfast.objectives.skeleton2vec import Skeleton2vec
from s2vfast.reference import skeleton2vec as reference
from s2vfast.reference.adamw_ema import ema


def check_golden(
    path: str | Path, impl: str = "reference", dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Relative errors of one step against a file of golden numbers, of Skeleton2vec or of MAMP.

    The error of a quantity is its largest absolute difference over the golden quantity's largest absolute value
    (gradients: of that parameter, but no less than 1e-6 of the largest gradient, because the gradient of the keys'
    bias is zero up to rounding). ``mask`` and ``visible_latent`` are compared as sets of tokens.

    Args:
        path: an .npz file with meta, inputs, parameters and results in the published naming.
        impl: ``reference`` runs the model of `s2vfast.objectives` on reference operations, for Skeleton2vec also
            `s2vfast.reference.skeleton2vec`, and returns the larger errors; any other name, or a choice such as
            ``torch,tube_mask=native``, runs the model with that implementation.
        dtype: of all numbers. Triton's kernels and some compiled ones take float32, not float64.
        device: where it runs.

    Returns:
        Errors of loss, mask, prediction and gradients; for Skeleton2vec also of visible_latent, target and
        teacher_after_ema; for MAMP of target where the file has one.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            golden = {name: file[name] for name in file.files}
        meta = json.loads(str(golden["meta"]))
    except (OSError, ValueError, KeyError) as error:
        raise errors.DataError(f"{path}: not a file of golden numbers ({error})") from None
    if "motion_aware_tau" in meta:
        return _compare_mamp(golden, _run_mamp(golden, meta, impl, dtype, device))
    inputs = tuple(_to(value, dtype, device) for value in _inputs(golden, meta))
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


def _to(value: Any, dtype: torch.dtype, device: torch.device | str) -> Any:
    return {k: _to(v, dtype, device) for k, v in value.items()} if isinstance(value, dict) else value.to(device, dtype)


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
        *_network(meta, student, layer_scale=1.0),
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
        module.load_state_dict(_under(prefix, state))
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


def _run_mamp(golden: dict, meta: dict, impl: str, dtype: torch.dtype, device: torch.device | str) -> dict:
    params = {k.removeprefix("param/"): torch.tensor(v) for k, v in golden.items() if k.startswith("param/")}
    params = _to(from_mamp(params), dtype, device)
    src = torch.tensor(golden["src"])  # [B, C, T, V, M]
    clips = src.permute(0, 4, 2, 3, 1).flatten(0, 1).contiguous().to(device, dtype)
    uniform = torch.tensor(golden["uniform"]).to(device)
    sampler = MaskSampler(
        kind="motion_token",
        segment_frames=meta["segment_frames"],
        keep=int((golden["mask"][0] == 0).sum()),
        tau=meta["motion_aware_tau"],
    )
    out = params["decoder.head.weight"].shape[0]
    model = MAMP(*_network(meta, params, layer_scale=None, out=out), sampler).to(clips)
    model.encoder.load_state_dict(_under("encoder.", params))
    model.decoder.load_state_dict(_under("decoder.", params))
    with ops.use_impl(impl):
        visible, _ = sampler.sample_tokens(clips, noise=uniform)
        prediction = model.decoder(model.encoder(clips, visible), visible)
        output = model(clips, noise=uniform)
        output.loss.backward()
    return {
        "loss": output.loss,
        "visible": visible,
        "prediction": prediction,
        "target": model.target(clips, None),
        "gradients": {name: value.grad for name, value in model.named_parameters()},
    }


def _network(
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


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _compare(golden: dict, meta: dict, run: dict) -> dict[str, float]:
    run, mask = _on_host(run), _mask(golden, run)
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
        "loss": _relative(run["loss"], golden["loss"]),
        "mask": mask,
        "visible_latent": float(latent / np.abs(golden_latents).max()),
        "prediction": _relative(run["prediction"], golden["pred"]),
        "target": _relative(run["target"], golden["target"]),
        "gradients": _gradients(golden, gradients),
        "teacher_after_ema": max(_relative(v, golden[f"teacher_after_ema/{k}"]) for k, v in teacher.items()),
    }


def _compare_mamp(golden: dict, run: dict) -> dict[str, float]:
    run = _on_host(run)
    errors_of = {
        "loss": _relative(run["loss"], golden["loss"]),
        "mask": _mask(golden, run),
        "prediction": _relative(run["prediction"], golden["pred"]),
        "gradients": _gradients(golden, to_mamp(run["gradients"], channels=golden["src"].shape[1])),
    }
    if "target" in golden:
        errors_of["target"] = _relative(run["target"], golden["target"])
    return errors_of


def _on_host(run: dict) -> dict:
    return {
        name: {key: tensor.cpu() for key, tensor in value.items()} if isinstance(value, dict) else value.cpu()
        for name, value in run.items()
    }


def _mask(golden: dict, run: dict) -> float:
    """1 where a token is masked in one and visible in the other."""
    mask = np.ones(golden["mask"].shape)
    np.put_along_axis(mask, run["visible"].cpu().numpy().astype(np.int64), 0.0, axis=1)
    return float(np.abs(mask - golden["mask"]).max())


def _gradients(golden: dict, gradients: dict[str, Tensor]) -> float:
    expected = {k.removeprefix("grad/"): v for k, v in golden.items() if k.startswith("grad/")}
    if set(expected) != set(gradients):
        raise errors.DataError(f"gradients of other parameters: {sorted(set(expected) ^ set(gradients))[:3]}")
    floor = 1e-6 * max(np.abs(v).max() for v in expected.values())
    return max(_relative(gradients[k], v, floor) for k, v in expected.items())


def _relative(result: Tensor, expected: np.ndarray, floor: float = 1e-300) -> float:
    difference = np.abs(result.detach().numpy() - expected).max()
    # Python's max would drop a NaN that it does not begin with.
    return float(difference / max(np.abs(expected).max(), floor)) if np.isfinite(difference) else math.inf
