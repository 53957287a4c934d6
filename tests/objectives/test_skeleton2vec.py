import dataclasses

import pytest
import torch

from s2vfast.config import Config
from s2vfast.objectives import build_objective
from s2vfast.objectives.masks import check_masks
from s2vfast.reference import philox, skeleton2vec

from ..skeletons import chain


def small_config(**changes):
    config = Config.from_dict(
        {
            "data": {"frames": 12},
            "model": {"dim": 16, "heads": 2, "depth": 3, "layer_scale": 0.1, "init_std": 0.1},
            "mask": {"tube_len": 2, "ratio": 0.8},
            "objective": {"decoder_depth": 2, "top_k": 2, "empty_bodies": "compute"},
        }
    )
    for path, value in changes.items():
        section, name = path.split("__")
        setattr(getattr(config, section), name, value)
    config.validate(chain(25))
    return config


def batch(samples=3, empty=()):
    clips = torch.randn(2 * samples, 12, 25, 3, generator=torch.Generator().manual_seed(0)).cumsum(1) * 0.1
    clips[list(empty)] = 0.0
    return clips, torch.arange(10, 10 + samples)


def run(model, clips, ids):
    model.zero_grad()
    out = model(clips, seed=3, epoch=2, sample_ids=ids)
    out.loss.backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("placement", ["token", "published"])
def test_equals_the_reference_step(placement):
    """The savings (visible embeddings, masked rows, no teacher norm) change nothing."""
    config = small_config(objective__placement=placement)
    model = build_objective(config, chain(25)).double()
    with torch.no_grad():  # a teacher that is not the student
        for p in model.teacher.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype) * 0.05)
    clips, ids = batch()
    clips = clips.double()
    out, gradients = run(model, clips, ids)
    student = {
        name: p.detach().clone().requires_grad_()
        for name, p in model.named_parameters()
        if not name.startswith("teacher.")
    }
    settings = skeleton2vec.Settings(
        heads=2,
        depth=3,
        decoder_depth=2,
        segment_frames=3,
        tube_len=2,
        keep=check_masks(config, "motion_tube", 4, chain(25)),
        motion_weight=config.mask.motion_weight,
        top_k=2,
        placement=placement,
    )
    expected = skeleton2vec.step(
        student, dict(model.teacher.state_dict()), clips, settings, seed=3, epoch=2, ids=philox.track_ids(ids, 2)
    )
    expected.loss.backward()
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-12, atol=0)
    assert gradients.keys() == student.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, student[name].grad, rtol=1e-9, atol=1e-12)


def test_placements_differ():
    clips, ids = batch()
    losses = [
        run(build_objective(small_config(objective__placement=p), chain(25)), clips, ids)[0].loss
        for p in ("token", "published")
    ]
    assert not torch.isclose(*losses, rtol=1e-6)


def test_the_decoder_gets_a_latent_at_its_own_token():
    """Changing one visible latent moves, of a one-token-at-a-time decoder, that token alone."""
    model = build_objective(small_config(), chain(25))
    clips, _ = batch()
    visible, _ = model.sampler.sample_tokens(clips, ids=torch.arange(6))
    latent = model.encoder(clips, visible).detach()
    changed = latent.clone()
    changed[0, 3] += 1.0
    with torch.no_grad():
        for block in model.decoder.blocks:
            block.gamma1.zero_()  # no attention: tokens keep to themselves
        moved = (model.decoder(changed, visible) - model.decoder(latent, visible)).abs().amax(-1)
    assert torch.nonzero(moved).tolist() == [[0, int(visible[0, 3])]]


@pytest.mark.parametrize("empty", [(), (1,), (1, 3), (1, 3, 5)])
@pytest.mark.parametrize("masks", [1, 2])
def test_sharing_empty_bodies_is_exact(empty, masks):
    clips, ids = batch(empty=empty)
    results = []
    for how in ("compute", "share"):
        config = small_config(objective__empty_bodies=how, mask__masks_per_clip=masks)
        model = build_objective(config, chain(25)).double()
        results.append(run(model, clips.double(), ids))
    (a, ga), (b, gb) = results
    torch.testing.assert_close(a.loss, b.loss, rtol=1e-12, atol=0)
    for name in ga:
        torch.testing.assert_close(ga[name], gb[name], rtol=1e-9, atol=1e-13)


def test_dropping_empty_bodies_leaves_them_out():
    clips, ids = batch(empty=(1, 5))
    model = build_objective(small_config(objective__empty_bodies="drop"), chain(25))
    dropped, _ = run(model, clips, ids)
    noise = philox.uniform(philox.random_bits(3, 2, philox.track_ids(ids, 2), philox.MASK, 50)).reshape(6, 2, 25)
    full = [0, 2, 3, 4]
    model.empty_bodies = "compute"
    kept = model(clips[full], noise=noise[full])
    torch.testing.assert_close(dropped.loss, kept.loss)


def test_several_masks_are_several_draws_of_one_teacher():
    clips, ids = batch()
    one, two = small_config(), small_config(mask__masks_per_clip=2)
    model = build_objective(two, chain(25))
    visible, _ = model.sampler.sample_tokens(clips, seed=3, epoch=2, ids=model.sampler.track_ids(ids, 6))
    assert visible.shape[0] == 12
    assert not torch.equal(visible[:6], visible[6:])
    first, _ = build_objective(one, chain(25)).sampler.sample_tokens(
        clips, seed=3, epoch=2, ids=philox.track_ids(ids, 2)
    )
    assert torch.equal(visible[:6], first)
    single = build_objective(one, chain(25))
    losses = []
    for r in range(2):
        draws = philox.random_bits(3, 2, philox.track_ids(ids, 2, mask=r), philox.MASK, 50)
        losses.append(single(clips, noise=philox.uniform(draws).reshape(6, 2, 25)).loss)
    out, _ = run(model, clips, ids)
    torch.testing.assert_close(out.loss, sum(losses) / 2)


def test_the_teacher_starts_as_the_student_and_has_no_gradient():
    model = build_objective(small_config(), chain(25))
    for mine, theirs in zip(model.teacher.parameters(), model.encoder.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
        assert not mine.requires_grad


def test_weights_are_a_function_of_the_seed():
    a, b = (build_objective(small_config(train__seed=s), chain(25)).state_dict() for s in (1, 1))
    c = build_objective(small_config(train__seed=2), chain(25)).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["encoder.embedding.weight"], c["encoder.embedding.weight"])
    assert a["encoder.blocks.0.fc1.bias"].abs().max() == 0
    assert (a["encoder.blocks.0.norm1.weight"] == 1).all()
    assert (a["encoder.blocks.0.gamma1"] == 0.1).all()


def test_config_reaches_the_objective():
    config = dataclasses.replace(small_config())
    config.objective.target_norm = "layer"
    model = build_objective(config, chain(25))
    assert (model.target_norm, model.top_k, model.sampler.keep, model.sampler.tube_len) == ("layer", 2, 5, 2)
