"""Golden numbers of MAMP: the kind of file, and what of it is compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from s2vfast import ops
from s2vfast.compat import golden as shared
from s2vfast.compat.golden_skeleton2vec import mask_error, network
from s2vfast.compat.mamp import from_mamp, to_mamp
from s2vfast.objectives.mamp import MAMP
from s2vfast.objectives.masks import MaskSampler


def fits(golden: dict[str, np.ndarray], meta: dict[str, Any]) -> bool:
    """Files with a temperature of motion."""
    return "motion_aware_tau" in meta


def check(
    golden: dict[str, np.ndarray], meta: dict[str, Any], impl: str, dtype: torch.dtype, device: torch.device | str
) -> dict[str, float]:
    """Errors of loss, mask, prediction, gradients, and of target where the file has one."""
    return _compare(golden, _run(golden, meta, impl, dtype, device))


def _run(golden: dict, meta: dict, impl: str, dtype: torch.dtype, device: torch.device | str) -> dict:
    params = {k.removeprefix("param/"): torch.tensor(v) for k, v in golden.items() if k.startswith("param/")}
    params = shared.cast(from_mamp(params), dtype, device)
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
    model = MAMP(*network(meta, params, layer_scale=None, out=out), sampler).to(clips)
    model.encoder.load_state_dict(shared.under("encoder.", params))
    model.decoder.load_state_dict(shared.under("decoder.", params))
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


def _compare(golden: dict, run: dict) -> dict[str, float]:
    run = shared.on_host(run)
    errors_of = {
        "loss": shared.relative(run["loss"], golden["loss"]),
        "mask": mask_error(golden, run),
        "prediction": shared.relative(run["prediction"], golden["pred"]),
        "gradients": shared.gradient_error(golden, to_mamp(run["gradients"], channels=golden["src"].shape[1])),
    }
    if "target" in golden:
        errors_of["target"] = shared.relative(run["target"], golden["target"])
    return errors_of
