"""Tables of configurations: what is found, what is not, and that every table ends in entries that always fit."""

import json

import pytest
import torch

from s2vfast.inputs import OPS
from s2vfast.kernels import _launch

CPU = torch.device("cpu")
TABLES = {op: json.loads(_launch.table_path(op).read_text("utf-8")) for op in OPS if _launch.table_path(op).is_file()}


@pytest.fixture
def table(monkeypatch):
    entries = [
        {"when": {"arch": 80, "L": [1, 64]}, "use": {"BLOCK": 16}},
        {"when": {"dtype": "bfloat16", "L": [65, 128]}, "use": {"BLOCK": 32, "num_warps": 4}},
        {"when": {"L": [1, 4096]}, "use": {"BLOCK": 64, "num_warps": 8}},
    ]
    monkeypatch.setattr(_launch, "_table", lambda op: {"forward": entries})


def test_the_first_entry_that_fits_is_used(table):
    assert _launch.configuration("x", "forward", CPU, dtype="bfloat16", L=100) == {"BLOCK": 32, "num_warps": 4}
    assert _launch.configuration("x", "forward", CPU, dtype="float32", L=100)["BLOCK"] == 64
    # The interpreter has no architecture and uses the entries of sm_90.
    assert _launch.configuration("x", "forward", CPU, dtype="float32", L=7)["BLOCK"] == 64
    with _launch.capture(80):
        assert _launch.configuration("x", "forward", CPU, dtype="float32", L=7) == {"BLOCK": 16}


def test_an_override_holds_within_its_block_and_for_its_kernel(table):
    with _launch.override("x", "forward", BLOCK=8):
        assert _launch.configuration("x", "forward", CPU, dtype="float32", L=7) == {"BLOCK": 8, "num_warps": 8}
        assert _launch.configuration("y", "forward", CPU, dtype="float32", L=7)["BLOCK"] == 64
    assert _launch.configuration("x", "forward", CPU, dtype="float32", L=7)["BLOCK"] == 64


def test_no_entry_names_what_was_looked_for(table):
    with pytest.raises(LookupError, match=r"tuned/x.json: forward: no entry for .*'L': 5000"):
        _launch.configuration("x", "forward", CPU, dtype="float32", L=5000)


@pytest.mark.parametrize("op", TABLES)
def test_every_table_ends_in_an_entry_that_always_fits_its_dtypes(op):
    for kernel, entries in TABLES[op].items():
        assert entries, kernel
        for entry in entries:
            assert set(entry) == {"when", "use"}, kernel
        assert set(entries[-1]["when"]) <= {"dtype"}, f"{kernel}: the last entry is for some shapes only"


def test_nothing_is_launched_over_an_empty_grid():
    def kernel(*args):
        raise AssertionError

    _launch.launch(kernel, (0, 3), torch.zeros(1))


def test_launches_can_be_recorded_instead_of_made():
    with _launch.capture(90) as launches:
        assert _launch.capturing()
        _launch.launch("kernel", (2,), torch.zeros(1), 5, BLOCK=16)
    assert not _launch.capturing()
    assert (launches[0].kernel, launches[0].grid, launches[0].options) == ("kernel", (2,), {"BLOCK": 16})
