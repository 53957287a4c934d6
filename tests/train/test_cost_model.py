"""The cost model against what the network really does, and against the figures the design was made with."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2vfast import errors, ops, presets
from s2vfast.config import Config
from s2vfast.objectives import build_objective
from s2vfast.train import cost_model

from ..skeletons import chain

# GEMM and attention GFLOP and millions of exponentials of the published NTU 60 step, 128 tracks.
PUBLISHED = {
    "teacher": (1208, 590, 4608),
    "student": (290, 13, 58),
    "decoder forward": (467, 221, 1728),
    "decoder backward": (933, 553, 1728),
    "sum": (2899, 1377, 8123),
}


def test_ntu60_is_what_the_design_says():
    dense = cost_model.step_costs(presets.load("ntu60"), joints=25, tracks=128, empty=52)["dense"]
    for part, expected in PUBLISHED.items():
        costs = (dense[part]["gemm"] / 1e9, dense[part]["attention"] / 1e9, dense[part]["exps"] / 1e6)
        assert costs == pytest.approx(expected, rel=0.02), part


def small(empty_bodies="compute", masks=1, decoder="self"):
    config = presets.load("ntu60")
    config.model.dim, config.model.heads, config.model.depth, config.objective.decoder_depth = 32, 2, 3, 2
    config.objective.top_k, config.data.frames, config.objective.empty_bodies = 3, 30, empty_bodies
    config.mask.masks_per_clip, config.objective.decoder = masks, decoder
    return config


@pytest.mark.parametrize(
    ("empty", "masks", "decoder"),
    [(0, 1, "self"), (2, 1, "self"), (0, 2, "self"), (2, 2, "self"), (0, 1, "cross"), (2, 2, "cross")],
)
def test_matrix_products_are_those_that_are_made(empty, masks, decoder):
    config = small("share", masks, decoder)
    model = build_objective(config, chain(25))
    clips = torch.randn(6, 30, 25, 3)
    clips[1 : 1 + 2 * empty : 2] = 0.0
    math = sdpa_kernel(SDPBackend.MATH)  # whose products are counted
    with FlopCounterMode(display=False) as counter, ops.use_impl("torch,attention=reference"), math:
        model(clips, seed=1, sample_ids=torch.arange(3)).loss.backward()
    counted = counter.get_flop_counts()["Global"]
    products = {str(op).rpartition(".")[2]: flops for op, flops in counted.items()}
    plan = cost_model.Plan(config, 25, tracks=6, empty=empty)
    sums = cost_model.summary(plan.lines())["sum"]
    gemm = products["mm"] + products["addmm"]
    # The gradient of the clips is not made, which the cost model counts with the embedding's backward pass.
    assert gemm == pytest.approx(sums["gemm"], rel=0.005)
    forward = sum(line.attention for line in plan.lines() if "backward" not in line.what)
    backward = sum(line.attention for line in plan.lines() if "backward" in line.what)
    # The reference keeps its scores: four products backward instead of five.
    assert products["bmm"] == pytest.approx(forward + backward * 4 / 5, rel=1e-6)


def test_parameters_are_counted():
    for name, joints in (("ntu60", 25), ("nwucla", 20), ("ntu60_fast", 25), ("nwucla_fast", 20)):
        config = presets.load(name)
        model = build_objective(config, chain(joints))
        encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder))
        assert cost_model.parameters(config, joints) == (encoder + decoder, encoder)


def test_the_fast_presets_are_cheap():
    """At most 6 GFLOP a clip of two bodies, and a fifth of the dense preset's operations."""
    for name, joints, most in (("ntu60", 25, 6.0), ("nwucla", 20, 0.034)):
        operations = []
        for preset in (f"{name}_fast", name):
            config = presets.load(preset)
            step = cost_model.step_costs(config, joints, tracks=config.data.bodies, empty=0)["step"]["sum"]
            operations.append((step["gemm"] + step["attention"]) / 1e9)
        assert operations[0] <= min(most, operations[1] / 5), name


def test_savings_add_up():
    costs = cost_model.step_costs(presets.load("ntu60"), joints=25, tracks=128, empty=52)
    total = sum(row["gemm"] + row["attention"] for row in costs["savings"].values())
    saved = sum(costs["dense"]["sum"][key] - costs["step"]["sum"][key] for key in ("gemm", "attention"))
    assert saved == pytest.approx(total, rel=1e-9)
    dense = sum(costs["dense"]["sum"][key] for key in ("gemm", "attention"))
    assert dense / (dense - saved) == pytest.approx(1.21, abs=0.01)


def test_the_command_prints_a_table_and_json(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cost_model", "--config", "ntu60"])
    cost_model.main()
    table = capsys.readouterr().out
    assert "one teacher pass for all empty bodies" in table
    monkeypatch.setattr("sys.argv", ["cost_model", "--config", "nwucla", "--joints", "20", "--json"])
    cost_model.main()
    assert json.loads(capsys.readouterr().out)["empty"] == 0


@pytest.mark.parametrize("empty", [0, 2])
def test_launches_are_those_that_are_made(empty, monkeypatch):
    """A step of the model's plan in the interpreter, counted; what differs on a GPU is put in its place."""
    if torch.cuda.is_available():
        pytest.skip("counted where kernels are interpreted")
    from s2vfast.objectives import Bodies, MicroBatch, masked
    from s2vfast.train.distributed import Ranks
    from s2vfast.train.optim import FlatAdamW
    from s2vfast.train.step import Step
    from tests.ops.launches import count

    config = small("share" if empty else "compute")
    config.data.frames = 15
    model = build_objective(config, chain(25))
    optimizer = FlatAdamW(model, operands=torch.bfloat16)
    step = Step(model, optimizer, config.optim, Ranks(), micro_batches=1)
    clips = torch.randn(4, 15, 25, 3)
    clips[1 : 1 + 2 * empty : 2] = 0.0

    def moments(x, filled):  # on a GPU
        return torch.var_mean(x.float().reshape(-1, x.shape[-1]), dim=0, correction=0)

    monkeypatch.setattr(masked, "channel_moments", moments)
    # On a CPU one copy a gradient; on a GPU lists of them.
    monkeypatch.setattr(optimizer, "collect", lambda gradients, add: None)
    with ops.use_impl("triton"):
        masks = model.draw(clips, sample_ids=torch.arange(2))
        batch = MicroBatch((clips,), masks, Bodies.from_clips(clips) if empty else None)
        step([batch])  # tables that are made once
        counted = sum(count(lambda: step([batch])).values())
    plan = cost_model.Plan(config, 25, tracks=4, empty=empty)
    made_elsewhere = cost_model.LAUNCHES["collect"] + 2  # the clips, the masks
    assert cost_model.summary(plan.lines())["sum"]["launches"] == counted + made_elsewhere


@pytest.mark.parametrize("depth", [1, 2])
def test_launches_of_a_cross_decoder_are_those_that_are_made(depth):
    if torch.cuda.is_available():
        pytest.skip("counted where kernels are interpreted")
    from tests.ops.launches import count

    config = small(decoder="cross")
    config.objective.decoder_depth = depth
    model = build_objective(config, chain(25))
    decoder, norm = model.decoder, model.encoder.final_norm
    latent = torch.randn(2, 4, 32, requires_grad=True)
    visible, masked = torch.arange(10, dtype=torch.int32).expand(2, -1).split([4, 6], dim=1)
    learns = [latent, *norm.parameters(), *decoder.parameters()]
    with ops.use_impl("triton"):
        decoder(latent, visible, masked, norm)  # tables that are made once
        forward = count(lambda: decoder(latent, visible, masked, norm))
        prediction = decoder(latent, visible, masked, norm)
        upstream = torch.randn_like(prediction)
        backward = count(lambda: torch.autograd.grad(prediction, learns, upstream))
    sums = cost_model.summary(cost_model.Plan(config, 25, tracks=2).lines())
    for part, counted in (("decoder forward", forward), ("decoder backward", backward)):
        assert sums[part]["launches"] == sum(counted.values()), counted


def test_a_step_of_ntu60_is_at_most_303_launches():
    costs = cost_model.step_costs(presets.load("ntu60"), joints=25, tracks=128, empty=52)
    assert costs["step"]["sum"]["launches"] <= 303


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("objective.name", "mamp"),
        ("objective.auxiliary", "motion"),
        ("objective.motion_loss", 0.5),
        ("mask.kind", "random"),
        ("model.layer_scale", None),
    ],
)
def test_what_is_not_counted_is_refused(path, value):
    section, field = path.split(".")
    tree = presets.read("ntu60")
    if field == "name":
        tree = presets.with_names(tree, **{section: value})
    config = Config.from_dict(presets.merge(tree, {section: {field: value}}))
    with pytest.raises(errors.ConfigError, match=f"{path}: .*: the cost model counts"):
        cost_model.step_costs(config, joints=25, tracks=128, empty=52)


def test_the_command_refuses_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cost_model", "--config", "ntu60_mamp"])
    with pytest.raises(SystemExit, match="2"):
        cost_model.main()
    assert "objective.name: mamp: the cost model counts skeleton2vec alone" in capsys.readouterr().err
