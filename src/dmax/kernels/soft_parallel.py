"""Soft Parallel Decoding behind the head: from logits to the next state of a block, and on to what it reads next.

A vocabulary of 157,184 makes float32 logits and probabilities the largest tensors of a pass. Here the logits are read
once, in the dtype they have, by one program for each position and *part* of the vocabulary. What a program leaves is
four numbers: the highest logit, the sum of exponentials against it, the best token and its logit. A second kernel joins
the parts and applies the rule of algorithm.md#spd, one program a row; a third makes the next embeddings. A part has
a fixed size, so no row's numbers depend on how many other rows there are.

Shape suffixes: B rows, L block positions, N positions of all rows (B * L), V vocabulary, P parts of the vocabulary,
T tokens read at once, k tokens of a mix, D hidden.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmax.kernels.decision import Decision

PART = 8192
"""Tokens of a part: 16 KB of bfloat16 logits, and 640 programs for a block of 32 over LLaDA2's vocabulary."""
_TILE = 1024


def decide(
    logits: Tensor,
    tokens: Tensor,
    active: Tensor,
    masked: Tensor,
    passes: Tensor,
    fallback: Tensor | None,
    thresholds: Tensor,
    *,
    mask_token_id: int,
    out: Decision | None = None,
) -> Decision:
    """Promote, revise and test for convergence: greedy, a contiguous run, every decoded token predicted anew.

    The most probable token is taken from the logits as they are, ties going to the lowest id; the confidence differs
    from a softmax in float32 by the rounding of its sum.

    Args:
        logits: ``(B, L, V)`` in any float dtype.
        tokens: ``(B, L)`` int64, the block before the pass.
        active: ``(B, L)`` bool, positions to be decoded.
        masked: ``(B, L)`` bool, those that are still masks.
        passes: ``(B,)`` int64, passes before this one.
        fallback: ``(B,)`` bool, rows that promote a mask even where none is confident; None: all rows.
        thresholds: ``(2,)`` float32, :func:`thresholds_on` the device: the confidence that a mask needs to be promoted,
            and the one that every position needs for a block to be accepted while it still changes.
        mask_token_id: takes its share of the softmax, and is never chosen.
        out: where the pass is written to, all contiguous and none of it an input; by default new memory.
    """
    rows, length, vocabulary = logits.shape
    part = min(PART, triton.next_power_of_2(vocabulary))
    positions, parts = rows * length, triton.cdiv(vocabulary, part)
    device = logits.device
    highest, total, best = torch.empty((3, positions, parts), dtype=torch.float32, device=device)
    token = torch.empty((positions, parts), dtype=torch.int32, device=device)
    _read_kernel[(positions, parts)](
        logits.contiguous(), highest, total, best, token, mask_token_id,
        VOCABULARY=vocabulary, PART=part, TILE=min(_TILE, part), num_warps=4,
    )  # fmt: skip
    decision = _room(rows, length, device) if out is None else out
    _decide_kernel[(rows,)](
        highest, total, best, token,
        tokens.contiguous(), active.contiguous(), masked.contiguous(), passes, fallback, thresholds, *decision,
        LENGTH=length, PARTS=parts, FALLBACK=fallback is not None, TILE=triton.next_power_of_2(length), num_warps=1,
    )  # fmt: skip
    return decision


@lru_cache(maxsize=64)
def thresholds_on(device: torch.device, threshold: float, acceptance_threshold: float) -> Tensor:
    """Put both thresholds of :func:`decide` into memory, so that a graph which reads them serves any."""
    return torch.tensor([threshold, acceptance_threshold], dtype=torch.float32, device=device)


def _room(rows: int, length: int, device: torch.device) -> Decision:
    new_tokens, candidates = torch.empty((2, rows, length), dtype=torch.int64, device=device)
    still, promoted, revised, mixed = torch.empty((4, rows, length), dtype=torch.bool, device=device)
    confidence = torch.empty((rows, length), dtype=torch.float32, device=device)
    new_passes = torch.empty((rows,), dtype=torch.int64, device=device)
    converged = torch.empty((rows,), dtype=torch.bool, device=device)
    return Decision(new_tokens, still, new_passes, confidence, candidates, promoted, revised, mixed, converged)


def soft_embeddings(
    tokens: Tensor,
    mixed: Tensor,
    candidates: Tensor,
    weights: Tensor,
    embedding_table: Tensor,
    *,
    mask_token_id: int,
    renormalize: bool,
) -> Tensor:
    """Compute each position's own embedding, or the mean of several and the mask's (algorithm.md#soft-embeddings).

    Args:
        tokens: ``(B, L)`` int64.
        mixed: ``(B, L)`` bool, positions that read a mean.
        candidates: ``(B, L, k)`` int64, the tokens of the means.
        weights: ``(B, L, k)`` float32, theirs; what is left over goes to the mask embedding.
        embedding_table: ``(V, D)`` in any float dtype.
        mask_token_id: of the mask token.
        renormalize: whether a mean is stretched to the weighted mean of the norms of its parts.

    Returns:
        ``(B, L, D)`` in the table's dtype.
    """
    hidden = embedding_table.shape[1]
    tile = triton.next_power_of_2(hidden)
    out_BLD = torch.empty((*tokens.shape, hidden), dtype=embedding_table.dtype, device=embedding_table.device)
    _mix_kernel[(tokens.numel(),)](
        tokens.contiguous(), mixed.contiguous(), candidates.contiguous(), weights.contiguous(),
        embedding_table.contiguous(), out_BLD, mask_token_id,
        HIDDEN=hidden, CANDIDATES=candidates.shape[-1], RENORMALIZE=renormalize, TILE=tile,
        num_warps=max(1, min(8, tile // 256)),
    )  # fmt: skip
    return out_BLD


@triton.jit
def _read_kernel(
    logits, highest, total, best, token, mask_token,
    VOCABULARY: tl.constexpr, PART: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Read a part of the vocabulary at a position: a program each. Every lane keeps its own account until the end."""
    position = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    lane_T = tl.arange(0, TILE)
    # Finite, so that a logit of minus infinity (one outside the vocabulary, say) weighs nothing against it.
    highest_T = tl.full([TILE], -3.0e38, tl.float32)
    total_T = tl.zeros([TILE], tl.float32)
    best_T = tl.full([TILE], float("-inf"), tl.float32)
    token_T = tl.zeros([TILE], tl.int32)
    for start in range(0, PART, TILE):
        id_T = part * PART + start + lane_T
        logit_T = tl.load(logits + position * VOCABULARY + id_T, mask=id_T < VOCABULARY, other=float("-inf"))
        logit_T = logit_T.to(tl.float32)
        # Of the old sum and the new term, the one with the smaller exponent shrinks: one exponential a logit.
        shrink_T = tl.exp(-tl.abs(logit_T - highest_T))
        total_T = tl.where(logit_T > highest_T, total_T * shrink_T + 1.0, total_T + shrink_T)
        highest_T = tl.maximum(highest_T, logit_T)
        better_T = (logit_T > best_T) & (id_T != mask_token)
        best_T = tl.where(better_T, logit_T, best_T)
        token_T = tl.where(better_T, id_T, token_T)
    top = tl.max(highest_T, 0)
    first = tl.max(best_T, 0)
    place = position * tl.num_programs(1) + part
    tl.store(highest + place, top)
    tl.store(total + place, tl.sum(total_T * tl.exp(highest_T - top), 0))
    tl.store(best + place, first)
    tl.store(token + place, tl.min(tl.where(best_T == first, token_T, VOCABULARY), 0))


@triton.jit
def _decide_kernel(
    highest, total, best, token, tokens, active, masked, passes, fallback, thresholds,
    new_tokens, still, new_passes, confidence, candidates, promoted, revised, mixed, converged,
    LENGTH: tl.constexpr, PARTS: tl.constexpr, FALLBACK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Decide a row: a program each. Positions that only fill up the tile are neither active nor masks, nor change."""
    row = tl.program_id(0).to(tl.int64)
    offset_L = tl.arange(0, TILE)
    here_L = offset_L < LENGTH
    place_L = row * LENGTH + offset_L

    highest_L = tl.full([TILE], -3.0e38, tl.float32)
    total_L = tl.zeros([TILE], tl.float32)
    best_L = tl.full([TILE], float("-inf"), tl.float32)
    token_L = tl.zeros([TILE], tl.int32)
    for part in range(PARTS):
        at_L = place_L * PARTS + part
        part_highest_L = tl.load(highest + at_L, mask=here_L, other=-3.0e38)
        part_total_L = tl.load(total + at_L, mask=here_L, other=1.0)
        part_best_L = tl.load(best + at_L, mask=here_L, other=float("-inf"))
        part_token_L = tl.load(token + at_L, mask=here_L, other=0)
        above_L = tl.maximum(highest_L, part_highest_L)
        total_L = total_L * tl.exp(highest_L - above_L) + part_total_L * tl.exp(part_highest_L - above_L)
        highest_L = above_L
        better_L = part_best_L > best_L  # parts come in the order of their tokens: a tie stays with the lower one
        best_L = tl.where(better_L, part_best_L, best_L)
        token_L = tl.where(better_L, part_token_L, token_L)
    confidence_L = tl.div_rn(tl.exp(best_L - highest_L), total_L)

    active_L = tl.load(active + place_L, mask=here_L, other=0)
    masked_L = tl.load(masked + place_L, mask=here_L, other=0)
    confident_L = confidence_L >= tl.load(thresholds)
    # The longest confident run of masks, or the leftmost alone: see dmax.decoding.soft_parallel.leading_run.
    cost_L = tl.where(masked_L, tl.where(confident_L, 1, LENGTH + 1), 0)
    promoted_L = masked_L & (tl.cumsum(cost_L, 0) <= LENGTH + 1)
    if FALLBACK:
        promoted_L = promoted_L & (confident_L | tl.load(fallback + row))
    still_L = masked_L ^ promoted_L
    decoded_L = active_L ^ still_L
    token_L = token_L.to(tl.int64)
    before_L = tl.load(tokens + place_L, mask=here_L, other=0)
    after_L = tl.where(decoded_L, token_L, before_L)
    changed_L = after_L != before_L

    done = tl.load(passes + row) + 1
    masks_left = tl.max(still_L.to(tl.int32), 0)
    doubted = tl.max((active_L & (confidence_L < tl.load(thresholds + 1))).to(tl.int32), 0)
    changed = tl.max(changed_L.to(tl.int32), 0)
    ends = (masks_left == 0) & ((doubted == 0) | (changed == 0) | (done >= LENGTH))

    tl.store(new_tokens + place_L, after_L, mask=here_L)
    tl.store(still + place_L, still_L, mask=here_L)
    tl.store(confidence + place_L, confidence_L, mask=here_L)
    tl.store(candidates + place_L, token_L, mask=here_L)
    tl.store(promoted + place_L, promoted_L, mask=here_L)
    tl.store(revised + place_L, changed_L & (masked_L == 0), mask=here_L)
    tl.store(mixed + place_L, decoded_L & (ends == 0), mask=here_L)
    tl.store(new_passes + row, done)
    tl.store(converged + row, ends)


@triton.jit
def _mix_kernel(
    tokens, mixed, candidates, weights, table, out, mask_token,
    HIDDEN: tl.constexpr, CANDIDATES: tl.constexpr, RENORMALIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Compute the input embedding of a position: a program each."""
    position = tl.program_id(0).to(tl.int64)
    channel_D = tl.arange(0, TILE)
    here_D = channel_D < HIDDEN
    target = out + position * HIDDEN + channel_D
    if tl.load(mixed + position):
        rest = tl.full([], 1.0, tl.float32)
        norm = tl.full([], 0.0, tl.float32)
        mean_D = tl.zeros([TILE], tl.float32)
        for candidate in tl.static_range(CANDIDATES):
            weight = tl.load(weights + position * CANDIDATES + candidate)
            row = tl.load(candidates + position * CANDIDATES + candidate).to(tl.int64)
            part_D = tl.load(table + row * HIDDEN + channel_D, mask=here_D, other=0.0).to(tl.float32)
            mean_D += weight * part_D
            norm += weight * tl.sqrt(tl.sum(part_D * part_D, 0))
            rest -= weight
        mask_row = table + tl.cast(mask_token, tl.int64) * HIDDEN
        part_D = tl.load(mask_row + channel_D, mask=here_D, other=0.0).to(tl.float32)
        mean_D += rest * part_D
        if RENORMALIZE:
            norm += rest * tl.sqrt(tl.sum(part_D * part_D, 0))
            mean_D *= norm / tl.maximum(tl.sqrt(tl.sum(mean_D * mean_D, 0)), 1e-12)
        tl.store(target, mean_D.to(out.dtype.element_ty), mask=here_D)
    else:
        row = tl.load(tokens + position).to(tl.int64)
        tl.store(target, tl.load(table + row * HIDDEN + channel_D, mask=here_D, other=0.0), mask=here_D)
