"""GELU and its derivative in a kernel. Nothing is read or written."""

from __future__ import annotations

import triton
import triton.language as tl

_ROOT_HALF: tl.constexpr = tl.constexpr(0.7071067811865476)
_ROOT_TAU: tl.constexpr = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def normal_distribution(h, FAST: tl.constexpr):
    """Phi(h) and the density phi(h) of the standard normal distribution, float32.

    FAST: erfc(x) = t (a1 + t (a2 + ... a5)) exp(-x**2), t = 1 / (1 + p x) for x >= 0 (Abramowitz and Stegun, 7.1.26,
    absolute error 1.5e-7): one exponential, which the density needs as well, one division and seven multiply-adds where
    the library's erf takes some twenty-five instructions. The error of GELU and of its derivative is below a unit in
    the last place of bfloat16.
    """
    if FAST:
        x = tl.abs(h) * _ROOT_HALF
        t = tl.fdiv(1.0, 1.0 + 0.3275911 * x)
        power = tl.exp2(-x * x * _LOG2_E)
        tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        tail = 0.5 * tail * power  # Phi(-|h|)
        return tl.where(h >= 0.0, 1.0 - tail, tail), _ROOT_TAU * power
    else:
        return 0.5 * (1.0 + tl.erf(h * _ROOT_HALF)), _ROOT_TAU * tl.exp(-0.5 * h * h)
