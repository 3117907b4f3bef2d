"""A pass of soft-parallel decoding, and the embeddings that the next one reads, on a CPU: ``rule.h``.

Both are the functions without options, :func:`dmax.decoding.soft_parallel.decide` and
:func:`dmax.decoding.mixing.soften`, as libraries of one function each (:data:`dmax.kernels.ahead.Library`): tensors in,
tensors out, all contiguous. No block and no position gets other bits because of what stands beside it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dmax.kernels.cpu.library import DTYPES, LANES, Function
from dmax.kernels.decision import Decision


def softens(hidden: int, dtype: torch.dtype) -> bool:
    """Whether embeddings of this width and dtype can be mixed."""
    return hidden % LANES == 0 and dtype in DTYPES


class CpuDecide:
    """``decide``.

    Args:
        path: of the compiled library.
        dtype: of the logits.
        mask_token_id: of the model.
    """

    def __init__(self, path: Path, dtype: torch.dtype, mask_token_id: int) -> None:
        self._run = Function(path, "decide", dtype)
        self._mask_token_id = mask_token_id

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """The fields of :class:`Decision`, of the arguments of ``decide`` in their order."""
        logits_BLV, tokens_BL, _, masked_BL, passes_B, fallback_B, *_ = tensors
        decision = Decision(
            tokens=torch.empty_like(tokens_BL),
            masked=torch.empty_like(masked_BL),
            passes=torch.empty_like(passes_B),
            confidence=torch.empty(tokens_BL.shape),
            candidates=torch.empty_like(tokens_BL),
            promoted=torch.empty_like(masked_BL),
            revised=torch.empty_like(masked_BL),
            mixed=torch.empty_like(masked_BL),
            converged=torch.empty_like(fallback_B),
        )
        addresses = [tensor.data_ptr() for tensor in (*tensors, *decision)]
        self._run((*addresses, *logits_BLV.shape, self._mask_token_id))
        return list(decision)


class CpuSoften:
    """``soften``, of embeddings that :func:`softens` speaks for.

    Args:
        path: of the compiled library.
        dtype: of the embeddings.
        mask_token_id: of the model.
    """

    def __init__(self, path: Path, dtype: torch.dtype, mask_token_id: int) -> None:
        self._run = Function(path, "soften", dtype)
        self._mask_token_id = mask_token_id

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """Embeddings ``(N, D)``, of the arguments of ``soften`` in their order."""
        tokens_N, table_VD = tensors[0], tensors[-1]
        shape = tokens_N.shape[0], table_VD.shape[1]
        out_ND = torch.empty(shape, dtype=table_VD.dtype)
        addresses = [tensor.data_ptr() for tensor in (*tensors, out_ND)]
        self._run((*addresses, *shape, self._mask_token_id))
        return [out_ND]
