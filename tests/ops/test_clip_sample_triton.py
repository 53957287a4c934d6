"""The Triton kernels of clip_sample: frames and weights bit by bit, values within the rounding of float32."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from s2vfast import errors
from s2vfast.kernels import _launch
from s2vfast.kernels import clip_sample as kernels
from s2vfast.kernels._clip import sincos
from s2vfast.ops import ClipSpec, clip_sample
from s2vfast.reference import clip_sample as specification
from s2vfast.reference import philox

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
reference = specification.clip_sample
PLAIN = ClipSpec(frames=11, center="none")
FULL = ClipSpec(
    frames=11,
    sampling="crop",
    center="frame",
    scale="torso",
    align="yaw",
    rotate=(0.4, 3.0, 0.2),
    scale_jitter=0.1,
    velocity=2.0,
    root=1,
    torso=(0, 2),
    sides=(3, 4),
)


def recordings(lengths, bodies=2, V=6, seed=0):
    """Main bodies with gaps, others seen in some of the frames (every third absent), some joints missing."""
    rng = np.random.default_rng(seed)
    frames, index, row, count, at = [], [], [], [], 0
    for q, length in enumerate(lengths):
        rows, counts = [], []
        for m in range(bodies):
            n = length if m == 0 else 0 if (q + m) % 3 == 0 else int(rng.integers(1, length + 2))
            joints = rng.normal(size=(n, V, 3)) + np.array([0.5, 1.0, 3.0])
            joints[rng.random((n, V)) < 0.15] = 0.0
            frames.append(joints)
            index.append(np.sort(rng.choice(2 * length + 2, n, replace=False)))
            rows.append(at)
            counts.append(n)
            at += n
        row.append(rows)
        count.append(counts)
    return (
        torch.tensor(np.concatenate(frames), dtype=torch.float32),
        torch.tensor(np.concatenate(index), dtype=torch.int32),
        torch.tensor(row, dtype=torch.int64),
        torch.tensor(count, dtype=torch.int32),
    )


def run(data, ids, spec, **options):
    given = [tensor.to(DEVICE) for tensor in (*data, ids)]
    return clip_sample(*given, spec, **options, impl="triton").cpu()


@pytest.fixture
def launched(monkeypatch):
    """Arguments of every launch, by the kernel's name."""
    seen = {}

    def launch(kernel, grid, *args, **options):
        seen[kernel.fn.__name__] = args
        _launch.launch(kernel, grid, *args, **options)

    monkeypatch.setattr(kernels, "launch", launch)
    return seen


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sampling", ["bins", "crop"])
@pytest.mark.parametrize("T", [1, 2, 11, 40])
def test_frames_and_weights_are_bit_equal(launched, T, sampling, training):
    lengths = sorted({1, 2, max(T - 1, 1), T, T + 1, 2 * T - 1, 2 * T, 2 * T + 1, 3 * T, 997})
    data = recordings(lengths, bodies=1, V=1)
    spec = dataclasses.replace(PLAIN, frames=T, sampling=sampling, crop_min=0.3)
    for seed, epoch in ((0, 0), (2**64 - 1, 2**32 - 1)):
        run(data, torch.arange(len(lengths)), spec, seed=seed, epoch=epoch, training=training)
        rows, weights = (found if found is None else found.cpu() for found in launched["_picks_kernel"][5:7])
        for q, length in enumerate(lengths):
            lower, weight = specification.picks(length, q, spec, seed, epoch, training)
            first = int(data[2][q, 0])
            assert torch.equal(rows[q, 0] - first, lower), f"{length} frames"
            if sampling == "crop":
                assert torch.equal(weights[q], weight), f"{length} frames"
                assert torch.equal(rows[q, 1] - first, (lower + 1).clamp(max=length - 1)), f"{length} frames"


def test_rows_of_other_bodies(launched):
    """Every number of rows, every place of the number looked for: before, between, at, after."""
    main = torch.arange(0, 12, dtype=torch.int32)
    others = [[0], [11], [5], [0, 11], [1, 3, 5, 7, 9], list(range(12)), [6, 7, 8], [20, 30], []]
    index = torch.cat([main] + [torch.tensor(other, dtype=torch.int32) for other in others])
    starts = np.cumsum([12] + [len(other) for other in others])
    row = torch.tensor([[0, int(start)] for start in starts[:-1]])
    count = torch.tensor([[12, len(other)] for other in others], dtype=torch.int32)
    frames = torch.ones(len(index), 1, 3)
    spec = dataclasses.replace(PLAIN, frames=12)
    run((frames, index, row, count), torch.arange(len(others)), spec, training=False)
    rows = launched["_picks_kernel"][5].cpu().reshape(len(others), 2, 12)
    for q, other in enumerate(others):
        expected = [int(starts[q]) + other.index(n) if n in other else -1 for n in range(12)]
        assert rows[q, 1].tolist() == expected, other


@contextlib.contextmanager
def float64(monkeypatch):
    """The reference in float64, from frames chosen in float32."""
    uniform, picks = philox.uniform, specification.picks

    def chosen(*args):
        with monkeypatch.context() as inner:
            torch.set_default_dtype(torch.float32)
            inner.setattr(philox, "uniform", uniform)
            lower, weight = picks(*args)
        torch.set_default_dtype(torch.float64)
        return lower, weight.double()

    with monkeypatch.context() as patch:
        patch.setattr(philox, "uniform", lambda draws: uniform(draws).double())
        patch.setattr(specification, "picks", chosen)
        patch.setattr(Tensor, "float", Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sampling": "bins"},
        {"center": "first", "align": "none"},
        {"center": "none", "scale": "none", "up": 2},
        {"velocity": 0.0, "up": 0, "rotate": (0.0, 7.0, -100.0)},
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_values_against_float64(monkeypatch, change, training):
    data = recordings([1, 3, 10, 11, 15, 25, 40], bodies=3)
    ids, spec = torch.tensor([6, 0, 4, 5]), dataclasses.replace(FULL, **change)
    options = {"seed": 5, "epoch": 3, "training": training}
    with float64(monkeypatch):
        exact = reference(*data, ids, spec, **options)
    assert exact.dtype == torch.float64
    eager = reference(*data, ids, spec, **options)
    with _launch.override("clip_sample", "values", BLOCK=128):
        found = run(data, ids, spec, **options)
    allowed = 2 * (eager - exact).abs().max() + 1e-6 * exact.abs().max()
    assert (found - exact).abs().max() <= allowed
    # Which joints are missing is exact; a single coordinate of a turned joint may be 0 by rounding.
    assert torch.equal((found[..., :3] == 0).all(-1), (eager[..., :3] == 0).all(-1))


@triton.jit
def _sincos_kernel(angles, sines, cosines, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    sine, cosine = sincos(tl.load(angles + at))
    tl.store(sines + at, sine)
    tl.store(cosines + at, cosine)


def test_sine_and_cosine():
    """All quarters and their borders, far below the rounding of float32."""
    turns = torch.linspace(-1000.0, 1000.0, 1535)
    angles = torch.cat([turns, torch.linspace(-7.0, 7.0, 501), torch.arange(-6, 6) * torch.pi / 4]).to(DEVICE)
    assert angles.shape == (2048,)
    sines, cosines = (torch.empty(2048, dtype=torch.float64, device=DEVICE) for _ in range(2))
    _launch.launch(_sincos_kernel, (1,), angles, sines, cosines, BLOCK=2048)
    torch.testing.assert_close(sines, angles.double().sin(), rtol=0, atol=1e-12)
    torch.testing.assert_close(cosines, angles.double().cos(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_is_what_it_says(dtype):
    frames, *rest = recordings([7, 30])
    ids = torch.tensor([1, 0])
    half, whole = (run((x, *rest), ids, FULL, seed=1) for x in (frames.to(dtype), frames.to(dtype).float()))
    assert torch.equal(half, whole)


def test_not_contiguous():
    frames, index, row, count = recordings([7, 30])
    wide = torch.cat([frames, torch.full_like(frames, torch.nan)], -1)[..., :3]
    table = torch.stack([row, row + 5], -1)[..., 0]
    expected = run((frames, index, row, count), torch.tensor([1, 0]), FULL)
    ids = torch.tensor([1, 7, 0, 7])[::2]
    assert torch.equal(run((wide, index, table, count.T.contiguous().T), ids, FULL), expected)


def test_a_joint_that_stands_still_has_no_size():
    """Torso and shoulders in one place: neither scaled nor turned."""
    frames = torch.ones(5, 4, 3)
    table = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), 5, dtype=torch.int32)
    data = (frames, torch.arange(5, dtype=torch.int32), *table)
    spec = dataclasses.replace(PLAIN, frames=5, scale="torso", align="yaw")
    assert torch.equal(run(data, torch.tensor([0]), spec, training=False)[0], frames)


def test_refuses_float64():
    frames, *rest = recordings([5])
    with pytest.raises(errors.ImplementationError, match="not float64"):
        clip_sample(frames.double(), *rest, torch.tensor([0]), PLAIN, impl="triton")
