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
from dmax.decoding.contract import ContractError, check_result, tokens_or_none
from dmax.decoding.reference import gumbel_noise
from dmax.decoding.registry import decides
from dmax.engine.outputs import PassRecord, nan_logits
from dmax.engine.progress import close_blocks, pass_record, rule_for, shut_out
from dmax.engine.sequence import Sequence
from dmax.models.transformer import BlockDiffusionLM


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


def decode_uncached(model: BlockDiffusionLM, sequence: Sequence) -> Iterator[PassRecord]:
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
    return rule_for(sequence.decoder, [sequence])


def _noise(sequence: Sequence, model: BlockDiffusionLM) -> Callable[[Tensor], Tensor]:
    """Return what draws the noise of a pass, minus infinity for tokens that the sequence may not draw."""
    draw = gumbel_noise(torch.Generator(model.device).manual_seed(sequence.params.seed))

    def noise(logits_1LV: Tensor) -> Tensor:
        noise_1LV = draw(logits_1LV)
        shut_out(sequence, noise_1LV[0], logits_1LV[0], model.config.mask_token_id)
        return noise_1LV

    return noise


def _take(sequence: Sequence, done: ReferencePass, logits_NV: Tensor, mask_token_id: int) -> list[PassRecord]:
    """Bring a sequence up to date with a pass over N positions, and return its records."""
    sequence.begin_pass()
    length = sequence.block_length
    records = [
        replace(_record(sequence, done.start + index * length, result), final=index < done.final)
        for index, result in enumerate(done.results)
    ]
    sequence.revise(sum(len(record.revised) for record in records))

    def answer_logits(place: int, count: int) -> Tensor:
        return logits_NV[(place + 1) * length - count : (place + 1) * length]

    close_blocks(sequence, [record.tokens for record in records[: done.final]], answer_logits, mask_token_id)
    sequence.update([], records)
    return records


def _record(sequence: Sequence, start: int, result: StepResult) -> PassRecord:
    rows = (result.state.tokens, result.confidence, result.promoted, result.revised)
    tokens, confidence, promoted, revised = (row_1L[0].tolist() for row_1L in rows)
    return pass_record(sequence, start, tokens, confidence, promoted, revised)
