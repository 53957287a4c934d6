"""Recipes of fine-tuning: their fields, their files, and the run that they make."""

import pytest

import s2vfast.errors as errors
from s2vfast import presets
from s2vfast.config import Config
from s2vfast.config.registry import OBJECTIVES
from s2vfast.evaluate import finetune, finetune_config
from s2vfast.evaluate.finetune_config import FinetuneConfig
from s2vfast.objectives.classify import Classify


def test_configs():
    assert finetune_config.load() == FinetuneConfig()
    changed = finetune_config.load("nwucla", {"lr": 1e-3})
    assert (changed.lr, changed.hidden) == (1e-3, 256)
    assert finetune_config.from_dict(changed.to_dict()) == changed
    for changes, message in [
        ({"lrr": 1}, "finetune.lrr: no such field; did you mean finetune.lr"),
        ({"lr": "fast"}, "finetune.lr: 'fast'; a finite number"),
        ({"lr": -1.0}, "finetune.lr: -1.0; a positive number"),
        ({"lr": 1e-6}, "finetune.lr_min"),
        ({"batch": 1}, "finetune.batch: 1; 2 or more"),
        ({"batch": 2.5}, "finetune.batch: 2.5; a whole number"),
        ({"drop_path": 1.0}, r"finetune.drop_path: 1.0; a number in \[0, 1\)"),
        ({"layer_decay": 0.0}, "finetune.layer_decay"),
        ({"precision": "half"}, "finetune.precision: 'half' is not one of auto"),
        ({"milestones": [3]}, "finetune.milestones: epochs are expected where finetune.schedule is steps"),
    ]:
        with pytest.raises(errors.ConfigError, match=message):
            finetune_config.load(changes=changes)
    with pytest.raises(errors.ConfigError, match="--recipe ntu: neither a file nor one of published, nwucla"):
        finetune_config.load("ntu")


def test_recipes_and_files(tmp_path):
    for name in finetune_config.RECIPES:
        finetune_config.load(name)
    made = finetune_config.load("nwucla", {"epochs": 3.5})
    (tmp_path / "mine.yaml").write_text(finetune_config.dump(made))
    assert finetune_config.load(tmp_path / "mine.yaml") == made


@pytest.mark.parametrize("recipe", ["nwucla", "skeattnclr"])
def test_the_run_of_a_recipe(recipe):
    """Every field of a recipe is somewhere in the run's config; the network and the clips are those of the source."""
    source = Config.from_dict({"data": {"frames": 12, "split": "a"}, "mask": {"tube_len": 2}})
    options = finetune_config.load(recipe, {"seed": 5, "accumulate": 2, "checkpoint_every": 7, "keep": 4})
    made = finetune_config.run_config(source, options, sequences=20, split="b")
    made.validate()
    assert made.mask is None
    assert made.model == source.model
    assert (made.data.split, made.data.frames, made.objective.name) == ("b", 12, "classify")
    assert made.train.batch == 20  # of fewer sequences than a batch, all of them
    assert (made.checkpoint.every, made.checkpoint.keep, made.checkpoint.final) == (7, 4, "weights")
    tree = made.to_dict()
    fields = {name: value for section in ("objective", "optim", "train") for name, value in tree[section].items()}
    renamed = {"checkpoint_every", "keep", "batch", "optimizer", "frames", "sampling", "shift", "rotate"}
    assert made.optim.name == options.optimizer
    for name, value in options.to_dict().items():
        assert name in renamed or fields[name] == value, name
    assert finetune_config.run_config(source, options).train.batch == options.batch
    assert (source.data.split, source.objective.name) == ("a", "skeleton2vec")  # the source's is left alone


def test_clips_of_another_length_are_for_networks_that_take_them():
    source = Config.from_dict(presets.read("msr_order"))
    data = finetune_config.run_config(source, finetune_config.load("msr_finetune")).data
    assert (data.frames, data.sampling, data.shift) == (finetune_config.RECIPES["msr_finetune"]["frames"], "bins", 0.1)
    assert (source.data.frames, source.data.sampling) == (16, "window")
    turned = finetune_config.run_config(Config.from_dict({}), finetune_config.load("convolutions"))
    assert list(turned.data.rotate) == [0.3, 1.2, 0.3]
    with pytest.raises(errors.ConfigError, match="finetune.frames: 24; model.name: transformer takes clips of the"):
        finetune_config.run_config(Config.from_dict({}), finetune_config.load("nwucla", {"frames": 24}))


def test_a_kind_of_classify_has_classes():
    OBJECTIVES.register("kind")(type("Kind", (Classify,), {"__module__": __name__}))
    try:
        trees = {name: {"objective": {"name": name}} for name in ("kind", "classify", "mamp")}
        assert [finetune.has_classes(Config.from_dict(tree)) for tree in trees.values()] == [True, True, False]
    finally:
        del OBJECTIVES._classes["kind"]
