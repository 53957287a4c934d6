"""Motion-aware tube masking (Skeleton2vec, arXiv 2401.00921, section 3.3): one program chooses the joints of one tube.

Memory: reads the frames of the tube once (each frame twice, the second time from the cache), writes each token id
once. A few megabytes for a batch: bound by the latency of loads, so a segment's loads are all issued before their sum.

The choice must be that of `s2vfast.reference.tube_mask` bit for bit: sums run in its order, divisions are IEEE, and
the launch forbids fused multiply-adds, which leave out a rounding. A lane holds a joint.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import configuration, launch, next_power_of_2
from s2vfast.kernels._philox import key_and_epoch, random_bits, uniform
from s2vfast.kernels._rank import ranks
from s2vfast.reference import philox

_MASK = tl.constexpr(philox.MASK)


@triton.jit
def _order_key(value):
    """int32 in the order of the floats: -0 equals +0, all NaNs are one value above infinity."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(value == value, ordered, 0x7FFFFFFE)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "epoch"])
def _forward_kernel(
    clips_ptr,
    noise_ptr,
    ids_ptr,
    visible_ptr,
    masked_ptr,
    seed_low,
    seed_high,
    epoch,
    motion_weight,
    tubes,
    keep,
    SEGMENT_FRAMES: tl.constexpr,
    TUBE_LEN: tl.constexpr,
    JOINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    V_BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Scores of the joints of one tube, the ``keep`` lowest, and the tokens of both kinds in ascending order."""
    ROW: tl.constexpr = JOINTS * CHANNELS
    track, tube = (tl.program_id(0) // tubes).to(tl.int64), tl.program_id(0) % tubes
    segments = tubes * TUBE_LEN
    frames = segments * SEGMENT_FRAMES
    joint = tl.arange(0, V_BLOCK)
    real = joint < JOINTS

    at = tube * JOINTS + joint
    if noise_ptr is None:
        u = uniform(random_bits((seed_low, seed_high), epoch, tl.load(ids_ptr + track), at, _MASK))
    else:
        u = tl.load(noise_ptr + track * tubes * JOINTS + at, mask=real, other=0.0)

    clip_ptr = clips_ptr + track * frames * ROW
    intensity = tl.zeros([V_BLOCK], dtype=tl.float32)
    for j in range(TUBE_LEN):
        token = tl.zeros([V_BLOCK], dtype=tl.float32)
        for f in tl.range(0, SEGMENT_FRAMES, loop_unroll_factor=UNROLL):
            frame = (tube * TUBE_LEN + j) * SEGMENT_FRAMES + f
            # The last frame of the clip has no successor: its motion is 0.
            moves = real & (frame + 1 < frames)
            here = clip_ptr + frame * ROW + joint * CHANNELS
            moved, seen, seen_after = token, joint < 0, joint < 0
            for c in tl.static_range(CHANNELS):
                now, after = tl.load(here + c, mask=moves, other=0.0), tl.load(here + (ROW + c), mask=moves, other=0.0)
                seen |= now != 0.0
                seen_after |= after != 0.0
                moved += tl.abs(after - now)
            # Zeros are a joint that was not seen, which does not move.
            token = tl.where(seen & seen_after, moved, token)
        intensity += tl.div_rn(token, float(SEGMENT_FRAMES * CHANNELS))
    intensity = tl.div_rn(intensity, float(TUBE_LEN))

    # Nothing is below 0 here, so the bits of a float are in its order; a NaN is above all.
    bits = tl.where(intensity == intensity, intensity.to(tl.int32, bitcast=True), 0x7FC00000)
    largest = tl.max(bits, axis=0).to(tl.float32, bitcast=True)
    score = u + motion_weight * tl.div_rn(intensity, largest + 1e-6)

    # The joint breaks ties; a lane without a joint comes last.
    key = tl.where(real, _order_key(score), 0x7FFFFFFF).to(tl.int64) << 32 | joint
    stays = ranks(key, V_BLOCK) < keep
    before = tl.cumsum(stays.to(tl.int32), axis=0)  # visible joints up to and including this one
    drop = JOINTS - keep
    for j in range(TUBE_LEN):
        segment = tube * TUBE_LEN + j
        token_id = segment * JOINTS + joint
        first = track * segments + segment
        tl.store(visible_ptr + first * keep + (before - 1), token_id, mask=real & stays)
        tl.store(masked_ptr + first * drop + (joint - before), token_id, mask=real & (stays == 0))


def forward(
    clips: Tensor,
    segment_frames: int,
    tube_len: int,
    keep: int,
    motion_weight: float,
    noise: Tensor | None,
    seed: int,
    epoch: int,
    ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """visible int32 [N, S * keep] and masked int32 [N, S * (V - keep)].

    Args:
        clips: float32 [N, T, V, C], contiguous.
        segment_frames: frames a token.
        tube_len: segments a tube.
        keep: visible joints a tube.
        motion_weight: of the intensity in the score.
        noise: float32 [N, tubes, V], contiguous; None draws it.
        seed: seed of the draws; a negative number stands for its 64 bits.
        epoch: epoch of the draws.
        ids: int64 [N], contiguous; None where noise is given.
    """
    N, T, V, C = clips.shape
    S = T // segment_frames
    visible = clips.new_empty((N, S * keep), dtype=torch.int32)
    masked = clips.new_empty((N, S * (V - keep)), dtype=torch.int32)
    launch(
        _forward_kernel,
        (N * (S // tube_len),),
        clips,
        noise,
        ids,
        visible,
        masked,
        *key_and_epoch(seed, epoch),
        float(motion_weight),
        S // tube_len,
        keep,
        SEGMENT_FRAMES=segment_frames,
        TUBE_LEN=tube_len,
        JOINTS=V,
        CHANNELS=C,
        V_BLOCK=next_power_of_2(V),
        enable_fp_fusion=False,
        **configuration("tube_mask", "forward", clips.device, V=V),
    )
    return visible, masked
