"""The rule by which an implementation is right: its error against float64 beside that of the eager operation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from s2vfast.ops import IMPLEMENTATIONS, _dispatch


def implementations(stem: str, device: str = "cpu") -> list[str]:
    """Names, without the reference, that can run here."""
    op = _dispatch._OPS[stem]
    return [name for name in IMPLEMENTATIONS[1:] if not op.why_not(name, device)]


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Float64 normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def _run(function: Callable, inputs: dict, upstream: list[Tensor] | None, dtype: torch.dtype) -> list[Tensor]:
    """Outputs, then gradients of the floating inputs, all in float64."""

    def typed(x: object) -> object:
        if isinstance(x, Tensor) and x.is_floating_point():
            # Through the tested dtype, so that all see the same numbers.
            return x.detach().to(torch.float32).to(dtype).requires_grad_(upstream is not None)
        if isinstance(x, list) and x and isinstance(x[0], Tensor):
            return [typed(item) for item in x]
        return x

    given = {name: typed(value) for name, value in inputs.items()}
    outputs = function(**given)
    outputs = [out for out in (outputs if isinstance(outputs, tuple) else (outputs,)) if out is not None]
    results = [out.detach().double() for out in outputs]
    if upstream is not None:
        total = sum((out * up.to(out.dtype)).sum() for out, up in zip(outputs, upstream, strict=True))
        leaves = [x for x in given.values() if isinstance(x, Tensor) and x.requires_grad]
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
        results += [
            torch.zeros_like(x).double() if g is None else g.double() for g, x in zip(gradients, leaves, strict=True)
        ]
    return results


@pytest.fixture
def agree() -> Callable:
    """agree(op, reference, inputs, impl): outputs within 2x, gradients within 3x of the eager float32 error."""

    def check(op: Callable, reference: Callable, inputs: dict, impl: str, gradients: bool = True) -> None:
        with torch.no_grad():
            shapes = _run(reference, inputs, None, torch.float64)
        # A plain sum as the loss would hide mistakes that cancel.
        upstream = [random(*out.shape, seed=99 + i) for i, out in enumerate(shapes)] if gradients else None
        exact = _run(reference, inputs, upstream, torch.float64)
        eager = _run(reference, inputs, upstream, torch.float32)
        found = _run(lambda **kw: op(**kw, impl=impl), inputs, upstream, torch.float32)
        assert len(found) == len(exact)
        for i, (e, g, f) in enumerate(zip(exact, eager, found, strict=True)):
            factor = 2.0 if i < len(shapes) else 3.0
            floor = 1e-6 * max(1.0, float(e.abs().max())) if e.numel() else 0.0
            allowed = factor * float((g - e).abs().max()) + floor if e.numel() else 0.0
            error = float((f - e).abs().max()) if e.numel() else 0.0
            assert f.shape == e.shape
            assert torch.isfinite(f).all()
            assert error <= allowed, f"result {i}: error {error:.3g}, allowed {allowed:.3g}"

    return check


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument ``impl`` runs for every implementation of its file's stem that can run here."""
    if "impl" in metafunc.fixturenames:
        stem = metafunc.module.__name__.rpartition("test_")[2]
        metafunc.parametrize("impl", implementations(stem))


@pytest.fixture
def numbers() -> Callable[..., Tensor]:
    """numbers(*shape, seed=…, scale=…): float64 normal numbers."""
    return random
