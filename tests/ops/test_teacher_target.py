import importlib

import pytest
import torch

from s2vfast import errors
from s2vfast.kernels import _launch
from s2vfast.ops import teacher_target
from s2vfast.reference.teacher_target import teacher_target as reference


def case(numbers, N=3, L=10, D=8, k=3, M=4, norm="instance"):
    masked = torch.stack([torch.randperm(L, generator=torch.Generator().manual_seed(n))[:M] for n in range(N)])
    hidden = [numbers(N, L, D, seed=i, scale=10.0**i) + i for i in range(k)]
    return {"hidden": hidden, "masked": masked.to(torch.int32), "norm": norm}


@pytest.mark.parametrize("norm", ["instance", "layer"])
@pytest.mark.parametrize("shape", [{}, {"k": 1}, {"M": 1, "N": 1}, {"M": 10}])
def test_agrees(agree, numbers, impl, norm, shape):
    agree(teacher_target, reference, case(numbers, norm=norm, **shape), impl, gradients=False)
    agree(teacher_target, reference, case(numbers, norm=norm, **shape) | {"masked": None}, impl, gradients=False)


@pytest.mark.parametrize("most_tokens", [8, 1024], ids=["long", "short"])
@pytest.mark.parametrize("norm", ["instance", "layer"])
def test_small_tiles(agree, numbers, monkeypatch, norm, most_tokens):
    """Several tiles of tokens and channels; means a hundred times the deviation; a dozen states."""
    monkeypatch.setattr(importlib.import_module("s2vfast.kernels.teacher_target"), "_MOST_TOKENS", most_tokens)
    given = case(numbers, N=2, L=37, D=48, k=12, M=11, norm=norm)
    given["hidden"] = [numbers(2, 37, 48, seed=i) + 100.0 for i in range(12)]
    with (
        _launch.override("teacher_target", "average", BLOCK_D=16),
        _launch.override("teacher_target", "statistics", BLOCK_L=8, BLOCK_D=16),
        _launch.override("teacher_target", "target", BLOCK_M=4),
    ):
        agree(teacher_target, reference, given, "triton", gradients=False)


def test_reference_against_torch(numbers):
    given = case(numbers)
    states = [torch.nn.functional.instance_norm(h.transpose(1, 2)).transpose(1, 2) for h in given["hidden"]]
    target = torch.nn.functional.layer_norm(sum(states) / 3, (8,))
    expected = torch.stack([target[n, given["masked"][n].long()] for n in range(3)])
    torch.testing.assert_close(reference(**given), expected)


def test_equal_tokens_have_a_finite_target(impl):
    # An absent body: every token of a state differs only by position, some channels not at all.
    assert torch.isfinite(teacher_target([torch.ones(2, 6, 4)], None, impl=impl)).all()


def test_has_no_gradient(numbers, impl):
    hidden = [numbers(1, 4, 4, seed=0).float().requires_grad_()]
    assert not teacher_target(hidden, None, impl=impl).requires_grad


def test_refuses_by_name(numbers):
    with pytest.raises(errors.ShapeError, match="teacher_target: norm: expected instance or layer, got 'batch'"):
        teacher_target(**case(numbers, norm="batch"))
