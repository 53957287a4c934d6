"""The doctor reports what is there, and never falls ill itself."""

import json
import os
import subprocess
import sys

import pytest
import torch

import s2vfast
from s2vfast import _extension, doctor, ops


def test_facts_are_plain_values_and_true():
    facts = doctor.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["s2vfast"]["version"] == s2vfast.__version__
    assert facts["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert facts["operations"]["cpu"] == ops.availability("cpu")
    assert ("cuda" in facts["operations"]) == torch.cuda.is_available()
    assert ("missing" in facts["extension"]) == bool(_extension.why_not())
    assert not [name for name, section in facts.items() if "error" in section]


def test_report_names_every_operation_with_what_can_run():
    text = doctor.report()
    for op, implementations in ops.availability("cpu").items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {op} ")]
        assert line.split(maxsplit=1)[1] == ", ".join(name for name, reasons in implementations.items() if not reasons)
        for reasons in implementations.values():
            for reason in reasons:
                assert reason.removeprefix(f"{op} ").splitlines()[0] in text


@pytest.mark.parametrize("section", ["_own", "_machine", "_packages", "_cuda", "_extension", "_operations", "_disk"])
def test_a_part_that_fails_is_reported(monkeypatch, section):
    def fail():
        raise RuntimeError("the probe broke")

    monkeypatch.setattr(doctor, section, fail)
    assert "RuntimeError: the probe broke" in doctor.report()
    assert list(doctor.facts().values()).count({"error": "RuntimeError: the probe broke"}) == 1


def test_a_folder_that_is_gone_does_not_stop_it(monkeypatch):
    def gone():
        raise FileNotFoundError("no such folder")

    monkeypatch.setattr(os, "getcwd", gone)
    assert "FileNotFoundError: no such folder" in doctor.report()


def test_runs_as_a_module(tmp_path):
    done = subprocess.run([sys.executable, "-m", "s2vfast.doctor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "operations on cpu" in done.stdout


def test_an_extension_that_was_not_built_says_why(tmp_path, monkeypatch):
    note = tmp_path / "_native_missing.txt"
    monkeypatch.setattr(_extension, "_NOTE", note)
    monkeypatch.setitem(sys.modules, "s2vfast._native", None)
    _extension._attempt.cache_clear()
    try:
        assert "No module named" in _extension.why_not() or "halted" in _extension.why_not()
        _extension._attempt.cache_clear()
        note.write_text("no C++ compiler (g++) was found\n", "utf-8")
        assert "no C++ compiler (g++) was found" in _extension.why_not()
        assert doctor.facts()["extension"]["missing"] == _extension.why_not()
        with pytest.raises(s2vfast.S2vfastError, match="no C\\+\\+ compiler"):
            _extension.load()
    finally:
        _extension._attempt.cache_clear()


def test_a_signal_while_the_extension_is_set_up_is_no_missing_extension(monkeypatch):
    """An import that was told to stop in that moment once went on, with the slow parser."""

    def interrupted(name):
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr(_extension.importlib, "import_module", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _extension._attempt.__wrapped__()
