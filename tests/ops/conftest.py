"""The rule by which an implementation is right: its error against float64 beside that of the eager operation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from s2vfast import verify
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument ``impl`` runs for every implementation of its file's op that can run here."""
    op = metafunc.module.__name__.rpartition("test_")[2]
    if "impl" in metafunc.fixturenames and op in _dispatch._OPS:
        metafunc.parametrize("impl", implementations(op))


@pytest.fixture
def numbers() -> Callable[..., Tensor]:
    """numbers(*shape, seed=…, scale=…): float64 normal numbers."""
    return random
