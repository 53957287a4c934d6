"""What all tests share: the real recordings, the GPU marker, and how many threads a test may take."""

import os
import signal
from pathlib import Path

import pytest
import torch

# Where there is no GPU, Triton's kernels run in its interpreter: it asks for this before they are defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Two threads at most: enough to exercise threaded code, few enough for a small machine.
torch.set_num_threads(min(2, torch.get_num_threads()))

# A test run that was started in the background ignores these, and so would everything that is tested with them.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder named by S2VFAST_DATA, which holds nw_ucla/; without it, a test that asks for it is skipped."""
    named = os.environ.get("S2VFAST_DATA")
    if not named:
        pytest.skip("S2VFAST_DATA is not set (the folder that holds nw_ucla/)")
    folder = Path(named).absolute()
    assert (folder / "nw_ucla").is_dir(), f"S2VFAST_DATA={named}: there is no nw_ucla/ in it"
    return folder
