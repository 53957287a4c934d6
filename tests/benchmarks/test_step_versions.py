"""Whole steps of two versions: a real comparison with this very commit, what it comes to, and what is refused."""

import argparse
import json
from unittest import mock

import pytest

from benchmarks import _results, _step_versions, bench_step

ARGUMENTS = ["--config", "nwucla", "--batch", "2", "--impl", "torch", "--repeat", "1", "--json"]


@pytest.mark.slow
def test_a_version_against_itself(monkeypatch, capsys):
    if not (_results.ROOT / ".git").exists():
        pytest.skip("no git checkout, which another version would come from")
    monkeypatch.setattr(_step_versions, "TURNS", 1)
    assert bench_step.main([*ARGUMENTS, "--compare", "HEAD"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["compared"].startswith("HEAD (")
    assert 0.1 < result["ratio"] < 10
    assert result["old"]["ratio"] > 0
    assert result["new"]["ratio"] > 0


def test_what_it_comes_to(monkeypatch, capsys):
    """Medians over turns; a machine that is slower for one version changes one of the two ratios alone."""
    answers = iter([(30.0, 2.0), (10.0, 3.0), (40.0, 2.0), (10.0, 3.0), (90.0, 1.0), (70.0, 9.0)])

    def step(folder, options):
        milliseconds, ratio = next(answers)
        return {"ms": milliseconds, "ratio": ratio}

    for name in ("snapshot", "install"):
        monkeypatch.setattr(_step_versions, name, lambda *arguments: None)
    monkeypatch.setattr(_step_versions, "unpack", lambda rev, folder: "0123456789")
    monkeypatch.setattr(_step_versions, "step", step)
    assert bench_step.main([*ARGUMENTS, "--compare", "v1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["compared"], result["old"], result["new"]) == (
        "v1 (0123456789)",
        {"ms": 40.0, "ratio": 2.0},
        {"ms": 10.0, "ratio": 3.0},
    )
    assert (result["ratio"], result["ratio_by_reference"]) == (4.0, 1.5)
    assert "this tree is 4 times as fast, by the published step beside it 1.5 times" in _step_versions.text(result)


def test_what_cannot_be_compared_is_one_line(capsys):
    assert bench_step.main([*ARGUMENTS, "--compare", "no-such-revision"]) == 2
    assert "no-such-revision: there is no such commit, branch or tag" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_step.main([*ARGUMENTS, "--compare", "HEAD", "--memory"])
    assert "leave out --vs, --sweep, --memory, --out" in capsys.readouterr().err


def test_a_file_of_a_config_is_found_from_either_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("{}")
    run = mock.Mock(return_value=mock.Mock(stdout='{"rows": [{"p50": 2.0, "ratio": 3.0}]}'))
    monkeypatch.setattr(_step_versions.subprocess, "run", run)
    options = argparse.Namespace(impl="torch", batch=2, repeat=1, device="cpu", matmul_precision="highest")
    for config, found in (("mine.yaml", str(tmp_path / "mine.yaml")), ("nwucla", "nwucla")):
        options.config = config
        assert _step_versions.step(tmp_path, options) == {"ms": 2.0, "ratio": 3.0}
        assert found in run.call_args.args[0]
