"""The schema that every result is written and read by."""

import json
import statistics
import subprocess

import pytest
import torch

from benchmarks import _results, report
from s2vfast import errors
from s2vfast.ops._dispatch import PREFERENCE

CPU = {"name": "a CPU", "slug": "cpu", "type": "cpu", "threads": 2}
ROW = {
    "what": "tube_mask",
    "threads": 1,
    "versus": "torch.argsort",
    "p20": 0.9,
    "p50": 1.0,
    "p80": 1.2,
    "other_p50": 10,
    "ratio": 10.0,
    "unit": "tracks",
    "per_second": 128000.0,
}


def test_a_result_comes_back_as_it_was(tmp_path):
    made = _results.result("data", [ROW, {"what": "clip_sample", "refused": "differs"}], CPU, {"copy_gb_s": 20.0})
    path = _results.write(made, tmp_path)
    assert path == tmp_path / "cpu/data.json"
    assert _results.read(path) == made
    (tmp_path / "cpu/summary.json").write_text("{}")  # of `make gpu`
    assert _results.paths(tmp_path) == [path]
    assert len([line for line in path.read_text().splitlines() if '"what"' in line]) == 2  # a row a line
    for name in ("command", "commit", "versions", "device", "date"):
        assert made[name]


def test_what_is_not_whole_leaves_what_is_there(tmp_path):
    whole, part = _results.result("data", [ROW, ROW], CPU), _results.result("data", [ROW], CPU)
    path = _results.write(whole, tmp_path)
    partial = _results.write(part, tmp_path, complete=False)
    assert (partial.name, _results.read(path), _results.read(partial)) == ("data.json.partial", whole, part)
    assert _results.paths(tmp_path) == [path]
    assert _results.promote(tmp_path) == []  # it has fewer rows
    path.unlink()
    assert _results.promote(tmp_path) == [path]
    assert _results.read(path) == part
    _results.write(whole, tmp_path, complete=False)
    assert _results.promote(tmp_path) == [path]  # it has more rows
    assert _results.read(path) == whole
    assert sorted(file.name for file in path.parent.iterdir()) == ["data.json"]


def test_the_commit_is_that_of_the_beginning(monkeypatch):
    start = _results.origin()
    monkeypatch.setattr(_results, "commit", lambda: "changed since")
    assert _results.result("data", [], CPU)["commit"] == start[0]


def test_committed_results_follow_the_schema():
    for path in _results.paths(_results.RESULTS):
        assert _results.read(path)["rows"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r["rows"][0].pop("p50"), r"rows\[0\]: field 'p50' is missing"),
        (lambda r: r["rows"][0].update(ratio="fast"), r"rows\[0\]: ratio: expected int/float, got 'fast'"),
        (lambda r: r["rows"][0].update(p20=float("nan")), r"rows\[0\]: p20: expected a finite number, got nan"),
        (lambda r: r["rows"][0].update(speed=1), r"rows\[0\]: unknown field 'speed'"),
        (lambda r: r["rows"].append({"refused": "differs"}), r"rows\[1\]: field 'what' is missing"),
        (lambda r: r.pop("commit"), "field 'commit' is missing"),
        (lambda r: r.update(schema=0), "schema: expected 2, got 0; measure again"),
        (lambda r: r.update(kind="speed"), "kind: expected one of ops, step"),
        (lambda r: r.update(date="yesterday"), "date: expected YYYY-MM-DD"),
        (lambda r: r["device"].update(slug="../up"), "device: slug: expected letters, digits"),
        (lambda r: r["device"].pop("threads"), "device: field 'threads' is missing"),
        (lambda r: r.update(ceilings={"copy_gb_s": 0}), "ceilings: copy_gb_s: expected a number above 0"),
        (lambda r: r["rows"][0].update(p80=float("inf")), r"rows\[0\]: p80: expected a finite number, got inf"),
        (lambda r: r["rows"][0].update(ratio=0.0), r"rows\[0\]: ratio: expected more than 0"),
    ],
)
def test_what_is_wrong_is_named_by_file_row_and_field(tmp_path, change, says):
    made = _results.result("data", [ROW], {**CPU})
    change(made)
    path = tmp_path / "data.json"
    path.write_text(json.dumps(made))
    with pytest.raises(errors.DataError, match=f"data.json: .*{says}"):
        _results.read(path)


def test_what_is_no_json_is_named(tmp_path):
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(errors.DataError, match="data.json: cannot be read as a result"):
        _results.read(tmp_path / "data.json")


def test_the_commit_says_whether_anything_was_changed(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a")
    clean = _results.commit(tmp_path)
    assert len(clean) == 12
    (tmp_path / "a").write_text("2")
    changed = _results.commit(tmp_path)
    assert changed.startswith(f"{clean}+")
    (tmp_path / "b").write_text("new")
    assert _results.commit(tmp_path) not in (clean, changed)
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").unlink()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/performance.md").write_text("what was measured changes nothing that is")
    assert _results.commit(tmp_path) == clean
    monkeypatch.setenv("S2VFAST_COMMIT", "sent")
    assert _results.commit(tmp_path / "docs/nowhere") == "sent"


def test_percentiles_are_those_of_the_times():
    assert _results.percentiles([5.0, 1.0, 2.0, 3.0, 4.0]) == {"p20": 1.8, "p50": 3.0, "p80": 4.2}
    assert _results.device_facts(torch.device("cpu"))["slug"] == "cpu"


def test_what_auto_prefers_was_measured_to_be_faster():
    """Over all shapes and passes of the committed results, by the geometric mean."""
    rows = [
        row
        for name in ("ops", "graph_networks", "attention", "graph_mix")
        for row in _results.read(_results.RESULTS / f"cpu/{name}.json")["rows"]
    ]
    for op, (first, *_) in PREFERENCE["cpu"].items():
        ratios = [row["ratio"] for row in rows if row["op"] == op and row["impl"] == first and "ratio" in row]
        assert statistics.geometric_mean(ratios) > 1.0, f"{op}: {first} is not faster than torch"


def test_the_report_is_what_the_committed_results_give():
    """A change of either is to be followed by python -m benchmarks.report."""
    docs = _results.ROOT / "docs"
    files, _ = report.pages(_results.RESULTS, docs, docs / "training.md")
    assert report.stale(files, docs) == []
