"""docs/views.md: its examples run, its views can be built, its table is whole."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from s2vfast.data.augment import AUGMENTATIONS, Compose, ViewKey
from s2vfast.data.layout import LAYOUTS
from s2vfast.data.streams import Stream

PAGE = Path(__file__).parents[2] / "docs" / "views.md"
if not PAGE.is_file():
    pytest.skip("docs/ is not here", allow_module_level=True)
TEXT = PAGE.read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_examples_run():
    names = {}
    try:
        for code in blocks("python"):
            exec(code, names)
        clips = names["clips"]
        output, _ = names["view"](clips, names["key"])
        assert torch.equal(output, clips.flip(2))
        assert names["query"].shape == names["bones"].shape == (8, 2, 64, 25, 3)
    finally:
        AUGMENTATIONS.pop("backwards", None)


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_a_published_view_makes_clips(number):
    steps = yaml.safe_load(blocks("yaml")[number])
    if isinstance(steps, dict):  # a config's section, whose training steps these are
        steps = steps["data"]["train_steps"]
    layout = LAYOUTS["kinect_v1" if "joint: spine," in blocks("yaml")[number] else "kinect_v2"]
    view = Compose(steps, layout)
    clips = torch.randn(3, 2, 96, layout.num_joints, 3)
    output, lengths = view(clips, ViewKey(1, 0, torch.arange(3)), torch.tensor([96, 70, 5]))
    assert output.shape == (3, 2, view.frames_out(96), layout.num_joints, 3)
    assert torch.isfinite(output).all()
    assert (lengths <= output.shape[2]).all()


def test_the_tables_are_whole():
    steps, streams = TEXT.split("## Steps")[1].split("## Streams")
    assert set(re.findall(r"^\| `(\w+)` \|", steps, re.MULTILINE)) == set(AUGMENTATIONS)
    for data in re.findall(r"^\| `({.*?})` \|", streams, re.MULTILINE):
        Stream.from_data(yaml.safe_load(data))
