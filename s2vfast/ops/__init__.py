"""The operations of the pretraining step, each with named implementations: see `s2vfast.ops._dispatch`."""

from s2vfast.ops._dispatch import IMPLEMENTATIONS, availability, operation, parse_choice, use_impl
from s2vfast.ops.adamw_ema import Span, adamw_ema
from s2vfast.ops.add_norm import add_norm
from s2vfast.ops.attention import attention
from s2vfast.ops.clip_sample import ClipSpec, clip_sample
from s2vfast.ops.embed_gather import embed_gather
from s2vfast.ops.mask_fill import mask_fill
from s2vfast.ops.masked_mse import masked_mse
from s2vfast.ops.mlp import mlp
from s2vfast.ops.norm_linear import norm_linear
from s2vfast.ops.teacher_target import teacher_target
from s2vfast.ops.token_mask import token_mask
from s2vfast.ops.tube_mask import tube_mask

__all__ = [
    "IMPLEMENTATIONS",
    "ClipSpec",
    "Span",
    "adamw_ema",
    "add_norm",
    "attention",
    "availability",
    "clip_sample",
    "embed_gather",
    "mask_fill",
    "masked_mse",
    "mlp",
    "norm_linear",
    "operation",
    "parse_choice",
    "teacher_target",
    "token_mask",
    "tube_mask",
    "use_impl",
]
