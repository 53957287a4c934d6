"""What holds for the training of every objective, and of a fourth that this file brings along."""

import shutil

import numpy as np
import pytest
import torch

from s2vfast import objectives
from s2vfast.data.store import Store
from s2vfast.data.synth import generate
from s2vfast.evaluate.protocols import evaluate
from s2vfast.train import checkpoint
from s2vfast.train.engine import Pretrainer
from s2vfast.train.loop import pretrain


@objectives.register("toy")
class Toy(objectives.Objective):
    """The mean place of a token; engine, optimizer, checkpoints and evaluation know nothing of it."""

    mask_kind = "random"

    @classmethod
    def predicted(cls, config):
        return 3

    def target(self, clips, masked, bodies=None, empty=None):
        s = self.masking.segment_frames
        means = clips[..., :3].unflatten(1, (-1, s)).mean(2).flatten(1, 2)  # [N, L, 3]
        means = means.repeat(masked.shape[0] // max(len(means), 1), 1, 1)
        return means.gather(1, masked.long()[..., None].expand(-1, -1, 3))


NAMES = ("toy", "skeleton2vec", "skeletonmae", "mamp")


def config_of(tiny_config, name, **train):
    config = tiny_config(**train)
    config.objective.name = name
    config.mask.ratio = 0.6
    config.validate()
    return config


@pytest.mark.parametrize("name", NAMES)
def test_trains_resumes_bitwise_and_is_evaluated(name, tiny_config, tiny_store, tmp_path):
    config = config_of(tiny_config, name)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert pretrain(config, tiny_store, whole).finished

    def stops(config, store):
        engine = Pretrainer(config, store)
        real = engine.run_step

        def run_step():
            if engine.step == 7:
                raise KeyboardInterrupt
            return real()

        engine.run_step = run_step
        return engine

    with pytest.raises(KeyboardInterrupt):
        pretrain(config, tiny_store, parted, make_engine=stops)
    assert checkpoint.load_latest(parted).step == 5
    assert pretrain(None, None, parted, resume=True).finished
    assert (parted / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    found, expected = (checkpoint.load_latest(folder).tensors for folder in (parted, whole))
    for group in expected:
        assert found[group].keys() == expected[group].keys()
        assert all(torch.equal(found[group][key], expected[group][key]) for key in expected[group])
    teachers = [key for key in expected["model"] if key.startswith("teacher.")]
    assert bool(teachers) == (name == "skeleton2vec")
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
    engine = Pretrainer(config, people)
    before = engine.model.decoder.head.weight.clone()
    losses = [engine.run_step().loss for _ in range(80)]
    assert not torch.equal(engine.model.decoder.head.weight, before)
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])


@pytest.mark.parametrize("how", ["compute", "share", "drop"])
@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_step_make_the_same_step(name, how, tiny_config, tiny_store):
    found = []
    for parts in (1, 2):
        config = config_of(tiny_config, name, accumulate=parts)
        config.objective.empty_bodies, config.mask.masks_per_clip = how, 2
        engine = Pretrainer(config, Store.open(tiny_store))
        results = [engine.run_step() for _ in range(4)]
        found.append([[r.loss, r.grad_norm, r.target_var, r.pred_var] for r in results])
    assert np.allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_operands_of_bfloat16(name, tiny_config, tiny_store):
    config = config_of(tiny_config, name, precision="bfloat16")
    config.objective.auxiliary = "motion" if name != "mamp" else "coordinates"
    engine = Pretrainer(config, Store.open(tiny_store))
    assert engine.model.decoder.auxiliary.weight.dtype == torch.bfloat16
    assert all(np.isfinite(engine.run_step().loss) for _ in range(3))


def test_only_a_teacher_can_collapse(tiny_config, tiny_store, tmp_path, capsys, fake_engine):
    for name, said in ((True, 1), (False, 0)):
        made = []

        def make(config, store, name=name, made=made):
            made.append(fake_engine(config, store, target_var=0.0))
            made[0].has_teacher = name
            return made[0]

        pretrain(tiny_config(), tiny_store, tmp_path / str(name), make_engine=make)
        assert capsys.readouterr().out.count("the teacher has collapsed") == said
    assert Pretrainer(config_of(tiny_config, "skeleton2vec"), Store.open(tiny_store)).has_teacher
    assert not Pretrainer(config_of(tiny_config, "mamp"), Store.open(tiny_store)).has_teacher
