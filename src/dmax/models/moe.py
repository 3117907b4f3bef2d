"""Mixture of experts: sigmoid or softmax routing, over expert groups or block by block (algorithm.md#the-model).

Shape suffixes: B rows, T positions, N tokens (rows and positions flattened), K blocks of a row, L block positions,
D hidden, E experts, A experts of a token, F expert width, G expert groups, M assignments (N * A), P rows of the grouped
matmuls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmax.models.config import ModelConfig
from dmax.models.layers import SwiGLU
from dmax.models.quantized import dequantize, keeping_dtypes, scale_name


class RoutingRule(NamedTuple):
    """How experts are chosen."""

    num_groups: int
    groups_kept: int
    experts_per_token: int
    scale: float
    softmax: bool = False
    """Whether scores are shares of all experts', instead of each expert's own."""
    normalize: bool = True
    """Whether the weights of a token add up to ``scale``."""

    @classmethod
    def of(cls, config: ModelConfig) -> RoutingRule:
        """Read the rule of a model."""
        return cls(
            config.n_group,
            config.topk_group,
            config.num_experts_per_tok,
            config.routed_scaling_factor,
            config.score_function == "softmax",
            config.norm_topk_prob,
        )


class BlockLimit(NamedTuple):
    """Which experts are in reach of a block's tokens; groups do not count then."""

    experts: int
    block_length: int

    @classmethod
    def of(cls, config: ModelConfig) -> BlockLimit | None:
        """Read the limit of a model; None where there is none."""
        return cls(config.expert_capacity, config.routing_block_length) if config.expert_capacity else None


class Router(nn.Module):
    """Chooses experts by biased scores, limited to groups or to a block's experts; weighs them by the unbiased ones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.num_experts is not None
        self.num_experts = config.num_experts
        self.rule, self.limit = RoutingRule.of(config), BlockLimit.of(config)
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.expert_bias: Tensor
        self.register_buffer("expert_bias", torch.zeros(config.num_experts))
        self.load_E: Tensor | None = None
        """Set by a trainer: counts, in training mode, the tokens each expert was chosen for."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the experts of tokens ``(..., T, D)``: indices ``(N, A)`` int64 and weights ``(N, A)`` float32."""
        experts_NA, weights_NA = choose_experts(x, self.weight, self.expert_bias, self.rule, self.limit)
        if self.training and self.load_E is not None:
            chosen_NAE = experts_NA[..., None] == torch.arange(self.num_experts, device=experts_NA.device)
            self.load_E.add_(chosen_NAE.sum((0, 1)))
        return experts_NA, weights_NA


def choose_experts(
    x: Tensor, weight_ED: Tensor, bias_E: Tensor, rule: RoutingRule, limit: BlockLimit | None = None
) -> tuple[Tensor, Tensor]:
    """Do what :class:`Router` does: expert indices ``(N, A)`` int64 and combination weights ``(N, A)`` float32.

    Args:
        x: ``(..., T, D)``, rows of whole blocks where experts are limited block by block; the last may be shorter.
        weight_ED: projection.
        bias_E: float32.
        rule, limit: of the model.
    """
    scores_NE, biased_NE = score_experts(x.flatten(0, -2), weight_ED, bias_E, rule)
    if limit is not None:
        biased_NE = keep_best_of_block(biased_NE, x.shape[-2], limit)
    elif rule.groups_kept < rule.num_groups:
        biased_NE = _keep_best_groups(biased_NE, rule.num_groups, rule.groups_kept)
    experts_NA = biased_NE.topk(rule.experts_per_token, dim=-1, sorted=False).indices
    weights_NA = scores_NE.gather(-1, experts_NA)
    if rule.normalize:
        weights_NA = weights_NA / (weights_NA.sum(-1, keepdim=True) + 1e-20)
    return experts_NA, weights_NA * rule.scale


def score_experts(x_ND: Tensor, weight_ED: Tensor, bias_E: Tensor, rule: RoutingRule) -> tuple[Tensor, Tensor]:
    """Score what experts are weighed by and what they are chosen by, each ``(N, E)`` float32."""
    logits_NE = F.linear(x_ND.float(), weight_ED.float())
    scores_NE = logits_NE.softmax(-1) if rule.softmax else torch.sigmoid(logits_NE)
    return scores_NE, scores_NE + bias_E


def keep_best_of_block(biased_NE: Tensor, length: int, limit: BlockLimit) -> Tensor:
    """Put experts out of reach that are not among a block's best; one counts as much as its best token's score for it.

    Args:
        biased_NE: scores.
        length: of a row; blocks are cut from its start.
        limit: of the model. Ties go to the lowest index.
    """
    biased_BTE = biased_NE.unflatten(0, (-1, length))
    missing = -length % limit.block_length
    blocks_BKLE = F.pad(biased_BTE, (0, 0, 0, missing), value=float("-inf")).unflatten(1, (-1, limit.block_length))
    order_BKE = blocks_BKLE.amax(2).argsort(dim=-1, descending=True, stable=True)
    kept_BKE = torch.zeros_like(order_BKE, dtype=torch.bool).scatter(-1, order_BKE[..., : limit.experts], True)
    kept_BTE = kept_BKE.repeat_interleave(limit.block_length, 1)[:, :length]
    return biased_BTE.masked_fill(~kept_BTE, float("-inf")).flatten(0, 1)


def _keep_best_groups(biased_NE: Tensor, num_groups: int, groups_kept: int) -> Tensor:
    """Put every expert outside the best groups out of reach."""
    grouped_NGE = biased_NE.unflatten(-1, (num_groups, -1))
    best = min(2, grouped_NGE.shape[-1])
    group_scores_NG = grouped_NGE.topk(best, dim=-1).values.sum(-1)
    kept_NG = group_scores_NG.topk(groups_kept, dim=-1, sorted=False).indices
    dropped_NG = torch.ones_like(group_scores_NG, dtype=torch.bool).scatter(-1, kept_NG, False)
    return grouped_NGE.masked_fill(dropped_NG[..., None], float("-inf")).flatten(-2)


_GROUP_ROWS = 32
"""In training, the rows of an expert are filled up to a multiple of this: oneDNN compiles a matmul for every new shape,
which costs several times the matmul itself, and grouped matmuls on a GPU want aligned groups."""


class Experts(nn.Module):
    """The SwiGLU experts of one layer, stacked (the "merged" checkpoint layout), quantised where there are scales."""

    def __init__(self, num_experts: int, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(num_experts, width, hidden_size))
        self.up_proj = nn.Parameter(torch.empty(num_experts, width, hidden_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, width))
        self.gate_proj_scale: Tensor | None
        self.up_proj_scale: Tensor | None
        self.down_proj_scale: Tensor | None
        for projection in ("gate", "up", "down"):
            self.register_buffer(f"{projection}_proj_scale", None)

    def forward(self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """Sum each token's experts by weight, ``(N, D)``: tokens sorted by expert, a grouped matmul a projection."""
        if self.gate_proj_scale is not None and x_ND.device.type == "cpu":
            return self._one_by_one(x_ND, experts_NA, weights_NA)
        num_tokens, per_token = experts_NA.shape
        multiple = _GROUP_ROWS if torch.is_grad_enabled() else 1
        assignments = _sort_by_expert(experts_NA.flatten(), self.gate_proj.shape[0], multiple)
        x_PD = _to_assignments(x_ND, assignments, per_token)

        def through(projection: str, x: Tensor) -> Tensor:
            weight = self._wide(projection, x.dtype)  # of one projection at a time: widened, it takes a lot of memory
            return F.grouped_mm(x, weight.transpose(1, 2), offs=assignments.ends_E)

        hidden_PF = F.silu(through("gate_proj", x_PD)) * through("up_proj", x_PD)
        out_PD = through("down_proj", hidden_PF)
        out_NAD = _from_assignments(out_PD, assignments).view(num_tokens, per_token, -1)
        return (out_NAD * weights_NA[..., None].to(out_NAD.dtype)).sum(1)

    def _one_by_one(self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """Do the same over quantised weights: the chosen experts' alone are widened, one expert's at a time."""
        out_ND = torch.zeros_like(x_ND)
        names = ("gate_proj", "up_proj", "down_proj")
        stacks = [(getattr(self, name), getattr(self, scale_name(name))) for name in names]
        for expert in experts_NA.unique().tolist():
            token_M, place_M = (experts_NA == expert).nonzero(as_tuple=True)
            gate, up, down = (
                dequantize(stack[expert], None if scale is None else scale[expert], x_ND.dtype)
                for stack, scale in stacks
            )
            x_MD = x_ND[token_M]
            out_MD = F.linear(F.silu(F.linear(x_MD, gate)) * F.linear(x_MD, up), down)
            out_ND.index_add_(0, token_M, out_MD * weights_NA[token_M, place_M, None].to(x_ND.dtype))
        return out_ND

    def wide_weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return gates, ups and downs of all experts, widened if they are quantised."""
        return self._wide("gate_proj", dtype), self._wide("up_proj", dtype), self._wide("down_proj", dtype)

    def _wide(self, projection: str, dtype: torch.dtype) -> Tensor:
        return dequantize(getattr(self, projection), getattr(self, scale_name(projection)), dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Experts:
        if self.gate_proj_scale is not None:
            fn = keeping_dtypes(fn)
        return cast(Experts, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]


class _Assignments(NamedTuple):
    """Assignments (a token and one of its experts) in the order of their experts."""

    source_P: Tensor
    """The assignment behind each sorted row; assignment 0 where a row only fills up a group."""
    place_M: Tensor
    """The sorted row of each assignment."""
    ends_E: Tensor
    """int32, one past the last sorted row of each expert; the last is P."""


class _ToAssignments(torch.autograd.Function):
    """A row of the input for every assignment; backwards, the sum over a token's assignments, which are known.

    Indexing would add up gradients row by row, one after another, as if any two rows might meet.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_P: Tensor, place_M: Tensor) -> Tensor:
        ctx.save_for_backward(place_M)
        ctx.num_tokens = x_ND.shape[0]
        return x_ND[token_P]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        [place_M] = ctx.saved_tensors
        [gradient_PD] = gradients
        return gradient_PD[place_M].view(ctx.num_tokens, -1, gradient_PD.shape[1]).sum(1), None, None


class _FromAssignments(torch.autograd.Function):
    """The sorted row of every assignment; backwards, each gradient goes to a row of its own: nothing is added up."""

    @staticmethod
    def forward(ctx: Any, out_PD: Tensor, place_M: Tensor) -> Tensor:
        ctx.save_for_backward(place_M)
        ctx.rows = out_PD.shape[0]
        return out_PD[place_M]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        [place_M] = ctx.saved_tensors
        [gradient_MD] = gradients
        gradient_PD = gradient_MD.new_zeros(ctx.rows, gradient_MD.shape[1])
        return gradient_PD.index_copy_(0, place_M, gradient_MD), None


def _from_assignments(out_PD: Tensor, assignments: _Assignments) -> Tensor:
    if not torch.is_grad_enabled():
        return out_PD[assignments.place_M]
    return cast(Tensor, _FromAssignments.apply(out_PD, assignments.place_M))  # type: ignore[no-untyped-call]


def _to_assignments(x_ND: Tensor, assignments: _Assignments, per_token: int) -> Tensor:
    token_P = assignments.source_P // per_token
    if not torch.is_grad_enabled():
        return x_ND[token_P]
    return cast(Tensor, _ToAssignments.apply(x_ND, token_P, assignments.place_M))  # type: ignore[no-untyped-call]


def _sort_by_expert(expert_M: Tensor, num_experts: int, multiple: int) -> _Assignments:
    """Order assignments by expert, every expert's group of rows filled up to a multiple of ``multiple``.

    The rows that fill up read assignment 0 and are read by no one, so they get no gradient and give none.
    """
    sorted_M, order_M = expert_M.sort(stable=True)
    all_experts = torch.arange(num_experts, device=expert_M.device)
    ends_E = torch.searchsorted(sorted_M, all_experts, right=True, out_int32=True)
    if multiple == 1:
        return _Assignments(order_M, torch.empty_like(order_M).index_copy(0, order_M, _count_up(order_M)), ends_E)
    rows = -(-(expert_M.shape[0] + num_experts * (multiple - 1)) // multiple) * multiple
    starts_E = F.pad(ends_E[:-1], (1, 0))
    filled_E = -((starts_E - ends_E) // multiple) * multiple
    filled_ends_E = filled_E.cumsum(0, dtype=torch.int32)
    sorted_place_M = _count_up(order_M) + (filled_ends_E - filled_E - starts_E)[sorted_M]
    source_P = order_M.new_zeros(rows).index_copy(0, sorted_place_M, order_M)
    place_M = torch.empty_like(order_M).index_copy(0, order_M, sorted_place_M)
    return _Assignments(source_P, place_M, torch.cat([filled_ends_E[:-1], filled_ends_E.new_full((1,), rows)]))


def _count_up(like_M: Tensor) -> Tensor:
    return torch.arange(like_M.shape[0], device=like_M.device)


class SparseMLP(nn.Module):
    """Routed experts plus the shared expert every token passes through."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.num_experts is not None and config.moe_intermediate_size is not None
        self.gate = Router(config)
        self.experts = Experts(config.num_experts, config.hidden_size, config.moe_intermediate_size)
        self.shared_experts = (
            SwiGLU(config.hidden_size, config.moe_intermediate_size * config.num_shared_experts)
            if config.num_shared_experts
            else None
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        experts_NA, weights_NA = self.gate(x_BTD)
        out_BTD = self.experts(x_BTD.flatten(0, 1), experts_NA, weights_NA).view_as(x_BTD)
        return out_BTD if self.shared_experts is None else out_BTD + self.shared_experts(x_BTD)
