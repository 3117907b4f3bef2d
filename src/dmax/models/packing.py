"""Linear maps by oneDNN from weights it has laid out for itself, for inference with small weights on a CPU.

``F.linear`` in float32 goes to a library that uses the vector units of some processors only in half their width, and
lays weights out anew in every call. With weights laid out once, a block's worth of rows takes half to a quarter of the
time. That costs a second copy of the weights, so it is for weights that fit into a cache; large ones are bound by
reading them, which no layout helps.

Shape suffixes: I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MOST_WEIGHTS = 2**21
"""Of a weight that is packed."""
_DTYPES = (torch.float32, torch.bfloat16)
_EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)

_pack = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None) if torch.backends.mkldnn.is_available() else None
_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def usable(x: Tensor, *sources: Tensor) -> bool:
    """Whether ``x``, ``(..., I)``, may be multiplied with packed copies of ``sources`` here and now.

    Sources are in the dtype of ``x``, or in 8 bits, which are widened for the copy.
    """
    if _pack is None or x.device.type != "cpu" or torch.is_grad_enabled():
        return False
    dtype = x.dtype
    if dtype not in _DTYPES or torch.compiler.is_compiling():
        return False
    for source in sources:  # a loop, because this runs dozens of times in a pass of milliseconds
        if (
            (source.dtype != dtype and source.dtype not in _EIGHT_BITS)
            or source.numel() > MOST_WEIGHTS
            or source.is_inference()
        ):
            return False
    return True


class Packed:
    """A copy of parameters in another layout; made when first used, and anew when one of them has changed.

    A change is told by a parameter's place in memory and its version. Where a weight changes unseen, as in training on
    copies that are cast or gathered for every pass, packing has to be off (:func:`turn_off`).
    """

    def __init__(self) -> None:
        self.on = True
        self._made_of: list[tuple[int, int, torch.dtype, torch.dtype]] = []
        self._copy: Tensor | None = None

    def copy(self, dtype: torch.dtype, sources: tuple[Tensor, ...], make: Callable[[torch.dtype], Tensor]) -> Tensor:
        """The copy.

        Args:
            dtype: that it is wanted in.
            sources: the parameters it is made of.
            make: the copy in a dtype, of the sources' present values.
        """
        made_of = [(source.data_ptr(), source._version, source.dtype, dtype) for source in sources]
        if made_of != self._made_of:
            self._copy, self._made_of = make(dtype), made_of
        assert self._copy is not None
        return self._copy

    def linear(
        self, x: Tensor, sources: tuple[Tensor, ...], make: Callable[[torch.dtype], Tensor] | None = None
    ) -> Tensor:
        """``x @ W.T`` for ``x`` of shape ``(..., I)``; :func:`usable` must hold.

        Args:
            x: in the dtype of W.
            sources: the parameters W is made of.
            make: W, ``(O, I)``, in a dtype, of the sources' present values; the only source itself if not given.
        """

        def pack(dtype: torch.dtype) -> Tensor:
            assert _pack is not None
            weight_OI = sources[0] if make is None else make(dtype)
            packed: Tensor = _pack(weight_OI.detach().contiguous(), None)
            return packed

        assert _linear is not None
        result: Tensor = _linear(x, self.copy(x.dtype, sources, pack), None, "none", [], "")
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        return Packed()

    def __reduce__(self) -> tuple[type[Packed], tuple[()]]:
        return Packed, ()


def turn_off(model: nn.Module) -> None:
    """Let no module of a model use packed copies any more."""
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Packed):
                value.on = False
