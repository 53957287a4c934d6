"""Golden numbers of SkeAttnCLR: embeddings, mask, losses, gradients of each, and all state after a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast import errors, ops
from s2vfast.compat.golden import cast, relative, tensors, under
from s2vfast.compat.skeattnclr import from_skeattnclr, skeattnclr_name
from s2vfast.data.augment.spatial import blend
from s2vfast.data.layout import LAYOUTS
from s2vfast.data.streams import Stream
from s2vfast.networks.graph import spatial_graph
from s2vfast.networks.stgcn import STGCN
from s2vfast.objectives.bodies import mean_over_tracks
from s2vfast.objectives.skeattnclr import SkeAttnCLR
from s2vfast.reference import skeattnclr as reference
from s2vfast.reference.adamw_ema import ema

LAYOUT = LAYOUTS["kinect_v2"]
TERMS = ("z", "s", "ns")
# Biases before a batch norm are zero but for rounding, and so are their gradients.
_FLOOR = 1e-6


def fits(golden: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> bool:
    """Whether a file says so."""
    return meta.get("method") == "SkeAttnCLR"


def check(
    golden: Mapping[str, np.ndarray], meta: Mapping[str, Any], impl: str, dtype: torch.dtype, device: Any
) -> dict[str, float]:
    """Relative errors of the mixed clip, features, embeddings, mask, losses, gradients, evaluation and the state after.

    With ``impl="reference"`` the step of `s2vfast.reference.skeattnclr` is compared too, and the larger errors count.
    """
    state = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None)
        for name, tensor in tensors("state/", golden).items()
    }
    clips = {name: cast(as_clips(golden[name]), dtype, device) for name in ("xq", "xk")}
    donors, region = (torch.tensor(golden[f"swap/{name}"], device=device) for name in ("donor", "region"))
    cell = meta["frames"] // region.shape[0]
    clips["mixed"] = blend(clips["xq"], donors, region.repeat_interleave(cell, 0)[None])
    stream = Stream(meta["view"])
    errors_of = {"swap": _mixed_error(golden, clips["mixed"], stream), "graph": _graph_error(state)}
    runs = [_run_model(golden, meta, state, clips, impl)]
    if impl == "reference":
        runs.append(_run_reference(meta, state, {name: stream(clip, LAYOUT) for name, clip in clips.items()}))
    results = [_compare(golden, run) for run in runs]
    for name in results[0]:
        errors_of[name] = max(result.get(name, 0.0) for result in results)
    return errors_of


def as_clips(array: np.ndarray) -> Tensor:
    """The authors' [n, C, T, V, M] as clips [n, M, T, V, C]."""
    return torch.tensor(array).permute(0, 4, 2, 3, 1).contiguous()


def objective_of(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> SkeAttnCLR:
    """The objective of a file's sizes, with a file's weights and queues."""
    tree = from_skeattnclr(state)
    widths, strides = [], []
    while f"encoder.blocks.{len(widths)}.temporal.weight" in tree:
        prefix = f"encoder.blocks.{len(widths)}."
        widths.append(tree[f"{prefix}temporal.weight"].shape[2])
        strides.append(2 if f"{prefix}shortcut.weight" in tree else 1)
    kernel = tree["encoder.blocks.0.temporal.weight"].shape[0]
    section = STGCN.Section(
        stream=meta["view"], channels=tuple(widths), strides=tuple(strides), kernel=kernel, dropout=meta["dropout"]
    )
    hidden, dim = tree["projector.fc1.weight"].shape[0], meta["feature_dim"]
    options = SkeAttnCLR.Section(
        mu=meta["mu"], temperature=meta["temperature"], queue=meta["queue_size"], queues="published",
        momentum=meta["momentum"], dim=dim, hidden=hidden, heads=meta["heads"],
    )  # fmt: skip
    network = STGCN(section, LAYOUT, meta["frames"], meta["channels"])
    objective = SkeAttnCLR(network, options, meta["bodies"], LAYOUT)
    objective.load_state_dict(tree)
    return objective.train()


def _run_model(
    golden: Mapping[str, np.ndarray], meta: Mapping[str, Any], state: dict, clips: dict[str, Tensor], impl: str
) -> dict[str, Any]:
    objective = objective_of(meta, state).to(clips["xq"])
    views = [clips[name].flatten(0, 1) for name in ("xq", "mixed", "xk")]
    features: dict[str, Tensor] = {}
    projected: list[Tensor] = []
    with ops.use_impl(impl):
        evaluated = _evaluated(objective.eval(), views[0], state)
        objective.train()
        for name, network in (("q", objective.encoder), ("k", objective.key_encoder)):
            network.register_forward_hook(
                lambda _, __, tokens, name=name: features.setdefault("swap" if name in features else name, tokens)
            )
        for projector in (objective.projector, objective.key_projector):
            projector.register_forward_hook(lambda _, __, embedding: projected.append(embedding))
        queries, keys, mask = objective.embed(*views)
        losses, _ = objective.losses(queries.normalised(), keys.normalised())
        losses["total"] = objective.total(losses)
        trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        gradients = _gradients(losses, trained)
        objective.contrast(queries.normalised(), keys.normalised())
    with torch.no_grad():
        _update(trained, gradients["total"], meta)
        after = objective.state_dict()
        for average, followed in objective.averages.items():
            for name in getattr(objective, average).state_dict():
                _follow(after[f"{average}.{name}"], after[f"{followed}.{name}"], meta["momentum_used"])
    names = ("q_z", "swap_z", "swap_s", "swap_ns", "k_z", "k_s", "k_ns")
    return {
        "eval": evaluated,
        "loss": losses,
        "neck": dict(zip(names, projected, strict=True)),
        "pred": {"q_z": queries.z, "swap_s": queries.s, "swap_ns": queries.ns},
        "mask": mask,
        "feature": features,
        "gradients": gradients,
        "after": after,
    }


def _run_reference(meta: Mapping[str, Any], state: dict, clips: dict[str, Tensor]) -> dict[str, Any]:
    state = {name: tensor.clone() for name, tensor in state.items()}
    trained = {}
    for name, tensor in state.items():
        statistic = name.endswith(("running_mean", "running_var", ".A")) or not tensor.is_floating_point()
        if name.startswith(("encoder_q.", "predictor")) and skeattnclr_name(name) is not None and not statistic:
            trained[name] = tensor.requires_grad_()
    settings = {name: meta[name] for name in ("heads", "temperature", "mu")}
    out = reference.step(state, clips["xq"], clips["mixed"], clips["xk"], **settings)
    gradients = _gradients(out.losses, trained)
    with torch.no_grad():
        _update(trained, gradients["total"], meta)
        for name, value in state.items():
            if name.startswith("encoder_k."):
                _follow(value, state[name.replace("_k", "_q", 1)], meta["momentum_used"])
    return {
        "loss": out.losses,
        "neck": out.necks,
        "pred": out.predictions,
        "mask": out.mask,
        "feature": {name: feature.flatten(2).transpose(1, 2) for name, feature in out.features.items()},
        "gradients": {term: from_skeattnclr(of_term) for term, of_term in gradients.items()},
        "after": from_skeattnclr({name: value for name, value in state.items() if name not in _OTHER_QUEUES}),
    }


_OTHER_QUEUES = ("queue_s", "queue_ns")
"""What the reference does not keep."""


def _evaluated(objective: SkeAttnCLR, clips: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The class layer's logits, tokens and the predictor's output in evaluation mode."""
    with torch.no_grad():
        tokens = objective.encoder(clips)
        pooled = mean_over_tracks(tokens, objective.bodies)
        embedding = objective.predictor_z(objective.projector(pooled))
        head = (state[f"encoder_q.backbone.fc.{name}"] for name in ("weight", "bias"))
        return {"logits": F.linear(pooled, *head), "feature": tokens, "knn_feature": F.normalize(embedding, dim=1)}


def _gradients(losses: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Of each loss, of the parameters that it has one of."""
    result = {}
    for term, loss in losses.items():
        gradients = torch.autograd.grad(loss, list(trained.values()), retain_graph=True, allow_unused=True)
        result[term] = {name: g for name, g in zip(trained, gradients, strict=True) if g is not None}
    return result


def _update(trained: Mapping[str, Tensor], gradients: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """A step of SGD."""
    for name, parameter in trained.items():
        parameter.grad = gradients[name]
    torch.optim.SGD(trained.values(), **meta["sgd"]).step()


def _follow(average: Tensor, followed: Tensor, tau: float) -> None:
    """The key encoder after a step: parameters and statistics average, counters are copied."""
    if average.is_floating_point():
        ema(average, followed, tau)
    else:
        average.copy_(followed)


def _mixed_error(golden: Mapping[str, np.ndarray], mixed: Tensor, stream: Stream) -> float:
    """Of the mixed clip, which a file has before or after its stream was taken."""
    expected = as_clips(golden["swap/x"]).numpy()
    return min(relative(clips, expected) for clips in (mixed, stream(mixed, LAYOUT)))


def _graph_error(state: Mapping[str, Tensor]) -> float:
    return relative(spatial_graph(LAYOUT.bone_parents), state["encoder_q.backbone.A"].cpu().numpy())


def _compare(golden: Mapping[str, np.ndarray], run: Mapping[str, Any]) -> dict[str, float]:
    """Errors by name; of tensors under one name the largest."""
    errors_of = {"mask": relative(run["mask"], golden["mid/attn_mask"])}
    for kind in ("neck", "pred"):
        expected = {name: golden[f"mid/{name.replace('_', f'_{kind}_', 1)}"] for name in run[kind]}
        errors_of[kind] = max(relative(run[kind][name], value[..., 0]) for name, value in expected.items())
    features = {name: _tokens(golden[f"mid/{name}_feature"]) for name in run["feature"]}
    errors_of["feature"] = max(relative(run["feature"][name], value) for name, value in features.items())
    for name, value in run["loss"].items():
        suffix = "" if name == "total" else f"_{name}"
        errors_of[f"loss{suffix}"] = relative(value, golden[f"loss{suffix}"])
        if under(f"grad{suffix}/", golden):
            errors_of[f"gradients{suffix}"] = _gradient_error(golden, f"grad{suffix}/", run["gradients"][name])
    after = from_skeattnclr({name: torch.tensor(value) for name, value in under("after/", golden).items()})
    errors_of["after"] = max(relative(value, after[name].numpy(), _FLOOR) for name, value in run["after"].items())
    for name, value in run.get("eval", {}).items():
        expected = golden[f"eval/{name}"]
        errors_of[f"eval_{name}"] = relative(value, _tokens(expected) if name == "feature" else expected)
    return errors_of


def _tokens(scrambled: np.ndarray) -> np.ndarray:
    """[n * M, L, D] of the published feature, whose shape [n, D, T / 4, V, M] is not the order of its numbers."""
    n, D, steps, V, M = scrambled.shape
    return scrambled.reshape(n * M, D, steps * V).transpose(0, 2, 1)


def _gradient_error(golden: Mapping[str, np.ndarray], prefix: str, gradients: Mapping[str, Tensor]) -> float:
    expected = from_skeattnclr(tensors(prefix, golden))
    if set(expected) != set(gradients):
        raise errors.DataError(f"{prefix}: gradients of others: {sorted(set(expected) ^ set(gradients))[:3]}")
    floor = _FLOOR * max(float(value.abs().max()) for value in expected.values())
    return max(relative(gradients[name], value.numpy(), floor) for name, value in expected.items())
