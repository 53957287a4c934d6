"""Golden numbers of FreqMixFormer: one step of the authors' class in both modes, and four steps of SGD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.compat.freqmixformer import from_freqmixformer, is_unused, own_name, to_freqmixformer
from s2vfast.compat.golden import relative, tensors, under
from s2vfast.networks.freqmixformer import FreqMixFormer, FreqMixFormerConfig, SpatialMixing
from s2vfast.objectives.classify import Classify, ClassifyConfig

_SPLIT = 13
"""The first high frequency of the authors' code, whatever the number of joints."""


def fits(golden: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> bool:
    """Whether the file says that it is of FreqMixFormer."""
    return meta.get("model") == "freqmixformer"


def check(
    golden: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    impl: str,
    dtype: torch.dtype,
    device: torch.device | str,
) -> dict[str, float]:
    """Relative errors of a step, see `s2vfast.compat.check_golden`.

    Returns:
        Errors of the logits in both modes, loss, buffers after the step and gradients; and of the four steps: losses
        before each, and logits after the last. Gradients that are zero but for rounding are not compared.
    """
    model = _model(golden, meta).to(device, dtype)
    clips = torch.tensor(golden["x"]).permute(0, 4, 2, 3, 1).to(device, dtype)  # [N, M, T, V, C]
    labels = torch.tensor(golden["y"]).to(device)
    errors_of = {}
    with ops.use_impl(impl):
        with torch.no_grad():
            errors_of["eval_logits"] = relative(model.eval()(clips), golden["eval/logits"])
        model.train()
        losses, result = _descend(model, clips, labels, meta["optimiser_of_traj"])
        errors_of["train_logits"] = relative(result["logits"], golden["train/logits"])
        errors_of["loss"] = relative(losses[0], golden["train/loss"])
        errors_of["buffers"] = max(
            relative(value, golden[f"buffer_after/{name}"]) for name, value in result["buffers"].items()
        )
        errors_of["gradients"] = _gradients(golden, meta, result["gradients"])
        errors_of["trajectory_losses"] = relative(torch.stack(losses), golden["traj/loss"])
        with torch.no_grad():
            errors_of["trajectory_logits"] = relative(model.eval()(clips), golden["traj/eval_after"])
    return errors_of


def _model(golden: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Classify:
    """The network with its linear head, in float64, of the file's sizes and weights."""
    state = {**tensors("param/", golden), **tensors("buffer/", golden)}
    state = {name: value.double() for name, value in state.items()}
    subsets, groups = golden["A_SE"].shape[:2]
    section = FreqMixFormerConfig(base=meta["base"], k=meta["k"], split=_SPLIT, subsets=subsets, groups=groups)
    constant, mode = torch.tensor(golden["A_SE"]), torch.tensor(golden["A_vector"])
    network = FreqMixFormer(section, mode, constant[:, 0], meta["T"], meta["in_channels"], meta["M"])
    options = ClassifyConfig(head="linear", dropout=0.0, drop_path=0.0, label_smoothing=0.0)
    model = Classify(network, options, meta["M"], range(meta["num_class"])).double()
    for module in network.modules():
        if isinstance(module, SpatialMixing):
            module.constant = constant
    weights = {own_name(name): value for name, value in from_freqmixformer(state).items()}
    counters = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    model.load_state_dict(weights | counters)
    return model


def _descend(
    model: nn.Module, clips: Tensor, labels: Tensor, recipe: Mapping[str, Any]
) -> tuple[list[Tensor], dict[str, Any]]:
    """Steps of SGD: losses before each, and of the first step logits, buffers after it and gradients."""
    trained = dict(model.named_parameters())
    optimizer = torch.optim.SGD(
        trained.values(),
        lr=recipe["lr"],
        momentum=recipe["momentum"],
        nesterov=recipe["nesterov"],
        weight_decay=recipe["weight_decay"],
    )
    losses, result = [], {}
    for step in range(recipe["steps"]):
        logits = model(clips)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        if step == 0:
            buffers = {_published(name): value.clone() for name, value in model.named_buffers()}
            result = {
                "logits": logits.detach(),
                "buffers": to_freqmixformer(buffers),
                "gradients": to_freqmixformer({_published(name): p.grad.clone() for name, p in trained.items()}),
            }
        optimizer.step()
    return losses, result


def _gradients(golden: Mapping[str, np.ndarray], meta: Mapping[str, Any], gradients: Mapping[str, Tensor]) -> float:
    """The largest error of a gradient; of those that the file has a part of, of that part and of norm and sum."""
    rounding, strides = set(meta["rounding_only_grads"]), meta["grad_stride"]
    worst = 0.0
    for name, expected in under("grad/", golden).items():
        if name in rounding or is_unused(name):
            continue
        gradient = gradients[name].cpu().flatten()
        worst = max(worst, relative(gradient[:: strides.get(name, 1)], expected.reshape(-1)))
        norm = torch.stack([gradient.norm(), gradient.sum()])
        worst = max(worst, relative(norm, golden[f"gradnorm/{name}"]))
    return worst


def _published(name: str) -> str:
    return f"fc.{name.removeprefix('head.')}" if name.startswith("head.") else name.removeprefix("encoder.")
