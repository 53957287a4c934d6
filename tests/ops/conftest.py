"""The rule by which an implementation is right: its error against float64 beside that of the eager operation."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from s2vfast import _extension, verify
from s2vfast.ops import IMPLEMENTATIONS, _dispatch


def implementations(op: str, device: str = "cpu") -> list[str]:
    """Names, without the reference, that can run here."""
    return [name for name in IMPLEMENTATIONS[1:] if not _dispatch._OPS[op].why_not(name, device)]


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Float64 normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@pytest.fixture
def agree() -> Callable:
    """agree(op, reference, inputs, impl): outputs within 2x, gradients within 3x of the eager float32 error."""

    def check(op: Callable, reference: Callable, inputs: dict, impl: str, gradients: bool = True) -> None:
        def single(value: object) -> object:
            if isinstance(value, list):
                return [single(item) for item in value]
            return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

        given = {name: single(value) for name, value in inputs.items()}
        for row in verify.compare(lambda **kw: op(**kw, impl=impl), reference, reference, given, gradients=gradients):
            assert row.good, f"{row.name}: error {row.error:.3g}, allowed {row.allowed:.3g}"

    return check


BY_LANES = ("attention", "batch_norm", "graph_attention", "graph_mix", "joint_mix", "sparse_conv", "temporal_branches")
"""Ops whose native implementation is another function for registers of another width (csrc/lanes.h)."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument ``impl`` runs for every implementation of its file's op that can run here, the native one
    also with the narrower registers of other CPUs; one with ``lanes`` with registers of so many numbers."""
    op = metafunc.module.__name__.rpartition("test_")[2]
    if "impl" in metafunc.fixturenames and op in _dispatch._OPS:
        names: list = implementations(op)
        if "native" in names and op in BY_LANES:
            names += [pytest.param(("native", lanes), id=f"native-{lanes}") for lanes in (4, 8) if lanes < _widest()]
        metafunc.parametrize("impl", names, indirect=True)
    if "lanes" in metafunc.fixturenames and op in BY_LANES:
        metafunc.parametrize("lanes", [lanes for lanes in (4, 8, 16) if lanes <= _widest()], indirect=True)


def _widest() -> int:
    vectors = {"baseline": 4, "avx2": 8, "avx512": 16}
    return 0 if _extension.why_not() else vectors[_extension.facts()["vectors"]]


@pytest.fixture
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an implementation, or that and the numbers of a register that it works with."""
    if isinstance(request.param, str):
        yield request.param
        return
    name, lanes = request.param
    _extension.load().use_lanes(lanes)
    yield name
    _extension.load().use_lanes(0)


@pytest.fixture
def lanes(request: pytest.FixtureRequest) -> Iterator[int]:
    """Numbers of a register that the extension works with."""
    _extension.load().use_lanes(request.param)
    yield request.param
    _extension.load().use_lanes(0)


@pytest.fixture
def numbers() -> Callable[..., Tensor]:
    """numbers(*shape, seed=…, scale=…): float64 normal numbers."""
    return random
