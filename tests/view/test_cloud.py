"""The page of a recording of points."""

import numpy as np
import pytest

from s2vfast.cli import main
from s2vfast.data import PointLayout, Store, write_store
from s2vfast.data.point_store import PointSequence
from s2vfast.errors import DataError
from s2vfast.view import cloud, page


def recording(name, length, most=20, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, most, length)
    counts[length // 2] = 0
    points = rng.normal([0.2, 0.1, 2.5], 0.3, (counts.sum(), 3)).astype(np.float32)
    return PointSequence(name, 0, length, points, counts, subject=2, notes=["left out: a chair"])


@pytest.fixture(scope="module")
def clouds(place):
    """Recordings of points of names that the store of skeletons has, one of another length, and a long one."""
    lengths = dict(zip(place.opened.names, place.opened.total_frames.tolist(), strict=True))
    path = place.folder / "clouds"
    sequences = [
        recording("s004", lengths["s004"]),
        recording("s005", lengths["s005"] + 1, seed=1),
        recording("long", 400, 3000, seed=2),
        recording(place.evil, lengths[place.evil], seed=3),
    ]
    write_store(path, sequences, layout=PointLayout(), classes=["wave"], splits={}, source={}, dropped=[])
    return Store.open(path)


def test_the_cloud_is_there_to_the_millimetre(clouds, tmp_path, read_page, is_picture):
    shown = cloud.collect(clouds.path, "s004")
    data = read_page(cloud.write(shown, tmp_path / "a.html"))
    seen = page.unpacked(data["cloud"]["seen"]).astype(bool)[0]
    places = page.unpacked(data["cloud"]["places"])[0]
    frames = clouds.cloud(0)
    assert data["counts"] == [len(frame) for frame in frames]
    assert data["frames"] == list(range(len(frames)))
    for frame, points in enumerate(frames):
        np.testing.assert_allclose(places[frame][seen[frame]], points, atol=5e-4)
    assert data["scene"] is None
    facts = dict(data["facts"])
    assert (facts["name"], facts["class"], facts["subject"], facts["points"]) == ("s004", "wave", 2, seen.sum())
    assert facts["note"] == "left out: a chair"
    is_picture(cloud.draw(shown, tmp_path / "a.png"))


def test_a_skeleton_lies_in_it(clouds, place, tmp_path, read_page, is_picture):
    shown = cloud.collect(clouds.path, "0", place.store)
    data = read_page(cloud.write(shown, tmp_path / "a.html"))
    clip, _ = place.opened.sequence(place.opened.names.index("s004"))
    seen = page.unpacked(data["scene"]["seen"]).astype(bool)
    np.testing.assert_allclose(page.unpacked(data["scene"]["places"])[seen], clip[seen], atol=5e-4)
    assert data["layout"]["joints"] == list(place.opened.layout.joints)
    assert dict(data["facts"])["skeleton"] == "stick, 5 joints"
    is_picture(cloud.draw(shown, tmp_path / "a.png"))


def test_long_and_dense_recordings_are_thinned(clouds, tmp_path):
    shown = cloud.collect(clouds.path, "long")
    assert shown.points.shape == (134, 1000, 3)
    assert shown.frames.tolist() == list(range(0, 400, 3))
    assert "every 3. frame" in dict(shown.facts)["shown"]
    assert cloud.write(shown, tmp_path / "a.html").stat().st_size < 2**21


def test_what_does_not_fit_is_one_line(clouds, place, tmp_path):
    for which, skeletons, message in (
        ("s00", None, "no sequence 's00'; the nearest names are"),
        ("long", place.store, "no sequence 'long'; skeletons are found by the name of the points"),
        ("s005", place.store, "s005 has 14 frames, its points have 15"),
        ("s004", clouds.path, "a store of points, which have no joints"),
    ):
        with pytest.raises(DataError, match=message):
            cloud.collect(clouds.path, which, skeletons)
    with pytest.raises(DataError, match="a store of skeletons; `s2vfast view sequence` shows it"):
        cloud.collect(place.store, "s004")


def test_the_command(clouds, place, tmp_path, monkeypatch, capsys, read_page):
    monkeypatch.chdir(tmp_path)
    words = ["view", "cloud", str(clouds.path), place.evil, "--skeletons", str(place.store), "--out", "a.html"]
    assert main([*words, "--png", "a.png"]) == 0
    assert capsys.readouterr().out.split() == ["a.png", "a.html"]
    read_page(tmp_path / "a.html")
    assert main(["view", "sequence", str(clouds.path), "s004"]) == 1
    assert "`s2vfast view cloud` shows it" in capsys.readouterr().err
