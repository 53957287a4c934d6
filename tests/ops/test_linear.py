"""The linear map of the ``torch`` implementations: the fused one against the plain one."""

import pytest
import torch
import torch.nn.functional as F

from s2vfast import ops
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


@pytest.fixture
def high():
    """Products of precision high, where this CPU has a matrix unit for them."""
    if not _linear._has_unit():
        pytest.skip("this CPU has no matrix unit for bfloat16 (AMX)")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def error(output, expected):
    return float(((output.double() - expected).norm() / expected.norm()).detach())


# Whole blocks, parts of a tile in every direction, more of the inner size than fits at a time.
@pytest.mark.parametrize("sizes", [(64, 64, 64), (33, 31, 17), (1, 1, 1), (70, 5, 100), (40, 9000, 96), (1100, 40, 33)])
@pytest.mark.parametrize("turned", [False, True])
def test_split_product(high, sizes, turned):
    rows, count, columns = sizes
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(rows, count, generator=generator), torch.randn(count, columns, generator=generator)
    bias = torch.randn(columns, generator=generator)
    output = _linear._split_product(left.t().contiguous().t() if turned else left, right, bias)
    expected = left.double() @ right.double() + bias.double()
    # Two bfloat16 leave 2e-5 of a number at most, on average 7e-6; one leaves 4e-3.
    assert 1e-7 < error(output, expected) < 2e-5


def test_split_product_keeps_what_is_no_number(high):
    left, right = torch.ones(40, 40), torch.ones(40, 40)
    left[3, 5] = torch.tensor([-1], dtype=torch.int32).view(torch.float32)  # the NaN whose rounding would carry
    left[7, 39] = torch.inf
    output = _linear._split_product(left, right)
    odd = output.isnan().any(1)
    assert odd.nonzero().flatten().tolist() == [3, 7]
    assert (output[~odd] == 40.0).all()


def test_split_product_is_the_same_on_any_number_of_threads(high):
    left, right = (torch.randn(sizes, generator=torch.Generator().manual_seed(2)) for sizes in ((1500, 64), (64, 130)))
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(_linear._split_product(left, right))
    torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_wide_products_are_split(high):
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(sizes, generator=generator) for sizes in ((1100, 100), (120, 100), (120,))]
    results = []
    for dtype in (torch.float64, torch.float32):
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        out = _linear.linear(*leaves)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for expected, output in zip(*results, strict=True):
        assert error(output, expected) < 3e-5
    assert error(results[1][0], results[0][0]) > 1e-6  # of sums of two bfloat16, and not of float32
    torch.set_float32_matmul_precision("highest")
    assert error(_linear.linear(*tensors), results[0][0]) < 1e-6


def test_precisions_that_pytorch_does_not_tell(high, monkeypatch):
    def refused():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refused)
    assert not _linear.splits()


def test_graph_attention_splits(high):
    generator = torch.Generator().manual_seed(4)
    shapes = {"x": (37, 20, 48), "qk_weight": (2, 3, 6, 48), "qk_bias": (2, 3, 6), "topology": (3, 20, 20)}
    shapes |= {"weight": (3, 80, 48), "bias": (80,)}
    options = {"generator": generator, "dtype": torch.float64}
    tensors = {name: torch.randn(shape, **options) * 0.2 for name, shape in shapes.items()}
    results = []
    for impl in ("reference", "native"):
        leaves = {n: (t if impl == "reference" else t.float()).clone().requires_grad_() for n, t in tensors.items()}
        out = ops.graph_attention(**leaves, impl=impl)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(leaves.values()))])
    for expected, output in zip(*results, strict=True):
        assert error(output, expected) < 1e-4
    assert error(results[1][0], results[0][0]) > 1e-6
