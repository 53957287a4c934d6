"""Calls of operations, and implementations of all kinds of badness, in this process for a module's tests alone."""

from pathlib import Path

import pytest

from s2vfast import ops
from s2vfast.config.registry import load_plugin


@pytest.fixture(scope="module")
def odd():
    """Names of the implementations of masked_mse that a plugin registers, until the module's tests end."""
    op = ops.operation("masked_mse")
    before = dict(op.implementations), dict(op.reasons)
    load_plugin(Path(__file__).with_name("odd_masked_mse.py"))
    yield sorted(set(op.implementations) - set(before[0]))
    op.implementations, op.reasons = before


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """A cache of its own, and calibration as users have it."""
    monkeypatch.setenv("S2VFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("S2VFAST_CALIBRATE", raising=False)
    monkeypatch.delenv("S2VFAST_IMPL", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # of processes that are started: nobody times it
    return tmp_path / "cache"
