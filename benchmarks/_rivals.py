"""What others compute an operation with: PyTorch's own kernels and, where they are installed, other libraries'."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6  # the default of the operations with a norm


@dataclass(frozen=True)
class Rival:
    """Another way to compute an operation.

    Args:
        prepare: takes the arguments and returns the function to call with them, or the reason (a text) why it cannot
            run here.
        devices: types of devices on which it exists.
        first: it takes long to prepare, so that it is measured at the first shape alone.
    """

    prepare: Callable[[dict[str, Any]], Callable[..., Any] | str]
    devices: tuple[str, ...] = ("cpu", "cuda")
    first: bool = False


# attention: SDPA by backend, FlexAttention and, where they are installed, FlashAttention 3 and 4 and cuEquivariance.


def _heads(qkv: Tensor) -> tuple[Tensor, ...]:
    """[N, L, 3, H, d] as three of [N, H, L, d]."""
    return qkv.permute(2, 0, 3, 1, 4).unbind()


def _sdpa(backend: str) -> Rival:
    def prepare(arguments: dict[str, Any]) -> Callable[..., Tensor] | str:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def call(qkv: Tensor) -> Tensor:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return F.scaled_dot_product_attention(*_heads(qkv)).transpose(1, 2)

        try:
            call(arguments["qkv"][:1])
        except RuntimeError as error:  # it has no kernel for this device, dtype or size
            return str(error)
        return call

    return Rival(prepare)


def _flex(arguments: dict[str, Any]) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda qkv: compiled(*_heads(qkv)).transpose(1, 2)


def _flash(module: str) -> Rival:
    """FlashAttention's function of a module, where it is installed."""

    def prepare(arguments: dict[str, Any]) -> Callable[..., Tensor] | str:
        try:
            flash_attn_func = importlib.import_module(module).flash_attn_func
        except (ImportError, AttributeError) as error:
            return str(error)

        def call(qkv: Tensor) -> Tensor:
            output = flash_attn_func(*qkv.unbind(2))  # [N, L, H, d] each
            return output[0] if isinstance(output, tuple) else output

        return call

    return Rival(prepare, ("cuda",))


def _cuequivariance(arguments: dict[str, Any]) -> Callable[..., Tensor] | str:
    """Its attention with a bias that all tracks share, of zeros."""
    try:
        from cuequivariance_torch import triangle_attention
    except ImportError as error:
        return str(error)
    _, L, _, H, _ = arguments["qkv"].shape
    bias = torch.zeros(1, 1, H, L, L, device=arguments["qkv"].device)

    def call(qkv: Tensor) -> Tensor:
        q, k, v = (part.contiguous()[None] for part in _heads(qkv))  # [1, N, H, L, d]
        return triangle_attention(q, k, v, bias)[0].transpose(1, 2)

    return call


# Liger's layer norm, and what the operations have around a norm by PyTorch.


def _liger(run: Callable[..., Any]) -> Rival:
    """``run(norm, **arguments)``, where Liger is installed."""

    def prepare(arguments: dict[str, Any]) -> Callable[..., Any] | str:
        try:
            from liger_kernel.ops.layer_norm import LigerLayerNormFunction
        except ImportError as error:
            return str(error)
        return functools.partial(run, LigerLayerNormFunction.apply)

    return Rival(prepare, ("cuda",))


def _norm_linear(
    norm: Callable[..., Tensor], x: Tensor, norm_weight: Tensor, norm_bias: Tensor, **linear: Any
) -> Tensor:
    weight, bias = linear["weight"], linear["bias"]
    return F.linear(norm(x, norm_weight, norm_bias, EPS).to(weight.dtype), weight, bias)


def _add_norm(
    norm: Callable[..., Tensor], residual: Tensor, branch: Tensor, **arguments: Tensor
) -> tuple[Tensor, Tensor]:
    projected = F.linear(branch, arguments["projection"], arguments["projection_bias"])
    residual = torch.addcmul(residual, arguments["gamma"], projected)
    return residual, norm(residual, arguments["weight"], arguments["bias"], EPS).to(branch.dtype)


_SDPA = {f"sdpa {name.lower()}": _sdpa(f"{name}_ATTENTION") for name in ("FLASH", "CUDNN", "EFFICIENT")}
ATTENTION = {
    **_SDPA,
    "sdpa math": _sdpa("MATH"),
    "flex": Rival(_flex, ("cuda",), first=True),
    "flash-attention 3": _flash("flash_attn_interface"),
    "flash-attention 4": _flash("flash_attn.cute"),
    "cuequivariance": Rival(_cuequivariance, ("cuda",)),
}
NORM_LINEAR = {"liger": _liger(_norm_linear)}
ADD_NORM = {"liger": _liger(_add_norm)}
