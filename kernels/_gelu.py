"""GELU and its derivative in a kernel. Nothing is read or written."""

from __future__ import annotations

import triton
import triton.language as tl

from s2vfast.kernels._launch import INTERPRETED

_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)
_ROOT_HALF: tl.constexpr = tl.constexpr(0.7071067811865476)
_ROOT_TAU: tl.constexpr = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
_MINUS_HALF_LOG2_E: tl.constexpr = tl.constexpr(-0.7213475204444817)


@triton.jit
def _reciprocal(x):
    """1 / x for x >= 1 and below 2**126: one instruction, error of one unit in the last place.

    A division by the general instruction takes nine more, for denominators that do not occur here.
    """
    if _INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], tl.float32, True, 1)


@triton.jit
def normal_distribution(h, FAST: tl.constexpr):
    """Phi(h) and the density phi(h) of the standard normal distribution, float32.

    FAST: erfc(x) = t (a1 + t (a2 + ... a5)) exp(-x**2), t = 1 / (1 + p x) for x >= 0 (Abramowitz and Stegun, 7.1.26,
    absolute error 1.5e-7): one exponential, which the density needs as well, one division and seven multiply-adds where
    the library's erf takes some twenty-five instructions. The error of GELU and of its derivative is below a unit in
    the last place of bfloat16.
    """
    if FAST:
        t = _reciprocal(1.0 + 0.2316419 * tl.abs(h))  # 0.3275911 / sqrt(2)
        power = tl.exp2(h * (h * _MINUS_HALF_LOG2_E))
        # The coefficients of erfc, halved.
        tail = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
        tail = tail * power  # Phi(-|h|)
        return tl.where(h >= 0.0, 1.0 - tail, tail), _ROOT_TAU * power
    else:
        return 0.5 * (1.0 + tl.erf(h * _ROOT_HALF)), _ROOT_TAU * tl.exp(-0.5 * h * h)
