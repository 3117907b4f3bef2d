"""Decoding rules: logits in, the next state of a block out. Knows nothing of models, caches or tokenizers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmax.decoding.base import BlockState, Decoder, SoftMix, StepResult
    from dmax.decoding.commit import commit_masks
    from dmax.decoding.entropy_bounded import EntropyBoundedDecoder
    from dmax.decoding.fixed_steps import FixedStepsDecoder
    from dmax.decoding.hierarchical import HierarchicalDecoder
    from dmax.decoding.joint_threshold import JointThresholdDecoder
    from dmax.decoding.joint_threshold_indel import JointThresholdIndelDecoder
    from dmax.decoding.mixing import input_embeddings
    from dmax.decoding.multi_block import BlockView, MultiBlockRule
    from dmax.decoding.options import DecoderError
    from dmax.decoding.prediction import Prediction, predict
    from dmax.decoding.reference import ReferencePass, decode
    from dmax.decoding.registry import decoder_names, decoder_options, get_decoder
    from dmax.decoding.remask import RemaskDecoder
    from dmax.decoding.soft_parallel import SoftParallelDecoder
    from dmax.decoding.threshold import ThresholdDecoder

__all__ = [
    "BlockState",
    "BlockView",
    "Decoder",
    "DecoderError",
    "EntropyBoundedDecoder",
    "FixedStepsDecoder",
    "HierarchicalDecoder",
    "JointThresholdDecoder",
    "JointThresholdIndelDecoder",
    "MultiBlockRule",
    "Prediction",
    "ReferencePass",
    "RemaskDecoder",
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

# What declares and checks settings must not wait for torch, which all of these import.
_HOMES = {
    **dict.fromkeys(("BlockState", "Decoder", "SoftMix", "StepResult"), "base"),
    "commit_masks": "commit",
    "EntropyBoundedDecoder": "entropy_bounded",
    "FixedStepsDecoder": "fixed_steps",
    "HierarchicalDecoder": "hierarchical",
    "JointThresholdDecoder": "joint_threshold",
    "JointThresholdIndelDecoder": "joint_threshold_indel",
    "input_embeddings": "mixing",
    **dict.fromkeys(("BlockView", "MultiBlockRule"), "multi_block"),
    "DecoderError": "options",
    **dict.fromkeys(("Prediction", "predict"), "prediction"),
    **dict.fromkeys(("ReferencePass", "decode"), "reference"),
    **dict.fromkeys(("decoder_names", "decoder_options", "get_decoder"), "registry"),
    "RemaskDecoder": "remask",
    "SoftParallelDecoder": "soft_parallel",
    "ThresholdDecoder": "threshold",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"dmax.decoding.{_HOMES[name]}"), name)
