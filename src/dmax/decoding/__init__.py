"""Decoding rules: logits in, the next state of a block out. Knows nothing of models, caches or tokenizers."""

from dmax.decoding.base import BlockState, Decoder, DecoderError, SoftMix, StepResult
from dmax.decoding.mixing import input_embeddings

__all__ = ["BlockState", "Decoder", "DecoderError", "SoftMix", "StepResult", "input_embeddings"]
