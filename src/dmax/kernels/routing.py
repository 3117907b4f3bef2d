"""Router: sigmoid or softmax scores, group-limited choice, weights, tokens by expert (algorithm.md#the-model).

Two kernels. The first spreads the router's matmul over the device: over the hidden channels too, because a few tokens
by some hundred experts are too few outputs to keep it busy. The second takes one token a program: it adds up the parts,
chooses, and enters the token in the lists of its experts.

Shape suffixes: N tokens, D hidden, E experts, A experts of a token, G expert groups, P experts of a group, S parts of
the hidden channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_PART = 256
"""Hidden channels of one program of the first kernel; constant, so that scores never depend on the batch."""


@dataclass(frozen=True)
class Routing:
    """Which experts each token goes to, from the token's side and from the expert's."""

    experts_NA: Tensor
    """int32, distinct within a token."""
    weights_NA: Tensor
    """float32."""
    loads_E: Tensor
    """int32, how many tokens chose each expert."""
    assignments_EN: Tensor
    """int32; the first ``loads_E[e]`` entries of row e are the assignments (``token * A + choice``) of expert e, in an
    order that may differ between runs. The others are undefined."""


def route(
    x_ND: Tensor,
    weight_ED: Tensor,
    bias_E: Tensor,
    *,
    experts_per_token: int,
    num_groups: int,
    groups_kept: int,
    scale: float,
    softmax: bool = False,
    normalize: bool = True,
) -> Routing:
    """Choose and weigh experts; all arithmetic in float32, ties to the lowest index.

    Args:
        x_ND: tokens, contiguous.
        weight_ED: the router's projection.
        bias_E: float32, added for the choice alone.
        experts_per_token: A.
        num_groups: groups the experts form, in order.
        groups_kept: groups a token may choose from: those whose two best biased scores have the largest sum.
        scale: factor of the weights.
        softmax: whether scores are shares of all experts', instead of each expert's own sigmoid.
        normalize: whether the weights of a token add up to ``scale``.
    """
    num_tokens, hidden = x_ND.shape
    num_experts = weight_ED.shape[0]
    parts = triton.cdiv(hidden, _PART)
    device = x_ND.device
    logits_SNE = torch.empty(parts, num_tokens, num_experts, device=device, dtype=torch.float32)
    routing = Routing(
        torch.empty(num_tokens, experts_per_token, device=device, dtype=torch.int32),
        torch.empty(num_tokens, experts_per_token, device=device, dtype=torch.float32),
        torch.empty(num_experts, device=device, dtype=torch.int32),
        torch.empty(num_experts, num_tokens, device=device, dtype=torch.int32),
    )
    block_n, block_e = 32, 16
    _score_parts[(triton.cdiv(num_experts, block_e), parts, triton.cdiv(num_tokens, block_n))](
        x_ND, weight_ED, logits_SNE, routing.loads_E, num_tokens,
        D=hidden, E=num_experts, PART=_PART, BLOCK_N=block_n, BLOCK_E=block_e, BLOCK_D=64, num_stages=4,
    )  # fmt: skip
    per_group = num_experts // num_groups
    _choose[(num_tokens,)](
        logits_SNE, bias_E, routing.experts_NA, routing.weights_NA, routing.loads_E, routing.assignments_EN, num_tokens,
        scale, S=parts, E=num_experts, A=experts_per_token, G=num_groups, P=per_group, KEPT=groups_kept,
        SOFTMAX=softmax, NORMALIZE=normalize,
        BLOCK_A=triton.next_power_of_2(experts_per_token), BLOCK_G=triton.next_power_of_2(num_groups),
        BLOCK_P=triton.next_power_of_2(per_group), num_warps=1,
    )  # fmt: skip
    return routing


@triton.jit
def _score_parts(
    x_ptr, weight_ptr, logits_ptr, loads_ptr, num_tokens,
    D: tl.constexpr, E: tl.constexpr, PART: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Score BLOCK_N tokens for BLOCK_E experts, over one part of the channels; and empty the experts' lists."""
    e_E = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    part = tl.program_id(1)
    n_N = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    d_D = part * PART + tl.arange(0, BLOCK_D)
    has_e = e_E < E
    has_n = n_N < num_tokens
    x_ptrs = x_ptr + n_N.to(tl.int64)[:, None] * D + d_D
    weight_ptrs = weight_ptr + e_E[:, None] * D + d_D
    acc_NE = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    for start in range(0, PART, BLOCK_D):
        has_d = start + d_D < D
        x_ND = tl.load(x_ptrs + start, mask=has_n[:, None] & has_d, other=0.0)
        weight_ED = tl.load(weight_ptrs + start, mask=has_e[:, None] & has_d, other=0.0)
        # Products of two bfloat16 are exact in float32, so this is the float32 matmul of the rule.
        acc_NE = tl.dot(x_ND, tl.trans(weight_ED.to(x_ND.dtype)), acc_NE, input_precision="ieee")
    rows_N = part * num_tokens + n_N
    tl.store(logits_ptr + rows_N.to(tl.int64)[:, None] * E + e_E, acc_NE, mask=has_n[:, None] & has_e)
    if (part == 0) & (tl.program_id(2) == 0):
        tl.store(loads_ptr + e_E, tl.zeros((BLOCK_E,), tl.int32), mask=has_e)


@triton.jit
def _choose(
    logits_ptr, bias_ptr, experts_ptr, weights_ptr, loads_ptr, assignments_ptr, num_tokens, scale,
    S: tl.constexpr, E: tl.constexpr, A: tl.constexpr, G: tl.constexpr, P: tl.constexpr, KEPT: tl.constexpr,
    SOFTMAX: tl.constexpr, NORMALIZE: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Choose for one token its experts, their weights, and its place in their lists."""
    token = tl.program_id(0)
    g_G = tl.arange(0, BLOCK_G)
    p_P = tl.arange(0, BLOCK_P)
    inside_GP = (g_G < G)[:, None] & (p_P < P)
    expert_GP = tl.where(inside_GP, g_G[:, None] * P + p_P, E)
    logits_GP = tl.zeros((BLOCK_G, BLOCK_P), tl.float32)
    for part in tl.static_range(S):
        row = (part * num_tokens + token).to(tl.int64)
        logits_GP += tl.load(logits_ptr + row * E + expert_GP, mask=inside_GP, other=0.0)
    if SOFTMAX:
        logits_GP = tl.where(inside_GP, logits_GP, float("-inf"))
        scores_GP = tl.exp(logits_GP - tl.max(tl.max(logits_GP, axis=1), axis=0))
        scores_GP = scores_GP / tl.sum(tl.sum(scores_GP, axis=1), axis=0)
    else:
        scores_GP = 1.0 / (1.0 + tl.exp(-logits_GP))
    biased_GP = scores_GP + tl.load(bias_ptr + expert_GP, mask=inside_GP, other=0.0)
    biased_GP = tl.where(inside_GP, biased_GP, float("-inf"))
    if KEPT < G:
        best_G = tl.max(biased_GP, axis=1)
        if P > 1:
            best_p_G = tl.min(tl.where(biased_GP == best_G[:, None], p_P, BLOCK_P), axis=1)
            best_G += tl.max(tl.where(p_P == best_p_G[:, None], float("-inf"), biased_GP), axis=1)
        dropped_G = g_G >= 0
        for _ in tl.static_range(KEPT):
            kept = tl.min(tl.where(best_G == tl.max(best_G, axis=0), g_G, BLOCK_G), axis=0)
            dropped_G = dropped_G & (g_G != kept)
            best_G = tl.where(g_G == kept, float("-inf"), best_G)
        biased_GP = tl.where(dropped_G[:, None], float("-inf"), biased_GP)

    a_A = tl.arange(0, BLOCK_A)
    experts_A = tl.zeros((BLOCK_A,), tl.int32)
    weights_A = tl.zeros((BLOCK_A,), tl.float32)
    for choice in tl.static_range(A):
        top = tl.max(tl.max(biased_GP, axis=1), axis=0)
        # A token of NaNs equals nothing: it goes to the last expert rather than out of bounds.
        expert = tl.min(tl.min(tl.where(biased_GP == top, expert_GP, E - 1), axis=1), axis=0)
        here_GP = expert_GP == expert
        score = tl.sum(tl.sum(tl.where(here_GP, scores_GP, 0.0), axis=1), axis=0)
        experts_A = tl.where(a_A == choice, expert, experts_A)
        weights_A = tl.where(a_A == choice, score, weights_A)
        biased_GP = tl.where(here_GP, float("-inf"), biased_GP)
    if NORMALIZE:
        weights_A = weights_A / (tl.sum(weights_A, axis=0) + 1e-20)
    weights_A *= scale

    chosen_A = a_A < A
    assignments_A = token * A + a_A
    tl.store(experts_ptr + assignments_A, experts_A, mask=chosen_A)
    tl.store(weights_ptr + assignments_A, weights_A, mask=chosen_A)
    places_A = tl.atomic_add(loads_ptr + experts_A, 1, mask=chosen_A, sem="relaxed")
    fits_A = chosen_A & (places_A < num_tokens)
    tl.store(assignments_ptr + experts_A.to(tl.int64) * num_tokens + places_A, assignments_A, mask=fits_A)
