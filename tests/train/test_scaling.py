"""The model of the sum of gradients, against numbers by hand."""

import json

import pytest

from s2vfast import presets
from s2vfast.train import scaling


def test_the_sum_by_hand(capsys):
    """1 GB, 4 GPUs a machine: 1.5 GB through links of 10 GB/s, then 250 MB each by cards of 1 GB/s, and rounds."""
    links = scaling.Links(gpus=4, nvlink=10e9, network=1e9, nvlink_latency=1e-3, network_latency=1e-2)
    assert scaling.seconds_of_sum(10**9, 1, links) == 0
    assert scaling.seconds_of_sum(10**9, 4, links) == pytest.approx(0.15 + 4e-3)
    assert scaling.seconds_of_sum(10**9, 8, links) == pytest.approx(0.15 + 4e-3 + 0.25 + 2e-2)
    assert scaling.seconds_of_sum(10**9, 16, links) == pytest.approx(0.15 + 4e-3 + 1.5 * 0.25 + 4e-2)


def test_the_table(capsys):
    size = scaling.trained_bytes(presets.load("nwucla"), "kinect_v1")
    assert scaling.main(["--config", "nwucla", "--layout", "kinect_v1", "--step_ms", "2", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["bytes"] == size
    assert table["modelled"] is True
    for row in table["rows"]:
        assert row["efficiency"] == pytest.approx(2 / (2 + row["sum_ms"]))
        assert row["overlapped"] == pytest.approx(2 / (2 + 0.1 * row["sum_ms"]))
    shares = [row["efficiency"] for row in table["rows"]]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("words", [["--step_ms", "0"], ["--step_ms", "2", "--config", "ntu61"]])
def test_what_is_impossible_is_said(words, capsys):
    with pytest.raises(SystemExit):
        scaling.main(words)
    assert words[-2] in capsys.readouterr().err or "ntu61" in words
