"""The compiled embed_gather: tails of rows and tiles, both dtypes, any number of threads, ids that are no tokens."""

import pytest
import torch

from s2vfast import _extension, verify
from s2vfast.ops import embed_gather
from s2vfast.reference.embed_gather import embed_gather as reference

if _extension.why_not():
    pytest.skip(_extension.why_not(), allow_module_level=True)


@pytest.fixture
def threads():
    """Sets how many threads are used; as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def case(numbers, N=2, S=3, s=2, V=5, C=3, D=16, K=7, dtype=torch.float32):
    """Visible tokens in no order; K None: all. Clips are float32, as they are beside any weight."""
    visible = None
    if K is not None:
        generator = torch.Generator().manual_seed(N + S)
        visible = torch.rand(N, S * V, generator=generator).argsort(1)[:, :K].to(torch.int32)
    return {
        "clips": numbers(N, S * s, V, C, seed=0).float(),
        "weight": numbers(D, s * C, seed=1, scale=(s * C) ** -0.5).to(dtype),
        "bias": numbers(D, seed=2).to(dtype),
        "positions": numbers(S * V, D, seed=3).to(dtype),
        "visible": visible,
    }


def gradients(given, upstream):
    leaves = {n: t.clone().requires_grad_() for n, t in given.items() if n != "visible"}
    out = embed_gather(**given | leaves, impl="native")
    return [out.detach(), *torch.autograd.grad(out, list(leaves.values()), upstream)]


# Numbers a token that are no multiple of what is summed together; rows of less than a register and of more; more rows
# than a range has; none.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape",
    [
        {"D": 1},
        {"D": 13, "C": 1, "s": 1},
        {"D": 24, "C": 6, "s": 3, "S": 2},
        {"D": 83, "C": 5, "s": 1},
        {"K": None},
        {"K": None, "N": 9, "S": 4, "V": 6},
        {"K": 0},
        {"N": 0},
        {"N": 0, "K": None},
        {"N": 11, "K": 13},
        {"S": 1, "V": 1, "K": 1},
    ],
    ids=str,
)
def test_agrees(numbers, shape, dtype):
    rows = verify.compare(
        lambda **kw: embed_gather(**kw, impl="native"),
        reference,
        lambda **kw: embed_gather(**kw, impl="torch"),
        case(numbers, **shape, dtype=dtype),
        gradients=True,
    )
    for row in rows:
        assert row.good, f"{row.name}: error {row.error:.3g}, allowed {row.allowed:.3g}"


def test_many_rows_agree(numbers):
    """More rows than 256 ranges of the shortest length hold."""
    given = case(numbers, N=60, S=20, s=1, V=15, C=2, D=4, K=None)
    upstream = numbers(60, 300, 4, seed=5).float()
    _, _, by_weight, by_bias, by_positions = gradients(given, upstream)
    pieces = given["clips"].reshape(-1, 2).double()
    torch.testing.assert_close(by_weight.double(), upstream.reshape(-1, 4).double().t() @ pieces, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(by_bias, upstream.sum((0, 1)), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(by_positions, upstream.sum(0), rtol=1e-5, atol=1e-5)


def test_the_number_of_threads_changes_nothing(numbers, threads):
    given = case(numbers, N=13, S=6, V=7, K=31, D=40)
    upstream = numbers(13, 31, 40, seed=5).float()
    threads(1)
    expected = gradients(given, upstream)
    for count in (2, 3):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(gradients(given, upstream), expected, strict=True))


def test_tokens_that_are_not_visible_have_no_gradient(numbers):
    given = case(numbers, N=1, K=1)
    upstream = numbers(1, 1, 16, seed=5).float()
    _, by_clips, _, _, by_positions = gradients(given, upstream)
    segment, joint = divmod(int(given["visible"][0, 0]), 5)
    there = by_clips[0].reshape(3, 2, 5, 3)[segment, :, joint].clone()
    assert (there != 0).all()
    assert by_clips.count_nonzero() == 6
    assert by_positions.count_nonzero() == 16
    assert torch.equal(by_positions[segment * 5 + joint], upstream[0, 0])


def test_each_gradient_alone_is_what_it_is_with_the_others(numbers):
    given = case(numbers)
    upstream = numbers(2, 7, 16, seed=5).float()
    names = ("clips", "weight", "bias", "positions")
    for name, expected in zip(names, gradients(given, upstream)[1:], strict=True):
        leaf = given[name].clone().requires_grad_()
        out = embed_gather(**given | {name: leaf}, impl="native")
        assert torch.equal(torch.autograd.grad(out, leaf, upstream)[0], expected)


def test_a_clip_that_is_not_a_number_spoils_its_own_tokens_alone(numbers):
    given = case(numbers, K=None)
    given["clips"][1, 3, 2, 0] = torch.nan  # segment 1, joint 2
    assert embed_gather(**given, impl="native").isnan().any(-1).nonzero().tolist() == [[1, 7]]


@pytest.mark.parametrize("wrong", [-1, 15, 2**31 - 1])
def test_refuses_ids_that_are_no_tokens(numbers, wrong):
    given = case(numbers)
    given["visible"][1, 3] = wrong
    with pytest.raises(ValueError, match="embed_gather: visible has an id that is no token"):
        embed_gather(**given, impl="native")
