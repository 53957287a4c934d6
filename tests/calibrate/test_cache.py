"""Where measurements are kept, and what becomes of a file that is not what it should be."""

import json

import pytest
import torch

from s2vfast import calibrate, errors, ops
from s2vfast.calibrate import cache
from s2vfast.calibrate.measure import candidates

CPU = torch.device("cpu")


def rows(op="masked_mse", size=2, ms=1.0):
    return [{"op": op, "key": (False, ("float32", size)), "impl": impl, "ms": ms} for impl in candidates(op)]


def test_rows_come_back_and_others_stay(cache_folder):
    facts = cache.environment(CPU)
    assert cache.read(facts) == ([], "")
    path = cache.write(facts, rows())
    assert path.parent == cache_folder / "calibration"
    cache.write(facts, rows(size=3) + rows(ms=5.0))
    kept, why = cache.read(facts)
    assert why == ""
    assert {(row["key"][1], row["ms"]) for row in kept} == {(("float32", 3), 1.0), (("float32", 2), 5.0)}


def test_another_environment_has_another_file(monkeypatch):
    facts = cache.environment(CPU)
    cache.write(facts, rows())
    assert facts["matmul_precision"] == "highest"
    for name in facts:
        assert cache.read(facts | {name: "other"}) == ([], "")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert cache.environment(CPU) == facts | {"matmul_precision": "high"}

    def refused():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refused)
    assert cache.environment(CPU) == facts | {"matmul_precision": None}
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert cache.environment(CPU) != facts


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 7, "rows": []}', "\xff", None])
def test_a_damaged_or_foreign_file_is_ignored_in_a_line(content):
    facts = cache.environment(CPU)
    path = cache.write(facts, rows())
    if content is None:  # of another machine, copied
        content = json.dumps(json.loads(path.read_text()) | {"environment": facts | {"device": "H100"}})
    path.write_text(content, "latin-1")
    kept, why = cache.read(facts)
    assert kept == []
    assert why.startswith(f"{path}: ignored: ")
    assert "\n" not in why
    cache.write(facts, rows())  # it is replaced
    assert cache.read(facts)[1] == ""


@pytest.mark.parametrize(
    "row", [7, {}, {"op": 1, "key": [], "impl": "x", "ms": 1}, {"op": "mlp", "key": [], "impl": "x"}]
)
def test_a_bad_row_spoils_the_file(row):
    facts = cache.environment(CPU)
    path = cache.write(facts, rows())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": [row]}))
    assert "damaged" in cache.read(facts)[1]


def test_rows_of_other_implementations_are_measured_again(monkeypatch):
    facts = cache.environment(CPU)
    cache.write(facts, rows() + rows("mlp"))
    monkeypatch.setitem(ops.operation("masked_mse").implementations, "mine", min)
    assert {row["op"] for row in cache.read(facts)[0]} == {"mlp"}


def test_a_folder_that_cannot_be_written_is_one_error(cache_folder):
    cache_folder.write_text("a file")
    with pytest.raises(errors.TrainingError, match="cannot be written"):
        cache.write(cache.environment(CPU), rows())


def test_the_folder(monkeypatch, tmp_path):
    assert calibrate.folder() == tmp_path / "cache"
    monkeypatch.delenv("S2VFAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert calibrate.folder() == tmp_path / "s2vfast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert calibrate.folder() == tmp_path / "home/.cache/s2vfast"
