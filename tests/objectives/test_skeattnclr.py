"""What SkeAttnCLR's fields choose, and what a step keeps."""

import math

import pytest
import torch

from s2vfast.config import Config
from s2vfast.data.augment.spatial import Swap
from s2vfast.data.layout import LAYOUTS
from s2vfast.errors import ConfigError
from s2vfast.objectives import Bodies, Draw, MicroBatch, build_objective

LAYOUT = LAYOUTS["kinect_v2"]
IDS = torch.tensor([4, 9, 2, 11])


def config(model=None, train=None, **objective):
    network = {"name": "stgcn", "channels": [8, 8, 16], "strides": [1, 2, 2], "dropout": 0.0, **(model or {})}
    sizes = {"name": "skeattnclr", "queue": 12, "dim": 8, "hidden": 16, "heads": 4, **objective}
    data = {"frames": 16, "bodies": 2}
    tree = {"data": data, "model": network, "objective": sizes, "train": {"batch": 4, **(train or {})}}
    return Config.from_dict(tree)


def objective_of(**changes):
    return build_objective(config(**changes), LAYOUT).train()


def batch(objective, empty=(), epoch=0, clips=None):
    if clips is None:
        clips = torch.randn(8, 16, 25, 3, generator=torch.Generator().manual_seed(0)).cumsum(1) * 0.1
        clips[list(empty)] = 0.0
    draw = Draw(1, epoch, IDS)
    views = tuple(objective.augment(clips, view, draw) for view in range(2))
    bodies = Bodies.from_clips(views[0]) if objective.empty_bodies == "drop" else None
    return MicroBatch(views, objective.prepare(views, draw), bodies)


def test_the_mixed_view_is_a_block_of_another_sample():
    objective = objective_of()
    given = batch(objective)
    mixed = objective.mix(given.clips, given.inputs.swap).unflatten(0, (4, 2))
    changed = (mixed != given.clips.unflatten(0, (4, 2))).any(-1).any(1)  # [n, T, V]
    assert (changed == changed[0]).all()
    region = Swap((3, 4), (4, 7), 4).region(given.inputs.swap[:1], 16, LAYOUT)[0]
    assert torch.equal(changed[0], region)
    assert region.any()


def test_the_queue_goes_round_and_its_oldest_keys_go():
    objective = objective_of(queues="published")
    before = objective.queue_z.clone()
    for number in range(4):  # 4 keys a step, 12 places
        objective.step_loss(batch(objective, epoch=number))
        assert int(objective.oldest) == 4 * (number + 1) % 12
    assert not (objective.queue_z == before).all(1).any()
    assert (objective.queue_ns.norm(dim=1) - 1).abs().max() < 1e-5
    assert not hasattr(objective_of(), "queue_s")


def test_negatives_are_the_queues_that_a_field_names():
    """Keys of other kinds change a loss only where its queue is its own."""
    for queues, differs in (("published", False), ("own", True)):
        objective = objective_of(queues=queues)
        given = batch(objective)
        losses = []
        for sign in (1.0, -1.0):
            objective.queue_s.copy_(sign * torch.eye(12, 8) + 0.5)
            mixed = objective.mix(given.clips, given.inputs.swap)
            queries, keys, _ = objective.embed(given.clips, mixed, given.views[1])
            losses.append(objective.losses(queries.normalised(), keys.normalised())[0])
        assert (losses[0]["s"] != losses[1]["s"]) == differs
        assert losses[0]["ns"] == losses[1]["ns"]


def test_mu_weighs_the_parts():
    losses = {"z": torch.tensor(1.0), "s": torch.tensor(10.0), "ns": torch.tensor(100.0)}
    assert [float(objective_of(mu=mu).total(losses)) for mu in (0.5, 1.0)] == [56.0, 11.0]


@pytest.mark.parametrize("start", ["copied", "independent"])
def test_where_the_key_encoder_starts(start):
    objective = objective_of(key_start=start)
    pairs = zip(objective.encoder.parameters(), objective.key_encoder.parameters(), strict=True)
    equal = [torch.equal(one, other) for one, other in pairs if one.std() > 0]
    assert all(equal) if start == "copied" else not any(equal)
    assert torch.equal(objective.projector.fc1.weight, objective.key_projector.fc1.weight) == (start == "copied")
    assert not any(p.requires_grad for p in objective.key_encoder.parameters())


def test_whose_mask_weighs_the_key():
    weights = []
    for key_mask in ("query", "own"):
        objective = objective_of(key_mask=key_mask)
        given = batch(objective)
        still = given.clips
        _, keys, _ = objective.embed(still, objective.mix(still, given.inputs.swap), given.views[1])
        weights.append(keys)
    assert torch.equal(weights[0].z, weights[1].z)
    assert not torch.equal(weights[0].s, weights[1].s)


def test_the_average_goes_to_one_along_a_cosine():
    objective = objective_of(momentum=0.9)
    assert objective.ema_decay(0, 100) == pytest.approx(0.9)
    assert objective.ema_decay(30, 100) == pytest.approx(1 - 0.1 * (math.cos(0.3 * math.pi) + 1) / 2)
    assert 0.9999 < objective.ema_decay(99, 100) <= 1.0


def test_the_key_encoder_runs_as_in_training_whatever_the_mode_was():
    objective = objective_of()
    assert objective.key_encoder.training
    assert not objective.eval().key_encoder.training
    assert objective.train().key_encoder.training


def test_empty_bodies_that_are_dropped_change_nothing():
    """Statistics and means are those of the bodies that are there."""
    torch.manual_seed(0)
    objective = objective_of(empty_bodies="drop")
    given = batch(objective, empty=(1, 5, 7))
    mixed = objective.mix(given.clips, given.inputs.swap)
    queries, keys, mask = objective.embed(given.clips, mixed, given.views[1], bodies=given.bodies)
    assert len(mask) == 5
    tracks = given.bodies.order[:5]
    again = objective_of(empty_bodies="drop")
    tokens = again.encoder(given.clips[tracks])
    means = {int(track): row for track, row in zip(tracks, tokens.mean(1), strict=True)}
    pooled = torch.stack([torch.stack([means[t] for t in (2 * s, 2 * s + 1) if t in means]).mean(0) for s in range(4)])
    torch.testing.assert_close(queries.z, again.predictor_z(again.projector(pooled)), rtol=1e-4, atol=1e-6)
    losses, _ = objective.losses(queries.normalised(), keys.normalised())
    objective.total(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)


def test_noise_is_a_function_of_sample_epoch_and_pass():
    objective = objective_of(model={"dropout": 0.5})
    first, same, later = (batch(objective, epoch=epoch).inputs.noise for epoch in (0, 0, 1))
    assert all(
        torch.equal(a, b) for one, other in zip(first, same, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert not torch.equal(first[0][0], later[0][0])
    assert not torch.equal(first[0][0], first[1][0])
    losses = [each.step_loss(batch(each)).terms["loss_z"] for each in (objective, objective_of())]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queue": 10}, "objective.queue: 10 is no multiple of train.batch = 4"),
        ({"train": {"batch": 1}}, "train.batch: 1; 2 or more is expected, for batch norms"),
        ({"swap_parts": [4, 3]}, "objective.swap_parts: "),
        ({"swap_parts": [3, 6]}, "objective.swap_parts: .*kinect_v2 has 5 body parts"),
    ],
)
def test_what_does_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes).validate(LAYOUT)
