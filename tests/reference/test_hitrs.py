"""The plain step of Hi-TRS against the authors' numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from s2vfast.reference import hitrs

GOLDEN = Path(__file__).parents[1] / "data" / "golden_hitrs_small.npz"


def test_losses_and_gradients():
    with np.load(GOLDEN) as file:
        golden = {name: torch.from_numpy(file[name]) for name in file.files if name != "meta"}
        meta = json.loads(str(file["meta"]))
    batch = hitrs.Batch(
        golden["batch/masked_seq"],
        golden["batch/org_seq"],
        golden["batch/mask_seq_mask"][..., 0] > 0,
        golden["batch/slid_window"],
        golden["batch/w_pad_mask"][:, :-1] > 0,
        golden["batch/last_c"],
        golden["batch/c_motion_clip"],
        golden["batch/c_motion_valid_flg"] > 0,
        golden["batch/permute_v"],
    )
    state = {n.removeprefix("state/"): v.double().requires_grad_() for n, v in golden.items() if n.startswith("state/")}
    losses = hitrs.losses(state, batch, meta["nhead"])
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(float(golden[f"loss_{name}"]), rel=1e-12), name
    sum(losses.values()).backward()
    scale = max(float(golden[f"grad/{name}"].abs().max()) for name in state)
    for name, parameter in state.items():
        assert (parameter.grad - golden[f"grad/{name}"]).abs().max() < 1e-9 * scale, name
