"""A run of two machines: network namespaces with addresses of their own, a cable between them, and a cut through it."""

import contextlib
import os
import shutil
import subprocess
import sys
import time

import pytest

from ..calls import ENVIRONMENT
from .test_torchrun import STEPS, assert_close, assert_same_bits, files, lines, undisturbed, wait_for  # noqa: F401

pytestmark = pytest.mark.slow
HOSTS = {"10.203.77.1": "a", "10.203.77.2": "b"}
PATIENCE = 6


def ip(*words, check=True):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=check)


@pytest.fixture
def hosts():
    """Names of two network namespaces that see each other and nothing else, by address."""
    if shutil.which("ip") is None or os.geteuid():
        pytest.skip("needs the command ip, and root")
    names = {address: f"s2v{os.getpid()}{letter}" for address, letter in HOSTS.items()}
    try:
        try:
            for name in names.values():
                ip("netns", "add", name)
            first, second = names.values()
            ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
            for address, name in names.items():
                ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
                for device in ("lo", "cable"):
                    ip("-n", name, "link", "set", device, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine allows no network namespaces with a cable: {error.stderr.strip()}")
        yield names
    finally:
        for name in names.values():
            ip("netns", "delete", name, check=False)


def launch(hosts, address, arguments, log):
    """torchrun on one host. That of the first address has the rendezvous."""
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=5"]
    launcher += ["--rdzv-backend=c10d", f"--rdzv-endpoint={next(iter(hosts))}:29511", "--rdzv-id=run"]
    # By its name a namespace does not know that the endpoint's address is its own.
    settings = f"is_host={address == next(iter(hosts))},join_timeout=120,read_timeout=60"
    launcher += [f"--local-addr={address}", "--monitor-interval=0.1", f"--rdzv-conf={settings}"]
    return subprocess.Popen(
        ["ip", "netns", "exec", hosts[address], sys.executable, *launcher, "-m", "s2vfast", *arguments],
        env=ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "cable", "S2VFAST_PEER_TIMEOUT": str(PATIENCE)},
        stdout=subprocess.DEVNULL,
        stderr=log.open("a"),
    )


def ended(processes, logs, again=None):
    """Waits until torchrun has ended well on all hosts. again(number): starts it anew on a host where it gave up."""
    deadline = time.monotonic() + 150 * len(processes)
    while any(process.poll() != 0 for process in processes):
        failed = [number for number, process in enumerate(processes) if process.poll() not in (None, 0)]
        assert time.monotonic() < deadline, "\n".join(log.read_text()[-3000:] for log in logs)
        assert again is not None or not failed, "\n".join(log.read_text()[-3000:] for log in logs)
        for number in failed:
            processes[number] = again(number)
        time.sleep(0.2)


@contextlib.contextmanager
def running(hosts, arguments, logs):
    processes = [launch(hosts, address, arguments, log) for address, log in zip(hosts, logs, strict=True)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


def test_two_hosts_are_one_machine(hosts, files, undisturbed, tmp_path):  # noqa: F811
    _, arguments = files
    out = tmp_path / "run"
    logs = [tmp_path / letter for letter in HOSTS.values()]
    with running(hosts, [*arguments, "--out", str(out)], logs) as processes:
        ended(processes, logs)
    assert_close(undisturbed, out)


def test_a_host_that_was_cut_off_comes_back(hosts, files, undisturbed, tmp_path):  # noqa: F811
    """Its cable is pulled in the middle. The ranks give up, and go on from the last checkpoint when it is back."""
    _, arguments = files
    out = tmp_path / "run"
    logs = [tmp_path / letter for letter in HOSTS.values()]
    _, second = hosts.values()
    with running(hosts, [*arguments, "--out", str(out), "--resume"], logs) as processes:
        wait_for(out, 6, processes[0])
        ip("-n", second, "link", "set", "cable", "down")
        reached = len(lines(out))
        time.sleep(PATIENCE + 4)
        assert len(lines(out)) <= reached + 1 < STEPS, "no rank goes on alone"
        ip("-n", second, "link", "set", "cable", "up")
        # A host whose torchrun gave up is started again, as a scheduler would, whenever that is: it may find the
        # other's rendezvous closed, and give up once more.
        words = [*arguments, "--out", str(out), "--resume"]
        ended(processes, logs, lambda number: launch(hosts, list(hosts)[number], words, logs[number]))
    assert_same_bits(out, undisturbed)
