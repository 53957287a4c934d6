"""The operations of the pretraining step, each with named implementations: see `s2vfast.ops._dispatch`.

They need torch and numpy alone, and can be used in any other project::

    import torch

    from s2vfast import ops

    qkv = torch.randn(2, 75, 3, 4, 16, requires_grad=True)  # clips, tokens, (query, key, value), heads, width
    out = ops.attention(qkv)  # [2, 75, 4, 16]
    out.square().mean().backward()  # qkv.grad

    with ops.use_impl("attention=reference"):  # the specification; without it the fastest that can run here
        exact = ops.attention(qkv)
    assert torch.allclose(out, exact, atol=1e-5)

    def mine(qkv, *, return_lse):  # one's own implementation: called as ops.attention is, and returns what it returns
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def why_not(device, qkv=None, *, return_lse=False):
        return ["it keeps no log-sum-exp"] if return_lse else []

    ops.register_impl("attention", "mine", mine, why_not)
    assert torch.allclose(ops.attention(qkv, impl="mine"), exact, atol=1e-5)

``python -m s2vfast.verify attention --impl mine --plugin FILE.py`` compares it, and its gradients, with the reference
in float64, where ``FILE.py`` registers it.
"""

from s2vfast.ops._dispatch import (
    IMPLEMENTATIONS,
    availability,
    is_auto,
    operation,
    parse_choice,
    register_impl,
    use_chooser,
    use_impl,
)
from s2vfast.ops.adamw_ema import Span, adamw_ema
from s2vfast.ops.add_norm import add_norm
from s2vfast.ops.attention import attention
from s2vfast.ops.batch_norm import batch_norm
from s2vfast.ops.clip_sample import ClipSpec, clip_sample
from s2vfast.ops.embed_gather import embed_gather
from s2vfast.ops.graph_attention import graph_attention
from s2vfast.ops.graph_mix import graph_mix
from s2vfast.ops.joint_mix import joint_mix
from s2vfast.ops.mask_fill import mask_fill
from s2vfast.ops.masked_mse import masked_mse
from s2vfast.ops.mlp import mlp
from s2vfast.ops.norm_linear import norm_linear
from s2vfast.ops.point_sample import PointSpec, point_sample
from s2vfast.ops.sparse_conv import sparse_conv
from s2vfast.ops.teacher_target import teacher_target
from s2vfast.ops.temporal_branches import temporal_branches
from s2vfast.ops.temporal_conv import temporal_conv
from s2vfast.ops.token_mask import token_mask
from s2vfast.ops.tube_mask import tube_mask
from s2vfast.ops.voxelize import Level, Voxels, voxelize

__all__ = [
    "IMPLEMENTATIONS",
    "ClipSpec",
    "Level",
    "PointSpec",
    "Span",
    "Voxels",
    "adamw_ema",
    "add_norm",
    "attention",
    "availability",
    "batch_norm",
    "clip_sample",
    "embed_gather",
    "graph_attention",
    "graph_mix",
    "is_auto",
    "joint_mix",
    "mask_fill",
    "masked_mse",
    "mlp",
    "norm_linear",
    "operation",
    "parse_choice",
    "point_sample",
    "register_impl",
    "sparse_conv",
    "teacher_target",
    "temporal_branches",
    "temporal_conv",
    "token_mask",
    "tube_mask",
    "use_chooser",
    "use_impl",
    "voxelize",
]
