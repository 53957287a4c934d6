"""What a device reaches, and what that says a piece of work must take."""

import subprocess
import sys

import pytest
import torch

from benchmarks import _ceilings, _exp_chain, _results
from s2vfast import errors

CPU = torch.device("cpu")


def test_bound_is_the_longest_of_three():
    ceilings = {"copy_gb_s": 100.0, "matmul_float32": 0.5, "matmul_bfloat16": 2.0, "exp_g_s": 4.0}
    assert _ceilings.bound(1000.0, 1.0, 10.0, ceilings, "float32") == ("matmul", 2.0)
    assert _ceilings.bound(1000.0, 1.0, 10.0, ceilings, torch.bfloat16) == ("matmul", 0.5)
    assert _ceilings.bound(1000.0, 8.0, 10.0, ceilings, torch.bfloat16) == ("exp", 2.0)
    assert _ceilings.bound(1000.0, 8.0, 300.0, ceilings, "torch.bfloat16") == ("memory", 3.0)
    assert _ceilings.bound(0.0, 0.0, 1.0, {"copy_gb_s": 2.0, "exp_g_s": 1.0}, "float16") == ("memory", 0.5)
    with pytest.raises(errors.ConfigError, match="no ceiling matmul_float16"):
        _ceilings.bound(1.0, 0.0, 1.0, ceilings, "float16")


def test_ceilings_of_this_cpu_are_plausible(monkeypatch):
    monkeypatch.setitem(_ceilings.SIDE, "cpu", 512)
    monkeypatch.setitem(_ceilings.COPIED, "cpu", 2**26)
    rates = _ceilings.ceilings(CPU)
    assert set(rates) == {"copy_gb_s", "matmul_float32", "exp_g_s"}
    assert 0.5 < rates["copy_gb_s"] < 2000
    assert 1e-3 < rates["matmul_float32"] < 50
    # An exponential is some ten operations on vectors of 16 numbers at most.
    assert 0.002 < rates["exp_g_s"] < 10 * torch.get_num_threads()


def test_exponentials_in_registers_are_chained_and_counted():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    values = torch.rand(2 * _exp_chain.BLOCK, device=device)
    out, expected = torch.full_like(values, float("nan")), values.clone()
    for _ in range(2 * _exp_chain.UNROLLED):
        expected = torch.exp2(-expected)
    _exp_chain.chain(values, out, 2)
    assert torch.allclose(out, expected, atol=1e-6)
    assert _exp_chain.exponentials(values, 2) == 2 * _exp_chain.UNROLLED * values.numel()


@pytest.mark.gpu
def test_ceilings_of_this_gpu_are_plausible():
    rates = _ceilings.ceilings(torch.device("cuda"))
    assert set(rates) == {"copy_gb_s", "matmul_float32", "matmul_bfloat16", "exp_g_s"}
    assert 200 < rates["copy_gb_s"] < 20_000
    assert 2 * rates["matmul_float32"] < rates["matmul_bfloat16"] < 5000
    assert 300 < rates["exp_g_s"] < 20_000


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from benchmarks import _exp_chain as c
signature = {"values": "*fp32", "out": "*fp32", "rounds": "i32", "BLOCK": "constexpr", "UNROLLED": "constexpr"}
source = ASTSource(c._chain_kernel, signature, {"BLOCK": c.BLOCK, "UNROLLED": c.UNROLLED})
ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ptx"]
print(ptx.count("ex2.approx"), c.BLOCK // 128 * c.UNROLLED, ptx.count("st.global"))
"""


def test_no_exponential_is_compiled_away(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=_results.ROOT, capture_output=True, text=True, check=True
    )
    compiled, meant, stores = map(int, done.stdout.split())
    assert compiled == meant
    assert stores > 0
