"""Triton kernels as tutorials have them, written for these tests without a thought of the emulator."""

import torch
import triton
import triton.language as tl

from s2vfast.kernels import emulator
from s2vfast.reference import philox


@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, stride_am, stride_ak, stride_bk, stride_bn, stride_cm, stride_cn,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, LEAKY: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    num_m, num_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = pid // (GROUP * num_n)
    first_m = group * GROUP
    size = min(num_m - first_m, GROUP)
    pid_m = first_m + (pid % (GROUP * num_n)) % size
    pid_n = (pid % (GROUP * num_n)) // size
    rows = (pid_m * BLOCK_M + tl.arange(0, BLOCK_M)) % M
    columns = (pid_n * BLOCK_N + tl.arange(0, BLOCK_N)) % N
    k = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + rows[:, None] * stride_am + k[None, :] * stride_ak
    b_ptrs = b_ptr + k[:, None] * stride_bk + columns[None, :] * stride_bn
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for i in range(tl.cdiv(K, BLOCK_K)):
        a = tl.load(a_ptrs, mask=k[None, :] < K - i * BLOCK_K, other=0.0)
        b = tl.load(b_ptrs, mask=k[:, None] < K - i * BLOCK_K, other=0.0)
        acc = tl.dot(a, b, acc)
        a_ptrs += BLOCK_K * stride_ak
        b_ptrs += BLOCK_K * stride_bk
    if LEAKY:
        acc = tl.where(acc >= 0, acc, 0.01 * acc)
    m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    c_ptrs = c_ptr + stride_cm * m[:, None] + stride_cn * n[None, :]
    tl.store(c_ptrs, acc.to(c_ptr.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def softmax_kernel(out_ptr, in_ptr, in_stride, out_stride, rows, columns, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    start, step = tl.program_id(0), tl.num_programs(0)
    for row in tl.range(start, rows, step, num_stages=STAGES):
        offsets = tl.arange(0, BLOCK)
        x = tl.load(in_ptr + row * in_stride + offsets, mask=offsets < columns, other=-float("inf"))
        numerator = tl.exp(x - tl.max(x, axis=0))
        tl.store(out_ptr + row * out_stride + offsets, numerator / tl.sum(numerator, axis=0), mask=offsets < columns)


@triton.jit
def layer_norm_forward_kernel(X, Y, W, B, Mean, Rstd, stride, N, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    Y += row * stride
    X += row * stride
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for off in range(0, N, BLOCK):
        at = off + tl.arange(0, BLOCK)
        total += tl.load(X + at, mask=at < N, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / N
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for off in range(0, N, BLOCK):
        at = off + tl.arange(0, BLOCK)
        x = tl.load(X + at, mask=at < N, other=0.0).to(tl.float32)
        x = tl.where(at < N, x - mean, 0.0)
        total += x * x
    rstd = 1 / tl.sqrt(tl.sum(total, axis=0) / N + eps)
    tl.store(Mean + row, mean)
    tl.store(Rstd + row, rstd)
    for off in range(0, N, BLOCK):
        at = off + tl.arange(0, BLOCK)
        w, b = tl.load(W + at, mask=at < N), tl.load(B + at, mask=at < N)
        x = tl.load(X + at, mask=at < N, other=0.0).to(tl.float32)
        tl.store(Y + at, (x - mean) * rstd * w + b, mask=at < N)


@triton.jit
def layer_norm_sums_kernel(DY, X, Mean, Rstd, DW, DB, Lock, Count, stride, N, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Sums over rows under a lock for each group of rows, as Triton's tutorial has it."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    mask = at < N
    x = tl.load(X + row * stride + at, mask=mask, other=0).to(tl.float32)
    dy = tl.load(DY + row * stride + at, mask=mask, other=0).to(tl.float32)
    xhat = tl.where(mask, (x - tl.load(Mean + row)) * tl.load(Rstd + row), 0.0)
    lock = row % GROUP
    partial_dw, partial_db = dy * xhat, dy
    while tl.atomic_cas(Lock + lock, 0, 1) == 1:
        pass
    if tl.load(Count + lock) == 0:
        tl.atomic_xchg(Count + lock, 1)
    else:
        partial_dw += tl.load(DW + lock * N + at, mask=mask)
        partial_db += tl.load(DB + lock * N + at, mask=mask)
    tl.store(DW + lock * N + at, partial_dw, mask=mask)
    tl.store(DB + lock * N + at, partial_db, mask=mask)
    tl.debug_barrier()
    tl.atomic_xchg(Lock + lock, 0)


@triton.jit
def attention_kernel(
    Q, K, V, Out, scale, stride_h, L, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    start_m, head = tl.program_id(0), tl.program_id(1)
    m, n, d = start_m * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, D)
    base = head * stride_h
    q = tl.load(Q + base + m[:, None] * D + d[None, :], mask=m[:, None] < L, other=0.0)
    m_i = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    l_i = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, D], dtype=tl.float32)
    end = tl.minimum((start_m + 1) * BLOCK_M, L) if CAUSAL else L
    for start_n in range(0, end, BLOCK_N):
        inside = start_n + n < L
        k = tl.load(K + base + (start_n + n)[None, :] * D + d[:, None], mask=inside[None, :], other=0.0)
        qk = tl.dot(q, k) * (scale * 1.44269504)
        keep = inside[None, :]
        if CAUSAL:
            keep = keep & (m[:, None] >= (start_n + n)[None, :])
        qk = tl.where(keep, qk, float("-inf"))
        m_ij = tl.maximum(m_i, tl.max(qk, 1))
        p = tl.math.exp2(qk - m_ij[:, None])
        alpha = tl.math.exp2(m_i - m_ij)
        l_i = l_i * alpha + tl.sum(p, 1)
        v = tl.load(V + base + (start_n + n)[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None])
        m_i = m_ij
    acc = acc / l_i[:, None]
    tl.store(Out + base + m[:, None] * D + d[None, :], acc.to(Out.dtype.element_ty), mask=m[:, None] < L)


def numbers(*shape, seed, dtype=torch.float32):
    count = 1
    for size in shape:
        count *= size
    draws = philox.uniform(philox.random_bits(seed, 0, torch.zeros(1), 77, count))[0]
    return (draws * 2 - 1).reshape(shape).to(dtype)


def error(found, exact):
    """The largest error beside the largest number."""
    return float((found.double() - exact).abs().max() / exact.abs().max())


def run():
    """{"kernel arch": [error, allowed]}."""
    results = {}
    for arch in (80, 90):
        for dtype, allowed in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-10), (torch.float32, 2.0**-9)):
            a, b = numbers(70, 90, seed=1, dtype=dtype), numbers(90, 50, seed=2, dtype=dtype)
            c = torch.full((70, 50), float("nan"), dtype=dtype)
            arguments = (a, b, c, 70, 50, 90, *a.stride(), *b.stride(), *c.stride())
            sizes = {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP": 2, "LEAKY": True}
            emulator.run(matmul_kernel, (4,), *arguments, arch=arch, **sizes, num_warps=4, num_stages=3)
            exact = torch.nn.functional.leaky_relu(a.double() @ b.double())
            results[f"matmul {str(dtype)[6:]} {arch}"] = [error(c, exact), allowed]

        x = numbers(5, 77, seed=3) * 8
        y = torch.full_like(x, float("nan"))
        emulator.run(softmax_kernel, (2,), y, x, 77, 77, 5, 77, arch=arch, BLOCK=128, STAGES=2, num_warps=4)
        results[f"softmax {arch}"] = [error(y, x.double().softmax(1)), 1e-6]

        x, w, b = numbers(7, 100, seed=4), numbers(100, seed=5), numbers(100, seed=6)
        y, mean, rstd = torch.full_like(x, float("nan")), torch.zeros(7), torch.zeros(7)
        emulator.run(layer_norm_forward_kernel, (7,), x, y, w, b, mean, rstd, 100, 100, 1e-5, arch=arch, BLOCK=64)
        exact = torch.nn.functional.layer_norm(x.double(), (100,), w.double(), b.double(), 1e-5)
        results[f"layer norm {arch}"] = [error(y, exact), 2e-6]

        dy, dw, db = numbers(7, 100, seed=7), torch.full((2, 100), float("nan")), torch.full((2, 100), float("nan"))
        lock, count = torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
        arguments = (dy, x, mean, rstd, dw, db, lock, count, 100, 100)
        emulator.run(layer_norm_sums_kernel, (7,), *arguments, arch=arch, GROUP=2, BLOCK=128, num_warps=4)
        xhat = (x.double() - mean[:, None].double()) * rstd[:, None].double()
        results[f"layer norm sums {arch}"] = [error(dw.sum(0), (dy.double() * xhat).sum(0)), 2e-6]

        for causal in (False, True):
            q, k, v = (numbers(3, 70, 32, seed=seed, dtype=torch.bfloat16) for seed in (8, 9, 10))
            out = torch.full_like(q, float("nan"))
            sizes = {"CAUSAL": causal, "D": 32, "BLOCK_M": 64, "BLOCK_N": 32}
            counts = emulator.run(attention_kernel, (2, 3), q, k, v, out, 0.25, 70 * 32, 70, arch=arch, **sizes)
            scores = q.double() @ k.double().mT * 0.25
            if causal:
                scores = scores.masked_fill(torch.ones(70, 70).tril() == 0, float("-inf"))
            results[f"attention {'causal ' if causal else ''}{arch}"] = [
                error(out, scores.softmax(-1) @ v.double()),
                0.01,
            ]
            used = [name for name in counts.instructions if name.startswith("mma" if arch == 80 else "wgmma")]
            assert used, counts.instructions
    return results
