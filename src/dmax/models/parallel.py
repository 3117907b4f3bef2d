"""Tensor parallelism: each process of a group holds a share of every layer, and all of them run the same forwards.

The model stays single-device code. A plan for ``parallelize_module`` puts a process's share of the heads, of the
feed-forwards' width and of the vocabulary where the whole was, as plain tensors, which is what the GPU kernels read.
What a share of heads or width computes is a part of a sum; an all-reduce behind each attention and each feed-forward
completes it (Megatron-LM, arXiv 1909.08053). Embeddings, norms and the router are whole everywhere. An all-reduce
leaves the same bits with all processes, so all of them take the same decisions, and nothing else has to be exchanged.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from dmax.models.attention import Attention
from dmax.models.config import ModelConfig
from dmax.models.layers import SwiGLU
from dmax.models.moe import Experts, SparseMLP
from dmax.models.quantized import QuantizedLinear, scale_name, weight_scale
from dmax.models.transformer import BlockDiffusionLM


def tensor_parallel(model: BlockDiffusionLM, mesh: DeviceMesh) -> BlockDiffusionLM:
    """Leave a process its share of a model, in place, for inference.

    Args:
        model: whole, and the same in all processes. It may be on the CPU although the mesh is of GPUs: then only the
            share has to fit on one, by ``.to(device)`` afterwards.
        mesh: of one dimension; each of its processes calls this.

    Returns:
        ``model``, whose ``config`` now counts the heads of the share: what a process's key/value cache holds. The head
        stays whole where the vocabulary cannot be divided evenly.

    Raises:
        ValueError: the heads or a width cannot be divided evenly.
    """
    processes = mesh.size()
    _check_divides(model.config, processes)
    plan: dict[str, ParallelStyle] = {
        "model.layers.*.attention": _ShareOfHeads(),
        "model.layers.*.mlp": _ShareOfWidth(),
    }
    if model.config.vocab_size % processes == 0:
        plan["lm_head"] = _ShareOfVocabulary()
    parallelize_module(model.requires_grad_(False), mesh, plan)
    model.config = replace(
        model.config,
        num_attention_heads=model.config.num_attention_heads // processes,
        num_key_value_heads=model.config.num_key_value_heads // processes,
    )
    return model


def _check_divides(config: ModelConfig, processes: int) -> None:
    names = ["num_attention_heads", "num_key_value_heads", "intermediate_size"]
    if config.num_experts is not None:
        names.append("moe_intermediate_size")
    for name in names:
        if getattr(config, name) % processes:
            raise ValueError(
                f"{name} is {getattr(config, name)}, which {processes} processes cannot share evenly; start a number "
                "of processes that divides it."
            )


class _PartOfASum(ParallelStyle):
    """A module whose output is a part of a sum, which the group completes."""

    @abstractmethod
    def _cut(self, module: Any, processes: int, rank: int) -> None:
        """Leave the module the share of one process."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        self._cut(module, device_mesh.size(), device_mesh.get_local_rank())
        group = device_mesh.get_group()

        def complete(_module: nn.Module, _inputs: Any, part: Tensor) -> Tensor:
            dist.all_reduce(part, group=group)
            return part

        module.register_forward_hook(complete)
        return module


class _ShareOfHeads(_PartOfASum):
    """Some key/value heads of an attention, and the query heads that read them."""

    def _cut(self, module: Attention, processes: int, rank: int) -> None:
        kinds = [module.num_heads, module.num_kv_heads, module.num_kv_heads]

        def own_heads(rows: Tensor) -> Tensor:
            heads = rows.unflatten(0, (-1, module.head_dim)).split(kinds)
            return torch.cat([kind.chunk(processes)[rank] for kind in heads]).flatten(0, 1)

        _keep_outputs(module.query_key_value, own_heads)
        _keep_inputs(module.dense, processes, rank)
        if module.dense.bias is not None and rank:  # the sum is to have it once
            _keep(module.dense, "bias", torch.zeros_like(module.dense.bias))
        module.num_heads //= processes
        module.num_kv_heads //= processes


class _ShareOfWidth(_PartOfASum):
    """Some inner channels of a feed-forward: of a dense one, or of every expert, routed or shared."""

    def _cut(self, module: SwiGLU | SparseMLP, processes: int, rank: int) -> None:
        if isinstance(module, SwiGLU):
            self._cut_dense(module, processes, rank)
            return
        self._cut_experts(module.experts, processes, rank)
        if module.shared_experts is not None:
            self._cut_dense(module.shared_experts, processes, rank)

    def _cut_dense(self, dense: SwiGLU, processes: int, rank: int) -> None:
        for linear in (dense.gate_proj, dense.up_proj):
            _keep_outputs(linear, lambda rows: rows.chunk(processes)[rank])
        _keep_inputs(dense.down_proj, processes, rank)

    def _cut_experts(self, experts: Experts, processes: int, rank: int) -> None:
        for name, dimension in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 2)):
            _keep(experts, name, getattr(experts, name).chunk(processes, dimension)[rank])
            scale = getattr(experts, scale_name(name))
            if scale is not None and dimension < scale.ndim:  # in 8 bits, an output channel has one
                _keep(experts, scale_name(name), scale.chunk(processes, dimension)[rank])


class _ShareOfVocabulary(ParallelStyle):
    """The logits of some tokens; every process gets those of all."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Linear)
        processes, rank, group = device_mesh.size(), device_mesh.get_local_rank(), device_mesh.get_group()
        _keep_outputs(module, lambda rows: rows.chunk(processes)[rank])

        def gather(_module: nn.Module, _inputs: Any, own: Tensor) -> Tensor:
            shares = [torch.empty_like(own) for _ in range(processes)]
            dist.all_gather(shares, own, group=group)
            return torch.cat(shares, -1)

        module.register_forward_hook(gather)
        return module


def _keep_outputs(linear: nn.Linear | QuantizedLinear, own: Callable[[Tensor], Tensor]) -> None:
    """Leave a linear layer some of its output channels."""
    _keep(linear, "weight", own(linear.weight))
    if linear.bias is not None:
        _keep(linear, "bias", own(linear.bias))
    if isinstance(linear, QuantizedLinear):
        _keep(linear, "weight_scale", own(linear.weight_scale))


def _keep_inputs(linear: nn.Linear | QuantizedLinear, processes: int, rank: int) -> None:
    """Leave a linear layer some of its input channels, and the scales of their groups where they have any."""
    _keep(linear, "weight", linear.weight.chunk(processes, 1)[rank])
    scale = weight_scale(linear)
    if scale is not None and scale.ndim > 1:
        _keep(linear, "weight_scale", scale.chunk(processes, 1)[rank])


def _keep(module: nn.Module, name: str, share: Tensor) -> None:
    """Put a copy of a share where the whole was, which then can be freed."""
    copy = share.detach().clone(memory_format=torch.contiguous_format)
    setattr(module, name, nn.Parameter(copy, requires_grad=False) if name in module._parameters else copy)
