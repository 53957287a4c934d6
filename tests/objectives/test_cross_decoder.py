"""The decoder whose tokens look at the latents alone."""

import pytest
import torch

from s2vfast import presets
from s2vfast.config import Config
from s2vfast.errors import ConfigError
from s2vfast.networks.block import BlockOptions
from s2vfast.objectives.decoder import CrossDecoder

JOINTS, SEGMENTS, K, D, HEADS = 5, 4, 3, 16, 2


def decoder(depth=2, layer_scale=0.5):
    torch.manual_seed(0)
    module = CrossDecoder(JOINTS, SEGMENTS, depth, BlockOptions(D, HEADS, 2.0, layer_scale), out=6).double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module


def latents(seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.stack([torch.randperm(JOINTS * SEGMENTS, generator=generator) for _ in range(2)])
    masked = tokens[:, K:].sort(dim=1).values
    visible = tokens[:, :K].sort(dim=1).values
    return torch.randn(2, K, D, dtype=torch.float64, generator=generator), visible.int(), masked.int()


def normed(x, weight, bias, eps):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def one_token(module, latent, token, norm):
    """What is predicted of a token of a track, written down head by head."""
    memory = latent if norm is None else normed(latent, norm.weight, norm.bias, norm.eps)
    x = module.mask_token + module.segment[token // JOINTS] + module.joint[token % JOINTS]
    for block in module.blocks:
        q = block.q.weight @ normed(x, block.norm1.weight, block.norm1.bias, block.norm1.eps) + block.q.bias
        k, v = (memory @ block.kv.weight.T + block.kv.bias).split(D, dim=1)
        read = []
        for h in range(HEADS):
            of_head = slice(h * D // HEADS, (h + 1) * D // HEADS)
            weights = (k[:, of_head] @ q[of_head] * (D // HEADS) ** -0.5).exp()
            read.append((weights[:, None] * v[:, of_head]).sum(0) / weights.sum())
        gammas = [1.0 if gamma is None else gamma for gamma in (block.gamma1, block.gamma2)]
        x = x + (block.proj.weight @ torch.cat(read) + block.proj.bias) * gammas[0]
        hidden = block.fc1.weight @ normed(x, block.norm2.weight, block.norm2.bias, block.norm2.eps) + block.fc1.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + (block.fc2.weight @ hidden + block.fc2.bias) * gammas[1]
    return module.head.weight @ normed(x, module.norm.weight, module.norm.bias, module.norm.eps) + module.head.bias


@pytest.mark.parametrize("layer_scale", [0.5, None])
@pytest.mark.parametrize("with_norm", [False, True])
def test_it_is_what_it_says(with_norm, layer_scale):
    module, (latent, visible, masked) = decoder(layer_scale=layer_scale), latents()
    norm = torch.nn.LayerNorm(D).double() if with_norm else None
    if norm is not None:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    prediction = module(latent, visible, masked, norm)
    expected = [[one_token(module, latent[n], int(t), norm) for t in masked[n]] for n in range(2)]
    torch.testing.assert_close(prediction, torch.stack([torch.stack(row) for row in expected]), rtol=1e-10, atol=1e-12)
    prediction.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_a_prediction_does_not_depend_on_others():
    module, (latent, visible, masked) = decoder(), latents()
    everything = module(latent, visible)
    assert everything.shape == (2, JOINTS * SEGMENTS, 6)
    some = masked[:, 2::3]
    of_some = everything.gather(1, some.long()[..., None].expand(-1, -1, 6))
    torch.testing.assert_close(module(latent, visible, some), of_some, rtol=1e-12, atol=1e-12)


def config(**objective):
    tree = {
        "data": {"frames": 12},
        "model": {"dim": 16, "heads": 2, "depth": 2, "init_std": 0.1, "layer_scale": 0.1},
        "mask": {"ratio": 0.6, "tube_len": 2},
        "objective": {"decoder_depth": 1, "top_k": 2, "empty_bodies": "compute", **objective},
    }
    return Config.from_dict(tree)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            {"decoder": "cross", "placement": "published"},
            "objective.placement: published says where objective.decoder: self",
        ),
        ({"decoder": "none"}, "objective.decoder: 'none' is not one of self, cross"),
    ],
)
def test_what_cannot_be(objective, message):
    with pytest.raises(ConfigError, match=message):
        config(**objective)


def test_the_fast_presets_differ_from_the_dense_ones_in_options_alone():
    for family in ("ntu60", "nwucla"):
        dense, fast = (presets.load(name) for name in (family, f"{family}_fast"))
        assert (fast.data, fast.optim, fast.train.batch) == (dense.data, dense.optim, dense.train.batch)
        assert fast.objective.decoder == "cross"
