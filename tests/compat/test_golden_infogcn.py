import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from s2vfast import compat, errors
from s2vfast.compat.infogcn import from_infogcn, to_infogcn
from s2vfast.objectives import infogcn as objective
from s2vfast.reference import infogcn as reference

# It stands beside the datasets, where it stands at all.
GOLDEN = Path(os.environ.get("S2VFAST_DATA", "missing")).parent / "golden" / "golden_infogcn.npz"
LOOSE = ("gradients", "trajectory_losses", "trajectory_logits")


def made_here(V=5, M=2, N=5, T=7, base=8, heads=2, stages=(1, 2), classes=4):
    """A file of the same kind, by the reference: other sizes, an odd number of frames, a tree of its own."""
    torch.manual_seed(3)
    mode = torch.eye(V, dtype=torch.float64)
    for joint in range(1, V):
        mode[joint, joint - 1] = -1.0
    model = reference.InfoGCN(mode, classes, base, heads, M, 0.3, stages, kernel=3).double()
    reference.initialise(model, heads)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.mul_(0.4).add_(0.1 * torch.randn_like(tensor))
    width = base * 2 ** (len(stages) - 1)
    x, y = torch.randn(N, 3, T, V, M).double(), torch.tensor([0, 2, 2, 1, 0])
    prior, eps = torch.randn(classes, width).double(), torch.randn(4, N, width).double()
    golden = {f"param/{name}": p.detach().clone() for name, p in model.named_parameters()}
    golden |= {f"buffer/{name}": b.clone() for name, b in model.named_buffers() if name != "mode"}
    golden |= {"x": x, "y": y, "A_vector": mode, "z_prior": prior, "train/eps": eps[0], "traj/eps": eps[1:]}
    output = model.eval()(x)
    golden |= {"eval/y_hat": output.logits, "eval/z": output.z}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    model.train()
    trajectory = []
    for step in range(4):
        output = model(x, eps[step])
        losses = reference.losses(output, y, prior, 2e-3, 0.3, 0.1)
        optimizer.zero_grad()
        losses["loss"].backward()
        trajectory.append(losses["loss"].detach())
        if step == 0:
            golden |= {"train/y_hat": output.logits, "train/z": output.z}
            golden |= {"train/mu": output.mu, "train/logvar": output.logvar, "train/loss": losses["loss"]}
            golden |= {f"train/loss_{name}": losses[name] for name in ("cls", "mmd", "l2")}
            golden |= {f"buffer_after/{n}": b.clone() for n, b in model.named_buffers() if "running" in n}
            gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
    golden |= {"traj/loss": torch.stack(trajectory), "traj/eval_after": model.eval()(x).logits}
    rounding = [name for name, gradient in gradients.items() if gradient.abs().max() < 1e-12]
    golden |= {f"grad/{name}": g.flatten()[::3] if g.numel() > 300 else g for name, g in gradients.items()}
    golden |= {f"gradnorm/{name}": torch.stack([g.norm(), g.sum()]) for name, g in gradients.items()}
    recipe = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "steps": 4}
    config = {"model": "infogcn", "V": V, "M": M, "T": T, "num_class": classes, "base_channel": base, "k": 1}
    config |= {"num_head": heads, "noise_ratio": 0.3, "lambda_1": 2e-3, "lambda_2": 0.3, "smoothing": 0.1}
    config |= {"in_channels": 3, "optimiser_of_traj": recipe, "rounding_only_grads": rounding}
    config |= {"grad_stride": {name: 3 for name, g in gradients.items() if g.numel() > 300}}
    return {k: v.detach().numpy() for k, v in golden.items()} | {"config": json.dumps(config)}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "infogcn.npz"
    np.savez(path, **made_here())
    return path


def changed(path, out, name):
    with np.load(path) as file:
        golden = {key: file[key] for key in file.files}
    value = golden[name].astype(np.float64)
    value.reshape(-1)[value.size // 2] += 1e-6
    np.savez(out, **(golden | {name: value}))
    return out


def agrees(result):
    return all(error <= (1e-7 if name in LOOSE else 1e-9) for name, error in result.items())


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_the_authors_numbers(impl):
    if not GOLDEN.is_file():
        pytest.skip("golden_infogcn.npz is not beside S2VFAST_DATA")
    result = compat.check_golden(GOLDEN, impl=impl)
    assert len(result) == 15
    assert agrees(result), result


def test_a_weight_that_is_a_millionth_off_shows_in_the_authors_numbers(tmp_path):
    if not GOLDEN.is_file():
        pytest.skip("golden_infogcn.npz is not beside S2VFAST_DATA")
    assert not agrees(
        compat.check_golden(changed(GOLDEN, tmp_path / "x.npz", "param/l5.agcn.conv_d.1.weight"), "torch")
    )


def test_the_plain_class_of_other_sizes(small):
    result = compat.check_golden(small, impl="torch")
    assert agrees(result), result


@pytest.mark.parametrize(
    "name",
    ["param/l2.agcn.shared_topology", "param/l2.tcn.branches.1.3.conv.weight", "param/l3.agcn.attn.to_qk.weight"],
)
def test_a_weight_that_is_a_millionth_off(small, tmp_path, name):
    assert not agrees(compat.check_golden(changed(small, tmp_path / "x.npz", name), "torch"))


def test_the_naming_both_ways_exactly(small):
    with np.load(small) as file:
        names = [key for key in file.files if key.startswith(("param/", "buffer/")) and "num_batches" not in key]
        published = {key.partition("/")[2]: torch.tensor(file[key]) for key in names}
    ours = from_infogcn(published)
    back = to_infogcn(ours)
    assert back.keys() == published.keys()
    assert all(torch.equal(back[k], published[k]) and back[k].shape == published[k].shape for k in published)
    del published["l2.agcn.conv_d.1.weight"]
    with pytest.raises(
        errors.CheckpointError, match="l2.agcn.conv_d.1.weight: missing, though l2.agcn.conv_d.0.weight"
    ):
        from_infogcn(published)
    with pytest.raises(errors.CheckpointError, match="gcn.weight: no parameter of the published InfoGCN"):
        from_infogcn({"gcn.weight": torch.zeros(1)})
    with pytest.raises(errors.CheckpointError, match="head.norm.weight: no parameter of InfoGCN"):
        to_infogcn({"head.norm.weight": torch.zeros(1)})


def test_the_discrepancy_leaves_out_classes_that_are_not_there():
    z, labels, prior = torch.randn(6, 4), torch.tensor([3, 3, 0, 0, 0, 3]), torch.randn(5, 4)
    rows = [z[labels == label].mean(0) - prior[label] for label in (0, 3)]
    torch.testing.assert_close(objective.mean_discrepancy(z, labels, prior), torch.stack(rows).square().mean())


def test_noise_is_normal_and_of_the_sample():
    ids = torch.arange(400)
    noise = objective.draw_noise(5, 2, ids, 64).double()
    assert torch.equal(objective.draw_noise(5, 2, ids[[7, 3]], 64).double(), noise[[7, 3]])
    assert not torch.equal(objective.draw_noise(5, 3, ids, 64).double(), noise)
    assert noise.mean().abs() < 0.02
    assert (noise.var() - 1).abs() < 0.03
    assert (noise.pow(4).mean() - 3).abs() < 0.15
    assert (noise.T @ noise / 400 - torch.eye(64)).fill_diagonal_(0).abs().max() < 0.25
    assert objective.draw_noise(5, 2, ids, 7).shape == (400, 7)
