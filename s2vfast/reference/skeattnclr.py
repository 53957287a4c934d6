"""SkeAttnCLR's step as published (IJCAI 2023), in plain PyTorch with the parameter names of its code.

Without what the code computes and no loss reads: a second projector, predictors of keys, queues of other embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast.reference.stgcn import State, batch_norm, identity, stgcn


def random_state(
    graph: Tensor,
    channels: Sequence[int],
    *,
    coordinates: int = 3,
    kernel: int = 9,
    dim: int = 128,
    hidden: int = 256,
    queue: int = 1024,
    std: float = 0.1,
) -> dict[str, Tensor]:
    """Parameters, statistics and queue by the published names, of PyTorch's own generator.

    Args:
        graph: [K, V, V].
        channels: of each block; the frames are halved where their number changes after the first block.
        coordinates: C of clips.
        kernel: frames of a convolution over time.
        dim: numbers of an embedding.
        hidden: of projector and predictors.
        queue: keys.
        std: of maps and convolutions.
    """
    state: dict[str, Tensor] = {}

    def weight(name: str, *shape: int) -> None:
        state[name] = torch.randn(shape) * std

    def norm(name: str, width: int) -> None:
        state.update({f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)})
        state.update({f"{name}.running_mean": torch.zeros(width), f"{name}.running_var": torch.ones(width)})
        state[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)

    def head(name: str, features: int) -> None:
        weight(f"{name}.mlp.0.weight", hidden, features, 1)
        norm(f"{name}.mlp.1", hidden)
        weight(f"{name}.mlp.3.weight", dim, hidden, 1)

    K, V, _ = graph.shape
    for encoder in ("encoder_q", "encoder_k"):
        state[f"{encoder}.backbone.A"] = graph.clone()
        norm(f"{encoder}.backbone.data_bn", V * coordinates)
        before = coordinates
        for number, width in enumerate(channels):
            name = f"{encoder}.backbone.st_gcn_networks.{number}"
            convolutions = {"gcn.conv": (K * width, before, 1, 1), "tcn.2": (width, width, kernel, 1)}
            if number and before != width:
                convolutions["residual.0"] = (width, before, 1, 1)
                norm(f"{name}.residual.1", width)
            for part, shape in convolutions.items():
                weight(f"{name}.{part}.weight", *shape)
                weight(f"{name}.{part}.bias", shape[0])
            norm(f"{name}.tcn.0", width)
            norm(f"{name}.tcn.3", width)
            state[f"{encoder}.backbone.edge_importance.{number}"] = torch.ones(K, V, V)
            before = width
        head(f"{encoder}.neck.proj", before)
    state.update({"encoder_q.neck.norm0.weight": torch.ones(before), "encoder_q.neck.norm0.bias": torch.zeros(before)})
    for name, width in (("qkv", 3 * before), ("proj", before)):
        weight(f"encoder_q.neck.Attn.{name}.weight", width, before)
        weight(f"encoder_q.neck.Attn.{name}.bias", width)
    for name in ("predictor", "predictor_s", "predictor_ns"):
        head(name, dim)
    state["queue_z"] = F.normalize(torch.randn(dim, queue), dim=0)
    state["queue_ptr_z"] = torch.zeros(1, dtype=torch.int64)
    return state


def mlp(x: Tensor, state: State, name: str, training: bool = True) -> Tensor:
    """Map, batch norm, ReLU, map: [n, out] of [n, features]."""
    x = F.linear(x, state[f"{name}.mlp.0.weight"][..., 0])
    return F.linear(F.relu(batch_norm(x, state, f"{name}.mlp.1", training)), state[f"{name}.mlp.3.weight"][..., 0])


def attention_mask(tokens: Tensor, state: State, name: str, heads: int) -> Tensor:
    """sigmoid(2 self-attention(layer norm)): [N, L, D] of tokens [N, L, D]."""
    N, L, D = tokens.shape
    x = F.layer_norm(tokens, (D,), state[f"{name}norm0.weight"], state[f"{name}norm0.bias"])
    qkv = F.linear(x, state[f"{name}Attn.qkv.weight"], state[f"{name}Attn.qkv.bias"])
    q, k, v = qkv.view(N, L, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
    weights = torch.softmax((q @ k.transpose(-1, -2)) * math.sqrt(1.0 / (D // heads)), dim=-1)
    out = (weights @ v).transpose(1, 2).reshape(N, L, D)
    return torch.sigmoid(2.0 * F.linear(out, state[f"{name}Attn.proj.weight"], state[f"{name}Attn.proj.bias"]))


@dataclass
class Output:
    """What a step comes to."""

    losses: dict[str, Tensor]  # z, s, ns and total
    necks: dict[str, Tensor]  # [n, dim], embeddings after projectors, of passes and kinds
    predictions: dict[str, Tensor]  # [n, dim], embeddings after predictors, before they are normalised
    mask: Tensor  # [n * M, L, D]
    features: dict[str, Tensor]  # [n * M, D, T / 4, V], of passes


def step(
    state: State,
    query: Tensor,
    mixed: Tensor,
    key: Tensor,
    *,
    heads: int,
    temperature: float,
    mu: float,
    drop: Callable[[Tensor], Tensor] = identity,
) -> Output:
    """The losses of two views and of the mixed one; statistics and the queue of whole clips change in place.

    Args:
        state: parameters and buffers of queries, keys and queue.
        query: [n, M, T, V, C], as the network is to see it.
        mixed: likewise.
        key: likewise.
        heads: of the mask's attention.
        temperature: tau.
        mu: weight of the salient loss.
        drop: dropout.
    """
    n, M = query.shape[:2]

    def tokens_of(clips: Tensor, encoder: str) -> Tensor:
        features[encoder] = stgcn(clips.flatten(0, 1), state, f"{encoder}.backbone.", drop=drop)
        return features[encoder].flatten(2).transpose(1, 2)  # [n * M, L, D]

    def pool(tokens: Tensor) -> Tensor:
        return tokens.mean(1).view(n, M, -1).mean(1)

    features: dict[str, Tensor] = {}
    necks, predictions = {}, {}
    necks["q_z"] = mlp(pool(tokens_of(query, "encoder_q")), state, "encoder_q.neck.proj")
    predictions["q_z"] = mlp(necks["q_z"], state, "predictor")
    features["q"] = features["encoder_q"]
    tokens = tokens_of(mixed, "encoder_q")
    mask = attention_mask(tokens, state, "encoder_q.neck.", heads)
    for kind, pooled in (("z", pool(tokens)), ("s", pool(tokens * mask)), ("ns", pool(tokens * (1.0 - mask)))):
        necks[f"swap_{kind}"] = mlp(pooled, state, "encoder_q.neck.proj")
    for kind, name in (("z", "predictor"), ("s", "predictor_s"), ("ns", "predictor_ns")):
        predictions[f"swap_{kind}"] = mlp(necks[f"swap_{kind}"], state, name)
    with torch.no_grad():
        tokens, weights = tokens_of(key, "encoder_k"), mask.detach()
        for kind, pooled in (
            ("z", pool(tokens)),
            ("s", pool(tokens * weights)),
            ("ns", pool(tokens * (1.0 - weights))),
        ):
            necks[f"k_{kind}"] = mlp(pooled, state, "encoder_k.neck.proj")
    queue = state["queue_z"].clone()  # [dim, K]
    unit = {name: F.normalize(value, dim=1) for name, value in {**necks, **predictions}.items()}
    s, ns = unit["swap_s"], unit["swap_ns"]
    losses = {}
    for kind, embedding, other in (("z", unit["q_z"], None), ("s", s, ns), ("ns", ns, s)):
        logits = [(embedding * unit[f"k_{kind}"]).sum(1, keepdim=True), embedding @ queue]
        if other is not None:
            logits.append((embedding * other.detach()).sum(1, keepdim=True))
        scores = torch.cat(logits, 1) / temperature
        losses[kind] = F.cross_entropy(scores, torch.zeros(n, dtype=torch.long, device=scores.device))
    losses["total"] = losses["z"] + mu * losses["s"] + (1.0 - mu) * losses["ns"]
    with torch.no_grad():
        pointer = int(state["queue_ptr_z"])
        state["queue_z"][:, pointer : pointer + n] = unit["k_z"].t()
        state["queue_ptr_z"].fill_((pointer + n) % queue.shape[1])
    passes = {"q": features["q"], "swap": features["encoder_q"], "k": features["encoder_k"]}
    return Output(losses, necks, predictions, mask, passes)
