"""From depth to points: cameras, geometry, foreground, how many are kept."""

import json

import numpy as np
import pytest

from s2vfast.data.camera import CAMERAS, Camera, get_camera
from s2vfast.data.depth import Depth
from s2vfast.errors import DataError

from . import depth_pictures as pictures


def depth(unit=0.001, **options):
    return Depth.of("f280", unit, **options)


@pytest.mark.parametrize("name", CAMERAS)
def test_a_point_is_seen_at_the_pixel_it_came_from(name):
    camera = CAMERAS[name]
    height, width = camera.height or 30, camera.width or 40
    rays = camera.rays(height, width)
    cx, cy = camera.cx if camera.cx is not None else width / 2, camera.cy if camera.cy is not None else height / 2
    pixels = np.random.default_rng(0).integers(0, height * width, 50)
    x, y, z = (2.5 * rays[pixels]).T
    np.testing.assert_allclose(camera.fx * x / z + cx, pixels % width, atol=1e-3)
    np.testing.assert_allclose(cy - camera.fy * y / z, pixels // width, atol=1e-3)
    np.testing.assert_allclose(z, 2.5)


def test_cameras_are_those_of_the_literature():
    v1, v2, f280 = (CAMERAS[name] for name in ("kinect_v1", "kinect_v2", "f280"))
    assert (v1.fx, v1.cx, v1.cy, v1.width, v1.height) == (286.0, 160.0, 120.0, 320, 240)
    assert (v2.fx, v2.cx, v2.cy, v2.width, v2.height) == (365.456, 254.878, 205.395, 512, 424)
    # PSTNet on NTU RGB+D: (u - 256) z / 280, which is 1.31 times as wide as it is.
    np.testing.assert_allclose(f280.rays(424, 512)[0], [-256 / 280, 212 / 280, 1.0], rtol=1e-6)


def test_a_camera_of_a_file(tmp_path):
    facts = {"name": "mine", "fx": 100, "fy": 110.5, "cx": 0, "unit": 0.0001}
    (tmp_path / "mine.json").write_text(json.dumps(facts))
    camera = get_camera(tmp_path / "mine.json")
    assert camera == Camera("mine", 100.0, 110.5, cx=0.0, unit=0.0001)
    assert Camera.from_dict(camera.to_dict()) == camera
    assert Depth.of(None, 0.001, camera=tmp_path / "mine.json").unit == 0.0001


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fx": None}, "missing field"),
        ({"focal": 3}, "unknown field(s) focal"),
        ({"fx": 0}, "fx: 0, expected a number above 0"),
        ({"fy": True}, "fy: True, expected a number above 0"),
        ({"cx": "middle"}, "cx: 'middle', expected a number"),
        ({"width": 1e3}, "width: 1000.0, expected 1 to 8,192 pixels"),
        ({"name": 3}, "name: expected a text"),
    ],
)
def test_a_camera_that_is_none(tmp_path, change, message):
    facts = {"name": "mine", "fx": 100, "fy": 100} | change
    (tmp_path / "c.json").write_text(json.dumps({name: value for name, value in facts.items() if value is not None}))
    with pytest.raises(DataError) as caught:
        get_camera(tmp_path / "c.json")
    assert str(caught.value).startswith(str(tmp_path / "c.json"))
    assert message in str(caught.value)
    with pytest.raises(DataError, match="neither a known camera"):
        get_camera("kinect_v3")


def test_points_lie_where_the_pixels_saw_them():
    picture = np.zeros((1, 20, 30), np.uint16)
    picture[0, 5, 3], picture[0, 19, 29] = 1500, 3000
    points, counts = depth().points_of(picture)
    expected = [[(3 - 15) * 1.5 / 280, (10 - 5) * 1.5 / 280, 1.5], [(29 - 15) * 3.0 / 280, (10 - 19) * 3.0 / 280, 3.0]]
    np.testing.assert_allclose(points, expected, rtol=1e-6)
    assert points.dtype == np.float32
    assert counts.tolist() == [2]


def test_at_most_so_many_points_are_kept_evenly():
    frames = pictures.frames(2, 40, 60)
    everything, counts = depth(points=0).points_of(frames)
    assert counts.tolist() == [148, 148]
    some, fewer = depth(points=20).points_of(frames)
    assert fewer.tolist() == [20, 20]
    kept = [np.flatnonzero((everything[:148] == point).all(1))[0] for point in some[:20]]
    assert set(np.diff(kept)) <= {7, 8}  # 148 / 20
    np.testing.assert_array_equal(depth(points=148).points_of(frames)[0], everything)


def test_foreground():
    frames = np.full((3, 4, 5), 3000, np.uint16)
    frames[0, 1, 1] = 0  # nothing was measured
    frames[1, 2, 2] = 1000
    frames[2, 2, 3] = 2950  # noise
    assert depth().points_of(frames)[1].tolist() == [19, 20, 20]
    points, counts = depth(foreground="moving").points_of(frames)
    assert counts.tolist() == [0, 1, 0]
    assert points[0, 2] == 1.0
    assert depth(near=2.97, far=3.0).points_of(frames)[1].tolist() == [19, 19, 19]


def test_numbers_that_float_and_are_not_measured():
    picture = np.array([[[np.nan, 1.5], [0.0, 2.0]]], np.float32)
    points, counts = depth(unit=1.0).points_of(picture)
    assert counts.tolist() == [2]
    np.testing.assert_allclose(points[:, 2], [1.5, 2.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": -1}, "--points: -1"),
        ({"near": 2.0, "far": 1.0}, "--near, --far: 2 and 1 m"),
        ({"foreground": "people"}, "--foreground: 'people'"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(DataError, match=message):
        depth(**options)


def test_pictures_must_be_the_cameras():
    with pytest.raises(DataError, match="a picture of 16 x 12, camera kinect_v2 has 512 x 424"):
        Depth.of("kinect_v2", 0.001).points_of(pictures.frames())
    with pytest.raises(DataError, match="frame 1: 3 x 2 pixels, the first has others"):
        depth().points_of([np.ones((4, 5), np.uint16), np.ones((2, 3), np.uint16)])
    with pytest.raises(DataError, match="--camera: needed"):
        Depth.of(None, 0.001)
