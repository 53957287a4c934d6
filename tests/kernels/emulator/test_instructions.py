"""Single instructions on hand-made PTX against exact arithmetic."""

import math
import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from s2vfast.kernels import emulator
from s2vfast.reference import philox

sys.path.insert(0, str(Path(__file__).parent))
from assemble import apply, execute, tensor

U32, I32, U64, I64, F32, F64 = np.uint32, np.int32, np.uint64, np.int64, np.float32, np.float64


def bits(count, seed):
    """Random uint32."""
    return philox.random_bits(seed, 0, torch.zeros(1), 77, count)[0].numpy().astype(U32)


# Zeros, subnormal numbers, the smallest and largest ones, infinities, NaN, and neighbours of powers of two.
WORDS = """
0 80000000 1 80000001 7fffff 800000 3f800000 bf800000 3f7fffff 3f800001 4b000000 4b800001 7f7fffff ff7fffff 7f800000
ff800000 7fc00000 33800000 34000000 5f000000
"""
SPECIAL = np.array([int(word, 16) for word in WORDS.split()], U32)


def floats(count, seed):
    """Random float32 of sensible sizes, then special ones and random bits."""
    few = ((bits(count, seed).astype(F64) / 2.0**31 - 1) * 2.0 ** (bits(count, seed + 1).astype(F64) % 40 - 20)).astype(
        F32
    )
    return np.concatenate([few, SPECIAL.view(F32), bits(count, seed + 2).view(F32)])


def pairs(seed, n=3):
    rows = [floats(300, seed + 10 * i) for i in range(n)]
    special = np.meshgrid(*[SPECIAL.view(F32)] * n) if n < 3 else [np.zeros(0, F32)] * n
    return [np.concatenate([row, grid.ravel()]) for row, grid in zip(rows, special, strict=True)]


def nearest(x: Fraction, digits: int = 24) -> float:
    """The nearest number of so many binary digits and float32's range, ties to even, by integer arithmetic."""
    if x == 0:
        return 0.0
    sign, x = (-1, -x) if x < 0 else (1, x)
    exponent = max(math.floor(math.log2(x)) if x.numerator.bit_length() < 900 else 0, -126)
    while x >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while exponent > -126 and x < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - digits + 1)
    whole, part = divmod(x, unit)
    whole = int(whole)
    if part > unit / 2 or (part == unit / 2 and whole % 2):
        whole += 1
    value = whole * unit
    return sign * (math.inf if value >= Fraction(2) ** 128 else float(value))


def same(found, expected):
    """Equal bit by bit, where any NaN equals any other."""
    found, expected = found.view(F32), np.asarray(expected, F32)
    both_nan = np.isnan(found) & np.isnan(expected)
    wrong = ~both_nan & (found.view(U32) != expected.view(U32))
    assert not wrong.any(), (found[wrong][:5], expected[wrong][:5])


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_float32_arithmetic_is_ieee(name):
    a, b = pairs(1, 2)
    with np.errstate(all="ignore"):
        exact = {"add": a + b, "sub": a - b, "mul": a * b, "div": a / b}[name]
    found = apply(f"{name}.rn.f32 {{d}}, {{0}}, {{1}};", a, b)
    same(found, exact)
    assert (found[np.isnan(exact)] == 0x7FFFFFFF).all()  # PTX has one NaN


def test_fma_rounds_once():
    a, b, c = pairs(5)
    # Ties that rounding to float64 first would make or break.
    a = np.concatenate([a, np.array([1 + 2.0**-23, 1 + 2.0**-12, 2.0**100], F32)])
    b = np.concatenate([b, np.array([2.0**-24, 1 + 2.0**-12, 2.0**-100], F32)])
    c = np.concatenate([c, np.array([1.0, 2.0**-60, 2.0**-80], F32)])
    found = apply("fma.rn.f32 {d}, {0}, {1}, {2};", a, b, c).view(F32)
    for x, y, z, f in zip(a.tolist(), b.tolist(), c.tolist(), found.tolist(), strict=True):
        if all(map(math.isfinite, (x, y, z))):
            exact = nearest(Fraction(x) * Fraction(y) + Fraction(z))
            assert f == exact, (x, y, z, f, exact)


def test_fma_of_float64_rounds_once():
    a, b, c = (x.astype(F64) * (1 + 2.0**-40) for x in (np.nan_to_num(p, posinf=3, neginf=5) for p in pairs(9)))
    found = apply("fma.rn.f64 {d}, {0}, {1}, {2};", a, b, c, out=F64)
    for x, y, z, f in zip(a.tolist(), b.tolist(), c.tolist(), found.tolist(), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        try:
            expected = float(exact)
        except OverflowError:
            expected = math.inf if exact > 0 else -math.inf
        assert f == expected, (x, y, z)


def test_flushing_subnormal_numbers():
    a = SPECIAL.view(F32)
    one = np.ones_like(a)
    found = apply("mul.ftz.f32 {d}, {0}, {1};", a, one)
    flushed = np.where(np.abs(a) < 2.0**-126, np.copysign(F32(0), a), a)
    same(found, flushed)
    half = apply("mul.ftz.f32 {d}, {0}, {1};", np.array([2.0**-126], F32), np.array([0.5], F32))
    assert half[0] == 0  # a subnormal result too


def test_minimum_and_maximum():
    a, b = pairs(20, 2)
    a, b = (x[(a != 0) | (b != 0)] for x in (a, b))
    same(apply("min.f32 {d}, {0}, {1};", a, b), np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.minimum(a, b))))
    zeros = np.array([0.0, -0.0, 0.0, -0.0], F32), np.array([-0.0, 0.0, 0.0, -0.0], F32)
    assert apply("min.f32 {d}, {0}, {1};", *zeros).tolist() == [0x80000000, 0x80000000, 0, 0x80000000]
    assert apply("max.f32 {d}, {0}, {1};", *zeros).tolist() == [0, 0, 0, 0x80000000]
    nan = apply("max.NaN.f32 {d}, {0}, {1};", np.array([np.nan], F32), np.array([1], F32))
    assert np.isnan(nan.view(F32)).all()
    sides = np.array([-200, -3, 5, 200, np.nan], F32), np.array([126, 126, -126, 126, 126], F32)
    cut = apply("min.NaN.xorsign.abs.f32 {d}, {0}, {1};", *sides).view(F32)
    assert cut[:4].tolist() == [-126, -3, -5, 126]
    assert np.isnan(cut[4])


@pytest.mark.parametrize(
    ("name", "function", "relative", "absolute", "low", "high"),
    [
        ("ex2.approx.ftz", lambda x: np.exp2(x), 2.0**-22, 0, -120, 120),
        ("ex2.approx", lambda x: np.exp2(x), 2.0**-22, 0, -120, 120),
        ("lg2.approx", lambda x: np.log2(x), 2.0**-22, 2.0**-22, 1e-6, 1e6),
        ("rcp.approx.ftz", lambda x: 1 / x, 2.0**-23, 0, 0.001, 1000),
        ("rsqrt.approx.ftz", lambda x: 1 / np.sqrt(x), 2.0**-22.9, 0, 0.001, 1000),
        ("sqrt.approx.ftz", lambda x: np.sqrt(x), 2.0**-22, 0, 0.001, 1000),
        ("tanh.approx", lambda x: np.tanh(x), 2.0**-11, 0, -4, 4),
        ("sin.approx", lambda x: np.sin(x), 0, 2.0**-20.5, -3, 3),
        ("cos.approx", lambda x: np.cos(x), 0, 2.0**-20.5, -3, 3),
    ],
)
@pytest.mark.parametrize("worst", [False, True])
def test_approximate_instructions_stay_within_their_error(name, function, relative, absolute, low, high, worst):
    x = (low + (high - low) * bits(2000, 3).astype(F64) / 2.0**32).astype(F32)
    found = apply(f"{name}.f32 {{d}}, {{0}};", x, checks=emulator.Checks(worst=worst)).view(F32).astype(F64)
    exact = function(x.astype(F64))
    limit = np.maximum(np.abs(exact) * relative, absolute)
    error = np.abs(found - exact)
    assert (error <= limit).all()
    if worst:
        assert error.max() > 0.5 * limit.max()
        assert np.median(error / limit) > 0.5


@pytest.mark.parametrize("worst", [False, True])
def test_approximate_division(worst):
    a, b = floats(500, 40)[:500], np.abs(floats(500, 50)[:500]) + F32(1e-3)
    found = apply("div.full.f32 {d}, {0}, {1};", a, b, checks=emulator.Checks(worst=worst)).view(F32).astype(F64)
    exact = a.astype(F64) / b.astype(F64)
    assert (np.abs(found - exact) <= np.abs(exact) * 2.0**-22 + 1e-45).all()


A, B = bits(400, 60), np.concatenate([bits(380, 61), np.arange(20, dtype=U32)])
SIGNED = A.view(I32), B.view(I32)


def wide(x, kind):
    return x.astype(kind)


INTEGER = [
    ("add.s32", lambda: A + B),
    ("sub.s32", lambda: A - B),
    ("mul.lo.s32", lambda: A * B),
    ("mul.hi.u32", lambda: (wide(A, U64) * wide(B, U64) >> U64(32)).astype(U32)),
    ("mul.hi.s32", lambda: (wide(SIGNED[0], I64) * wide(SIGNED[1], I64) >> 32).astype(U32)),
    ("min.s32", lambda: np.minimum(*SIGNED).view(U32)),
    ("max.u32", lambda: np.maximum(A, B)),
    ("max.relu.s32", lambda: np.maximum(np.maximum(*SIGNED), 0).view(U32)),
    ("and.b32", lambda: A & B),
    ("xor.b32", lambda: A ^ B),
    (
        "shl.b32",
        lambda: np.array([(a << b) & 0xFFFFFFFF if b < 32 else 0 for a, b in zip(A.tolist(), B.tolist(), strict=True)]),
    ),
    ("shr.u32", lambda: np.array([a >> b if b < 32 else 0 for a, b in zip(A.tolist(), B.tolist(), strict=True)])),
    (
        "shr.s32",
        lambda: np.array([a >> min(b, 31) & 0xFFFFFFFF for a, b in zip(SIGNED[0].tolist(), B.tolist(), strict=True)]),
    ),
]


@pytest.mark.parametrize(("name", "expected"), INTEGER, ids=[name for name, _ in INTEGER])
def test_integers(name, expected):
    found = apply(f"{name} {{d}}, {{0}}, {{1}};", A, B)
    assert found.tolist() == expected().astype(U32).tolist()


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_division_is_towards_zero(kind):
    size = int(kind[1:]) // 8
    dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{size}")
    a = np.frombuffer(bits(size * 100, 70).tobytes(), dtype)
    b = np.concatenate([a[: len(a) // 2] // 1000, a[: len(a) - len(a) // 2] | 1])
    b = np.where(b == 0, 7, b).astype(dtype)
    quotient, remainder = (apply(f"{op}.{kind} {{d}}, {{0}}, {{1}};", a, b, out=dtype) for op in ("div", "rem"))
    for x, y, q, r in zip(a.tolist(), b.tolist(), quotient.tolist(), remainder.tolist(), strict=True):
        exact = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        assert (q, r) == (exact, x - exact * y)


def test_wide_products_and_fields():
    a, b = SIGNED[0].tolist(), SIGNED[1].tolist()
    found = apply("mul.wide.s32 {d}, {0}, {1};", A, B, out=I64).tolist()
    assert found == [x * y for x, y in zip(a, b, strict=True)]
    found = apply("mad.wide.u32 {d}, {0}, {1}, {2};", A, B, wide(A, U64), out=U64).tolist()
    assert found == [(x * y + x) % 2**64 for x, y in zip(A.tolist(), B.tolist(), strict=True)]
    high = apply("mul.hi.u64 {d}, {0}, {1};", wide(A, U64) << U64(31), wide(B, U64) << U64(30), out=U64).tolist()
    assert high == [(x << 31) * (y << 30) >> 64 for x, y in zip(A.tolist(), B.tolist(), strict=True)]
    assert apply("bfe.u32 {d}, {0}, 5, 11;", A).tolist() == [x >> 5 & 0x7FF for x in A.tolist()]
    signed = [((x >> 3 & 1) ^ 1) - 1 & 0xFFFFFFFF for x in A.tolist()]
    assert apply("bfe.s32 {d}, {0}, 3, 1;", A).tolist() == signed
    dynamic = apply("bfe.u32 {d}, {0}, {1}, {2};", A, B % U32(32), B % U32(9))
    assert dynamic.tolist() == [x >> (y % 32) & (1 << y % 9) - 1 for x, y in zip(A.tolist(), B.tolist(), strict=True)]
    assert apply("bfi.b32 {d}, {0}, {1}, 8, 4;", A, B).tolist() == [
        y & ~0xF00 | (x & 15) << 8 for x, y in zip(A.tolist(), B.tolist(), strict=True)
    ]


def test_bytes_bits_and_logic():
    picked = apply("prmt.b32 {d}, {0}, {1}, 0x7531;", A, B).tolist()
    for x, y, f in zip(A.tolist(), B.tolist(), picked, strict=True):
        data = struct.pack("<II", x, y)
        assert f == struct.unpack("<I", bytes(data[i] for i in (1, 3, 5, 7)))[0]
    sign = apply("prmt.b32 {d}, {0}, {1}, 0x000F;", A, B) & U32(0xFF)
    assert sign.tolist() == [0xFF if y >> 31 else 0 for y in B.tolist()]
    assert apply("popc.b32 {d}, {0};", A).tolist() == [x.bit_count() for x in A.tolist()]
    assert apply("clz.b32 {d}, {0};", B).tolist() == [32 - x.bit_length() for x in B.tolist()]
    assert apply("brev.b32 {d}, {0};", A).tolist() == [int(f"{x:032b}"[::-1], 2) for x in A.tolist()]
    majority = apply("lop3.b32 {d}, {0}, {1}, {2}, 0xE8;", A, B, A ^ U32(0x5555))
    C = A ^ U32(0x5555)
    assert majority.tolist() == ((A & B) | (A & C) | (B & C)).tolist()
    assert apply("shf.l.wrap.b32 {d}, {0}, {1}, 7;", A, B).tolist() == (B << U32(7) | A >> U32(25)).tolist()


def test_comparisons_with_nan():
    a, b = np.array([1, np.nan, 2, 1], F32), np.array([1, 1, 1, 2], F32)
    expected = {"eq": [1, 0, 0, 0], "ne": [0, 0, 1, 1], "equ": [1, 1, 0, 0], "neu": [0, 1, 1, 1], "lt": [0, 0, 0, 1]}
    expected |= {"ltu": [0, 1, 0, 1], "geu": [1, 1, 1, 0], "num": [1, 0, 1, 1], "nan": [0, 1, 0, 0]}
    for name, truth in expected.items():
        assert apply(f"setp.{name}.f32 {{p}}, {{0}}, {{1}};", a, b).tolist() == truth, name
    combined = apply("setp.lt.s32 %p2, {0}, {1}; setp.gt.and.s32 {p}, {0}, 0, !%p2;", *SIGNED)
    assert combined.tolist() == [
        int(x > 0 and not x < y) for x, y in zip(SIGNED[0].tolist(), SIGNED[1].tolist(), strict=True)
    ]


def test_comparisons_of_pairs_have_a_predicate_for_each_half():
    x, y = bits(300, 5), bits(300, 6)
    for shift, predicates in ((0, "{p}|%p2"), (16, "%p2|{p}")):
        a, b = (torch.from_numpy((words >> U32(shift)).astype(np.uint16)).view(torch.bfloat16) for words in (x, y))
        result = apply(f"setp.gt.bf16x2 {predicates}, {{0}}, {{1}};", x, y)
        assert result.tolist() == (a > b).int().tolist()


def test_conversions():
    x = floats(300, 80)
    clipped = np.where(
        np.isnan(x), 0, np.clip(np.nan_to_num(x.astype(F64), posinf=1e20, neginf=-1e20), -(2.0**31), 2**31 - 1)
    )
    found = apply("cvt.rzi.s32.f32 {d}, {0};", x).view(I32)
    assert found.tolist() == np.trunc(clipped).astype(I64).tolist()
    assert apply("cvt.rni.s32.f32 {d}, {0};", np.array([0.5, 1.5, 2.5, -0.5], F32)).view(I32).tolist() == [0, 2, 2, 0]
    same(apply("cvt.rn.f32.u32 {d}, {0};", A), [nearest(Fraction(n)) for n in A.tolist()])
    same(
        apply("cvt.rn.f32.s64 {d}, {0};", wide(SIGNED[0], I64) * 3),
        [nearest(Fraction(3 * n)) for n in SIGNED[0].tolist()],
    )
    assert apply("cvt.s64.s32 {d}, {0};", A, out=I64).tolist() == SIGNED[0].tolist()
    assert apply("cvt.u16.u32 {d}, {0};", A, out=np.uint16).tolist() == [n & 0xFFFF for n in A.tolist()]
    assert apply("cvt.s32.s8 {d}, {0};", A).view(I32).tolist() == A.astype(np.uint8).view(np.int8).tolist()
    assert apply("cvt.rmi.f64.f64 {d}, {0};", np.array([1.5, -1.5]), out=F64).tolist() == [1, -2]


def test_bfloat16_and_half():
    x = floats(1000, 90)
    exact = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    found = apply("cvt.rn.bf16.f32 {d}, {0};", x, out=np.uint16)
    good = ~np.isnan(x)
    assert found[good].tolist() == exact[good].tolist()
    assert (found[~good] == 0x7FFF).all()
    ties = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0x3F808001, 0x3F807FFF, 0x7F7F8000], U32).view(F32)
    rounded = apply("cvt.rn.bf16.f32 {d}, {0};", ties, out=np.uint16)
    assert rounded.tolist() == [0x3F80, 0x3F82, 0xBF80, 0x3F81, 0x3F80, 0x7F80]
    half = apply("cvt.rn.f16.f32 {d}, {0};", x, out=np.uint16)
    with np.errstate(over="ignore"):
        assert half[good].tolist() == x[good].astype(np.float16).view(np.uint16).tolist()
    both = apply("cvt.rn.bf16x2.f32 {d}, {0}, {1};", x, x[::-1])
    assert (both >> U32(16)).tolist() == found.tolist()
    assert (both & U32(0xFFFF)).tolist() == found[::-1].tolist()
    same(apply("cvt.f32.bf16 {d}, {0};", exact), (exact.astype(U32) << U32(16)).view(F32))
    a, b, c = (np.clip(np.nan_to_num(p), -1e4, 1e4).astype(F32) for p in pairs(95))
    a, b, c = (torch.from_numpy(p).bfloat16() for p in (a, b, c))
    words = [p.view(torch.int16).numpy().view(np.uint16) for p in (a, b, c)]
    fused = apply("fma.rn.bf16 {d}, {0}, {1}, {2};", *words, out=np.uint16)
    for x, y, z, f in zip(a.tolist(), b.tolist(), c.tolist(), fused.tolist(), strict=True):
        exact = nearest(Fraction(x) * Fraction(y) + Fraction(z), 8)
        assert struct.unpack("<f", struct.pack("<I", f << 16))[0] == exact, (x, y, z)


def test_moves_between_registers_of_several_sizes():
    low, high = apply("mov.b64 {{%r40, %r41}}, {0}; mov.b32 {d}, %r41;", wide(A, U64) << U64(32) | wide(B, U64)), A
    assert low.tolist() == high.tolist()
    halves = apply("mov.b32 {{%h1, %h2}}, {0}; mov.b32 {d}, {{%h2, %h1}};", A)
    assert halves.tolist() == (A << U32(16) | A >> U32(16)).tolist()


def shuffled(instruction, x, threads=32):
    result = np.zeros(threads, U32)
    body = (
        "mul.wide.u32 %rd1, %r100, 4; add.u64 %rd2, %rd21, %rd1; add.u64 %rd3, %rd20, %rd1;"
        f"ld.global.b32 %r1, [%rd2];\n{instruction}\nst.global.b32 [%rd3], %r2;"
    )
    execute(body, tensor(result), tensor(x), threads=threads)
    return result.tolist()


def test_shuffles():
    x = np.arange(100, 164, dtype=U32)
    lanes = range(64)
    assert shuffled("shfl.sync.bfly.b32 %r2, %r1, 5, 31, -1;", x, 64) == [100 + (i ^ 5) for i in lanes]
    up = [100 + (i - 3 if i % 32 >= 3 else i) for i in lanes]
    assert shuffled("shfl.sync.up.b32 %r2, %r1, 3, 0, -1;", x, 64) == up
    down = [100 + (i + 3 if i % 16 < 13 else i) for i in lanes]  # within segments of 16
    assert shuffled("shfl.sync.down.b32 %r2, %r1, 3, 0x100F, -1;", x, 64) == down
    assert shuffled("shfl.sync.idx.b32 %r2, %r1, 7, 31, -1;", x, 64) == [100 + i // 32 * 32 + 7 for i in lanes]
    inside = "shfl.sync.up.b32 %r3|%p1, %r1, 3, 0, -1; selp.b32 %r2, 1, 0, %p1;"
    assert shuffled(inside, x, 64) == [int(i % 32 >= 3) for i in lanes]


def test_votes_and_reductions():
    x = np.arange(100, 132, dtype=U32)
    assert shuffled("setp.gt.u32 %p1, %r1, 129; vote.sync.ballot.b32 %r2, %p1, -1;", x) == [3 << 30] * 32
    assert (
        shuffled("setp.gt.u32 %p1, %r1, 99; vote.sync.all.pred %p2, %p1, -1; selp.b32 %r2, 5, 6, %p2;", x) == [5] * 32
    )
    assert shuffled("redux.sync.add.s32 %r2, %r1, -1;", x) == [int(x.sum())] * 32
    assert shuffled("redux.sync.max.u32 %r2, %r1, -1;", x) == [131] * 32
    # A part of a warp: the lanes that the mask names.
    part = "setp.lt.u32 %p1, %r100, 8; mov.u32 %r2, 0; @!%p1 bra END; redux.sync.add.u32 %r2, %r1, 0xFF; END:"
    assert shuffled(part, x) == [int(x[:8].sum())] * 8 + [0] * 24


def test_branches_loops_and_predicates():
    x = np.arange(32, dtype=U32)
    # Every thread goes round as often as its number says; even ones add 2, odd ones 1.
    body = """
    mov.u32 %r2, 0; mov.u32 %r3, 0; and.b32 %r4, %r1, 1; setp.eq.u32 %p2, %r4, 0;
    LOOP: setp.ge.u32 %p1, %r3, %r1; @%p1 bra DONE;
    @%p2 bra EVEN; add.u32 %r2, %r2, 1; bra.uni NEXT;
    EVEN: add.u32 %r2, %r2, 2;
    NEXT: add.u32 %r3, %r3, 1; bra LOOP;
    DONE: @%p2 add.u32 %r2, %r2, 1000;
    """
    assert shuffled(body, x) == [i + i * (i % 2 == 0) + 1000 * (i % 2 == 0) for i in range(32)]


def test_atomic_operations():
    total, slots = np.zeros(1, U32), np.zeros(64, U32)
    body = """
    mov.u32 %r1, 3; atom.global.add.u32 %r2, [%rd20], %r1; mov.u32 %r5, %ctaid.x;
    mad.lo.u32 %r6, %r5, 32, %r100; mul.wide.u32 %rd1, %r6, 4; add.u64 %rd2, %rd21, %rd1; st.global.u32 [%rd2], %r2;
    """
    execute(body, tensor(total), tensor(slots), grid=(2,))
    assert total[0] == 64 * 3
    assert sorted(slots.tolist()) == list(range(0, 64 * 3, 3))


def test_functions_are_inlined():
    text = """.version 8.3
    .target sm_80
    .address_size 64
    .func (.param .b32 out) twice(.param .b32 in) {
      .reg .b32 %r<4>; .reg .pred %p<2>;
      ld.param.b32 %r1, [in]; setp.eq.u32 %p1, %r1, 3; @%p1 bra L; add.u32 %r1, %r1, %r1;
      L: st.param.b32 [out+0], %r1; ret;
    }
    .visible .entry k(.param .u64 p) {
      .reg .b32 %r<8>; .reg .b64 %rd<4>;
      ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.u64 %rd3, %rd1, %rd2;
      { .param .b32 a; st.param.b32 [a+0], %r1; .param .b32 r; call.uni (r), twice, (a); ld.param.b32 %r2, [r+0]; }
      { .param .b32 a; st.param.b32 [a+0], %r2; .param .b32 r; call.uni (r), twice, (a); ld.param.b32 %r3, [r+0]; }
      st.global.u32 [%rd3], %r3; ret;
    }"""
    result = np.zeros(5, U32)
    emulator.run_ptx(text, "k", (1,), (5,), tensor(result))
    assert result.tolist() == [0, 4, 8, 3, 16]


def test_parameters_have_addresses():
    """A structure that a kernel takes by value, read through its address."""
    text = """.version 8.3
    .target sm_80
    .address_size 64
    .visible .entry k(.param .u64 p, .param .align 8 .b8 s[24]) {
      .reg .b32 %r<8>; .reg .b64 %rd<6>;
      ld.param.u64 %rd1, [p]; mov.b64 %rd2, s; add.s64 %rd3, %rd2, 8;
      ld.param.v2.u32 {%r1, %r2}, [%rd3+4]; ld.param.s32 %rd4, [%rd2+20];
      st.global.u32 [%rd1], %r1; st.global.u32 [%rd1+4], %r2; st.global.u64 [%rd1+8], %rd4; AFTER ret;
    }"""
    structure = np.arange(6, dtype=np.int32)
    structure[5] = -7
    result = np.zeros(4, U32)
    emulator.run_ptx(text.replace("AFTER", ""), "k", (1,), (3,), tensor(result), structure.tobytes())
    assert result.tolist() == [3, 4, 2**32 - 7, 2**32 - 1]
    beyond = text.replace("AFTER", "ld.param.u32 %r3, [%rd2+24];")
    with pytest.raises(emulator.Unsupported, match="outside"):
        emulator.run_ptx(beyond, "k", (1,), (3,), tensor(result), structure.tobytes())


def test_what_is_not_known_stops_with_its_line():
    with pytest.raises(emulator.Unsupported, match=r"PTX line \d+.*dp4a\.u32\.u32 .*does not know"):
        execute("dp4a.u32.u32 %r1, %r100, %r100, %r100;", tensor(np.zeros(1, U32)))
    with pytest.raises(emulator.Unsupported, match=r"\.rz"):
        execute("add.rz.f32 %f1, %f1, %f1;", tensor(np.zeros(1, U32)))
    # What is not reached does no harm.
    execute("bra.uni END; dp4a.u32.u32 %r1, %r100, %r100, %r100; END:", tensor(np.zeros(1, U32)))
