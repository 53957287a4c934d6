"""Shuffled clips: the numbers of permutations, where clips are cut, what is drawn, and that orders are learned."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from s2vfast.config import Config, DataConfig, TrainConfig
from s2vfast.config.registry import NETWORKS, OBJECTIVES
from s2vfast.errors import ConfigError
from s2vfast.networks.clip_encoder import ClipEncoder
from s2vfast.objectives import Draw, MicroBatch
from s2vfast.objectives.clip_order import ClipOrder, ClipOrderConfig, PairsHead, cut, permutations, span


@dataclass
class ClockConfig:
    """None of its own."""

    segment_frames: int = 2


class Clock(ClipEncoder):
    """The mean of a clip's coordinates, and some functions of it."""

    Section = ClockConfig

    def __init__(self, frames=2):
        super().__init__(frames, 2, 8)
        self.linear = nn.Linear(3, 8)

    def encode(self, clips):
        return torch.tanh(self.linear(clips.mean((1, 2))))


class Shown(nn.Module):
    """A head that gives what it is shown."""

    def forward(self, features, dropout=None):
        return features


@pytest.fixture
def clock():
    for registry in (NETWORKS, OBJECTIVES):
        registry.names()  # what is built in registers itself first
    NETWORKS.register("clock")(Clock)
    yield
    del NETWORKS._classes["clock"]


def objective(**options):
    torch.manual_seed(0)
    return ClipOrder(Clock(), ClipOrderConfig(frames=2, gap=1, hidden=16, **options))


def draw(ids, epoch=0):
    return Draw(7, epoch, torch.as_tensor(ids))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_orders_are_numbered_lexicographically(n):
    """Against the factorial number system: digit j says how many later entries are smaller."""
    table = permutations(n)
    assert table.shape == (math.factorial(n), n)
    for number, order in enumerate(table.tolist()):
        digits = [sum(later < entry for later in order[j + 1 :]) for j, entry in enumerate(order)]
        assert number == sum(digit * math.factorial(n - 1 - j) for j, digit in enumerate(digits))


def test_clips_are_cut_at_their_frames():
    options = ClipOrderConfig(clips=3, frames=2, gap=3)
    view = torch.arange(12.0).expand(2, 12)[..., None, None].expand(2, 12, 4, 3)
    assert span(options) == 12
    assert cut(view, options)[1, :, :, 0, 0].tolist() == [[0, 1], [5, 6], [10, 11]]
    assert cut(view, options, gap=0)[0, :, :, 0, 0].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_number_is_that_of_the_permutation_that_is_shown():
    model = objective()
    features = torch.randn(2, 3, 8)
    inputs = model.prepare((torch.zeros(2, 8, 1, 3),), draw([3, 4]))
    model.head = Shown()
    shown = model.logits(features, inputs.shuffled).unflatten(0, (2, 6))
    for sample, order in itertools.product(range(2), range(6)):
        permutation = list(itertools.permutations(range(3)))[inputs.orders[sample, order]]
        assert torch.equal(shown[sample, order], features[sample, list(permutation)])


def test_draws_are_a_sample_s_own():
    """Whatever the batch; every order of a tuple at most once; all orders equally often."""
    model = objective(orders=2, dropout=0.5)
    view = torch.zeros(3000, 8, 1, 3)
    inputs = model.prepare((view,), draw(range(3000)))
    alone = model.prepare((view[:1],), draw([1234]))
    assert torch.equal(alone.orders[0], inputs.orders[1234])
    assert torch.equal(alone.dropout, inputs.dropout.view(3000, 2, -1)[1234])
    assert set(inputs.dropout.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(inputs.orders, model.prepare((view,), draw(range(3000), epoch=1)).orders)
    assert (inputs.orders[:, 0] != inputs.orders[:, 1]).all()
    counts = inputs.orders.flatten().bincount(minlength=6).double()
    assert ((counts - 1000) ** 2 / 1000).sum() < 25, "chi squared of 5 degrees of freedom"
    every = objective().prepare((view,), draw(range(3000))).orders
    assert torch.equal(every.sort(1).values, torch.arange(6).expand(3000, 6)), "null: all of them"


def test_pairs_are_those_of_vcop():
    """Every two clips by one map, in the order in which they are shown; all pairs by another."""
    head, x = PairsHead(4, 3, 5).double(), torch.randn(2, 3, 4, dtype=torch.float64)
    hidden = []
    for first, second in ((0, 1), (0, 2), (1, 2)):
        pair = torch.cat([x[:, first], x[:, second]], 1)
        hidden.append((pair @ head.fc1.weight.T + head.fc1.bias).clamp(min=0))
    expected = torch.cat(hidden, 1) @ head.fc2.weight.T + head.fc2.bias
    assert torch.allclose(head(x), expected)


@pytest.mark.parametrize("options", [{}, {"head": "lstm"}, {"clips": 4, "orders": 3}, {"clips": 2}])
def test_the_order_of_what_moves_is_learned(options):
    """Points that drift along x: their place tells the time, and a right labelling can be learned to the end."""
    model = objective(**options)
    frames = span(model.options)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(60):
        ids = torch.arange(16) + 16 * step
        start = torch.randn(16, 1, 1, 1, generator=torch.Generator().manual_seed(step)) * 0.1
        view = start + 0.3 * torch.arange(frames)[:, None, None] * torch.tensor([1.0, 0.0, 0.0]) - 0.15 * frames
        view = view.expand(16, frames, 5, 3)
        loss = model.step_loss(MicroBatch((view,), model.prepare((view,), draw(ids))))
        optimizer.zero_grad()
        loss.loss.backward()
        optimizer.step()
    assert loss.terms["top1"] > 95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 9}, "data.frames: 9; 3 clips of 2 frames and gaps of 1 take 8"),
        ({"bodies": 2}, "data.bodies: 2; clip_order shuffles the clips of one track, give 1"),
        ({"velocity": 1.0}, "model.name: clock takes coordinates alone"),
        ({"orders": 7}, "objective.orders: 7; 3 clips have 6 orders"),
        ({"clip_frames": 1}, "objective.frames: 1 is less than model.segment_frames = 2"),
        ({"network": "transformer"}, "objective.name: clip_order encodes clips one by one; model.name: transformer"),
    ],
)
def test_impossible_settings_are_named(clock, changes, message):
    changes = dict(changes)
    options = ClipOrder.Section(frames=changes.pop("clip_frames", 2), gap=1, orders=changes.pop("orders", None))
    network = changes.pop("network", "clock")
    section = NETWORKS.get(network).Section(**({} if network == "clock" else {"segment_frames": 2}))
    data = replace(DataConfig(frames=8 if options.frames == 2 else 5, bodies=1), **changes)
    config = Config(data, section, None, options, train=TrainConfig(batch=2))
    with pytest.raises(ConfigError) as error:
        config.validate()
    assert message in str(error.value)


def test_stretches_of_any_clip_become_tokens():
    """Side by side where they fit, else with gaps; each by itself."""
    network, clips = Clock(), torch.randn(2, 7, 5, 3)
    tokens = network.tokens(clips)
    assert tokens.shape == (2, 3, 8)
    for number, start in enumerate((0, 2, 5)):
        assert torch.allclose(tokens[:, number], network.encode(clips[:, start : start + 2]))
    assert torch.allclose(network.tokens(clips[:, :3])[:, 0], network.encode(clips[:, :2]))
