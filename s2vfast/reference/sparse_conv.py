"""A convolution over cells whose neighbours a table names, in the plainest PyTorch."""

import torch
from torch import Tensor


def sparse_conv(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Arguments and result as of `s2vfast.ops.sparse_conv`."""
    out = x.new_zeros(table.shape[1], weight.shape[2])
    for rows, matrix in zip(table.long(), weight, strict=True):
        present = rows >= 0
        products = torch.zeros_like(out)
        products[present] = x[rows[present]] @ matrix
        out = out + products
    return out
