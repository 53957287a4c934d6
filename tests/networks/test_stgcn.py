"""ST-GCN is the published one; its dropout draws are what they are said to be."""

import pytest
import torch

from s2vfast import ops
from s2vfast.config import Config
from s2vfast.data.layout import LAYOUTS
from s2vfast.data.streams import Stream
from s2vfast.errors import ConfigError
from s2vfast.networks import build_network
from s2vfast.reference import philox

from ..skeletons import chain


def config(**model):
    tree = {"channels": [8, 8, 16, 16], "strides": [1, 2, 2, 1], "kernel": 5, "dropout": 0.0, **model}
    data = {"frames": 16, "bodies": 1}
    objective = {"name": "classify", "drop_path": 0.0}
    return Config.from_dict({"data": data, "model": {"name": "stgcn", **tree}, "objective": objective})


def network(layout="kinect_v2", **model):
    return build_network(config(**model), layout if not isinstance(layout, str) else LAYOUTS[layout])


def clips(joints=25, tracks=3):
    return torch.randn(tracks, 16, joints, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layout", ["kinect_v1", "coco17", chain(7)], ids=str)
def test_any_skeleton_has_tokens(layout):
    encoder = network(layout)
    joints = encoder.grid[1]
    encoder.eval()
    tokens = encoder(clips(joints))
    assert tokens.shape == (3, 4 * joints, 16)
    assert encoder.grid == (4, joints)
    assert encoder.segment_frames == 4
    # Tokens are segments of joints: a token sees its own frames, the kernels' reach and its joint's neighbours alone.
    changed = clips(joints)
    changed[:, 15, 0] += 1.0
    moved = (encoder(changed) - tokens).abs().amax((0, 2)).view(4, joints)
    near = moved > 1e-4 * moved.max()  # frequencies carry rounding to all frames
    assert near[3, 0]
    assert not near[0].all()
    states = encoder.hidden(clips(joints), 2)
    assert torch.equal(states[-1], tokens)
    assert states[0].shape == tokens.shape
    with pytest.raises(NotImplementedError, match="another grid"):
        encoder.hidden(clips(joints), 3)


def test_implementations_agree():
    encoder = network(channels=[32, 32, 32, 32], kernel=9).train().double()
    with ops.use_impl("reference"):
        expected = encoder(clips().double())
    torch.testing.assert_close(encoder(clips().double()), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["bone", "motion"])
def test_a_stream_is_what_it_sees(name):
    plain, seeing = network().eval(), network(stream=name).eval()
    streamed = Stream(name)(clips()[None], LAYOUTS["kinect_v2"])[0]
    assert torch.equal(seeing(clips()), plain(streamed))


@pytest.mark.parametrize(("rate", "exact"), [(0.5, 0.5), (0.25, 0.25), (0.1, 26 / 256)])
def test_dropout_is_drawn_for_each_track(rate, exact):
    encoder = network(dropout=rate).train()

    def draws(ids):
        return lambda count: philox.random_bits(1, 2, torch.tensor(ids), 34, count)

    noise = encoder.draw_noise(None, draws([5, 6, 7]))
    shapes = [(3, 8, 25, 8), (3, 4, 25, 16), (3, 4, 25, 16)]
    assert [part.shape for part in noise] == shapes
    kept = torch.cat([part.flatten() for part in noise]).double()
    assert abs(float(kept.mean()) - (1 - exact)) < 4 * (exact * (1 - exact) / len(kept)) ** 0.5
    assert sorted(kept.unique().tolist()) == [0.0, 1.0]
    alone = encoder.draw_noise(None, draws([6]))
    assert all(torch.equal(one[0], three[1]) for one, three in zip(alone, noise, strict=True))
    # Numbers of a layer, and of layers, are not one another's.
    assert not torch.equal(noise[1], noise[2])
    assert not torch.equal(noise[0][0], noise[0][1])


def test_dropout_acts_on_the_branch():
    encoder = network(dropout=0.5).eval()
    ones = [torch.ones(3, *shape, dtype=torch.uint8) for shape in [(8, 25, 8), (4, 25, 16), (4, 25, 16)]]
    doubled = network(dropout=0.5).eval()
    with torch.no_grad():
        for block in list(doubled.blocks)[1:]:
            block.norm2.weight.mul_(2.0)
            block.norm2.bias.mul_(2.0)
    torch.testing.assert_close(encoder.with_noise(clips(), ones), doubled(clips()))
    assert network().draw_noise(None, None) is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"strides": [1, 2]}, "model.strides: 2 for the 4 blocks of model.channels"),
        ({"channels": [8, 0, 8, 8]}, r"model.channels: \[8, 0, 8, 8\]; whole numbers from 1 on are expected"),
        ({"kernel": 4}, "model.kernel: 4; an odd number is expected"),
        ({"strides": [1, 3, 2, 1]}, "data.frames: 16 is no multiple of 6, the product of model.strides"),
    ],
)
def test_what_does_not_fit(model, message):
    with pytest.raises(ConfigError, match=message):
        config(**model)


def test_layers():
    encoder = network()
    assert {encoder.layer_of(name) for name, _ in encoder.named_parameters()} == {0, 1, 2, 3, 4}
    assert encoder.layer_of("blocks.3.importance") == 4
