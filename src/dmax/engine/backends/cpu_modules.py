"""Modules for inference on a CPU, over packed copies of small weights.

Shape suffixes: N tokens (rows and positions flattened), D hidden, E experts, F expert width, S width of the shared
expert, W = E * F + S, X gates and ups of all experts, I inputs, O outputs.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmax.engine.backends import packed
from dmax.engine.backends.packed import Packed, packable
from dmax.engine.backends.swapped import copy_as
from dmax.kernels.cpu.experts import CpuExperts, down_in_panels, gate_up_in_panels
from dmax.kernels.cpu.library import LANES
from dmax.kernels.cpu.quantized import CpuQuantized, Expert, Matrix, router_panels, serves
from dmax.models.layers import Linear, SwiGLU
from dmax.models.moe import BlockLimit, Experts, Router, RoutingRule, SparseMLP, keep_best_of_block, score_experts
from dmax.models.quantized import QuantizedLinear, quantize, scales_of, weight_scale, wide_weight


class Compiled(NamedTuple):
    """The kernels that modules call, where they are compiled."""

    experts: CpuExperts | None = None
    quantized: CpuQuantized | None = None


class PackedLinear(Linear):
    """A linear map by oneDNN, where its weight is small."""

    _packed: Packed

    def prepare(self, kernels: Compiled) -> None:
        """Begin without a copy."""
        self._packed = Packed()

    def forward(self, x: Tensor) -> Tensor:
        if packable(x, self.weight) and (self.bias is None or self.bias.dtype == x.dtype):
            return self._packed.linear(x, (self.weight,), lambda _: self.weight, self.bias)
        return super().forward(x)


class PackedQuantizedLinear(QuantizedLinear):
    """A linear map over quantised weights: widened once where they are small, multiplied as they are where large.

    What is multiplied with large weights is rounded to 8 bits too, because widening the weights in every pass would
    take thirty times as long. Without the kernel that is done for int8 alone.
    """

    _packed: Packed
    _kernel: CpuQuantized | None

    def prepare(self, kernels: Compiled) -> None:
        """Begin without a copy."""
        self._packed, self._kernel = Packed(), kernels.quantized

    def forward(self, x: Tensor) -> Tensor:
        if packable(x, self.weight):
            return self._packed.linear(x, (self.weight,), partial(wide_weight, self), self.bias)
        if self._kernel is not None and x.dtype == self._kernel.dtype and serves(self.weight, self.weight_scale):
            out = self._kernel.linear(x, Matrix(self.weight, self.weight_scale))
        elif self.weight.numel() > packed.MOST_WEIGHTS and self.weight.dtype == torch.int8:
            out = int8_linear(x, self.weight, self.weight_scale)
        else:
            return super().forward(x)
        return out if self.bias is None else out + self.bias


def int8_linear(x: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    """Return ``x @ W.T`` in whole numbers, every row of ``x`` rounded to 8 bits by a scale of its own.

    Args:
        x: ``(..., I)`` in any float dtype.
        weight_OI: int8.
        scale_O: float32.

    Returns:
        ``(..., O)`` in the dtype of ``x``; a row's does not depend on the others.
    """
    x_NI = x.reshape(-1, x.shape[-1])
    row_scale_N = scales_of(x_NI, torch.int8)
    sums_NO = torch._int_mm(quantize(x_NI, row_scale_N, torch.int8), weight_OI.t())
    return (sums_NO * row_scale_N[:, None] * scale_O).to(x.dtype).view(*x.shape[:-1], -1)


class PackedSwiGLU(SwiGLU):
    """A feed-forward with gate and up projection in one product."""

    _gate_up: Packed

    def prepare(self, kernels: Compiled) -> None:
        """Begin without a copy."""
        self._gate_up = Packed()

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.gate_proj.weight, self.up_proj.weight)
        if packable(x, *weights):
            return self.down_proj(gate(self._gate_up.linear(x, weights, self._both)))
        return super().forward(x)

    def _both(self, dtype: torch.dtype) -> Tensor:
        """Return the gates, then the ups."""
        return torch.cat([wide_weight(self.gate_proj, dtype), wide_weight(self.up_proj, dtype)])


def gate(gate_up: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` of a tensor that holds both, the gates first: ``(..., 2 * W) -> (..., W)``."""
    gates, ups = gate_up.chunk(2, -1)
    return F.silu(gates) * ups


class EveryExpertRouter(Router):
    """Sends every token to all experts, to those that were not chosen with weight 0."""

    _panels: Packed
    kernel: CpuQuantized | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights_NE = self._weigh(x)
        return torch.arange(self.num_experts).expand_as(weights_NE), weights_NE

    def _weigh(self, x: Tensor) -> Tensor:
        rows = x.numel() // (x.shape[-2] * x.shape[-1])
        if self.kernel is None or x.dtype != self.kernel.dtype or (self.limit is not None and rows > 1):
            return weigh_experts(x, self.weight, self.expert_bias, self.rule, self.limit)
        panels = self._panels.copy(x.dtype, (self.weight,), lambda _: router_panels(self.weight.detach()))
        return self.kernel.route(x.flatten(0, -2).contiguous(), panels, self.expert_bias, self.rule, self.limit)


def weigh_experts(
    x: Tensor, weight_ED: Tensor, bias_E: Tensor, rule: RoutingRule, limit: BlockLimit | None = None
) -> Tensor:
    """Return :func:`~dmax.models.moe.choose_experts` as one weight an expert, 0 where not chosen: ``(N, E)`` float32.

    Every expert is compared with every other one, which for few of them takes a fraction of a sort's time.
    """
    scores_NE, biased_NE = score_experts(x.flatten(0, -2), weight_ED, bias_E, rule)
    if limit is not None:
        biased_NE = keep_best_of_block(biased_NE, x.shape[-2], limit)
    elif rule.groups_kept < rule.num_groups:
        biased_NGE = biased_NE.unflatten(-1, (rule.num_groups, -1))
        group_scores_NG = torch.where(_largest(biased_NGE, 2), biased_NGE, 0.0).sum(-1)
        kept_NG1 = _largest(group_scores_NG, rule.groups_kept)[..., None]
        biased_NE = torch.where(kept_NG1, biased_NGE, float("-inf")).flatten(-2)
    weights_NE = torch.where(_largest(biased_NE, rule.experts_per_token), scores_NE, 0.0)
    if rule.normalize:
        weights_NE = weights_NE / (weights_NE.sum(-1, keepdim=True) + 1e-20)
    return weights_NE * rule.scale


def _largest(x: Tensor, count: int) -> Tensor:
    """Tell which are the ``count`` largest along the last dimension, ties going to the lowest index."""
    at_E = torch.arange(x.shape[-1], device=x.device)
    other, own = x[..., None, :], x[..., :, None]
    goes_first = (other > own) | ((other == own) & (at_E < at_E[:, None]))
    return goes_first.sum(-1) < count


def gate_and_weigh(gate_up_NX: Tensor, weights_NE: Tensor, *, width: int) -> Tensor:
    """Return the hidden values of all experts side by side, each expert's times the token's weight for it.

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


class PackedSparseMLP(SparseMLP):
    """Every expert, the shared one included, side by side as one wide feed-forward; or a kernel, if it is compiled.

    Experts that a token was not sent to have weight 0. That computes more than is used, but in two large matmuls
    instead of dozens of small ones, and without sorting; the kernel needs only the chosen ones. Many tokens would be
    quicker sorted, but they come this way too, so that what a row is given never depends on how many others are in the
    pass. Large experts that are quantised have a kernel of their own, and so has the router before them.
    """

    _gate_up: Packed
    _down: Packed
    _kernel: CpuExperts | None
    _quantized: CpuQuantized | None

    def prepare(self, kernels: Compiled) -> None:
        """Begin without copies.

        Args:
            kernels: those that there are for this model.
        """
        self._gate_up, self._down = Packed(), Packed()
        self._kernel, self._quantized = kernels
        # The short cuts read the experts' weights; where a module of another kind stands around them, such as an
        # adapter, it has to be called.
        self._bare = isinstance(self.experts, Experts) and isinstance(self.shared_experts, SwiGLU | None)
        if isinstance(self.gate, Router):
            self.every = copy_as(self.gate, EveryExpertRouter)
            self.every._panels = Packed()

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self._bare:
            gate_up, down = self._weights()
            if packable(x_BTD, *gate_up, *down):
                return self._by_all_experts(x_BTD, gate_up, down).view_as(x_BTD)
            routed = self._routed(x_BTD)
            if routed is not None:
                return self._by_quantized(x_BTD, routed)
        return super().forward(x_BTD)

    def _routed(self, x_BTD: Tensor) -> Expert | None:
        """Return the stacks of quantised experts, where the kernel reads them."""
        kernel, router, experts = self._quantized, self.gate, self.experts
        if kernel is None or x_BTD.dtype != kernel.dtype or router.num_experts % LANES:
            return None
        if router.weight.is_inference() or not isinstance(router, Router):
            return None
        return _expert(
            (experts.gate_proj, experts.gate_proj_scale),
            (experts.up_proj, experts.up_proj_scale),
            (experts.down_proj, experts.down_proj_scale),
        )

    def _by_quantized(self, x_BTD: Tensor, routed: Expert) -> Tensor:
        assert self._quantized is not None
        shared, own = self.shared_experts, None
        if shared is not None:
            linears = (shared.gate_proj, shared.up_proj, shared.down_proj)
            if all(isinstance(linear, QuantizedLinear) and linear.bias is None for linear in linears):
                own = _expert(*((linear.weight, weight_scale(linear)) for linear in linears))
        self.every.kernel = self._quantized
        _, weights_NE = self.every(x_BTD)
        out_BTD = self._quantized.experts(x_BTD.flatten(0, 1).contiguous(), weights_NE, routed, own).view_as(x_BTD)
        return out_BTD if shared is None or own is not None else out_BTD + shared(x_BTD)

    def _by_all_experts(self, x_BTD: Tensor, gate_up: tuple[Tensor, ...], down: tuple[Tensor, ...]) -> Tensor:
        x_ND, (_, weights_NE) = x_BTD.flatten(0, 1), self.every(x_BTD)
        width = self.experts.gate_proj.shape[1]
        if self._kernel is not None and x_ND.dtype == self._kernel.dtype:
            gate_up_XN = self._gate_up.copy(x_ND.dtype, gate_up, lambda dtype: gate_up_panels(self, dtype))
            down_XN = self._down.copy(x_ND.dtype, down, lambda dtype: down_panels(self, dtype))
            return self._kernel(x_ND.contiguous(), weights_NE.contiguous(), gate_up_XN, down_XN)
        gate_up_NX = self._gate_up.linear(x_ND, gate_up, lambda dtype: all_gate_up(self, dtype))
        hidden_NW = gate_and_weigh(gate_up_NX, weights_NE, width=width)
        return self._down.linear(hidden_NW, down, lambda dtype: all_down(self, dtype))

    def _weights(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return gates and ups, and downs; the shared expert's behind the routed ones'."""
        experts, shared = self.experts, self.shared_experts
        if shared is None:
            return (experts.gate_proj, experts.up_proj), (experts.down_proj,)
        gate_up = (experts.gate_proj, experts.up_proj, shared.gate_proj.weight, shared.up_proj.weight)
        return gate_up, (experts.down_proj, shared.down_proj.weight)


def _expert(*matrices: tuple[Tensor, Tensor | None]) -> Expert | None:
    """Put gate, up and down together; None where the kernel does not read one of them."""
    if not all(serves(weight, scale) for weight, scale in matrices):
        return None
    gate, up, down = (Matrix(weight, scale) for weight, scale in matrices if scale is not None)
    return Expert(gate, up, down)


def all_gate_up(mlp: SparseMLP, dtype: torch.dtype) -> Tensor:
    """Return the gates of all experts, the shared one last, then their ups: ``(2 * W, D)``."""
    gate_EFD, up_EFD, _ = mlp.experts.wide_weights(dtype)
    gates, ups = [gate_EFD.flatten(0, 1)], [up_EFD.flatten(0, 1)]
    if mlp.shared_experts is not None:
        gates.append(wide_weight(mlp.shared_experts.gate_proj, dtype))
        ups.append(wide_weight(mlp.shared_experts.up_proj, dtype))
    return torch.cat(gates + ups)


def all_down(mlp: SparseMLP, dtype: torch.dtype) -> Tensor:
    """Return the downs of all experts, the shared one last: ``(D, W)``."""
    *_, down_EDF = mlp.experts.wide_weights(dtype)
    downs = [down_EDF.transpose(0, 1).flatten(1)]
    if mlp.shared_experts is not None:
        downs.append(wide_weight(mlp.shared_experts.down_proj, dtype))
    return torch.cat(downs, 1)


def gate_up_panels(mlp: SparseMLP, dtype: torch.dtype) -> Tensor:
    """Return gates and ups for the kernel, the shared expert in parts of a routed one's width."""
    gates_WD, ups_WD = all_gate_up(mlp, dtype).chunk(2)
    return gate_up_in_panels(gates_WD, ups_WD, mlp.experts.gate_proj.shape[1])


def down_panels(mlp: SparseMLP, dtype: torch.dtype) -> Tensor:
    """Return downs for the kernel, the shared expert in parts of a routed one's width."""
    return down_in_panels(all_down(mlp, dtype), mlp.experts.gate_proj.shape[1])


CPU_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    Linear: PackedLinear,
    QuantizedLinear: PackedQuantizedLinear,
    SwiGLU: PackedSwiGLU,
    SparseMLP: PackedSparseMLP,
}
"""A kind of module -> what stands in its place on a CPU."""
