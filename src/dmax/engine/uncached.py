"""Answers without a cache: the loop of :mod:`dmax.decoding.reference` on a model, its results put into a sequence.

Shape suffixes: T positions, N of them in flight, V vocabulary, D hidden, L block positions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dmax.decoding import BlockState, Decoder, ReferencePass, StepResult, decode
from dmax.decoding.constrained import ConstrainedDecoder
from dmax.decoding.contract import ContractError, check_result, tokens_or_none
from dmax.decoding.reference import gumbel_noise
from dmax.decoding.registry import decides
from dmax.engine.logprobs import token_logprobs
from dmax.engine.outputs import PassRecord, nan_logits
from dmax.engine.sequence import Sequence
from dmax.models.llada2 import LLaDA2


@dataclass(frozen=True)
class _CheckedDecoder:
    """A third-party decoder, whose results are checked."""

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
            raise ContractError.of_tokens(self.name, self.vocab_size)
        return result


def decode_uncached(model: LLaDA2, sequence: Sequence) -> Iterator[PassRecord]:
    """Decode a sequence to its end, recomputing everything in every pass.

    Yields:
        What each block in flight saw in each pass.

    Raises:
        ContractError: a third-party decoder gave no result of a pass; it may raise anything else, too.
        NumericalError: the model's logits are NaN.
    """
    config, params = model.config, sequence.params
    table, logits_1NV = model.embedding_table, torch.empty(0)

    def logits_from(embeds_1TD: Tensor, mask_1TT: Tensor, start: int) -> Tensor:
        nonlocal logits_1NV
        positions_1T = torch.arange(embeds_1TD.shape[1], device=embeds_1TD.device)[None]
        logits_1NV = model.head(model.read_from(model(embeds_1TD, positions_1T, mask_1TT))[:, start:])
        return logits_1NV

    passes = decode(
        logits_from,
        table if isinstance(table, Tensor) else table(torch.arange(config.vocab_size, device=model.device)),
        _rule(sequence, config.vocab_size),
        list(sequence.tokens),
        mask_token_id=config.mask_token_id,
        eos_token_ids=sequence.stop_rule.certain_ends,
        block_length=sequence.block_length,
        gen_length=params.gen_length,
        rule=sequence.blocks_rule,
        noise=_noise(sequence, model) if sequence.decoder.temperature > 0 else None,
    )
    for done in passes:
        if (obstacle := sequence.obstacle) is not None:
            raise obstacle
        records = _take(sequence, done, logits_1NV[0], config.mask_token_id)
        if any(result.confidence.isnan().any() for result in done.results):
            raise nan_logits(sequence.passes, model.dtype)
        yield from records
        if sequence.ending is not None:
            break
    sequence.end(time.perf_counter())


def _rule(sequence: Sequence, vocab_size: int) -> Decoder:
    """Put the decoder of a sequence under its constraint if it has one, and check a third-party one."""
    if not decides(sequence.decoder):
        return _CheckedDecoder(sequence.decoder, vocab_size)
    if sequence.constraint is None:
        return sequence.decoder
    return ConstrainedDecoder(sequence.decoder, [sequence.constraint], [sequence.params.nucleus()])


def _noise(sequence: Sequence, model: LLaDA2) -> Callable[[Tensor], Tensor]:
    """Return what draws the noise of a pass, minus infinity for tokens that the sequence may not draw."""
    draw = gumbel_noise(torch.Generator(model.device).manual_seed(sequence.params.seed))
    nucleus = sequence.params.nucleus()

    def noise(logits_1LV: Tensor) -> Tensor:
        noise_1LV = draw(logits_1LV)
        if not nucleus.is_everything and sequence.constraint is None:
            nucleus.shut_out(noise_1LV[0], logits_1LV[0], sequence.decoder.temperature, model.config.mask_token_id)
        return noise_1LV

    return noise


def _take(sequence: Sequence, done: ReferencePass, logits_NV: Tensor, mask_token_id: int) -> list[PassRecord]:
    """Bring a sequence up to date with a pass over N positions, and return its records."""
    sequence.begin_pass()
    records = [_record(sequence, done.start, index, result) for index, result in enumerate(done.results)]
    records = [replace(record, final=index < done.final) for index, record in enumerate(records)]
    sequence.revise(sum(len(record.revised) for record in records))
    sequence.update([], records)
    for record, logits_LV in zip(records[: done.final], logits_NV.split(sequence.block_length), strict=False):
        if sequence.ending is None:
            token_ids, top = record.tokens[sequence.first_active :], sequence.params.logprobs
            own_LV = logits_LV[sequence.first_active :]
            of_block = None if top is None else token_logprobs(own_LV, token_ids, top, mask_token_id)
            sequence.close_block(record.tokens, of_block)
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
