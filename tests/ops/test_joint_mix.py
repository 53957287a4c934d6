import pytest
import torch

from s2vfast import _extension, errors, verify
from s2vfast.ops import joint_mix
from s2vfast.reference.joint_mix import joint_mix as reference


def case(numbers, B=2, T=3, V=5, C=8, subsets=3, units=4, groups=4, bias=False, gate=False):
    return {
        "x": numbers(B, T, V, subsets * C, seed=0),
        "dynamic": numbers(B, subsets, units, V, V, seed=1, scale=0.3),
        "static": numbers(subsets, groups, V, V, seed=2, scale=0.3),
        "bias": numbers(subsets * C, seed=3) if bias else None,
        "gate": numbers(B, C, seed=4) if gate else None,
    }


# Registers and a rest of channels, frames and joints; groups that channels are no multiple of; one of everything.
SHAPES = [
    {},
    {"C": 20, "V": 7, "groups": 8},
    {"T": 4, "V": 8, "C": 24, "units": 2, "subsets": 1},
    {"B": 1, "T": 1, "V": 1, "C": 1, "subsets": 1, "units": 1, "groups": 1},
    {"C": 20, "V": 7, "groups": 8, "bias": True, "gate": True},
    {"C": 36, "groups": 3, "bias": True},
    {"C": 31, "units": 1, "groups": 1, "bias": True, "gate": True},
    {"C": 30, "units": 2, "groups": 2, "gate": True},
    {"C": 47, "units": 1, "groups": 8},
    {"gate": True},
    {"T": 0, "bias": True, "gate": True},
    {"V": 0, "bias": True, "gate": True},
    {"B": 0, "bias": True, "gate": True},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees(agree, numbers, impl, shape):
    agree(joint_mix, reference, case(numbers, **shape), impl)


def test_by_hand():
    """One frame, two joints, one subset, two channels with units and groups of their own: rows are sources."""
    x = torch.tensor([[[[1.0, 10.0], [2.0, 20.0]]]])
    dynamic = torch.tensor([[[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]]])
    static = torch.tensor([[[[0.0, 3.0], [0.0, 0.0]], [[0.0, 1.0], [0.5, 0.0]]]])
    expected = torch.tensor([[[[1.0, 10.0], [3.0, 10.0]]]])
    assert torch.equal(reference(x, dynamic, static), expected)
    # Source joints with a bias of [1, 0], and a gate of [2, 10].
    biased = reference(x, dynamic, static, torch.tensor([1.0, 0.0]), torch.tensor([[2.0, 10.0]]))
    assert torch.equal(biased, torch.tensor([[[[4.0, 100.0], [12.0, 100.0]]]]))


def test_refuses_shapes_by_name(numbers):
    arguments = case(numbers)
    for name, wrong in (
        ("x", arguments["x"][0]),
        ("x", arguments["x"][..., 1:]),
        ("dynamic", arguments["dynamic"][:1]),
        ("static", arguments["static"][:1]),
        ("bias", arguments["x"][0, 0, 0, 1:]),
        ("gate", arguments["x"][0, 0, :2]),
    ):
        with pytest.raises(errors.ShapeError, match=f"joint_mix: {name}"):
            joint_mix(**arguments | {name: wrong})


@pytest.mark.skipif(bool(_extension.why_not()), reason="there is no compiled extension")
def test_the_number_of_threads_changes_nothing(numbers):
    arguments = case(numbers, B=5, C=40, V=9, bias=True, gate=True)
    arguments = {name: value.float().requires_grad_() for name, value in arguments.items()}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = joint_mix(**arguments, impl="native")
            results.append([out, *torch.autograd.grad(out.square().sum(), list(arguments.values()))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.skipif(bool(_extension.why_not()), reason="there is no compiled extension")
def test_a_map_that_is_off_shows(numbers):
    """The rule bites: one wrong entry of a map fails the comparison that all implementations pass."""
    arguments = {name: value.float() for name, value in case(numbers, bias=True, gate=True).items()}

    def wrong(x, dynamic, static, bias, gate):
        static = static + 1e-3 * (torch.arange(static.numel()) == 7).view_as(static)
        return joint_mix(x, dynamic, static, bias, gate)

    assert not all(row.good for row in verify.compare(wrong, reference, reference, arguments, gradients=False))
