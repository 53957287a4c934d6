"""The Triton kernel of tube_mask: the tokens of the reference where a last bit would change them, and odd numbers."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from s2vfast import errors
from s2vfast.kernels import _launch
from s2vfast.ops import tube_mask
from s2vfast.reference.philox import track_ids
from s2vfast.reference.tube_mask import tube_mask as reference
from s2vfast.reference.tube_mask import tube_scores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def clips_of(*shape, seed=0, scale=0.05):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).cumsum(1) * scale


def check(clips, noise=None, ids=None, **options):
    expected = reference(clips, noise=noise, ids=ids, **options)
    noise, ids = (None if x is None else x.to(DEVICE) for x in (noise, ids))
    found = tube_mask(clips.to(DEVICE), noise=noise, ids=ids, **options, impl="triton")
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == torch.int32
        assert torch.equal(f.cpu(), e)
    return expected


@pytest.mark.parametrize("V", [1, 2, 16, 17, 25, 33, 70, 130])
def test_any_number_of_joints(V):
    clips = clips_of(2, 12, V, 3, seed=V)
    options = {"segment_frames": 3, "tube_len": 2, "motion_weight": 0.4, "ids": track_ids(torch.arange(1), 2, mask=3)}
    for keep in {1, (V + 1) // 2, V}:
        check(clips, keep=keep, seed=2**64 - 1 - V, epoch=2**32 - 1, **options)


@pytest.mark.parametrize(("s", "C", "unroll"), [(1, 1, 1), (5, 2, 4), (7, 6, 2), (4, 3, 8)])
def test_any_segment(s, C, unroll):
    with _launch.override("tube_mask", "forward", UNROLL=unroll):
        check(clips_of(3, 4 * s, 9, C), segment_frames=s, tube_len=2, keep=4, motion_weight=1.7, ids=torch.arange(3))


@pytest.mark.parametrize("segment_frames", [1, 3])
@pytest.mark.parametrize("weight", [0.1, 0.7, 1.9])
def test_scores_are_rounded_as_the_reference_rounds_them(weight, segment_frames):
    """Noise that lifts every score to the middle between two floats: who is lowest depends on the last bit."""
    clips = clips_of(6, 4 * segment_frames, 25, 3, seed=1)
    options = {"segment_frames": segment_frames, "tube_len": 2, "motion_weight": weight}
    lifted = tube_scores(clips, noise=torch.zeros(6, 2, 25), **options)  # w * intensity as the reference rounds it
    middle = np.float64(2.5 + 2.0**-23)
    noise = torch.from_numpy((middle - lifted.double().numpy()).astype(np.float32))
    noise = torch.where(
        torch.rand(noise.shape, generator=torch.Generator().manual_seed(0)) < 0.2, noise * 1.0001, noise
    )
    score = tube_scores(clips, noise=noise, **options)
    assert len(score.unique()) < score.numel() / 2  # many ties
    for keep in (3, 12, 20):
        check(clips, noise=noise, keep=keep, **options)


def test_sums_run_in_the_order_of_the_reference():
    """Motions of very different size: another order of the sum, and the intensity that decides changes."""
    generator = torch.Generator().manual_seed(5)
    sizes = 10.0 ** torch.randint(-7, 2, (8, 24, 20, 3), generator=generator)
    clips = (torch.randn(8, 24, 20, 3, generator=generator) * sizes).cumsum(1)
    noise = torch.zeros(8, 2, 20)
    # Without noise the order of the joints is that of their intensities, to the last bit.
    clips[:, :, 1::2] = clips[:, :, ::2].flip(-1)  # the same motions, summed from the last channel on
    for keep in (5, 10, 15):
        check(clips, noise=noise, keep=keep, segment_frames=4, tube_len=3, motion_weight=1.0)


def test_numbers_that_are_not_numbers():
    """NaN is larger than every number, -0 equals +0, equal scores keep the lower joint."""
    clips = torch.zeros(7, 4, 9, 3)
    noise = torch.rand(7, 1, 9, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    clips[1, 1, 3, 0] = torch.nan
    clips[2, 2, 4, 1] = torch.inf
    clips[3, 0, 0, 2] = -torch.inf
    clips[4, 1, 2] = 3e38
    clips[4, 2, 2] = -3e38
    clips[5, 1:, 5] = 1e-42  # subnormal
    noise[0, 0, ::2] = -0.0
    noise[0, 0, 1::2] = 0.0
    noise[6, 0, 2] = torch.nan
    noise[6, 0, 3:5] = torch.tensor([torch.inf, -torch.inf])
    for keep in range(1, 10):
        check(clips, noise=noise, keep=keep, segment_frames=2, tube_len=2, motion_weight=0.5)


def test_other_dtypes():
    clips = clips_of(2, 6, 5, 3)
    noise = torch.rand(2, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"segment_frames": 3, "tube_len": 2, "keep": 2, "motion_weight": 0.1}
    check(clips, noise=noise, **options)
    check(clips, noise=noise.half(), **options)
    with pytest.raises(errors.ImplementationError, match="it takes float32 clips, not float64"):
        tube_mask(clips.double(), noise=noise, **options, impl="triton")


def test_no_tracks():
    check(torch.zeros(0, 6, 5, 3), segment_frames=3, tube_len=2, keep=2, motion_weight=0.1, ids=torch.arange(0))


ROUNDING = """
import json, re, torch, triton
from triton.backends.compiler import GPUTarget
from s2vfast import ops
from s2vfast.inputs import SHAPES, inputs
from s2vfast.kernels import _launch

found = {}
for op in ("tube_mask", "clip_sample"):
    given = inputs(op, SHAPES["odd"])
    if op == "clip_sample":
        import dataclasses
        given["spec"] = dataclasses.replace(given["spec"], sampling="crop")
    with _launch.capture(90) as launches:
        getattr(ops, op)(**given, impl="triton")
    for launch in launches:
        source, options, _ = _launch.specialized(launch, 90)
        ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options.__dict__).asm["ptx"]
        words = "fma.rn.f32 fma.rn.ftz add.ftz mul.ftz div.full div.approx sqrt.approx div.rn.f32".split()
        found[op + launch.kernel.fn.__name__] = {word: ptx.count(word) for word in words}
print(json.dumps(found))
"""


def test_the_compiler_keeps_every_rounding():
    """In what is compiled for a GPU: no fused multiply-add, no approximate division, no flushed subnormals."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", ROUNDING], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert set(found) == {"tube_mask_forward_kernel", "clip_sample_picks_kernel", "clip_sample_values_kernel"}
    for kernel, counts in found.items():
        divisions = counts.pop("div.rn.f32")
        assert divisions or kernel == "clip_sample_values_kernel"
        assert not any(counts.values()), f"{kernel}: {counts}"
