"""The one model definition, for every family, training and inference (algorithm.md#the-model).

Shape suffixes: B rows, T positions, S key positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from dmax.models.attention import Attention, KeyValueStore
from dmax.models.config import ConfigError, ModelConfig
from dmax.models.layers import Linear, RMSNorm, RotaryTable, SwiGLU
from dmax.models.masks import block_causal_mask
from dmax.models.moe import BlockLimit, Experts, Router, SparseMLP
from dmax.models.quantized import STORED_AS, QuantizedEmbedding


class DecoderLayer(nn.Module):
    """Pre-norm residual block: attention, then a dense or a sparse feed-forward."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module = (
            SparseMLP(config) if config.is_moe_layer(index) else SwiGLU(config.hidden_size, config.intermediate_size)
        )

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask_B1TS: Tensor | None,
        store: KeyValueStore | None = None,
    ) -> Tensor:
        x_BTD = x_BTD + self.attention(self.input_layernorm(x_BTD), rotary, mask_B1TS, store)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Backbone(nn.Module):
    """Embedding table, layers and final norm (``model.*`` in a checkpoint)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Given its weight, the module draws none: on the meta device that draw alone would import torch._dynamo.
        table_VD = torch.empty(config.vocab_size, config.hidden_size)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, _weight=table_VD)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryTable(config.rotary_dim, config.rope_theta, config.rope_scaling)

    def forward(
        self, embeds_BTD: Tensor, position_ids: Tensor, mask_BTS: Tensor | None, store: KeyValueStore | None = None
    ) -> Tensor:
        rotary = self.rotary(position_ids)
        mask_B1TS = None if mask_BTS is None else mask_BTS[:, None]
        x_BTD = embeds_BTD
        for layer in self.layers:
            x_BTD = layer(x_BTD, rotary, mask_B1TS, store)
        return self.norm(x_BTD)


class BlockDiffusionLM(nn.Module):
    """A diffusion language model of any family."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            tie_embeddings(self)

    def forward(
        self,
        embeds_BTD: Tensor,
        position_ids: Tensor,
        mask_BTS: Tensor | None = None,
        store: KeyValueStore | None = None,
    ) -> Tensor:
        """Compute hidden states after the final norm.

        Args:
            embeds_BTD: ``(B, T, D)`` input embeddings, in the model's dtype.
            position_ids: ``(B, T)`` int64 absolute positions.
            mask_BTS: ``(B or 1, T, T)`` bool, True where a query may attend to a key; None lets all see all.
            store: keeps keys and values between passes, and takes the place of the mask.

        Returns:
            ``(B, T, D)``; :meth:`head` turns the positions that matter into logits.
        """
        return self.model(embeds_BTD, position_ids, mask_BTS, store)

    def read_from(self, hidden_BTD: Tensor) -> Tensor:
        """Return what the tokens at the positions of whole rows, from position 0 on, are read from: ``(B, T, D)``.

        These are the positions' own hidden states or, in a model with shifted logits, those of the positions before.
        Nothing stands before position 0: its token is read from its own (algorithm.md#shifted-logits).
        """
        if not self.config.shift_logits:
            return hidden_BTD
        return torch.cat([hidden_BTD[:, :1], hidden_BTD[:, :-1]], 1)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Look up rows of the input embedding table: int64 of any shape -> the same shape with D appended."""
        return self.model.word_embeddings(token_ids).to(self.dtype)

    @property
    def embedding_table(self) -> Tensor | Callable[[Tensor], Tensor]:
        """The input embeddings ``(V, D)``; where they are quantised, what looks rows up (:meth:`embed`)."""
        table = self.model.word_embeddings
        return self.embed if isinstance(table, QuantizedEmbedding) else table.weight

    def head(self, hidden: Tensor) -> Tensor:
        """Compute logits ``(..., V)`` of hidden states ``(..., D)``, in the model's dtype."""
        return self.lm_head(hidden)

    def limit_experts(self, experts: int) -> None:
        """Let the tokens of a block use at most so many experts of a layer, those that count most for any of them.

        A pass then reads fewer weights, and a model that was not trained so answers differently. To be called before
        engines compute with the model.

        Raises:
            ConfigError: the model has no experts, or not so many, or a token is sent to more.
        """
        if self.config.num_experts is None:
            raise ConfigError("this model has no experts whose number a block could be limited to.")
        self.config = replace(self.config, expert_capacity=experts)
        for router in routers(self):
            router.limit = BlockLimit.of(self.config)

    @torch.inference_mode()
    def logits(self, token_ids: Tensor, block_length: int = 32) -> Tensor:
        """Run the plain uncached block-causal pass over whole sequences that start at position 0.

        Args:
            token_ids: ``(B, T)`` int64.
            block_length: tokens in a block.

        Returns:
            ``(B, T, V)`` logits for the tokens at these positions, in the model's dtype.
        """
        positions_1T = torch.arange(token_ids.shape[1], device=token_ids.device)[None]
        mask_1TT = block_causal_mask(positions_1T, positions_1T, block_length)
        positions_BT = positions_1T.expand(token_ids.shape[0], -1)
        return self.head(self.read_from(self(self.embed(token_ids), positions_BT, mask_1TT)))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What activations are computed in; quantised weights have their own."""
        return self.model.norm.weight.dtype


def tie_embeddings(model: BlockDiffusionLM) -> None:
    """Let the head of a model read the embedding table."""
    table = model.model.word_embeddings
    for name, tensor in {**table._parameters, **table._buffers}.items():
        setattr(model.lm_head, name, tensor)


@torch.no_grad()
def initialize(model: BlockDiffusionLM, generator: torch.Generator) -> BlockDiffusionLM:
    """Fill every weight afresh that is not quantised: normal with :func:`initial_std`, norms one, biases zero."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)
        elif name.endswith(".bias"):
            parameter.zero_()
        elif parameter.dtype not in STORED_AS.values():
            parameter.normal_(0.0, initial_std(name, model.config), generator=generator)
    for router in routers(model):
        router.expert_bias.zero_()
    return model


def initial_std(name: str, config: ModelConfig) -> float:
    """Return the standard deviation of a fresh weight: ``initializer_range``.

    Projections that write into the residual stream are scaled down by sqrt(2 * layers), so that depth does not
    inflate the stream.
    """
    writes_residual = name.endswith(("down_proj", "down_proj.weight", "dense.weight"))
    return config.initializer_range / ((2 * config.num_hidden_layers) ** 0.5 if writes_residual else 1.0)


def routers(model: nn.Module) -> list[Router]:
    """List the routers of a model, first layer first."""
    return [m for m in model.modules() if isinstance(m, Router)]


def expert_stacks(model: nn.Module) -> list[Experts]:
    """List the stacked experts of a model, first layer first."""
    return [m for m in model.modules() if isinstance(m, Experts)]
