"""Products with weights in 8 or 4 bits on a CPU, experts over them, and routing: ``quantized.h``, ``routing.h``.

What is multiplied is rounded to 8 bits, every row by a scale of its own; weights are read as a checkpoint stores them.
A row gets the same bits whatever the others are.

Of PyTorch's own kernels (2.13), ``_weight_int4pack_mm_for_cpu`` is as fast for one row and takes twice as long for 32,
``_weight_int8pack_mm`` 1.5 to 3 times as long for any number; they take one expert's matrix a call, and the former a
layout that would be a second copy of all weights.

Shape suffixes: N tokens, D hidden, E routed experts, O outputs, I inputs.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dmax.kernels.cpu.experts import in_panels
from dmax.kernels.cpu.layers import PassArguments
from dmax.kernels.cpu.library import DTYPES, LANES, Function, fields

_CHUNK = 64
"""Bytes of a row that the kernels read together."""


def reads(dtype: torch.dtype, row_bytes: int, outputs: int) -> bool:
    """Tell whether the kernels are written for weights of such rows: in int8 or int4, of whole chunks."""
    return dtype in (torch.int8, torch.uint8) and row_bytes % _CHUNK == 0 and outputs % LANES == 0


def serves(weight: Tensor, scale: Tensor | None) -> bool:
    """Tell whether the kernels read a weight ``(..., O, I)`` with such scales."""
    laid_out = weight.is_contiguous() and scale is not None and scale.is_contiguous()
    return laid_out and reads(weight.dtype, weight.shape[-1], weight.shape[-2])


class Matrix(NamedTuple):
    """A weight ``(O, I)``, or a stack of them, and its scales; :func:`serves` must hold."""

    weight: Tensor
    scale: Tensor

    @property
    def inputs(self) -> int:
        """Numbers of a row."""
        return self.weight.shape[-1] * (2 if self.weight.dtype == torch.uint8 else 1)

    def at(self) -> MatrixAt:
        """Tell a kernel where it is."""
        group = self.inputs // self.scale.shape[-2] if self.weight.dtype == torch.uint8 else 0
        return MatrixAt(self.weight.data_ptr(), self.scale.data_ptr(), self.weight.shape[-2], self.inputs, group)


class Expert(NamedTuple):
    """A feed-forward, or a stack of them."""

    gate: Matrix
    up: Matrix
    down: Matrix

    def at(self) -> ExpertAt:
        """Tell a kernel where it is."""
        return ExpertAt(self.gate.at(), self.up.at(), self.down.at())


class MatrixAt(ctypes.Structure):
    """``quantized::Matrix``."""

    _fields_ = fields(addresses="weight scale", numbers="outputs inputs group")


class ExpertAt(ctypes.Structure):
    """``quantized::Expert``."""

    _fields_ = [("gate", MatrixAt), ("up", MatrixAt), ("down", MatrixAt)]


class LinearArguments(ctypes.Structure):
    """``quantized::Linear``."""

    _fields_ = [*fields(addresses="x"), ("matrix", MatrixAt), *fields(addresses="out", numbers="count")]


class ExpertsArguments(ctypes.Structure):
    """``quantized::Experts``."""

    _fields_ = [
        *fields(addresses="x weights out"),
        *(("routed", ExpertAt), ("shared", ExpertAt)),
        *fields(numbers="tokens num_routed"),
    ]


class RouteArguments(ctypes.Structure):
    """``routing::Route``."""

    _fields_ = [
        *fields(addresses="x router bias weights"),
        ("rule", PassArguments.Rule),
        *fields(numbers="tokens hidden block_length experts_of_a_block"),
    ]


class CpuQuantized:
    """The kernels.

    Args:
        path: of the compiled library.
        dtype: of activations.
    """

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        assert dtype in DTYPES
        self.dtype = dtype
        self._linear = Function(path, "quantized_linear", dtype)
        self._experts = Function(path, "quantized_experts", dtype)
        self._route = Function(path, "route", dtype)

    def linear(self, x: Tensor, matrix: Matrix) -> Tensor:
        """Return ``x @ W.T``, ``(..., O)``, for ``x`` of shape ``(..., I)``."""
        assert x.dtype == self.dtype
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], matrix.weight.shape[0])
        self._linear(LinearArguments(x.data_ptr(), matrix.at(), out.data_ptr(), x.numel() // matrix.inputs))
        return out

    def experts(self, x_ND: Tensor, weights_NE: Tensor, routed: Expert, shared: Expert | None = None) -> Tensor:
        """Compute the sum of the experts of each token.

        Args:
            x_ND: contiguous.
            weights_NE: float32, contiguous: the weight of every routed expert, 0 where it was not chosen.
            routed: stacks.
            shared: the one of all tokens, if there is one.

        Returns:
            ``(N, D)``.
        """
        assert x_ND.dtype == self.dtype and x_ND.is_contiguous() and weights_NE.is_contiguous()
        out_ND = torch.empty_like(x_ND)
        nothing = ExpertAt()
        self._experts(
            ExpertsArguments(
                x_ND.data_ptr(), weights_NE.data_ptr(), out_ND.data_ptr(), routed.at(),
                nothing if shared is None else shared.at(), *weights_NE.shape,
            )
        )  # fmt: skip
        return out_ND

    def route(
        self,
        x_ND: Tensor,
        router: Tensor,
        bias_E: Tensor,
        rule: tuple[int, int, int, float, bool, bool],
        limit: tuple[int, int] | None,
    ) -> Tensor:
        """Weigh the experts of each token: :func:`~dmax.engine.backends.cpu_modules.weigh_experts`, ``(N, E)``.

        Args:
            x_ND: contiguous.
            router: :func:`in_panels` of its weight in float32; E is a multiple of the lanes.
            bias_E: float32.
            rule, limit: of the model.
        """
        assert x_ND.dtype == self.dtype and x_ND.is_contiguous()
        tokens, hidden = x_ND.shape
        weights_NE = x_ND.new_empty(tokens, bias_E.shape[0], dtype=torch.float32)
        of_a_block, block_length = limit or (0, 0)
        self._route(
            RouteArguments(
                x_ND.data_ptr(), router.data_ptr(), bias_E.data_ptr(), weights_NE.data_ptr(),
                PassArguments.Rule(bias_E.shape[0], *rule), tokens, hidden, block_length, of_a_block,
            )
        )  # fmt: skip
        return weights_NE


def router_panels(weight_ED: Tensor) -> Tensor:
    """Lay out a router's weight for :meth:`CpuQuantized.route`."""
    return in_panels(weight_ED.float()[None])
