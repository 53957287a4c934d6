"""Views of what several cameras saw, from the config to the step."""

import numpy as np
import pytest
import torch

from s2vfast import errors
from s2vfast.config import Config
from s2vfast.data.performances import CameraPairs
from s2vfast.data.store import Store
from s2vfast.data.synth import generate
from s2vfast.evaluate.finetune_config import FinetuneConfig, run_config
from s2vfast.objectives import build_objective
from s2vfast.train.distributed import Ranks
from s2vfast.train.feed import Feed, view_seed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("cameras") / "store", subjects=2, views=2, repetitions=1)


def config_of(**changes):
    tree = {
        "data": {"split": "xsub", "bodies": 1, "frames": 8, "camera_pairs": 1.0},
        "model": {"name": "convolutions", "kernels": 4, "dim": 4},
        "objective": {"name": "vicreg", "expander": []},
        "train": {"batch": 8, "seed": 5, "threads": 1, "device": "cpu"},
    }
    return Config.from_dict(tree | {name: tree[name] | fields for name, fields in changes.items()})


def feed_of(store, config, ranks=None):
    return Feed(config, store, build_objective(config, store.layout), CPU, ranks)


def test_the_second_view_is_of_another_camera(store):
    config = config_of()
    feed = feed_of(store, config)
    batch = feed.batch(3)
    ids, seed = torch.from_numpy(batch.sample_ids), view_seed(5, 1)
    shown = CameraPairs(store, store.select("xsub", "train"), 1.0)(ids, seed, batch.epoch)
    assert all(store.views[ids] != store.views[shown])
    assert np.array_equal(store.labels[ids], store.labels[shown])
    first, second = (torch.cat([part.views[view] for part in batch.micro_batches]) for view in range(2))
    assert torch.equal(first, feed.recordings.clips(ids, epoch=batch.epoch, seed=5))
    assert torch.equal(second, feed.recordings.clips(shown, epoch=batch.epoch, seed=seed))


def test_a_step_is_the_same_by_ranks_ahead_and_asked_for_again(store):
    config = config_of(data={"camera_pairs": 0.5, "workers": 2})
    whole = [feed_of(store, config).batch(step).micro_batches[0].views[1] for step in range(4)]
    ahead, parts = feed_of(store, config), [feed_of(store, config, Ranks(rank, 2)) for rank in range(2)]
    for step in range(1, 4):
        of_ranks = torch.cat([feed.batch(step).micro_batches[0].views[1] for feed in parts])
        assert torch.equal(whole[step], of_ranks)
        assert torch.equal(whole[step], ahead.next(step, 4).micro_batches[0].views[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "transformer"}, "objective": {"name": "mamp"}}, "objective mamp sees one view of a clip"),
        (
            {
                "model": {"name": "stgcn", "channels": [8, 8], "strides": [1, 2]},
                "objective": {"name": "skeattnclr", "empty_bodies": "drop", "queue": 8, "dim": 8, "heads": 1},
            },
            "objective.empty_bodies: drop; compute is expected with data.camera_pairs",
        ),
    ],
)
def test_objectives_that_cannot(store, changes, message):
    tree = config_of().to_dict() | changes
    if changes["objective"]["name"] == "mamp":
        tree["data"]["frames"] = 90
    with pytest.raises(errors.ConfigError, match=message):
        feed_of(store, Config.from_dict(tree))


def test_bodies_are_not_compared_across_cameras(store, monkeypatch):
    monkeypatch.setattr("s2vfast.objectives.vicreg.VICReg.views_by_body", True)
    tree = config_of().to_dict()
    tree["data"]["bodies"] = 2
    with pytest.raises(errors.ConfigError, match="compares views body by body"):
        feed_of(store, Config.from_dict(tree))


def test_a_store_that_does_not_say(tiny_store):
    with pytest.raises(errors.DataError, match="data.camera_pairs: .* does not say subject, repetition and view"):
        feed_of(Store.open(tiny_store), config_of(train={"batch": 4}))


def test_fine_tuning_has_one_view(store):
    assert run_config(config_of(), FinetuneConfig()).data.camera_pairs == 0.0
