"""The engine: requests in, blocks out; every pass carries all sequences that can use it.

A step is one forward. It carries the blocks in flight of every running sequence (with those before them that have just
become final) and, within a budget, chunks of the prompts of sequences that wait to run. Sequences stand at
different blocks and passes, under different decoders; each converges, commits and ends by itself.

On a GPU the next pass is launched before the host has seen what the last one decided, where it is likely that every
block goes on: it is computed from the state on the device. If a block has ended after all, the pass is thrown away;
nothing that it wrote is read, since the passes that follow write the same positions again.

Shape suffixes: B rows, L block positions, N packed positions, D hidden, W numbers for the host.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dmax.engine.backends import Backend, Decided, choose_backend
from dmax.engine.decode_batch import DecodeBatch
from dmax.engine.outputs import EngineStats, RequestUpdate
from dmax.engine.page_allocator import PagePool
from dmax.engine.requests import output_of
from dmax.engine.scheduler import Scheduler
from dmax.engine.sequence import Sequence
from dmax.engine.span import Span
from dmax.models.llada2 import LLaDA2


class Arriving:
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
        """The tensors, on the CPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        parts = self._flat.cpu().split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


@dataclass(frozen=True)
class _Pass:
    """A pass that is launched: what decoders made of it, and what of that is on its way to the host."""

    results: list[tuple[DecodeBatch, Decided]]
    arriving: Arriving


class EngineCore:
    """Runs sequences over one model and one key/value pool. Not thread-safe: one thread adds, steps and aborts.

    Args:
        model: in eval mode.
        pages: size of the pool.
        page_length: positions of a page; pages are reused between sequences whose block length divides it.
        max_batch_size: most sequences that run together.
        prefill_tokens: most prompt positions that one step carries while others decode.
        reuse_prefixes: whether sequences that begin alike share pages.
        record_passes: whether every pass of every sequence is recorded, or only where params ask for it.
        backend: computes the passes; no other engine uses it meanwhile. Chosen for the model by default.
        launch_ahead: whether passes are launched before the host has seen the last one; by default on a GPU.
    """

    def __init__(
        self,
        model: LLaDA2,
        *,
        pages: int,
        page_length: int,
        max_batch_size: int,
        prefill_tokens: int,
        reuse_prefixes: bool = True,
        record_passes: bool = False,
        backend: Backend | None = None,
        launch_ahead: bool | None = None,
    ) -> None:
        self.model = model
        self.record_passes = record_passes
        self.counters = EngineStats()
        self.pool = PagePool(pages)
        self.scheduler = Scheduler(self.pool, page_length, max_batch_size, prefill_tokens, reuse_prefixes)
        self.backend = backend or choose_backend(model)
        self.backend.open(pages, page_length, max_batch_size)
        self._page_length = page_length
        self._batches: dict[Hashable, DecodeBatch] = {}
        self._launches_ahead = model.device.type == "cuda" if launch_ahead is None else launch_ahead
        self._ahead: _Pass | None = None

    def add(self, sequence: Sequence) -> None:
        """Queue a request."""
        self.scheduler.add(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Forget a request, wherever it stands; its pages are free from now on."""
        self._discard()
        self._leave([sequence])
        self.scheduler.remove(sequence)

    def prepare(self, block_length: int) -> None:
        """Do now what forwards over blocks of this length would otherwise do when they first come up."""
        self.backend.warm_up(block_length)

    def busy(self) -> bool:
        """Whether there is anything to do."""
        return self.scheduler.busy()

    @torch.inference_mode()
    def step(self) -> list[RequestUpdate]:
        """Run one forward for all sequences that have work in it.

        Returns:
            What it did to the sequences that decode, one update each.
        """
        given_up: list[RequestUpdate] = []
        chunks: list[Span] = []
        current, self._ahead = self._ahead, None
        if current is None:
            plan = self.scheduler.plan()
            chunks = plan.chunks
            self._leave(plan.preempted, pause=True)
            given_up = self._start(plan.starting)
            blocks = self._read(given_up)
            if not blocks and not chunks:
                return given_up
            current = self._launch(chunks, blocks, given_up)
        if self._launches_ahead and not chunks and self._will_go_on(current):
            self._launch_ahead(current)
        landed = self._land(current, given_up)
        for chunk in chunks:
            self.scheduler.stored(chunk.sequence, chunk.end)
        self._end([sequence for sequence, _ in landed if sequence.ended])
        return given_up + [_whole(sequence, update) for sequence, update in landed]

    def stats(self) -> EngineStats:
        """Where the engine stands now."""
        return replace(
            self.counters,
            backend=self.backend.name,
            waiting=len(self.scheduler.waiting),
            running=len(self.scheduler.admitted),
            pages=self.pool.pages,
            pages_held=self.pool.held,
            pages_cached=self.pool.cached,
            prefix_queries=self.pool.queries,
            prefix_hits=self.pool.hits,
            preemptions=self.scheduler.preemptions,
        )

    def _launch(self, chunks: list[Span], blocks: dict[DecodeBatch, Tensor], given_up: list[RequestUpdate]) -> _Pass:
        """Forward and decisions, of which the host sees nothing yet; failed sequences go to ``given_up``."""
        hidden_ND = self._forward(chunks, blocks)
        results: list[tuple[DecodeBatch, Decided]] = []
        for_host: list[Tensor] = []
        for batch, hidden_BLD in zip(blocks, self._split(list(blocks), hidden_ND), strict=True):
            try:
                result, for_host_BW = batch.step(hidden_BLD, self.record_passes)
            except Exception as error:
                given_up += self._give_up(batch.rows, error)
                continue
            results.append((batch, result))
            for_host.append(for_host_BW)
        return _Pass(results, Arriving(for_host))

    def _land(self, current: _Pass, given_up: list[RequestUpdate]) -> list[tuple[Sequence, RequestUpdate]]:
        """Bring sequences up to date with a pass, once the host can see it."""
        landed: list[tuple[Sequence, RequestUpdate]] = []
        for (batch, result), on_host_BW in zip(current.results, current.arriving.wait(), strict=True):
            try:
                landed += zip(tuple(batch.rows), batch.take(result, on_host_BW), strict=True)
            except Exception as error:
                given_up += self._give_up(batch.rows, error)
        if not all(batch.stands_at(result) for batch, result in current.results):
            self._discard()
        return landed

    def _will_go_on(self, current: _Pass) -> bool:
        """Tell whether no sequence waits, and every block is likely to go on after this pass."""
        return self.scheduler.settled() and all(batch.will_go_on() for batch, _ in current.results)

    def _launch_ahead(self, current: _Pass) -> None:
        """Launch the pass behind this one, as if all its blocks went on."""
        for batch, result in current.results:
            batch.assume(result)
        self._ahead = self._launch([], {batch: batch.embeddings() for batch, _ in current.results}, [])
        self.counters.ahead += 1

    def _discard(self) -> None:
        """Forget the pass that was launched ahead, if there is one."""
        if self._ahead is not None:
            self.counters.discarded += 1
            self._ahead = None

    def _start(self, starting: list[Sequence]) -> list[RequestUpdate]:
        """Begin to decode sequences; gives those of which their decoder made that impossible."""
        given_up: list[RequestUpdate] = []
        for key, rows in _by_decoding(starting).items():
            batch = self._batch_of(key, rows[0])
            try:
                batch.add(rows)
            except Exception as error:
                given_up += self._give_up([*batch.rows, *rows], error)
        return given_up

    def _read(self, given_up: list[RequestUpdate]) -> dict[DecodeBatch, Tensor]:
        """What the next pass reads at all blocks in flight, by batch; sequences without it go to ``given_up``."""
        blocks: dict[DecodeBatch, Tensor] = {}
        for batch in list(self._batches.values()):
            try:
                blocks[batch] = batch.embeddings()
            except Exception as error:
                given_up += self._give_up(batch.rows, error)
        return blocks

    def _give_up(self, rows: list[Sequence], error: Exception) -> list[RequestUpdate]:
        """End the sequences of a decoder that failed, which can only be one of somebody's own; the others go on."""
        updates = [row.fail(error) for row in rows]
        self._end(list(rows))
        return updates

    def _end(self, rows: list[Sequence]) -> None:
        now = time.perf_counter()
        self._leave(rows)
        for row in rows:
            row.end(now)
            self.scheduler.remove(row)

    def _forward(self, chunks: list[Span], blocks: dict[DecodeBatch, Tensor]) -> Tensor:
        """Hidden states of all blocks in flight, ``(sum of L, D)`` in the order of the batches and their rows."""
        rows = [row for batch in blocks for row in batch.rows]
        spans = [*chunks]
        for row in rows:
            block_start = row.block_start
            spans.append(Span.of(row, min(row.stored, block_start), block_start, row.block_end, self._page_length))
        self._count(chunks, spans)
        hidden_ND = self.backend.forward(spans, list(blocks.values()))
        for row in rows:
            if row.stored < row.block_start:
                self.scheduler.stored(row, row.block_start)
        return hidden_ND

    def _count(self, chunks: list[Span], spans: list[Span]) -> None:
        counters = self.counters
        counters.steps += 1
        counters.prefilled += sum(chunk.num_positions for chunk in chunks)
        for span in spans:
            counters.positions += span.num_positions
            counters.decoded += span.end - span.blocks_start
            # Every block sees up to its own end, so a position sees as many as the mean of the ends.
            counters.attended += span.num_positions * (span.start + span.end + span.block_length) // 2

    @staticmethod
    def _split(batches: list[DecodeBatch], hidden_ND: Tensor) -> Iterator[Tensor]:
        parts = [hidden_ND] if len(batches) == 1 else hidden_ND.split([batch.positions for batch in batches])
        for batch, part_ND in zip(batches, parts, strict=True):
            yield part_ND.reshape(-1, batch.block_length, part_ND.shape[-1])

    def _batch_of(self, key: Hashable, row: Sequence) -> DecodeBatch:
        """Return the batch of sequences that decode like this one."""
        if key not in self._batches:
            self._batches[key] = DecodeBatch(self.model, self.backend, row.decoder, row.params.block_length)
        return self._batches[key]

    def _leave(self, rows: Iterable[Sequence], *, pause: bool = False) -> None:
        for key, leaving in _by_decoding(rows).items():
            batch = self._batches.get(key)
            if batch is not None:
                batch.remove(leaving, pause=pause)
                if not batch.rows:
                    del self._batches[key]


def _whole(row: Sequence, update: RequestUpdate) -> RequestUpdate:
    """Put the answer of a sequence that has one into its last update."""
    if row.ending is None:
        return update
    try:
        return replace(update, output=output_of(row))
    except Exception as error:  # a decoder of somebody's own, whose settings cannot be copied
        return replace(update, failure=error)


def _by_decoding(rows: Iterable[Sequence]) -> dict[Hashable, list[Sequence]]:
    """Sequences by what lets them step together."""
    batches: dict[Hashable, list[Sequence]] = {}
    for row in rows:
        batches.setdefault(row.decoding(), []).append(row)
    return batches
