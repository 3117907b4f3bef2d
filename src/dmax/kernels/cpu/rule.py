"""What follows the layers of a pass on a CPU: ``rule.h``. No block and no position gets other bits because of what
stands beside it.

Shape suffixes: B blocks, L block positions, N positions (B L), V vocabulary, D hidden.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dmax.kernels.cpu.library import DTYPES, LANES, Function, fields
from dmax.kernels.decision import Decision


def softens(hidden: int, dtype: torch.dtype) -> bool:
    """Tell whether embeddings of this width and dtype can be mixed."""
    return hidden % LANES == 0 and dtype in DTYPES


def reads(vocabulary: int, hidden: int, dtype: torch.dtype) -> bool:
    """Tell whether there is a kernel for a head of this size and dtype."""
    return vocabulary % LANES == 0 and softens(hidden, dtype)


class BlocksBefore(NamedTuple):
    """Blocks as a pass finds them, contiguous."""

    tokens: Tensor
    """``(B, L)`` int64."""
    active: Tensor
    """``(B, L)`` bool."""
    masked: Tensor
    """``(B, L)`` bool."""
    passes: Tensor
    """``(B,)`` int64."""
    fallback: Tensor
    """``(B,)`` bool, whether one mask becomes a token even if none is confident."""
    threshold: float
    """The confidence that a mask needs to be promoted."""
    acceptance_threshold: float
    """The confidence that every position needs for a block to be accepted while it still changes."""


class BlocksArguments(ctypes.Structure):
    """``rule::Blocks``."""

    _fields_ = [
        *fields(addresses="tokens active masked passes fallback", fractions="threshold acceptance_threshold"),
        *fields(addresses="tokens_after passes_after candidates masked_after promoted revised mixed converged"),
        *fields(addresses="confidence"),
    ]

    @classmethod
    def of(cls, before: BlocksBefore, after: Decision) -> BlocksArguments:
        """Tell where blocks are and where a pass over them is to be written."""
        return cls(
            *(tensor.data_ptr() for tensor in before[:5]),
            before.threshold,
            before.acceptance_threshold,
            *(
                tensor.data_ptr()
                for tensor in (
                    after.tokens, after.passes, after.candidates, after.masked, after.promoted, after.revised,
                    after.mixed, after.converged, after.confidence,
                )
            ),
        )  # fmt: skip


class PredictArguments(ctypes.Structure):
    """``rule::Predict``."""

    _fields_ = fields(addresses="logits tokens probabilities", numbers="positions vocabulary mask")


class DecideArguments(ctypes.Structure):
    """``rule::Decide``."""

    _fields_ = [
        *fields(addresses="logits"),
        ("blocks", BlocksArguments),
        *fields(numbers="num_blocks length vocabulary mask"),
    ]


class SoftenArguments(ctypes.Structure):
    """``rule::Soften``."""

    _fields_ = fields(addresses="tokens where candidates weights table out", numbers="positions hidden mask")


class ReadArguments(ctypes.Structure):
    """``rule::Read``."""

    _fields_ = [
        *fields(addresses="hidden_states head table"),
        ("blocks", BlocksArguments),
        *fields(addresses="embeds", numbers="num_blocks length vocabulary hidden mask"),
    ]


class CpuRule:
    """The functions.

    Args:
        path: of the compiled library.
        dtype: of hidden states, logits, head and embeddings.
        mask_token_id: of the model.
    """

    def __init__(self, path: Path, dtype: torch.dtype, mask_token_id: int) -> None:
        self.dtype = dtype
        self._mask_token_id = mask_token_id
        self._predict, self._decide, self._soften, self._read = (
            Function(path, name, dtype) for name in ("predict", "decide", "soften", "read")
        )

    def predict(self, logits_BLV: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most probable token of every position but for the mask, ``(B, L)`` int64, and its probability.

        Ties go to the lowest token.
        """
        logits_BLV = logits_BLV.contiguous()
        shape = logits_BLV.shape[:-1]
        tokens_BL, probabilities_BL = torch.empty(shape, dtype=torch.int64), torch.empty(shape)
        addresses = (tensor.data_ptr() for tensor in (logits_BLV, tokens_BL, probabilities_BL))
        self._predict(PredictArguments(*addresses, shape.numel(), logits_BLV.shape[-1], self._mask_token_id))
        return tokens_BL, probabilities_BL

    def decide(self, logits_BLV: Tensor, blocks: BlocksBefore) -> Decision:
        """Apply a pass of soft-parallel decoding without options."""
        logits_BLV = logits_BLV.contiguous()
        decision = _room(blocks.tokens)
        arguments = BlocksArguments.of(blocks, decision)
        self._decide(DecideArguments(logits_BLV.data_ptr(), arguments, *logits_BLV.shape, self._mask_token_id))
        return decision

    def soften(
        self, tokens_N: Tensor, where_N: Tensor, candidates_N: Tensor, weights_N: Tensor, table_VD: Tensor
    ) -> Tensor:
        """Compute :func:`dmax.decoding.mixing.soften` of embeddings that :func:`softens` speaks for: ``(N, D)``."""
        tensors = [tensor.contiguous() for tensor in (tokens_N, where_N, candidates_N, weights_N, table_VD)]
        shape = tokens_N.shape[0], table_VD.shape[1]
        out_ND = torch.empty(shape, dtype=table_VD.dtype)
        addresses = (tensor.data_ptr() for tensor in (*tensors, out_ND))
        self._soften(SoftenArguments(*addresses, *shape, self._mask_token_id))
        return out_ND

    def read(self, hidden_BLD: Tensor, head: Tensor, table_VD: Tensor, blocks: BlocksBefore) -> tuple[Decision, Tensor]:
        """Apply head and :meth:`decide`, and mix what the next pass reads, for models that :func:`reads` speaks for.

        Args:
            hidden_BLD: after the final norm, contiguous.
            head: :func:`dmax.kernels.cpu.experts.in_panels` of the head's ``(1, V, D)``.
            table_VD: input embeddings, contiguous.
            blocks: before the pass.

        Returns:
            The pass, and ``(B, L, D)``, what the next one reads.
        """
        tensors = (hidden_BLD, head, table_VD)
        assert all(tensor.dtype == self.dtype and tensor.is_contiguous() for tensor in tensors)
        decision, embeds_BLD = _room(blocks.tokens), torch.empty_like(hidden_BLD)
        self._read(
            ReadArguments(
                *(tensor.data_ptr() for tensor in tensors),
                BlocksArguments.of(blocks, decision),
                embeds_BLD.data_ptr(),
                *blocks.tokens.shape,
                *table_VD.shape,
                self._mask_token_id,
            )
        )
        return decision, embeds_BLD


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
