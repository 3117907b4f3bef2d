"""The SwiGLU experts of one layer, routed and shared, over the tokens of a few blocks.

With tens of tokens over hundreds of experts the time goes into reading weights: every expert that was chosen is read
once, whole, by programs that each hold a strip of its rows and all of its tokens. Three kernels: gate and up projection
with SwiGLU, down projection with the combination weight, and the sum over a token's experts. The sum is a kernel of its
own rather than an atomic addition so that results do not depend on which expert is done first.

Experts are read through the lists of :class:`~dmax.kernels.routing.Routing`: the grid covers all experts, and a program
whose expert has no tokens ends at once. So nothing is sorted and shapes are static, whatever the loads.

8-bit weights are widened in registers; their scales, one an output channel, multiply the float32 sums.

Shape suffixes: N tokens, D hidden, E experts, A experts of a token, F expert width, X shared experts, M rows of a tile,
W rows of weights of a tile, K summed channels of a tile. A token has A + X rows in what the kernels hand on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmax.kernels.routing import Routing
from dmax.kernels.tiles import Tile, tiles_for


@dataclass(frozen=True)
class Stack:
    """The weights of several experts: the routed ones of a layer, or its shared ones.

    ``gate`` and ``up`` are (experts, F, D). ``down`` is (experts, D, F), and may be a view whose rows lie further than
    F apart. All in a floating-point dtype without scales, or in int8 or float8_e4m3fn with float32 scales of shape
    (experts, F), (experts, F) and (experts, D).
    """

    gate: Tensor
    up: Tensor
    down: Tensor
    gate_scale: Tensor | None = None
    up_scale: Tensor | None = None
    down_scale: Tensor | None = None


def run_experts(
    x_ND: Tensor,
    routing: Routing,
    routed: Stack,
    shared: Stack | None = None,
    tiles: tuple[Tile, Tile] | None = None,
) -> Tensor:
    """Compute the weighted sum of each token's routed experts, plus the shared ones: ``(N, D)`` in x's dtype.

    Args:
        x_ND: tokens, contiguous.
        routing: from :func:`~dmax.kernels.routing.route`, for these tokens.
        routed: the experts that ``routing`` speaks of.
        shared: experts that every token passes through, with weight 1; of the same width as the routed ones.
        tiles: shapes of the two matmuls; by default those of :func:`~dmax.kernels.tiles.tiles_for`.
    """
    num_tokens, hidden = x_ND.shape
    num_experts, width, _ = routed.gate.shape
    per_token = routing.experts_NA.shape[1]
    num_shared = 0 if shared is None else shared.gate.shape[0]
    rows = num_tokens * (per_token + num_shared)
    first, second = tiles or tiles_for(num_tokens, num_experts, per_token, routed.gate.dtype)
    inner = x_ND.new_empty(rows, width)
    outer = x_ND.new_empty(rows, hidden)
    out_ND = torch.empty_like(x_ND)
    other = shared or routed
    sizes = {"E": num_experts, "A": per_token, "X": num_shared, "D": hidden, "F": width}
    scaled = {"SCALED": routed.gate_scale is not None, "SHARED_SCALED": other.gate_scale is not None}
    lists = (routing.loads_E, routing.assignments_EN, num_tokens)
    experts = num_shared + num_experts
    _gate_up[_grid(experts, width, num_tokens, first)](
        x_ND, inner, routed.gate, routed.up, routed.gate_scale, routed.up_scale,
        other.gate, other.up, other.gate_scale, other.up_scale, *lists, **sizes, **scaled, **first.options(),
    )  # fmt: skip
    _down[_grid(experts, hidden, num_tokens, second)](
        inner, outer, routing.weights_NA, routed.down, routed.down_scale, other.down, other.down_scale, *lists,
        other.down.stride(1), other.down.stride(0), **sizes, **scaled, **second.options(),
    )  # fmt: skip
    block_d = min(512, triton.next_power_of_2(hidden))
    _combine[(num_tokens, triton.cdiv(hidden, block_d))](
        outer, out_ND, ROWS=per_token + num_shared, D=hidden, BLOCK_D=block_d
    )
    return out_ND


def _grid(experts: int, rows: int, num_tokens: int, tile: Tile) -> tuple[int, int]:
    """Return the grid: strips of every expert, by programs that share an expert's tokens where there are many."""
    return experts * triton.cdiv(rows, tile.block_w), min(tile.shares, triton.cdiv(num_tokens, tile.block_m))


@triton.jit
def _rows_of(place, expert, load, assignments_ptr, num_tokens, A: tl.constexpr, X: tl.constexpr, BLOCK_M: tl.constexpr):
    """Load BLOCK_M tokens of a routed expert, from ``place`` in its list: assignments, rows, and which exist."""
    place_M = place + tl.arange(0, BLOCK_M)
    has_M = place_M < load
    assignment_M = tl.load(assignments_ptr + expert.to(tl.int64) * num_tokens + place_M, mask=has_M, other=0)
    return assignment_M, assignment_M // A * (A + X) + assignment_M % A, has_M


@triton.jit
def _shared_rows(token, index, num_tokens, A: tl.constexpr, X: tl.constexpr, BLOCK_M: tl.constexpr):
    """Take BLOCK_M tokens, from ``token`` on, of a shared expert: tokens, rows, and which of them exist."""
    token_M = token + tl.arange(0, BLOCK_M)
    has_M = token_M < num_tokens
    token_M = tl.where(has_M, token_M, 0)
    return token_M, token_M * (A + X) + A + index, has_M


@triton.jit
def _dot(x_MK, weight_WK, acc, TOKENS_FIRST: tl.constexpr):
    """Add tokens times weights to ``acc``: (M, W), or (W, M) where the weights are the left operand."""
    weight_WK = weight_WK.to(x_MK.dtype)
    if TOKENS_FIRST:
        acc = tl.dot(x_MK, tl.trans(weight_WK), acc, input_precision="ieee")
    else:
        acc = tl.dot(weight_WK, tl.trans(x_MK), acc, input_precision="ieee")
    return acc


@triton.jit
def _gate_up_tile(
    x_ptr, inner_ptr, gate_ptr, up_ptr, gate_scale_ptr, up_scale_ptr, token_M, row_M, has_M, strip,
    D: tl.constexpr, F: tl.constexpr, SCALED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_K: tl.constexpr, TOKENS_FIRST: tl.constexpr,
):  # fmt: skip
    """Compute SwiGLU of one strip of one expert for BLOCK_M tokens."""
    strip_W = strip * BLOCK_W + tl.arange(0, BLOCK_W)
    row_W = tl.minimum(strip_W, F - 1)
    k_K = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + token_M.to(tl.int64)[:, None] * D + k_K
    offsets_WK = row_W[:, None] * D + k_K
    gate_acc = tl.zeros((BLOCK_M, BLOCK_W) if TOKENS_FIRST else (BLOCK_W, BLOCK_M), tl.float32)
    up_acc = gate_acc
    for start in range(0, D, BLOCK_K):
        if D % BLOCK_K == 0:
            x_MK = tl.load(x_ptrs + start)
            gate_WK = tl.load(gate_ptr + offsets_WK + start)
            up_WK = tl.load(up_ptr + offsets_WK + start)
        else:
            has_k = (start + k_K < D)[None, :]
            x_MK = tl.load(x_ptrs + start, mask=has_k, other=0.0)
            gate_WK = tl.load(gate_ptr + offsets_WK + start, mask=has_k, other=0.0)
            up_WK = tl.load(up_ptr + offsets_WK + start, mask=has_k, other=0.0)
        gate_acc = _dot(x_MK, gate_WK, gate_acc, TOKENS_FIRST)
        up_acc = _dot(x_MK, up_WK, up_acc, TOKENS_FIRST)
    if not TOKENS_FIRST:
        gate_acc = tl.trans(gate_acc)
        up_acc = tl.trans(up_acc)
    if SCALED:
        gate_acc *= tl.load(gate_scale_ptr + row_W)
        up_acc *= tl.load(up_scale_ptr + row_W)
    inner_MW = gate_acc / (1.0 + tl.exp(-gate_acc)) * up_acc
    inner_ptrs = inner_ptr + row_M.to(tl.int64)[:, None] * F + strip_W
    tl.store(inner_ptrs, inner_MW.to(inner_ptr.dtype.element_ty), mask=has_M[:, None] & (strip_W < F))


@triton.jit
def _gate_up(
    x_ptr, inner_ptr, gate_ptr, up_ptr, gate_scale_ptr, up_scale_ptr,
    shared_gate_ptr, shared_up_ptr, shared_gate_scale_ptr, shared_up_scale_ptr, loads_ptr, assignments_ptr, num_tokens,
    E: tl.constexpr, A: tl.constexpr, X: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    SCALED: tl.constexpr, SHARED_SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS_FIRST: tl.constexpr,
):  # fmt: skip
    """Compute ``silu(x gate^T) * (x up^T)``; the shared experts, which have every token, come first."""
    strips: tl.constexpr = (F + BLOCK_W - 1) // BLOCK_W
    strip = tl.program_id(0) % strips
    expert = tl.program_id(0) // strips - X
    first = tl.program_id(1) * BLOCK_M
    step = tl.num_programs(1) * BLOCK_M
    if expert < 0:
        at = (expert + X).to(tl.int64) * F
        if SHARED_SCALED:
            shared_gate_scale_ptr += at
            shared_up_scale_ptr += at
        token = first
        while token < num_tokens:
            token_M, row_M, has_M = _shared_rows(token, expert + X, num_tokens, A, X, BLOCK_M)
            _gate_up_tile(
                x_ptr, inner_ptr, shared_gate_ptr + at * D, shared_up_ptr + at * D, shared_gate_scale_ptr,
                shared_up_scale_ptr, token_M, row_M, has_M, strip,
                D, F, SHARED_SCALED, BLOCK_M, BLOCK_W, BLOCK_K, TOKENS_FIRST,
            )  # fmt: skip
            token += step
    else:
        load = tl.minimum(tl.load(loads_ptr + expert), num_tokens)
        at = expert.to(tl.int64) * F
        if SCALED:
            gate_scale_ptr += at
            up_scale_ptr += at
        place = first
        while place < load:
            assignment_M, row_M, has_M = _rows_of(place, expert, load, assignments_ptr, num_tokens, A, X, BLOCK_M)
            _gate_up_tile(
                x_ptr, inner_ptr, gate_ptr + at * D, up_ptr + at * D, gate_scale_ptr, up_scale_ptr,
                assignment_M // A, row_M, has_M, strip, D, F, SCALED, BLOCK_M, BLOCK_W, BLOCK_K, TOKENS_FIRST,
            )  # fmt: skip
            place += step


@triton.jit
def _down_tile(
    inner_ptr, outer_ptr, down_ptr, down_scale_ptr, row_M, weight_M, has_M, strip, row_stride,
    D: tl.constexpr, F: tl.constexpr, SCALED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_K: tl.constexpr, TOKENS_FIRST: tl.constexpr,
):  # fmt: skip
    """Compute a strip of one expert's down projection for BLOCK_M rows, times their combination weights."""
    strip_W = strip * BLOCK_W + tl.arange(0, BLOCK_W)
    row_W = tl.minimum(strip_W, D - 1)
    k_K = tl.arange(0, BLOCK_K)
    inner_ptrs = inner_ptr + row_M.to(tl.int64)[:, None] * F + k_K
    offsets_WK = row_W[:, None] * row_stride + k_K
    acc = tl.zeros((BLOCK_M, BLOCK_W) if TOKENS_FIRST else (BLOCK_W, BLOCK_M), tl.float32)
    for start in range(0, F, BLOCK_K):
        if F % BLOCK_K == 0:
            inner_MK = tl.load(inner_ptrs + start)
            down_WK = tl.load(down_ptr + offsets_WK + start)
        else:
            has_k = (start + k_K < F)[None, :]
            inner_MK = tl.load(inner_ptrs + start, mask=has_k, other=0.0)
            down_WK = tl.load(down_ptr + offsets_WK + start, mask=has_k, other=0.0)
        acc = _dot(inner_MK, down_WK, acc, TOKENS_FIRST)
    if not TOKENS_FIRST:
        acc = tl.trans(acc)
    if SCALED:
        acc *= tl.load(down_scale_ptr + row_W)
    outer_ptrs = outer_ptr + row_M.to(tl.int64)[:, None] * D + strip_W
    out_MW = (acc * weight_M[:, None]).to(outer_ptr.dtype.element_ty)
    tl.store(outer_ptrs, out_MW, mask=has_M[:, None] & (strip_W < D))


@triton.jit
def _down(
    inner_ptr, outer_ptr, weights_ptr, down_ptr, down_scale_ptr, shared_down_ptr, shared_down_scale_ptr,
    loads_ptr, assignments_ptr, num_tokens, shared_row_stride, shared_expert_stride,
    E: tl.constexpr, A: tl.constexpr, X: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    SCALED: tl.constexpr, SHARED_SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS_FIRST: tl.constexpr,
):  # fmt: skip
    """Compute each row's expert output, weighted; the shared experts come first and weigh 1."""
    strips: tl.constexpr = (D + BLOCK_W - 1) // BLOCK_W
    strip = tl.program_id(0) % strips
    expert = tl.program_id(0) // strips - X
    first = tl.program_id(1) * BLOCK_M
    step = tl.num_programs(1) * BLOCK_M
    if expert < 0:
        if SHARED_SCALED:
            shared_down_scale_ptr += (expert + X) * D
        token = first
        while token < num_tokens:
            _, row_M, has_M = _shared_rows(token, expert + X, num_tokens, A, X, BLOCK_M)
            _down_tile(
                inner_ptr, outer_ptr, shared_down_ptr + (expert + X) * shared_expert_stride, shared_down_scale_ptr,
                row_M, tl.full((BLOCK_M,), 1.0, tl.float32), has_M, strip, shared_row_stride,
                D, F, SHARED_SCALED, BLOCK_M, BLOCK_W, BLOCK_K, TOKENS_FIRST,
            )  # fmt: skip
            token += step
    else:
        load = tl.minimum(tl.load(loads_ptr + expert), num_tokens)
        at = expert.to(tl.int64) * D
        if SCALED:
            down_scale_ptr += at
        place = first
        while place < load:
            assignment_M, row_M, has_M = _rows_of(place, expert, load, assignments_ptr, num_tokens, A, X, BLOCK_M)
            _down_tile(
                inner_ptr, outer_ptr, down_ptr + at * F, down_scale_ptr, row_M, tl.load(weights_ptr + assignment_M),
                has_M, strip, F, D, F, SCALED, BLOCK_M, BLOCK_W, BLOCK_K, TOKENS_FIRST,
            )  # fmt: skip
            place += step


@triton.jit
def _combine(outer_ptr, out_ptr, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Sum over the rows of one token."""
    token = tl.program_id(0).to(tl.int64)
    d_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total_D = tl.zeros((BLOCK_D,), tl.float32)
    for row in tl.static_range(ROWS):
        total_D += tl.load(outer_ptr + (token * ROWS + row) * D + d_D, mask=d_D < D, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * D + d_D, total_D.to(out_ptr.dtype.element_ty), mask=d_D < D)
