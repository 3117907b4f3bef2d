"""Block attention over the pages of a KV cache.

The queries of a forward come in *segments*: so many consecutive positions of one sequence, all within one block. Blocks
see one another causally and themselves whole, so a segment sees its sequence from position 0 up to the end of its block
and no mask is left to apply. A block being decoded is a segment; a block that is stored in the same forward is another
one before it, and a chunk of a prompt is as many as it has blocks.

The keys of a segment are read by one program for all query heads that share them. Where that makes too few programs to
fill a GPU, each works on a part of the keys and a second kernel joins the parts (flash-decoding, arXiv 2311.01282).

Shape suffixes: S segments, T positions of a segment, N packed positions (S * T), H query heads, K key/value heads,
G query heads that share one, C head channels, R rows of the page table, P pages of a row, X positions of the pool,
J parts of the keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_QUERY_TILE = 128
_LOG2_E = 1.4426950408889634


def paged_attention(
    q_NHC: Tensor,
    keys_KXC: Tensor,
    values_KXC: Tensor,
    tables_RP: Tensor,
    rows_S: Tensor,
    ends_S: Tensor,
    *,
    page_length: int,
    parts: int = 1,
) -> Tensor:
    """Attend from every segment, scaled by C^-0.5, to all that its sequence has up to the segment's end.

    Args:
        q_NHC: float queries, segment by segment, channels contiguous.
        keys_KXC, values_KXC: one layer of the pool, contiguous, in the dtype of the queries; the keys and values of the
            segments themselves are in it already.
        tables_RP: int32, the pages of every sequence in order.
        rows_S: int32, the row of the table that is a segment's.
        ends_S: int32, at least 1: a segment sees positions 0 to its end, which is not included.
        page_length: positions of a page.
        parts: number of programs that share the keys of a segment and a key/value head; see :func:`parts_for`.

    Returns:
        ``(N, H, C)``, contiguous, in the dtype of the queries.
    """
    positions, heads, channels = q_NHC.shape
    kv_heads, segments = keys_KXC.shape[0], rows_S.shape[0]
    group, length = heads // kv_heads, positions // segments
    query_tile = min(_QUERY_TILE, max(16, triton.next_power_of_2(length * group)))
    tiles = triton.cdiv(length * group, query_tile)
    out_NHC = torch.empty((positions, heads, channels), dtype=q_NHC.dtype, device=q_NHC.device)
    split = parts > 1
    mixed, weight = out_NHC, out_NHC
    if split:
        mixed = torch.empty((positions, heads, parts, channels), dtype=torch.float32, device=q_NHC.device)
        weight = torch.empty((positions, heads, parts), dtype=torch.float32, device=q_NHC.device)
    channel_tile = max(16, triton.next_power_of_2(channels))
    _attend_kernel[(segments, kv_heads * tiles, parts)](
        q_NHC, keys_KXC, values_KXC, mixed, weight, tables_RP, rows_S, ends_S,
        channels**-0.5 * _LOG2_E, *q_NHC.stride()[:2], keys_KXC.stride(0), tables_RP.stride(0), rows_S.stride(0),
        HEADS=heads, GROUP=group, LENGTH=length, CHANNELS=channels, PAGE=page_length, TILES=tiles,
        QUERY_TILE=query_tile, KEY_TILE=_key_tile(q_NHC.dtype), CHANNEL_TILE=channel_tile, SPLIT=split,
        num_warps=8 if query_tile > 64 else 4, num_stages=2,
    )  # fmt: skip
    if split:
        _join_kernel[(positions * heads,)](
            mixed, weight, out_NHC, parts,
            CHANNELS=channels, PART_TILE=triton.next_power_of_2(parts), CHANNEL_TILE=channel_tile, num_warps=1,
        )  # fmt: skip
    return out_NHC


def parts_for(segments: int, kv_heads: int, longest: int, processors: int) -> int:
    """Tell into how many parts to cut the keys so that a GPU has work for all its processors.

    Args:
        segments, kv_heads: of the forward.
        longest: most positions a segment can see.
        processors: multiprocessors of the GPU.
    """
    wanted = triton.cdiv(2 * processors, segments * kv_heads)
    return max(1, min(wanted, triton.cdiv(longest, 64), 32))


def _key_tile(dtype: torch.dtype) -> int:
    """Tell how many keys a program reads at a time; float32 ones take twice the shared memory."""
    return 64 if dtype.itemsize == 2 else 32


@triton.jit
def _attend_kernel(
    q, keys, values, mixed, weight, tables, rows, ends,
    scale, q_position, q_head, pool_head, table_row, segment_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, LENGTH: tl.constexpr, CHANNELS: tl.constexpr, PAGE: tl.constexpr,
    TILES: tl.constexpr, QUERY_TILE: tl.constexpr, KEY_TILE: tl.constexpr, CHANNEL_TILE: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Attend from queries of a segment that share a key/value head to one part of their keys: a program each.

    Without ``SPLIT`` it writes the result to ``mixed``; with it, its part's mean of values, and to ``weight`` the
    base-2 logarithm of the part's sum of exponentials.
    """
    segment = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) // TILES
    query = (tl.program_id(1) % TILES) * QUERY_TILE + tl.arange(0, QUERY_TILE)
    part, parts = tl.program_id(2), tl.num_programs(2)
    end = tl.load(ends + segment * segment_stride)
    table = tables + tl.load(rows + segment * segment_stride).to(tl.int64) * table_row
    share = tl.cdiv(tl.cdiv(end, KEY_TILE), parts) * KEY_TILE
    first = part * share
    last = tl.minimum(first + share, end)

    position = segment * LENGTH + query // GROUP
    head = kv_head * GROUP + query % GROUP
    channel = tl.arange(0, CHANNEL_TILE)
    queries_here, channels_here = query < LENGTH * GROUP, channel < CHANNELS
    inside = queries_here[:, None] & channels_here[None, :]
    q_tile = tl.load(q + (position * q_position + head * q_head)[:, None] + channel[None, :], mask=inside, other=0.0)

    highest = tl.full([QUERY_TILE], float("-inf"), tl.float32)
    total = tl.zeros([QUERY_TILE], tl.float32)
    sums = tl.zeros([QUERY_TILE, CHANNEL_TILE], tl.float32)
    pool = kv_head.to(tl.int64) * pool_head
    for start in range(first, last, KEY_TILE):
        seen = start + tl.arange(0, KEY_TILE)
        seen_here = seen < last
        page = tl.load(table + seen // PAGE, mask=seen_here, other=0).to(tl.int64)
        place = pool + (page * PAGE + seen % PAGE) * CHANNELS
        keys_here = seen_here[:, None] & channels_here[None, :]
        k_tile = tl.load(keys + place[:, None] + channel[None, :], mask=keys_here, other=0.0)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale
        scores = tl.where(seen_here[None, :], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp2(highest - new_highest)
        exps = tl.exp2(scores - new_highest[:, None])
        v_tile = tl.load(values + place[:, None] + channel[None, :], mask=keys_here, other=0.0)
        sums = sums * shrink[:, None] + tl.dot(exps.to(v_tile.dtype), v_tile, input_precision="ieee")
        total = total * shrink + tl.sum(exps, 1)
        highest = new_highest

    mean = sums / tl.where(total > 0, total, 1.0)[:, None]  # a part without keys has nothing to divide
    target = position * HEADS + head
    if SPLIT:
        target = target * parts + part
        tl.store(weight + target, highest + tl.log2(total), mask=queries_here)
    tl.store(mixed + target[:, None] * CHANNELS + channel[None, :], mean.to(mixed.dtype.element_ty), mask=inside)


@triton.jit
def _join_kernel(
    mixed, weight, out, parts,
    CHANNELS: tl.constexpr, PART_TILE: tl.constexpr, CHANNEL_TILE: tl.constexpr,
):  # fmt: skip
    """Join the parts of a query head of a position: a program each; the first part is never empty."""
    query = tl.program_id(0).to(tl.int64)
    part, channel = tl.arange(0, PART_TILE), tl.arange(0, CHANNEL_TILE)
    channels_here = channel < CHANNELS
    logs = tl.load(weight + query * parts + part, mask=part < parts, other=float("-inf"))
    shares = tl.exp2(logs - tl.max(logs, 0))
    inside = (part < parts)[:, None] & channels_here[None, :]
    means = tl.load(mixed + (query * parts + part)[:, None] * CHANNELS + channel[None, :], mask=inside, other=0.0)
    result = tl.sum(means * shares[:, None], 0) / tl.sum(shares, 0)
    tl.store(out + query * CHANNELS + channel, result.to(out.dtype.element_ty), mask=channels_here)
