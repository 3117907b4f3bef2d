"""Copies of weights in another layout, kept up to date.

``F.linear`` in float32 goes to a library that uses the vector units of some processors only in half their width, and
lays weights out anew in every call. With weights that oneDNN has laid out once, a block's worth of rows takes half to a
quarter of the time. That costs a second copy of the weights, so it is for weights that fit into a cache; large ones are
bound by reading them, which no layout helps.

Shape suffixes: I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MOST_WEIGHTS = 2**21
"""Of a weight that is packed."""
_QUANTIZED = (torch.int8, torch.float8_e4m3fn, torch.uint8)

# There is no public name for oneDNN's layouts; where a release of torch lacks these, nothing is packed.
_pack = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None) if torch.backends.mkldnn.is_available() else None
_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_has_bfloat16 = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)
_DTYPES = (torch.float32, torch.bfloat16) if _has_bfloat16() else (torch.float32,)  # AVX2 alone lays out no bfloat16


def packable(x: Tensor, *sources: Tensor) -> bool:
    """Tell whether ``x``, ``(..., I)`` on a CPU, may be multiplied with packed copies of ``sources`` in inference.

    Sources are in the dtype of ``x``, or quantised, which are widened for the copy. Weights made in inference mode
    count no changes, so that a copy could not follow them.
    """
    dtype = x.dtype
    if _pack is None or dtype not in _DTYPES:
        return False
    for source in sources:  # a loop, because this runs dozens of times in a pass of milliseconds
        if (
            (source.dtype != dtype and source.dtype not in _QUANTIZED)
            or source.numel() > MOST_WEIGHTS
            or source.is_inference()
        ):
            return False
    return True


class Packed:
    """A copy of parameters in another layout; made when first used, and anew when one of them has changed.

    A change is told by a parameter's place in memory and its version.
    """

    def __init__(self) -> None:
        self._made_of: list[tuple[int, int, torch.dtype, torch.dtype]] = []
        self._copy: Tensor | None = None

    def copy(self, dtype: torch.dtype, sources: tuple[Tensor, ...], make: Callable[[torch.dtype], Tensor]) -> Tensor:
        """Return the copy.

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
        self,
        x: Tensor,
        sources: tuple[Tensor, ...],
        make: Callable[[torch.dtype], Tensor],
        bias_O: Tensor | None = None,
    ) -> Tensor:
        """Return ``x @ W.T``, plus a bias, for ``x`` of shape ``(..., I)``; :func:`packable` must hold.

        Args:
            x: in the dtype of W.
            sources: the parameters W is made of.
            make: W, ``(O, I)``, in a dtype, of the sources' present values.
            bias_O: in the dtype of ``x``.
        """

        def pack(dtype: torch.dtype) -> Tensor:
            assert _pack is not None
            packed: Tensor = _pack(make(dtype).detach().contiguous(), None)
            return packed

        assert _linear is not None
        result: Tensor = _linear(x, self.copy(x.dtype, sources, pack), bias_O, "none", [], "")
        return result
