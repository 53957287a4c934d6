"""The compiled adamw_ema: spans and ranges that end anywhere, any number of threads, norms that are not finite."""

import itertools

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from s2vfast import _extension
from s2vfast.ops import Span, adamw_ema
from s2vfast.reference.adamw_ema import adamw_ema as reference

if _extension.why_not():
    pytest.skip(_extension.why_not(), allow_module_level=True)

OPTIONS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.05, "clip": 4.0, "tau": 0.99}
NAMES = ("param", "grad", "exp_avg", "exp_avg_sq", "teacher")


@pytest.fixture
def threads():
    """Sets how many threads are used; as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def buffers(P, Q, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(n, generator=generator, dtype=torch.float64) for n in (P, P, P, P, Q)]
    made[3] = made[3].abs()
    return [x.to(torch.float32).to(dtype) for x in made]


def spans_of(edges):
    return [Span(a, b, i % 2 == 0) for i, (a, b) in enumerate(itertools.pairwise(edges))]


def assert_agrees(P, Q, edges, step=3, **changes):
    options = OPTIONS | changes
    exact, plain, found = buffers(P, Q, torch.float64), buffers(P, Q), buffers(P, Q)
    norms = [reference(*given, spans_of(edges), step=step, **options) for given in (exact, plain)]
    norm = adamw_ema(*found, spans_of(edges), step=step, **options, impl="native")
    assert abs(norm - norms[0]) <= 2 * abs(norms[1] - norms[0]) + 1e-6 * norms[0]
    for name, e, p, f in zip(NAMES, exact, plain, found, strict=True):
        if e.numel():
            allowed = 2 * (p - e).abs().max() + 2e-6 * e.abs().max()
            assert (f - e).abs().max() <= allowed, name


@settings(max_examples=40, deadline=None)
@drawn(st.data())
def test_spans_and_the_teacher_may_end_anywhere(data):
    P = data.draw(st.integers(1, 80))
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, P), max_size=6))), P]
    assert_agrees(P, data.draw(st.integers(0, P)), edges)


# Ranges of the second pass hold 16,384 numbers, those of the first 4,096.
@pytest.mark.parametrize(("P", "Q"), [(4096, 4096), (16384, 9000), (16385, 16385), (50_003, 33_333)])
def test_several_ranges_agree(P, Q):
    assert_agrees(P, Q, [0, 7, P // 3, P // 3 + 1, 2 * P // 3, P])


@pytest.mark.parametrize("step", [1, 2, 1000, 1_000_000])
def test_bias_corrections_keep_their_digits(step):
    options = OPTIONS | {"lr": 1.0, "beta2": 0.9999}
    exact, found = buffers(40, 0, torch.float64), buffers(40, 0)
    for given in (exact, found):
        given[0].zero_()  # so that what is left is the update
    reference(*exact, spans_of([0, 40]), step=step, **options)
    adamw_ema(*found, spans_of([0, 40]), step=step, **options, impl="native")
    torch.testing.assert_close(found[0].double(), exact[0], rtol=2e-6, atol=0)


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e9])
def test_clips_or_leaves_the_gradient_alone(clip):
    assert_agrees(1000, 500, [0, 300, 1000], clip=clip)
    found, before = buffers(1000, 500), buffers(1000, 500)
    adamw_ema(*found, spans_of([0, 1000]), step=1, **OPTIONS | {"clip": clip}, impl="native")
    if clip == 1e-3:
        assert abs(found[1].norm() - 1e-3) < 1e-8
    else:
        assert torch.equal(found[1], before[1])


def test_the_norm_does_not_lose_digits_over_many_numbers():
    param, _, exp_avg, exp_avg_sq, teacher = buffers(300_000, 0)
    grad = torch.rand(300_000, generator=torch.Generator().manual_seed(1)) + 0.5
    exact = grad.double().norm()
    norm = adamw_ema(
        param, grad, exp_avg, exp_avg_sq, teacher, spans_of([0, 300_000]), step=1, **OPTIONS, impl="native"
    )
    assert abs(norm - exact) <= 2e-7 * exact


@pytest.mark.parametrize("place", [0, 4095, 4096, 9999])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e20])  # 1e20 squared is infinite
@pytest.mark.parametrize("clip", [0.0, 4.0])
def test_a_norm_that_is_not_finite_changes_nothing(bad, place, clip):
    found = buffers(10_000, 5000)
    found[1][place] = bad
    before = [x.clone() for x in found]
    norm = adamw_ema(*found, spans_of([0, 10_000]), step=1, **OPTIONS | {"clip": clip}, impl="native")
    assert not torch.isfinite(norm)
    for name, f, b in zip(NAMES, found, before, strict=True):
        assert torch.equal(f.view(torch.int32), b.view(torch.int32)), name


def test_the_number_of_threads_changes_nothing(threads):
    results = []
    for count in (1, 2, 3):
        threads(count)
        found = buffers(70_001, 50_000)
        norm = adamw_ema(*found, spans_of([0, 333, 20_000, 70_001]), step=2, **OPTIONS, impl="native")
        results.append([norm, *found])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_step_lr_and_tau_may_be_tensors():
    spans, options = spans_of([0, 40, 100]), {k: v for k, v in OPTIONS.items() if k not in ("lr", "tau")}
    expected, found = buffers(100, 60), buffers(100, 60)
    adamw_ema(*expected, spans, step=7, lr=1e-2, tau=0.99, **options, impl="native")
    scalars = {"step": torch.tensor(7), "lr": torch.tensor(1e-2, dtype=torch.float64)}
    adamw_ema(*found, spans, **scalars, tau=torch.tensor(0.99, dtype=torch.float64), **options, impl="native")
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_buffers_with_strides_are_updated_in_place():
    spans = spans_of([0, 40, 100])
    expected, wide = buffers(100, 60), [torch.zeros(2 * n) for n in (100, 100, 100, 100, 60)]
    for w, e in zip(wide, expected, strict=True):
        w[::2] = e
    adamw_ema(*expected, spans, step=7, **OPTIONS, impl="native")
    adamw_ema(*(w[::2] for w in wide), spans, step=7, **OPTIONS, impl="native")
    for w, e in zip(wide, expected, strict=True):
        assert torch.equal(w[::2], e)
        assert not w[1::2].any()


def test_no_parameters():
    norm = adamw_ema(*buffers(0, 0), [Span(0, 0, True)], step=1, **OPTIONS, impl="native")
    assert norm == 0


@pytest.mark.parametrize("spans", [[0, 3, 1, 4, 9, 0], [0, 5, 1, 4, 9, 0], [0, 8, 1], [1, 9, 1], []])
def test_spans_that_do_not_cover_are_refused(spans):
    given = [torch.zeros(9) for _ in range(4)]
    numbers = (None, None, None, 1.0, 1e-2, 0.99, 0.9, 0.95, 1e-8, 0.05, 4.0)
    with pytest.raises(ValueError, match="adamw_ema: spans"):
        torch.ops.s2vfast.adamw_ema_native(*given, torch.zeros(5), spans, *numbers)
