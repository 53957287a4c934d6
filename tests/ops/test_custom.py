"""What custom operators promise autograd and the compiler; that they compute the right thing is tested elsewhere."""

import pytest
import torch

from s2vfast import inputs, ops
from s2vfast.ops import _custom

NATIVE = pytest.mark.skipif(bool(ops.availability("cpu")["mask_fill"]["native"]), reason="no compiled extension")


@NATIVE
def test_what_is_changed_in_place_is_no_longer_what_was_saved():
    given = inputs.inputs("adamw_ema")
    scale = torch.ones((), requires_grad=True)
    saved = scale * given["param"]
    ops.adamw_ema(**given, impl="native")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


@NATIVE
def test_a_second_derivative_is_refused():
    given = inputs.inputs("mask_fill")
    latents = given.pop("latents").requires_grad_()
    out = ops.mask_fill(latents, **given, impl="native").square().sum()
    [gradient] = torch.autograd.grad(out, latents, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


@NATIVE
def test_the_compiler_does_not_look_into_kernels():
    """Not even where it runs what calls them without compiling it."""
    given = inputs.inputs("mask_fill")
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=backend)
    def run():
        torch._dynamo.skip_frame()
        return torch.ops.s2vfast.mask_fill_native(*given.values())

    assert torch.equal(run(), ops.mask_fill(**given, impl="native"))
    assert not graphs


@pytest.mark.parametrize(("seed", "signed"), [(0, 0), (2**63 - 1, 2**63 - 1), (2**63, -(2**63)), (2**64 - 1, -1)])
def test_seeds_of_64_bits_travel_as_signed_numbers(seed, signed):
    assert _custom.signed(seed) == signed
    assert signed % 2**64 == seed
