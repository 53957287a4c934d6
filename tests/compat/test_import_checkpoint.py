"""A published checkpoint becomes a run that every command takes like a pretrained one, or is refused in one line."""

import argparse
import json
import re

import numpy as np
import pytest
import torch
import yaml

from s2vfast import compat, errors
from s2vfast.compat import imported_run, report
from s2vfast.compat.namings import NAMINGS
from s2vfast.data.store import Store
from s2vfast.evaluate import features
from s2vfast.train import checkpoint, rundir

from .published import TREES, clips, mae, model, prefixed, released, state, write


@pytest.fixture
def cli(capfd, monkeypatch):
    """cli("words of a command") -> (exit code, standard output, lines of standard error)."""
    monkeypatch.delenv("S2VFAST_DEBUG", raising=False)

    def call(line):
        capfd.readouterr()
        from s2vfast.cli import main

        code = main(line.split())
        out, err = capfd.readouterr()
        return code, out, err.splitlines()

    return call


def yaml_file(path, naming, **changes):
    tree = {section: dict(fields) for section, fields in TREES[naming].items()}
    for name, value in changes.items():
        section, _, field = name.partition("__")
        tree.setdefault(section, {})[field] = value
    path.write_text(yaml.safe_dump(tree))
    return path


def file_of(naming, made, path, **more):
    return write(path, released(made) if naming == "skeleton2vec" else mae(made, **more))


@pytest.mark.parametrize("given", ["config", "nothing"])
@pytest.mark.parametrize("naming", NAMINGS)
def test_a_run_with_the_same_features_bit_by_bit(tmp_path, store, naming, given):
    made = model(naming)
    path = file_of(naming, made, tmp_path / "x.pth")
    config = yaml_file(tmp_path / "x.yaml", naming) if given == "config" else None
    told = compat.import_checkpoint(path, tmp_path / "run", config=config, store=store)
    encoder, config, step = features.load_encoder(tmp_path / "run")
    with torch.no_grad():
        evaluated = made.teacher if naming == "skeleton2vec" else made.encoder
        assert torch.equal(encoder(clips()), evaluated(clips()))
    assert step == 0
    # All that was taken is in the checkpoint, decoder included.
    tensors = checkpoint.load_latest(tmp_path / "run").tensors["model"]
    for name, value in made.state_dict().items():
        assert torch.equal(tensors[name if name.startswith("teacher.") else f"student.{name}"], value), name
    assert (config.model.heads, config.model.norm_eps) == (2, 1e-6 if naming == "skeleton2vec" else 1e-5)
    assert (config.data.frames, config.model.depth, config.objective.decoder_depth) == (12, 3, 2)
    assert told == json.loads((tmp_path / "run" / imported_run.REPORT).read_text())
    assert told["assumed"]["model.heads"]["from"] == "settings in the file"
    about = rundir.read(tmp_path / "run")
    assert about["store"]["fingerprint"] == Store.open(store).fingerprint
    assert about["imported"]["sha256"] == told["sha256"]


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_command_takes_the_run(tmp_path, store, cli, naming):
    made, run = model(naming), tmp_path / "run"
    path, config = file_of(naming, made, tmp_path / "x.pth"), yaml_file(tmp_path / "x.yaml", naming)
    line = f"import-checkpoint {path} --from {naming} --config {config} --data {store} --out {run}"
    code, out, err = cli(line)
    assert (code, err) == (0, [])
    assert f"next: s2vfast evaluate {run} --protocol linear" in out

    code, out, err = cli(f"evaluate {run} --protocol knn --json --device cpu")
    assert code == 0, err
    found = json.loads(out)
    assert (found["step"], found["transfer"], found["untrained"]) == (0, None, False)
    assert found["pretrained_on"]["naming"] == naming
    assert cli(f"evaluate {run} --protocol knn --device cpu")[1].startswith("imported encoder, ")
    assert f"{naming}, imported, " in cli(f"evaluate {run} --protocol knn,retrieval --device cpu")[1]

    assert cli(f"embed {run} --out {tmp_path}/f.npz --device cpu")[0] == 0
    encoder, config, _ = features.load_encoder(run)
    evaluated = made.teacher if naming == "skeleton2vec" else made.encoder
    encoder.load_state_dict(evaluated.state_dict())  # the model that the file was made of
    opened = Store.open(store)
    expected = features.extract(encoder, config, opened, np.arange(len(opened.names)))
    with np.load(tmp_path / "f.npz") as file:
        np.testing.assert_array_equal(file["features"], expected.numpy())

    code, out, err = cli(f"export {run} --to torch --out {tmp_path}/x.pt2")
    assert code == 0, err
    exported = torch.export.load(tmp_path / "x.pt2").module()
    tokens, _ = exported(clips().reshape(3, 1, 12, 5, 3).expand(3, 2, 12, 5, 3).contiguous())
    torch.testing.assert_close(tokens[:, 0], evaluated(clips()), rtol=0, atol=1e-4)

    page = tmp_path / "a.html"
    code, out, err = cli(f"view attention {run} {store} s00 --out {page}")
    assert code == 0, err
    assert "imported encoder" in page.read_text("utf-8")

    code, out, err = cli(f"pretrain --resume --out {run}")
    assert code == 1
    assert err == [
        f"s2vfast: error: {run}: holds imported weights, without an optimizer's state to go on with; evaluate or "
        f"fine-tune them, or begin a run in another folder"
    ]


def test_fine_tuning_says_what_it_was_made_from(tmp_path, store, cli):
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    path = write(tmp_path / "x.pth", mae(model("mamp")))
    assert cli(f"import-checkpoint {path} --data {store} --out {run}")[0] == 0
    line = f"evaluate {run} --protocol finetune --split halves --out {tuned} --finetune.epochs 1 --device cpu --json"
    code, out, err = cli(line)
    assert code == 0, err
    (folder,) = json.loads(out)["folders"]
    assert rundir.read(folder)["finetune"]["source"]["pretrained_on"]["file"] == str(path)


def test_without_a_store(tmp_path, store, cli):
    made = model("mamp", joints=25)
    path = write(tmp_path / "x.pth", mae(made))
    code, out, err = cli(f"import-checkpoint {path} --out {tmp_path}/run")
    assert (code, err) == (0, [])
    assert "--data STORE --protocol linear" in out
    about = rundir.read(tmp_path / "run")
    assert about["store"] == {"path": None, "fingerprint": None}
    assert about["layout"]["name"] == "kinect_v2"
    for command in (f"evaluate {tmp_path}/run", f"embed {tmp_path}/run --out {tmp_path}/x.npz"):
        code, out, err = cli(command)
        assert (code, err) == (1, [f"s2vfast: error: {tmp_path}/run: made without a store; name one with --data"])
    assert cli(f"export {tmp_path}/run --to torch --out {tmp_path}/x.pt2")[0] == 0

    # Five joints are no skeleton that is known.
    path = write(tmp_path / "x.pth", mae(model("mamp")))
    code, out, err = cli(f"import-checkpoint {path} --out {tmp_path}/other")
    assert code == 1
    assert "pos_embed: skeletons of 5 joints with 3 coordinates each" in err[0]
    assert "--layout" in err[0]
    (tmp_path / "stick.json").write_text(json.dumps(Store.open(store).layout.to_dict()))
    line = f"import-checkpoint {path} --out {tmp_path}/other --layout {tmp_path}/stick.json"
    assert cli(line)[0] == 0
    assert cli(f"evaluate {tmp_path}/other --data {store} --split halves --protocol knn --device cpu")[0] == 0


def refused(result, message, code=2):
    found, out, err = result
    assert (found, out, len(err)) == (code, "", 1), (out, err)
    assert message in err[0]


def test_every_mismatch_is_one_line(tmp_path, store, cli):
    path = file_of("skeleton2vec", model("skeleton2vec"), tmp_path / "x.pth")
    run = tmp_path / "run"
    start = f"import-checkpoint {path} --out {run} --data {store} --config {tmp_path}/x.yaml"
    for changes, message in (
        (
            {"model__dim": 32},
            "model.dim: 32 in --config {c}; 16 by encoder_embedding.projection.1.weight [16, 3, 3, 1]",
        ),
        (
            {"data__frames": 24},
            "data.frames: 24 in --config {c}; 12 by encoder_embedding.temporal_pos_emb [1, 16, 4, 1]",
        ),
        ({"model__segment_frames": 2}, "model.segment_frames: 2 in"),
        ({"model__depth": 2}, "model.depth: 2 in --config {c}; 3 by encoder.layers.2"),
        ({"objective__decoder_depth": 1}, "objective.decoder_depth: 1 in --config {c}; 2 by decoder.layers.1"),
        (
            {"model__mlp_ratio": 2.0},
            "model.mlp_ratio: 2.0 in --config {c}; 4 by encoder.layers.0.mlp.fc1.weight [64, 16]",
        ),
        ({"model__layer_scale": None}, "model.layer_scale: None in --config {c}"),
        ({"model__heads": 4}, "model.heads: 4 in --config {c}; the settings in {p} say 2"),
        ({"data__velocity": 1.0}, "data.velocity: 1.0 in --config {c} makes clips of 6 channels; 3 by"),
        ({"objective__auxiliary": "motion"}, "objective.auxiliary: motion in --config {c}; published weights"),
    ):
        config = yaml_file(tmp_path / "x.yaml", "skeleton2vec", **changes)
        refused(cli(start), message.format(c=config, p=path))
    yaml_file(tmp_path / "x.yaml", "skeleton2vec")
    refused(cli(f"{start} --heads 4"), f"--heads: 4; the settings in {path} say 2")
    refused(cli(f"{start} --heads 0"), "--heads: 0; 1 or more is expected")
    refused(cli(f"{start} --layout coco"), "--layout: the store given by --data has one")
    refused(cli(f"{start} --part decoder"), "--part")
    refused(cli(f"{start} --from mamp"), "holds weights of skeleton2vec, not of mamp", 1)
    refused(cli(f"import-checkpoint {path} --out {run} --layout coco"), "is of 5 joints; --layout coco has 17", 1)
    refused(cli(f"import-checkpoint {tmp_path}/none --out {run}"), "none: cannot be read: No such file", 1)
    refused(cli(f"import-checkpoint {path} --out {path}"), "is a file; a folder is expected", 1)
    refused(cli(f"import-checkpoint {path}"), "needed: --out")
    assert not run.exists()
    assert cli(start)[0] == 0
    refused(cli(start), "holds a run already", 1)


def test_heads_that_no_file_tells(tmp_path, store, cli):
    path = write(tmp_path / "x.pth", state("mamp", model("mamp")))
    told = compat.import_checkpoint(path, tmp_path / "a", store=store)
    assert told["assumed"]["model.heads"] == {"value": 8, "from": "preset ntu60_mamp"}
    assert "model.heads = 8, of preset ntu60_mamp" in report.text(told)
    told = compat.import_checkpoint(path, tmp_path / "b", store=store, heads=2)
    assert told["assumed"]["model.heads"] == {"value": 2, "from": "--heads"}
    refused(
        cli(f"import-checkpoint {path} --data {store} --out {tmp_path}/c --heads 3"), "model.dim: 16 is no multiple"
    )


def test_an_eps_that_is_not_the_published_one_is_said(tmp_path, store):
    path = write(tmp_path / "x.pth", mae(model("mamp")))
    config = yaml_file(tmp_path / "x.yaml", "mamp", model__norm_eps=1e-6)
    told = compat.import_checkpoint(path, tmp_path / "a", config=config, store=store)
    assert "model.norm_eps = 1e-06" in report.text(told)
    assert "the published one is 1e-05" in report.text(told)


def test_six_channels_need_a_config(tmp_path, store):
    made = model("skeleton2vec", data__velocity=2.0)
    path = write(tmp_path / "x.pth", state("skeleton2vec", made, channels=6))
    with pytest.raises(errors.ConfigError, match=r"--config: needed; .*\[16, 6, 3, 1\] of .* takes 6 channels"):
        compat.import_checkpoint(path, tmp_path / "a", store=store)
    config = yaml_file(tmp_path / "x.yaml", "skeleton2vec", data__velocity=2.0)
    compat.import_checkpoint(path, tmp_path / "a", config=config, store=store)
    encoder, _, _ = features.load_encoder(tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(encoder(clips(channels=6)), made.encoder(clips(channels=6)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_become_float32_and_it_is_said(tmp_path, store, dtype):
    weights = {name: value.to(dtype) for name, value in state("mamp", model("mamp")).items()}
    told = compat.import_checkpoint(write(tmp_path / "x.pth", weights), tmp_path / "run", store=store)
    name = str(dtype).removeprefix("torch.")
    assert told["converted"] == {name: len(weights)}
    assert f"{len(weights)} tensors were {name} and are float32 now" in report.text(told)
    assert ("(rounded)" in report.text(told)) == (dtype == torch.float64)
    encoder, _, _ = features.load_encoder(tmp_path / "run")
    expected = compat.from_mamp({name: value.float() for name, value in weights.items()})
    assert all(torch.equal(value, expected[f"encoder.{name}"]) for name, value in encoder.state_dict().items())


def test_the_report_names_every_tensor(tmp_path, store, cli):
    content = released(model("skeleton2vec"))
    content["model"]["sd"]["cls_head.weight"] = torch.ones(2)
    path = write(tmp_path / "x.pth", content)
    line = f"import-checkpoint {path} --data {store} --leave-out cls_head.* --out"
    code, out, err = cli(f"{line} {tmp_path}/a --json")
    assert (code, err) == (0, [])
    told = json.loads(out)
    named = {name for one in told["mapped"] for name in one["source_names"]}
    named |= {one["source_name"] for one in told["skipped"]}
    assert {f"model.sd.{name}" for name in content["model"]["sd"]} <= named
    assert {"model.sd.cls_head.weight", "optimizer", "epoch", "scale", "model.args", "model.name"} <= named

    code, out, err = cli(f"{line} {tmp_path}/b")
    assert (code, err) == (0, [])
    assert "the teacher is evaluated, under 'model.sd.ema.model.'" in out
    spaced = re.sub(r" +", " ", out)
    row = "encoder.layers.0-2.attn.{queries,keys,values}.weight [16, 16] teacher.blocks.0-2.qkv.weight [48, 16] queries"
    assert row in spaced
    assert "model.sd.ema.model.decoder.layers.0-1.norm1.weight [16] a teacher has no decoder here" in spaced
    assert "model.sd.cls_head.weight [2] as asked" in spaced
    # Folded as they are, the lines are as many parameters as there are.
    table = out[: out.index("parameters of the run")].splitlines()[3:-2]
    blocks = sum(int(m[2]) - int(m[1]) + 1 if (m := re.search(r"blocks\.(\d)-(\d)\.", row)) else 1 for row in table)
    assert blocks == len(told["mapped"])


def test_arguments_are_ignored_and_said(tmp_path, store):
    path = write(tmp_path / "x.pth", mae(model("mamp"), seed=np.int64(3), nested=argparse.Namespace(a=1)))
    told = compat.import_checkpoint(path, tmp_path / "run", store=store)
    assert {"source_name": "args", "shape": None, "why": "beside the weights: argparse.Namespace"} in told["skipped"]
    assert "args" in report.text(told)


def test_a_disk_that_is_full_leaves_nothing(tmp_path, store, monkeypatch):
    path = write(tmp_path / "x.pth", mae(model("mamp")))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(
        errors.TrainingError, match="run: cannot be written: No space left on device; nothing of it stays"
    ):
        compat.import_checkpoint(path, tmp_path / "run", store=store)
    assert not (tmp_path / "run").exists()


def test_a_safetensors_file_with_a_prefix(tmp_path, store):
    made = model("skeleton2vec")
    weights = prefixed("student.", state("skeleton2vec", made))
    weights |= prefixed("teacher.", state("skeleton2vec", made, teacher=True))
    told = compat.import_checkpoint(
        write(tmp_path / "x.safetensors", weights, "safetensors"), tmp_path / "run", store=store, heads=2
    )
    assert (told["format"], told["role"], told["prefix"]) == ("safetensors", "teacher", "teacher.")
    encoder, _, _ = features.load_encoder(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(encoder(clips()), made.teacher(clips()))
