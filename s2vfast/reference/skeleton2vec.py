"""The published Skeleton2vec step, eager and unabridged (arXiv 2401.00921): what everything else is measured against.

Parameters are a flat dict under the names of `s2vfast.objectives.skeleton2vec.Skeleton2vec`; the teacher's are those of
the student's encoder without the prefix ``encoder.``. Every token is embedded, decoded and predicted, as published.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s2vfast.reference.add_norm import add_norm
from s2vfast.reference.attention import attention
from s2vfast.reference.embed_gather import embed_gather
from s2vfast.reference.mask_fill import mask_fill
from s2vfast.reference.masked_mse import masked_mse
from s2vfast.reference.mlp import mlp
from s2vfast.reference.teacher_target import teacher_target
from s2vfast.reference.tube_mask import published_slots, tube_mask, tube_scores

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """The hyperparameters that the step's arithmetic depends on."""

    heads: int
    depth: int
    decoder_depth: int
    segment_frames: int
    tube_len: int
    keep: int
    motion_weight: float
    top_k: int
    target_norm: str = "instance"
    norm_eps: float = 1e-6
    placement: str = "token"


@dataclass(frozen=True)
class Output:
    """What one step computes, for N tracks of L tokens, K of them visible, U masked."""

    loss: Tensor
    visible: Tensor  # int32 [N, K]
    masked: Tensor  # int32 [N, U]
    latent: Tensor  # [N, K, D], the student's encoder output
    prediction: Tensor  # [N, L, D]
    target: Tensor  # [N, L, D]


def step(
    student: Parameters,
    teacher: Parameters,
    clips: Tensor,
    settings: Settings,
    noise: Tensor | None = None,
    seed: int = 0,
    epoch: int = 0,
    ids: Tensor | None = None,
) -> Output:
    """Loss of one batch.

    Args:
        student: parameters of encoder and decoder.
        teacher: parameters of the teacher's encoder.
        clips: [N, T, V, C].
        settings: hyperparameters.
        noise: [N, tubes, V] draws of the mask; None draws them from (seed, epoch, ids).
        seed: seed of the mask.
        epoch: epoch of the mask.
        ids: int64 [N], ids of the tracks.

    Returns:
        The loss (differentiable with respect to ``student``) and what led to it.
    """
    tubes = {
        "segment_frames": settings.segment_frames,
        "tube_len": settings.tube_len,
        "motion_weight": settings.motion_weight,
        "noise": noise,
        "seed": seed,
        "epoch": epoch,
        "ids": ids,
    }
    visible, masked = tube_mask(clips[..., :3], keep=settings.keep, **tubes)
    slots = visible
    if settings.placement == "published":
        slots = published_slots(tube_scores(clips[..., :3], **tubes), settings.tube_len, settings.keep)
    latent = encode(_under("encoder.", student), clips, settings, visible)[-1]
    prediction = decode(_under("decoder.", student), latent, slots, settings)
    with torch.no_grad():
        hidden = encode(teacher, clips, settings, None)[-1 - settings.top_k : -1]
        target = teacher_target(hidden, None, settings.target_norm)
    loss = masked_mse(_at(prediction, masked), _at(target, masked))
    return Output(loss, visible, masked, latent, prediction, target)


def encode(p: Parameters, clips: Tensor, settings: Settings, visible: Tensor | None) -> list[Tensor]:
    """Outputs of the encoder's blocks and, last, of its final norm: each [N, K, D]."""
    positions = _positions(p["embedding.segment"], p["embedding.joint"])
    x = embed_gather(clips, p["embedding.weight"], p["embedding.bias"], positions, visible)
    hidden = []
    for i in range(settings.depth):
        x = block(_under(f"blocks.{i}.", p), x, settings)
        hidden.append(x)
    hidden.append(_norm(p, "norm", x, settings.norm_eps))
    return hidden


def decode(p: Parameters, latent: Tensor, slots: Tensor, settings: Settings) -> Tensor:
    """Predictions at every token, [N, L, D], from latents [N, K, D] put at the tokens ``slots`` (int32 [N, K])."""
    latent = latent @ p["embed.weight"].t() + p["embed.bias"]
    x = mask_fill(latent, p["mask_token"], _positions(p["segment"], p["joint"]), slots)
    for i in range(settings.decoder_depth):
        x = block(_under(f"blocks.{i}.", p), x, settings)
    return _norm(p, "norm", x, settings.norm_eps) @ p["head.weight"].t() + p["head.bias"]


def block(p: Parameters, x: Tensor, settings: Settings) -> Tensor:
    """x += gamma1 * proj(attention(norm1(x))); x += gamma2 * mlp(norm2(x))."""
    N, L, D = x.shape
    qkv = _norm(p, "norm1", x, settings.norm_eps) @ p["qkv.weight"].t() + p["qkv.bias"]  # [N, L, 3 D]
    attn_out, _ = attention(qkv.reshape(N, L, 3, settings.heads, D // settings.heads))
    branch = attn_out.reshape(N, L, D) @ p["proj.weight"].t() + p["proj.bias"]
    x, normed = add_norm(x, branch, p["gamma1"], p["norm2.weight"], p["norm2.bias"], settings.norm_eps)
    branch = mlp(normed, p["fc1.weight"], p["fc1.bias"], p["fc2.weight"], p["fc2.bias"])
    return add_norm(x, branch, p["gamma2"], None, None)[0]


def _norm(p: Parameters, name: str, x: Tensor, eps: float) -> Tensor:
    return add_norm(x, None, None, p[f"{name}.weight"], p[f"{name}.bias"], eps)[1]


def _positions(segment: Tensor, joint: Tensor) -> Tensor:
    """[S, D] and [V, D] to [S * V, D], token ids segment * V + joint."""
    return (segment[:, None] + joint[None]).reshape(-1, joint.shape[-1])


def _under(prefix: str, p: Parameters) -> Parameters:
    return {name[len(prefix) :]: value for name, value in p.items() if name.startswith(prefix)}


def _at(x: Tensor, tokens: Tensor) -> Tensor:
    return x.gather(1, tokens.long()[..., None].expand(-1, -1, x.shape[-1]))
