import re

import numpy as np
import pytest
import torch

from s2vfast.config import Config
from s2vfast.data.layout import get_layout
from s2vfast.errors import ConfigError
from s2vfast.networks import build_network
from s2vfast.networks.convolutions import UNITS

LAYOUT = get_layout("kinect_v1")


def make(channels=8, streams=("joint", "bone", "motion"), **changes):
    model = {"name": "convolutions", "kernels": 12, "dim": 5, "dilations": [1, 2, 4], "streams": list(streams)}
    tree = {"data": {"frames": 16}, "model": model | {"first_channels": channels} | changes}
    return build_network(Config.from_dict(tree | {"objective": {"name": "vicreg"}}), LAYOUT)


def clips(n=3, frames=16):
    return torch.randn(n, frames, LAYOUT.num_joints, 3, generator=torch.Generator().manual_seed(0)).cumsum(1) * 0.05


def test_shapes_and_layers():
    network, x = make().eval(), clips()
    responses, embedding = network.hidden(x, 2)
    assert (responses.shape, embedding.shape) == ((3, 16, 12), (3, 1, 5))
    torch.testing.assert_close(network(x), embedding)
    assert network(clips(frames=20)).shape == (3, 1, 5), "any number of frames"
    assert network(torch.zeros_like(x)).isfinite().all(), "a body that is not there"


@pytest.mark.parametrize("dilation", [0, 2])
def test_a_kernel_is_a_sum_over_taps_of_streams_of_equal_size(dilation):
    """One response computed by hand, in the middle of a clip and at its end, where taps reach beyond it."""
    network, x = make().eval(), clips()
    bank = network.kernels[dilation]
    x = x.double().numpy()
    parents = LAYOUT.bone_parents
    bones = np.stack([x[:, :, v] - x[:, :, p] if p >= 0 else 0 * x[:, :, v] for v, p in enumerate(parents)], 2)
    motion = np.concatenate([x[:, 1:] - x[:, :-1], 0 * x[:, :1]], 1)
    columns = []
    size = np.sqrt((bones**2).mean((1, 2, 3)))[:, None, None]
    for name, stream in {"joint": x, "bone": bones, "motion": motion}.items():
        columns.append(stream.reshape(3, 16, -1) / (UNITS[name] * size))
    columns = np.concatenate(columns, 2)
    weight, bias = bank.weight.detach().double().numpy(), bank.bias.detach().double().numpy()
    (responses, _) = network.hidden(clips(), 2)
    for frame in (8, 15):
        expected = bias.copy() + np.zeros((3, 1))
        for tap in range(9):
            at = frame + (tap - 4) * bank.dilation[0]
            if 0 <= at < 16:
                expected += columns[:, at] @ weight[:, :, tap].T
        np.testing.assert_allclose(responses[:, frame, 4 * dilation : 4 * dilation + 4].detach(), expected, atol=1e-4)


def test_kernels_begin_as_rockets_do():
    for bank in make(channels=9, kernels=300).kernels:
        weight = bank.weight.detach()
        seen = (weight != 0).any(2).sum(1)
        assert (seen.min(), seen.max()) == (1, 9)
        assert 3 < seen.float().mean() < 5, "2^u channels, not evenly many"
        assert weight.sum(2).abs().max() < 1e-5
        assert bank.bias.abs().max() <= 1
    everything = make(channels=0, kernels=300).kernels[0].weight
    assert (everything != 0).any(2).sum(1).max() > 64


def test_numbers_of_a_stream_count_alike_as_training_goes_on():
    network, x = make().train(), clips(32)
    x[:, :, 3] *= 0.1  # a joint that moves little
    network(x)
    seen = []
    network.input_norm.register_forward_hook(lambda *call: seen.append(call[2]))
    network(x)
    deviation = seen[0].std((0, 2)).unflatten(0, (3, LAYOUT.num_joints, 3))
    root = LAYOUT.bone_parents.index(-1)
    assert deviation[1, root].max() == 0
    torch.testing.assert_close(deviation[0, 3], torch.ones(3), atol=0.05, rtol=0)
    assert network.input_norm.running_var.unflatten(0, (3, -1))[0, 9:12].max() < 1


def test_a_body_that_is_not_there_says_nothing():
    network, x = make().train(), clips(6)
    both = torch.cat([x, torch.zeros_like(x)])
    responses, _ = network.hidden(both, 2)
    bias = torch.cat([bank.bias for bank in network.kernels])
    torch.testing.assert_close(responses[6:], bias.expand(6, 16, -1))
    torch.testing.assert_close(network.eval().hidden(both, 2)[0][6:], bias.expand(6, 16, -1))
    point = x[:, :, :1].expand(x.shape)  # all joints at one point, which moves
    assert network.hidden(point, 2)[0].abs().max() < 1e4


def test_units_do_not_matter():
    network, x = make().eval(), clips()
    larger, millimetres = (network.hidden(unit * x, 2)[0] for unit in (100.0, 100_000.0))
    torch.testing.assert_close(larger, millimetres, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"kernels": 10}}, "model.kernels: 10 is no multiple of the 4 model.dilations"),
        ({"model": {"length": 8}}, "model.length: 8 has no middle"),
        ({"model": {"dilations": []}}, "need an entry each"),
        ({"data": {"velocity": 4.0}}, "data.velocity 0 are expected"),
        ({"train": {"batch": 1}}, "train.batch: 1 is 1 sample at a time; 2 or more are expected"),
        ({"train": {"batch": 8, "accumulate": 8}}, "train.batch: 8 is 1 sample at a time"),
        ({"objective": {"expander": [8, 0]}}, "objective.expander: [8, 0]; widths of 1"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    tree = {"model": {"name": "convolutions"}, "objective": {"name": "vicreg"}}
    tree = {name: tree.get(name, {}) | changes.get(name, {}) for name in {*tree, *changes}}
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config.from_dict(tree).check(LAYOUT)
