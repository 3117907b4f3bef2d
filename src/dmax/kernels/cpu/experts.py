"""The chosen experts of a layer and its shared one on a CPU: ``experts.h``.

Every token is computed for the experts it was sent to alone, and gets the same bits whatever the other tokens are.

Shape suffixes: N tokens, D hidden, E routed experts, X experts with the parts of the shared one, F expert width,
O outputs of a matrix, I its inputs, W words of 32 bits or all widths side by side, P numbers of a word.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from dmax.kernels.cpu.library import DTYPES, LANES, Function, fields

_PANEL = 64
"""Outputs of a matrix that lie side by side."""


def serves(hidden: int, width: int, shared_width: int, dtype: torch.dtype) -> bool:
    """Tell whether the kernel is written for experts of this shape, in this dtype."""
    return dtype in DTYPES and hidden % LANES == 0 and width % LANES == 0 and shared_width % width == 0


def in_panels(matrices_XOI: Tensor) -> Tensor:
    """Lay matrices out as the kernels read them: panel behind panel of some outputs, words by outputs."""
    per_word = 4 // matrices_XOI.element_size()
    panels = (panel.unflatten(-1, (-1, per_word)) for panel in matrices_XOI.split(_PANEL, 1))
    return torch.cat([panel_XOWP.permute(0, 2, 1, 3).flatten(1) for panel_XOWP in panels], 1)


def gate_up_in_panels(gates_WD: Tensor, ups_WD: Tensor, width: int) -> Tensor:
    """Lay out gates and ups of experts side by side, each ``width`` wide: :func:`in_panels` of ``(X, 2 F, D)``."""
    return in_panels(torch.cat([matrix.unflatten(0, (-1, width)) for matrix in (gates_WD, ups_WD)], 1))


def down_in_panels(down_DW: Tensor, width: int) -> Tensor:
    """Lay out downs of experts side by side, each ``width`` wide: :func:`in_panels` of ``(X, D, F)``."""
    return in_panels(down_DW.unflatten(1, (-1, width)).transpose(0, 1))


class ExpertsArguments(ctypes.Structure):
    """``experts::Arguments``."""

    _fields_ = fields(addresses="x weights gate_up down out", numbers="tokens hidden width routed all")


class CpuExperts:
    """The kernel.

    Args:
        path: of the compiled library.
        dtype: of tokens and weights.
    """

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._run = Function(path, "experts", dtype)

    def __call__(self, x_ND: Tensor, weights_NE: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """Run the layer, whose tensors are contiguous.

        Args:
            x_ND: tokens.
            weights_NE: float32, the weight of every routed expert, 0 where it was not chosen.
            gate_up: :func:`in_panels` of ``(X, 2 F, D)``.
            down: :func:`in_panels` of ``(X, D, F)``.

        Returns:
            ``(N, D)``.
        """
        assert x_ND.dtype == gate_up.dtype == down.dtype == self._run.dtype and weights_NE.dtype == torch.float32
        out_ND = torch.empty_like(x_ND)
        tokens, hidden = x_ND.shape
        self._run(
            ExpertsArguments(
                x=x_ND.data_ptr(),
                weights=weights_NE.data_ptr(),
                gate_up=gate_up.data_ptr(),
                down=down.data_ptr(),
                out=out_ND.data_ptr(),
                tokens=tokens,
                hidden=hidden,
                width=gate_up.shape[1] // (2 * hidden),
                routed=weights_NE.shape[1],
                all=gate_up.shape[0],
            )
        )
        return out_ND
