"""Launches of each operation and of what PyTorch does around it, for the cost model; a test counts a whole step's."""

from __future__ import annotations

LAUNCHES = {
    "norm_linear": 1,
    "attention": 1,
    "add_norm": 1,
    "mlp": 1,
    "embed_gather": 2,  # positions are the sum of two embeddings
    "convert": 1,  # of the decoder's embedded latents to the stream's dtype
    "mask_fill": 2,
    "queries": 4,  # mask token and positions; token numbers to PyTorch's dtype
    "cross": 1,  # PyTorch's attention
    "gather": 3,  # of the stream, of the branch, token numbers to PyTorch's dtype
    "share": 1,
    "teacher_target": 2,
    "masked_mse": 4,  # with its gradient, and the one that a backward pass starts from
    "variances": 5,
    "collect": 4,  # gradients of two dtypes, in lists of a hundred and more
    "update": 4,  # norm, coefficients, AdamW and EMA, operands
    "report": 5,
}
"""Forward."""
LAUNCHES_BACKWARD = {
    "norm_linear": 4,
    "attention": 2,
    "add_norm": 3,
    "mlp": 5,
    "residual": 1,  # the two ways through a block's first half add up
    "embed_gather": 5,
    "convert": 1,
    "mask_fill": 4,
    "gather": 4,
    "queries": 6,
    "cross": 2,  # keys' and values' gradients side by side
}
