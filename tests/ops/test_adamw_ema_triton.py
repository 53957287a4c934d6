"""The Triton kernels of adamw_ema: chunks and tails, long runs, scalars on the device, and bad gradients."""

import math

import pytest
import torch

pytest.importorskip("triton")

from s2vfast import errors
from s2vfast.kernels import _launch
from s2vfast.kernels import adamw_ema as kernels
from s2vfast.ops import Span, adamw_ema
from s2vfast.reference.adamw_ema import adamw_ema as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.05, "clip": 4.0}
NUMBERS = {"step": 3, "lr": 1e-2, "tau": 0.99}
IN_PLACE = ("param", "grad", "exp_avg", "exp_avg_sq", "teacher")


def spans_of(*stops):
    return [Span(start, stop, i % 2 == 0) for i, (start, stop) in enumerate(zip((0, *stops), stops, strict=False))]


def buffers(numbers, P, Q, scale=3.0):
    given = [numbers(P, seed=0), numbers(P, seed=1, scale=scale), numbers(P, seed=2), numbers(P, seed=3).square()]
    return [*given, numbers(Q, seed=4)]


def small_tiles():
    return (
        _launch.override("adamw_ema", "squares", BLOCK=64),
        _launch.override("adamw_ema", "coefficients", BLOCK=4),
        _launch.override("adamw_ema", "update", BLOCK=32),
    )


def agrees(numbers, P, Q, spans, steps=(1, 2, 3), **options):
    """Every buffer and the norm within twice the error of the reference in float32, against it in float64."""
    given = buffers(numbers, P, Q)
    exact, eager = [x.clone() for x in given], [x.float() for x in given]
    found = [x.float().to(DEVICE) for x in given]
    options = OPTIONS | NUMBERS | options
    for step in steps:
        options["step"] = step
        norms = [reference(*exact, spans, **options), reference(*eager, spans, **options)]
        norm = adamw_ema(*found, spans, **options, impl="triton")
        assert norm.dtype == torch.float32
        assert norm.shape == ()
        assert abs(norm.cpu() - norms[0]) <= 2 * abs(norms[1] - norms[0]) + 2e-7 * norms[0]
        for name, e, g, f in zip(IN_PLACE, exact, eager, found, strict=True):
            error, allowed = (f.cpu() - e).abs().max(), 2 * (g - e).abs().max() + 2e-7 * e.abs().max()
            assert error <= allowed, f"{name} in step {step}: {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("clip", [4.0, 0.0, 1e9])
@pytest.mark.parametrize(("P", "Q", "stops"), [(300, 150, (1, 63, 64, 200, 300)), (96, 96, (32, 64, 96)), (7, 1, (7,))])
def test_spans_and_tails(numbers, P, Q, stops, clip):
    one, two, three = small_tiles()
    with one, two, three:
        agrees(numbers, P, Q, spans_of(*stops), clip=clip)


def test_default_tiles(numbers):
    agrees(numbers, 3001, 2000, spans_of(16, 1500, 3001))


@pytest.mark.parametrize("step", [1, 2, 1000, 123457, 10**9])
def test_bias_corrections_keep_their_digits(numbers, step):
    agrees(numbers, 40, 20, spans_of(40), steps=(step,), beta2=0.99999)


@pytest.mark.parametrize(("beta1", "beta2"), [(0.0, 0.9), (0.9, 0.0)])
def test_no_memory(numbers, beta1, beta2):
    agrees(numbers, 40, 20, spans_of(40), beta1=beta1, beta2=beta2)


def test_a_chunk_never_crosses_a_span():
    table, align = kernels._chunks(((0, 64, 1), (64, 112, 0), (112, 256, 1)), 64, torch.device("cpu"))
    assert table.tolist() == [[0, 64, 1], [64, 112, 0], [112, 176, 1], [176, 240, 1], [240, 256, 1]]
    assert align == 16
    assert kernels._chunks(((0, 10, 1), (10, 12, 0)), 64, torch.device("cpu"))[1] == 2
    assert kernels._chunks(((0, 10, 1),), 64, torch.device("cpu")) is kernels._chunks(
        ((0, 10, 1),), 64, torch.device("cpu")
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("clip", [4.0, 0.0])
def test_a_bad_gradient_changes_nothing(numbers, bad, clip):
    given = [x.float().to(DEVICE) for x in buffers(numbers, 200, 100)]
    given[1][150] = bad
    before = [x.clone() for x in given]
    one, two, three = small_tiles()
    with one, two, three:
        norm = adamw_ema(*given, spans_of(70, 200), **OPTIONS | NUMBERS | {"clip": clip}, impl="triton")
    assert not torch.isfinite(norm)
    for now, then in zip(given, before, strict=True):
        assert torch.equal(now.nan_to_num(), then.nan_to_num())


@pytest.mark.parametrize("impl", ["reference", "torch", "triton"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scalars_on_the_device_are_as_good_as_numbers(numbers, impl, dtype):
    values = {"lr": torch.tensor(1e-2, dtype=dtype).item(), "tau": torch.tensor(0.99, dtype=dtype).item(), "step": 3}
    tensors = {name: torch.tensor(value, dtype=dtype, device=DEVICE) for name, value in values.items()}
    tensors["step"] = tensors["step"].to(torch.int64)
    results = []
    for numbers_or_tensors in (values, tensors, values | {"lr": tensors["lr"]}):
        given = [x.float().to(DEVICE) for x in buffers(numbers, 100, 60)]
        norm = adamw_ema(*given, spans_of(50, 100), **OPTIONS, **numbers_or_tensors, impl=impl)
        results.append([norm, *given])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_order_of_sums_is_fixed(numbers):
    given = [x.float().to(DEVICE) for x in buffers(numbers, 3000, 100)]
    norms = [
        adamw_ema(*[x.clone() for x in given], spans_of(3000), **OPTIONS, **NUMBERS, impl="triton") for _ in range(3)
    ]
    assert norms[0] == norms[1] == norms[2]


def test_strided_buffers_are_updated(numbers):
    plain = [x.float().to(DEVICE) for x in buffers(numbers, 50, 20)]
    strided = [torch.stack([x, torch.full_like(x, 7.0)], 1)[:, 0] for x in plain]
    norms = [adamw_ema(*given, spans_of(50), **OPTIONS, **NUMBERS, impl="triton") for given in (plain, strided)]
    assert torch.equal(*norms)
    assert all(torch.equal(a, b) for a, b in zip(plain, strided, strict=True))


def test_nothing_to_update():
    given = [torch.zeros(0, device=DEVICE) for _ in range(5)]
    assert adamw_ema(*given, [], **OPTIONS, **NUMBERS, impl="triton") == 0


def test_refuses_by_name(numbers):
    given = buffers(numbers, 10, 5)
    with pytest.raises(errors.ImplementationError, match="it takes float32 buffers, not float64"):
        adamw_ema(*given, spans_of(10), **OPTIONS, **NUMBERS, impl="triton")
    for name in NUMBERS:
        with pytest.raises(errors.ShapeError, match=f"adamw_ema: {name}: expected a number"):
            adamw_ema(*given, spans_of(10), **OPTIONS, **NUMBERS | {name: torch.ones(1)})
