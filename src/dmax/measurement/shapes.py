"""Models by shape alone: the published configurations with seeded random weights, made where they are to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from dmax.models.checkpoint import materialize
from dmax.models.config import ModelConfig
from dmax.models.convert import Quantization
from dmax.models.quantized import LEVELS, hold_quantized, scale_name
from dmax.models.transformer import BlockDiffusionLM, initial_std, initialize

_MINI = ModelConfig(
    vocab_size=157_184, hidden_size=2048, intermediate_size=5120, num_hidden_layers=20, num_attention_heads=16,
    num_key_value_heads=4, head_dim=128, partial_rotary_factor=0.5, num_experts=256, num_experts_per_tok=8,
    num_shared_experts=1, moe_intermediate_size=512, first_k_dense_replace=1, n_group=8, topk_group=4,
    routed_scaling_factor=2.5, max_position_embeddings=32_768, mask_token_id=156_895, eos_token_id=156_892,
    pad_token_id=156_892,
)  # fmt: skip
_FLASH = replace(
    _MINI, hidden_size=4096, intermediate_size=9216, num_hidden_layers=32, num_attention_heads=32,
    moe_intermediate_size=1024,
)  # fmt: skip
_NANO = ModelConfig(
    vocab_size=1536, hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, partial_rotary_factor=0.5, num_experts=8, num_experts_per_tok=2,
    num_shared_experts=1, moe_intermediate_size=96, first_k_dense_replace=1, n_group=4, topk_group=2,
    routed_scaling_factor=2.5, rope_theta=10_000.0, max_position_embeddings=32_768, mask_token_id=0,
    eos_token_id=1, pad_token_id=1,
)  # fmt: skip
_QWEN3 = ModelConfig(
    family="sdar", vocab_size=151_936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28,
    num_attention_heads=16, num_key_value_heads=8, head_dim=128, rope_theta=1e6, tie_word_embeddings=True,
    max_position_embeddings=32_768, mask_token_id=151_669, eos_token_id=151_645, pad_token_id=151_643,
    default_decoder="threshold",
)  # fmt: skip
_QWEN2 = ModelConfig(
    family="Fast_dLLM_Qwen", vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
    num_attention_heads=12, num_key_value_heads=2, head_dim=128, rope_theta=1e6, tie_word_embeddings=True,
    max_position_embeddings=32_768, mask_token_id=151_665, eos_token_id=151_645, pad_token_id=151_643,
    default_decoder="threshold", use_qkv_bias=True, use_qk_norm=False, shift_logits=True,
)  # fmt: skip
SHAPES: dict[str, ModelConfig] = {
    "llada2-mini": _MINI,
    "llada2-flash": _FLASH,
    "llada2.2-mini": replace(_MINI, rope_theta=3e6, max_position_embeddings=131_072, expert_capacity=48),
    "sdar-1.7b": _QWEN3,
    "sdar-4b": replace(
        _QWEN3, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32
    ),
    "sdar-8b": replace(
        _QWEN3, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32,
        tie_word_embeddings=False,
    ),
    "fast-dllm-v2-1.5b": _QWEN2,
    "nano": _NANO,
}  # fmt: skip
"""algorithm.md#the-model, and the embedded models' shape. Positions suffice for any context one may want to time."""

_SHARPNESS = 8.0
"""Weight of the query norms. At 1, random attention averages over the whole context and all masks of a block look
alike, so that they all go to the same few experts; sharp attention gives each its own mix of the context, and a block
touches about as many experts as independent tokens would."""


class MeasurementError(ValueError):
    """A measurement that cannot be made as asked; the message says what is allowed."""


def random_model(
    shape: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
    layers: int | None = None,
    weights: Quantization | None = None,
    check: Callable[[BlockDiffusionLM, torch.dtype, torch.device], object] | None = None,
) -> BlockDiffusionLM:
    """Make a model of a published shape whose weights, router included, are drawn on ``device``.

    Args:
        shape: a key of :data:`SHAPES`.
        device: where it will run.
        dtype: of the weights (``expert_bias`` is float32, as in a loaded checkpoint).
        seed: of the draws.
        layers: keep only so many layers, the dense ones first; None keeps all.
        weights: made in these formats right away, so that wider ones are never in memory.
        check: called with the model on the meta device, ``dtype`` and ``device``, before memory is taken.

    Raises:
        MeasurementError: there is no such shape, or it does not have so many layers.
    """
    if shape not in SHAPES:
        raise MeasurementError(f"there is no shape {shape!r}; choose from {', '.join(SHAPES)}.")
    config = SHAPES[shape]
    if layers is not None:
        if not 1 <= layers <= config.num_hidden_layers:
            raise MeasurementError(
                f"layers is {layers}; {shape} has {config.num_hidden_layers}, so give a number from 1 to that."
            )
        config = replace(config, num_hidden_layers=layers)
    with torch.device("meta"):
        model = BlockDiffusionLM(config)
    if weights is not None:
        schemes = {name: weights.scheme_of(name, tuple(like.shape)) for name, like in model.state_dict().items()}
        hold_quantized(model, {name: scheme for name, scheme in schemes.items() if scheme is not None})
    if check is not None:
        check(model, dtype, device)
    materialize(model, device, dtype)
    generator = torch.Generator(device).manual_seed(seed)
    initialize(model, generator)
    _draw_quantized(model, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("query_layernorm.weight"):
                parameter.fill_(_SHARPNESS)
    return model.eval().requires_grad_(False)


def _draw_quantized(model: BlockDiffusionLM, generator: torch.Generator) -> None:
    """Fill quantised weights: numbers evenly spread over the format, scaled to the variance that others are given."""
    tensors = model.state_dict()
    for name, weight in tensors.items():
        scale = tensors.get(scale_name(name))
        if scale is None:
            continue
        std = initial_std(name, model.config)
        if weight.dtype == torch.uint8:
            weight.random_(0, 256, generator=generator)
            scale[..., 0] = std / _std_of_even(LEVELS + 1)
            scale[..., 1] = LEVELS / 2
        else:
            weight.random_(-127, 128, generator=generator)
            scale.fill_(std / _std_of_even(255))


def _std_of_even(count: int) -> float:
    """Return the standard deviation of so many neighbouring whole numbers, each as likely."""
    return ((count**2 - 1) / 12) ** 0.5
