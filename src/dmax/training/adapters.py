"""Low-rank adapters (LoRA, arXiv 2106.09685) by ``peft``, for training on one GPU.

The weights stay as they are, in the dtype of the computation; what is trained is a product of two narrow matrices
beside each weight of the attention and the feed-forward layers, one for each expert of a stack.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from peft import LoraConfig, LoraModel

from dmax.models.transformer import BlockDiffusionLM
from dmax.training.recipe import LoraSection

_ADAPTER = "default"
_ATTENTION = r".*\.attention\.(query_key_value|dense)"
_FEED_FORWARD = r".*\.mlp(\.shared_experts)?\.(gate|up|down)_proj"
_STACKS = ("mlp.experts.gate_proj", "mlp.experts.up_proj", "mlp.experts.down_proj")


class Adapters:
    """Adapters that were put into a model; its other weights are frozen.

    Args:
        model: changed in place.
        section: rank, scale and places.
        generator: of the initial values, which leave the model's output as it was.
    """

    def __init__(self, model: BlockDiffusionLM, section: LoraSection, generator: torch.Generator) -> None:
        patterns = [_ATTENTION] * section.attention + [_FEED_FORWARD] * section.feed_forward
        has_stacks = model.config.num_experts is not None
        config = LoraConfig(
            r=section.rank,
            lora_alpha=section.alpha,  # type: ignore[arg-type]  # a scale; peft divides it by the rank
            target_modules="|".join(patterns),
            target_parameters=list(_STACKS) if section.feed_forward and has_stacks else None,
        )
        self._tuner = LoraModel(model, {_ADAPTER: config}, _ADAPTER)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # updates are too small for the dtype of the computation
                if "lora_A" in name:
                    torch.nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)

    def merge(self) -> BlockDiffusionLM:
        """Add the adapters to the weights and take them out; the model is a plain one again, and frozen."""
        return cast(BlockDiffusionLM, self._tuner.merge_and_unload())
