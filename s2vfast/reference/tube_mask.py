"""Motion-aware tube masking (arXiv 2401.00921, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from s2vfast.reference import philox


def tube_mask(
    clips: Tensor,
    *,
    segment_frames: int,
    tube_len: int,
    keep: int,
    motion_weight: float,
    noise: Tensor | None = None,
    seed: int = 0,
    epoch: int = 0,
    ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose the visible joints of every tube: those with the lowest noise + weighted motion.

    The order of every sum is fixed (frames, then channels; segments of a tube), and each operation rounds by itself in
    the clips' dtype, so that all implementations choose the same tokens. Equal scores: the lower joint stays. A joint
    whose numbers are all zero in a frame was not seen there: it does not move from or to that frame.

    Args:
        clips: [N, T, V, C], float32 or float64.
        segment_frames: s, frames a token; T = S * s.
        tube_len: segments a tube; divides S.
        keep: visible joints a tube, 1 to V.
        motion_weight: w in score = u + w * intensity.
        noise: [N, S / tube_len, V], u in [0, 1); None draws it from (seed, epoch, ids).
        seed: seed of the draws.
        epoch: epoch of the draws.
        ids: int64 [N], ids of the tracks (`philox.track_ids`).

    Returns:
        visible int32 [N, K] and masked int32 [N, S * V - K], token ids (segment * V + joint) in ascending order.
    """
    N, T, V, _ = clips.shape
    S = T // segment_frames
    tubes = S // tube_len
    score = tube_scores(
        clips,
        segment_frames=segment_frames,
        tube_len=tube_len,
        motion_weight=motion_weight,
        noise=noise,
        seed=seed,
        epoch=epoch,
        ids=ids,
    )
    order = torch.argsort(score, dim=-1, stable=True)  # [N, tubes, V]
    stays = torch.zeros(N, tubes, V, dtype=torch.bool, device=clips.device)
    stays.scatter_(-1, order[..., :keep], True)
    stays = stays[:, :, None, :].expand(N, tubes, tube_len, V).reshape(N, S * V)
    # A stable sort of the flags lists the tokens of each kind in ascending order.
    tokens = torch.argsort((~stays).to(torch.uint8), dim=-1, stable=True).to(torch.int32)
    K = S * keep
    return tokens[:, :K], tokens[:, K:]


def tube_scores(
    clips: Tensor,
    *,
    segment_frames: int,
    tube_len: int,
    motion_weight: float,
    noise: Tensor | None = None,
    seed: int = 0,
    epoch: int = 0,
    ids: Tensor | None = None,
) -> Tensor:
    """score = u + w * intensity of every joint in every tube: [N, tubes, V]; arguments as of `tube_mask`."""
    N, T, V, C = clips.shape
    S = T // segment_frames
    tubes = S // tube_len
    if noise is None:
        noise = philox.uniform(philox.random_bits(seed, epoch, ids, philox.MASK, tubes * V)).reshape(N, tubes, V)
    noise = noise.to(clips.dtype)

    motion = torch.zeros_like(clips)
    seen = (clips != 0).any(-1, keepdim=True)
    motion[:, :-1] = torch.where(seen[:, 1:] & seen[:, :-1], (clips[:, 1:] - clips[:, :-1]).abs(), 0.0)
    motion = motion.reshape(N, tubes, tube_len, segment_frames, V, C)
    token = torch.zeros(N, tubes, tube_len, V, dtype=clips.dtype, device=clips.device)
    for f in range(segment_frames):
        for c in range(C):
            token = token + motion[:, :, :, f, :, c]
    token = token / _number(segment_frames * C, clips)
    tube = torch.zeros(N, tubes, V, dtype=clips.dtype, device=clips.device)
    for j in range(tube_len):
        tube = tube + token[:, :, j]
    tube = tube / _number(tube_len, clips)
    largest = tube.amax(dim=-1, keepdim=True)  # [N, tubes, 1]
    return noise + motion_weight * (tube / (largest + 1e-6))


def _number(value: float, like: Tensor) -> Tensor:
    """A divisor that every device divides by: by a Python number, CUDA multiplies with the reciprocal."""
    return torch.full((), value, dtype=like.dtype, device=like.device)


def published_slots(score: Tensor, tube_len: int, keep: int) -> Tensor:
    """Where the authors' code puts the visible latents before decoding: int32 [N, K], for ascending visible tokens.

    It lists all K latents (segment by segment, in each by ascending score), appends mask tokens up to L, cuts the list
    into S pieces of V and undoes the shuffle within each piece. So latent k does not return to its own token but goes
    to segment k // V, to the joint whose rank there is k % V: every latent lands in the first ceil(K / V) segments.

    Args:
        score: [N, tubes, V] of `tube_scores`.
        tube_len: segments a tube.
        keep: visible joints a tube.
    """
    N, tubes, V = score.shape
    S = tubes * tube_len
    order = torch.argsort(score, dim=-1, stable=True).repeat_interleave(tube_len, dim=1)  # [N, S, V] joint of a rank
    rank = torch.argsort(torch.argsort(order[..., :keep], dim=-1), dim=-1)  # [N, S, keep] place among ascending joints
    listed = torch.arange(S * keep, device=score.device)  # [K]
    token = listed // V * V + order.flatten(1)[:, : S * keep]
    # From the published order of latents to ascending token ids: within each segment by joint number.
    own = (torch.arange(S, device=score.device)[:, None] * keep + rank).flatten(1)  # [N, K]
    return torch.zeros_like(token).scatter_(1, own, token).to(torch.int32)
