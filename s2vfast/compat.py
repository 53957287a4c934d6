"""Other people's parameters: the published naming of Skeleton2vec, both ways, and files of golden numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2vfast import errors
from s2vfast.reference import skeleton2vec as reference
from s2vfast.reference.adamw_ema import ema

_BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.proj.weight": "proj.weight",
    "attn.proj.bias": "proj.bias",
    "gamma_1": "gamma1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "fc1.weight",
    "mlp.fc1.bias": "fc1.bias",
    "mlp.fc2.weight": "fc2.weight",
    "mlp.fc2.bias": "fc2.bias",
    "gamma_2": "gamma2",
}
_PARTS = ("queries", "keys", "values")  # in this order in our qkv
_PLAIN = {
    "encoder_embedding.projection.1.bias": "encoder.embedding.bias",
    "encoder_norm.weight": "encoder.norm.weight",
    "encoder_norm.bias": "encoder.norm.bias",
    "decoder_embedding.weight": "decoder.embed.weight",
    "decoder_embedding.bias": "decoder.embed.bias",
    "decoder_norm.weight": "decoder.norm.weight",
    "decoder_norm.bias": "decoder.norm.bias",
    "decoder_feat_head.weight": "decoder.head.weight",
    "decoder_feat_head.bias": "decoder.head.bias",
}
_POSITIONS = {  # published [1, D, 1, V] or [1, D, S, 1] -> ours [V, D] or [S, D]
    "encoder_embedding.spatio_pos_emb": ("encoder.embedding.joint", "joint"),
    "encoder_embedding.temporal_pos_emb": ("encoder.embedding.segment", "segment"),
    "decoder_spatio_pos_emb": ("decoder.joint", "joint"),
    "decoder_temporal_pos_emb": ("decoder.segment", "segment"),
}
_PROJECTION = "encoder_embedding.projection.1.weight"


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in the published naming as one of `s2vfast.objectives.skeleton2vec.Skeleton2vec`.

    The encoder alone, or encoder and decoder. Exact: values are moved, never computed.

    Raises:
        CheckpointError: a name that is not of the published model, or a part that is missing.
    """
    state, ours = dict(state), {}
    for theirs, name in _PLAIN.items():
        if theirs in state:
            ours[name] = state.pop(theirs)
    for theirs, (name, _) in _POSITIONS.items():
        if theirs in state:
            value = state.pop(theirs)
            ours[name] = value.reshape(value.shape[1], -1).t().contiguous()
    if _PROJECTION in state:
        weight = state.pop(_PROJECTION)  # [D, C, s, 1]
        ours["encoder.embedding.weight"] = weight[..., 0].transpose(1, 2).reshape(weight.shape[0], -1).contiguous()
    if "mask_token_emb" in state:
        ours["decoder.mask_token"] = state.pop("mask_token_emb").reshape(-1)
    for theirs in list(state):
        match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", theirs)
        if match and match[3] in _BLOCK:
            ours[f"{match[1]}.blocks.{match[2]}.{_BLOCK[match[3]]}"] = state.pop(theirs)
        elif match and (part := re.fullmatch(r"attn\.queries\.(weight|bias)", match[3])):
            stem = f"{match[1]}.layers.{match[2]}.attn."
            missing = [f"{stem}{p}.{part[1]}" for p in _PARTS if f"{stem}{p}.{part[1]}" not in state]
            if missing:
                raise errors.CheckpointError(f"{missing[0]}: missing beside {theirs}")
            packed = torch.cat([state.pop(f"{stem}{p}.{part[1]}") for p in _PARTS])
            ours[f"{match[1]}.blocks.{match[2]}.qkv.{part[1]}"] = packed
    if state:
        raise errors.CheckpointError(f"{next(iter(state))}: no parameter of the published Skeleton2vec has this name")
    return ours


def to_published(state: Mapping[str, Tensor], channels: int = 3) -> dict[str, Tensor]:
    """The inverse of `from_published`, bit by bit.

    Args:
        state: parameters under our names.
        channels: C of the model, which the flat embedding weight does not show.

    Raises:
        CheckpointError: a name that is not ours.
    """
    plain = {ours: theirs for theirs, ours in _PLAIN.items()}
    block = {ours: theirs for theirs, ours in _BLOCK.items()}
    positions = {ours: (theirs, axis) for theirs, (ours, axis) in _POSITIONS.items()}
    published = {}
    for name, value in state.items():
        match = re.fullmatch(r"(encoder|decoder)\.blocks\.(\d+)\.(.+)", name)
        if name in plain:
            published[plain[name]] = value
        elif name in positions:
            theirs, axis = positions[name]
            flat = value.t()[None].contiguous()  # [1, D, V] or [1, D, S]
            published[theirs] = flat[:, :, None, :] if axis == "joint" else flat[..., None]
        elif name == "encoder.embedding.weight":
            D = value.shape[0]
            published[_PROJECTION] = value.reshape(D, -1, channels).transpose(1, 2)[..., None].contiguous()
        elif name == "decoder.mask_token":
            published["mask_token_emb"] = value.reshape(1, 1, -1)
        elif match and match[3] in block:
            published[f"{match[1]}.layers.{match[2]}.{block[match[3]]}"] = value
        elif match and match[3] in ("qkv.weight", "qkv.bias"):
            for part, piece in zip(_PARTS, value.chunk(3), strict=True):
                published[f"{match[1]}.layers.{match[2]}.attn.{part}.{match[3][4:]}"] = piece.contiguous()
        else:
            raise errors.CheckpointError(f"{name}: no parameter of Skeleton2vec has this name")
    return published


def check_golden(
    path: str | Path, impl: str = "reference", dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Relative errors of one Skeleton2vec step against a file of golden numbers.

    The error of a quantity is its largest absolute difference over the golden quantity's largest absolute value
    (gradients: of that parameter, but no less than 1e-6 of the largest gradient, because the gradient of the keys'
    bias is zero up to rounding). ``mask`` and ``visible_latent`` are compared as sets of tokens.

    Args:
        path: an .npz file with meta, inputs, parameters and results in the published naming.
        impl: ``reference`` runs both `s2vfast.reference.skeleton2vec` and the model of `s2vfast.objectives` on
            reference operations and returns the larger errors; any other name, or a choice such as
            ``torch,tube_mask=native``, runs the model with that implementation.
        dtype: of all numbers. Triton's kernels and some compiled ones take float32, not float64.
        device: where it runs.

    Returns:
        Errors of loss, mask, visible_latent, prediction, target, gradients and teacher_after_ema.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            golden = {name: file[name] for name in file.files}
        meta = json.loads(str(golden["meta"]))
    except (OSError, ValueError, KeyError) as error:
        raise errors.DataError(f"{path}: not a file of golden numbers ({error})") from None
    inputs = tuple(_to(value, dtype, device) for value in _inputs(golden, meta))
    found = [_run_model(*inputs, meta, impl)]
    if impl == "reference":
        found.append(_run_reference(*inputs, meta))
    results = [_compare(golden, meta, run) for run in found]
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


def _keep(meta: dict) -> int:
    return int(np.floor(meta["joints"] * (1.0 - meta["mask_ratio"]) + 1e-9))


def _run_reference(student: dict, teacher: dict, clips: Tensor, noise: Tensor, meta: dict) -> dict:
    teacher = {name: value.clone() for name, value in teacher.items()}
    settings = reference.Settings(
        heads=meta["heads"],
        depth=meta["encoder_depth"],
        decoder_depth=meta["decoder_depth"],
        segment_frames=meta["segment_frames"],
        tube_len=meta["tube_len"],
        keep=_keep(meta),
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


def _run_model(student: dict, teacher: dict, clips: Tensor, noise: Tensor, meta: dict, impl: str) -> dict:
    from s2vfast import ops
    from s2vfast.nn.decoder import Decoder
    from s2vfast.nn.encoder import Encoder
    from s2vfast.objectives.skeleton2vec import Skeleton2vec

    shape = {
        "joints": meta["joints"],
        "segments": meta["frames"] // meta["segment_frames"],
        "dim": meta["dim"],
        "heads": meta["heads"],
        "mlp_ratio": student["encoder.blocks.0.fc1.weight"].shape[0] / meta["dim"],
        "norm_eps": meta["norm_eps"],
    }
    encoder = Encoder(
        segment_frames=meta["segment_frames"], channels=meta["channels"], depth=meta["encoder_depth"], **shape
    )
    decoder = Decoder(depth=meta["decoder_depth"], **shape)
    model = Skeleton2vec(
        encoder,
        decoder,
        tube_len=meta["tube_len"],
        keep=_keep(meta),
        motion_weight=meta["motion_weight"],
        top_k=meta["top_k"],
        target_norm=meta["layer_norm_of_targets"].removesuffix("_norm"),
        placement="published",
    ).to(clips)
    for module, prefix, state in (
        (model.encoder, "encoder.", student),
        (model.decoder, "decoder.", student),
        (model.teacher, "encoder.", teacher),
    ):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    with ops.use_impl(impl):
        visible, masked = model.draw_mask(clips, noise=noise)
        latent = model.encoder(clips, visible)
        prediction = model.decoder(latent, model.places(clips, noise=noise))
        target = model.target(clips, None)
        out = model(clips, noise=noise)
        out.loss.backward()
        with torch.no_grad():
            for mine, theirs in zip(model.teacher.parameters(), model.encoder.parameters(), strict=True):
                ema(mine, theirs, meta["ema_decay_used"])
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


def _compare(golden: dict, meta: dict, run: dict) -> dict[str, float]:
    run = {
        name: {key: tensor.cpu() for key, tensor in value.items()} if isinstance(value, dict) else value.cpu()
        for name, value in run.items()
    }
    N, L = golden["mask"].shape
    mask = np.ones((N, L))
    np.put_along_axis(mask, run["visible"].numpy().astype(np.int64), 0.0, axis=1)

    # The published visible tokens stand in (segment, ascending score) order; ours ascend. Compare row by row as sets.
    ours = run["latent"].detach().numpy()
    theirs = golden["visible_latent"]
    S = meta["frames"] // meta["segment_frames"]
    latent = 0.0
    for mine, given in zip(
        ours.reshape(N * S, -1, ours.shape[-1]), theirs.reshape(N * S, -1, ours.shape[-1]), strict=True
    ):
        distance = np.abs(mine[:, None] - given[None]).max(-1)
        latent = max(latent, distance.min(0).max(), distance.min(1).max())

    gradients, teacher = (
        to_published(run["gradients"], meta["channels"]),
        to_published(run["teacher"], meta["channels"]),
    )
    expected = {k[5:]: v for k, v in golden.items() if k.startswith("grad/")}
    floor = 1e-6 * max(np.abs(v).max() for v in expected.values())
    if set(expected) != set(gradients):
        raise errors.DataError(f"gradients of other parameters: {sorted(set(expected) ^ set(gradients))[:3]}")
    return {
        "loss": _relative(run["loss"], golden["loss"]),
        "mask": float(np.abs(mask - golden["mask"]).max()),
        "visible_latent": float(latent / np.abs(theirs).max()),
        "prediction": _relative(run["prediction"], golden["pred"]),
        "target": _relative(run["target"], golden["target"]),
        "gradients": max(_relative(gradients[k], v, floor) for k, v in expected.items()),
        "teacher_after_ema": max(_relative(v, golden[f"teacher_after_ema/{k}"]) for k, v in teacher.items()),
    }


def _relative(found: Tensor, expected: np.ndarray, floor: float = 1e-300) -> float:
    difference = np.abs(found.detach().numpy() - expected).max()
    return float(difference / max(np.abs(expected).max(), floor))
