"""The model as objectives see it: noisy tokens and a layout in, float32 logits at supervised positions out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from dmax.decoding.base import SoftMix
from dmax.decoding.mixing import mix_embeddings
from dmax.models.transformer import BlockDiffusionLM
from dmax.training.distributed import gather_weights, scatter_weights, shard
from dmax.training.layout import Layout
from dmax.training.recipe import ParallelSection

if TYPE_CHECKING:  # slow to import, and few recipes need it
    from dmax.training.adapters import Adapters


class _SupervisedLogits(nn.Module):
    """Logits of the supervised part of ``[noisy | clean]``: one module around all parameters."""

    def __init__(self, model: BlockDiffusionLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor, sources: Tensor, mix: SoftMix | None = None
    ) -> Tensor:
        embeds_BTD = self.model.embed(ids)
        if mix is not None:
            noisy = mix.where.shape[1]
            soft_BMD = mix_embeddings(mix, self.model.model.word_embeddings.weight, self.model.config.mask_token_id)
            where_BM1 = mix.where[..., None]
            noisy_BMD = torch.where(where_BM1, soft_BMD.to(embeds_BTD.dtype), embeds_BTD[:, :noisy])
            embeds_BTD = torch.cat([noisy_BMD, embeds_BTD[:, noisy:]], 1)
        hidden_BTD = self.model(embeds_BTD, positions, mask)
        return self.model.head(hidden_BTD.flatten(0, 1)[sources]).float()


class Predictor:
    """Runs the model in ``dtype`` while its parameters, and the gradients they receive, stay in their own.

    A whole model's compute copy is cast anew in every call; a sharded one's is gathered and cast layer by layer; a
    model with adapters is in the dtype already. Routers keep their float32 biases.

    Args:
        model: what is trained.
        dtype: of the computation.
        compile_model: compile the layers.
        recompute: keep only the inputs of layers for the backward pass, and compute the rest again.
        adapters: the adapters in the model, where they alone are trained.
    """

    def __init__(
        self,
        model: BlockDiffusionLM,
        dtype: torch.dtype,
        compile_model: bool = False,
        recompute: bool = False,
        adapters: Adapters | None = None,
    ) -> None:
        self.model = model
        self.dtype = dtype
        self.device = model.device
        self.sharded = False
        self._adapters = adapters
        self._module = _SupervisedLogits(model)
        for layer in model.model.layers:
            if recompute:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
            if compile_model:  # layer by layer: layers of one kind share their code, and it compiles in seconds
                layer.compile(dynamic=True)

    def shard(self, settings: ParallelSection, device: torch.device, whole: BlockDiffusionLM | None) -> None:
        """Cut the model, which is on the meta device, over the processes and fill it with the weights of ``whole``.

        Args:
            settings: how it is cut.
            device: of the computation.
            whole: a model with weights in the first process, None in the others.
        """
        shard(self._module, list(self.model.model.layers), settings, self.dtype, device)
        self.model.to_empty(device="cpu" if settings.cpu_offload else device)
        scatter_weights(self.model, whole)
        self.device = device
        self.sharded = True

    def whole_model(self) -> BlockDiffusionLM | None:
        """Return the model in one piece, in the first process; to be called in all of them."""
        return gather_weights(self.model) if self.sharded else self.model

    def finished_model(self) -> BlockDiffusionLM | None:
        """Return :meth:`whole_model` with its adapters merged; nothing can be predicted afterwards."""
        return self.whole_model() if self._adapters is None else self._adapters.merge()

    def __call__(self, noisy_ids: Tensor, layout: Layout, mix: SoftMix | None = None) -> Tensor:
        """Return ``(S, V)`` float32 logits; see :class:`dmax.training.objectives.base.Predict`."""
        ids = torch.cat([noisy_ids, layout.clean_ids], 1)
        sources = layout.sources(self.model.config.shift_logits)
        inputs = (ids, layout.positions(), layout.mask(), sources, mix)
        if self.sharded or self._adapters is not None:
            return self._module(*inputs)
        parameters = {name: p.to(self.dtype) for name, p in self._module.named_parameters()}
        return functional_call(self._module, parameters, inputs)
