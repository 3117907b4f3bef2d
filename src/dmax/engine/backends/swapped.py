"""A model whose modules are partly a backend's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import nn

from dmax.models.attention import Attention
from dmax.models.layers import Linear, RMSNorm, RotaryTable, SwiGLU
from dmax.models.moe import Experts, Router, SparseMLP
from dmax.models.quantized import QuantizedEmbedding, QuantizedLinear
from dmax.models.transformer import Backbone, BlockDiffusionLM, DecoderLayer

_Module = TypeVar("_Module", bound=nn.Module)

OWN_KINDS = {
    *(BlockDiffusionLM, Backbone, DecoderLayer, Attention, SparseMLP, Router, Experts, SwiGLU, RMSNorm, RotaryTable),
    *(Linear, QuantizedLinear, nn.Embedding, QuantizedEmbedding, nn.ModuleList),
}
"""The modules of the package's own model. What stands in the place of one, such as an adapter, has to be called."""


class SwappedModel:
    """Puts a backend's modules in the place of a model's, in a copy that shares weights, buffers and hooks.

    The model itself stays as it is, for training and for all others who hold it. A module of a kind that is not the
    package's own, or whose ``forward`` has been replaced, is called as it is, with all that is inside it.

    Args:
        model: in eval mode.
        kinds: a kind of module -> the backend's, a subclass without a constructor of its own.
        prepare: called with every module that was put in another's place.
    """

    def __init__(
        self,
        model: BlockDiffusionLM,
        kinds: Mapping[type[nn.Module], type[nn.Module]],
        prepare: Callable[[nn.Module], object] = lambda _: None,
    ) -> None:
        self._kinds, self._prepare = kinds, prepare
        self._copied: list[tuple[nn.Module, dict[str, nn.Module | None]]] = []
        swapped = self._over(model)
        assert isinstance(swapped, BlockDiffusionLM)
        self.model = swapped

    def is_current(self) -> bool:
        """Tell whether every module of the model is still where it was."""
        return all(not is_replaced(module) and module._modules == children for module, children in self._copied)

    def _over(self, module: nn.Module) -> nn.Module:
        if type(module) not in OWN_KINDS or is_replaced(module):
            return module
        self._copied.append((module, dict(module._modules)))
        kind = self._kinds.get(type(module), type(module))
        copy = copy_as(module, kind)
        copy._modules = {name: None if child is None else self._over(child) for name, child in module._modules.items()}
        if kind is not type(module):
            self._prepare(copy)
        return copy


def copy_as(module: nn.Module, kind: type[_Module]) -> _Module:
    """Make a module of another kind that shares weights, buffers, hooks and children with this one."""
    copy = object.__new__(kind)
    copy.__dict__.update(vars(module))
    return copy


def is_replaced(module: nn.Module) -> bool:
    """Tell whether another ``forward`` has been put on a module."""
    return "forward" in vars(module)


def is_plain(module: nn.Module) -> bool:
    """Tell whether nothing is missed if a module of the package's own is not called."""
    return not (module._forward_hooks or module._forward_pre_hooks or is_replaced(module))
