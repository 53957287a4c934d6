"""The references' gradients against finite differences: what every other gradient is measured against."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from s2vfast import ops
from s2vfast.inputs import OPS, WITHOUT_GRADIENT, Shape, inputs

SMALL = Shape(N=2, S=2, V=3, s=2, D=6, H=2, E=5, keep=1)


@pytest.mark.parametrize("op", [op for op in OPS if op not in WITHOUT_GRADIENT])
def test_gradcheck(op):
    arguments = inputs(op, replace(SMALL, D=8) if op == "joint_mix" else SMALL, dtype=torch.float64)
    if op == "graph_mix":  # an edge that begins is a step: there is no derivative at zero
        arguments["graph"] = torch.where(arguments["graph"] == 0, 0.5, arguments["graph"])
    floating = {n: v.double() for n, v in arguments.items() if isinstance(v, Tensor) and v.is_floating_point()}
    constants = {n: v for n, v in arguments.items() if n not in floating}

    def run(*leaves):
        out = getattr(ops, op)(**dict(zip(floating, leaves, strict=True)), **constants, impl="reference")
        return out if isinstance(out, Tensor) else tuple(o for o in out if o is not None)

    assert torch.autograd.gradcheck(run, [value.requires_grad_() for value in floating.values()])
