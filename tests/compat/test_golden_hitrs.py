"""Hi-TRS against numbers of the authors' code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from s2vfast.compat import check_golden
from s2vfast.compat.hitrs import from_hitrs, to_hitrs
from s2vfast.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "data" / "golden_hitrs_small.npz"


@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_a_step_is_the_authors(impl):
    errors = check_golden(GOLDEN, impl=impl)
    for name, error in errors.items():
        assert error <= (1e-7 if name.startswith("gradients") else 1e-9), (name, error)


def test_a_changed_weight_is_seen(tmp_path):
    with np.load(GOLDEN) as file:
        golden = dict(file)
    name = "state/c_enc.layer_stack.0.slf_attn.w_qs.weight"
    golden[name] = golden[name].astype(np.float64)
    golden[name][0, 0] += 1e-6
    np.savez(tmp_path / "changed.npz", **golden)
    errors = check_golden(tmp_path / "changed.npz")
    assert errors["frames"] < 1e-12
    assert min(errors["clips"], errors["clip"], errors["video"], errors["scores"]) > 1e-9
    assert errors["gradients"] > 1e-7


def test_names_go_both_ways():
    with np.load(GOLDEN) as file:
        published = {n.removeprefix("state/"): torch.tensor(file[n]) for n in file.files if n.startswith("state/")}
    again = to_hitrs(from_hitrs(published))
    assert again.keys() == published.keys()
    assert all(torch.equal(again[name], published[name]) for name in published)
    del published["s_enc.layer_stack.0.slf_attn.w_ks.weight"]
    with pytest.raises(CheckpointError, match="w_ks.weight: missing, though"):
        from_hitrs(published)
    with pytest.raises(CheckpointError, match="s_enc.layer_stack.0.odd.weight: no parameter of the published Hi-TRS"):
        from_hitrs({"s_enc.layer_stack.0.odd.weight": torch.zeros(1)})
