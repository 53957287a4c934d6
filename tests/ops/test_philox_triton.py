"""Draws in a kernel are the words of the reference, bit for bit."""

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from s2vfast.kernels import _launch
from s2vfast.kernels._philox import key_and_epoch, randint, random_bits, uniform
from s2vfast.kernels._rank import ranks
from s2vfast.reference import philox

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit(do_not_specialize=["low", "high", "epoch"])
def _draw_kernel(ids, out, fractions, limited, low, high, epoch, count, BLOCK: tl.constexpr, STREAM: tl.constexpr):
    row = tl.program_id(0)
    index = tl.arange(0, BLOCK)
    found = random_bits((low, high), epoch, tl.load(ids + row), index, STREAM)
    at = row * count + index
    tl.store(out + at, found.to(tl.int64), mask=index < count)
    tl.store(fractions + at, uniform(found), mask=index < count)
    tl.store(limited + at, randint(found, 1000003), mask=index < count)


@pytest.mark.parametrize("seed", [0, 1, 16, 2**31, 2**32 - 1, 2**32, 0x123456789ABCDEF0, 2**63, 2**64 - 1, -1])
@pytest.mark.parametrize(("epoch", "stream"), [(0, philox.CLIP), (1, philox.FRAMES), (2**32 - 1, philox.MASK)])
def test_words(seed, epoch, stream):
    ids = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**32 | 5, (3 << 40) | (255 << 32) | 123456], device=DEVICE)
    count = 37
    out = torch.full((len(ids), count), -1, device=DEVICE)
    limited, fractions = torch.full_like(out, -1), torch.full(out.shape, -1.0, device=DEVICE)
    args = (ids, out, fractions, limited, *key_and_epoch(seed, epoch), count)
    _launch.launch(_draw_kernel, (len(ids),), *args, BLOCK=64, STREAM=stream)
    expected = philox.random_bits(seed, epoch, ids, stream, count)
    assert torch.equal(out, expected)
    assert torch.equal(fractions, philox.uniform(expected))
    assert torch.equal(limited, philox.randint(expected, 1000003))


@triton.jit
def _rank_kernel(key, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, ranks(tl.load(key + at), BLOCK))


@pytest.mark.parametrize("block", [16, 32, 64, 256])
def test_ranks(block):
    generator = torch.Generator().manual_seed(block)
    key = torch.randperm(block, generator=generator) * 2**40 - 2**45 + torch.randint(2**30, (block,))
    out = torch.full((block,), -1, dtype=torch.int32, device=DEVICE)
    _launch.launch(_rank_kernel, (1,), key.to(DEVICE), out, BLOCK=block)
    assert torch.equal(out.cpu(), key.argsort().argsort().to(torch.int32))
