"""Head, rule and the embeddings of the next pass over static memory, recorded as CUDA graphs like the forward.

A pass is then two graphs, replayed one behind the other: that of the layers, by how many segments there are, and that
of the decision, by how many blocks. One graph of both would be needed for every pair of the two sizes.

What a pass leaves is copied out of the graph's memory, in one copy: the engine may launch the next pass ahead, and go
back to this one if that was in vain. The next pass over the same blocks takes it in with one copy, too.

Shape suffixes: B blocks, L block positions, D hidden, W numbers for the host.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dmax.decoding import BlockState, StepResult
from dmax.decoding.soft_parallel import SoftParallelDecoder
from dmax.engine.backends.base import Decided, PassInput
from dmax.engine.backends.cuda_graphs import capture, captured_size, captured_sizes
from dmax.kernels.decision import Decision
from dmax.kernels.soft_parallel import decide, soft_embeddings, thresholds_on
from dmax.models.transformer import BlockDiffusionLM

_MOST_CAPTURED = 4096
"""Positions of the largest decision that is captured; their logits take over a gigabyte at LLaDA2's vocabulary."""
_ALIGNED = 16
"""Bytes."""


class StaticDecisions:
    """Decisions over blocks of one length, whatever their thresholds.

    Args:
        model: in eval mode; its weights must stay where they are.
        length: positions of a block.
        limit: blocks of the largest decision that is wanted.
        graphs: whether anything is captured; without, the same kernels are launched one by one.
        memory_pool: of ``torch.cuda.graph_pool_handle``, shared by all graphs of a model.
    """

    def __init__(self, model: BlockDiffusionLM, *, length: int, limit: int, graphs: bool, memory_pool: Any) -> None:
        self._model, self._length = model, length
        self.limit = captured_size(max(1, min(limit, _MOST_CAPTURED // length)))
        """Blocks of the largest decision."""
        self._capture, self._memory_pool = graphs, memory_pool
        self._thresholds = torch.zeros(2, dtype=torch.float32, device=model.device)
        self._loaded: Tensor | None = None
        self._places: dict[int, _Place] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def capture_all(self) -> None:
        """Capture every size there is."""
        for size in captured_sizes(self.limit):
            self._graph(size)

    def decide(self, decoder: SoftParallelDecoder, hidden_BLD: Tensor, given: PassInput) -> Decided:
        """Decide a pass over at most ``limit`` blocks, by a decoder without options that change the rule.

        See :meth:`dmax.engine.backends.base.Backend.decide`.
        """
        known = given.kept if isinstance(given.kept, Blocks) else None
        thresholds = thresholds_on(hidden_BLD.device, decoder.threshold, decoder.acceptance_threshold)
        blocks = self.run(hidden_BLD, given.state, known, thresholds)
        result, embeds_BLD, for_host_BW = blocks.first(hidden_BLD.shape[0], decoder, given.state)
        return Decided(result, PassInput(result.state, embeds_BLD, blocks), for_host_BW)

    def run(self, hidden_BLD: Tensor, state: BlockState, known: Blocks | None, thresholds: Tensor) -> Blocks:
        """Decide a pass over at most ``limit`` blocks.

        Args:
            hidden_BLD: after the final norm.
            state: the blocks before the pass.
            known: what the call before gave for these blocks, if they stand where it left them.
            thresholds: :func:`dmax.kernels.soft_parallel.thresholds_on` the device.

        Returns:
            The pass, in memory of its own; the first B of its blocks are these.
        """
        blocks = hidden_BLD.shape[0]
        place = self._place(captured_size(blocks))
        place.hidden_BLD[:blocks].copy_(hidden_BLD)
        if known is None:
            place.before.load(state)
        else:
            place.before.memory.copy_(known.memory)
        if self._loaded is not thresholds:
            self._thresholds.copy_(thresholds)
            self._loaded = thresholds
        if self._capture:
            self._graph(place.after.size).replay()
        else:
            self._compute(place)
        return place.after.copy()

    def _place(self, size: int) -> _Place:
        if size not in self._places:
            self._places[size] = _Place(self._model, size, self._length)
        return self._places[size]

    def _graph(self, size: int) -> torch.cuda.CUDAGraph:
        if size not in self._graphs:
            place = self._place(size)
            self._graphs[size] = capture(lambda: self._compute(place), self._model.device, self._memory_pool)
        return self._graphs[size]

    def _compute(self, place: _Place) -> None:
        before, after, length = place.before, place.after, self._length
        mask_token_id = self._model.config.mask_token_id
        decide(
            self._model.head(place.hidden_BLD), before.tokens, before.active, before.masked, before.passes,
            before.fallback, self._thresholds, mask_token_id=mask_token_id, out=after.decision,
        )  # fmt: skip
        after.active.copy_(before.active)
        after.fallback.fill_(True)
        after.for_host_BW[:, :length].copy_(after.tokens)
        after.for_host_BW[:, length:-2].copy_(after.decision.revised)
        after.for_host_BW[:, -2].copy_(after.decision.converged)
        after.for_host_BW[:, -1].copy_(after.decision.confidence.sum(-1).view(torch.int32))
        embeds_BLD = soft_embeddings(
            after.tokens, after.decision.mixed, after.decision.candidates[..., None],
            after.decision.confidence[..., None], self._model.model.word_embeddings.weight,
            mask_token_id=mask_token_id, renormalize=True,
        )  # fmt: skip
        after.embeds_BLD.copy_(embeds_BLD)


class Blocks:
    """A pass over some blocks, all of it in one memory, so that one copy moves it.

    Args:
        memory: ``(n,)`` uint8, :meth:`bytes_of` as many.
        size: blocks.
        length: positions of a block.
        hidden: channels.
        dtype: of embeddings.
    """

    def __init__(self, memory: Tensor, size: int, length: int, hidden: int, dtype: torch.dtype) -> None:
        self.memory, self.size = memory, size
        self._rest = length, hidden, dtype
        parts = memory.split(_part_sizes(size, length, hidden, dtype))
        words, for_host, passes, confidence, flags, once, embeds = parts
        self.tokens, candidates = words[: 16 * size * length].view(torch.int64).view(2, size, length).unbind()
        self.passes = passes[: 8 * size].view(torch.int64)
        weights = confidence[: 4 * size * length].view(torch.float32).view(size, length)
        flags_5BL = flags[: 5 * size * length].view(torch.bool).view(5, size, length)
        self.active, self.masked, promoted, revised, mixed = flags_5BL.unbind()
        self.fallback, converged = once[: 2 * size].view(torch.bool).view(2, size).unbind()
        self.decision = Decision(
            self.tokens, self.masked, self.passes, weights, candidates, promoted, revised, mixed, converged
        )
        self.for_host_BW = for_host[: 8 * size * (2 * length + 2)].view(torch.int64).view(size, -1)
        """:attr:`Decided.for_host_BW`."""
        self.embeds_BLD = embeds[: dtype.itemsize * size * length * hidden].view(dtype).view(size, length, hidden)

    @staticmethod
    def bytes_of(size: int, length: int, hidden: int, dtype: torch.dtype) -> int:
        """Count the bytes of the memory."""
        return sum(_part_sizes(size, length, hidden, dtype))

    def copy(self) -> Blocks:
        """Copy it into memory of its own."""
        return Blocks(self.memory.clone(), self.size, *self._rest)

    def load(self, state: BlockState) -> None:
        """Take blocks as they stand; those beyond them stay whatever they were, and mean nothing."""
        blocks = state.tokens.shape[0]
        for own, given in (
            (self.tokens, state.tokens),
            (self.active, state.active),
            (self.masked, state.masked),
            (self.passes, state.passes),
        ):
            own[:blocks].copy_(given)
        if state.fallback is None:
            self.fallback.fill_(True)
        else:
            self.fallback[:blocks].copy_(state.fallback)

    def first(self, blocks: int, decoder: SoftParallelDecoder, state: BlockState) -> tuple[StepResult, Tensor, Tensor]:
        """Return what a pass over ``state`` did to the first blocks: result, embeddings, and the host's part."""
        if blocks == self.size:
            return decoder.after(self.decision, state), self.embeds_BLD, self.for_host_BW
        decision = Decision(*(part[:blocks] for part in self.decision))
        return decoder.after(decision, state), self.embeds_BLD[:blocks], self.for_host_BW[:blocks]


def _part_sizes(size: int, length: int, hidden: int, dtype: torch.dtype) -> list[int]:
    """Count bytes: tokens and candidates; the host's part; passes; confidences; five flags; two flags; embeddings."""
    positions = size * length
    parts = (
        16 * positions, 8 * size * (2 * length + 2), 8 * size, 4 * positions, 5 * positions, 2 * size,
        dtype.itemsize * positions * hidden,
    )  # fmt: skip
    return [math.ceil(part / _ALIGNED) * _ALIGNED for part in parts]


class _Place:
    """What a decision of one size reads and writes."""

    def __init__(self, model: BlockDiffusionLM, size: int, length: int) -> None:
        hidden, dtype, device = model.config.hidden_size, model.dtype, model.device
        self.hidden_BLD = torch.zeros((size, length, hidden), dtype=dtype, device=device)
        self.before, self.after = (
            Blocks(
                torch.zeros(Blocks.bytes_of(size, length, hidden, dtype), dtype=torch.uint8, device=device),
                size, length, hidden, dtype,
            )
            for _ in range(2)
        )  # fmt: skip
