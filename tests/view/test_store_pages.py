"""The pages of what is in a store: a sequence, and the masks drawn for it."""

import numpy as np
import pytest
import torch

from s2vfast import ops, presets
from s2vfast.config import Config
from s2vfast.data.layout import LAYOUTS
from s2vfast.errors import CheckpointError, ConfigError, DataError
from s2vfast.reference import philox
from s2vfast.reference.token_mask import gumbel_scores
from s2vfast.reference.tube_mask import tube_scores
from s2vfast.view import mask, page, sequence, source


@pytest.mark.parametrize("which", ["21", "s004", "single", "holes"])
def test_a_sequence_is_there_to_the_millimetre(place, tmp_path, read_page, is_picture, which):
    shown = sequence.collect(place.store, which)
    data = read_page(sequence.write(shown, tmp_path / "a.html"))
    index = 21 if which == "21" else place.opened.names.index(which)
    clip, present = place.opened.sequence(index)
    seen = page.unpacked(data["scene"]["seen"]).astype(bool)
    np.testing.assert_array_equal(seen, (clip != 0).any(-1))
    assert seen.any(-1)[0].all() == present[0].all()
    places = page.unpacked(data["scene"]["places"])
    np.testing.assert_allclose(places[seen], clip[seen], atol=5e-4)
    assert data["layout"]["joints"] == list(place.opened.layout.joints)
    assert data["layout"]["bones"] == [[1, 0], [2, 1], [3, 1], [4, 1]]
    assert data["layout"]["right"] == []  # "left" and "right$^$" are no pair
    kinect = LAYOUTS["kinect_v2"]
    right = source.layout_entry(kinect, "m")["right"]
    assert {kinect.joints[joint] for joint in right} == {name for name in kinect.joints if name.startswith("right")}
    facts = dict(data["facts"])
    assert facts["name"] == place.opened.names[index]
    assert facts["class"] == place.opened.classes[place.opened.labels[index]]
    assert (facts["frames"], facts["bodies"], facts["subject"]) == (len(present[0]), len(present), 3)
    assert "setup" not in facts
    is_picture(sequence.draw(shown, tmp_path / "a.png"))


def test_awkward_names_are_shown_as_text(place, tmp_path, read_page):
    out = sequence.write(sequence.collect(place.store, place.evil), tmp_path / "a.html")
    text = out.read_text("utf-8")
    assert place.evil not in text
    assert "&lt;/script&gt;&lt;img src=x" in text
    assert place.evil_class not in text
    assert read_page(out)["name"] == place.evil


def test_what_is_not_in_the_store_is_named_with_what_is_near(place):
    with pytest.raises(DataError, match=r"no sequence 's00'; the nearest names are s0\d\d, s0\d\d, s0\d\d"):
        source.find(place.opened, "s00")
    with pytest.raises(DataError, match="no sequence 24; numbers go from 0 to 23"):
        source.find(place.opened, "24")
    with pytest.raises(DataError, match="no store here"):
        sequence.collect(place.folder, "s000")
    assert source.find(place.opened, "s007") == source.find(place.opened, "7") == 7


@pytest.mark.parametrize("up", [layout.up for layout in LAYOUTS.values()] + [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8)])
def test_the_first_view_keeps_up_and_hands(up):
    basis = source.basis(up)
    np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(basis), 1.0)  # no mirror: left stays left
    np.testing.assert_allclose(basis[1], up)


def test_masks_are_those_of_the_operation(place, tmp_path, read_page, is_picture):
    config, S, V = place.config, 4, 5
    shown = mask.collect(place.store, place.evil, run=place.run, epoch=3, epochs=2)
    data = read_page(mask.write(shown, tmp_path / "a.html"))
    ids = torch.tensor([21])
    assert [each["epoch"] for each in data["draws"]] == [3, 4]
    for found, epoch in zip(data["draws"], (3, 4), strict=True):
        clips = source.make_clips(place.opened, config, ids.numpy(), epoch=epoch)
        visible = page.unpacked(found["visible"])
        assert visible.shape == (2, 2, S, V)
        for number in range(2):
            expected, _ = ops.tube_mask(
                clips,
                segment_frames=3,
                tube_len=2,
                keep=2,  # floor(5 joints * (1 - 0.6))
                motion_weight=config.mask.motion_weight,
                seed=7,
                epoch=epoch,
                ids=philox.track_ids(ids, 2, number),
                impl="reference",
            )
            for body in range(2):
                np.testing.assert_array_equal(np.flatnonzero(visible[number, body]), expected[body])
        seen = page.unpacked(found["scene"]["seen"]).astype(bool)
        np.testing.assert_allclose(page.unpacked(found["scene"]["places"])[seen], clips.numpy()[seen], atol=5e-4)
        motion = torch.from_numpy(page.unpacked(found["motion"]).copy())  # [M, S, V]
        tubes = motion.unflatten(1, (-1, 2)).mean(2)
        noise = torch.zeros(2, S // 2, V)
        scores = tube_scores(clips, segment_frames=3, tube_len=2, motion_weight=1.0, noise=noise)
        torch.testing.assert_close(tubes / (tubes.amax(-1, keepdim=True) + 1e-6), scores)
    assert dict(data["facts"])["motion"] == "mean |difference to the next frame|; the masks are drawn by it"
    is_picture(mask.draw(shown, tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["holes", "single"])
def test_the_motion_of_a_motion_token_mask_is_what_decided_it(place, tmp_path, read_page, is_picture, name):
    tree = presets.with_names(place.config.to_dict(), objective="mamp")
    shown = mask.collect(place.store, name, config=Config.from_dict(tree), epochs=1)
    data = read_page(mask.write(shown, tmp_path / "a.html"))
    assert data["motion"] == "mean |difference to the same frame of the segment before|"
    assert dict(data["facts"])["motion"] == f"{data['motion']}; the masks are drawn by it"
    motion = torch.from_numpy(page.unpacked(data["draws"][0]["motion"])).double().flatten(1)  # [1, L]
    clips = torch.from_numpy(shown.draws[0].coordinates)
    # The same noise everywhere leaves the log-softmax of the intensity, but for a number added to all.
    scores = gumbel_scores(clips, 3, tree["mask"]["tau"], torch.full(motion.shape, 0.5))
    expected = motion / (motion.amax() * tree["mask"]["tau"] + 1e-10)
    torch.testing.assert_close(expected - expected.mean(), scores - scores.mean(), rtol=1e-5, atol=1e-5)
    is_picture(mask.draw(shown, tmp_path / "a.png"))


def test_a_mask_that_no_motion_decides_says_so(place, tmp_path, read_page):
    tree = place.config.to_dict()
    tree["mask"]["kind"] = "tube"
    data = read_page(mask.write(mask.collect(place.store, "s000", config=Config.from_dict(tree)), tmp_path / "a.html"))
    assert dict(data["facts"])["motion"] == "mean |difference to the next frame|; the masks do not depend on it"


def test_body_parts_are_those_of_the_stores_layout(place):
    """Where a segment is not masked whole, a whole part of it is: the trunk, or both arms."""
    tree = presets.with_names(place.config.to_dict(), objective="skeletonmae")
    tree["mask"] |= {"kind": "frame_joint", "parts": 1, "frame_ratio": 0.25, "joints": "segment"}
    shown = mask.collect(place.store, "s000", config=Config.from_dict(tree), epochs=4)
    for draw in shown.draws:
        hidden = ~draw.visible.reshape(-1, 5).astype(bool)
        assert all(row[:3].all() or row[3:].all() for row in hidden)
        assert {int(row.sum()) for row in hidden} == {3, 5}


def test_the_draws_differ_and_come_back(place):
    first, second = (mask.collect(place.store, "holes", run=place.run, epochs=4) for _ in range(2))
    for a, b in zip(first.draws, second.draws, strict=True):
        np.testing.assert_array_equal(a.visible, b.visible)
    assert len({each.visible.tobytes() for each in first.draws}) > 1
    assert first.draws[0].visible.shape == (2, 1, 4, 5)  # one body is there, and one is shown


def test_a_sequence_of_one_frame_has_masks_and_no_motion(place, tmp_path, read_page, is_picture):
    shown = mask.collect(place.store, "single", config=place.config, epochs=1)
    assert not shown.draws[0].motion.any()
    read_page(mask.write(shown, tmp_path / "a.html"))
    is_picture(mask.draw(shown, tmp_path / "a.png"))


def test_a_config_is_named_once_and_fits(place, other_run):
    for both in ({}, {"config": "ntu60", "run": place.run}):
        with pytest.raises(ConfigError, match="--config, --run: one of the two is needed"):
            mask.collect(place.store, "s000", **both)
    with pytest.raises(CheckpointError, match=r"its layout is stick .* was made with stork"):
        mask.collect(place.store, "s000", run=other_run)
    with pytest.raises(ConfigError, match=r"mask\.ratio: 0\.9 leaves 0 of 5 joints visible"):
        mask.collect(place.store, "s000", config="ntu60")
    with pytest.raises(ConfigError, match="--draws 0"):
        mask.collect(place.store, "s000", run=place.run, epochs=0)
