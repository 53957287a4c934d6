"""How many kernels an operation launches: one forward, and backward one for what is read and one that adds up."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from s2vfast import ops
from s2vfast.inputs import SHAPES, WITHOUT_GRADIENT, inputs

_spec = importlib.util.spec_from_file_location("launches", Path(__file__).with_name("launches.py"))
launches = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(launches)

NO_NORM = {"weight": None, "bias": None}
NO_PROJECTION = {"projection": None, "projection_bias": None}
# Operation, what is changed about its arguments, launches forward and backward.
CASES = {
    "embed_gather": ("embed_gather", {}, 1, 3),
    "norm_linear": ("norm_linear", {}, 1, 4),
    "norm_linear without bias": ("norm_linear", {"bias": None}, 1, 4),
    "attention": ("attention", {}, 1, 2),
    "add_norm": ("add_norm", {}, 1, 3),
    "add_norm of a block": ("add_norm", NO_NORM, 1, 3),
    "add_norm without LayerScale": ("add_norm", {"gamma": None}, 1, 3),
    "add_norm without projection": ("add_norm", NO_PROJECTION, 1, 2),
    "mlp": ("mlp", {}, 1, 5),
    "mlp without LayerScale": ("mlp", {"gamma": None}, 1, 5),
    "mlp without norm": ("mlp", {"gamma": None, "norm_weight": None, "norm_bias": None}, 1, 4),
    "mask_fill": ("mask_fill", {}, 1, 2),
    "joint_mix": ("joint_mix", {}, 1, 4),
    "teacher_target": ("teacher_target", {}, 2, None),
    "teacher_target of layer norms": ("teacher_target", {"norm": "layer"}, 1, None),
    "masked_mse": ("masked_mse", {}, 2, 1),
    "point_sample": ("point_sample", {}, 1, None),
    "sparse_conv forward": ("sparse_conv", {}, 1, None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_an_operation_launches(case, dtype):
    op, changes, forward, backward = CASES[case]
    given = inputs(op, SHAPES["odd"], dtype=dtype) | changes
    if "norm_weight" in changes:  # the branch alone is in the dtype of its operands
        given["x"] = given["x"].to(dtype)
    leaves = []
    for name, value in given.items():
        if op not in WITHOUT_GRADIENT and isinstance(value, Tensor) and value.is_floating_point():
            leaves += [value.requires_grad_()] if name != "clips" else []
    outputs = []

    def run():
        out = getattr(ops, op)(**given, impl="triton")
        outputs.extend(o for o in (out if isinstance(out, tuple) else (out,)) if o is not None)

    found = launches.count(run)
    assert found.total() == forward, found
    if backward is not None:
        upstream = [torch.randn_like(out) for out in outputs]
        found = launches.count(lambda: torch.autograd.grad(outputs, leaves, upstream))
        assert found.total() == backward, found
        assert all(name.endswith("_kernel") for name in found), found


def test_without_a_norm_the_streams_gradient_is_handed_on():
    given = inputs("add_norm", SHAPES["odd"]) | NO_NORM
    given["residual"].requires_grad_()
    out, _ = ops.add_norm(**given, impl="triton")
    upstream = torch.randn_like(out)
    assert torch.autograd.grad(out, given["residual"], upstream)[0].data_ptr() == upstream.data_ptr()


def test_views_and_conversions_that_change_nothing_are_no_launches():
    x = torch.ones(2, 3)
    assert not launches.count(lambda: x.t().t()[0].to(torch.float32).contiguous().detach())
    assert launches.count(lambda: x.t().contiguous().double().add_(1)) == {"clone": 1, "_to_copy": 1, "add_": 1}
