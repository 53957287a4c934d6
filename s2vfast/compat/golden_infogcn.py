"""Golden numbers of InfoGCN: a step of the authors' class in both modes, and four steps of SGD."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2vfast import ops
from s2vfast.compat.golden import relative, tensors, under
from s2vfast.compat.infogcn import from_infogcn, to_infogcn
from s2vfast.networks.infogcn import InfoGCN, InfoGCNConfig
from s2vfast.objectives import MicroBatch
from s2vfast.objectives.infogcn import BottleneckInputs, InfoGCNLoss, InfoGCNLossConfig, mean_discrepancy


def fits(golden: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> bool:
    """Whether the file says that it is of InfoGCN."""
    return meta.get("model") == "infogcn"


def check(
    golden: Mapping[str, np.ndarray], meta: Mapping[str, Any], impl: str, dtype: torch.dtype, device: torch.device | str
) -> dict[str, float]:
    """Relative errors of a step, see `s2vfast.compat.check_golden`.

    Returns:
        ``eval_logits``, ``eval_z``; of the step in training mode ``train_logits``, ``train_z``, ``mu``, ``logvar``,
        every term of the loss (``cls``, ``mmd``, ``l2``), ``loss``, ``buffers`` after it and ``gradients``;
        ``blocks``, the outputs of the stem and all blocks in both modes, by the numbers that the file has of them; and
        of the steps of SGD ``trajectory_losses`` before each, and ``trajectory_logits`` after the last. Gradients that
        are zero but for rounding are not compared.
    """
    model = _model(golden, meta).to(device, dtype)
    clips = torch.tensor(golden["x"]).permute(0, 4, 2, 3, 1).flatten(0, 1).to(device, dtype)  # [N * M, T, V, C]
    labels = torch.tensor(golden["y"]).to(device)
    noises = [golden["train/eps"], *golden["traj/eps"]]
    batches = [
        MicroBatch((clips,), BottleneckInputs(labels, torch.tensor(noise).to(device, dtype))) for noise in noises
    ]
    with ops.use_impl(impl):
        errors_of = _outputs(model, clips, batches[0], golden)
        errors_of |= _trajectory(model, clips, batches, golden, meta)
    return errors_of


def _model(golden: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> InfoGCNLoss:
    """The network and its objective, in float64, of the file's sizes and weights."""
    state = {**tensors("param/", golden), **tensors("buffer/", golden)}
    counters = "num_batches_tracked"
    state = from_infogcn({name: value.double() for name, value in state.items() if not name.endswith(counters)})
    depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.blocks."))
    widths = [state[f"encoder.blocks.{i}.graph.weight"].shape[1] for i in range(depth)]
    qk = state["encoder.blocks.0.graph.qk.weight"]
    section = InfoGCNConfig(
        base=meta["base_channel"],
        stages=tuple(len(list(stage)) for _, stage in itertools.groupby(widths)),
        heads=meta["num_head"],
        head_ratio=qk.shape[1] * 2 * meta["num_head"] // len(qk),
        kernel=state["encoder.blocks.0.temporal.weight"].shape[-1],
        k=max(meta["k"], 1),
    )
    network = InfoGCN(section, torch.tensor(golden["A_vector"]), meta["T"], meta["M"], meta["in_channels"])
    options = InfoGCNLossConfig(
        noise_ratio=meta["noise_ratio"],
        lambda_mmd=meta["lambda_2"],
        lambda_l2=meta["lambda_1"],
        label_smoothing=meta["smoothing"],
    )
    model = InfoGCNLoss(network, options, meta["M"], range(meta["num_class"])).double()
    state["prior"] = torch.tensor(golden["z_prior"])
    own = model.state_dict()
    model.load_state_dict(state | {name: value for name, value in own.items() if name.endswith(counters)})
    return model


def _outputs(
    model: InfoGCNLoss, clips: Tensor, batch: MicroBatch, golden: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Errors of what the network gives in both modes; its running statistics are as before."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    errors_of: dict[str, float] = {"blocks": 0.0}
    head, labels, noise = model.head, batch.inputs.labels, batch.inputs.noise
    with torch.no_grad():
        for mode in ("eval", "train"):
            model.train(mode == "train")
            x = model.encoder.stem(clips)
            outputs = {"data_bn": x}
            for i, block in enumerate(model.encoder.blocks):
                outputs[f"l{i + 1}"] = x = block(x)
            pooled = model.pool(x.flatten(1, 2), model.bodies)
            hidden = torch.relu(head.fc(pooled))
            results = {"mu": head.fc_mu(hidden), "logvar": head.fc_logvar(hidden)}
            traces = results | {name: _traced(name, output, model) for name, output in outputs.items()}
            for name, value in traces.items():
                if (key := f"{mode}/trace/{name}") in golden:
                    errors_of["blocks"] = max(errors_of["blocks"], relative(value, golden[key]))
            if mode == "eval":
                errors_of["eval_logits"] = relative(head(pooled), golden["eval/y_hat"])
                errors_of["eval_z"] = relative(results["mu"], golden["eval/z"])
            else:
                logits, z = head.sample(pooled, noise)
                results |= {"z": z, "y_hat": logits}
                for name, key in (("mu", "mu"), ("logvar", "logvar"), ("train_z", "z"), ("train_logits", "y_hat")):
                    errors_of[name] = relative(results[key], golden[f"train/{key}"])
                errors_of["mmd"] = relative(mean_discrepancy(z, labels, model.prior), golden["train/loss_mmd"])
    model.load_state_dict(state)
    return errors_of


def _traced(name: str, output: Tensor, model: InfoGCNLoss) -> Tensor:
    """The 12 numbers that a file has of an output: mean, deviation, largest, first 5, last 4, in the authors' order."""
    if name == "data_bn":  # [N, M * V * C, T]
        output = output.unflatten(0, (-1, model.bodies)).permute(0, 1, 3, 4, 2)
    else:
        output = output.permute(0, 3, 1, 2)
    flat = output.flatten()
    return torch.cat([torch.stack([flat.mean(), flat.std(correction=0), flat.abs().max()]), flat[:5], flat[-4:]])


def _trajectory(
    model: InfoGCNLoss,
    clips: Tensor,
    batches: list[MicroBatch],
    golden: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
) -> dict[str, float]:
    """Errors of the loss and its terms, buffers and gradients of the first step, and of the steps of SGD."""
    recipe = meta["optimiser_of_traj"]
    trained = dict(model.named_parameters())
    settings = {name: recipe[name] for name in ("lr", "momentum", "nesterov", "weight_decay")}
    optimizer = torch.optim.SGD(trained.values(), **settings)
    losses, errors_of = [], {}
    model.train()
    for step, batch in enumerate(batches[: recipe["steps"]]):
        optimizer.zero_grad()
        output = model.step_loss(batch)
        output.loss.backward()
        losses.append(output.loss.detach())
        if step == 0:
            errors_of["loss"] = relative(output.loss, golden["train/loss"])
            for term in ("cls", "mmd", "l2"):
                errors_of[term] = relative(output.terms[term], golden[f"train/loss_{term}"])
            buffers = to_infogcn(
                {n: b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))}
            )
            after = under("buffer_after/", golden)
            errors_of["buffers"] = max(relative(value, after[name]) for name, value in buffers.items())
            gradients = to_infogcn({name: parameter.grad for name, parameter in trained.items()})
            errors_of["gradients"] = _gradients(golden, meta, gradients)
        optimizer.step()
    errors_of["trajectory_losses"] = relative(torch.stack(losses), golden["traj/loss"])
    model.eval()
    with torch.no_grad():
        logits = model(clips.unflatten(0, (-1, model.bodies)))
    errors_of["trajectory_logits"] = relative(logits, golden["traj/eval_after"])
    return errors_of


def _gradients(golden: Mapping[str, np.ndarray], meta: Mapping[str, Any], gradients: Mapping[str, Tensor]) -> float:
    """The largest error of a gradient; of those that the file has a part of, of that part and of norm and sum."""
    worst = 0.0
    for name, expected in under("grad/", golden).items():
        if name not in meta["rounding_only_grads"]:
            gradient = gradients[name].cpu().flatten()
            stride = meta["grad_stride"].get(name, 1)
            worst = max(worst, relative(gradient[::stride], expected.reshape(-1)))
            norm = torch.stack([gradient.norm(), gradient.sum()])
            worst = max(worst, relative(norm, golden[f"gradnorm/{name}"]))
    return worst
