"""Golden numbers of Hi-TRS: a step of the authors' code, each loss alone, and the classifier of two bodies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.compat.golden import relative, tensors, under
from s2vfast.compat.hitrs import from_hitrs, to_hitrs
from s2vfast.networks.hitrs import HiTRS, HiTRSConfig
from s2vfast.networks.windows import Packing, grouped, offsets, window_count
from s2vfast.objectives import MicroBatch
from s2vfast.objectives.hitrs import HiTRSInputs, HiTRSLoss, HiTRSLossConfig

_TERMS = ("pose", "clip", "video", "future")


def fits(golden: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> bool:
    """Whether the file says that it is of Hi-TRS."""
    return meta.get("method") == "Hi-TRS"


def check(
    golden: Mapping[str, np.ndarray], meta: Mapping[str, Any], impl: str, dtype: torch.dtype, device: torch.device | str
) -> dict[str, float]:
    """Relative errors of a step, see `s2vfast.compat.check_golden`.

    Returns:
        ``windows`` (1 where a list of frames differs); the embeddings ``frames``, ``clips``, ``last_clips``,
        ``pairs``, ``videos``, ``exchanged``; the logits and predictions of all heads, ``similarity``; every term of
        the loss and ``loss``; ``gradients`` of the whole and of each term that the file has; ``norm`` of the gradient
        and ``after``, the parameters after the step of AdamW; ``scores`` of the classifier.
    """
    model = _model(golden, meta).to(device, dtype)
    clips = {name: torch.tensor(golden[f"batch/{name}_seq"]).to(device, dtype) for name in ("masked", "org")}
    inputs = _inputs(model, clips, golden, meta)
    with ops.use_impl(impl):
        errors_of = _outputs(model, inputs, golden, meta)
        errors_of["windows"] = float(not _same_windows(model, golden, meta))
        errors_of |= _step(model, MicroBatch((clips["masked"],), inputs), golden, meta)
        if "finetune/scores" in golden:
            fresh = _model(golden, meta).to(device, dtype)
            errors_of["scores"] = relative(_scores(fresh.encoder, golden, dtype, device), golden["finetune/scores"])
    return errors_of


def _model(golden: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> HiTRSLoss:
    """The network and its objective, in float64, of the file's sizes and weights."""
    section = HiTRSConfig(
        width=meta["d_model"],
        depth=meta["layer_num"],
        heads=meta["nhead"],
        head_width=meta["d_att"],
        window=meta["w_size"],
        stride=meta["stride"],
        dilation=meta["dilate"],
        positions=len(golden["state/v_pe.pe"]),
        dropout=meta.get("dropout", 0.0),
    )
    options = HiTRSLossConfig(
        **dict(zip(_TERMS, map(float, meta["weights"]), strict=True)),
        pose_scale=meta["pose_scale"],
        temperature=meta["nce_temperature"],
    )
    network = HiTRS(section, meta["joints"], 1, meta["channels"])
    model = HiTRSLoss(network, options, meta["channels"]).double()
    model.load_state_dict({name: value.double() for name, value in from_hitrs(tensors("state/", golden)).items()})
    return model


def _inputs(
    model: HiTRSLoss, clips: dict[str, Tensor], golden: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> HiTRSInputs:
    """What the file's collated batch is here: its clips have the empty frames at both ends."""
    pad = model.encoder.pad
    masked, clean = (clips[name][:, pad:] for name in ("masked", "org"))
    selected = torch.tensor(golden["batch/mask_seq_mask"][:, pad:, :, 0] > 0, device=clean.device)
    steps = torch.arange(clean.shape[1], device=clean.device)
    seen = steps < torch.tensor(meta["lengths"], device=clean.device)[:, None]
    counts = {i: window_count(length, model.encoder.section) for i, length in enumerate(meta["lengths"])}
    pairs = []
    for track in np.flatnonzero(golden["batch/c_motion_valid_flg"]):
        original, swapped = golden["batch/c_motion_clip"][track]
        one, two = np.flatnonzero(original != swapped)
        pairs.append((int(track), int(original[0]), int(one), int(two)))
    exchanges = [
        tuple(map(int, np.flatnonzero(permutation != np.arange(len(permutation)))))
        for permutation in golden["batch/permute_v"]
    ]
    return model.arrange(clean, masked, seen, selected, counts, pairs, exchanges)


def _outputs(
    model: HiTRSLoss, inputs: HiTRSInputs, golden: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> dict[str, float]:
    """Errors of embeddings, logits and predictions, of what is computed here."""
    with torch.no_grad():
        out = {name: value.cpu() for name, value in model.outputs(inputs).items()}
        pose = model.pose_head(out["frames"].to(inputs.rows)).cpu()
    N, pad = len(meta["lengths"]), model.encoder.pad
    frames = [slice(pad, pad + length) for length in meta["lengths"]]
    counts = [window_count(length, model.encoder.section) - 1 for length in meta["lengths"]]
    valid = golden["batch/c_motion_valid_flg"] > 0

    def of_frames(name: str) -> np.ndarray:
        return np.concatenate([golden[name][i, part] for i, part in enumerate(frames)])

    def of_windows(name: str) -> np.ndarray:
        return np.concatenate([golden[name][i, :count] for i, count in enumerate(counts)])

    def of_pairs(name: str) -> np.ndarray:
        """As they are, then swapped."""
        return np.concatenate(list(golden[name][valid].swapaxes(0, 1)))

    logits = golden["mid/c_motion_logits"].reshape(2, N, 2)[:, valid].reshape(-1, 2)
    normed = [nn.functional.normalize(out[name], dim=-1) for name in ("prediction", "target")]
    similarity = normed[0] @ normed[1].T
    if np.abs(golden["mid/last_similarity"]).max() > 1:
        similarity = similarity / model.options.temperature
    pairs = {
        "frames": (out["frames"][1:], of_frames("mid/s_x")),
        "pose_prediction": (pose[1:], of_frames("mid/pose_pred")),
        "clips": (out["windows"][: sum(counts)], of_windows("mid/c_windows")),
        "last_clips": (out["target"], golden["mid/c_last"][:, 0]),
        "pairs": (out["windows"][sum(counts) :], of_pairs("mid/c_pair")),
        "clip_logits": (out["clip"], logits),
        "videos": (out["videos"][:N], golden["mid/v_org"]),
        "exchanged": (out["videos"][N:], golden["mid/v_permuted"]),
        "video_logits": (out["video"], golden["mid/v_motion_logits"]),
        "prediction": (out["prediction"], golden["mid/last_pred"]),
        "target": (out["target"], golden["mid/last_target"]),
        "similarity": (similarity, golden["mid/last_similarity"]),
    }
    return {name: relative(result, expected) for name, (result, expected) in pairs.items()}


def _same_windows(model: HiTRSLoss, golden: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> bool:
    """Whether windows begin where the file's do, for every length that it names."""
    section = model.encoder.section
    after, equal = offsets(section, torch.device("cpu")).numpy(), []
    for length, expected in meta.get("windows_pretrain", {}).items():
        # The file counts the empty frames at both ends.
        starts = np.arange(window_count(int(length) - 2 * model.encoder.pad, section)) * section.stride
        equal.append(np.array_equal(starts[:, None] + after, expected))
    for i, length in enumerate(meta["lengths"]):
        last = (window_count(length, section) - 1) * section.stride + after
        equal.append(np.array_equal(last, golden["batch/last_c"][i]))
    return all(equal)


def _step(
    model: HiTRSLoss, batch: MicroBatch, golden: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> dict[str, float]:
    """Errors of the loss, its terms, gradients, and parameters after a step."""
    named, recipe = dict(model.named_parameters()), meta["adamw"]
    errors_of = {}
    for term in (term for term in _TERMS if f"grad_{term}/s_pe.pe" in golden):
        options = model.options
        model.options = dataclasses.replace(options, **{name: float(name == term) for name in _TERMS})
        model.zero_grad()
        model.step_loss(batch).loss.backward()
        model.options = options
        errors_of[f"gradients_{term}"] = _gradients(f"grad_{term}/", golden, named)
    model.zero_grad()
    output = model.step_loss(batch)
    output.loss.backward()
    errors_of |= {term: relative(output.terms[term], golden[f"loss_{term}"]) for term in _TERMS}
    errors_of["loss"] = relative(output.loss, golden["loss"])
    errors_of["gradients"] = _gradients("grad/", golden, named)
    norm = nn.utils.clip_grad_norm_(named.values(), recipe["clip"])
    errors_of["norm"] = relative(norm, np.array(meta["grad_norm"]))
    groups = [
        {"params": [p for name, p in named.items() if model.decays(name, p) is decays], "weight_decay": weight}
        for decays, weight in ((True, recipe["weight_decay"]), (False, 0.0))
    ]
    torch.optim.AdamW(groups, lr=recipe["lr"], betas=tuple(recipe["betas"]), eps=recipe["eps"]).step()
    after = to_hitrs({name: value.detach() for name, value in named.items()})
    errors_of["after"] = max(relative(after[name], value) for name, value in under("after/", golden).items())
    return errors_of


def _gradients(prefix: str, golden: Mapping[str, np.ndarray], named: Mapping[str, nn.Parameter]) -> float:
    """The largest error of a gradient, no scale less than 1e-6 of the largest; positions may be given in part."""
    gradients = to_hitrs({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()})
    expected = under(prefix, golden)
    floor = 1e-6 * max(np.abs(value).max() for value in expected.values())
    worst = 0.0
    for name, value in expected.items():
        worst = max(worst, relative(gradients[name][: len(value)], value, floor))
    silent = [name for name in gradients if name not in expected]
    return max([worst, *(float(gradients[name].abs().max()) / (1e6 * floor) for name in silent)])


def _scores(encoder: HiTRS, golden: Mapping[str, np.ndarray], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Of both bodies' windows, as the file holds them: the mean embedding, then a linear map."""
    windows = torch.tensor(golden["finetune/joint_seq"]).to(device, dtype).permute(0, 3, 1, 2, 4, 5)
    N, M, count, width = windows.shape[:4]
    real = torch.tensor(golden["finetune/w_pad_mask"][..., :count] == 0).flatten(0, 1)  # [N * M, count]
    videos = [(row * count + mask.nonzero()[:, 0]).tolist() for row, mask in enumerate(real)]
    rows = windows.flatten(0, 3)
    frames = torch.arange(1, len(rows) + 1, device=device).view(-1, width)
    groups, order = grouped(videos, torch.device(device))
    unused = (order, order, order)
    packing = Packing(torch.arange(len(rows), device=device), frames, groups, order, unused, unused)
    encoder.eval()
    with torch.no_grad():
        embedded = encoder.videos(encoder.windows(encoder.frames(rows), frames), packing)
    head = {name: torch.tensor(golden[f"finetune/v_cls.{name}"]).to(device, dtype) for name in ("weight", "bias")}
    return nn.functional.linear(embedded.view(N, M, -1).mean(1), head["weight"], head["bias"])
