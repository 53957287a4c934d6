import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from s2vfast import compat, errors, ops
from s2vfast.compat import golden
from s2vfast.config import Config
from s2vfast.objectives import build_objective

from .skeletons import chain

SMALL = Path(__file__).parent / "data" / "golden_small.npz"
MAMP = SMALL.with_name("golden_mamp_small.npz")
# The large file stands beside the datasets, where it stands at all.
LARGE = Path(os.environ.get("S2VFAST_DATA", "missing")).parent / "golden" / "golden_a.npz"


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("path", [SMALL, LARGE], ids=["small", "a"])
def test_golden(path, impl):
    if not path.is_file():
        pytest.skip("golden_a.npz is not beside S2VFAST_DATA")
    found = compat.check_golden(path, impl=impl)
    assert set(found) == {
        *("loss", "mask", "visible_latent", "prediction", "target", "gradients", "teacher_after_ema"),
    }
    assert found.pop("target") <= 1e-5
    assert found.pop("mask") == 0
    for name, error in found.items():
        assert error <= 1e-6, name


def test_what_stays_visible_is_the_files_own(tmp_path):
    """Published code computes int(25 * (1 - 0.8)) = 4 visible joints a tube; a ratio alone does not tell."""
    with np.load(SMALL) as file:
        numbers = {key: file[key] for key in file.files}
    meta = json.loads(str(numbers["meta"]))
    numbers["meta"] = json.dumps(meta | {"mask_ratio": meta["mask_ratio"] - 0.08})
    np.savez(tmp_path / "other.npz", **numbers)
    assert compat.check_golden(tmp_path / "other.npz", impl="torch") == compat.check_golden(SMALL, impl="torch")


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_golden_mamp(impl):
    found = compat.check_golden(MAMP, impl=impl)
    assert set(found) == {"loss", "mask", "prediction", "gradients"}
    assert found.pop("mask") == 0
    for name, error in found.items():
        assert error <= 1e-6, name


@pytest.mark.parametrize("impl", ["triton", "torch,embed_gather=native,mask_fill=native"])
def test_golden_mamp_in_single_precision(impl):
    if "native" in impl and ops.availability("cpu")["mask_fill"]["native"]:
        pytest.skip("there is no compiled extension")
    plain = compat.check_golden(MAMP, impl="torch", dtype=torch.float32)
    found = compat.check_golden(MAMP, impl=impl, dtype=torch.float32)
    assert found["mask"] == 0
    for name, error in found.items():
        assert error <= 3 * plain[name] + 1e-6, (name, error, plain[name])


@pytest.mark.parametrize("name", ["param/blocks.1.attn.qkv.weight", "src", "uniform", "pred", "grad/decoder_pred.bias"])
def test_golden_mamp_notices_a_change(tmp_path, name):
    with np.load(MAMP) as file:
        numbers = {key: file[key] for key in file.files}
    numbers[name] = numbers[name] * 1.001 if name != "uniform" else numbers[name][:, ::-1]
    np.savez(tmp_path / "changed.npz", **numbers)
    assert max(compat.check_golden(tmp_path / "changed.npz", impl="torch").values()) > 1e-5


@pytest.mark.parametrize("path", [SMALL, MAMP], ids=["skeleton2vec", "mamp"])
def test_a_gradient_that_is_not_finite_is_no_agreement(path, monkeypatch):
    """Python's max drops a NaN that does not come first."""
    real = golden.gradient_error

    def poisoned(expected, found):
        keys = sorted(found)
        found[keys[len(keys) // 2]].view(-1)[-1] = float("nan")
        return real(expected, found)

    monkeypatch.setattr(golden, "gradient_error", poisoned)
    assert compat.check_golden(path, impl="torch")["gradients"] == float("inf")


def test_golden_mamp_compares_a_target_that_is_there(tmp_path):
    with np.load(MAMP) as file:
        golden = {key: file[key] for key in file.files}
    np.savez(tmp_path / "with.npz", **golden, target=np.ones((4, 100, 9)))
    assert compat.check_golden(tmp_path / "with.npz", impl="torch")["target"] > 0.1


def test_mamp_naming_both_ways_exactly():
    with np.load(MAMP) as file:
        published = {k.removeprefix("param/"): torch.tensor(file[k]) for k in file.files if k.startswith("param/")}
    ours = compat.from_mamp(published)
    config = Config.from_dict(
        {
            "data": {"frames": 12},
            "model": {"dim": 16, "heads": 2, "depth": 2, "layer_scale": None},
            "objective": {"decoder_depth": 1, "name": "mamp"},
        }
    )
    model = build_objective(config, chain(25))
    assert {name: value.shape for name, value in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    back = compat.to_mamp(ours)
    assert back.keys() == published.keys()
    assert all(torch.equal(back[k], published[k]) and back[k].shape == published[k].shape for k in published)


def test_mamp_names_that_are_not():
    with pytest.raises(errors.CheckpointError, match="head.weight: no parameter of the published MAMP"):
        compat.from_mamp({"head.weight": torch.zeros(1)})
    with pytest.raises(errors.CheckpointError, match="encoder.blocks.0.gamma1: no parameter of MAMP"):
        compat.to_mamp({"encoder.blocks.0.gamma1": torch.zeros(1)})


def natively() -> str:
    """The model's operations as compiled code where there is some, else as PyTorch's."""
    names = ("tube_mask", "embed_gather", "mask_fill")
    can = [name for name in names if not ops.availability("cpu")[name]["native"]]
    return ",".join(["torch", *(f"{name}=native" for name in can)])


@pytest.mark.parametrize("impl", ["triton", natively()])
def test_golden_in_single_precision(impl):
    """What a kernel adds to the error of float32 is no more than the eager model's own, three times over."""
    plain = compat.check_golden(SMALL, impl="torch", dtype=torch.float32)
    found = compat.check_golden(SMALL, impl=impl, dtype=torch.float32)
    assert found["mask"] == 0
    for name, error in found.items():
        assert error <= 3 * plain[name] + 1e-6, (name, error, plain[name])


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_golden_on_a_gpu(impl):
    found = compat.check_golden(SMALL, impl=impl, dtype=torch.float32, device="cuda")
    assert found["mask"] == 0
    assert max(found.values()) <= 1e-4


@pytest.mark.parametrize("name", ["student/encoder.layers.1.attn.values.weight", "src", "noise", "pred"])
def test_golden_notices_a_change(tmp_path, name):
    with np.load(SMALL) as file:
        golden = {key: file[key] for key in file.files}
    golden[name] = golden[name] * 1.001 if name != "noise" else golden[name][:, :, ::-1]
    np.savez(tmp_path / "changed.npz", **golden)
    assert max(compat.check_golden(tmp_path / "changed.npz", impl="torch").values()) > 1e-5


def test_golden_refuses_other_files(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"no")
    with pytest.raises(errors.DataError, match="x.npz: not a file of golden numbers"):
        compat.check_golden(tmp_path / "x.npz")


def golden_student():
    with np.load(SMALL) as file:
        meta = json.loads(str(file["meta"]))
        return {k[8:]: torch.tensor(file[k]) for k in file.files if k.startswith("student/")}, meta


def test_published_naming_both_ways_exactly():
    published, meta = golden_student()
    there = compat.from_published(published)
    back = compat.to_published(there, meta["channels"])
    assert back.keys() == published.keys()
    assert all(torch.equal(back[k], published[k]) for k in published)


def test_our_model_both_ways_exactly():
    config = Config()
    config.model.dim, config.model.heads, config.model.depth, config.objective.top_k = 16, 2, 2, 2
    config.data.velocity = 1.0
    model = build_objective(config, chain(25))
    ours = {k: v for k, v in model.state_dict().items() if not k.startswith("teacher.")}
    back = compat.from_published(compat.to_published(ours, channels=6))
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[k], ours[k]) for k in ours)


def test_encoder_alone():
    published, _ = golden_student()
    encoder = {k: v for k, v in published.items() if k.startswith("encoder")}
    assert all(k.startswith("encoder.") for k in compat.from_published(encoder))


def test_unknown_and_missing_names():
    published, _ = golden_student()
    with pytest.raises(errors.CheckpointError, match="classifier.weight"):
        compat.from_published(published | {"classifier.weight": torch.zeros(1)})
    del published["encoder.layers.0.attn.keys.bias"]
    with pytest.raises(errors.CheckpointError, match="encoder.layers.0.attn.keys.bias: missing"):
        compat.from_published(published)
    with pytest.raises(errors.CheckpointError, match="encoder.blocks.0.other"):
        compat.to_published({"encoder.blocks.0.other": torch.zeros(1)})


# The recognisers' files stand beside the large one.
FREQMIXFORMER = LARGE.with_name("golden_freqmixformer.npz")


@pytest.mark.skipif(not FREQMIXFORMER.is_file(), reason="golden_freqmixformer.npz is not beside S2VFAST_DATA")
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_golden_freqmixformer(impl, tmp_path):
    found = compat.check_golden(FREQMIXFORMER, impl=impl)
    quantities = "eval_logits train_logits loss buffers gradients trajectory_losses trajectory_logits"
    assert set(found) == set(quantities.split())
    for name, error in found.items():
        assert error <= (1e-7 if name.startswith(("gradients", "trajectory")) else 1e-9), name
    if impl == "torch":  # the comparison bites
        with np.load(FREQMIXFORMER) as file:
            numbers = {key: file[key] for key in file.files}
        name = "param/l5.spa_mixf.conv.weight"
        numbers[name] = numbers[name].astype(np.float64)
        numbers[name].flat[0] += 1e-6
        np.savez(tmp_path / "wrong.npz", **numbers)
        assert compat.check_golden(tmp_path / "wrong.npz", impl=impl)["train_logits"] > 1e-9
