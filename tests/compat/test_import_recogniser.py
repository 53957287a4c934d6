"""A published InfoGCN or FreqMixFormer becomes a run that names actions as the authors' class does."""

import json
from collections import OrderedDict

import pytest
import torch

from s2vfast import compat, errors, ops
from s2vfast.compat import report
from s2vfast.compat.recognisers import RECOGNISERS
from s2vfast.data.layout import get_layout
from s2vfast.data.store import Store
from s2vfast.data.synth import generate
from s2vfast.evaluate import finetune, protocols
from s2vfast.evaluate.model import Model
from s2vfast.networks import graph
from s2vfast.reference import freqmixformer, infogcn

JOINTS, BODIES = 25, 2


@pytest.fixture(scope="module")
def ntu(tmp_path_factory):
    """A store of NTU's skeleton."""
    path = tmp_path_factory.mktemp("recognisers") / "store"
    generate(path, subjects=2, views=1, repetitions=1)
    return path


def network(name, classes):
    """The authors' class with random weights and statistics, small."""
    torch.manual_seed(0)
    layout = get_layout("kinect_v2")
    mode = graph.mode(layout, 8)
    if name == "infogcn":
        made = infogcn.InfoGCN(mode, classes, bodies=BODIES, base=16)
    else:
        graphs = graph.in_out_graph(layout)
        made = freqmixformer.FreqMixFormer(mode, graphs, 64, BODIES, classes, base=40)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) * 0.2 + (0.5 if tensor.ndim == 1 else -0.1))
    return made.eval()


def saved(made, path, prefix="module."):
    """As the authors' scripts write it: a state dict of a network on several GPUs."""
    torch.save(OrderedDict((prefix + name, value.clone()) for name, value in made.state_dict().items()), path)
    return path


@pytest.mark.parametrize("name", RECOGNISERS)
def test_the_run_computes_what_the_authors_class_computes(tmp_path, ntu, name):
    classes = len(Store.open(ntu).classes)
    made = network(name, classes)
    told = compat.import_checkpoint(saved(made, tmp_path / "x.pth"), tmp_path / "run", store=ntu)
    model, config, about = finetune.load_classifier(tmp_path / "run")
    assert (config.model.name, config.data.bodies, config.model.k) == (name, BODIES, 8 if name != "infogcn" else 1)
    model.encoder.stem.mode.copy_(graph.mode(get_layout("kinect_v2"), 8))  # k is not in the weights
    clips = torch.randn(3, BODIES, 64, JOINTS, 3, dtype=torch.float64)
    with torch.no_grad(), ops.use_impl("torch"):
        expected = made.double()(clips.permute(0, 4, 2, 3, 1).contiguous())
        expected = expected if isinstance(expected, torch.Tensor) else expected.logits
        torch.testing.assert_close(model.double()(clips), expected, rtol=1e-6, atol=0)
    # Every tensor of the file is in the report, once.
    sources = [source for one in told["mapped"] for source in one["source_names"]]
    sources += [one["source_name"] for one in told["skipped"]]
    assert sorted(sources) == sorted(f"module.{key}" for key in made.state_dict())
    assert "model.k" in told["assumed"]
    assert told == json.loads((tmp_path / "run/import.json").read_text())


def test_the_run_is_evaluated_and_names_actions(tmp_path, ntu):
    store = Store.open(ntu)
    run = tmp_path / "run"
    compat.import_checkpoint(saved(network("infogcn", len(store.classes)), tmp_path / "x.pth"), run, store=ntu)
    split = next(iter(store.splits))
    result = protocols.evaluate(run, ntu, split, "classify", log=str)
    assert (result["protocol"], result["step"]) == ("classify", 0)
    assert 0 <= result["top1"] <= 100
    probabilities = Model(run).stream(window=64, step=64)
    assert probabilities is not None


def test_without_a_store_classes_are_numbers(tmp_path):
    told = compat.import_checkpoint(saved(network("infogcn", 3), tmp_path / "x.pth", ""), tmp_path / "run")
    assert told["classes"] == ["0", "1", "2"]
    assert report.text(told).startswith(str(tmp_path / "x.pth"))


def broken(tmp_path, change, name="infogcn"):
    """A file of which ``change`` alters the state."""
    state = {key: value.clone() for key, value in network(name, 3).state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "broken.pth")
    return tmp_path / "broken.pth"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("l2.agcn.bn.weight"), "l2.agcn.bn.weight: missing"),
        (lambda s: s.pop("l3.tcn.branches.1.0.bias"), "l3.tcn.branches.1.0.bias: missing"),
        (lambda s: s.update({"l4.unknown": torch.ones(1)}), "l4.unknown: no parameter"),
        (lambda s: s.update({"fc.weight": torch.ones(64, 63)}), r"fc.weight: shape \[64, 63\]"),
        (lambda s: s.update({"data_bn.weight": torch.ones(7)}), r"data_bn.weight: shape \[7\]"),
        (lambda s: s["decoder.bias"].fill_(torch.nan), "decoder.bias: holds numbers that are not finite"),
        (lambda s: s.update({"l1.tcn.branches.0.1.weight": torch.ones(2, 2)}), "l1.tcn|of several shapes"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path, change, said):
    with pytest.raises(errors.CheckpointError, match=said) as caught:
        compat.import_checkpoint(broken(tmp_path, change), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_together_is_refused(tmp_path, ntu):
    path = saved(network("infogcn", 3), tmp_path / "x.pth")
    with pytest.raises(errors.CheckpointError, match="its classifier has 3 classes; the store"):
        compat.import_checkpoint(path, tmp_path / "run", store=ntu)
    with pytest.raises(errors.ConfigError, match="model.base: 64 in --config ntu60_infogcn; 16 by the weights"):
        compat.import_checkpoint(path, tmp_path / "run", config="ntu60_infogcn")
    with pytest.raises(errors.ConfigError, match="--heads: .* is of InfoGCN"):
        compat.import_checkpoint(path, tmp_path / "run", heads=3)
    with pytest.raises(errors.CheckpointError, match="holds weights of InfoGCN with its classifier"):
        compat.read_checkpoint(path)
    with pytest.raises(errors.CheckpointError, match="holds weights of infogcn, not of freqmixformer"):
        compat.import_checkpoint(path, tmp_path / "run", "freqmixformer")
