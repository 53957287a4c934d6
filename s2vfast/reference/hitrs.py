"""The published step of Hi-TRS, as plain as can be: padded clips, every window of the longest for all, masks.

Written from the paper's and the code's formulas (Chen et al., ECCV 2022, arXiv 2207.09644) with parameters by the
published names; the fused one is `s2vfast.networks.hitrs` with `s2vfast.objectives.hitrs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
"""Parameters by their published names."""


@dataclass(frozen=True)
class Batch:
    """A collated batch: N clips that are padded to the longest, T frames with the empty ones at both ends."""

    masked: Tensor  # [N, T, V, C]
    original: Tensor  # [N, T, V, C]
    selected: Tensor  # bool [N, T, V]
    windows: Tensor  # int64 [W, w], the visible windows of the longest clip
    padded: Tensor  # bool [N, W], windows that a clip does not have
    last: Tensor  # int64 [N, w], each clip's future window
    pairs: Tensor  # int64 [N, 2, w], a window as it is and with two frames swapped
    valid: Tensor  # bool [N], clips with such a window
    permutation: Tensor  # int64 [N, W], the visible windows with two exchanged


def attention(state: State, name: str, x: Tensor, heads: int, blocked: Tensor | None) -> Tensor:
    """[N, L, D] to [N, L, D]; ``blocked`` bool, broadcast over [N, H, L, L]: keys that are not looked at."""
    q, k, v = (
        F.linear(x, state[f"{name}.{part}.weight"]).unflatten(-1, (heads, -1)).transpose(1, 2)
        for part in ("w_qs", "w_ks", "w_vs")
    )
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if blocked is not None:
        scores = scores.masked_fill(blocked, -1e9)
    return F.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), state[f"{name}.fc.weight"])


def level(state: State, name: str, x: Tensor, heads: int, blocked: Tensor | None = None) -> Tensor:
    """All blocks of a level, [N, L, D] to [N, L, D]."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    i = 0
    while f"{name}.layer_stack.{i}.slf_attn.fc.weight" in state:
        block = f"{name}.layer_stack.{i}"
        x = x + attention(state, f"{block}.slf_attn", norm(f"{block}.self_attn_norm", x), heads, blocked)
        x = x + linear(
            state, f"{block}.pos_ffn.w_2", F.gelu(linear(state, f"{block}.pos_ffn.w_1", norm(f"{block}.pff_norm", x)))
        )
        i += 1
    return x


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """A linear map with bias."""
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def frames(state: State, clips: Tensor, heads: int) -> Tensor:
    """Frame level: [N, T, V, C] to [N, T, V, D]."""
    x = F.gelu(linear(state, "s_input_map.0", clips))
    x = F.layer_norm(x, x.shape[-1:], state["s_input_map.2.weight"], state["s_input_map.2.bias"], 1e-5)
    x = x + state["s_pe.pe"]
    return level(state, "s_enc", x.flatten(0, 1), heads).view_as(x)


def clips(state: State, x: Tensor, windows: Tensor, heads: int) -> Tensor:
    """Clip level: frames [N, T, V, D] and windows [N, W, w] to embeddings [N, W, 2 D]."""
    N, W, w = windows.shape
    V = x.shape[2]
    x = torch.stack([x[i, windows[i].flatten()] for i in range(N)]).view(N * W, w, V, -1)
    x = (linear(state, "c_input_map", x) + state["c_pe.pe"]).flatten(1, 2)
    x = torch.cat([x, state["clip_fuse_token"].expand(len(x), 1, -1)], 1)
    frame = torch.arange(w * V + 1, device=x.device) // V
    blocked = (frame[:, None] == frame) & ~torch.eye(len(frame), dtype=torch.bool, device=x.device)
    return level(state, "c_enc", x, heads, blocked)[:, -1].view(N, W, -1)


def video(state: State, x: Tensor, padded: Tensor, heads: int) -> Tensor:
    """Video level: window embeddings [N, W, 2 D] to embeddings [N, 4 D]."""
    x = linear(state, "v_input_map", x) + state["v_pe.pe"][: x.shape[1]]
    x = torch.cat([x, state["video_fuse_token"].expand(len(x), 1, -1)], 1)
    return level(state, "v_enc", x, heads, F.pad(padded, (0, 1))[:, None, None])[:, -1]


def losses(
    state: State, batch: Batch, heads: int, pose_scale: float = 10.0, temperature: float = 0.07
) -> dict[str, Tensor]:
    """The four losses: ``pose``, ``clip``, ``video``, ``future``."""
    x = frames(state, batch.masked, heads)
    N = len(x)
    pose = pose_scale * linear(state, "s_pose_reg", x)[batch.selected]
    pairs = clips(state, x, batch.pairs, heads)[batch.valid]
    windows = clips(state, x, batch.windows.expand(N, -1, -1), heads)
    exchanged = torch.stack([windows[i, batch.permutation[i]] for i in range(N)])
    original = video(state, windows, batch.padded, heads)
    videos = torch.stack([original, video(state, exchanged, batch.padded, heads)], 1)
    labels = torch.tensor([1, 0], device=x.device)
    target = clips(state, x, batch.last[:, None], heads)[:, 0].detach()
    prediction = linear(state, "v_ft_reg", original)
    similarity = F.normalize(prediction, dim=-1) @ F.normalize(target, dim=-1).T / temperature
    return {
        "pose": F.smooth_l1_loss(pose, pose_scale * batch.original[batch.selected]),
        "clip": F.cross_entropy(linear(state, "c_motion_cls", pairs).flatten(0, 1), labels.repeat(len(pairs))),
        "video": F.cross_entropy(linear(state, "v_motion_cls", videos).flatten(0, 1), labels.repeat(N)),
        "future": F.cross_entropy(similarity, torch.arange(N, device=x.device)),
    }
