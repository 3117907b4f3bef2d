"""The whole decode loop, as plainly as it can be written: one prompt, no cache, everything computed anew in every pass.

The engine gives the same tokens much faster; this is what it is held against, and where to read how it all fits
together. ``docs/concepts/algorithm.md`` shows this function beside the rules.

Shape suffixes: L block positions, T positions up to the end of the last block in flight, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dmax.decoding.base import BlockState, Decoder, StepResult
from dmax.decoding.mixing import input_embeddings
from dmax.decoding.multi_block import BlockView, MultiBlockRule

Forward = Callable[[Tensor, Tensor, int], Tensor]
"""A model: input embeddings ``(1, T, D)``, mask ``(1, T, T)`` bool (True where one sees another), and the position
of the first logits that are wanted -> logits ``(1, T - start, V)`` for the tokens at the positions from there on."""

Noise = Callable[[Tensor], Tensor]
"""Logits ``(1, L, V)`` -> noise ``(1, L, V)`` float32, with which a decoder draws."""


@dataclass(frozen=True)
class ReferencePass:
    """What one forward did."""

    start: int
    """Position of the first token of the first block in flight, before blocks became final."""
    results: list[StepResult]
    """Of every block in flight, one row each."""
    final: int
    """How many of them, from the first, became final."""
    answer: list[int]
    """Answer tokens that are final by now: up to the first EOS, which is included, and at most ``gen_length``."""


@torch.inference_mode()
def decode(
    model: Forward,
    embedding_table_VD: Tensor,
    decoder: Decoder,
    prompt_ids: Sequence[int],
    *,
    mask_token_id: int,
    eos_token_ids: Collection[int],
    block_length: int = 32,
    gen_length: int = 512,
    rule: MultiBlockRule = MultiBlockRule(),
    noise: Noise | None = None,
) -> Iterator[ReferencePass]:
    """Decode one prompt, yielding after every pass; the last one holds the whole answer.

    Args:
        model: gives logits; sees no cache and no tokens, only embeddings.
        embedding_table_VD: the model's input embeddings, on the device to decode on.
        decoder: the rule that is applied to every block in flight.
        prompt_ids: token ids; may be empty.
        mask_token_id: of the model.
        eos_token_ids: of the model; the first one in the answer ends it.
        block_length: L.
        gen_length: most tokens of the answer, at least 1.
        rule: how many blocks are in flight; one by default.
        noise: drawn for each block in each pass; needed where the decoder has a temperature.
    """
    device, end = embedding_table_VD.device, len(prompt_ids) + gen_length
    tokens = list(prompt_ids)
    start = len(tokens) // block_length * block_length
    blocks = [_new_block(tokens[start:], block_length, mask_token_id, device)]
    while blocks:
        # One forward over the final tokens and, behind them, what each block in flight reads.
        prefix_1TD = F.embedding(torch.tensor([tokens[:start]], dtype=torch.int64, device=device), embedding_table_VD)
        read_1LD = [input_embeddings(block, embedding_table_VD) for block in blocks]
        embeds_1TD = torch.cat([prefix_1TD, *read_1LD], 1)
        numbers_T = torch.arange(embeds_1TD.shape[1], device=device) // block_length  # of the positions' blocks
        mask_1TT = (numbers_T[None, :] <= numbers_T[:, None])[None]
        logits_1LV = model(embeds_1TD, mask_1TT, start).split(block_length, 1)

        # The decoder's rule, block by block.
        falls_back = rule.may_fall_back([_share_decoded(block) for block in blocks])
        results: list[StepResult] = []
        for block_logits_1LV, block, may in zip(logits_1LV, blocks, falls_back, strict=True):
            noise_1LV = None if noise is None else noise(block_logits_1LV)
            fallback_1 = torch.tensor([may], device=device)
            results.append(decoder.step(block_logits_1LV, replace(block, fallback=fallback_1), noise_1LV))

        # Blocks that have converged, and whose predecessors have, are final.
        views = [_view(block, result, eos_token_ids) for block, result in zip(blocks, results, strict=True)]
        first, final, ended = start, rule.final(views), False
        for view, result in zip(views[:final], results[:final], strict=True):
            tokens[start:] = result.state.tokens[0].tolist()
            start += block_length
            if ended := view.ended:
                break
        answer = tokens[len(prompt_ids) : min(start, end)]
        ends = (at for at, token_id in enumerate(answer, 1) if ended and token_id in eos_token_ids)
        answer = answer[: next(ends, len(answer))]
        yield ReferencePass(first, results, final, answer)

        # The others go on, and the next block may begin.
        blocks = [] if ended else [result.state for result in results[final:]]
        room = not ended and start + len(blocks) * block_length < end
        if room and (not blocks or rule.may_start_next(views[final:])):
            blocks.append(_new_block([], block_length, mask_token_id, device))


def _new_block(prompt_tail: list[int], length: int, mask_token_id: int, device: torch.device) -> BlockState:
    """Return a block of masks behind what the prompt has of it."""
    tokens_1L = torch.tensor([prompt_tail + [mask_token_id] * (length - len(prompt_tail))], device=device)
    return BlockState.start(tokens_1L, torch.arange(length, device=device)[None] >= len(prompt_tail), mask_token_id)


def _share_decoded(block: BlockState) -> float:
    """Return the share of the answer positions that are no masks any more."""
    return 1 - int(block.masked.sum()) / int(block.active.sum())


def _view(before: BlockState, result: StepResult, eos_token_ids: Collection[int]) -> BlockView:
    """Return what the rule of blocks in flight wants to know of a block after a pass."""
    after = result.state
    decoded_before = int((before.active & ~before.masked).sum())
    stability = 1 - int(result.revised.sum()) / decoded_before if decoded_before else 1.0
    ended = any(token_id in eos_token_ids for token_id in after.tokens[after.active].tolist())
    return BlockView(_share_decoded(after), stability, ended, bool(result.converged))


def gumbel_noise(generator: torch.Generator) -> Noise:
    """Return what draws standard Gumbel noise, float32, of the shape of the logits that it is given."""
    return lambda logits: torch.empty_like(logits, dtype=torch.float32).exponential_(generator=generator).log_().neg_()
