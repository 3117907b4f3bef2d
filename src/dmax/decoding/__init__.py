"""Decoding rules: logits in, the next state of a block out. Knows nothing of models, caches or tokenizers."""

from dmax.decoding.base import BlockState, Decoder, DecoderError, SoftMix, StepResult
from dmax.decoding.commit import commit_masks
from dmax.decoding.fixed_steps import FixedStepsDecoder
from dmax.decoding.hierarchical import HierarchicalDecoder
from dmax.decoding.joint_threshold import JointThresholdDecoder
from dmax.decoding.mixing import input_embeddings
from dmax.decoding.multi_block import MultiBlockRule, SlotView
from dmax.decoding.prediction import Prediction, predict
from dmax.decoding.reference import ReferencePass, decode
from dmax.decoding.registry import decoder_names, decoder_options, get_decoder
from dmax.decoding.soft_parallel import SoftParallelDecoder
from dmax.decoding.threshold import ThresholdDecoder

__all__ = [
    "BlockState",
    "Decoder",
    "DecoderError",
    "FixedStepsDecoder",
    "HierarchicalDecoder",
    "JointThresholdDecoder",
    "MultiBlockRule",
    "Prediction",
    "ReferencePass",
    "SlotView",
    "SoftMix",
    "SoftParallelDecoder",
    "StepResult",
    "ThresholdDecoder",
    "commit_masks",
    "decode",
    "decoder_names",
    "decoder_options",
    "get_decoder",
    "input_embeddings",
    "predict",
]
