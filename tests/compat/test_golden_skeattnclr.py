"""SkeAttnCLR against the numbers of its authors' code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from s2vfast import compat, errors
from s2vfast.compat.golden_skeattnclr import as_clips, objective_of
from s2vfast.compat.skeattnclr import from_skeattnclr
from s2vfast.config import OptimConfig
from s2vfast.data.streams import Stream
from s2vfast.objectives.base import MicroBatch
from s2vfast.objectives.skeattnclr import Inputs
from s2vfast.train.distributed import Ranks
from s2vfast.train.optim import FlatSGD
from s2vfast.train.step import Step

SMALL = Path(__file__).parents[1] / "data" / "golden_skeattnclr_small.npz"
GRADIENTS = {"gradients", "gradients_z", "gradients_s", "gradients_ns"}


@pytest.fixture(scope="module")
def golden():
    with np.load(SMALL) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_golden(impl):
    errors_of = compat.check_golden(SMALL, impl=impl)
    names = {"swap", "graph", "mask", "neck", "pred", "feature", "after", "loss", "loss_z", "loss_s", "loss_ns"}
    assert set(errors_of) == names | GRADIENTS | {"eval_logits", "eval_feature", "eval_knn_feature"}
    for name, error in errors_of.items():
        assert error <= (1e-7 if name in GRADIENTS else 1e-9), name


@pytest.mark.parametrize(
    "name",
    [
        "state/encoder_q.backbone.st_gcn_networks.7.tcn.2.weight",
        "state/encoder_q.backbone.edge_importance.3",
        "state/encoder_q.neck.Attn.qkv.weight",
        "state/encoder_k.backbone.st_gcn_networks.0.gcn.conv.weight",
        "state/predictor_ns.mlp.3.weight",
        "state/queue_z",
        "after/encoder_k.neck.proj.mlp.1.running_var",
        "after/queue_ns",
        "grad_s/encoder_q.neck.Attn.proj.weight",
    ],
)
def test_golden_notices_a_millionth(golden, tmp_path, name):
    np.savez(tmp_path / "changed.npz", **golden | {name: golden[name] * (1 + 1e-6)})
    assert max(compat.check_golden(tmp_path / "changed.npz", impl="torch").values()) > 1e-7


def test_streams_are_the_same(golden):
    clips = as_clips(golden["xq"]).double()
    for name in ("bone", "motion"):
        streamed = Stream(name)(clips, compat.golden_skeattnclr.LAYOUT)
        np.testing.assert_allclose(streamed.numpy(), as_clips(golden[f"view/{name}"]).numpy(), atol=1e-12)


def test_the_trainers_step_is_the_published_one(golden, monkeypatch):
    """In float32: the flat optimizer, averages of statistics too, the queue."""
    meta = json.loads(str(golden["meta"]))
    state = {name.removeprefix("state/"): torch.tensor(v) for name, v in golden.items() if name.startswith("state/")}
    objective = objective_of(meta, state)
    views = [as_clips(golden[name]).flatten(0, 1) for name in ("xq", "xk", "swap/x")]
    monkeypatch.setattr(objective, "mix", lambda clips, draws: views[2].float())
    optimizer = FlatSGD(objective, decay_all=True)
    sgd = meta["sgd"]
    options = OptimConfig(name="sgd", weight_decay=sgd["weight_decay"], momentum=sgd["momentum"], clip=0.0)
    step = Step(objective, optimizer, options, Ranks(), 1)
    step.inputs.copy_(torch.tensor([1.0, sgd["lr"], meta["momentum_used"], 0.0]))
    step([MicroBatch(tuple(views[:2]), Inputs(None, (None,) * 3))])
    assert float(step.report[0]) == pytest.approx(float(golden["loss"]), rel=1e-5)
    after = {name.removeprefix("after/"): torch.tensor(v) for name, v in golden.items() if name.startswith("after/")}
    # Batch norms of two clips amplify rounding in single gradients; the whole update is held to the published one.
    before, errors, moved = from_skeattnclr(state), 0.0, 0.0
    for name, expected in from_skeattnclr(after).items():
        errors += float((objective.state_dict()[name].double() - expected.double()).square().sum())
        moved += float((expected.double() - before[name].double()).square().sum())
    assert (errors / moved) ** 0.5 < 0.02


def test_published_names():
    with pytest.raises(errors.CheckpointError, match="encoder_q.head.weight: no parameter of the published SkeAttnCLR"):
        from_skeattnclr({"encoder_q.head.weight": torch.zeros(1)})
