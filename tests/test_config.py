"""Configs: presets, YAML, and one line that starts with the field's path for everything that is wrong."""

import pytest

from s2vfast import presets
from s2vfast.config import Config
from s2vfast.config.registry import OBJECTIVES, load_plugin
from s2vfast.data.layout import LAYOUTS
from s2vfast.data.point_layout import PointLayout
from s2vfast.errors import ConfigError
from s2vfast.objectives import build_objective
from s2vfast.objectives.masks import check_masks

from .skeletons import chain

WRONG = {
    # unknown
    "modle": ({"modle": {"dim": 8}}, "modle: no such field; did you mean model?"),
    "model.dims": ({"model": {"dims": 8}}, "model.dims: no such field; did you mean model.dim?"),
    "nothing like it": ({"qqq": {}}, "qqq: no such field; known: data, model,"),
    "a number as a name": ({"data": {7: 1}}, "data.7: no such field"),
    # of another type
    "text for a number": ({"model": {"dim": "wide"}}, "model.dim: 'wide'; a whole number is expected"),
    "fraction": ({"train": {"batch": 2.5}}, "train.batch: 2.5; a whole number is expected"),
    "bool for a number": ({"train": {"steps": True}}, "train.steps: True; a whole number or null is expected"),
    "bool for a factor": ({"data": {"velocity": True}}, "data.velocity: True; a finite number is expected"),
    "null": ({"model": {"dim": None}}, "model.dim: None; a whole number is expected"),
    "nan": ({"optim": {"lr": float("nan")}}, "optim.lr: nan; a finite number is expected"),
    "infinity": ({"train": {"epochs": float("inf")}}, "train.epochs: inf; a finite number is expected"),
    "list for a number": ({"model": {"dim": [8]}}, "model.dim: [8]; a whole number is expected"),
    "choice": ({"data": {"sampling": "bin"}}, "data.sampling: 'bin' is not one of bins, crop"),
    "list for a choice": ({"data": {"sampling": ["bins"]}}, "data.sampling: ['bins'] is not one of bins, crop"),
    "two angles": ({"data": {"rotate": [0.1, 0.2]}}, "data.rotate: (0.1, 0.2); 3 numbers are expected"),
    "an angle of text": ({"data": {"rotate": [0.1, 0.2, "x"]}}, "data.rotate: (0.1, 0.2, 'x'); 3 numbers are expected"),
    "one angle": ({"data": {"rotate": 0.3}}, "data.rotate: 0.3; 3 numbers are expected"),
    "no angles": ({"data": {"rotate": None}}, "data.rotate: None; 3 numbers are expected"),
    "text for a section": ({"data": "xsub"}, "data: a section of fields is expected, not 'xsub'"),
    "list for a section": ({"data": []}, "data: a section of fields is expected, not []"),
    # out of range
    "no batch": ({"train": {"batch": 0}}, "train.batch: 0; 1 or more is expected"),
    "negative seed": ({"train": {"seed": -1}}, "train.seed: -1; 0 or more is expected"),
    "huge seed": ({"train": {"seed": 2**63}}, "train.seed: 9223372036854775808; a number below 2**63"),
    "no rate": ({"optim": {"lr": 0}}, "optim.lr: 0; a positive number is expected"),
    "mask all": ({"mask": {"ratio": 1.0}}, "mask.ratio: 1.0; a number in (0, 1) is expected"),
    "no crop": ({"data": {"crop_min": 0.0}}, "data.crop_min: 0.0; a number in (0, 1] is expected"),
    "beta": ({"optim": {"beta2": 1.0}}, "optim.beta2: 1.0; a number in [0, 1) is expected"),
    "mask every segment": ({"mask": {"frame_ratio": 1.0}}, "mask.frame_ratio: 1.0; a number in [0, 1) is expected"),
    "no temperature": ({"mask": {"tau": 0}}, "mask.tau: 0; a positive number is expected"),
    "kind": ({"mask": {"kind": "tubes"}}, "mask.kind: 'tubes' is not one of auto, random, tube, motion_tube"),
    "a number for an objective": ({"objective": {"name": 3}}, "objective.name: 3; text is expected"),
    "ema": ({"objective": {"ema_start": 1.1}}, "objective.ema_start: 1.1; a number in [0, 1] is expected"),
    # that do not fit together
    "segments": ({"data": {"frames": 91}}, "data.frames: 91 is no multiple of model.segment_frames = 3"),
    "tubes": ({"mask": {"tube_len": 7}}, "mask.tube_len: 7 does not divide the 30 segments of a clip"),
    "tubes of another objective": (
        {"objective": {"name": "mamp"}, "mask": {"kind": "tube", "tube_len": 7}},
        "mask.tube_len: 7 does not divide the 30 segments of a clip",
    ),
    "parts of tubes": ({"mask": {"parts": 2}}, "mask.parts: 2 is for mask.kind frame_joint, and it is motion_tube"),
    "heads": ({"model": {"heads": 7}}, "model.dim: 256 is no multiple of model.heads = 7"),
    "top_k": ({"objective": {"top_k": 9}}, "objective.top_k: 9 is more than model.depth = 8"),
    "ema falls": ({"objective": {"ema_end": 0.5}}, "objective.ema_end: 0.5 is below objective.ema_start = 0.9999"),
    "rate rises": ({"optim": {"lr_min": 0.1}}, "optim.lr_min: 0.1 is above optim.lr = 0.001"),
    "milestones of a cosine": ({"optim": {"milestones": [3]}}, "optim.milestones: epochs are expected where"),
    "no milestones": ({"optim": {"schedule": "steps"}}, "optim.milestones: epochs are expected where"),
    "milestones backwards": (
        {"optim": {"schedule": "steps", "milestones": [9, 3.5]}},
        "optim.milestones: [9, 3.5]; ascending epochs above 0 are expected",
    ),
    "optimizer": ({"optim": {"name": "lars"}}, "optim.name: 'lars' is not one of adamw, sgd"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name):
    tree, message = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(tree)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_section_takes_no_attribute_but_its_fields():
    config = Config.from_dict({})
    for section, slip, near in (
        (config.model, "dimm", "dim"),
        (config.train, "step", "steps"),
        (config, "modl", "model"),
    ):
        with pytest.raises(ConfigError, match=rf"\.{slip}: no such field; did you mean \w+\.{near}\?"):
            setattr(section, slip, 3)
    config.model.dim = 512
    assert Config.from_dict(config.to_dict()).model.dim == 512


def test_plugins_of_one_file_name_are_two(tmp_path):
    registered = dict(OBJECTIVES._classes)
    code = "from s2vfast.objectives import Objective, register\n@register({0!r})\nclass {1}(Objective): pass\n"
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(code.format(folder, "Mine"))
        load_plugin(tmp_path / folder / "mine.py")
        load_plugin(tmp_path / folder / "mine.py")  # again: nothing happens
    (tmp_path / "three.py").write_text(code.format("three", "One") + code.format("three", "Two"))
    try:
        assert {"one", "two"} <= set(OBJECTIVES.names())
        with pytest.raises(ConfigError, match=r"objective.name: three is the name of .*\.One"):
            load_plugin(tmp_path / "three.py")
    finally:
        OBJECTIVES._classes.clear()
        OBJECTIVES._classes.update(registered)


def visible(tree, joints):
    config = Config.from_dict(tree)
    return check_masks(config, "motion_tube", config.network_class.segments(config), chain(joints))


def test_visible_joints_are_checked_against_the_skeleton():
    Config.from_dict({"mask": {"ratio": 0.9}}).validate(chain(25))
    with pytest.raises(ConfigError, match="mask.ratio: 0.97 leaves 0 of 25 joints visible"):
        Config.from_dict({"mask": {"ratio": 0.97}}).validate(chain(25))
    with pytest.raises(ConfigError, match="mask.keep: 25 leaves 25 of 25 joints visible"):
        Config.from_dict({"mask": {"keep": 25}}).validate(chain(25))


def test_visible_joints_do_not_suffer_from_rounding():
    assert [visible({"mask": {"ratio": 0.9}}, joints) for joints in (17, 20, 25)] == [1, 2, 2]
    assert visible({"mask": {"keep": 5}}, 25) == 5


def test_a_config_survives_dict_and_yaml():
    config = Config.from_dict({"data": {"rotate": [0.0, 0.5, 0.1]}, "mask": {"keep": 3}, "optim": {"lr_min": 1e-7}})
    assert Config.from_dict(config.to_dict()) == config
    for documented in (False, True):
        assert Config.from_dict(presets.parse(presets.dump(config, documented), "dump")) == config


def test_every_field_is_documented():
    documented = presets.documentation()
    for name in OBJECTIVES.names():
        model = {"name": {"hitrs": "hitrs", "clip_order": "sparse4d"}.get(name, "transformer")}
        tree = {"model": model, "objective": {"name": name}, "train": {"batch": 8}}
        if name == "clip_order":
            tree["data"] = {"frames": 32, "bodies": 1}  # what its clips and gaps take
        for section, fields in Config.from_dict(tree).to_dict().items():
            assert set(fields) <= set(documented[section])
    assert all(len(text) > 3 for fields in documented.values() for text, _ in fields.values())


def test_the_presets_are_these_and_good():
    families = ("ntu120", "ntu60", "nwucla", "pkummd")
    objectives = ("", "_mamp", "_skeattnclr", "_hitrs", "_skeletonmae")
    variants = [f"{family}{objective}" for family in families for objective in objectives]
    variants += ["ntu60_fast", "nwucla_fast"]
    variants += [f"{family}_{network}" for family in families[:3] for network in ("infogcn", "freqmixformer")]
    assert presets.names() == sorted(["demo", "msr_order", "nwucla_vicreg", "own", *variants])
    for name in presets.names():
        family, _, variant = name.partition("_")
        layout = {"nwucla": LAYOUTS["kinect_v1"], "msr": PointLayout()}.get(family, LAYOUTS["kinect_v2"])
        config = presets.load(name)
        config.validate(layout)
        others = {"freqmixformer": "classify", "order": "clip_order"}
        objective = {"": "skeleton2vec", "fast": "skeleton2vec", **others}.get(variant, variant)
        assert config.objective.name == objective
        build_objective(config, layout, ("one", "two"))


def test_a_preset_has_variants_for_objectives():
    assert presets.read_for("ntu60", "mamp") == presets.read("ntu60_mamp")
    assert presets.read_for("ntu60_mamp", "skeletonmae") == presets.read("ntu60_skeletonmae")
    assert presets.read_for("ntu60_mamp", "skeleton2vec") == presets.read("ntu60")
    assert presets.read_for("nwucla", "skeleton2vec") == presets.read_for("nwucla", None) == presets.read("nwucla")
    fast = presets.read_for("ntu60_fast", "skeleton2vec")
    assert fast == presets.read("ntu60_fast")
    as_mamp = presets.read_for("ntu60_fast", "mamp")
    assert (as_mamp["model"], as_mamp["objective"]["decoder"]) == (fast["model"], "cross")
    demo = presets.read("demo")
    demo["objective"] = {"name": "mamp", "decoder_depth": 1}
    assert presets.read_for("demo", "mamp") == demo
    assert "mask" not in presets.read_for("demo", "classify")
    with pytest.raises(ConfigError, match="objective.name: 'mine' is not one of classify, "):
        presets.read_for("nwucla", "mine")


def test_the_presets_hold_what_was_published():
    ntu60, ntu120 = presets.load("ntu60"), presets.load("ntu120")
    # arXiv 2401.00921, and the numbers of its NTU RGB+D 60 x-sub run.
    default = Config()
    default.objective.ema_steps = 251200
    assert ntu60 == default
    assert (ntu60.mask.motion_weight, ntu120.mask.motion_weight) == (0.1, 0.2)
    assert visible(ntu60.to_dict(), 25) * 30 == 60
    for name, tau in (("ntu60_mamp", 0.8), ("ntu120_mamp", 0.75), ("pkummd_mamp", 0.8)):
        mamp = presets.load(name)
        assert (mamp.data.frames, mamp.model.segment_frames, mamp.objective.decoder_depth) == (120, 4, 5)
        assert (mamp.model.layer_scale, mamp.model.norm_eps, mamp.mask.tau, mamp.train.epochs) == (None, 1e-5, tau, 400)


def test_numbers_as_people_write_them():
    tree = presets.parse("optim: {lr: 1e-3, lr_min: 1.e-5, eps: 1e-08}\ntrain: {steps: 10}", "x")
    assert tree == {"optim": {"lr": 1e-3, "lr_min": 1e-5, "eps": 1e-8}, "train": {"steps": 10}}
    assert [presets.value(text) for text in ("3", "1e-3", "null", "[1, 2]", "bins", "true", "[1")] == [
        3,
        1e-3,
        None,
        [1, 2],
        "bins",
        True,
        "[1",
    ]


def test_files_that_are_no_configs(tmp_path):
    file = tmp_path / "mine.yaml"
    for content, message in [
        ("train:\n  batch: [1\n", "mine.yaml, line 3: no valid YAML"),
        ("train:\n  batch: 1\n  seed: 2\n  batch: 3\n", "mine.yaml, line 4: no valid YAML: batch twice"),
        ("- 1\n", "mine.yaml: a mapping of sections is expected, not list"),
        ("!!python/object/apply:os.system ['true']", "mine.yaml, line 1: no valid YAML: could not determine"),
    ]:
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            presets.read(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="mine.yaml: cannot be read"):
        presets.read(file)
    file.write_text("")
    assert presets.load(file) == Config()
    with pytest.raises(ConfigError, match="--config ntu6: neither a preset nor a file; did you mean ntu60?"):
        presets.read("ntu6")


def test_merge_replaces_single_fields():
    tree = {"train": {"steps": 5, "batch": 2}, "mask": None}
    assert presets.merge(tree, {"train": {"steps": 7}, "mask": {"keep": 1}, "data": {"frames": 9}}) == {
        "train": {"steps": 7, "batch": 2},
        "mask": {"keep": 1},
        "data": {"frames": 9},
    }
    assert tree == {"train": {"steps": 5, "batch": 2}, "mask": None}
