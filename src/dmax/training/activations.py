"""Bytes that a training pass keeps for its backward pass, operation by operation as the model defines them.

They are added up by hand because a pass on the meta device cannot be measured: selecting the supervised positions
depends on values (``nonzero`` has no meta kernel), grouped matmuls refuse float32 there, and it says nothing of what
attention keeps on a GPU. By hand the sum is within 3 % of what PyTorch saves on a CPU (tests hold it to 15 %).

Single letters are the shape suffixes of :mod:`dmax.models`: T positions of all rows, D hidden, H query heads, K
key/value heads, C head channels, A experts of a token, P rows of the grouped matmuls, F expert width.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmax.models.config import ModelConfig

_FLOAT, _INDEX = 4, 8
_GROUP_ROWS = 32
"""In training, the rows of an expert are filled up to a multiple of this (see :mod:`dmax.models.moe`)."""


@dataclass(frozen=True)
class BatchShape:
    """A batch as the model reads it."""

    rows: int
    length: int
    """Of ``[noisy | clean]``."""
    supervised: int
    """Positions with logits, over all rows."""

    @property
    def positions(self) -> int:
        return self.rows * self.length


def saved_bytes(config: ModelConfig, shape: BatchShape, item: int, device: str, *, recompute: bool) -> int:
    """Count bytes of everything kept from the embeddings to the final norm.

    Args:
        config: of the model.
        shape: of the batch.
        item: bytes of a number in the dtype of the computation.
        device: ``cuda`` or ``cpu``.
        recompute: whether layers keep their inputs only, and one at a time is computed again.
    """
    layers = [_layer(config, shape, item, device, config.is_moe_layer(i)) for i in range(config.num_hidden_layers)]
    stream = shape.positions * config.hidden_size * item
    kept = len(layers) * stream + max(layers) if recompute else sum(layers)
    return kept + _norm(shape.positions * config.hidden_size, item) + shape.supervised * config.hidden_size * item


def loss_bytes(config: ModelConfig, shape: BatchShape) -> int:
    """Count bytes of logits, their log-softmax, and the gradients of both: four float32 tables."""
    return 4 * _FLOAT * shape.supervised * config.vocab_size


def working_bytes(config: ModelConfig, shape: BatchShape, item: int, device: str) -> int:
    """Count bytes of the largest gradients at one time in a layer's backward pass, less what it has let go."""
    if device == "cpu":  # of the softmax's output and input; all that came after attention is gone
        pairs = shape.rows * config.num_attention_heads * shape.length**2
        gone = _feed_forward(config, shape, item, config.is_moe_layer(config.num_hidden_layers - 1))
        return max(0, pairs * 2 * item - gone)
    width = max(config.intermediate_size, _sorted_rows(config, shape) * config.hidden_size // shape.positions)
    return 3 * item * shape.positions * width


def _layer(config: ModelConfig, shape: BatchShape, item: int, device: str, is_sparse: bool) -> int:
    tokens, hidden = shape.positions, config.hidden_size
    norms = 2 * (_norm(tokens * hidden, item) + tokens * hidden * item)  # and their outputs, which projections keep
    return norms + _attention(config, shape, item, device) + _feed_forward(config, shape, item, is_sparse)


def _norm(size: int, item: int) -> int:
    """Count the input in float32 and the scaled input; in float32 the input is the residual stream itself."""
    return size * (_FLOAT + item)


def _attention(config: ModelConfig, shape: BatchShape, item: int, device: str) -> int:
    tokens = shape.positions
    query = tokens * config.num_attention_heads * config.head_dim
    key_value = tokens * config.num_key_value_heads * config.head_dim
    fused = item * (query + 2 * key_value)
    normed = _norm(query + key_value, item) if item < _FLOAT else item * (query + key_value)
    tables = 4 * item * tokens * config.rotary_dim
    pairs = shape.rows * shape.length**2
    if device == "cpu":  # scores by plain matmuls: their softmax, the inverted mask; copies of q, k, v
        scores = pairs * (config.num_attention_heads * item + 1)
        return fused + normed + tables + scores + item * (2 * query + 2 * key_value)
    # A fused kernel: q, k and v for every query head, the output, a log-sum a query, and the mask as a bias.
    sums = _FLOAT * tokens * config.num_attention_heads
    return fused + normed + tables + 4 * item * query + sums + item * pairs


def _feed_forward(config: ModelConfig, shape: BatchShape, item: int, is_sparse: bool) -> int:
    return _sparse(config, shape, item) if is_sparse else 4 * item * shape.positions * config.intermediate_size


def _sparse(config: ModelConfig, shape: BatchShape, item: int) -> int:
    assert config.num_experts is not None and config.moe_intermediate_size is not None
    tokens, hidden, width = shape.positions, config.hidden_size, config.moe_intermediate_size
    slots = tokens * config.num_experts_per_tok
    rows = _sorted_rows(config, shape)
    router = tokens * ((hidden * _FLOAT if item < _FLOAT else 0) + config.num_experts * _FLOAT)
    indices = slots * (5 * _INDEX + 3 * _FLOAT) + rows * _INDEX
    experts = item * (rows * (hidden + 4 * width) + slots * hidden)
    shared = 4 * item * tokens * width * (config.num_shared_experts or 0)
    return router + indices + experts + shared


def _sorted_rows(config: ModelConfig, shape: BatchShape) -> int:
    if config.num_experts is None:
        return 0
    return shape.positions * config.num_experts_per_tok + config.num_experts * (_GROUP_ROWS - 1)
