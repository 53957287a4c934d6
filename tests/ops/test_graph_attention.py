import pytest
import torch

from s2vfast import _extension, errors
from s2vfast.ops import graph_attention
from s2vfast.reference.graph_attention import graph_attention as reference


def case(numbers, F=4, V=5, C=8, E=12, H=3, d=4, bias=True):
    return {
        "x": numbers(F, V, C, seed=0),
        "qk_weight": numbers(2, H, d, C, seed=1, scale=C**-0.5),
        "qk_bias": numbers(2, H, d, seed=5),
        "topology": numbers(H, V, V, seed=2, scale=0.5),
        "weight": numbers(H, E, C, seed=3, scale=(H * C) ** -0.5),
        "bias": numbers(E, seed=4) if bias else None,
    }


# Registers and a rest of joints, channels and queries; several ranges of frames; one of everything; no frame.
SHAPES = [
    {},
    {"F": 70, "V": 20, "C": 24, "d": 8},
    {"V": 9, "C": 21, "E": 5, "d": 3, "bias": False},
    {"V": 17, "C": 40, "H": 2, "d": 11},
    {"F": 1, "V": 1, "C": 1, "E": 1, "H": 1, "d": 1},
    {"V": 0},
    {"E": 0},
    {"F": 0},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees(agree, numbers, impl, shape):
    agree(graph_attention, reference, case(numbers, **shape), impl)


def test_by_hand():
    """One head, two joints; keys without numbers attend alike, and the topology's row is who takes."""
    x = torch.tensor([[[2.0], [4.0]]])
    topology = torch.tensor([[[1.0, 0.0], [3.0, 1.0]]])
    out = reference(
        x, torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1), topology, torch.full((1, 1, 1), 10.0), torch.tensor([0.5])
    )
    assert out.flatten().tolist() == [10.5, 50.5]


def test_large_scores_are_no_overflow(numbers, impl):
    given = case(numbers)
    given["qk_weight"], given["qk_bias"] = given["qk_weight"] * 1e4, given["qk_bias"] * 1e4
    torch.testing.assert_close(
        graph_attention(**{k: v.float() for k, v in given.items()}, impl=impl),
        reference(*given.values()).float(),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("x", (4, 5)),
        ("qk_weight", (3, 3, 4, 8)),
        ("qk_bias", (2, 4)),
        ("topology", (2, 5, 5)),
        ("weight", (3, 12, 7)),
        ("bias", (7,)),
    ],
)
def test_refuses_shapes_by_name(numbers, name, shape):
    with pytest.raises(errors.ShapeError, match=f"graph_attention: {name}: expected"):
        graph_attention(**case(numbers) | {name: torch.zeros(shape)})


@pytest.mark.skipif(bool(_extension.why_not()), reason="there is no compiled extension")
def test_the_number_of_threads_changes_nothing(numbers):
    given = {k: v.float().requires_grad_() for k, v in case(numbers, F=100, V=9).items()}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = graph_attention(**given, impl="native")
            results.append([out, *torch.autograd.grad(out.square().sum(), list(given.values()))])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
