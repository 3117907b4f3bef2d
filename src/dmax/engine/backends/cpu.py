"""Passes on a CPU: packed copies of small weights, and what ``dmax compile`` has compiled (:mod:`dmax.kernels.cpu`).

Where it is compiled and every module of the model is the package's own, a pass is two calls: all layers, then head,
rule and the embeddings of the next pass. Where a call has no kernel for a model's sizes, or its modules
have hooks, they are called one by one; attention over all spans, experts and rules are single calls still.

Shape suffixes: B blocks, L block positions, N packed positions, V vocabulary, K key/value heads, H query heads,
P positions of the pool, C head channels, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dmax.decoding import BlockState, Decoder, Prediction, SoftParallelDecoder, StepResult
from dmax.decoding.prediction import PredictedDecoder
from dmax.decoding.registry import reads_predictions
from dmax.engine.backends.base import Decided, Noise, PassInput
from dmax.engine.backends.cpu_modules import CPU_KINDS, Compiled
from dmax.engine.backends.cpu_stack import LayerStack
from dmax.engine.backends.packed import Packed, packable
from dmax.engine.backends.swapped import SwappedModel, is_plain
from dmax.engine.backends.torch import Layers, TorchBackend
from dmax.engine.kv_cache import KVCache, SpanStore, packed_positions
from dmax.engine.sequence import Sequence
from dmax.engine.span import Span
from dmax.kernels.cpu import attention, experts, layers, rule
from dmax.kernels.cpu.attention import CpuAttention
from dmax.kernels.cpu.experts import CpuExperts, in_panels
from dmax.kernels.cpu.layers import CpuLayers, LayersSize
from dmax.kernels.cpu.library import compiled_kernels, set_team
from dmax.kernels.cpu.quantized import CpuQuantized
from dmax.kernels.cpu.rule import BlocksBefore, CpuRule
from dmax.machine import processors
from dmax.models.config import ModelConfig
from dmax.models.layers import Linear
from dmax.models.transformer import BlockDiffusionLM


@dataclass(frozen=True)
class CpuKernels:
    """The compiled functions; those that are not written for a model's sizes are None."""

    path: Path
    dtype: torch.dtype
    rule: CpuRule
    attention: CpuAttention | None
    experts: CpuExperts | None
    layers: CpuLayers | None
    quantized: CpuQuantized
    softens: bool
    """Whether :meth:`CpuRule.soften` may be called."""
    reads: bool
    """Whether :meth:`CpuRule.read` may be called."""

    @classmethod
    def load(cls, config: ModelConfig, dtype: torch.dtype, size: LayersSize | None) -> CpuKernels | None:
        """Load what is compiled for this machine; None where nothing is.

        Args:
            config: of the model.
            dtype: of its weights.
            size: of its layers, if the kernel can read them.
        """
        path = compiled_kernels(dtype)
        if path is None:
            return None
        attends = attention.serves(config.head_dim, dtype)
        width, shared = config.moe_intermediate_size, config.num_shared_experts or 0
        chooses = config.num_experts is not None and width is not None
        return cls(
            path=path,
            dtype=dtype,
            rule=CpuRule(path, dtype, config.mask_token_id),
            attention=CpuAttention(path, dtype) if attends else None,
            experts=CpuExperts(path, dtype)
            if chooses and experts.serves(config.hidden_size, cast(int, width), cast(int, width) * shared, dtype)
            else None,
            layers=CpuLayers(path, dtype) if attends and size is not None and layers.serves(size, dtype) else None,
            quantized=CpuQuantized(path, dtype),
            softens=rule.softens(config.hidden_size, dtype),
            reads=rule.reads(config.vocab_size, config.hidden_size, dtype),
        )


class CpuBackend(TorchBackend):
    """Computes passes on a CPU; see :class:`~dmax.engine.backends.base.Backend`.

    Args:
        model: in eval mode. Weights and modules may change between two requests.
    """

    def __init__(self, model: BlockDiffusionLM) -> None:
        super().__init__(model)
        self._stack = LayerStack.of(model)
        self._kernels: CpuKernels | None = None
        self._swapped: SwappedModel | None = None
        self._head = Packed()
        self._sequences: set[Sequence] = set()
        self._weights: Tensor | None = None
        self._load()

    @property
    def name(self) -> str:
        """``cpu-compiled`` where ``dmax compile`` has been run, else ``cpu``."""
        return "cpu" if self._kernels is None else "cpu-compiled"

    def open(self, pages: int, page_length: int, slots: int) -> None:
        """Provide a KV cache, take what has been compiled since the last engine began, and lay out weights for it."""
        super().open(pages, page_length, slots)
        self._load()
        threads = min(torch.get_num_threads(), processors())
        if threads < torch.get_num_threads():  # torch asks for no control group's quota
            torch.set_num_threads(threads)
        if self._kernels is not None:
            set_team(self._kernels.path, threads)
        self._sequences = set()
        with torch.no_grad():
            self._look()

    def embed(self, state: BlockState) -> Tensor:
        """Compute what a pass reads at blocks in this state."""
        mix, table_VD = state.mix, self._model.model.word_embeddings.weight
        kernels = self._kernels_for(table_VD)
        if kernels is None or not kernels.softens or mix is None:
            return super().embed(state)
        if not mix.renormalize or mix.token_ids.shape[-1] > 1:
            return super().embed(state)
        of_positions = (state.tokens.flatten(), mix.where.flatten(), mix.token_ids.flatten(), mix.weights.flatten())
        return kernels.rule.soften(*of_positions, table_VD).view(*state.tokens.shape, -1)

    def forward(self, spans: list[Span], inputs: list[Tensor]) -> Tensor:
        """Run the layers over all spans, packed one behind the other."""
        # Looking through all modules takes as long as a layer, so it is done anew only once a sequence is new here.
        sequences = {span.sequence for span in spans}
        if not sequences <= self._sequences:
            self._look()
        self._sequences = sequences
        return super().forward(spans, inputs)

    def decide(self, decoder: Decoder, hidden_BLD: Tensor, blocks: PassInput, noise: Noise | None = None) -> Decided:
        """Apply head and decoder: in one call, the decoder alone in one, or its look at the logits."""
        kernels, state = self._kernels_for(hidden_BLD), blocks.state
        if kernels is None or not reads_predictions(decoder):
            return super().decide(decoder, hidden_BLD, blocks, noise)
        if not (type(decoder) is SoftParallelDecoder and decoder.is_common):
            result = _decide_from_prediction(decoder, kernels.rule, self.modules.head(hidden_BLD), state)
            return Decided(result, PassInput(result.state))
        before = _before(decoder, state)
        head = self._head_panels(hidden_BLD) if kernels.reads and decoder.renormalize else None
        if head is None:
            result = decoder.after(kernels.rule.decide(self.modules.head(hidden_BLD), before), state)
            return Decided(result, PassInput(result.state))
        table_VD = self._model.model.word_embeddings.weight
        decision, embeds_BLD = kernels.rule.read(hidden_BLD.contiguous(), head, table_VD, before)
        result = decoder.after(decision, state)
        return Decided(result, PassInput(result.state, embeds_BLD))

    @property
    def modules(self) -> BlockDiffusionLM:
        """The model whose modules are called: this backend's in place of the model's."""
        if self._swapped is None:
            self._swapped = SwappedModel(self._model, CPU_KINDS, self._prepare)
        return self._swapped.model

    def _prepare(self, module: nn.Module) -> None:
        kernels = self._kernels
        module.prepare(Compiled() if kernels is None else Compiled(kernels.experts, kernels.quantized))  # type: ignore[operator]

    def _load(self) -> None:
        """Take what is compiled for the model's present dtype."""
        before, model = self._kernels, self._model
        compiled = compiled_kernels(model.dtype) is not None
        stays = before.dtype == model.dtype if compiled and before is not None else compiled == (before is not None)
        if self._stack is None or not self._stack.is_complete():
            self._stack, stays = LayerStack.of(model), False
        if not stays:
            self._kernels = CpuKernels.load(
                model.config, model.dtype, None if self._stack is None else self._stack.size
            )
            self._swapped = None

    def _look(self) -> None:
        """Find out whether the modules are those of before, and whether all layers can go in one call."""
        if self._swapped is not None and not self._swapped.is_current():
            self._swapped = self._planned = None
        weights = None
        if self._kernels is not None and self._kernels.layers is not None and self._stack is not None:
            assert self._cache is not None
            weights = self._stack.weights(self._cache.keys)
        if weights is not self._weights:
            self._weights, self._planned = weights, None

    def _kernels_for(self, x: Tensor) -> CpuKernels | None:
        kernels = self._kernels
        return kernels if kernels is not None and x.dtype == kernels.dtype else None

    def _plan(self, spans: list[Span]) -> Layers:
        kernels, cache = self._kernels, self._cache
        if kernels is None or kernels.attention is None:
            return super()._plan(spans)
        assert cache is not None
        if self._weights is None:
            return partial(self._by_modules, FusedSpans(cache, kernels.attention, spans))
        assert kernels.layers is not None and self._stack is not None
        num_positions = sum(span.num_positions for span in spans)
        plan = kernels.attention.plan(spans, cache.page_length)
        angles = self._stack.angles(max(span.end for span in spans))
        pool = cache.keys, cache.values
        return kernels.layers.plan(self._stack.size, self._weights, num_positions, plan, angles, pool)

    def _head_panels(self, x: Tensor) -> Tensor | None:
        """Return the head's weight as the kernel reads it, copied anew when it has changed; None if it may not."""
        model = self._model
        head = model.lm_head
        if (
            type(model) is not BlockDiffusionLM
            or "head" in vars(model)
            or type(head) is not Linear
            or not is_plain(head)
        ):
            return None
        if not packable(x, head.weight) or model.model.word_embeddings.weight.dtype != x.dtype:
            return None
        return self._head.copy(x.dtype, (head.weight,), lambda _: in_panels(head.weight.detach()[None]))


class FusedSpans(SpanStore):
    """The spans of one pass, all attended to by one call a layer."""

    def __init__(self, cache: KVCache, attention: CpuAttention, spans: list[Span]) -> None:
        self._cache = cache
        self._attend = attention.plan(spans, cache.page_length)
        self.position_ids = packed_positions(spans, cache.keys.device)

    def attend(self, layer: int, q_1HNC: Tensor, k_1KNC: Tensor, v_1KNC: Tensor) -> Tensor:
        """Store keys and values, and let every span attend to what it may see: ``(1, H, N, C)``."""
        q_NHC, k_NKC, v_NKC = (heads[0].transpose(0, 1) for heads in (q_1HNC, k_1KNC, v_1KNC))
        keys_1KPC, values_1KPC = self._cache.layers[layer]
        return self._attend(q_NHC, k_NKC, v_NKC, keys_1KPC[0], values_1KPC[0]).transpose(0, 1)[None]


def _before(decoder: SoftParallelDecoder, state: BlockState) -> BlocksBefore:
    fallback_B = _all_true(state.passes.shape[0]) if state.fallback is None else state.fallback
    return BlocksBefore(
        state.tokens.contiguous(),
        state.active.contiguous(),
        state.masked.contiguous(),
        state.passes,
        fallback_B,
        decoder.threshold,
        decoder.acceptance_threshold,
    )


@lru_cache(maxsize=64)
def _all_true(count: int) -> Tensor:
    """Return flags that are never written to; making them anew in every pass takes time."""
    return torch.ones(count, dtype=torch.bool)


def _decide_from_prediction(
    decoder: PredictedDecoder, rule: CpuRule, logits_BLV: Tensor, state: BlockState
) -> StepResult:
    tokens_BL, confidence_BL = rule.predict(logits_BLV)
    return decoder.decide(Prediction(tokens_BL, confidence_BL, tokens_BL[..., None], confidence_BL[..., None]), state)
