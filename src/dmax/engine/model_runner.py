"""Runs passes: the blocks in flight of all sequences that decode, with chunks of the prompts of those that wait.

Sequences stand at different blocks and passes, under different decoders; each converges, commits and ends by itself.

On a GPU the next pass is launched before the host has seen what the last one decided, where it is likely that every
block goes on: it is computed from the state on the device. If a block has ended after all, the pass is thrown away;
nothing that it wrote is read, since the passes that follow write the same positions again.

Shape suffixes: B blocks in flight, L block positions, N packed positions, D hidden, W numbers for the host.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dmax.engine.backends import Backend, Decided
from dmax.engine.decode_batch import DecodeBatch
from dmax.engine.outputs import EngineStats, RequestUpdate
from dmax.engine.sequence import Sequence
from dmax.engine.span import Span
from dmax.models.transformer import BlockDiffusionLM


class _Arriving:
    """Tensors on their way to the host: the one place of a step where it waits for the device.

    Args:
        parts: int64, on one device.
    """

    def __init__(self, parts: list[Tensor]) -> None:
        self._shapes = [part.shape for part in parts]
        self._arrived: torch.cuda.Event | None = None
        flat = [part.flatten() for part in parts] or [torch.empty(0)]
        self._flat = flat[0] if len(flat) == 1 else torch.cat(flat)
        if self._flat.is_cuda:
            on_host = torch.empty(self._flat.shape, dtype=self._flat.dtype, pin_memory=True)
            self._flat = on_host.copy_(self._flat, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> list[Tensor]:
        """Return the tensors, on the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        parts = self._flat.cpu().split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


@dataclass(frozen=True)
class _Pass:
    """A pass that is launched: what decoders made of it, and what of that is on its way to the host."""

    results: list[tuple[DecodeBatch, Decided]]
    arriving: _Arriving


class ModelRunner:
    """Launches passes and brings sequences up to date with what they decided.

    Args:
        model: in eval mode.
        backend: computes the passes; it is open.
        page_length: positions of a page.
        record_passes: whether every pass of every sequence is recorded, or only where params ask for it.
        counters: of the engine; what passes cost is added to them.
    """

    def __init__(
        self, model: BlockDiffusionLM, backend: Backend, page_length: int, *, record_passes: bool, counters: EngineStats
    ) -> None:
        self._model = model
        self._backend = backend
        self._page_length = page_length
        self._record_passes = record_passes
        self._counters = counters
        self._batches: dict[Hashable, DecodeBatch] = {}
        self._launched: _Pass | None = None
        self._failed: list[tuple[Sequence, RequestUpdate]] = []

    @property
    def is_launched(self) -> bool:
        """Whether a pass is under way that has not landed."""
        return self._launched is not None

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Begin to decode sequences whose prompts are stored; those whose decoder fails land with an error."""
        for key, alike in _by_decoding(sequences).items():
            batch = self._batch_of(key, alike[0])
            try:
                batch.add(alike)
            except Exception as error:
                self._fail([*batch.sequences, *alike], error)

    def remove(self, sequences: Iterable[Sequence], *, pause: bool = False) -> None:
        """Let sequences go; ``pause`` leaves them their blocks, so that they can be added again."""
        for key, leaving in _by_decoding(sequences).items():
            batch = self._batches.get(key)
            if batch is not None:
                batch.remove(leaving, pause=pause)
                if not batch.sequences:
                    del self._batches[key]

    def launch(self, chunks: list[Span]) -> list[Span]:
        """Launch a pass over chunks of prompts and all blocks in flight.

        Returns:
            What it computes; empty where there is nothing to do. The final tokens in it are stored once it has run.
        """
        blocks = self._blocks_in_flight()
        if not blocks and not chunks:
            return []
        spans = [*chunks, *(self._span(sequence) for batch in blocks for sequence in batch.sequences)]
        self._count(chunks, spans)
        self._launched = self._decide(blocks, self._backend.forward(spans, list(blocks.values())))
        return spans

    def land(self, *, launch_next: bool) -> list[tuple[Sequence, RequestUpdate]]:
        """Bring sequences up to date with the pass that is launched, once the host can see it.

        Args:
            launch_next: whether the pass behind it may be launched before that, where all blocks are likely to go on.

        Returns:
            Every sequence that decodes with what the pass did to it, and those that failed since the last call.
        """
        current, self._launched = self._launched, None
        landed: list[tuple[Sequence, RequestUpdate]] = []
        if current is not None:
            if launch_next and current.results and all(batch.will_go_on() for batch, _ in current.results):
                self._launch_ahead(current)
            for (batch, result), on_host_BW in zip(current.results, current.arriving.wait(), strict=True):
                try:
                    landed += zip(tuple(batch.sequences), batch.take(result, on_host_BW), strict=True)
                except Exception as error:
                    self._fail(batch.sequences, error)
            if not all(batch.stands_at(result) for batch, result in current.results):
                self.discard()
        failed, self._failed = self._failed, []
        return failed + landed

    def discard(self) -> None:
        """Forget the pass that was launched ahead, if there is one."""
        if self._launched is not None:
            self._counters.discarded += 1
            self._launched = None

    def _blocks_in_flight(self) -> dict[DecodeBatch, Tensor]:
        """Return ``(B, L, D)``, what the next pass reads at the blocks in flight, by batch."""
        blocks: dict[DecodeBatch, Tensor] = {}
        for batch in list(self._batches.values()):
            try:
                blocks[batch] = batch.embeddings()
            except Exception as error:
                self._fail(batch.sequences, error)
        return blocks

    def _span(self, sequence: Sequence) -> Span:
        """Take the blocks in flight of a sequence, with those before them that are not stored yet."""
        block_start = sequence.block_start
        start = min(sequence.stored, block_start)
        return Span.of(sequence, start, block_start, sequence.block_end, self._page_length)

    def _decide(self, blocks: dict[DecodeBatch, Tensor], hidden_ND: Tensor) -> _Pass:
        """Apply decoders to hidden states, ``(sum of B * L, D)``; the host sees nothing of it yet."""
        results: list[tuple[DecodeBatch, Decided]] = []
        for_host: list[Tensor] = []
        for batch, hidden_BLD in zip(blocks, self._split(list(blocks), hidden_ND), strict=True):
            try:
                result, for_host_BW = batch.step(hidden_BLD, self._record_passes)
            except Exception as error:
                self._fail(batch.sequences, error)
                continue
            results.append((batch, result))
            for_host.append(for_host_BW)
        return _Pass(results, _Arriving(for_host))

    def _launch_ahead(self, current: _Pass) -> None:
        """Launch the pass behind this one, as if all its blocks went on."""
        for batch, result in current.results:
            batch.assume(result)
        self.launch([])
        self._counters.ahead += 1

    def _fail(self, sequences: list[Sequence], error: Exception) -> None:
        """Give up the sequences of a decoder that failed, which only a third-party one does; others go on."""
        self._failed += [(sequence, sequence.fail(error)) for sequence in sequences]
        self.remove(list(sequences))

    def _count(self, chunks: list[Span], spans: list[Span]) -> None:
        counters = self._counters
        counters.steps += 1
        counters.prefilled += sum(chunk.num_positions for chunk in chunks)
        for _, _, start, blocks_start, end, block_length in spans:
            counters.positions += end - start
            counters.decoded += end - blocks_start
            # Every block sees up to its own end, so a position sees as many as the mean of the ends.
            counters.attended += (end - start) * (start + end + block_length) // 2

    @staticmethod
    def _split(batches: list[DecodeBatch], hidden_ND: Tensor) -> Iterator[Tensor]:
        parts = [hidden_ND] if len(batches) == 1 else hidden_ND.split([batch.positions for batch in batches])
        for batch, part_ND in zip(batches, parts, strict=True):
            yield part_ND.reshape(-1, batch.block_length, part_ND.shape[-1])

    def _batch_of(self, key: Hashable, sequence: Sequence) -> DecodeBatch:
        """Return the batch of sequences that decode like this one."""
        if key not in self._batches:
            block_length = sequence.block_length
            self._batches[key] = DecodeBatch(self._model, self._backend, sequence.decoder, block_length)
        return self._batches[key]


def _by_decoding(sequences: Iterable[Sequence]) -> dict[Hashable, list[Sequence]]:
    """Group sequences by what lets them step together."""
    batches: dict[Hashable, list[Sequence]] = {}
    for sequence in sequences:
        batches.setdefault(sequence.decoding(), []).append(sequence)
    return batches
