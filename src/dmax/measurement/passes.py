"""Passes of the real engine, held at a chosen batch, context and number of positions, and timed one by one.

Sequences of random prompts decode a few blocks and begin again; the pool still knows their prompts, so beginning again
costs no prefill. Passes of another size than the one asked for (a sequence's first, the one that closes a block) run
like the others and are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from dmax.decoding import Decoder
from dmax.engine.backends import choose_backend
from dmax.engine.config import EngineConfig
from dmax.engine.engine import LLMEngine
from dmax.engine.kv_cache import page_length_for
from dmax.engine.params import GenerationParams
from dmax.engine.requests import RequestReader
from dmax.engine.scheduler import IDLE_PREFILL_TOKENS
from dmax.measurement.costs import PassShape
from dmax.measurement.shapes import MeasurementError
from dmax.models.transformer import BlockDiffusionLM

_RULES = {
    # Nothing is confident enough, so a pass promotes one mask: a block takes as many passes as it has positions, of
    # which the first carries two blocks.
    1: (1.0, 2),
    # Everything is: every pass decodes a whole block, and stores the one before.
    2: (0.0, 8),
}
"""By the blocks a pass carries: both thresholds of Soft Parallel Decoding, and the blocks of an answer."""


@dataclass(frozen=True)
class Step:
    """One step of the engine that was counted."""

    index: int
    """Its place among all steps of the run."""
    seconds: float
    """From call to return, by the host's clock."""
    device_seconds: float | None
    """From the end of the step before to the end of this one, by the GPU's clock; None where there is none."""


class PassDriver:
    """An engine kept busy with passes of one kind.

    Args:
        model: in eval mode.
        batch: sequences decoded together.
        context: positions of each before the first block that is decoded, whole blocks.
        positions: of a pass and a sequence: a block, or two for passes that also store the block before; a block if not
            given.
        seed: of the prompts.
        wrap: put around the decoder of every sequence.
        eager: whether modules are called one by one where the engine would replay a recording of them, a CUDA graph.

    Raises:
        MeasurementError: such passes do not exist, or do not fit the model.
    """

    def __init__(
        self,
        model: BlockDiffusionLM,
        *,
        batch: int,
        context: int,
        positions: int | None = None,
        seed: int = 0,
        wrap: Callable[[Decoder], Decoder] | None = None,
        eager: bool = False,
    ) -> None:
        length = model.config.usual_block_length
        positions = length if positions is None else positions
        blocks, rest = divmod(positions, length)
        if rest or blocks not in _RULES:
            raise MeasurementError(
                f"positions is {positions}; a pass of this model carries {length} or {2 * length} of a sequence."
            )
        if batch < 1:
            raise MeasurementError(f"batch is {batch}; it must be at least 1.")
        if context < 0 or context % length:
            raise MeasurementError(f"context is {context}; it must be a multiple of {length}, or 0.")
        self.model = model
        self.shape = PassShape(batch, positions, context, length)
        threshold, answer_blocks = _RULES[blocks]
        self._params = GenerationParams(
            decoder="soft-parallel", threshold=threshold, acceptance_threshold=threshold, block_length=length,
            gen_length=answer_blocks * length,
        )  # fmt: skip
        longest = (model.config.max_position_embeddings - self._params.gen_length) // length * length
        if context > longest:
            raise MeasurementError(f"context is {context}; this model has room for {longest} at most.")
        self._reader = RequestReader(model.config, None)
        generator = torch.Generator().manual_seed(seed)
        mask = model.config.mask_token_id
        ids_BT = torch.randint(model.config.vocab_size - 1, (batch, context), generator=generator)
        self._prompts = (ids_BT + (ids_BT >= mask)).tolist()  # any token but the mask, which no prompt may hold
        self._seed, self._wrap = seed, wrap
        self._engine = self._make_engine(eager)
        self._running: set[str] = set()

    def apart(self, wrap: Callable[[Decoder], Decoder] | None = None) -> PassDriver:
        """Make the same passes in an engine of their own, every module called by itself."""
        shape = self.shape
        return PassDriver(
            self.model,
            batch=shape.batch,
            context=shape.context,
            positions=shape.positions,
            seed=self._seed,
            wrap=wrap,
            eager=True,
        )

    def _make_engine(self, eager: bool) -> LLMEngine:
        model, batch = self.model, self.shape.batch
        page_length = page_length_for(model.config.usual_block_length)
        pages = batch * (-(-(self.shape.context + self._params.gen_length) // page_length) + 1)
        config = EngineConfig(
            pages=pages, page_length=page_length, max_batch_size=batch, prefill_tokens=IDLE_PREFILL_TOKENS
        )
        return LLMEngine(model, config=config, backend=choose_backend(model, eager=eager))

    def run(self, count: int, *, watch: Callable[[str], object] | None = None) -> list[Step]:
        """Run ``count`` passes of the kind asked for, and whatever has to run between them.

        Args:
            count: at least 1.
            watch: called with "inputs" as a step begins and with "pause" when it is done, also of steps that are not
                counted.

        Raises:
            MeasurementError: the engine does not come to such passes.
        """
        wanted = self.shape.batch * self.shape.positions
        most = 8 * (count + self.shape.batch) + 64
        counted: list[tuple[int, float]] = []
        ticks = [_tick(self.model.device)]
        while len(counted) < count and len(ticks) <= most:
            self._fill()
            if watch is not None:
                watch("inputs")
            positions, prefilled, seconds = self._step()
            if watch is not None:
                watch("pause")
            ticks.append(_tick(self.model.device))
            if positions == wanted and prefilled == 0:
                counted.append((len(ticks) - 1, seconds))
        if len(counted) < count:
            raise MeasurementError(
                f"of {most} passes too few had {self.shape.positions} positions for each of {self.shape.batch} "
                "sequences; take a smaller batch."
            )
        return [Step(at - 1, seconds, _between(ticks[at - 1], ticks[at])) for at, seconds in counted]

    def _fill(self) -> None:
        """Let sequences that have ended begin again."""
        for index, prompt in enumerate(self._prompts):
            name = str(index)
            if name not in self._running:
                sequence = self._reader.read(name, prompt, self._params, time.perf_counter())
                if self._wrap is not None:
                    sequence = replace(sequence, decoder=self._wrap(sequence.decoder))
                self._running.add(name)
                self._engine.add(sequence)

    def _step(self) -> tuple[int, int, float]:
        """Run a step; return its positions, prompt positions among them, and seconds from call to return."""
        before = self._engine.stats()
        started = time.perf_counter()
        updates = self._engine.step()
        seconds = time.perf_counter() - started
        for update in updates:
            if update.failure is not None:
                raise update.failure
            if update.finished:
                self._running.remove(update.request_id)
        after = self._engine.stats()
        return after.positions - before.positions, after.prefilled - before.prefilled, seconds


def _tick(device: torch.device) -> torch.cuda.Event | None:
    """Mark now on the GPU's clock. Nothing is waited for: an engine that launches ahead goes on doing so."""
    if device.type != "cuda":
        return None
    tick = torch.cuda.Event(enable_timing=True)
    tick.record()
    return tick


def _between(started: torch.cuda.Event | None, ended: torch.cuda.Event | None) -> float | None:
    if started is None or ended is None:
        return None
    ended.synchronize()
    return started.elapsed_time(ended) / 1000
