"""What is drawn of a run."""

import json
import shutil

import numpy as np
import pytest

from s2vfast.errors import CheckpointError, ConfigError, DataError
from s2vfast.view import curves, page

KEYS = "step epoch loss lr ema_decay grad_norm target_var pred_var".split()


@pytest.fixture
def metrics(tmp_path):
    rows = [dict.fromkeys(KEYS, 1 / step) | {"step": step} for step in range(1, 41)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_columns_come_back_and_half_a_line_is_passed_over(metrics):
    before = curves.read_metrics(metrics)
    assert list(before) == KEYS
    np.testing.assert_array_equal(before["loss"], 1 / np.arange(1, 41))
    with open(metrics, "a") as file:
        file.write('{"step": 41, "lo')
    assert len(curves.read_metrics(metrics)["step"]) == 40


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(CheckpointError, match="metrics.jsonl: cannot be read: No such file"):
        curves.read_metrics(path)
    path.write_text("")
    with pytest.raises(CheckpointError, match="holds no line yet"):
        curves.read_metrics(path)
    for line in ("{\n", "[1]\n", '{"a": 1}\n{"b": 1}\n', '{"a": "x"}\n'):
        path.write_text(line)
        with pytest.raises(CheckpointError, match="not the numbers of a run"):
            curves.read_metrics(path)


def test_smooth_is_a_mean_over_a_window_that_shrinks_at_the_ends():
    values = np.array([1.0, 5.0, 3.0, 7.0, 9.0, 2.0])
    np.testing.assert_allclose(curves.smooth(values, 3), [1, 3, 5, 19 / 3, 6, 2])
    np.testing.assert_allclose(curves.smooth(values, 5), [1, 3, 5, 5.2, 6, 2])
    np.testing.assert_allclose(curves.smooth(np.full(9, 4.0), 5), 4.0)


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [([], 5, ""), ([2.0], 5, "▁"), ([0, 1, 2, 3, 4, 5, 6, 7], 60, "▁▂▃▄▅▆▇█"), ([7, 7, 0, 0, np.nan], 2, "█▁")],
)
def test_sparkline(values, width, line):
    assert curves.sparkline(values, width) == line


def test_the_picture_is_there_whole_or_not_at_all(metrics, tmp_path):
    from matplotlib.image import imread

    out = curves.loss_curve(metrics, tmp_path / "loss.png", title="a run")
    picture = imread(out)
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.05
    with pytest.raises(DataError, match="loss.png: cannot be written: No such file"):
        curves.loss_curve(metrics, tmp_path / "missing/loss.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_a_run_has_its_columns_and_the_last_throughput_of_every_step(place):
    run = curves.read_run(place.run)
    assert run.name == "run"
    assert run.epochs_per_step == pytest.approx(0.2)
    np.testing.assert_array_equal(run.columns["loss"][1], 1 / np.arange(1, 31))
    steps, rates = run.columns["clips_per_second"]
    np.testing.assert_array_equal(steps, [10, 15, 20, 30])
    np.testing.assert_array_equal(rates, [110, 115, 120, 130])


def test_runs_are_called_by_what_tells_them_apart(place, tmp_path):
    for name in ("a/run", "b/run", "c"):
        shutil.copytree(place.run, tmp_path / name)
    assert [run.name for run in curves.read_runs([tmp_path / "a/run", tmp_path / "c"])] == ["run", "c"]
    assert [run.name for run in curves.read_runs([tmp_path / "a/run", tmp_path / "b/run"])] == ["a/run", "b/run"]
    with pytest.raises(ConfigError, match="a run is named twice"):
        curves.read_runs([tmp_path / "c", tmp_path / "a/../c"])
    with pytest.raises(CheckpointError, match="a: no run here"):
        curves.read_runs([tmp_path / "a"])


def test_names_in_a_picture_are_no_mathematics(place, tmp_path, is_picture):
    for name in ("a$^$", "b$_$"):
        shutil.copytree(place.run, tmp_path / name)
    runs = curves.read_runs([tmp_path / "a$^$", tmp_path / "b$_$"])
    is_picture(curves.draw(runs, tmp_path / "a.png", title="a$^$", log=True))


def test_long_runs_are_thinned_to_their_end():
    steps = np.arange(1.0, 5002.0)
    thin, values = curves.thinned(steps, 2 * steps, 2000)
    np.testing.assert_array_equal(values, 2 * thin)
    assert (len(thin), thin[-1]) == (1667, 5001)
    assert set(np.diff(thin)) == {3}
    np.testing.assert_array_equal(curves.thinned(steps, steps, 9999)[0], steps)


def test_the_page_has_the_numbers_of_all_runs(place, tmp_path, read_page, is_picture):
    shutil.copytree(place.run, tmp_path / "</script>")
    (tmp_path / "</script>/throughput.jsonl").unlink()
    runs = curves.read_runs([place.run, tmp_path / "</script>"])
    data = read_page(curves.write(runs, tmp_path / "a.html"))
    assert [run["name"] for run in data["runs"]] == ["run", "script>"]
    steps, loss = map(page.unpacked, data["runs"][1]["columns"]["loss"])
    np.testing.assert_array_equal(steps, np.arange(1, 31))
    np.testing.assert_allclose(loss, 1 / np.arange(1, 31), rtol=1e-6)
    drawn = {key for panel in data["panels"] for key, _ in panel["lines"]}
    assert set(data["runs"][0]["columns"]) == drawn
    assert set(data["runs"][1]["columns"]) == drawn - {"clips_per_second"}
    is_picture(curves.draw(runs, tmp_path / "a.png", log=True, title="two"))
