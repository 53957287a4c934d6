"""Views in a config: plain data that is read, checked, written back, and extended from outside."""

from dataclasses import dataclass, replace

import pytest
import torch

from s2vfast.data.augment import (
    AUGMENTATIONS,
    Augmentation,
    Compose,
    ViewKey,
    augmentation,
    register_augmentation,
    to_data,
)
from s2vfast.data.layout import LAYOUTS, Layout
from s2vfast.errors import ConfigError, ShapeError

LAYOUT = LAYOUTS["kinect_v2"]
NESTED = [
    {"name": "crop_resize", "frames": 32, "low": 0.6},
    {
        "name": "maybe",
        "probability": 0.5,
        "steps": [
            {"name": "one_of", "options": [[{"name": "scale"}], [{"name": "jitter"}], [{"name": "shear"}]]},
            {"name": "one_of", "options": [[{"name": "interpolate"}], [{"name": "trim"}]]},
        ],
    },
]


def test_plain_data_comes_back():
    view = Compose(NESTED, LAYOUT)
    again = Compose(view.to_data(), LAYOUT)
    assert again.steps == view.steps
    assert again.to_data() == view.to_data()
    assert view.to_data()[0] == {
        "name": "crop_resize",
        "frames": 32,
        "low": 0.6,
        "high": 1.0,
        "least": 64,
        "central": False,
    }
    assert view.frames_out(90) == 32
    clips, key = torch.randn(4, 2, 40, 25, 3), ViewKey(0, 0, torch.arange(4))
    assert torch.equal(view(clips, key)[0], again(clips, key)[0])


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS.keys() - {"one_of", "maybe"}))
def test_every_default_is_its_own_data(name):
    step = augmentation({"name": name})
    assert augmentation(to_data(step)) == step
    assert "occurrence" not in to_data(step)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "shaer"}, "view.0.name: 'shaer' is not one of one_of, maybe, "),
        ({"name": "qqq"}, "view.0.name: 'qqq' is not one of one_of, maybe, "),
        ({"name": "shear", "amplitud": 1}, "view.0.shear.amplitud: no such field; did you mean shear.amplitude?"),
        ({"name": "shear", "occurrence": 1}, "view.0.shear.occurrence: no such field; known: amplitude"),
        ({"name": "shear", "amplitude": "1"}, "view.0.shear.amplitude: '1'; a finite number is expected"),
        ({"name": "shear", "amplitude": float("nan")}, "view.0.shear.amplitude: nan; a finite number is expected"),
        ({"name": "shear", "amplitude": True}, "view.0.shear.amplitude: True; a finite number is expected"),
        ({"name": "shear", "amplitude": -1}, "view.0.shear.amplitude: -1; 0 or more is expected"),
        ({"name": "scale", "per_axis": 1}, "view.0.scale.per_axis: 1; true or false is expected"),
        ({"name": "resize", "frames": 2.5}, "view.0.resize.frames: 2.5; a whole number is expected"),
        ({"name": "rotate", "x": [1]}, "view.0.rotate.x: (1,); 2 numbers are expected"),
        ({"name": "rotate", "x": [1, 0]}, "view.0.rotate.x: (1, 0); a range from the smaller to the larger angle"),
        ({"name": "rotate", "order": "xx"}, "view.0.rotate.order: 'xx' is not one of xyz, "),
        ({"name": "rotate", "unit": "whole_degrees"}, "view.0.rotate.x: (-0.3, 0.3); two whole numbers is expected"),
        ({"name": "centre", "joint": [1]}, "view.0.centre.joint: [1]; text or a whole number or null is expected"),
        (
            {"name": "centre", "joint": "nose"},
            "view.0.centre.joint: 'nose' is no joint of layout kinect_v2 (spine_base, ",
        ),
        ({"name": "centre", "joint": 25}, "view.0.centre.joint: 25 is no joint of layout kinect_v2"),
        ({"name": "jitter", "joints": 26}, "view.0.jitter.joints: 26; layout kinect_v2 has 25 joints"),
        ({"name": "swap", "parts": [3, 6]}, "view.0.swap.parts: [3, 6]; layout kinect_v2 has 5 body parts"),
        ({"name": "swap", "parts": [3, 2]}, "view.0.swap.parts: (3, 2); 1 or more, and no more than the second"),
        ({"name": "maybe"}, "view.0.maybe.steps: (); one step or more is expected"),
        ({"name": "maybe", "steps": {}}, "view.0.maybe.steps: {}; a list of steps is expected"),
        ({"name": "maybe", "steps": [{"name": "x"}]}, "view.0.maybe.steps.0.name: 'x' is not one of "),
        ({"name": "one_of"}, "view.0.one_of.options: (); one list of steps or more is expected"),
        ({"name": "one_of", "options": [[{"name": "trim", "most": 2}]]}, "view.0.one_of.options.0.0.trim.most: 2; "),
        ({"amplitude": 1}, "view.0: a name and fields are expected, as in {name: shear}, found {'amplitude': 1}"),
        ("shear", "view.0: a name and fields are expected, as in {name: shear}, found 'shear'"),
    ],
)
def test_what_is_wrong_is_named(data, message):
    with pytest.raises(ConfigError) as caught:
        Compose([data], LAYOUT)
    assert str(caught.value).startswith(message)


def test_skeletons_that_cannot_do_a_step_are_refused():
    plain = replace(LAYOUTS["kinect_v1"], hips=None, parts={}, joints=tuple(f"joint_{n}" for n in range(20)), mirror=())
    for name, expected in (("flip", "left and right"), ("person_frame", "hips"), ("swap", "0 body parts")):
        for steps in ([{"name": name}], [{"name": "maybe", "steps": [{"name": name}]}]):
            with pytest.raises(ConfigError, match=expected):
                Compose(steps, plain)
        with pytest.raises(ConfigError, match=expected):
            Compose([{"name": "one_of", "options": [[{"name": name}]]}], plain)
    with pytest.raises(ConfigError, match="turns about y"):
        Compose([{"name": "align_shoulders"}], replace(LAYOUT, up=(0.0, 0.0, 1.0)))


def test_frames_that_depend_on_a_draw_are_refused():
    resize = {"name": "resize", "frames": 8}
    with pytest.raises(ConfigError, match=r"maybe.steps: they make 8 frames of 9"):
        Compose([{"name": "maybe", "steps": [resize]}], LAYOUT).frames_out(9)
    with pytest.raises(ConfigError, match=r"one_of.options: clips of \[8, 9\] frames"):
        Compose([{"name": "one_of", "options": [[resize], [{"name": "shear"}]]}], LAYOUT).frames_out(9)


def test_arguments_that_do_not_fit_are_named():
    view, key = Compose([], LAYOUT), ViewKey(0, 0, torch.arange(2))
    clips = torch.zeros(2, 1, 4, 25, 3)
    assert view(clips, key)[0] is clips
    for bad in (clips[..., :2], clips[0], clips[:, :, :, :20], clips.long()):
        with pytest.raises(ShapeError, match=r"views: clips: floating \[B, M, T, 25, 3\] is expected"):
            view(bad, key)
    with pytest.raises(ShapeError, match=r"lengths: int64 \[2\] is expected"):
        view(clips, key, torch.tensor([4]))
    with pytest.raises(ShapeError, match=r"sample_ids: int64 \[2\] is expected"):
        view(clips, ViewKey(0, 0, torch.arange(3)))


def test_an_augmentation_from_outside():
    @register_augmentation("lift", stream=200)
    @dataclass(frozen=True)
    class Lift(Augmentation):
        by: float = 1.0

        def __call__(self, batch):
            return replace(batch, clips=torch.where(batch.present, batch.clips + self.by, batch.clips))

    try:
        clips = torch.ones(1, 1, 2, 25, 3)
        output, _ = Compose([{"name": "lift", "by": 2}], LAYOUT)(clips, ViewKey(0, 0, torch.tensor([0])))
        assert (output == 3).all()
        for name, stream in (("lift", 201), ("other", 200), ("shear", 201), ("other", 3), ("other", 256)):
            with pytest.raises(ValueError, match="augmentation"):
                register_augmentation(name, stream)(Lift)
    finally:
        del AUGMENTATIONS["lift"]


def test_streams_of_draws_differ():
    streams = [cls.stream for cls in AUGMENTATIONS.values()]
    assert len(set(streams)) == len(streams)


def test_a_layout_of_another_name_keeps_its_facts():
    turned = replace(LAYOUT, name="mine", bone_parents=(), spine=(1, 20), hips=(0, 1), mirror=((4, 8),))
    again = Layout.from_dict(turned.to_dict())
    assert again == turned
    assert again.bone_parents == again.parents
