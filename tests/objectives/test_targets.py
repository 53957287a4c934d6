"""SkeletonMAE and MAMP against plain numpy, all masking kinds with all objectives, the second head, empty bodies."""

import itertools

import numpy as np
import pytest
import torch

from s2vfast import errors, ops
from s2vfast.config import Config
from s2vfast.config.registry import OBJECTIVES
from s2vfast.objectives import build_objective
from s2vfast.objectives.targets import TARGETS, coordinates, motion, motion_weights
from s2vfast.reference import philox

from ..skeletons import chain

PARTS = {"arm": (0, 1), "other_arm": (2, 3), "trunk": (4, 5, 6)}
KINDS = ("random", "tube", "motion_tube", "motion_token", "frame_joint")
PUBLISHED = ("skeleton2vec", "skeletonmae", "mamp")
JOINTS = 7


def config_of(name, **changes):
    tree = {
        "data": {"frames": 12},
        "model": {"dim": 16, "heads": 2, "depth": 2, "layer_scale": 0.1, "init_std": 0.1},
        "mask": {"tube_len": 2, "ratio": 0.6, "frame_ratio": 0.3},
        "objective": {"decoder_depth": 1, "name": name, "empty_bodies": "compute"}
        | ({"top_k": 2} if name == "skeleton2vec" else {}),
    }
    for path, value in changes.items():
        section, field = path.split("__")
        tree[section][field] = value
    return Config.from_dict(tree)


def make(name, **changes):
    return build_objective(config_of(name, **changes), chain(JOINTS, PARTS))


def batch(empty=(), channels=3):
    clips = torch.randn(6, 12, JOINTS, channels, generator=torch.Generator().manual_seed(0)).cumsum(1) * 0.1
    clips[list(empty)] = 0.0
    return clips, torch.arange(10, 13)


def step(model, clips, ids):
    model.zero_grad()
    out = model(clips, seed=3, epoch=2, sample_ids=ids)
    out.loss.backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def predicted(model, clips, masks, head="head"):
    """What a head says of the masked tokens, by way of the encoder's own output."""
    latent = model.encoder(clips, masks.visible)
    stream = model.decoder.stream(latent, masks.visible, masks.masked)
    return model.decoder.predict(stream, getattr(model.decoder, head)).detach().numpy()


def by_token(clips, s):
    """[N, L, s * C] in numpy, token by token."""
    x = clips.numpy()
    N, T, V, C = x.shape
    tokens = [x[:, s * i : s * i + s, v].reshape(N, s * C) for i, v in itertools.product(range(T // s), range(V))]
    return np.stack(tokens, axis=1)


def numpy_loss(name, clips, masked, prediction):
    """The objective's mean squared error, written out."""
    if name == "coordinates":
        target = by_token(clips[..., :3], 3)
    else:
        x = clips[..., :3]
        moved = np.zeros(x.shape)
        moved[:, :-1] = x.numpy()[:, 1:] - x.numpy()[:, :-1]
        target = by_token(torch.from_numpy(moved), 3)
        target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
    errors_of = []
    for row, tokens in enumerate(masked.numpy()):
        for place, token in enumerate(tokens):
            errors_of.append((prediction[row, place] - target[row % len(target), token]) ** 2)
    return np.mean(errors_of)


@pytest.mark.parametrize("masks", [1, 2])
@pytest.mark.parametrize(("name", "what"), [("skeletonmae", "coordinates"), ("mamp", "motion")])
def test_the_loss_is_that_of_a_plain_computation(name, what, masks):
    clips, ids = batch()
    clips = clips.double()
    model = make(name, mask__masks_per_clip=masks).double()
    drawn = model.draw(clips, seed=3, epoch=2, sample_ids=ids)
    expected = numpy_loss(what, clips, drawn.masked, predicted(model, clips.repeat(masks, 1, 1, 1), drawn))
    out, gradients = step(model, clips, ids)
    assert float(out.loss.detach()) == pytest.approx(expected, rel=1e-6)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
    assert out.count == 6 * masks


def test_targets_by_hand():
    clips = torch.arange(8.0).square().reshape(1, 4, 2, 1).repeat(1, 1, 1, 3)  # x = (2 t + v) ** 2
    first = coordinates(clips, torch.tensor([[2]], dtype=torch.int32), 2)
    assert first.tolist() == [[[16.0] * 3 + [36.0] * 3]]  # the second segment's joint 0: t = 2, 3
    moved = motion(clips, None, 2)
    # Joint 0 moves by 4 and 12; by 20 and, in the last frame, 0. Six numbers, unbiased variance.
    for token, numbers in ((0, [4.0] * 3 + [12.0] * 3), (2, [20.0] * 3 + [0.0] * 3)):
        expected = (np.array(numbers) - np.mean(numbers)) / np.sqrt(np.var(numbers, ddof=1) + 1e-6)
        assert moved[0, token].numpy() == pytest.approx(expected, rel=1e-6)


def test_velocities_are_no_target():
    clips, ids = batch(channels=6)
    for name in ("skeletonmae", "mamp"):
        model = make(name, data__velocity=1.0)
        assert model.decoder.head.out_features == 9
        other = clips.clone()
        other[..., 3:] = torch.randn(6, 12, JOINTS, 3).cumsum(1)
        masks = model.draw(clips, seed=1, sample_ids=ids)
        assert torch.equal(model.target(clips, masks.masked), model.target(other, masks.masked))
        assert torch.equal(masks.visible, model.draw(other, seed=1, sample_ids=ids).visible)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_kind_of_mask_goes_with_every_objective(name, kind):
    clips, ids = batch()
    model = make(name, mask__kind=kind, mask__masks_per_clip=2)
    masks = model.draw(clips, seed=3, epoch=2, sample_ids=ids)
    K = model.sampler.visible(segments=4)
    assert {"random": 11, "motion_token": 11, "frame_joint": 3 * 2}.get(kind, 4 * 2) == K
    assert masks.visible.shape == (12, K)
    assert masks.masked.shape == (12, 4 * JOINTS - K)
    assert not torch.equal(masks.visible[:6], masks.visible[6:])
    one = make(name, mask__kind=kind).draw(clips, seed=3, epoch=2, sample_ids=ids)
    assert torch.equal(one.visible, masks.visible[:6])
    out, _ = step(model, clips, ids)
    assert torch.isfinite(out.loss)
    third = make(name, mask__kind=kind).draw(clips[4:], seed=3, epoch=2, sample_ids=ids[2:])
    assert torch.equal(third.visible, one.visible[4:])


def test_auto_is_what_was_published():
    kinds = {name: make(name).sampler.kind for name in PUBLISHED}
    assert kinds == {"skeleton2vec": "motion_tube", "skeletonmae": "frame_joint", "mamp": "motion_token"}
    assert make("skeleton2vec", mask__kind="tube").sampler.motion_weight == 0.0
    clips, ids = batch()
    tube = make("skeleton2vec", mask__kind="tube").draw(clips, seed=3, sample_ids=ids)
    still = make("skeleton2vec", mask__motion_weight=0.0).draw(clips, seed=3, sample_ids=ids)
    assert torch.equal(tube.visible, still.visible)


def test_body_parts_are_masked_whole():
    model = make("skeletonmae", mask__parts=2, mask__joints="segment", mask__frame_ratio=0.5)
    assert model.sampler.keep == JOINTS - 5  # the two largest parts have 5 joints
    clips, ids = batch()
    masks = model.draw(clips, seed=1, sample_ids=ids)
    seen = torch.zeros(6, 4 * JOINTS, dtype=torch.bool).scatter_(1, masks.visible.long(), True).reshape(6, 4, JOINTS)
    assert (seen.any(-1).sum(-1) == 2).all()
    hidden = torch.stack([~seen[..., list(part)].any(-1) for part in PARTS.values()], -1)
    assert (hidden.sum(-1) >= 2).all()


def test_the_numbers_of_a_mask():
    assert make("mamp", mask__ratio=0.9).sampler.keep == 2  # int(28 * (1 - 0.9))
    assert make("mamp", mask__keep=5).sampler.keep == 5
    assert make("skeletonmae", mask__frame_ratio=0.5, mask__ratio=0.5).sampler.visible(4) == 2 * 3
    ntu = Config.from_dict({"objective": {"name": "mamp"}, "data": {"frames": 120}, "model": {"segment_frames": 4}})
    assert build_objective(ntu, chain(25)).sampler.keep == 74  # the published int() of 74.99999999999999


@pytest.mark.parametrize("what", ["coordinates", "motion"])
def test_a_second_head_adds_its_loss(what):
    clips, ids = batch()
    clips = clips.double()
    plain = make("skeleton2vec").double()
    model = make("skeleton2vec", objective__auxiliary=what, objective__auxiliary_weight=0.25).double()
    shared = plain.state_dict()
    assert all(torch.equal(model.state_dict()[name], shared[name]) for name in shared), "the same start"
    masks = model.draw(clips, seed=3, epoch=2, sample_ids=ids)
    second = numpy_loss(what, clips, masks.masked, predicted(model, clips, masks, "auxiliary"))
    (alone, _), (both, gradients) = step(plain, clips, ids), step(model, clips, ids)
    assert float(both.loss.detach() - alone.loss.detach()) == pytest.approx(0.25 * second, rel=1e-6)
    assert gradients["decoder.auxiliary.weight"].abs().max() > 0
    assert torch.equal(both.moments["target_var"][0], alone.moments["target_var"][0]), (
        "variances are of the main target"
    )
    assert model.decoder.head.out_features == 16


def numpy_weights(clips, masked, mix):
    """Motion weights, token by token: a joint that is not seen in both frames does not move."""
    x = clips[..., :3].numpy()
    squares = np.zeros(x.shape)
    for n, t, v in itertools.product(range(x.shape[0]), range(x.shape[1] - 1), range(x.shape[2])):
        if x[n, t, v].any() and x[n, t + 1, v].any():
            squares[n, t, v] = (x[n, t + 1, v] - x[n, t, v]) ** 2
    energy = by_token(torch.from_numpy(squares), 3).mean(-1)
    rows = np.stack([energy[row % len(energy), tokens] for row, tokens in enumerate(masked.numpy())])
    mean = rows.mean(-1, keepdims=True)
    return np.where(mean > 0, 1 - mix + mix * rows / np.where(mean > 0, mean, 1.0), 1.0)


def test_what_moves_counts_more():
    clips, ids = batch(empty=(1,))
    clips[0, 4:6, 2] = 0.0  # a joint that is lost for two frames
    clips = clips.double()
    model = make("skeleton2vec", mask__masks_per_clip=2, objective__motion_loss=0.7).double()
    masks = model.draw(clips, seed=3, epoch=2, sample_ids=ids)
    weights = numpy_weights(clips, masks.masked, 0.7)
    token_weights = motion_weights(clips, masks.masked, 3, 0.7)
    assert token_weights.numpy() == pytest.approx(weights, rel=1e-6)
    assert token_weights.mean(-1).numpy() == pytest.approx(1.0)
    assert token_weights.min() >= 0.3
    prediction = predicted(model, clips.repeat(2, 1, 1, 1), masks)
    target = model.target(clips, masks.masked).numpy()
    expected = np.mean(weights[..., None] * (prediction - target) ** 2)
    out, _ = step(model, clips, ids)
    assert float(out.loss.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_motion_counts_in_both_heads_and_without_empty_bodies(name):
    clips, ids = batch(empty=(1, 5))
    head = {"objective__auxiliary": "coordinates" if name != "skeletonmae" else "motion"}
    weighed, same = (make(name, objective__motion_loss=mix, **head) for mix in (1.0, 0.0))
    assert not torch.equal(step(weighed, clips, ids)[0].loss, step(same, clips, ids)[0].loss)
    weighed.auxiliary_weight = 0.0
    alone, _ = step(weighed, clips, ids)
    weighed.auxiliary_weight = 1.0
    both, _ = step(weighed, clips, ids)
    masks = weighed.draw(clips, seed=3, epoch=2, sample_ids=ids)
    weights = numpy_weights(clips, masks.masked, 1.0)[..., None]
    target = TARGETS[weighed.auxiliary](clips, masks.masked, 3).numpy()
    second = np.mean(weights * (predicted(weighed, clips, masks, "auxiliary") - target) ** 2)
    assert float((both.loss - alone.loss).detach()) == pytest.approx(second, rel=1e-4)
    full = [0, 2, 3, 4]
    dropped = step(make(name, objective__motion_loss=1.0, objective__empty_bodies="drop"), clips, ids)[0]
    some = type(masks)(masks.visible[full], masks.masked[full], masks.latent_tokens[full])
    computed = make(name, objective__motion_loss=1.0)(clips[full], some)
    assert float(dropped.loss.detach()) == pytest.approx(float(computed.loss.detach()), rel=1e-5)


@pytest.mark.parametrize("name", ["skeletonmae", "mamp"])
def test_empty_bodies_without_a_teacher(name):
    clips, ids = batch(empty=(1, 5))
    computed, shared = (step(make(name, objective__empty_bodies=how), clips, ids) for how in ("compute", "share"))
    assert torch.equal(computed[0].loss, shared[0].loss)
    assert make(name, objective__empty_bodies="share").empty_bodies == "compute"
    dropped, _ = step(make(name, objective__empty_bodies="drop", objective__auxiliary="none"), clips, ids)
    assert dropped.count == 4
    full = [0, 2, 3, 4]
    model = make(name)
    masks = model.draw(clips, seed=3, epoch=2, sample_ids=ids)
    what = {"skeletonmae": "coordinates", "mamp": "motion"}[name]
    some = type(masks)(masks.visible[full], masks.masked[full], masks.visible[full])
    expected = numpy_loss(what, clips[full], some.masked, predicted(model, clips[full], some))
    assert float(dropped.loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_layer_scale_and_another_eps(name):
    clips, ids = batch()
    model = make(name, model__layer_scale=None, model__norm_eps=1e-3)
    out, gradients = step(model, clips, ids)
    assert not [name for name in gradients if "gamma" in name]
    assert model.encoder.blocks[0].norm1.eps == model.decoder.norm.eps == model.encoder.norm.eps == 1e-3
    assert torch.isfinite(out.loss)


@pytest.mark.parametrize("name", PUBLISHED)
def test_compiled_without_a_break(name):
    """What train.mode compile does, masks having been drawn."""
    clips, ids = batch()
    second = "coordinates" if name != "skeletonmae" else "motion"
    model = make(name, objective__auxiliary=second, objective__motion_loss=0.5)
    masks = model.draw(clips, seed=3, epoch=2, sample_ids=ids)
    torch._dynamo.reset()
    with ops.use_impl("torch"):
        plain = model(clips, masks).loss
        traced = torch.compile(model, fullgraph=True, backend="aot_eager")(clips, masks).loss
    torch.testing.assert_close(traced, plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective__name": "mampp"},
            "objective.name: 'mampp' is not one of classify, clip_order, hitrs, infogcn, mamp, skeattnclr",
        ),
        ({"objective__auxiliary": "motion"}, "objective.auxiliary: motion is what mamp predicts already"),
        ({"mask__keep": 28}, "mask.keep: 28 leaves 28 of 28 tokens visible; between 1 and 27 must stay"),
        ({"mask__ratio": 0.99}, "mask.ratio: 0.99 leaves 0 of 28 tokens visible"),
        ({"mask__kind": "frame_joint", "mask__ratio": 0.9}, "mask.ratio: 0.9 leaves 0 of 7 joints visible"),
        ({"mask__kind": "frame_joint", "mask__parts": 3}, "mask.parts: 3 leaves 0 of 7 joints visible"),
        ({"mask__kind": "frame_joint", "mask__parts": 4}, "mask.parts: 4, and the skeleton's layout has 3 body parts"),
        ({"mask__kind": "frame_joint", "mask__parts": 1, "mask__keep": 2}, "mask.keep: 2 and mask.parts: 1"),
        ({"mask__parts": 1}, "mask.parts: 1 is for mask.kind frame_joint, and it is motion_token"),
        ({"mask__kind": "tube", "mask__tube_len": 3}, "mask.tube_len: 3 does not divide the 4 segments"),
        ({"objective__placement": "published"}, "objective.placement: published is what the authors' code does"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    with pytest.raises(errors.ConfigError) as caught:
        make("mamp", **changes)
    assert str(caught.value).startswith(message)


def test_parts_that_share_a_joint_are_refused():
    config = config_of("skeletonmae", mask__parts=1)
    with pytest.raises(errors.ConfigError, match=r"mask.parts: joint 1 is in several body parts"):
        build_objective(config, chain(JOINTS, {"a": (0, 1), "b": (1, 2)}))
    with pytest.raises(errors.ConfigError, match="mask.parts: 1, and the .* layout has 0 body parts; list them"):
        build_objective(config, chain(JOINTS))


def test_masks_come_from_a_stream_of_their_own():
    """The draws of tubes and of tokens are not the same numbers."""
    ids = torch.arange(3)
    tubes = philox.random_bits(1, 0, ids, philox.MASK, 8)
    assert not torch.equal(tubes, philox.random_bits(1, 0, ids, philox.TOKEN_MASK, 8))


def test_what_is_registered():
    assert set(PUBLISHED) <= set(OBJECTIVES.names())
    with pytest.raises(ValueError, match=r"objective.name: mamp is the name of s2vfast\.objectives\.mamp\.MAMP"):
        OBJECTIVES.register("mamp")(OBJECTIVES.get("skeletonmae"))
