"""Answers without a cache: the reference loop of :mod:`dmax.decoding.reference` on a model, kept in a sequence's books.

Shape suffixes: T positions, V vocabulary, D hidden, L block positions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dmax.decoding import BlockState, Decoder, ReferencePass, StepResult, decode
from dmax.decoding.contract import ContractError, check_result, tokens_or_none
from dmax.decoding.reference import gumbel_noise
from dmax.decoding.registry import is_built_in
from dmax.engine.outputs import PassRecord, no_numbers
from dmax.engine.sequence import Sequence
from dmax.models.llada2 import LLaDA2


@dataclass(frozen=True)
class _CheckedDecoder:
    """A decoder that is not this package's own: what it gives is checked before anybody reads it."""

    decoder: Decoder
    vocab_size: int

    @property
    def name(self) -> str:
        return self.decoder.name

    @property
    def temperature(self) -> float:
        return self.decoder.temperature

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        result = self.decoder.step(logits, state, noise)
        check_result(result, state, self.name)
        if int(tokens_or_none(result.state, self.vocab_size).min()) < 0:
            raise ContractError(
                f"decoder {self.name!r} gave token ids that are not below {self.vocab_size}, the vocabulary."
            )
        return result


def decode_uncached(model: LLaDA2, sequence: Sequence) -> Iterator[PassRecord]:
    """Decode a sequence to its end, recomputing everything in every pass.

    Yields:
        What each block in flight saw in each pass.

    Raises:
        ContractError: the decoder is somebody's own and broke its contract; it may raise anything else, too.
        NumericalError: the model's logits are NaN.
    """
    config, params = model.config, sequence.params
    decoder = (
        sequence.decoder if is_built_in(sequence.decoder) else _CheckedDecoder(sequence.decoder, config.vocab_size)
    )

    table = model.embedding_table

    def logits_from(embeds_1TD: Tensor, mask_1TT: Tensor, start: int) -> Tensor:
        positions_1T = torch.arange(embeds_1TD.shape[1], device=embeds_1TD.device)[None]
        return model.head(model.read_from(model(embeds_1TD, positions_1T, mask_1TT))[:, start:])

    passes = decode(
        logits_from,
        table if isinstance(table, Tensor) else table(torch.arange(config.vocab_size, device=model.device)),
        decoder,
        list(sequence.tokens),
        mask_token_id=config.mask_token_id,
        eos_token_ids=sequence.stop_rule.certain_ends,
        block_length=sequence.block_length,
        gen_length=params.gen_length,
        rule=sequence.blocks_rule,
        noise=_noise(sequence, model) if decoder.temperature > 0 else None,
    )
    for done in passes:
        records = _take(sequence, done)
        if any(result.confidence.isnan().any() for result in done.results):
            raise no_numbers(sequence.passes, model.dtype)
        yield from records
        if sequence.ending is not None:
            break
    sequence.end(time.perf_counter())


def _noise(sequence: Sequence, model: LLaDA2) -> Callable[[Tensor], Tensor]:
    """Return what draws the noise of a pass, minus infinity for tokens that the sequence may not draw."""
    draw = gumbel_noise(torch.Generator(model.device).manual_seed(sequence.params.seed))
    nucleus = sequence.params.nucleus()

    def noise(logits_1LV: Tensor) -> Tensor:
        noise_1LV = draw(logits_1LV)
        if not nucleus.is_everything:
            nucleus.shut_out(noise_1LV[0], logits_1LV[0], sequence.decoder.temperature, model.config.mask_token_id)
        return noise_1LV

    return noise


def _take(sequence: Sequence, done: ReferencePass) -> list[PassRecord]:
    """Bring a sequence up to date with a pass, and return its records."""
    sequence.begin_pass()
    records = [_record(sequence, done.start, index, result) for index, result in enumerate(done.results)]
    records = [replace(record, final=index < done.final) for index, record in enumerate(records)]
    sequence.revise(sum(len(record.revised) for record in records))
    sequence.update([], records)
    for record in records[: done.final]:
        if sequence.ending is None:
            sequence.close_block(record.tokens)
    return records


def _record(sequence: Sequence, first: int, index: int, result: StepResult) -> PassRecord:
    length = sequence.block_length
    return PassRecord(
        pass_number=sequence.passes,
        block=first // length + index,
        start=first + index * length,
        tokens=result.state.tokens[0].tolist(),
        confidence=result.confidence[0].tolist(),
        promoted=_offsets(result.promoted),
        revised=_offsets(result.revised),
        active=_offsets(result.state.active),
        final=False,
    )


def _offsets(flags_1L: Tensor) -> list[int]:
    return flags_1L[0].nonzero().flatten().tolist()
