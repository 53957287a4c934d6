"""attention: against SDPA by backend, FlexAttention and, where it is installed, FlashAttention-4.

python -m benchmarks.bench_attention [--shape ntu] [--device cuda] [--dtype bfloat16] [--out DIR]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._ops import Baseline, Benchmark, Cost
from benchmarks.run import main
from s2vfast.inputs import Shape


def cost(shape: Shape, backward: bool) -> Cost:
    """Two products of scores, each 2 L * L * D operations, and an exponential a score.

    Backward five products more, one of which makes the scores again, and their exponentials again.
    """
    scores = float(shape.N) * shape.L * shape.L
    return Cost(flop=(3.5 if backward else 1) * 4 * scores * shape.D, exps=(2 if backward else 1) * scores * shape.H)


def _parts(qkv: Tensor) -> tuple[Tensor, ...]:
    """[N, L, 3, H, d] as three of [N, H, L, d]."""
    return qkv.permute(2, 0, 3, 1, 4).unbind()


def _sdpa(backend: str) -> Baseline:
    def prepare(given: dict[str, Any]) -> Callable[..., Tensor] | str:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        one = getattr(SDPBackend, backend)

        def call(qkv: Tensor) -> Tensor:
            with sdpa_kernel(one):
                return F.scaled_dot_product_attention(*_parts(qkv)).transpose(1, 2)

        try:
            call(given["qkv"][:1])
        except RuntimeError as error:  # it has no kernel for this device, dtype or size
            return str(error)
        return call

    return Baseline(prepare)


def _flex(given: dict[str, Any]) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda qkv: compiled(*_parts(qkv)).transpose(1, 2)


def _flash4(given: dict[str, Any]) -> Callable[..., Tensor] | str:
    try:
        from flash_attn.cute import flash_attn_func
    except ImportError as error:
        return str(error)

    def call(qkv: Tensor) -> Tensor:
        found = flash_attn_func(*qkv.unbind(2))  # [N, L, H, d] each
        return found[0] if isinstance(found, tuple) else found

    return call


BENCHMARK = Benchmark(
    "attention",
    cost,
    baselines={
        "sdpa flash": _sdpa("FLASH_ATTENTION"),
        "sdpa cudnn": _sdpa("CUDNN_ATTENTION"),
        "sdpa efficient": _sdpa("EFFICIENT_ATTENTION"),
        "sdpa math": _sdpa("MATH"),
        "flex": Baseline(_flex, ("cuda",), first=True),
        "flash-attention 4": Baseline(_flash4, ("cuda",)),
    },
)


def test_attention(case):
    """For pytest-benchmark: see benchmarks/conftest.py."""
    case()


if __name__ == "__main__":
    sys.exit(main(["attention", *sys.argv[1:]]))
