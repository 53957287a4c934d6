"""What holds for the training of every objective, and of a fourth that this file brings along."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from s2vfast import presets
from s2vfast.config import Config
from s2vfast.config.registry import OBJECTIVES
from s2vfast.data.store import Store
from s2vfast.data.synth import generate
from s2vfast.errors import ConfigError
from s2vfast.evaluate.protocols import evaluate
from s2vfast.objectives.masked import MaskedObjective
from s2vfast.train import checkpoint
from s2vfast.train.loop import train
from s2vfast.train.trainer import Trainer


class Toy(MaskedObjective):
    """The mean position of a token; trainer, optimizer, checkpoints and evaluation know nothing of it."""

    mask_kind = "random"

    @classmethod
    def target_dim(cls, config):
        return 3

    def target(self, clips, masked, bodies=None, empty=None):
        s = self.sampler.segment_frames
        means = clips[..., :3].unflatten(1, (-1, s)).mean(2).flatten(1, 2)  # [N, L, 3]
        means = means.repeat(masked.shape[0] // max(len(means), 1), 1, 1)
        return means.gather(1, masked.long()[..., None].expand(-1, -1, 3))


@pytest.fixture(scope="module", autouse=True)
def toy():
    """The fourth objective, as long as these tests run: others look at the list of names."""
    OBJECTIVES.register("toy")(Toy)
    yield
    del OBJECTIVES._classes["toy"]


CROSS = "cross"
"""Skeleton2vec with the decoder of that name, ."""
NAMES = ("toy", "skeleton2vec", "skeletonmae", "mamp", CROSS)


def config_of(tiny_config, name, **train):
    tree = presets.with_names(tiny_config(**train).to_dict(), objective="skeleton2vec" if name == CROSS else name)
    if name == CROSS:
        tree = presets.merge(tree, {"objective": {"decoder": "cross"}})
    return Config.from_dict(presets.merge(tree, {"mask": {"ratio": 0.6}}))


@pytest.mark.parametrize("name", NAMES)
def test_trains_resumes_bitwise_and_is_evaluated(name, tiny_config, tiny_store, tmp_path):
    config = config_of(tiny_config, name)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert train(config, tiny_store, whole).finished

    def stops(config, store):
        trainer = Trainer(config, store)
        real = trainer.run_step

        def run_step():
            if trainer.step == 7:
                raise KeyboardInterrupt
            return real()

        trainer.run_step = run_step
        return trainer

    with pytest.raises(KeyboardInterrupt):
        train(config, tiny_store, parted, make_trainer=stops)
    assert checkpoint.load_latest(parted).step == 5
    assert train(None, None, parted, resume=True).finished
    assert (parted / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    found, expected = (checkpoint.load_latest(folder).tensors for folder in (parted, whole))
    for group in expected:
        assert found[group].keys() == expected[group].keys()
        assert all(torch.equal(found[group][key], expected[group][key]) for key in expected[group])
    teachers = [key for key in expected["model"] if key.startswith("teacher.")]
    assert bool(teachers) == (name in ("skeleton2vec", CROSS))
    measured = evaluate(whole, tiny_store, None, "knn", device="cpu", log=lambda line: None)
    assert measured["step"] == 12
    shutil.rmtree(whole)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A store of moving people: there is something to predict."""
    return generate(tmp_path_factory.mktemp("people") / "store", subjects=2, views=1, repetitions=1)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls(name, tiny_config, people):
    config = config_of(tiny_config, name, steps=80, batch=16)
    config.data.frames, config.data.bodies = 24, 1
    config.optim.lr, config.model.init_std, config.model.dim = 0.01, 0.1, 32
    trainer = Trainer(config, people)
    before = trainer.objective.decoder.head.weight.clone()
    losses = [trainer.run_step().loss for _ in range(80)]
    assert not torch.equal(trainer.objective.decoder.head.weight, before)
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])


@pytest.mark.parametrize("how", ["compute", "share", "drop"])
@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_step_make_the_same_step(name, how, tiny_config, tiny_store):
    found = []
    for parts in (1, 2):
        config = config_of(tiny_config, name, accumulate=parts)
        config.objective.empty_bodies, config.mask.masks_per_clip = how, 2
        trainer = Trainer(config, Store.open(tiny_store))
        results = [trainer.run_step() for _ in range(4)]
        found.append([[r.loss, r.grad_norm, r.reported["target_var"], r.reported["pred_var"]] for r in results])
    assert np.allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_operands_of_bfloat16(name, tiny_config, tiny_store):
    config = config_of(tiny_config, name, precision="bfloat16")
    config.objective.auxiliary = "motion" if name != "mamp" else "coordinates"
    trainer = Trainer(config, Store.open(tiny_store))
    assert trainer.objective.decoder.auxiliary.weight.dtype == torch.bfloat16
    assert all(np.isfinite(trainer.run_step().loss) for _ in range(3))


def test_only_a_teacher_can_collapse(tiny_config, tiny_store):
    said = {
        name: Trainer(config_of(tiny_config, name), Store.open(tiny_store)).objective.warning({"target_var": 0.0})
        for name in NAMES
    }
    assert said.pop(CROSS) == said["skeleton2vec"]
    assert said.pop("skeleton2vec").startswith("the teacher has collapsed: its targets vary by 0 over tokens")
    assert set(said.values()) == {None}


def _same(objective):
    objective.decoder_average = objective.decoder


def _other(objective):
    objective.decoder_average = objective.average_of(objective.encoder)


def _frozen(objective):
    objective.decoder.mask_token.requires_grad_(False)


@pytest.mark.parametrize(
    ("declared", "change", "message"),
    [
        ({"averages": {"decoder_average": "decoder"}}, None, "averages: decoder_average is no module of its own"),
        ({"averages": {"decoder_average": "decoder"}}, _same, "averages: decoder_average is no module of its own"),
        ({"averages": {"decoder_average": "decoder"}}, _other, "decoder_average has other parameters than decoder"),
        ({"evaluated": "teacher"}, None, "evaluated: teacher is no module of its own"),
        ({"pipelines": (None, None)}, None, "pipelines: 2 for 1 views"),
        ({}, _frozen, "decoder.mask_token has no gradient; what does not learn is a buffer"),
    ],
)
def test_what_is_declared_must_be_there(declared, change, message, tiny_config, tiny_store, monkeypatch):
    build = Toy.build.__func__

    def changed(cls, *arguments):
        objective = build(cls, *arguments)
        if change is not None:
            change(objective)
        return objective

    monkeypatch.setattr(Toy, "build", classmethod(changed))
    for name, value in declared.items():
        monkeypatch.setattr(Toy, name, value)
    with pytest.raises(ConfigError, match=message):
        Trainer(config_of(tiny_config, "toy"), Store.open(tiny_store))


@pytest.mark.parametrize("terms", [("similarity",), ()])
def test_terms_are_those_that_are_declared(terms, tiny_config, tiny_store, monkeypatch):
    trainer = Trainer(config_of(tiny_config, "toy"), Store.open(tiny_store))
    forward = trainer.objective.step_loss
    found = {} if terms else {"similarity": torch.zeros(())}
    monkeypatch.setattr(trainer.step_fn, "_loss", lambda *a: replace(forward(*a), terms=found))
    monkeypatch.setattr(trainer.objective, "terms", terms)
    with pytest.raises(ConfigError, match=r"Toy.terms: (similarity|none) declared, and the loss has (similarity|none)"):
        trainer.run_step()
