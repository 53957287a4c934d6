"""Pre-norm transformer blocks, one after the other."""

from __future__ import annotations

from torch import Tensor

from s2vfast.reference.add_norm import add_norm
from s2vfast.reference.attention import attention
from s2vfast.reference.mlp import mlp

_A_BLOCK = 14


def block_stack(x: Tensor, parameters: list[Tensor], heads: int, eps: float = 1e-6) -> Tensor:
    """x += gamma1 * proj(attention(norm1(x))); x += gamma2 * fc2(gelu(fc1(norm2(x)))), for each block.

    Args:
        x: [N, L, D], the residual stream.
        parameters: 14 tensors a block, block after block: norm1.weight [D], norm1.bias [D], qkv.weight [3 D, D],
            qkv.bias [3 D], proj.weight [D, D], proj.bias [D], gamma1 [D], norm2.weight [D], norm2.bias [D],
            fc1.weight [E, D], fc1.bias [E], fc2.weight [D, E], fc2.bias [D], gamma2 [D].
        heads: of attention; the queries of a head are D / heads wide.
        eps: added to variances.

    Returns:
        [N, L, D], the stream after the last block.
    """
    N, L, D = x.shape
    for start in range(0, len(parameters), _A_BLOCK):
        norm1, norm1_bias, qkv, qkv_bias, proj, proj_bias, gamma1, *second = parameters[start : start + _A_BLOCK]
        norm2, norm2_bias, fc1, fc1_bias, fc2, fc2_bias, gamma2 = second
        _, normed = add_norm(x, None, None, norm1, norm1_bias, eps)
        packed = normed @ qkv.t() + qkv_bias  # [N, L, 3 D]
        mixed, _ = attention(packed.reshape(N, L, 3, heads, D // heads))
        branch = mixed.reshape(N, L, D) @ proj.t() + proj_bias
        x, normed = add_norm(x, branch, gamma1, norm2, norm2_bias, eps)
        x, _ = add_norm(x, mlp(normed, fc1, fc1_bias, fc2, fc2_bias), gamma2, None, None)
    return x
