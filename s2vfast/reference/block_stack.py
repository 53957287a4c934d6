"""Pre-norm transformer blocks, one after the other."""

from __future__ import annotations

from torch import Tensor

from s2vfast.reference.add_norm import add_norm
from s2vfast.reference.attention import attention
from s2vfast.reference.mlp import mlp

PARAMETERS = (
    "norm1.weight", "norm1.bias", "qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "gamma1",
    "norm2.weight", "norm2.bias", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "gamma2",
)  # fmt: skip
"""What ``parameters`` holds for each block, in this order."""


def block_stack(x: Tensor, parameters: list[Tensor], heads: int, eps: float = 1e-6) -> Tensor:
    """x += gamma1 * proj(attention(norm1(x))); x += gamma2 * fc2(gelu(fc1(norm2(x)))), for each block.

    Args:
        x: [N, L, D], the residual stream.
        parameters: the tensors of `PARAMETERS` for each block, block after block. Matrices [3 D, D], [D, D], [E, D]
            and [D, E], biases [3 D], [D], [E] and [D], all others [D].
        heads: of attention; the queries of a head are D / heads wide.
        eps: added to variances.

    Returns:
        [N, L, D], the stream after the last block.
    """
    N, L, D = x.shape
    for start in range(0, len(parameters), len(PARAMETERS)):
        norm1, norm1_bias, qkv, qkv_bias, proj, proj_bias, gamma1, *second = parameters[start : start + len(PARAMETERS)]
        norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias, gamma2 = second
        _, normed = add_norm(x, None, None, norm1, norm1_bias, eps)
        packed = normed @ qkv.t() + qkv_bias  # [N, L, 3 D]
        mixed, _ = attention(packed.reshape(N, L, 3, heads, D // heads))
        branch = mixed.reshape(N, L, D) @ proj.t() + proj_bias
        x, normed = add_norm(x, branch, gamma1, norm2, norm2_bias, eps)
        x, _ = add_norm(x, mlp(normed, fc1, fc1_bias, fc2, fc2_bias), gamma2, None, None)
    return x
