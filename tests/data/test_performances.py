from types import SimpleNamespace

import numpy as np
import pytest
import torch

from s2vfast import errors
from s2vfast.data.performances import CameraPairs, performances


def store(**changes):
    """Two performances that two cameras saw, one that three saw, one that camera 1 alone saw."""
    columns = {
        "labels": [0, 0, 1, 1, 0, 0, 0, 1],
        "subjects": [1, 1, 1, 1, 2, 2, 2, 2],
        "views": [1, 2, 2, 1, 3, 1, 2, 1],
        "repetitions": [1] * 8,
        "setups": [-1] * 8,
    } | changes

    class Columns(SimpleNamespace):
        def __len__(self):
            return len(self.labels)

    return Columns(path="STORE", **{name: np.array(values) for name, values in columns.items()})


def test_performances_are_what_several_cameras_saw():
    groups = performances(store(), np.arange(8), "x", "y")
    assert [sorted(np.flatnonzero(groups == group).tolist()) for group in range(4)] == [[0, 1], [4, 5, 6], [2, 3], [7]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subjects": [1, 1, 1, 1, 2, 2, 2, -1]}, "does not say subject, repetition and view"),
        ({"views": [1, 2, 2, -1, 3, 1, 2, 1]}, "does not say subject, repetition and view"),
        ({"views": [1] * 8}, "several sequences of one action, subject, repetition and view"),
        ({"repetitions": range(8)}, "no performance that two cameras saw"),
    ],
)
def test_a_store_that_does_not_say_what_cameras_saw(changes, message):
    with pytest.raises(errors.DataError, match=f"data.camera_pairs: STORE.* {message}.*; give 0"):
        CameraPairs(store(**changes), np.arange(8), 0.5)


def test_views_of_another_camera():
    ids = torch.tensor([7, 6, 5, 4, 3, 2, 1, 0])
    seen = np.array([CameraPairs(store(), ids.numpy(), 1.0)(ids, 1, epoch).numpy() for epoch in range(64)])
    assert (np.sort(seen) == np.arange(8)).all(), "no recording is shown twice"
    assert (seen[:, 0] == 7).all(), "one camera"
    assert (seen[:, 1:] != ids[1:].numpy()).all(), "each of another camera"
    assert {frozenset(seen[:, column]) for column in (1, 2, 3)} == {
        frozenset({4, 5}),
        frozenset({4, 6}),
        frozenset({5, 6}),
    }


def test_draws_are_functions_of_seed_epoch_and_performance():
    ids = torch.arange(8)
    pairs = CameraPairs(store(), ids.numpy(), 0.5)
    first = pairs(ids, 1, 3)
    assert torch.equal(pairs(ids.flip(0), 1, 3), first.flip(0))
    assert torch.equal(pairs(ids[2:5], 1, 3), first[2:5])
    fewer = CameraPairs(store(), np.array([3, 2, 0, 7]), 0.5)
    assert all(int(fewer(ids[:1], 1, epoch)) == 0 for epoch in range(64)), "the second recording may not be shown"
    many = torch.stack([pairs(ids[:2], 1, epoch) for epoch in range(2000)])
    changed = (many != ids[:2]).double().mean(0)
    assert changed[0] == changed[1] == pytest.approx(0.5, abs=0.05), "share of the performances, all of one together"
    second = torch.stack([pairs(ids[:2], 2, epoch) for epoch in range(2000)])
    assert not torch.equal(many, second), "a seed of its own"
