"""The linear map of the ``torch`` implementations: the fused one against the plain one."""

import pytest
import torch
import torch.nn.functional as F

from s2vfast.ops import _linear


def operands(*shape, E=24):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator)
    weight = torch.randn(E, shape[-1], generator=generator) * 0.2
    return x, weight, torch.randn(E, generator=generator)


@pytest.fixture
def fused(monkeypatch):
    """Counts the products of its own, of few rows too."""
    calls = []
    real = _linear._product
    monkeypatch.setattr(_linear, "_product", lambda *a: (calls.append(a[3:]), real(*a))[1])
    monkeypatch.setattr(_linear, "MANY_ROWS", 1)
    if not _linear._has_onednn():
        pytest.skip("this PyTorch has no fused linear operator of oneDNN")
    return calls


@pytest.mark.parametrize("shape", [(7, 16), (2, 5, 16)])
@pytest.mark.parametrize("gelu", [False, True])
def test_without_a_gradient(fused, shape, gelu):
    x, weight, bias = operands(*shape)
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(_linear.linear(x, weight, bias, gelu), F.gelu(expected) if gelu else expected)
    assert fused == [(gelu,)]


@pytest.mark.parametrize("needed", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("E", [12, 24])  # fewer and more than there are numbers in a row
def test_with_gradients(fused, needed, gelu, E):
    results = []
    for function in (lambda *t: F.linear(*t), _linear.linear):
        leaves = [t.requires_grad_(bool(need)) for t, need in zip(operands(2, 5, 16, E=E), needed, strict=True)]
        out = function(*leaves)
        out = F.gelu(out) if gelu else out
        out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
        results.append([out.detach(), *(t.grad for t in leaves)])
    for expected, found in zip(*results, strict=True):
        assert (expected is None) == (found is None)
        if found is not None:
            torch.testing.assert_close(found, expected)
    assert fused


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_go_the_plain_way(fused, dtype):
    x, weight, bias = (t.to(dtype) for t in operands(3, 16))
    assert torch.equal(_linear.linear(x, weight, bias.float()), F.linear(x, weight, bias.float().to(dtype)))
    assert not fused


def test_without_bias_and_without_rows(fused):
    x, weight, _ = operands(3, 16)
    torch.testing.assert_close(_linear.linear(x, weight, None), x @ weight.t())
    assert _linear.linear(x[:0], weight, None).shape == (0, 24)
    assert fused == [(False,)]


def test_rows_that_lie_apart(fused):
    x, weight, _ = operands(2, 6, 16)
    x = x.requires_grad_()
    _linear.linear(x[:, ::2], weight, None).square().sum().backward()
    every_second = x.detach()[:, ::2]
    torch.testing.assert_close(x.grad[:, ::2], 2.0 * every_second @ weight.t() @ weight)
    assert not x.grad[:, 1::2].any()
    assert fused
