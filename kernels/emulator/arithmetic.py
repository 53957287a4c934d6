"""Arithmetic that NumPy has not: single roundings, narrow floating-point numbers, PTX's minima, approximations.

All functions take arrays that broadcast and return new ones. Bits of bfloat16 and half precision are uint16.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy import ndarray

u1, u2, u4, u8 = np.uint8, np.uint16, np.uint32, np.uint64
i1, i2, i4, i8 = np.int8, np.int16, np.int32, np.int64
f2, f4, f8 = np.float16, np.float32, np.float64

_TINY = f4(2.0**-126)
_LOW, _HALF = u8(0x1FFFFFFF), u8(0x10000000)  # what float32 drops of a float64, and a tie in it
CANONICAL_NAN = u4(0x7FFFFFFF)


def flush(x: ndarray) -> ndarray:
    """Subnormal float32 numbers become zeros of the same sign (.ftz)."""
    small = np.abs(x) < _TINY
    return np.where(small, np.copysign(f4(0), x), x) if small.any() else x


def saturate(x: ndarray) -> ndarray:
    """Clamp to [0, 1]; NaN becomes 0 (.sat)."""
    return np.where(np.isnan(x), x.dtype.type(0), np.clip(x, 0, 1)).astype(x.dtype)


def canonical(x: ndarray) -> ndarray:
    """Bits of float32 results: every NaN is 0x7fffffff."""
    bad = np.isnan(x)
    return np.where(bad, CANONICAL_NAN, x.view(u4)) if bad.any() else x.view(u4)


def _odd(product: ndarray, c: ndarray) -> ndarray:
    """product + c in float64, rounded to odd: rounding that once more gives what one rounding would."""
    product, c = np.broadcast_arrays(product, c.astype(f8))
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = total.view(i8)
    wrong = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
    away = (error > 0) == (total > 0)
    return np.where(wrong, bits + np.where(away, 1, -1), bits).view(f8)


def fma32(a: ndarray, b: ndarray, c: ndarray) -> ndarray:
    """a * b + c in float32, rounded once (subnormal results may be rounded twice)."""
    product = np.multiply(a, b, dtype=f8)  # exact
    total = product + c
    if np.equal(total.view(u8) & _LOW, _HALF).any():  # a tie, or what the rounding to float64 has made one
        total = _odd(product, c)
    return total.astype(f4)


def fma64(a: ndarray, b: ndarray, c: ndarray) -> ndarray:
    """a * b + c in float64, rounded once (Boldo and Melquiond, 2008)."""
    a, b, c = np.broadcast_arrays(a, b, c)
    high, low = _two_product(a, b)
    th = c + low
    part = th - c
    tl = (c - (th - part)) + (low - part)
    vh = high + th
    part = vh - high
    vl = (high - (vh - part)) + (th - part)
    result = vh + _odd(tl, vl)
    plain = a * b + c
    size = np.maximum(np.maximum(np.abs(a), np.abs(b)), np.abs(plain))
    least = np.minimum(np.abs(a * b), np.abs(plain))
    hard = ~((size < 1e290) & (least > 1e-270))
    if hard.any():  # where the splitting overflows or loses bits
        result = np.where(hard, plain, result)
        for i in np.ndindex(result.shape):
            if hard[i] and np.isfinite(plain[i]) and plain[i] != 0:
                result[i] = float(Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i])))
    return result


def _two_product(a: ndarray, b: ndarray) -> tuple[ndarray, ndarray]:
    def split(x: ndarray) -> tuple[ndarray, ndarray]:
        scaled = x * f8(134217729.0)
        high = scaled - (scaled - x)
        return high, x - high

    product = a * b
    (ah, al), (bh, bl) = split(a), split(b)
    return product, al * bl - (((product - ah * bh) - al * bh) - ah * bl)


def narrow_bf16(x: ndarray) -> ndarray:
    """Bits of bfloat16 from float32 (or float64 rounded to odd), to nearest, ties to even; NaN is 0x7fff."""
    if x.dtype == f8:
        x = _sticky32(x)
    bits = x.view(u4)
    rounded = ((bits + u4(0x7FFF) + ((bits >> u4(16)) & u4(1))) >> u4(16)).astype(u2)
    bad = np.isnan(x)
    return np.where(bad, u2(0x7FFF), rounded) if bad.any() else rounded


def _sticky32(x: ndarray) -> ndarray:
    """float64 to float32 towards zero, the last bit set where something was lost."""
    near = x.astype(f4)
    beyond = np.abs(near.astype(f8)) > np.abs(x)
    cut = np.where(beyond, near.view(u4) - u4(1), near.view(u4))
    lost = (cut.view(f4).astype(f8) != x) & np.isfinite(x)
    return np.where(lost, cut | u4(1), cut).view(f4)


def truncate_bf16(x: ndarray) -> ndarray:
    """Bits of bfloat16 from float32, towards zero."""
    return np.where(np.isnan(x), u2(0x7FFF), (x.view(u4) >> u4(16)).astype(u2))


def widen_bf16(bits: ndarray) -> ndarray:
    """float32 of bfloat16's bits."""
    return (bits.astype(u4) << u4(16)).view(f4)


def narrow_f16(x: ndarray) -> ndarray:
    """Bits of a half from float32 or float64, to nearest, ties to even; NaN is 0x7fff."""
    rounded = x.astype(f2)
    return np.where(np.isnan(x), u2(0x7FFF), rounded.view(u2))


def widen_f16(bits: ndarray) -> ndarray:
    """float32 of a half's bits."""
    return bits.view(f2).astype(f4)


def on_halves(function: Callable[..., ndarray], *words: ndarray) -> ndarray:
    """Apply a function of uint16 to the lower and upper halves of uint32."""
    low = function(*((word & u4(0xFFFF)).astype(u2) for word in words))
    high = function(*((word >> u4(16)).astype(u2) for word in words))
    return low.astype(u4) | (high.astype(u4) << u4(16))


def fma_narrow(a: ndarray, b: ndarray, c: ndarray) -> ndarray:
    """a * b + c of narrow numbers widened to float32: float64, rounded to odd, to be narrowed."""
    return _odd(np.multiply(a, b, dtype=f8), c)


def narrow_tf32(x: ndarray, away: bool) -> ndarray:
    """float32 rounded to tf32's 10 bits of fraction, ties away from zero (rna) or to even (rn); bits of float32."""
    bits = x.view(u4)
    tie = u4(0x1000) if away else u4(0xFFF) + ((bits >> u4(13)) & u4(1))
    return np.where(np.isfinite(x), (bits + tie) & u4(0xFFFFE000), bits)


def minimum(a: ndarray, b: ndarray, nan: bool = False) -> ndarray:
    """PTX's min of floats: a number wins over NaN (with ``nan``, NaN wins), -0 is below +0."""
    return _extreme(np.fmin, np.minimum, a, b, nan, True)


def maximum(a: ndarray, b: ndarray, nan: bool = False) -> ndarray:
    """PTX's max of floats, likewise."""
    return _extreme(np.fmax, np.maximum, a, b, nan, False)


def cross_sign(size: ndarray, a: ndarray, b: ndarray) -> ndarray:
    """Sizes, negative where one of a and b is (.xorsign.abs)."""
    return np.where(np.signbit(a) ^ np.signbit(b), -size, size)


def _extreme(number: np.ufunc, strict: np.ufunc, a: ndarray, b: ndarray, nan: bool, least: bool) -> ndarray:
    result = (strict if nan else number)(a, b)
    zeros = result == 0
    if zeros.any():
        negative = (np.signbit(a) | np.signbit(b)) if least else (np.signbit(a) & np.signbit(b))
        both = zeros & (a == 0) & (b == 0)
        zero = np.where(negative, result.dtype.type(-0.0), result.dtype.type(0.0))
        result = np.where(both, zero, result)
    return result


def quotient(a: ndarray, b: ndarray) -> ndarray:
    """Integer division towards zero; by zero all bits are set."""
    zero = b == 0
    safe = np.where(zero, b.dtype.type(1), b)
    if a.dtype.kind == "i":
        with np.errstate(over="ignore"):
            result = (a - np.fmod(a, safe)) // safe
    else:
        result = a // safe
    return np.where(zero, np.invert(np.zeros_like(result)), result) if zero.any() else result


def remainder(a: ndarray, b: ndarray) -> ndarray:
    """What is left of a by division towards zero; by zero, a."""
    zero = b == 0
    return np.where(zero, a, np.fmod(a, np.where(zero, b.dtype.type(1), b)))


def high_product(a: ndarray, b: ndarray) -> ndarray:
    """The upper half of the product of two 32- or 64-bit integers."""
    if a.dtype.itemsize == 4:
        wide = i8 if a.dtype.kind == "i" else u8
        return (np.multiply(a, b, dtype=wide) >> wide(32)).astype(a.dtype)
    mask, shift = u8(0xFFFFFFFF), u8(32)
    x, y = a.view(u8), b.view(u8)
    xl, xh, yl, yh = x & mask, x >> shift, y & mask, y >> shift
    middle = xh * yl + ((xl * yl) >> shift)
    other = xl * yh + (middle & mask)
    high = xh * yh + (middle >> shift) + (other >> shift)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, u8(0)) - np.where(b < 0, x, u8(0))
    return high.view(a.dtype)


def shift_left(x: ndarray, count: ndarray) -> ndarray:
    """x << count; counts of the width or more give 0."""
    width = 8 * x.dtype.itemsize
    shifted = x << np.minimum(count, width - 1).astype(x.dtype)
    return np.where(count >= width, x.dtype.type(0), shifted)


def shift_right(x: ndarray, count: ndarray) -> ndarray:
    """x >> count; signed numbers are filled with their sign, counts are clamped to the width."""
    width = 8 * x.dtype.itemsize
    shifted = x >> np.minimum(count, width - 1).astype(x.dtype)
    return shifted if x.dtype.kind == "i" else np.where(count >= width, x.dtype.type(0), shifted)


def extract(x: ndarray, position: ndarray, length: ndarray) -> ndarray:
    """bfe: the field of ``length`` bits at ``position``, extended by its sign for signed x."""
    width = 8 * x.dtype.itemsize
    position = np.minimum(position & u4(0xFF), width).astype(i8)
    length = np.minimum(length & u4(0xFF), width).astype(i8)
    wide = x.view(f"u{x.dtype.itemsize}").astype(u8)
    field = np.where(position >= 64, u8(0), wide >> np.minimum(position, 63).astype(u8))
    mask = np.where(length >= 64, ~u8(0), (u8(1) << np.minimum(length, 63).astype(u8)) - u8(1))
    field = field & mask
    if x.dtype.kind == "i":
        sign_at = np.minimum(position + length - 1, width - 1)
        sign = (wide >> np.maximum(sign_at, 0).astype(u8)) & u8(1)
        field = np.where((sign == 1) & (length > 0), field | ~mask, field)
    return field.astype(f"u{x.dtype.itemsize}").view(x.dtype)


def insert(a: ndarray, b: ndarray, position: ndarray, length: ndarray) -> ndarray:
    """bfi: b with the ``length`` low bits of a put in at ``position``."""
    width = 8 * a.dtype.itemsize
    position, length = np.minimum(position & u4(0xFF), width).astype(u8), np.minimum(length & u4(0xFF), width)
    ones = np.where(length >= 64, ~u8(0), (u8(1) << np.minimum(length, 63).astype(u8)) - u8(1))
    mask = np.where(position >= 64, u8(0), ones << np.minimum(position, u8(63)))
    moved = a.astype(u8) << np.minimum(position, u8(63))
    return ((b.astype(u8) & ~mask) | (moved & mask)).astype(a.dtype)


def permute(a: ndarray, b: ndarray, selector: ndarray) -> ndarray:
    """prmt.b32: four bytes of {b, a}, each named by a nibble, whose top bit replicates the byte's sign."""
    both = a.astype(u8) | (b.astype(u8) << u8(32))
    result = u4(0)
    for i in range(4):
        nibble = (selector >> u4(4 * i)) & u4(15)
        byte = ((both >> (u8(8) * (nibble & u4(7)).astype(u8))) & u8(0xFF)).astype(u4)
        byte = np.where(nibble & u4(8), np.where(byte & u4(0x80), u4(0xFF), u4(0)), byte)
        result = result | (byte << u4(8 * i))
    return result


def funnel(low: ndarray, high: ndarray, count: ndarray, right: bool, clamp: bool) -> ndarray:
    """shf: a 64-bit shift of {high, low}, one half of the result."""
    count = (np.minimum(count, 32) if clamp else count & u4(31)).astype(u8)
    both = low.astype(u8) | (high.astype(u8) << u8(32))
    return (both >> count).astype(u4) if right else ((both << count) >> u8(32)).astype(u4)


def count_ones(x: ndarray) -> ndarray:
    """popc."""
    return np.bitwise_count(x).astype(u4)


def leading_zeros(x: ndarray) -> ndarray:
    """clz."""
    width, filled = 8 * x.dtype.itemsize, x
    for shift in (1, 2, 4, 8, 16, 32):
        if shift < width:
            filled = filled | (filled >> x.dtype.type(shift))
    return u4(width) - count_ones(filled)


def reversed_bits(x: ndarray) -> ndarray:
    """brev."""
    table = np.array([int(f"{i:08b}"[::-1], 2) for i in range(256)], u1)
    bytes_ = np.ascontiguousarray(x)[..., None].view(u1)
    return np.ascontiguousarray(table[bytes_][..., ::-1]).view(x.dtype)[..., 0]


def to_integer(x: ndarray, dtype: type, rounding: str) -> ndarray:
    """Floats to integers: rounded, clamped to what fits; NaN is 0 for 32 bits and less, 2**63 for 64."""
    rounded = _ROUND[rounding](x.astype(f8))
    limits = np.iinfo(dtype)
    inside = (rounded >= float(limits.min)) & (rounded < float(limits.max) + 1)
    result = np.where(inside, rounded, 0.0).astype(dtype)
    result = np.where(inside | np.isnan(x), result, np.where(rounded > 0, limits.max, limits.min).astype(dtype))
    if np.dtype(dtype).itemsize == 8:
        result = np.where(np.isnan(x), np.array(1 << 63, u8).view(dtype), result)
    return result


_ROUND: dict[str, Callable[[ndarray], ndarray]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def to_integral(x: ndarray, rounding: str) -> ndarray:
    """Floats to integral floats."""
    return _ROUND[rounding](x)


def int_to_float(x: ndarray, dtype: type) -> ndarray:
    """Integers to floats, to nearest."""
    return x.astype(dtype)


# Approximate instructions: float64's value, and the largest error that PTX's manual allows, relative unless absolute.
def _reciprocal_root(x: ndarray) -> ndarray:
    return 1.0 / np.sqrt(x)


APPROXIMATE: dict[str, tuple[Callable[[ndarray], ndarray], float, float]] = {
    "ex2": (np.exp2, 2.0**-22, 0.0),
    "lg2": (np.log2, 2.0**-22, 2.0**-22),
    "rcp": (np.reciprocal, 2.0**-23, 0.0),
    "rsqrt": (_reciprocal_root, 2.0**-22.9, 0.0),
    "sqrt": (np.sqrt, 2.0**-22, 0.0),
    "sin": (np.sin, 0.0, 2.0**-20.5),
    "cos": (np.cos, 0.0, 2.0**-20.5),
    "tanh": (np.tanh, 2.0**-11, 0.0),
}
DIVISION = 2.0**-22  # div.full, div.approx: 2 units of the last place


def approximate(name: str, x: ndarray, worst: bool) -> ndarray:
    """An approximate instruction on float32: the nearest number, or one at the documented limit of the error."""
    function, relative, absolute = APPROXIMATE[name]
    with np.errstate(all="ignore"):
        value = function(x.astype(f8))
    return perturbed(value, x, relative, absolute) if worst else value.astype(f4)


def perturbed(value: ndarray, x: ndarray, relative: float, absolute: float) -> ndarray:
    """float64 results moved by the largest error allowed, up or down by the bits of the argument."""
    noise = (np.broadcast_to(x, value.shape).astype(f4).view(u4) * u4(2654435761)) >> u4(31)
    sign = np.where(noise == 1, 1.0, -1.0)
    moved = value + sign * np.maximum(np.abs(value) * relative, absolute)
    exact = ~np.isfinite(value) | (value == 0)
    result = np.where(exact, value, moved)
    near = result.astype(f4)
    # Rounding must not leave the bounds.
    beyond = ~exact & (np.abs(near.astype(f8) - value) > np.maximum(np.abs(value) * relative, absolute))
    return np.where(beyond, np.nextafter(near, value.astype(f4)), near)
