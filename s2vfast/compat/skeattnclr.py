"""The published naming of SkeAttnCLR; tensors change their shape with it.

ST-GCN is ``encoder_q.backbone``, projector and mask are ``encoder_q.neck``, the key encoder is ``encoder_k``. Its neck
also holds a mask, both necks a second projector and both backbones a class layer: no loss reads them, and they are left
out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from s2vfast.errors import CheckpointError

_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_BACKBONE = (
    (rf"data_bn\.{_NORM}", r"norm.\1"),
    (rf"st_gcn_networks\.(\d+)\.tcn\.0\.{_NORM}", r"blocks.\1.norm1.\2"),
    (rf"st_gcn_networks\.(\d+)\.tcn\.3\.{_NORM}", r"blocks.\1.norm2.\2"),
    (rf"st_gcn_networks\.(\d+)\.residual\.1\.{_NORM}", r"blocks.\1.shortcut_norm.\2"),
    (r"st_gcn_networks\.(\d+)\.gcn\.conv\.(weight|bias)", r"blocks.\1.graph_conv.\2"),
    (r"st_gcn_networks\.(\d+)\.tcn\.2\.(weight|bias)", r"blocks.\1.temporal.\2"),
    (r"st_gcn_networks\.(\d+)\.residual\.0\.(weight|bias)", r"blocks.\1.shortcut.\2"),
    (r"edge_importance\.(\d+)", r"blocks.\1.importance"),
)
_MLP = ((r"mlp\.0\.weight", "fc1.weight"), (rf"mlp\.1\.{_NORM}", r"norm.\1"), (r"mlp\.3\.weight", "fc2.weight"))
_MASK = ((r"norm0\.(weight|bias)", r"norm.\1"), (r"Attn\.(qkv|proj)\.(weight|bias)", r"\1.\2"))
_PARTS = (
    (r"encoder_q\.backbone\.", "encoder.", _BACKBONE),
    (r"encoder_k\.backbone\.", "key_encoder.", _BACKBONE),
    (r"encoder_q\.neck\.proj\.", "projector.", _MLP),
    (r"encoder_k\.neck\.proj\.", "key_projector.", _MLP),
    (r"encoder_q\.neck\.", "mask.", _MASK),
    (r"predictor\.", "predictor_z.", _MLP),
    (r"predictor_s\.", "predictor_s.", _MLP),
    (r"predictor_ns\.", "predictor_ns.", _MLP),
    ("", "", ((r"queue_(z|s|ns)", r"queue_\1"), (r"queue_ptr_z", "oldest"))),
)
_UNREAD = re.compile(
    r"encoder_[qk]\.(backbone\.(A|fc\..*)|neck\.proj_obj\..*)|encoder_k\.neck\.(norm0|Attn)\..*|queue_ptr_(s|ns)"
)
_PATTERNS = [
    (re.compile(head + pattern), new_head + name) for head, new_head, entries in _PARTS for pattern, name in entries
]

# By the end of our names: what becomes of a published tensor.
_SHAPES: tuple[tuple[str, Callable[[Tensor, int], Tensor]], ...] = (
    # [K * D, C, 1, 1] → [K, C, D]
    (r"graph_conv\.weight", lambda t, subsets: t.flatten(1).unflatten(0, (subsets, -1)).transpose(1, 2)),
    (r"graph_conv\.bias", lambda t, subsets: t.unflatten(0, (subsets, -1))),
    (r"temporal\.weight", lambda t, _: t[..., 0].permute(2, 1, 0)),  # [D, C, kernel, 1] → [kernel, C, D]
    (r"shortcut\.weight", lambda t, _: t[:, :, 0, 0]),
    (r"(projector|key_projector|predictor_\w+)\.fc[12]\.weight", lambda t, _: t[:, :, 0]),
    (r"queue_\w+", lambda t, _: t.t()),
    (r"oldest", lambda t, _: t.reshape(())),
)


def skeattnclr_name(published: str) -> str | None:
    """Our name of a published tensor; None for one that no loss reads.

    Raises:
        CheckpointError: no name of the published code.
    """
    if _UNREAD.fullmatch(published):
        return None
    for pattern, name in _PATTERNS:
        if match := pattern.fullmatch(published):
            return match.expand(name)
    raise CheckpointError(f"{published}: no parameter of the published SkeAttnCLR")


def from_skeattnclr(state: Mapping[str, Tensor], subsets: int = 3) -> dict[str, Tensor]:
    """Tensors under our names and in our shapes, of a `SkeAttnCLR` objective.

    Args:
        state: by published names, or of gradients.
        subsets: K, matrices of the graph.

    Raises:
        CheckpointError: a name that is not the published code's.
    """
    tensors = {}
    for published, tensor in state.items():
        name = skeattnclr_name(published)
        if name is not None:
            changes = [into for pattern, into in _SHAPES if re.search(rf"(^|\.){pattern}$", name)]
            tensors[name] = changes[0](tensor, subsets).contiguous() if changes else tensor
    return tensors
