"""Floating-point operations of training, and the share of a GPU's peak that they make."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dmax.models.config import ModelConfig

_PEAK_TFLOPS = {"A100": 312.0, "H100": 989.4, "H200": 989.4, "B200": 2250.0}
"""Dense bfloat16 matrix products, by a part of the device's name (NVIDIA's data sheets of the SXM boards)."""


@dataclass(frozen=True)
class ForwardFlops:
    """What the matrix products of one forward pass take."""

    per_token: float
    """Projections, router, feed-forward; of a mixture of experts, those that a token is routed to."""
    per_pair: float
    """Attention, of every pair of positions in a row, seen or not."""
    per_logit_row: float
    """The head, of every supervised position."""

    @classmethod
    def of(cls, config: ModelConfig) -> ForwardFlops:
        attention = config.num_attention_heads * config.head_dim
        key_value = config.num_key_value_heads * config.head_dim
        projections = config.hidden_size * (2 * attention + 2 * key_value)
        dense = 3 * config.hidden_size * config.intermediate_size
        sparse = 0
        if config.num_experts is not None and config.moe_intermediate_size is not None:
            experts = config.num_experts_per_tok + (config.num_shared_experts or 0)
            sparse = config.hidden_size * (3 * experts * config.moe_intermediate_size + config.num_experts)
        layers = config.num_hidden_layers
        weights = layers * projections + sum(sparse if config.is_moe_layer(i) else dense for i in range(layers))
        return cls(2.0 * weights, 4.0 * attention * layers, 2.0 * config.hidden_size * config.vocab_size)

    def of_pass(self, rows: int, length: int, supervised: int) -> float:
        """Count a forward pass over ``rows`` of ``length`` positions, with logits for ``supervised`` of them in all."""
        return rows * length * (self.per_token + length * self.per_pair) + supervised * self.per_logit_row


def peak_flops(device: torch.device) -> float | None:
    """Return operations a second that a device can do in bfloat16; None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for part, peak in _PEAK_TFLOPS.items() if part in name), None)
