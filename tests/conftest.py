"""What all tests share: the real recordings, the GPU marker, and how many threads a test may take."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

# Two threads at most: enough to exercise threaded code, few enough for a small machine.
torch.set_num_threads(min(2, torch.get_num_threads()))

# A test run that was started in the background ignores these, and so would everything that is tested with them.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


# Milliseconds a step on the store below.
TINY = """
data: {frames: 8, rotate: [0.1, 0.1, 0.1]}
model: {segment_frames: 4, dim: 8, heads: 2, depth: 1, layer_scale: 0.1}
mask: {ratio: 0.8, tube_len: 1}
objective: {top_k: 1, ema_start: 0.9}
optim: {warmup_epochs: 0.5}
train: {steps: 8, batch: 4, threads: 1, device: cpu, log_every: 2}
checkpoint: {every: 3, keep: 2}
"""


_RUNNING = contextlib.ExitStack()


def pytest_addoption(parser):
    text = "run Triton kernels compiled for sm_80 or sm_90 in the emulator, not in Triton's interpreter"
    parser.addoption("--emulate", type=int, choices=(80, 90), help=text)


def pytest_configure(config):
    # What a user's runs have measured on this machine must decide nothing here, nor the other way round.
    os.environ["S2VFAST_CALIBRATE"] = "0"
    # What can run is asked while tests are collected.
    if arch := config.getoption("--emulate"):
        from s2vfast.kernels.emulator import emulate

        _RUNNING.enter_context(emulate(arch))
    elif not torch.cuda.is_available():
        # Triton's kernels run in its interpreter: it asks for this before they are defined.
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_unconfigure():
    _RUNNING.close()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="module", autouse=True)
def no_plugin_is_left():
    """What calibrates hands the plugins of this process on: one that a module's tests have loaded ends with them."""
    yield
    for name in [name for name in sys.modules if name.startswith("s2vfast_plugin_")]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder named by S2VFAST_DATA, which holds nw_ucla/; without it, a test that asks for it is skipped."""
    named = os.environ.get("S2VFAST_DATA")
    if not named:
        pytest.skip("S2VFAST_DATA is not set (the folder that holds nw_ucla/)")
    folder = Path(named).absolute()
    assert (folder / "nw_ucla").is_dir(), f"S2VFAST_DATA={named}: there is no nw_ucla/ in it"
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with ``store``, ``tiny.yaml`` and a finished run ``run``."""
    from s2vfast.cli import main

    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(TINY)
    assert main(f"data synth --out {folder}/store --subjects 2 --views 1 --repetitions 1".split()) == 0
    assert main(f"pretrain --config {folder}/tiny.yaml --data {folder}/store --out {folder}/run".split()) == 0
    return folder


@pytest.fixture
def cli(capfd, monkeypatch):
    """cli("words of a command") -> (exit code, lines of standard output, lines of standard error)."""
    from s2vfast.cli import main

    monkeypatch.delenv("S2VFAST_DEBUG", raising=False)

    def call(line):
        capfd.readouterr()
        code = main(line.split())
        out, err = capfd.readouterr()
        return code, out.splitlines(), err.splitlines()

    return call
