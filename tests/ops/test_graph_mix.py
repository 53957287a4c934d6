import pytest
import torch

from s2vfast import _extension, errors
from s2vfast.ops import graph_mix
from s2vfast.reference.graph_mix import graph_mix as reference

needs_extension = pytest.mark.skipif(bool(_extension.why_not()), reason="there is no compiled extension")


def case(numbers, T=3, N=2, V=5, C=8, K=3):
    graph = numbers(K, V, V, seed=1)
    return {"x": numbers(T, N, V, C, seed=0), "graph": torch.where(numbers(K, V, V, seed=2) > 0.5, graph, 0.0)}


# Registers of channels and a rest, one of everything, more rows than a range has; no rows, no graph, no joints.
SHAPES = [{"C": 35, "V": 7}, {"C": 16}, {"T": 1, "N": 1, "V": 1, "C": 1, "K": 1}, {"T": 70, "C": 3}]
SHAPES += [{"C": 31}, {"C": 92}, {"T": 0}, {"K": 0}, {"V": 0}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees(agree, numbers, impl, shape):
    agree(graph_mix, reference, case(numbers, **shape), impl)


def test_by_hand(impl):
    """Two joints: the first goes to both, twofold to the second. What is no edge has no gradient."""
    x = torch.tensor([[[[1.0], [10.0]]]])
    graph = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]], requires_grad=True)
    out = graph_mix(x, graph, impl=impl)
    assert torch.equal(out, torch.tensor([[[[[1.0, 1.0]], [[2.0, 2.0]]]]]))
    out.sum().backward()
    assert torch.equal(graph.grad, torch.tensor([[[2.0, 2.0], [0.0, 0.0]]]))


@needs_extension
def test_the_number_of_threads_changes_nothing(numbers):
    arguments = {name: value.float().requires_grad_() for name, value in case(numbers, T=150, C=20).items()}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = graph_mix(**arguments, impl="native")
            results.append((out, *torch.autograd.grad(out.square().sum(), list(arguments.values()))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_refuses_shapes_by_name(numbers):
    arguments = case(numbers)
    for name, wrong in (
        ("x", arguments["x"][0]),
        ("graph", arguments["graph"][:, 1:]),
        ("graph", arguments["graph"][0]),
    ):
        with pytest.raises(errors.ShapeError, match=f"graph_mix: {name}: expected"):
            graph_mix(**arguments | {name: wrong})
