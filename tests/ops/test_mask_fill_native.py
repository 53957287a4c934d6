"""The compiled mask_fill: tails of rows and tiles, both dtypes, any number of threads, ids that are no tokens."""

import pytest
import torch

from s2vfast import _extension, verify
from s2vfast.ops import mask_fill
from s2vfast.reference.mask_fill import mask_fill as reference

if _extension.why_not():
    pytest.skip(_extension.why_not(), allow_module_level=True)


@pytest.fixture
def threads():
    """Sets how many threads are used; as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def case(numbers, N=2, L=12, K=4, D=8, dtype=torch.float32):
    """Visible tokens in no order."""
    generator = torch.Generator().manual_seed(N + L)
    visible = torch.rand(N, L, generator=generator).argsort(1)[:, :K].to(torch.int32)
    tensors = {
        "latents": numbers(N, K, D, seed=0),
        "mask_token": numbers(D, seed=1),
        "positions": numbers(L, D, seed=2),
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()} | {"visible": visible}


def gradients(given, upstream):
    leaves = {n: t.clone().requires_grad_() for n, t in given.items() if t.is_floating_point()}
    out = mask_fill(**given | leaves, impl="native")
    return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), upstream)]


# Rows of less than a register, of registers and a rest, of eight registers and a rest; more tokens and latents than a
# tile has; every token visible; none.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape",
    [
        {"D": 1},
        {"D": 7},
        {"D": 48, "N": 3},
        {"D": 64},
        {"D": 147, "L": 5},
        {"L": 130, "K": 70, "D": 16},
        {"L": 64, "K": 64},
        {"K": 0},
        {"N": 0},
        {"N": 40, "L": 9, "K": 3},
    ],
    ids=str,
)
def test_agrees(numbers, shape, dtype):
    given = case(numbers, **shape, dtype=dtype)
    rows = verify.compare(
        lambda **kw: mask_fill(**kw, impl="native"),
        reference,
        lambda **kw: mask_fill(**kw, impl="torch"),
        given,
        gradients=True,
    )
    for row in rows:
        assert row.good, f"{row.name}: error {row.error:.3g}, allowed {row.allowed:.3g}"


def test_forward_is_exact(numbers):
    for dtype in (torch.float32, torch.bfloat16):
        given = case(numbers, N=3, L=100, K=37, D=40, dtype=dtype)
        assert torch.equal(mask_fill(**given, impl="native"), reference(**given))


def test_the_number_of_threads_changes_nothing(numbers, threads):
    given = case(numbers, N=7, L=200, K=61, D=72)
    upstream = numbers(7, 200, 72, seed=5).float()
    threads(1)
    expected = gradients(given, upstream)
    for count in (2, 3):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(gradients(given, upstream), expected, strict=True))


def test_the_order_of_the_visible_tokens_does_not_matter(numbers):
    given = case(numbers, L=30, K=11, D=20)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3))
    turned = given | {"latents": given["latents"][:, order], "visible": given["visible"][:, order]}
    upstream = numbers(2, 30, 20, seed=5).float()
    expected, found = gradients(given, upstream), gradients(turned, upstream)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1][:, order])
    assert torch.equal(found[2], expected[2])
    assert torch.equal(found[3], expected[3])


def test_latents_that_are_not_a_number_stay_where_they_are(numbers):
    given = case(numbers, L=20, K=5, D=11)
    given["latents"][1, 2] = torch.nan
    for dtype in (torch.float32, torch.bfloat16):
        cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in given.items()}
        bad = mask_fill(**cast, impl="native").isnan()
        assert bad[1, int(given["visible"][1, 2])].all()
        assert bad.sum() == 11


@pytest.mark.parametrize("wrong", [-1, 12, 2**31 - 1])
def test_refuses_ids_that_are_no_tokens(numbers, wrong):
    given = case(numbers)
    given["visible"][1, 3] = wrong
    with pytest.raises(ValueError, match="mask_fill: visible has an id that is no token"):
        mask_fill(**given, impl="native")
