"""Mixture of experts with sigmoid routing over expert groups (algorithm.md#the-model).

Shape suffixes: N tokens (rows and positions flattened), D hidden, E experts, A experts of a token, F expert width,
G expert groups, M slots (N * A), P rows of the grouped matmuls, S width of
the shared expert, W = E * F + S.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmax import kernels
from dmax.kernels.cpu.experts import down_in_panels, gate_up_in_panels
from dmax.kernels.steps import Step
from dmax.models.config import ModelConfig
from dmax.models.layers import SwiGLU, gate
from dmax.models.packing import Packed, usable
from dmax.models.quantized import QuantizedLinear, dequantize, keeping_dtypes, weight_scale, wide_weight

if TYPE_CHECKING:
    from dmax.kernels.experts import Stack


class RoutingRule(NamedTuple):
    """How experts are chosen."""

    num_groups: int
    groups_kept: int
    experts_per_token: int
    scale: float

    @classmethod
    def of(cls, config: ModelConfig) -> RoutingRule:
        """The rule of a model."""
        return cls(config.n_group, config.topk_group, config.num_experts_per_tok, config.routed_scaling_factor)


class Router(nn.Module):
    """Chooses experts by biased sigmoid scores, group-limited; weighs them by the unbiased ones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.num_experts is not None
        self.num_experts = config.num_experts
        self.rule = RoutingRule.of(config)
        self._route = Step("route")
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.expert_bias: Tensor
        self.register_buffer("expert_bias", torch.zeros(config.num_experts))
        self.load_E: Tensor | None = None
        """Set by a trainer: counts, in training mode, the tokens each expert was chosen for."""

    def forward(self, x_ND: Tensor, *, by_expert: bool = False) -> tuple[Tensor, Tensor] | Tensor:
        """Choose each token's experts.

        Args:
            x_ND: ``(N, D)``.
            by_expert: for a layer that runs every expert; inference only.

        Returns:
            Expert indices ``(N, A)`` int64 and combination weights ``(N, A)`` float32; ``by_expert`` the same choice as
            one weight an expert, 0 where it was not chosen: ``(N, E)`` float32.
        """
        if by_expert:
            if self._route.usable(x_ND, self.weight) and self.expert_bias.dtype == torch.float32:
                return self._route(x_ND, self.weight, self.expert_bias)[0]
            return weigh_experts(x_ND, self.weight, self.expert_bias, self.rule)
        experts_NA, weights_NA = choose_experts(x_ND, self.weight, self.expert_bias, self.rule)
        if self.training and self.load_E is not None:
            chosen_NAE = experts_NA[..., None] == torch.arange(self.num_experts, device=experts_NA.device)
            self.load_E.add_(chosen_NAE.sum((0, 1)))
        return experts_NA, weights_NA


def choose_experts(x_ND: Tensor, weight_ED: Tensor, bias_E: Tensor, rule: RoutingRule) -> tuple[Tensor, Tensor]:
    """What :class:`Router` does: expert indices ``(N, A)`` int64 and combination weights ``(N, A)`` float32."""
    scores_NE, biased_NE = _scores(x_ND, weight_ED, bias_E)
    if rule.groups_kept < rule.num_groups:
        biased_NE = _keep_best_groups(biased_NE, rule.num_groups, rule.groups_kept)
    experts_NA = biased_NE.topk(rule.experts_per_token, dim=-1, sorted=False).indices
    weights_NA = scores_NE.gather(-1, experts_NA)
    weights_NA = weights_NA / (weights_NA.sum(-1, keepdim=True) + 1e-20)
    return experts_NA, weights_NA * rule.scale


def _scores(x_ND: Tensor, weight_ED: Tensor, bias_E: Tensor) -> tuple[Tensor, Tensor]:
    """What experts are weighed by and what they are chosen by, each ``(N, E)`` float32."""
    scores_NE = torch.sigmoid(F.linear(x_ND.float(), weight_ED.float()))
    return scores_NE, scores_NE + bias_E


def _keep_best_groups(biased_NE: Tensor, num_groups: int, groups_kept: int) -> Tensor:
    """Put every expert outside the best groups out of reach."""
    grouped_NGE = biased_NE.unflatten(-1, (num_groups, -1))
    best = min(2, grouped_NGE.shape[-1])
    group_scores_NG = grouped_NGE.topk(best, dim=-1).values.sum(-1)
    kept_NG = group_scores_NG.topk(groups_kept, dim=-1, sorted=False).indices
    dropped_NG = torch.ones_like(group_scores_NG, dtype=torch.bool).scatter(-1, kept_NG, False)
    return grouped_NGE.masked_fill(dropped_NG[..., None], float("-inf")).flatten(-2)


def weigh_experts(x_ND: Tensor, weight_ED: Tensor, bias_E: Tensor, rule: RoutingRule) -> Tensor:
    """The choice of :func:`choose_experts` as one weight an expert, 0 where it was not chosen: ``(N, E)`` float32.

    Every expert is compared with every other one, which for few of them takes a fraction of a sort's time.
    """
    scores_NE, biased_NE = _scores(x_ND, weight_ED, bias_E)
    if rule.groups_kept < rule.num_groups:
        biased_NGE = biased_NE.unflatten(-1, (rule.num_groups, -1))
        group_scores_NG = torch.where(_largest(biased_NGE, 2), biased_NGE, 0.0).sum(-1)
        kept_NG1 = _largest(group_scores_NG, rule.groups_kept)[..., None]
        biased_NE = torch.where(kept_NG1, biased_NGE, float("-inf")).flatten(-2)
    weights_NE = torch.where(_largest(biased_NE, rule.experts_per_token), scores_NE, 0.0)
    return weights_NE / (weights_NE.sum(-1, keepdim=True) + 1e-20) * rule.scale


def _largest(x: Tensor, count: int) -> Tensor:
    """Which are the ``count`` largest along the last dimension, ties going to the lowest index."""
    at_E = torch.arange(x.shape[-1], device=x.device)
    other, own = x[..., None, :], x[..., :, None]
    goes_first = (other > own) | ((other == own) & (at_E < at_E[:, None]))
    return goes_first.sum(-1) < count


def gate_and_weigh(gate_up_NX: Tensor, weights_NE: Tensor, *, width: int) -> Tensor:
    """The hidden values of all experts side by side, each expert's times the token's weight for it.

    Args:
        gate_up_NX: gates of the experts and of whatever stands behind them, then their ups.
        weights_NE: float32, one weight an expert.
        width: of an expert.

    Returns:
        ``(N, X / 2)``; what stands behind the experts is not weighed.
    """
    hidden_NW = gate(gate_up_NX)
    num_experts = weights_NE.shape[1]
    hidden_NW[:, : num_experts * width].view(-1, num_experts, width).mul_(weights_NE[..., None])
    return hidden_NW


_GROUP_ROWS = 32
"""In training, the rows of an expert are filled up to a multiple of this: oneDNN compiles a matmul for every new shape,
which costs several times the matmul itself, and grouped matmuls on a GPU want aligned groups."""


class Experts(nn.Module):
    """The SwiGLU experts of one layer, stacked (the "merged" checkpoint layout), in 8 bits where there are scales."""

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
        """Weighted sum of each token's experts, ``(N, D)``: tokens sorted by expert, a grouped matmul a projection."""
        num_tokens, per_token = experts_NA.shape
        multiple = _GROUP_ROWS if torch.is_grad_enabled() else 1
        slots = _sort_by_expert(experts_NA.flatten(), self.gate_proj.shape[0], multiple)
        x_PD = _to_slots(x_ND, slots, per_token)
        gate_EFD, up_EFD, down_EDF = self.wide_weights(x_ND.dtype)
        gate_PF = F.grouped_mm(x_PD, gate_EFD.transpose(1, 2), offs=slots.ends_E)
        up_PF = F.grouped_mm(x_PD, up_EFD.transpose(1, 2), offs=slots.ends_E)
        out_PD = F.grouped_mm(F.silu(gate_PF) * up_PF, down_EDF.transpose(1, 2), offs=slots.ends_E)
        slots_NAD = out_PD[slots.place_M].view(num_tokens, per_token, -1)
        return (slots_NAD * weights_NA[..., None].to(slots_NAD.dtype)).sum(1)

    def wide_weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Gates, ups and downs of all experts, widened if they are in 8 bits."""
        return (
            dequantize(self.gate_proj, self.gate_proj_scale, dtype),
            dequantize(self.up_proj, self.up_proj_scale, dtype),
            dequantize(self.down_proj, self.down_proj_scale, dtype),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Experts:
        if self.gate_proj_scale is not None:
            fn = keeping_dtypes(fn)
        return cast(Experts, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]


class _Slots(NamedTuple):
    """Slots (a token and one of its experts) in the order of their experts."""

    source_P: Tensor
    """The slot behind each sorted row; slot 0 where a row only fills up a group."""
    place_M: Tensor
    """The sorted row of each slot."""
    ends_E: Tensor
    """int32, one past the last sorted row of each expert; the last is P."""


class _ToSlots(torch.autograd.Function):
    """A row of the input for every slot; backwards, the sum over a token's slots, which are known.

    Indexing would add up gradients row by row, as if any two rows might meet; on a CPU that takes a tenth of a step.
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


def _to_slots(x_ND: Tensor, slots: _Slots, per_token: int) -> Tensor:
    token_P = slots.source_P // per_token
    if not torch.is_grad_enabled():
        return x_ND[token_P]
    return cast(Tensor, _ToSlots.apply(x_ND, token_P, slots.place_M))  # type: ignore[no-untyped-call]


def _sort_by_expert(expert_M: Tensor, num_experts: int, multiple: int) -> _Slots:
    """Order slots by expert, every expert's group of rows filled up to a multiple of ``multiple``.

    The rows that fill up read slot 0 and are read by no one, so they get no gradient and give none.
    """
    sorted_M, order_M = expert_M.sort(stable=True)
    all_experts = torch.arange(num_experts, device=expert_M.device)
    ends_E = torch.searchsorted(sorted_M, all_experts, right=True, out_int32=True)
    if multiple == 1:
        return _Slots(order_M, torch.empty_like(order_M).index_copy(0, order_M, _count_up(order_M)), ends_E)
    rows = -(-(expert_M.shape[0] + num_experts * (multiple - 1)) // multiple) * multiple
    starts_E = F.pad(ends_E[:-1], (1, 0))
    filled_E = -((starts_E - ends_E) // multiple) * multiple
    filled_ends_E = filled_E.cumsum(0, dtype=torch.int32)
    sorted_place_M = _count_up(order_M) + (filled_ends_E - filled_E - starts_E)[sorted_M]
    source_P = order_M.new_zeros(rows).index_copy(0, sorted_place_M, order_M)
    place_M = torch.empty_like(order_M).index_copy(0, order_M, sorted_place_M)
    return _Slots(source_P, place_M, torch.cat([filled_ends_E[:-1], filled_ends_E.new_full((1,), rows)]))


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
        self._gate_up, self._down = Packed(), Packed()
        self._gate_up_panels, self._down_panels = Packed(), Packed()
        self._weigh = Step("weigh")
        self._chosen = Step("experts")

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        # The short cuts read the experts' weights; where a module of another kind stands around them, such as an
        # adapter, it has to be called.
        bare = isinstance(self.experts, Experts)
        if bare and kernels.usable(x_ND) and not self.training:
            return self._by_kernels(x_ND).view_as(x_BTD)
        if bare and self._gate_up.on:
            gate_up, down = self._weights()
            if usable(x_ND, *gate_up, *down):
                return self._by_all_experts(x_ND, gate_up, down).view_as(x_BTD)
        experts_NA, weights_NA = self.gate(x_ND)
        out_BTD = self.experts(x_ND, experts_NA, weights_NA).view_as(x_BTD)
        return out_BTD if self.shared_experts is None else out_BTD + self.shared_experts(x_BTD)

    def _by_kernels(self, x_ND: Tensor) -> Tensor:
        from dmax.kernels.experts import Stack, run_experts  # here, because they import Triton
        from dmax.kernels.routing import route

        experts, shared = self.experts, self.shared_experts
        routing = route(x_ND, self.gate.weight, self.gate.expert_bias, **self.gate.rule._asdict())
        routed = Stack(
            experts.gate_proj,
            experts.up_proj,
            experts.down_proj,
            experts.gate_proj_scale,
            experts.up_proj_scale,
            experts.down_proj_scale,
        )
        return run_experts(x_ND, routing, routed, None if shared is None else _shared_stack(shared, experts))

    def _weights(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Gates and ups, and downs; the shared expert's behind the routed ones'."""
        experts, shared = self.experts, self.shared_experts
        if shared is None:
            return (experts.gate_proj, experts.up_proj), (experts.down_proj,)
        gate_up = (experts.gate_proj, experts.up_proj, shared.gate_proj.weight, shared.up_proj.weight)
        return gate_up, (experts.down_proj, shared.down_proj.weight)

    def _all_gate_up(self, dtype: torch.dtype) -> Tensor:
        """The gates of all experts, the shared one last, then their ups: ``(2 * W, D)``."""
        gate_EFD, up_EFD, _ = self.experts.wide_weights(dtype)
        gates, ups = [gate_EFD.flatten(0, 1)], [up_EFD.flatten(0, 1)]
        if self.shared_experts is not None:
            gates.append(wide_weight(self.shared_experts.gate_proj, dtype))
            ups.append(wide_weight(self.shared_experts.up_proj, dtype))
        return torch.cat(gates + ups)

    def _all_down(self, dtype: torch.dtype) -> Tensor:
        """The downs of all experts, the shared one last: ``(D, W)``."""
        *_, down_EDF = self.experts.wide_weights(dtype)
        downs = [down_EDF.transpose(0, 1).flatten(1)]
        if self.shared_experts is not None:
            downs.append(wide_weight(self.shared_experts.down_proj, dtype))
        return torch.cat(downs, 1)

    def in_panels(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Gates and ups, and downs, for the kernel of a CPU, the shared expert in parts of a routed one's width."""
        return self._gate_up_in_panels(dtype), self._down_in_panels(dtype)

    def _gate_up_in_panels(self, dtype: torch.dtype) -> Tensor:
        gates_WD, ups_WD = self._all_gate_up(dtype).chunk(2)
        return gate_up_in_panels(gates_WD, ups_WD, self.experts.gate_proj.shape[1])

    def _down_in_panels(self, dtype: torch.dtype) -> Tensor:
        return down_in_panels(self._all_down(dtype), self.experts.gate_proj.shape[1])

    def _by_all_experts(self, x_ND: Tensor, gate_up: tuple[Tensor, ...], down: tuple[Tensor, ...]) -> Tensor:
        """Every expert, the shared one included, side by side as one wide feed-forward; or by a kernel that needs only
        the chosen ones, where it is compiled.

        Experts that a token was not sent to have weight 0. That computes more than is used, but in two large matmuls
        instead of dozens of small ones, and without sorting. Many tokens would be quicker sorted, but they come this
        way too, so that what a row is given never depends on how many others are in the pass.
        """
        weights_NE = self.gate(x_ND, by_expert=True)
        if self._chosen.usable(x_ND, x_ND):
            gate_up_XN = self._gate_up_panels.copy(x_ND.dtype, gate_up, self._gate_up_in_panels)
            down_XN = self._down_panels.copy(x_ND.dtype, down, self._down_in_panels)
            return self._chosen(x_ND, weights_NE, gate_up_XN, down_XN)[0]
        gate_up_NX = self._gate_up.linear(x_ND, gate_up, self._all_gate_up)
        width = down[0].shape[-1]
        if self._weigh.usable(gate_up_NX, gate_up_NX):
            [hidden_NW] = self._weigh(gate_up_NX, weights_NE)
        else:
            hidden_NW = gate_and_weigh(gate_up_NX, weights_NE, width=width)
        return self._down.linear(hidden_NW, down, self._all_down)


def _shared_stack(shared: SwiGLU, experts: Experts) -> Stack:
    """The shared expert, which may be several times as wide as a routed one, as a stack of that width."""
    from dmax.kernels.experts import Stack

    width, hidden = experts.gate_proj.shape[1:]
    linears: tuple[nn.Linear | QuantizedLinear, ...] = (shared.gate_proj, shared.up_proj, shared.down_proj)
    gate_XFD, up_XFD = (linear.weight.view(-1, width, hidden) for linear in linears[:2])
    down_XDF = linears[2].weight.view(hidden, -1, width).transpose(0, 1)
    gate_scale, up_scale, down_scale = map(weight_scale, linears)
    if down_scale is None:
        return Stack(gate_XFD, up_XFD, down_XDF)
    return Stack(gate_XFD, up_XFD, down_XDF, gate_scale, up_scale, down_scale.expand(len(down_XDF), -1).contiguous())
