import pytest
import torch

from s2vfast import _extension, errors, ops
from s2vfast.kernels import _launch
from s2vfast.ops import attention
from s2vfast.reference.attention import attention as reference

needs_extension = pytest.mark.skipif(bool(_extension.why_not()), reason="there is no compiled extension")


@pytest.mark.parametrize("shape", [(2, 7, 3, 2, 8), (1, 1, 3, 1, 16), (3, 33, 3, 4, 32), (2, 5, 3, 3, 5)])
def test_agrees(agree, numbers, impl, shape):
    agree(
        lambda qkv, impl: attention(qkv, return_lse=True, impl=impl), reference, {"qkv": numbers(*shape, seed=0)}, impl
    )
    agree(attention, lambda qkv: reference(qkv)[0], {"qkv": numbers(*shape, seed=1)}, impl)


def test_reference_by_hand(numbers):
    qkv = numbers(1, 4, 3, 1, 2, seed=0)
    q, k, v = qkv[0, :, :, 0].unbind(1)
    weights = torch.exp(q @ k.T / 2**0.5)
    out, lse = reference(qkv)
    torch.testing.assert_close(out[0, :, 0], weights / weights.sum(1, keepdim=True) @ v)
    torch.testing.assert_close(lse[0, 0], weights.sum(1).log())


def test_large_scores_stay_finite(numbers, impl):
    qkv = (numbers(2, 9, 3, 2, 16, seed=0) * 60).float()
    assert torch.isfinite(attention(qkv, impl=impl)).all()


@pytest.mark.parametrize("shape", [(2, 37, 3, 2, 16), (1, 32, 3, 2, 24), (1, 17, 3, 1, 80), (1, 16, 3, 1, 128)])
def test_small_tiles(agree, numbers, shape):
    """Several tiles, with a tail and without, of heads as wide as a power of two and not."""
    tiles = {"BLOCK_M": 16, "BLOCK_N": 16}
    with (
        _launch.override("attention", "forward", **tiles),
        _launch.override("attention", "grad_keys", **tiles),
        _launch.override("attention", "grad_queries", **tiles),
    ):
        agree(
            lambda qkv, impl: attention(qkv, return_lse=True, impl=impl),
            reference,
            {"qkv": numbers(*shape, seed=0)},
            "triton",
        )


def test_exponentials_by_polynomial(numbers):
    """Every fourth; good to half a unit of bfloat16's last place."""
    qkv = numbers(2, 37, 3, 2, 16, seed=0).float()
    exact = attention(qkv, impl="triton")
    with _launch.override("attention", "forward", POLYNOMIAL=1, BLOCK_N=16):
        found, lse = attention(qkv, return_lse=True, impl="triton")
        large = attention(qkv * 60, impl="triton")
    assert 0 < (found - exact).abs().max() < 2e-4
    assert (lse - reference(qkv)[1]).abs().max() < 1e-4
    assert torch.allclose(large, attention(qkv * 60, impl="reference"), rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_triton_computes_tiles_again_whose_sums_are_no_numbers(numbers, where):
    """One row's sum is above 2**64, or NaN; rows of the other tiles keep every bit."""
    qkv = numbers(1, 37, 3, 1, 16, seed=0).float()
    sharp, nan = qkv.clone(), qkv.clone()
    sharp[0, 20, 0] *= 100
    nan[0, 36, ("query", "key", "value").index(where), 0, 3] = torch.nan
    with _launch.override("attention", "forward", BLOCK_M=16, BLOCK_N=16, POLYNOMIAL=1):
        plain, (again, lse), hidden = (
            attention(qkv, impl="triton"),
            attention(sharp, return_lse=True, impl="triton"),
            attention(nan, impl="triton"),
        )
    out, expected = reference(sharp)
    assert expected[0, 0, 20] > 64  # beside a score of its own that is far below
    torch.testing.assert_close((again, lse), (out, expected), rtol=1e-4, atol=1e-4)
    assert torch.equal(plain[:, :16], again[:, :16])
    assert torch.equal(hidden.isnan(), reference(nan)[0].isnan())


@pytest.mark.parametrize("scale", [1e2, -1e2])
def test_extreme_scores(scale, impl):
    """Scores of 1e4 and -1e4: one key takes all, or all alike; nothing overflows, forward or backward."""
    qkv = torch.randn(1, 19, 3, 1, 16, generator=torch.Generator().manual_seed(0))
    qkv[:, :, 0] = scale
    qkv[:, :, 1] = torch.rand(1, 19, 1, 16, generator=torch.Generator().manual_seed(1)) * 25
    results = []
    for name in (impl, "reference"):
        leaf = qkv.clone().requires_grad_()
        out, lse = attention(leaf, return_lse=True, impl=name)
        gradient = torch.autograd.grad(out.square().sum() + lse.sum(), leaf)[0]
        results.append((out, lse, gradient))
    for found, expected in zip(*results, strict=True):
        assert torch.isfinite(found).all()
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.detach().abs().max()))


# Blocks of 64 queries and of 48 keys: full, one short, one more. Heads that fill registers and that do not.
@needs_extension
@pytest.mark.parametrize("shape", [(1, 48, 3, 2, 32), (2, 65, 3, 1, 8), (1, 143, 3, 2, 40), (1, 200, 3, 1, 96)])
def test_compiled_for_cpus(agree, numbers, shape, lanes):
    def run(qkv, impl):
        return attention(qkv, return_lse=True, impl=impl)

    agree(run, reference, {"qkv": numbers(*shape, seed=0, scale=2.0)}, "native")


def compiled(qkv, grad_out, grad_lse=None, **options):
    """Output, log-sum-exp and gradient of the extension's functions, called with such options."""
    N, L, _, H, d = qkv.shape
    out, lse, gradient = torch.empty(N, L, H, d), torch.empty(N, H, L), torch.empty_like(qkv)
    for tensor in (out, lse, gradient):
        tensor.fill_(float("nan"))
    sizes = {"tracks": N, "tokens": L, "heads": H, "width": d, **options}
    tensors = {"qkv": qkv.data_ptr(), "out": out.data_ptr(), "lse": lse.data_ptr()}
    extension = _extension.load()
    extension.attention(**sizes, **tensors)
    tensors |= {"grad_out": grad_out.data_ptr(), "grad_lse": 0 if grad_lse is None else grad_lse.data_ptr()}
    extension.attention_backward(**sizes, **tensors, grad_qkv=gradient.data_ptr())
    return out, lse, gradient


@needs_extension
def test_threads_change_no_bit(numbers):
    qkv, grad_out = numbers(2, 70, 3, 3, 16, seed=0).float(), numbers(2, 70, 3, 16, seed=1).float()
    one, two = (compiled(qkv, grad_out, threads=threads) for threads in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@needs_extension
def test_memory_order_changes_no_bit(numbers):
    qkv = numbers(2, 21, 3, 3, 16, seed=0).float()
    strided = qkv.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(attention(strided, impl="native"), attention(qkv, impl="native"))


@needs_extension
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_what_is_not_finite_is_not_hidden(numbers, where):
    """A NaN reaches the rows that the reference has it in, and no other."""
    qkv = numbers(1, 70, 3, 1, 16, seed=0).float()
    # All bits set: no last bit of a NaN may make another number of it.
    qkv[0, 66, ("query", "key", "value").index(where), 0, 3] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)
    assert torch.equal(attention(qkv, impl="native").isnan(), reference(qkv)[0].isnan())


@needs_extension
def test_compiled_is_the_choice_for_float32(numbers):
    qkv = numbers(1, 9, 3, 1, 16, seed=0)
    assert torch.equal(attention(qkv.float()), attention(qkv.float(), impl="native"))
    assert attention(qkv).dtype == torch.float64  # which is PyTorch's
    with pytest.raises(errors.ImplementationError, match="it takes float32, not bfloat16"):
        attention(qkv.bfloat16(), impl="native")
    assert ops.availability("cpu")["attention"]["native"] == []


@needs_extension
def test_the_extension_refuses():
    sizes = {"tracks": 1, "tokens": 2, "heads": 1, "width": 8}
    with pytest.raises(ValueError, match="qkv, out or lse is a null pointer"):
        _extension.load().attention(**sizes, qkv=0, out=0, lse=0)
    with pytest.raises(ValueError, match="lanes: this CPU has no such registers"):
        _extension.load().use_lanes(5)


def test_heads_that_are_too_wide_are_refused():
    with pytest.raises(errors.ImplementationError, match="heads up to 128 wide, not 144"):
        attention(torch.zeros(1, 2, 3, 1, 144), impl="triton")


# Groups that lie in one block of keys, in two, of one token, and larger than all tokens; the last is not full.
@pytest.mark.parametrize("name", ["torch", pytest.param("native", marks=needs_extension)])
@pytest.mark.parametrize(("tokens", "group"), [(15, 7), (141, 20), (101, 60), (9, 1), (9, 12)])
def test_a_token_does_not_look_at_the_others_of_its_group(agree, numbers, tokens, group, name):
    def run(qkv, impl):
        return attention(qkv, group=group, return_lse=True, impl=impl)

    qkv = numbers(2, tokens, 3, 2, 8, seed=0, scale=2.0)
    agree(run, lambda qkv: reference(qkv, group), {"qkv": qkv}, name)


def test_groups_by_hand(numbers):
    """Two groups of two: a token looks at itself and at the other group."""
    q, k, v = numbers(1, 4, 3, 1, 2, seed=0)[0, :, :, 0].unbind(1)
    weights = torch.exp(q @ k.T / 2**0.5)
    weights[[0, 1, 2, 3], [1, 0, 3, 2]] = 0.0
    out, lse = reference(torch.stack([q, k, v], 1)[None, :, :, None], 2)
    torch.testing.assert_close(out[0, :, 0], weights / weights.sum(1, keepdim=True) @ v)
    torch.testing.assert_close(lse[0, 0], weights.sum(1).log())


def test_who_knows_no_groups_refuses_them():
    with pytest.raises(errors.ImplementationError, match="it takes no groups"):
        attention(torch.zeros(1, 4, 3, 1, 16), group=2, impl="triton")
    with pytest.raises(errors.ShapeError, match="attention: group: expected 0 or more, got -1"):
        attention(torch.zeros(1, 4, 3, 1, 16), group=-1)


def test_empty_batch(impl):
    assert attention(torch.zeros(0, 5, 3, 2, 8), impl=impl).shape == (0, 5, 2, 8)


def test_refuses_shapes_by_name():
    with pytest.raises(errors.ShapeError, match=r"attention: qkv: expected \[N, L, 3, H, d\]"):
        attention(torch.zeros(1, 5, 2, 2, 8))


@needs_extension
def test_what_a_group_hides_is_hidden_beside_the_smallest_scores():
    qkv = torch.ones(1, 4, 3, 1, 8)
    qkv[:, :, 0], qkv[:, :, 1] = 1e16, -1e16
    qkv[:, :, 2] = torch.arange(4.0)[None, :, None, None]
    torch.testing.assert_close(attention(qkv, group=2, impl="native"), reference(qkv, 2)[0])
