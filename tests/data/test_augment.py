"""Every augmentation against its plain reference, and against numbers that the published code computed."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from s2vfast.data.augment import AUGMENTATIONS, Compose, ViewKey, spatial, temporal
from s2vfast.data.layout import LAYOUTS
from s2vfast.errors import ConfigError
from s2vfast.reference import augment as reference
from s2vfast.reference import philox

LAYOUT = LAYOUTS["kinect_v2"]
PARTS = list(LAYOUT.parts.values())
HERE = Path(__file__).parent
LENGTHS = (30, 17, 1, 26, 8)
IDS = (3, 70001, 5, 0, 2**32 - 1)
RANGES = [(-0.5, 0.1), (0.0, 0.7), (-3.0, 3.0)]


def batch(lengths=LENGTHS, bodies=2, frames=30, seed=0):
    """float64 clips [B, M, T, V, 3] with absent bodies, a body that comes late, and padding."""
    clips = np.random.default_rng(seed).normal(size=(len(lengths), bodies, frames, 25, 3)) + np.array([0.0, 1.0, 3.0])
    for sample, length in enumerate(lengths):
        clips[sample, :, length:] = 0
    clips[1, 1] = 0
    clips[0, 1, :4] = 0
    clips[3, 0, 5:7] = 0
    return torch.from_numpy(clips)


def key(view=1, ids=IDS):
    return ViewKey(seed=2**40 + 7, epoch=3, sample_ids=torch.tensor(ids), view=view)


def bits(name, count, view=1, ids=IDS, occurrence=0):
    """The draws by their definition, a list of whole numbers a sample."""
    stream = AUGMENTATIONS[name].stream
    rows = [
        philox.random_bits(2**40 + 7, 3, torch.tensor([number + (occurrence << 40) + (view << 48)]), stream, count)[0]
        for number in ids
    ]
    return [row.tolist() for row in rows]


def each(function):
    """A reference of one sample without a length."""
    return lambda clip, length, draws: function(clip, draws)


FULL_RANGES = {"x": RANGES[0], "y": RANGES[1], "z": RANGES[2]}
DEGREES = {"x": (-60, 60), "y": (-60, 60), "z": (0, 0), "unit": "whole_degrees", "order": "xyz"}
CASES = {
    "shear": ({"amplitude": 0.4}, 6, each(lambda x, d: reference.shear(x, d, 0.4))),
    "rotate": (FULL_RANGES, 4, each(lambda x, d: reference.rotate(x, d, RANGES, "zyx", "radians"))),
    "rotate in degrees": (
        {**FULL_RANGES, "unit": "degrees", "order": "yxz"},
        4,
        each(lambda x, d: reference.rotate(x, d, RANGES, "yxz", "degrees")),
    ),
    "rotate as on NW-UCLA": (
        DEGREES,
        4,
        each(lambda x, d: reference.rotate(x, d, [(-60, 60), (-60, 60), (0, 0)], "xyz", "whole_degrees")),
    ),
    "rotate about one axis": (
        {**FULL_RANGES, "axes": "one", "others": (-0.02, 0.02)},
        4,
        each(lambda x, d: reference.rotate(x, d, RANGES, "zyx", "radians", minor_range=(-0.02, 0.02))),
    ),
    "scale": ({"low": 0.5, "high": 1.5}, 3, each(lambda x, d: reference.scale(x, d, 0.5, 1.5, False))),
    "scale an axis": (
        {"low": 0.5, "high": 1.5, "per_axis": True},
        3,
        each(lambda x, d: reference.scale(x, d, 0.5, 1.5, True)),
    ),
    "flip": ({"probability": 0.6}, 1, each(lambda x, d: reference.flip(x, d, 0, 0.6, LAYOUT.mirror))),
    "flip z": ({"axis": "z"}, 1, each(lambda x, d: reference.flip(x, d, 2, 0.5, LAYOUT.mirror))),
    "jitter": ({}, 40, each(lambda x, d: reference.jitter(x, d, 5, 0.2))),
    "drop_joints": ({"joints": 7}, 25, each(lambda x, d: reference.drop_joints(x, d, 7))),
    "drop_axis": ({"probability": 0.7}, 2, each(lambda x, d: reference.drop_axis(x, d, 0.7))),
    "resize": ({"frames": 41}, 0, lambda x, n, d: reference.resample(x, 0, n, 41)),
    "crop_resize": (
        {"frames": 12, "least": 9, "low": 0.3},
        2,
        lambda x, n, d: reference.crop_resize(x, n, d, 12, 0.3, 1.0, 9, False),
    ),
    "crop_resize the middle": (
        {"frames": 64, "low": 0.8, "high": 0.8, "central": True},
        2,
        lambda x, n, d: reference.crop_resize(x, n, d, 64, 0.8, 0.8, 64, True),
    ),
    "mirror_crop": ({}, 1, lambda x, n, d: reference.mirror_crop(x, n, d, 6)),
    "mirror_crop far": ({"ratio": 1}, 1, lambda x, n, d: reference.mirror_crop(x, n, d, 1)),
    "sample_frames": ({}, 52, lambda x, n, d: reference.sample_frames(x, n, d, 52, 100)),
    "sample_frames of few copies": (
        {"frames": 20, "copies": 1},
        20,
        lambda x, n, d: reference.sample_frames(x, n, d, 20, 1),
    ),
    "sample_frames evenly": ({"even": True}, 0, lambda x, n, d: reference.even_frames(x, n, 52)),
    "interpolate": ({}, 1, lambda x, n, d: reference.interpolate(x, n, d)),
    "pad": ({"frames": 40}, 0, lambda x, n, d: reference.pad(x, 40)),
    "trim": ({"most": 0.9}, 2, lambda x, n, d: reference.trim(x, n, d, 0.9)[0]),
    "centre": ({}, 0, each(lambda x, d: reference.centre(x, 1, False, False))),
    "centre every body and frame": (
        {"joint": "spine_shoulder", "at": "frame", "body": "own"},
        0,
        each(lambda x, d: reference.centre(x, 20, True, True)),
    ),
    "centre every body": ({"joint": 3, "body": "own"}, 0, each(lambda x, d: reference.centre(x, 3, False, True))),
    "centre every frame": ({"at": "frame"}, 0, each(lambda x, d: reference.centre(x, 1, True, False))),
    "min_max": ({}, 0, each(lambda x, d: reference.min_max(x, -1, 1))),
    "min_max of one's own": ({"low": 0.0, "high": 3.0}, 0, each(lambda x, d: reference.min_max(x, 0, 3))),
    "person_frame": ({}, 0, each(lambda x, d: reference.person_frame(x, (0, 1), (12, 16), True))),
    "person_frame as published": (
        {"frame": "first"},
        0,
        each(lambda x, d: reference.person_frame(x, (0, 1), (12, 16), False)),
    ),
    "align_shoulders": ({}, 0, each(lambda x, d: reference.align_shoulders(x, 4, 8))),
}


def agree(clips, expected):
    assert clips.numpy().shape == expected.shape
    assert clips.numpy().dtype == expected.dtype
    np.testing.assert_allclose(clips.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_recordings_of_two_coordinates_stay_in_their_plane():
    layout, refused = replace(LAYOUT, dimensions=(2,)), {}
    clips = batch() * torch.tensor([1.0, 1.0, 0.0])
    for case, (fields, *_) in CASES.items():
        step = {"name": case.split()[0], **fields}
        try:
            output, _ = Compose([step], layout)(clips, key(), torch.tensor(LENGTHS))
        except ConfigError as error:
            refused[case] = str(error)
        else:
            assert not output[..., 2].any(), case
            assert output[..., :2].any(), case
    turning = {case for case in CASES if case.split()[0] in ("rotate", "person_frame", "align_shoulders")}
    assert refused.keys() == turning
    assert all("2 coordinates a joint, which turn in their plane alone" in text for text in refused.values())
    flat = Compose([{"name": "rotate", "x": [0, 0], "y": [0, 0], "z": [1.0, 1.0]}], layout)
    assert not flat(clips, key(), torch.tensor(LENGTHS))[0][..., 2].any()


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_its_reference(case):
    fields, count, plain = CASES[case]
    name = case.split()[0]
    clips, lengths = batch(), torch.tensor(LENGTHS)
    view = Compose([{"name": name, **fields}], LAYOUT)
    output, after = view(clips, key(), lengths)
    draws = bits(name, count) if count else [[]] * len(IDS)
    expected = [plain(clip.numpy(), n, d) for clip, n, d in zip(clips, LENGTHS, draws, strict=True)]
    agree(output, np.stack(expected))
    assert output.shape[2] == view.frames_out(30)
    if name == "trim":
        remaining = [reference.trim(c.numpy(), n, d, 0.9)[1] for c, n, d in zip(clips, LENGTHS, draws, strict=True)]
    else:
        remaining = LENGTHS if output.shape[2] == 30 or name == "pad" else [output.shape[2]] * len(LENGTHS)
    assert after.tolist() == list(remaining)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_swap_is_its_reference(size, per_sample):
    clips, ids = batch()[:size] if size > 3 else batch((30,) * 5)[:size], IDS[:size]
    step = {"name": "swap", "cells": (2, 9), "block": "sample" if per_sample else "batch"}
    output, _ = Compose([step], LAYOUT)(clips, key(ids=ids))
    expected = reference.swap(clips.numpy(), bits("swap", 9, ids=ids), PARTS, (3, 4), (2, 9), 4, per_sample)
    agree(output, expected)
    assert (size == 1) == bool((output == clips).all())


def test_every_augmentation_has_a_reference():
    assert {case.split()[0] for case in CASES} | {"swap", "one_of", "maybe"} == set(AUGMENTATIONS)


def test_steps_of_one_kind_draw_different_numbers():
    view = Compose([{"name": "shear"}, {"name": "one_of", "options": [[{"name": "shear"}]]}], LAYOUT)
    clips = batch()
    expected = [
        reference.shear(reference.shear(clip.numpy(), first, 0.5), second, 0.5)
        for clip, first, second in zip(clips, bits("shear", 6), bits("shear", 6, occurrence=1), strict=True)
    ]
    agree(view(clips, key())[0], np.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_stays(dtype):
    steps = [{"name": case.split()[0], **fields} for case, (fields, _, _) in CASES.items()]
    for step in steps:
        assert Compose([step], LAYOUT)(batch().to(dtype), key())[0].dtype == dtype


def published(name):
    return np.load(HERE / name, allow_pickle=False)


def as_clips(array):
    """The authors' [N, C, T, V, M] or [C, T, V, M] as clips [N, M, T, V, C], float64."""
    array = array if array.ndim == 5 else array[None]
    return torch.from_numpy(array.astype(np.float64).transpose(0, 4, 2, 3, 1).copy())


def test_skeattnclr_shears_crops_and_swaps_the_same():
    golden = published("golden_skeattnclr_small.npz")
    clips = as_clips(golden["aug/x"])
    sheared = spatial.linear_map(clips, spatial.shear_matrix(torch.from_numpy(golden["aug/shear_draws"])[None]))
    agree(sheared, as_clips(golden["aug/shear"]).numpy())
    first = torch.tensor([[int(golden["aug/crop_start"]) - 32 // 6]])
    cropped = temporal.take(clips, temporal.mirrored_frames(first, torch.tensor([[32]]), 32))
    agree(cropped, as_clips(golden["aug/crop"]).numpy())
    # Its block is one that we may draw: 3 or 4 of the parts, a stretch on the grid.
    region = golden["swap/region"]
    joints = np.flatnonzero(region.any(0))
    assert joints.tolist() in [sorted(itertools.chain(*members)) for members in subsets(PARTS, (3, 4))]
    stretch = np.flatnonzero(region.any(1))
    assert 2 <= len(stretch) <= 4
    assert (np.diff(stretch) == 1).all()
    assert (region[stretch] == region.any(0)).all()


def subsets(parts, sizes):
    return [members for size in sizes for members in itertools.combinations(parts, size)]


@pytest.mark.parametrize("length", [37, 90])
def test_skeattnclr_prepares_the_same(length):
    """The authors resize in float32."""
    golden = published("golden_skeattnclr_small.npz")
    view = Compose(
        [
            {"name": "centre", "joint": "spine_shoulder", "at": "frame", "body": "own"},
            {"name": "resize", "frames": 64},
            {"name": "align_shoulders"},
        ],
        LAYOUT,
    )
    output, _ = view(as_clips(golden[f"prep/raw{length}"]), key(ids=(0,)))
    np.testing.assert_allclose(output.numpy(), as_clips(golden[f"prep/position{length}"]).numpy(), atol=1e-5)


def test_hi_trs_augments_and_windows_the_same():
    golden = published("golden_hitrs_small.npz")
    meta = json.loads(str(golden["meta"]))
    for number, draws in enumerate(meta["aug_draws"]):
        clip = golden["seq/0"].astype(np.float64)[None]  # one body
        names, values = [name for name, _ in draws], [value for _, value in draws]
        space, moment, numbers = values[0], values[1], values[2:]
        if space == 0:
            clip, numbers = clip * numbers[0], numbers[1:]
        elif space == 1:
            assert names[2] == "sample"
            clip = clip.copy()
            clip[:, :, numbers[0]] += np.array(numbers[1:6])
            numbers = numbers[6:]
        else:
            entries = torch.tensor(numbers[:6], dtype=torch.float64)[None]
            clip = spatial.linear_map(torch.from_numpy(clip)[None], spatial.shear_matrix(entries))[0].numpy()
            numbers = numbers[6:]
        if moment == 3:
            clip = reference.interpolate(clip, clip.shape[1], [int(numbers[0] * 2**32)])
        else:
            start = numbers[1] if len(numbers) > 1 else 0
            cut = round(clip.shape[1] * numbers[0])
            clip = clip[:, start : start + clip.shape[1] - cut]
        np.testing.assert_allclose(clip[0], golden[f"aug/{number}"], atol=1e-7)  # 24 bits of a draw
    for padded, windows in meta["windows_pretrain"].items():
        assert temporal.sliding_windows(int(padded) - 12) == windows
    visible = golden["batch/w_pad_mask"].shape[1] - 1 - golden["batch/w_pad_mask"].sum(1)  # without the video token
    for length, last, before in zip(meta["lengths"], golden["batch/last_c"], visible, strict=True):
        windows = temporal.sliding_windows(length)
        assert windows[-1] == last.tolist()
        assert len(windows) - 1 == before
    assert temporal.sliding_windows(9, 5, 5, 1) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
