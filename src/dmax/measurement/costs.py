"""Bytes and operations of a pass, counted from shapes and from the experts it touches.

What has to move at least once: every weight a pass uses, the keys and values it attends to, those it writes, and the
embedding rows it reads. Activations stay in caches and are left out, so the share of bandwidth that a pass reaches is
never flattered by them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from dmax.models.config import ModelConfig
from dmax.models.quantized import STORED_AS
from dmax.models.transformer import BlockDiffusionLM

_PLACES = {
    "attention": r"\.attention\.",
    "router": r"\.mlp\.gate\.",
    "experts": r"\.mlp\.experts\.",
    "shared": r"\.mlp\.shared_experts\.",
    "dense": r"\.mlp\.(gate|up|down)_proj\.",
    "head": r"^lm_head\.",
    "embeddings": r"\.word_embeddings\.",
}
"""By part, what the names of its weights have."""


@dataclass(frozen=True)
class PassShape:
    """What a pass runs over."""

    batch: int
    """Sequences."""
    positions: int
    """Positions of one sequence: a block, or two where the pass also stores the one before."""
    context: int
    """Positions before those, all of which are attended to."""
    decoded: int
    """Positions of one sequence whose logits are needed: a block."""


@dataclass(frozen=True)
class Cost:
    """Bytes moved and floating-point operations, by part."""

    bytes: dict[str, int]
    flops: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes.values())

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())


def weights_by_part(config: ModelConfig, touched_experts: float | None = None) -> dict[str, float]:
    """Count the weights that one pass reads, without norms and the embedding table.

    Args:
        config: the model's.
        touched_experts: experts of a layer that get at least one token, the mean over the layers that have any; None
            counts those of a single token.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    attention = width * config.head_dim * (2 * heads + 2 * config.num_key_value_heads)
    sparse = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
    parts = {
        "attention": float(config.num_hidden_layers * attention),
        "router": 0.0,
        "experts": 0.0,
        "shared": 0.0,
        "dense": 3.0 * width * config.intermediate_size * (config.num_hidden_layers - sparse),
        "head": float(width * config.vocab_size),
    }
    if sparse:
        assert config.num_experts is not None and config.moe_intermediate_size is not None
        expert = 3 * width * config.moe_intermediate_size
        touched = config.num_experts_per_tok if touched_experts is None else touched_experts
        parts["router"] = float(sparse * width * config.num_experts)
        parts["experts"] = sparse * touched * expert
        parts["shared"] = float(sparse * (config.num_shared_experts or 0) * expert)
    return parts


def stored_bytes(model: BlockDiffusionLM) -> dict[str, float]:
    """Return the bytes that a weight takes with its share of the scales, by part, the embedding table included."""
    numbers, taken = defaultdict[str, int](int), defaultdict[str, int](int)
    for name, tensor in model.state_dict().items():
        part = next((part for part, places in _PLACES.items() if re.search(places, name)), None)
        is_scale = name.endswith("_scale")
        if part is None or (tensor.ndim < 2 and not is_scale):
            continue
        taken[part] += tensor.numel() * tensor.itemsize
        if not is_scale:
            numbers[part] += tensor.numel() * (2 if tensor.dtype == STORED_AS["int4"] else 1)
    return {part: taken[part] / count for part, count in numbers.items()}


def count_pass(
    config: ModelConfig,
    shape: PassShape,
    itemsize: int,
    touched_experts: float | None,
    stored: Mapping[str, float] | None = None,
) -> Cost:
    """Count what a pass costs.

    Args:
        config: the model's.
        shape: of the pass.
        itemsize: bytes of a number in the cache, and of a weight.
        touched_experts: experts of a layer that get at least one token, counted; None where it was not, then routing
            is taken to be uniform and independent (:func:`uniform_experts`).
        stored: bytes of a weight by part, where they are not ``itemsize`` (:func:`stored_bytes`).
    """
    size = defaultdict(lambda: float(itemsize), stored or {})
    rows = shape.batch * shape.positions
    if touched_experts is None:
        touched_experts = uniform_experts(config, rows)
    read = {part: round(size[part] * count) for part, count in weights_by_part(config, touched_experts).items()}
    cache_width = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * itemsize
    read["cache"] = shape.batch * (shape.context + 2 * shape.positions) * cache_width  # the pass's own: written, read
    read["embeddings"] = round(rows * config.hidden_size * size["embeddings"])
    # A query sees up to the end of its own block, which of two blocks is on average half a block before the end.
    seen = shape.context + (shape.positions + shape.decoded) // 2
    return Cost(read, count_flops(config, rows, shape.batch * shape.decoded, rows * seen))


def count_flops(config: ModelConfig, positions: int, decoded: int, attended: int) -> dict[str, int]:
    """Count floating-point operations of the matrix products of any number of forwards, by part.

    A weight that is active for a token takes two: a product and a sum. Norms, rotary embedding, softmax and choosing
    among logits are left out, as is whatever is computed in vain (padding, masked keys, experts without a token).

    Args:
        config: the model's.
        positions: that went through the layers.
        decoded: those whose logits were computed; others never see the head.
        attended: positions that each of them attended to, summed.
    """
    done = {part: round(2 * positions * count) for part, count in weights_by_part(config).items()}
    done["head"] = 2 * decoded * config.hidden_size * config.vocab_size
    done["attention"] += 4 * attended * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return done


def uniform_experts(config: ModelConfig, tokens: int) -> float:
    """Estimate how many experts get at least one of ``tokens`` tokens, where every expert is as likely."""
    if config.num_experts is None:
        return 0.0
    missed = (1 - config.num_experts_per_tok / config.num_experts) ** tokens
    blocks = -(-tokens // config.routing_block_length)
    most = config.expert_capacity * blocks if config.expert_capacity else config.num_experts
    return min(config.num_experts * (1 - missed), most)
