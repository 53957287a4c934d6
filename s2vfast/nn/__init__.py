"""Embedding, block, encoder and decoder: modules built from `s2vfast.ops`."""

from s2vfast.nn.build import build_decoder, build_encoder
from s2vfast.nn.decoder import Decoder
from s2vfast.nn.encoder import Encoder

__all__ = ["Decoder", "Encoder", "build_decoder", "build_encoder"]
