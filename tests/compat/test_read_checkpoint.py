"""Published checkpoints under our names: the same numbers, whatever they lie in; nothing unmapped passes silently."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from s2vfast import compat, errors
from s2vfast.compat import read_checkpoint
from s2vfast.compat.namings import NAMINGS
from s2vfast.networks import build_network

from ..skeletons import chain
from .published import JOINTS, clips, config, mae, model, prefixed, released, state, write

GOLDEN = Path(__file__).parents[1] / "data" / "golden_mamp_small.npz"


def features(found, naming, **changes):
    encoder = build_network(config(naming, **changes), chain(JOINTS))
    encoder.load_state_dict(found.encoder)
    with torch.no_grad():
        return encoder.eval()(clips())


def original(made, naming):
    with torch.no_grad():
        return (made.teacher if naming == "skeleton2vec" else made.encoder)(clips())


WRAPPED = {
    "bare": lambda sd: sd,
    "model": lambda sd: {"model": sd, "epoch": 3},
    "state_dict": lambda sd: {"state_dict": prefixed("module.", sd), "best": 0.5},
    "teacher": lambda sd: {"teacher": prefixed("module.backbone.", sd), "args": None},
    "model_ema": lambda sd: {"model_ema": prefixed("_orig_mod.", sd)},
    "deep": lambda sd: {"state": {"model": {"sd": prefixed("module._orig_mod.net.", sd)}}},
    "inside": lambda sd: OrderedDict((k.replace("blocks.", "blocks._orig_mod."), v) for k, v in sd.items()),
}


WAYS = [(wrap, form) for wrap in WRAPPED for form in ("zip", "legacy")]
WAYS += [(wrap, "safetensors") for wrap in ("bare", "inside")]  # it has no containers


@pytest.mark.parametrize(("wrap", "form"), WAYS)
@pytest.mark.parametrize("naming", NAMINGS)
def test_the_same_features_bit_by_bit(tmp_path, naming, wrap, form):
    made = model(naming)
    content = WRAPPED[wrap](state(naming, made, teacher=naming == "skeleton2vec"))
    if form == "safetensors":
        content = prefixed("module.", content)
    found = read_checkpoint(write(tmp_path / "x.pth", content, form))
    assert (found.naming.name, found.format) == (naming, form)
    assert torch.equal(features(found, naming), original(made, naming))


def test_student_and_teacher_as_released(tmp_path):
    made = model("skeleton2vec")
    path = write(tmp_path / "x.pth", released(made))
    found = read_checkpoint(path)
    assert (found.role, found.prefix, found.heads) == ("teacher", "model.sd.ema.model.", 2)
    assert torch.equal(features(found, "skeleton2vec"), original(made, "skeleton2vec"))
    ours = made.state_dict()
    assert set(found.tensors) == {k if k.startswith("teacher.") else f"student.{k}" for k in ours}
    assert all(torch.equal(found.tensors[k if k.startswith("teacher.") else f"student.{k}"], ours[k]) for k in ours)
    why = {one.source_name: one.why for one in found.skipped}
    assert why["epoch"] == "beside the weights: 800"
    assert why["optimizer"] == "beside the weights: 1 tensor(s)"
    assert why["model.args"] == "beside the weights: settings"
    assert why["model.sd.ema.model.decoder_norm.bias"] == "a teacher has no decoder here"
    assert set(found.missing) == {"optimizer"}

    student = read_checkpoint(path, role="student")
    assert (student.role, student.prefix) == ("student", "model.sd.auto_encoder.")
    with torch.no_grad():
        assert torch.equal(features(student, "skeleton2vec"), made.encoder(clips()))
    assert not torch.equal(features(student, "skeleton2vec"), original(made, "skeleton2vec"))
    why = {one.source_name: one.why for one in student.skipped}
    assert why["model.sd.ema.model.encoder_norm.bias"] == "the student is taken"


def test_every_tensor_of_the_file_is_accounted_for(tmp_path):
    for naming, content in (("skeleton2vec", released(model("skeleton2vec"))), ("mamp", mae(model("mamp")))):
        for role in ("auto", "student"):
            found = read_checkpoint(write(tmp_path / "x.pth", content), role=role)
            mapped = [name for one in found.mapped for name in one.source_names]
            left_out = [one.source_name for one in found.skipped]
            weights = content["model"]["sd"] if naming == "skeleton2vec" else content["model"]
            prefix = "model.sd." if naming == "skeleton2vec" else "model."
            assert {prefix + name for name in weights} <= set(mapped) | set(left_out)
            assert not set(mapped) & set(left_out)
            assert len(mapped) == len(set(mapped))
            assert {one.name for one in found.mapped} == set(found.tensors)
            for one in found.mapped:
                assert one.shape == tuple(found.tensors[one.name].shape)


def test_queries_keys_and_values_stand_in_this_order(tmp_path):
    # Whatever their order in the file.
    published = OrderedDict(reversed(state("skeleton2vec", model("skeleton2vec")).items()))
    found = read_checkpoint(write(tmp_path / "x.pth", published))
    (row,) = [one for one in found.mapped if one.name == "teacher.blocks.1.qkv.weight"]
    assert row.source_names == tuple(f"encoder.layers.1.attn.{part}.weight" for part in ("queries", "keys", "values"))
    assert row.how == "queries, keys and values stacked"
    stacked = torch.cat([published[name] for name in row.source_names])
    assert torch.equal(found.tensors[row.name], stacked)


def test_mamp_beside_an_average_of_itself(tmp_path):
    trained, averaged = model("mamp"), model("mamp", seed=1)
    content = {"model": state("mamp", trained), "model_ema": state("mamp", averaged)}
    path = write(tmp_path / "x.pth", content)
    assert torch.equal(features(read_checkpoint(path), "mamp"), original(trained, "mamp"))
    found = read_checkpoint(path, role="teacher")
    assert torch.equal(features(found, "mamp"), original(averaged, "mamp"))
    assert found.prefix == "model_ema."


def test_golden_numbers_of_mamp_through_a_file(tmp_path):
    with np.load(GOLDEN) as file:
        golden = {name: file[name] for name in file.files}
    params = {k.removeprefix("param/"): torch.tensor(v) for k, v in golden.items() if k.startswith("param/")}
    found = read_checkpoint(write(tmp_path / "x.pth", {"model": prefixed("module.", params)}))
    assert (found.sizes.joints, found.sizes.decoder_depth) == (25, 1)
    ours = {name.removeprefix("student."): value for name, value in found.tensors.items()}
    assert ours.keys() == compat.from_mamp(params).keys()
    for name in [name for name in golden if name.startswith("param/")]:
        del golden[name]
    golden |= {f"param/{name}": value.numpy() for name, value in compat.to_mamp(ours).items()}
    np.savez(tmp_path / "x.npz", **golden)
    assert max(compat.check_golden(tmp_path / "x.npz", impl="torch").values()) <= 1e-6


@pytest.mark.parametrize("naming", NAMINGS)
def test_an_encoder_alone(tmp_path, naming):
    made = model(naming)
    published = state(naming, made, teacher=naming == "skeleton2vec")
    alone = {k: v for k, v in published.items() if not k.startswith(("decoder", "mask_token"))}
    found = read_checkpoint(write(tmp_path / "x.pth", alone))
    assert "student.decoder" in found.missing
    assert found.sizes.decoder_depth == 0
    assert torch.equal(features(found, naming), original(made, naming))
    asked = read_checkpoint(write(tmp_path / "x.pth", published), leave_out=["decoder*", "mask_token*"])
    assert asked.tensors.keys() == found.tensors.keys()
    assert {one.why for one in asked.skipped} == {"as asked"}


ALL = [(naming, name) for naming in NAMINGS for name in state(naming, model(naming))]


@pytest.mark.parametrize(("naming", "name"), ALL[:8] + ALL[-60::7], ids=lambda value: value)
def test_a_tensor_that_is_missing_or_of_a_wrong_shape(tmp_path, naming, name):
    published = state(naming, model(naming))
    whole = published.pop(name)
    with pytest.raises(errors.CheckpointError, match=r"x.pth: .*missing") as caught:
        read_checkpoint(write(tmp_path / "x.pth", published), naming)
    assert name in str(caught.value)
    for shape in ((*whole.shape[:-1], whole.shape[-1] + 1), (*whole.shape, 1), whole.shape[1:]):
        with pytest.raises(errors.CheckpointError, match="shape") as caught:
            read_checkpoint(write(tmp_path / "x.pth", published | {name: torch.ones(shape)}), naming)
        assert "expected" in str(caught.value)


def test_a_wrong_shape_says_what_was_expected(tmp_path):
    published = state("mamp", model("mamp"))
    published["blocks.2.mlp.fc2.weight"] = torch.ones(16, 32)
    with pytest.raises(errors.CheckpointError) as caught:
        read_checkpoint(write(tmp_path / "x.pth", {"model": published}))
    assert "model.blocks.2.mlp.fc2.weight: shape [16, 32]; [16, 64] is expected" in str(caught.value)
    published = state("skeleton2vec", model("skeleton2vec"))
    published["encoder_embedding.spatio_pos_emb"] = torch.ones(1, 8, 1, 5)
    with pytest.raises(errors.CheckpointError) as caught:
        read_checkpoint(write(tmp_path / "x.pth", published))
    assert (
        "encoder_embedding.spatio_pos_emb: shape [1, 8, 1, 5]; [1, D, 1, V] is expected, "
        "D = 16 as in encoder_embedding.projection.1.weight" in str(caught.value)
    )


def test_a_block_that_is_missing(tmp_path):
    published = {k: v for k, v in state("mamp", model("mamp")).items() if not k.startswith("blocks.1.")}
    with pytest.raises(errors.CheckpointError, match=r"blocks.1: missing; there are 2 others"):
        read_checkpoint(write(tmp_path / "x.pth", published))


def test_layer_scale_in_some_blocks_only(tmp_path):
    published = state("skeleton2vec", model("skeleton2vec"))
    for name in ("encoder.layers.0.gamma_1", "encoder.layers.0.gamma_2"):
        del published[name]
    with pytest.raises(errors.CheckpointError, match=r"encoder.layers.0.gamma_1: missing \(2 of"):
        read_checkpoint(write(tmp_path / "x.pth", published))


def test_unknown_names_are_refused_until_they_are_left_out(tmp_path):
    made = model("mamp")
    published = state("mamp", made) | {"head.weight": torch.ones(3, 16), "head.bias": torch.ones(3)}
    path = write(tmp_path / "x.pth", {"model": prefixed("module.", published)})
    with pytest.raises(errors.CheckpointError, match=r"model.module.head.weight: no param.*--leave-out 'head\.\*'"):
        read_checkpoint(path)
    found = read_checkpoint(path, leave_out=["head.*"])
    assert [(one.source_name, one.why) for one in found.skipped] == [
        ("model.module.head.weight", "as asked"),
        ("model.module.head.bias", "as asked"),
    ]
    assert torch.equal(features(found, "mamp"), original(made, "mamp"))
    with pytest.raises(errors.CheckpointError, match="nothing in it is called 'haed"):
        read_checkpoint(path, leave_out=["head.*", "haed.*"])


def test_tensors_beside_a_prefix_are_refused_too(tmp_path):
    content = prefixed("encoder_q.", state("mamp", model("mamp"))) | {"queue": torch.ones(3)}
    with pytest.raises(errors.CheckpointError, match="queue: no parameter of the published MAMP"):
        read_checkpoint(write(tmp_path / "x.pth", content))
    found = read_checkpoint(write(tmp_path / "x.pth", content), leave_out=["queue"])
    assert found.prefix == "encoder_q."


def test_which_weights_are_meant(tmp_path):
    mamp, skeleton2vec = state("mamp", model("mamp")), state("skeleton2vec", model("skeleton2vec"))
    path = write(tmp_path / "x.pth", {"a": mamp, "b": skeleton2vec})
    with pytest.raises(errors.CheckpointError, match="holds weights of skeleton2vec and of mamp; name one"):
        read_checkpoint(path)
    assert read_checkpoint(path, "mamp").prefix == "a."
    path = write(tmp_path / "x.pth", {"a": mamp})
    with pytest.raises(errors.CheckpointError, match="holds weights of mamp, not of skeleton2vec"):
        read_checkpoint(path, "skeleton2vec")
    with pytest.raises(errors.CheckpointError, match=r"no student in it, only a teacher.*give --part teacher"):
        read_checkpoint(write(tmp_path / "x.pth", {"teacher": skeleton2vec}), role="student")
    with pytest.raises(errors.CheckpointError, match=r"two networks of MAMP, at 'a.' and 'b.'; .*--leave-out 'b.\*'"):
        read_checkpoint(write(tmp_path / "x.pth", {"a": mamp, "b": OrderedDict(mamp)}))
    assert read_checkpoint(tmp_path / "x.pth", leave_out=["b.*"]).prefix == "a."
    # What has no label beside a teacher is the student.
    content = {"model": skeleton2vec, "ema": state("skeleton2vec", model("skeleton2vec", seed=1))}
    assert read_checkpoint(write(tmp_path / "x.pth", content)).prefix == "ema."
    assert read_checkpoint(write(tmp_path / "x.pth", content), role="student").prefix == "model."
    other = {"model": skeleton2vec, "ema": state("skeleton2vec", model("skeleton2vec", model__depth=4))}
    with pytest.raises(errors.CheckpointError, match="model.: a network of other sizes than ema."):
        read_checkpoint(write(tmp_path / "x.pth", other))


def test_files_without_such_weights(tmp_path):
    with pytest.raises(
        errors.CheckpointError, match=r"which have encoder_embedding.*\(Skeleton2vec\) or .*begin with fc"
    ):
        read_checkpoint(write(tmp_path / "x.pth", {"model": {"fc.weight": torch.ones(1)}}))
    with pytest.raises(errors.CheckpointError, match="it holds no tensor by name"):
        read_checkpoint(write(tmp_path / "x.pth", {"epoch": 1}))
    with pytest.raises(errors.CheckpointError, match="holds a list, not a state dict"):
        read_checkpoint(write(tmp_path / "x.pth", [torch.ones(1)]))
    with pytest.raises(errors.ConfigError, match="--from: 'data2vec' is not one of auto, skeleton2vec, mamp"):
        read_checkpoint(tmp_path / "x.pth", "data2vec")
    with pytest.raises(errors.ConfigError, match="--part: 'both' is not one of"):
        read_checkpoint(tmp_path / "x.pth", role="both")


def test_one_parameter_under_two_names(tmp_path):
    content = state("mamp", model("mamp"))
    content["module.norm.bias"] = torch.ones(16)
    with pytest.raises(errors.CheckpointError, match="norm.bias: there twice"):
        read_checkpoint(write(tmp_path / "x.pth", content))


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_published_name_has_one_target(naming):
    kind, made = NAMINGS[naming], model(naming)
    published = state(naming, made)
    targets = {name: kind.target_of(name) for name in published}
    ours = kind.from_published(published)
    assert {target[0] for target in targets.values()} == set(ours)
    assert kind.target_of("head.weight") is None
    sizes = kind.sizes(published)
    assert kind.expected(sizes) == {name: tuple(value.shape) for name, value in published.items()}
    assert (sizes.dim, sizes.channels, sizes.segment_frames, sizes.joints, sizes.segments) == (16, 3, 3, 5, 4)
    assert (sizes.hidden, sizes.depth, sizes.decoder_depth) == (64, 3, 2)
    assert sizes.layer_scale == (naming == "skeleton2vec")


def test_where_the_weights_lay_is_said_as_in_the_file(tmp_path):
    made = model("skeleton2vec")
    content = prefixed("module.auto_encoder.", state("skeleton2vec", made))
    content |= prefixed("module.ema.model.", state("skeleton2vec", made, teacher=True))
    path = write(tmp_path / "x.pth", {"sd": content})
    found = read_checkpoint(path)
    assert (found.prefix, found.student_prefix) == ("sd.module.ema.model.", "sd.module.auto_encoder.")
    assert all(
        name.startswith((found.prefix, found.student_prefix)) for one in found.mapped for name in one.source_names
    )
    del content["module.ema.model.encoder_norm.bias"]
    with pytest.raises(errors.CheckpointError, match=r"sd.module.ema.model.encoder_norm.bias: missing \(1 of"):
        read_checkpoint(write(tmp_path / "x.pth", {"sd": content}))
    assert read_checkpoint(path, role="student").student_prefix is None


def test_what_is_called_what(tmp_path):
    mamp, skeleton2vec = state("mamp", model("mamp")), state("skeleton2vec", model("skeleton2vec"))
    for content, role in (
        (mamp, "trained"),
        ({"student": mamp}, "trained"),
        ({"ema": mamp}, "teacher"),
        (skeleton2vec, "unnamed"),
        ({"student": skeleton2vec}, "student"),
        ({"teacher": skeleton2vec}, "teacher"),
    ):
        assert read_checkpoint(write(tmp_path / "x.pth", content)).role == role
