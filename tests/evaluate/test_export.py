"""Exported files: PyTorch's numbers, any batch, no s2vfast, and what is written beside them."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import s2vfast.errors as errors
from s2vfast.evaluate import export as export_module
from s2vfast.evaluate import features, finetune, finetune_config, protocols
from s2vfast.evaluate.export import export
from s2vfast.train.feed import Recordings

RECIPE = finetune_config.load(changes={"epochs": 2.0, "batch": 6, "hidden": 8})
MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install s2vfast[export])"
)
TARGETS = ["torch", pytest.param("onnx", marks=needs_onnx)]

# Runs in a process that cannot import s2vfast.
ALONE = """
import io, json, sys
import numpy as np
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "s2vfast":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
to, file, clips, out = sys.argv[1:]
clips = np.load(clips)
if to == "torch":
    import torch
    extra = {"s2vfast.json": ""}
    program = torch.export.load(file, extra_files=extra)
    assert not any("s2vfast" in str(node.target) for node in program.graph.nodes)
    with torch.no_grad():
        found = [output.numpy() for output in program.module()(torch.from_numpy(clips))]
    metadata = json.loads(extra["s2vfast.json"])
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(None, {"clips": clips})
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["s2vfast"])
    assert [output.name for output in session.get_outputs()] == metadata["outputs"]
assert "s2vfast" not in sys.modules
np.savez(out, *found, metadata=json.dumps(metadata))
"""


@pytest.fixture
def tuned(run, store_path, tmp_path):
    protocols.evaluate(run[0], store_path, protocol="finetune", recipe=RECIPE, out=tmp_path / "tuned", log=print)
    return tmp_path / "tuned"


def _alone(to, file, clips, folder):
    """(outputs, metadata) of an exported file in a process without s2vfast."""
    np.save(folder / "clips.npy", clips)
    command = [sys.executable, "-c", ALONE, to, str(file), str(folder / "clips.npy"), str(folder / "found.npz")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz") as found:
        metadata = json.loads(str(found["metadata"]))
        return [found[f"arr_{i}"] for i in range(2)], metadata


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("batch", [1, 7])
def test_a_fine_tuned_run_without_s2vfast(tuned, store, tmp_path, to, batch):
    result = export(tuned, to, tmp_path / "net.bin")
    assert result["error"] <= 1e-5
    assert result["outputs"] == ["logits", "features"]
    assert result["input"] == "[batch, 2, 12, 5, 3]"
    model, config, _ = finetune.load_classifier(tuned)
    clips = Recordings(config, store, torch.device("cpu")).clips(torch.arange(batch)).unflatten(0, (-1, 2))
    (logits, pooled), metadata = _alone(to, tmp_path / "net.bin", clips.numpy(), tmp_path)
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(clips).numpy(), atol=1e-5)
        np.testing.assert_allclose(pooled, model.pool(model.encoder(clips.flatten(0, 1)), 2).numpy(), atol=1e-5)
    assert metadata["classes"] == ["wave", "nod", "kick"]
    assert metadata["layout"]["joints"] == ["hip", "neck", "head", "left", "right"]
    assert metadata["input"]["shape"] == ["batch", 2, 12, 5, 3]
    assert metadata["clip"]["frames"] == 12
    origin = metadata["finetuned_from"]
    assert (metadata["objective"], origin["objective"], origin["step"]) == ("classify", "skeleton2vec", 30)
    assert origin["pretrained_on"]["fingerprint"] == store.fingerprint
    assert any("take 12 frames" in line for line in metadata["prepare"])


@pytest.mark.parametrize("to", TARGETS)
def test_a_pretrained_encoder_without_s2vfast(run, store, tmp_path, to):
    assert export(run[0], to, tmp_path / "net.bin")["outputs"] == ["tokens", "features"]
    clips = Recordings(run[1], store, torch.device("cpu")).clips(torch.arange(3)).unflatten(0, (-1, 2))
    (tokens, pooled), metadata = _alone(to, tmp_path / "net.bin", clips.numpy(), tmp_path)
    with torch.no_grad():
        expected = run[2](clips.flatten(0, 1)).unflatten(0, (-1, 2))
    np.testing.assert_allclose(tokens, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(pooled, expected.mean(dim=(1, 2)).numpy(), atol=1e-5)
    encoder, config, _ = features.load_encoder(run[0])
    whole = features.extract(encoder, config, store, np.arange(3))  # the published pooling
    np.testing.assert_allclose(pooled, whole.numpy(), atol=1e-5)
    assert metadata["classes"] is None
    assert (metadata["step"], metadata["finetuned_from"]) == (30, None)


def test_other_numbers_are_not_written(run, tmp_path, monkeypatch):
    runner = export_module._runner

    def off(to, content):
        run, name = runner(to, content)
        return lambda clips: [output + 2e-5 * max(1.0, np.abs(output).max()) for output in run(clips)], name

    monkeypatch.setattr(export_module, "_runner", off)
    with pytest.raises(errors.S2vfastError, match=r"differs from PyTorch by 2.0e-05, 1e-05 is allowed; nothing was"):
        export(run[0], "torch", tmp_path / "net.pt2")
    assert not (tmp_path / "net.pt2").exists()


def test_files_and_choices(run, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(errors.DataError, match="exists already"):
        export(run[0], "torch", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"
    with pytest.raises(errors.ConfigError, match="to: 'tflite' is not one of onnx, torch"):
        export(run[0], "tflite", tmp_path / "net")
    with pytest.raises(errors.CheckpointError, match="no run here"):
        export(tmp_path / "nowhere", "torch", tmp_path / "net")


def test_missing_packages_are_named(run, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find("json"))
    with pytest.raises(errors.S2vfastError, match=r"--to onnx: onnxruntime is not installed; pip install onnxruntime"):
        export(run[0], "onnx", tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()
