"""The compiled attention: its CUDA code in the emulator, against the float64 reference and by what it executes."""

import pytest
import torch

from s2vfast import _extension, errors, ops, verify
from s2vfast.kernels.emulator import cuda, emulate
from s2vfast.ops import attention
from s2vfast.ops.attention import _native_backward, _native_forward
from s2vfast.reference.attention import attention as reference

from .guarded import Guarded, allocations

if cuda.why_not():
    pytest.skip(cuda.why_not(), allow_module_level=True)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

FORWARD_BYTES = {32: 30720, 64: 55296, 128: 87040}  # of shared memory, by the width of heads


def random(N, L, H, d, dtype=torch.bfloat16, seed=0, scale=1.0):
    return (torch.randn(N, L, 3, H, d, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def lse_gradient(N, H, L):
    return torch.randn(N, H, L, generator=torch.Generator().manual_seed(2))


def agree(qkv, arch, at_end=True):
    """Output, log-sum-exp and gradient by the rule; every buffer full of NaN and between forbidden pages."""
    guard = Guarded(at_end)
    with emulate(arch, "native"):
        rows = verify.compare(
            lambda qkv: attention(qkv, return_lse=True, impl="native"),
            reference,
            lambda qkv: attention(qkv, return_lse=True, impl="torch"),
            {"qkv": qkv},
            gradients=True,
            around=lambda: allocations(guard),
        )
    for row in rows:
        assert row.good, f"{row.name}: error {row.error:.3g}, allowed {row.allowed:.3g}"


# One query; a tile of keys that is not full, full, and one more; several tiles of queries and of keys in either pass;
# widths that fill the columns of a tile and that do not; more heads than blocks, so that blocks take several.
SHAPES = [
    (3, 1, 1, 16),
    (1, 7, 3, 24),
    (1, 64, 3, 32),
    (3, 65, 3, 32),
    (1, 77, 1, 64),
    (1, 130, 3, 64),
    (1, 65, 1, 128),
    (3, 200, 3, 32),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees(shape, dtype):
    agree(random(*shape, DTYPES[dtype]), 80)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("d", "L"), [(8, 130), (16, 257), (24, 77), (32, 16), (40, 65), (64, 257), (96, 64), (128, 77)]
)
def test_agrees_at_every_width(d, L, dtype, arch):
    agree(random(1, L, 1, d, DTYPES[dtype], seed=L), arch, at_end=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_verify_on_the_command_line(dtype, capsys):
    options = ["--impl", "native", "--emulate", "80", "--dtype", dtype, "--sizes", "N=2,L=77,D=64"]
    assert verify.main(["attention", *options]) == 0
    assert capsys.readouterr().out.count("good") == 2


def test_verify_ends_at_a_dtype_that_is_refused_only_by_name(capsys, monkeypatch):
    op = ops.operation("attention")
    monkeypatch.setattr(op, "implementations", {n: f for n, f in op.implementations.items() if n != "triton"})
    refusal = "it takes bfloat16 and float16, not float32"
    assert verify.main(["attention", "--emulate", "80", "--impl", "native"]) == 2
    assert refusal in capsys.readouterr().err
    assert verify.main(["attention", "--emulate", "80"]) == 0
    assert refusal in capsys.readouterr().out


@pytest.mark.parametrize("scale", [1e2, -1e2])
def test_extreme_scores(scale):
    """Scores of 1e4 and -1e4: one key takes all, or all alike; nothing overflows, forward or backward."""
    qkv = random(1, 19, 1, 16, torch.float32)
    qkv[:, :, 0] = scale
    qkv[:, :, 1] = torch.rand(1, 19, 1, 16, generator=torch.Generator().manual_seed(1)) * 25
    agree(qkv.bfloat16(), 80)


def run(qkv, grad_out=None, grad_lse=None, arch=80):
    with emulate(arch, "native") as emulation:
        leaf = qkv.detach().requires_grad_()
        results = attention(leaf, return_lse=True, impl="native")
        wanted = [(r, g) for r, g in zip(results, (grad_out, grad_lse), strict=True) if g is not None]
        gradient = torch.autograd.grad([r for r, _ in wanted], leaf, [g for _, g in wanted])
    return [*(result.detach() for result in results), *gradient], emulation


def test_memory_order_changes_no_bit():
    """Strides, and an address that is no multiple of 16 bytes, of the input and of both gradients."""
    qkv, grad_out, grad_lse = random(2, 21, 3, 16), random(2, 21, 3, 16, seed=1)[:, :, 0], lse_gradient(2, 3, 21)
    expected, _ = run(qkv, grad_out.contiguous(), grad_lse)
    shifted = torch.cat([qkv.new_zeros(1), qkv.flatten()])[1:].view(qkv.shape)
    strided = qkv.transpose(0, 1).contiguous().transpose(0, 1)
    for view in (shifted, strided):
        results, _ = run(view, grad_out, grad_lse.transpose(1, 2).contiguous().transpose(1, 2))
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_a_gradient_that_is_missing_is_zero():
    qkv, grad_out, grad_lse = random(1, 33, 1, 32), random(1, 33, 1, 32, seed=1)[:, :, 0], lse_gradient(1, 1, 33)
    zeros = torch.zeros_like(grad_out), torch.zeros_like(grad_lse)
    for missing, zero in (((grad_out, None), (grad_out, zeros[1])), ((None, grad_lse), (zeros[0], grad_lse))):
        gradient, expected = run(qkv, *missing)[0][2], run(qkv, *zero)[0][2]
        assert torch.equal(gradient, expected)
        assert gradient.abs().max() > 0


def test_the_number_of_blocks_changes_no_bit(monkeypatch):
    """A block that takes several heads leaves nothing of one in the next."""
    qkv, grad_out = random(5, 150, 3, 32), random(5, 150, 3, 32, seed=1)[:, :, 0]
    expected, _ = run(qkv, grad_out)
    monkeypatch.setattr(cuda, "MULTIPROCESSORS", 15)
    results, _ = run(qkv, grad_out)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("shape", [(1, 150, 3, 32), (1, 77, 1, 64), (1, 77, 1, 128)], ids=str)
@pytest.mark.parametrize("kilobytes", [48, 99])
def test_less_shared_memory_is_enough(shape, kilobytes, monkeypatch):
    """Of a GPU with so much for a block; the backward pass then takes fewer warps."""
    monkeypatch.setitem(cuda.SHARED_LIMIT, 80, max(kilobytes * 1024, FORWARD_BYTES[shape[-1]]))
    agree(random(*shape), 80)


def test_five_products_and_one_exponential_a_score():
    """Of 128 queries and keys, d = 32; a warp's mma takes 2,048 products, its ex2 32 scores."""
    qkv = random(1, 128, 1, 32)
    (forward, backward), scores = (counts.instructions for _, counts in run(qkv, qkv[:, :, 0])[1].launches), 128 * 128
    assert forward["mma.m16n8k16"] == 2 * scores * 32 // 2048
    assert backward["mma.m16n8k16"] == 5 * scores * 32 // 2048
    # Beside them each of 4 warps rescales two rows of 2 fragments for 2 tiles of keys, and takes their logarithms.
    assert forward["mufu"] == scores // 32 + 4 * (2 * 2 * 2 + 2 * 2)
    assert backward["mufu"] == scores // 32
    # 16 bytes at a time, but for a float of each query.
    reads = {name for name in [*forward, *backward] if name.startswith(("load.global", "store.global", "cp.async."))}
    assert {name for name in reads if name.split(".")[-1].isdigit()} <= {
        *("cp.async.16", "load.global.16", "store.global.16", "load.global.4", "store.global.4")
    }


def test_opcheck():
    qkv = random(1, 9, 2, 16)
    with emulate(80, "native"):
        out, lse = _native_forward(qkv)
        torch.library.opcheck(_native_forward, (qkv.clone().requires_grad_(),))
        torch.library.opcheck(_native_backward, (qkv, out, lse, torch.ones_like(out), torch.ones_like(lse)))


@pytest.mark.parametrize("shape", [(0, 5, 3, 2, 16), (2, 0, 3, 2, 16)])
def test_nothing_to_do(shape):
    qkv = torch.zeros(shape, dtype=torch.bfloat16)
    with emulate(80, "native"):
        leaf = qkv.requires_grad_()
        out = attention(leaf, impl="native")
        assert torch.autograd.grad(out.sum(), leaf)[0].shape == shape
    assert out.shape == (shape[0], shape[1], 2, 16)


@pytest.mark.parametrize(
    ("qkv", "said"),
    [
        (torch.zeros(1, 2, 3, 1, 16), "it takes bfloat16 and float16, not float32"),
        (torch.zeros(1, 2, 3, 1, 12, dtype=torch.bfloat16), "a multiple of 8, not 12"),
        (torch.zeros(1, 2, 3, 1, 136, dtype=torch.bfloat16), "heads up to 128 wide, not 136"),
    ],
)
def test_refuses(qkv, said):
    with emulate(80, "native"), pytest.raises(errors.ImplementationError, match=said):
        attention(qkv, impl="native")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 12}, "attention: expected heads at most 128 wide, a multiple of 8, got 12"),
        ({"width": 136}, "got 136"),
        ({"qkv": 8}, "attention: expected every address to be a multiple of 16"),
        ({"tracks": 2**30}, "attention: too many heads"),
    ],
)
def test_the_extension_refuses(changes, said):
    call = {"half": False, "tracks": 1, "tokens": 1, "heads": 1, "width": 16, "qkv": 0, "out": 0, "lse": 0}
    with pytest.raises(ValueError, match=said):
        _extension.load().attention(**call | {"device": 0, "stream": 0} | changes)
