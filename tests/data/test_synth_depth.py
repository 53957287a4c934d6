"""Synthetic depth: pictures against distances to the capsules, the sensor's noise, stores that fit the skeletons'."""

import numpy as np
import pytest

from s2vfast.cli import main
from s2vfast.data import synth_depth
from s2vfast.data.camera import CAMERAS
from s2vfast.data.store import Store
from s2vfast.data.synth import generate, perform

CAMERA = CAMERAS["kinect_v2"]


def people(frames=2, persons=1):
    """[M, F, 25, 3] of a performance about 3 m before a camera at the height of the hips."""
    (joints,) = perform(1, 1, 0, 1)
    joints = joints[:frames].copy()
    joints[..., 1] -= 0.9
    joints[..., 2] = 3.0 - joints[..., 2]
    return np.stack([joints + number * np.array([0.15, 0.0, 0.4]) for number in range(persons)])


def distance(points, bodies):
    """Of points [n, 3] to the nearest capsule of bodies [M, 25, 3], below 0 inside."""
    nearest = np.full(len(points), np.inf)
    for joints in bodies:
        for start, end, radius in synth_depth.CAPSULES:
            a, axis = joints[start], joints[end] - joints[start]
            part = np.clip((points - a) @ axis / max(axis @ axis, 1e-12), 0.0, 1.0)
            nearest = np.minimum(nearest, np.linalg.norm(points - a - part[:, None] * axis, axis=1) - radius)
    return nearest


def test_a_pixel_sees_the_nearest_surface_on_its_ray():
    bodies = people(1, 2)
    (picture,) = synth_depth.render(bodies)
    assert picture.shape == (424, 512)
    z, rays = picture.reshape(-1), CAMERA.rays(424, 512).astype(np.float64)
    seen = np.flatnonzero(z)
    assert len(seen) > 8000
    pixels = np.random.default_rng(0).choice(seen, 150, replace=False)
    on_surface = distance(z[pixels, None] * rays[pixels], bodies[:, 0])
    np.testing.assert_allclose(on_surface, 0.0, atol=2e-3)
    # Nothing is before it, and nothing at all on rays close to the bodies that see nothing.
    empty = np.random.default_rng(1).choice(np.flatnonzero(z == 0), 600, replace=False)
    for rows, far in ((pixels, z[pixels] - 0.01), (empty, np.full(len(empty), 5.0))):
        for part in np.linspace(0.3, 1.0, 60):
            assert (distance((part * far)[:, None] * rays[rows], bodies[:, 0]) > -1e-3).all()


def test_what_is_outside_of_the_picture_or_behind_the_camera_is_not_seen():
    bodies = people(1)
    for move in ([0.0, 0.0, -3.0], [0.0, 0.0, -6.0], [9.0, 0.0, 0.0], [0.0, 0.0, 9.0]):
        (picture,) = synth_depth.render(bodies + move)
        assert np.isfinite(picture).all()
        assert (picture >= 0).all()
    assert not picture.any()  # beyond 8 m


def test_the_noise_is_that_of_the_sensor():
    flat = np.full((60, 80), 3.0, np.float32)
    flat[:, 40:] = 0.0
    flat[20:40, 10:30] = 2.0
    raw = synth_depth.measured(np.random.default_rng(0), flat)
    assert raw.dtype == np.uint16
    inner = raw[22:38, 12:28]
    error = inner[inner > 0] / 1000 - 2.0
    assert abs(error.std() / (0.0012 + 0.0019 * 1.6**2) - 1.0) < 0.2
    assert (raw[flat == 0] == 0).all()
    edge = np.concatenate([raw[20, 10:30], raw[39, 10:30], raw[20:40, 10], raw[20:40, 29]])
    assert 0.25 < (edge == 0).mean() < 0.55
    assert (inner == 0).mean() < 0.02


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same people as points and as skeletons."""
    folder = tmp_path_factory.mktemp("synth")
    options = {"subjects": 2, "views": 1, "repetitions": 1, "actions": ["wave", "hug"], "seed": 3}
    return generate(folder / "points", depth=True, **options), generate(folder / "skeletons", **options)


def test_a_store_of_points_fits_that_of_the_skeletons(pair):
    points, skeletons = pair
    assert (points.kind, points.names, points.classes) == ("points", skeletons.names, skeletons.classes)
    np.testing.assert_array_equal(points.labels, skeletons.labels)
    np.testing.assert_array_equal(points.total_frames, skeletons.total_frames)
    assert {split: sorted(parts) for split, parts in points.splits.items()} == {"xsub": ["test", "train"]}
    clip, present = skeletons.sequence(0)
    cloud = points.cloud(0)
    frame = int(np.flatnonzero(present[0])[0])
    # The trunk's joints lie a radius behind its surface.
    for joint in (0, 1, 20):
        away = np.linalg.norm(cloud[frame] - clip[0, frame, joint], axis=1).min()
        assert away < 0.2
    assert points.meta["source"]["camera"]["name"] == "kinect_v2"
    points.verify()


def test_the_command_line(tmp_path, capsys):
    words = ["data", "synth", "--depth", "--subjects", "2", "--views", "1", "--repetitions", "1", "--seed", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2vfast.data.synth._choose", lambda actions: [0])
        assert main([*words, "--out", str(tmp_path / "store")]) == 0
    store = Store.open(tmp_path / "store")
    assert f"2 sequences, {store.rows} points, 1 classes" in capsys.readouterr().out
