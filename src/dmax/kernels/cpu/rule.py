"""A pass of soft-parallel decoding, and the embeddings that the next one reads, on a CPU: ``rule.h``.

:class:`CpuDecide` and :class:`CpuSoften` are the functions without options, :func:`dmax.decoding.soft_parallel.decide`
and :func:`dmax.decoding.mixing.soften`, as libraries of one function each (:data:`dmax.kernels.ahead.Library`): tensors
in, tensors out, all contiguous. :class:`CpuRead` is both behind the head, in one call. No block and no position gets
other bits because of what stands beside it.

Shape suffixes: B blocks, L block positions, N positions (B L), V vocabulary, D hidden.
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
        logits_BLV, tokens_BL = tensors[:2]
        decision = _room(tokens_BL)
        addresses = [tensor.data_ptr() for tensor in (*tensors, *decision)]
        self._run((*addresses, *logits_BLV.shape, self._mask_token_id))
        return list(decision)


def _room(tokens_BL: Tensor) -> Decision:
    return Decision(
        tokens=torch.empty_like(tokens_BL),
        masked=torch.empty_like(tokens_BL, dtype=torch.bool),
        passes=torch.empty(tokens_BL.shape[0], dtype=torch.int64),
        confidence=torch.empty_like(tokens_BL, dtype=torch.float32),
        candidates=torch.empty_like(tokens_BL),
        promoted=torch.empty_like(tokens_BL, dtype=torch.bool),
        revised=torch.empty_like(tokens_BL, dtype=torch.bool),
        mixed=torch.empty_like(tokens_BL, dtype=torch.bool),
        converged=torch.empty(tokens_BL.shape[0], dtype=torch.bool),
    )


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


def reads(vocabulary: int, hidden: int, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for a head of this size and dtype."""
    return vocabulary % LANES == 0 and softens(hidden, dtype)


class CpuRead:
    """What follows the layers, for models that :func:`reads` speaks for.

    Args:
        path: of the compiled library.
        dtype: of hidden states, head and embeddings.
        mask_token_id: of the model.
    """

    def __init__(self, path: Path, dtype: torch.dtype, mask_token_id: int) -> None:
        self._run = Function(path, "read", dtype)
        self._mask_token_id = mask_token_id

    def __call__(
        self, hidden_BLD: Tensor, head: Tensor, table_VD: Tensor, blocks: tuple[Tensor, ...]
    ) -> tuple[Decision, Tensor]:
        """Decide a pass.

        Args:
            hidden_BLD: after the final norm, contiguous.
            head: :func:`dmax.kernels.cpu.experts.in_panels` of the head's ``(1, V, D)``.
            table_VD: input embeddings, contiguous.
            blocks: the arguments of ``decide`` behind the logits, in their order, contiguous.

        Returns:
            The pass, and ``(B, L, D)``, what the next one reads.
        """
        tensors = (hidden_BLD, head, table_VD)
        assert all(tensor.dtype == self._run.dtype and tensor.is_contiguous() for tensor in tensors)
        decision, embeds_BLD = _room(blocks[0]), torch.empty_like(hidden_BLD)
        addresses = [tensor.data_ptr() for tensor in (*tensors, *blocks, *decision, embeds_BLD)]
        sizes = (*blocks[0].shape, table_VD.shape[0], self._mask_token_id, table_VD.shape[1])
        self._run((*addresses, *sizes))
        return decision, embeds_BLD
