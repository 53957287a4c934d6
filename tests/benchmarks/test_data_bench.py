"""The benchmark of clips and masks."""

import json

import pytest
import torch

from benchmarks import _results, bench_data
from s2vfast import _extension, errors

pytestmark = pytest.mark.skipif(bool(_extension.why_not()), reason="needs the compiled extension")
WAYS = ["NumPy loader", "torch.argsort, track by track", "torch.argsort, all at once"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the benchmark: its exit code and the rows that it wrote, read back by the schema."""
    monkeypatch.setattr(bench_data, "CALLS", 3)

    def call(*arguments):
        code = bench_data.main(["--repeat", "1", "--out", str(tmp_path), *arguments])
        return code, _results.read(tmp_path / "cpu/data.json")["rows"]

    return call


def test_clips_on_one_thread_and_masks_on_all(run, capsys):
    before = torch.get_num_threads()
    code, rows = run("--json")
    assert code == 0
    assert json.loads(capsys.readouterr().out)["rows"] == rows
    assert torch.get_num_threads() == before
    measured = {(row["what"], row["threads"], row["versus"]) for row in rows}
    assert measured == {("clip_sample", 1, WAYS[0])} | {("tube_mask", n, way) for n in (1, before) for way in WAYS[1:]}
    assert {(row["what"], row["unit"]) for row in rows} == {("clip_sample", "clips"), ("tube_mask", "tracks")}
    for row in rows:
        count = {"clips": bench_data.CLIPS, "tracks": bench_data.TRACKS}[row["unit"]]
        assert row["per_second"] == pytest.approx(1000 * count / row["p50"], rel=1e-3)
        assert row["ratio"] == pytest.approx(row["other_p50"] / row["p50"], rel=0.02)  # one round
    assert rows[0]["ratio"] > 2  # some two hundred


def test_threads_are_put_back_when_it_ends_early(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(bench_data, "measure", lambda *arguments: {"threads": torch.get_num_threads()})
    torch.set_num_threads(2)
    try:
        rows = bench_data.measure_all(torch.device("cpu"), 1)
        assert next(rows) == {"threads": 1}
        rows.close()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_clips_that_differ_are_not_timed_and_masks_are(run, monkeypatch):
    honest = bench_data.usual_clip
    monkeypatch.setattr(bench_data, "usual_clip", lambda *sequence: honest(*sequence) + 1e-3)
    code, rows = run()
    assert code == 1
    assert [row["what"] for row in rows if "refused" in row] == ["clip_sample"]
    assert rows[0]["refused"] == "native differs from NumPy loader"


def test_one_mask_that_differs_is_enough(run, monkeypatch):
    honest = bench_data.usual_masks

    def masks(*tensors):
        rows = honest(*tensors)
        rows[-1][1][0, -1] += 1
        return rows

    monkeypatch.setattr(bench_data, "usual_masks", masks)
    code, rows = run()
    assert code == 1
    assert {row["versus"] for row in rows if "refused" in row} == {WAYS[1]}


def test_what_cannot_run_is_refused_with_its_reason(run, monkeypatch):
    def missing(*args, **kwargs):
        raise errors.ImplementationError("clip_sample: impl='native' cannot run here")

    monkeypatch.setattr(bench_data.ops, "clip_sample", missing)
    code, rows = run()
    assert code == 1
    assert rows[0]["refused"] == "clip_sample: impl='native' cannot run here"


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_data.main(["--device", "cuda"]) == 2
    assert "no GPU that PyTorch can use" in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu_the_kernels_are_measured(tmp_path):
    assert bench_data.main(["--device", "cuda", "--repeat", "1", "--out", str(tmp_path)]) == 0
    rows = _results.read(next(tmp_path.glob("*/data.json")))["rows"]
    assert {(row["threads"], row["versus"]) for row in rows} == {(0, way) for way in WAYS}
