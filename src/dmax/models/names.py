"""The one place where stored tensor names meet the model's own, both ways (algorithm.md#the-model).

A stored tensor is one of the model's under another name, or a part of one, along its first dimension: a family may
store queries, keys and values apart, and the model keeps each projection of a layer's experts as one stack
``…mlp.experts.gate_proj`` of shape (experts, out, in), of which a file holds either the whole ("merged" layout) or one
tensor an expert, ``…mlp.experts.{e}.gate_proj.weight`` ("separate", as published).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import NamedTuple

from torch import Tensor

from dmax.models.config import ModelConfig
from dmax.models.families import get_family

_EXPERT = re.compile(
    r"(?P<experts>.*\.mlp\.experts)\.(?P<index>\d+)\.(?P<projection>gate|up|down)_proj\.weight(?P<scale>_scale)?"
)
_STACK = re.compile(r".*\.mlp\.experts\.(gate|up|down)_proj(_scale)?")

Shape = tuple[int, ...]


class Place(NamedTuple):
    """What a stored tensor is of the model's."""

    name: str
    part: int | slice | None = None
    """Along the first dimension: an expert of a stack, or some rows; None for the whole."""

    def of(self, tensor: Tensor) -> Tensor:
        """Return the part of the model's tensor, as a view."""
        return tensor if self.part is None else tensor[self.part]


class TensorNames:
    """The names of a model's tensors in the files of its family.

    Args:
        config: of the whole model.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._spellings = list(get_family(config.family).spellings())
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self._rows = (slice(0, queries), slice(queries, queries + keys), slice(queries + keys, queries + 2 * keys))

    def place(self, stored: str) -> Place:
        """Return what a stored tensor is; one that has no place keeps its name."""
        match = _EXPERT.fullmatch(stored)
        if match is not None:
            return Place(f"{match['experts']}.{match['projection']}_proj{match['scale'] or ''}", int(match["index"]))
        module, _, leaf = stored.rpartition(".")
        for native, names in self._spellings:
            for index, name in enumerate(names):
                before = _before(module, name)
                if before is not None:
                    return Place(f"{before}{native}.{leaf}", self._rows[index] if len(names) > 1 else None)
        return Place(stored)

    def stored(self, native: str, shape: Shape, merged: Container[str] = ()) -> Iterator[tuple[str, Shape]]:
        """Yield names and shapes of the stored tensors that hold one of the model's.

        Args:
            native: the model's name.
            shape: of the whole.
            merged: the stacks of experts that are stored as one tensor; the others are stored expert by expert.
        """
        if is_stack(native) and native not in merged:
            yield from ((expert_name(native, index), shape[1:]) for index in range(shape[0]))
            return
        module, _, leaf = native.rpartition(".")
        for own, names in self._spellings:
            before = _before(module, own)
            if before is None:
                continue
            for name, rows in zip(names, self._rows, strict=False):
                yield f"{before}{name}.{leaf}", (rows.stop - rows.start, *shape[1:]) if len(names) > 1 else shape
            return
        yield native, shape


def _before(module: str, name: str) -> str | None:
    """Return what stands before a module's name in its path; None where it is another module's path."""
    before = module.removesuffix(name)
    return before if before != module and (not before or before.endswith(".")) else None


def expert_name(stack: str, index: int) -> str:
    """Return the separate layout's name for one expert of a stack."""
    experts, _, projection = stack.rpartition(".")
    scale = "_scale" if projection.endswith("_scale") else ""
    return f"{experts}.{index}.{projection.removesuffix(scale)}.weight{scale}"


def is_stack(name: str) -> bool:
    """Tell whether a name is that of a stack of experts."""
    return _STACK.fullmatch(name) is not None


def is_expert(name: str) -> bool:
    """Tell whether a stored name is that of a single expert's tensor."""
    return _EXPERT.fullmatch(name) is not None
