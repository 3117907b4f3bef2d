"""What a pass means to a sequence, whether it was computed over a cache or without one.

Shape suffixes: L block positions, V vocabulary.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable

from torch import Tensor

from dmax.decoding import Decoder
from dmax.decoding.constrained import ConstrainedDecoder
from dmax.decoding.registry import decides
from dmax.engine.logprobs import token_logprobs
from dmax.engine.outputs import PassRecord, TokenLogprob
from dmax.engine.sequence import Sequence

AnswerLogits = Callable[[int, int], Tensor]
"""The place of a block that is final and the number of its answer tokens -> their logits, ``(L, V)``."""


def rule_for(decoder: Decoder, sequences: abc.Sequence[Sequence]) -> Decoder:
    """Put a decoder under constraints, if sequences have any, as all that step together do then.

    Args:
        decoder: of all of them.
        sequences: the owner of each row that the decoder is given.
    """
    constraints = [sequence.constraint for sequence in sequences if sequence.constraint is not None]
    if not constraints:
        return decoder
    assert len(constraints) == len(sequences) and decides(decoder)
    return ConstrainedDecoder(decoder, constraints, [sequence.params.nucleus() for sequence in sequences])


def shut_out(sequence: Sequence, noise_LV: Tensor, logits_LV: Tensor, mask_token_id: int) -> None:
    """Make the noise of a block minus infinity, in place, at tokens that its sequence may not draw."""
    nucleus = sequence.params.nucleus()
    if not nucleus.is_everything and sequence.constraint is None:
        nucleus.shut_out(noise_LV, logits_LV, sequence.decoder.temperature, mask_token_id)


def pass_record(
    sequence: Sequence,
    start: int,
    tokens: list[int],
    confidence: list[float],
    promoted: abc.Sequence[int],
    revised: abc.Sequence[int],
) -> PassRecord:
    """Make the record of a block that is not final yet.

    Args:
        sequence: that the block is of.
        start: position of its first token.
        tokens: after the pass.
        confidence: of its positions.
        promoted: a flag a position.
        revised: a flag a position.
    """
    length = sequence.block_length
    return PassRecord(
        pass_number=sequence.passes,
        block=start // length,
        start=start,
        tokens=tokens,
        confidence=confidence,
        promoted=_offsets(promoted),
        revised=_offsets(revised),
        active=list(range(max(sequence.prompt_length - start, 0), length)),
        final=False,
    )


def close_blocks(
    sequence: Sequence, blocks: abc.Sequence[list[int]], logits: AnswerLogits, mask_token_id: int
) -> tuple[list[int], list[TokenLogprob]]:
    """Take blocks that have become final, up to the one that ends the answer.

    Args:
        sequence: that the blocks are of.
        blocks: the tokens of each, the prompt's tail included.
        logits: asked block by block, and only where log-probabilities are asked for.
        mask_token_id: of the model.

    Returns:
        The answer tokens that have become final, and their log-probabilities, where these are asked for.
    """
    final_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    top = sequence.params.logprobs
    for place, block_tokens in enumerate(blocks):
        if sequence.ending is not None:
            break
        answer = block_tokens[sequence.first_active :]
        own = [] if top is None else token_logprobs(logits(place, len(answer)), answer, top, mask_token_id)
        closed = sequence.close_block(block_tokens, own)
        final_ids += closed
        logprobs += own[: len(closed)]
    return final_ids, logprobs


def _offsets(flags: abc.Sequence[int]) -> list[int]:
    return [offset for offset, flag in enumerate(flags) if flag]
