"""Whether a third-party decoder gives what :class:`Decoder` promises; where it does not, its own requests alone fail.

Shapes and dtypes are compared, which needs no look at the values: that would make the host wait for the device.

Shape suffixes: B rows, L block positions, k tokens of a mix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmax.decoding.base import BlockState, SoftMix, StepResult


class ContractError(TypeError):
    """A decoder gave what is no result of a pass: its author's mistake, not that of the caller."""

    @classmethod
    def of_tokens(cls, name: str, vocab_size: int) -> ContractError:
        """Return the error of a decoder whose tokens :func:`tokens_or_none` has found outside of the vocabulary."""
        return cls(f"decoder {name!r} gave token ids that are not below {vocab_size}, the vocabulary.")


@dataclass(frozen=True)
class _Wanted:
    """A tensor of a result."""

    place: str
    given: Any
    shape: tuple[int | None, ...]
    """None where the decoder may choose."""
    dtype: torch.dtype | None
    """None where the decoder may choose."""


def check_result(result: object, before: BlockState, name: str) -> None:
    """Check what a decoder made of its blocks.

    Args:
        result: what its ``step`` returned.
        before: the state that ``step`` was given.
        name: of the decoder.

    Raises:
        ContractError: the next pass could not go on from it; the message says what the decoder has to give instead.
    """
    _require_type("result", result, StepResult, name)
    assert isinstance(result, StepResult)
    _require_type("state", result.state, BlockState, name)
    if result.state.mix is not None:
        _require_type("state.mix", result.state.mix, SoftMix, name)
    if result.state.mask_token_id != before.mask_token_id:
        raise ContractError(
            f"decoder {name!r} gave state.mask_token_id {result.state.mask_token_id!r}; it must stay "
            f"{before.mask_token_id}."
        )
    for wanted in _wanted(result, before):
        _check_tensor(wanted, before.tokens.device, name)


def _wanted(result: StepResult, before: BlockState) -> Iterator[_Wanted]:
    rows, length = before.tokens.shape
    state, mix = result.state, result.state.mix
    yield _Wanted("state.tokens", state.tokens, (rows, length), torch.int64)
    yield _Wanted("state.active", state.active, (rows, length), torch.bool)
    yield _Wanted("state.masked", state.masked, (rows, length), torch.bool)
    yield _Wanted("state.passes", state.passes, (rows,), torch.int64)
    if mix is not None:
        # The weights' shape is the ids', whose last size is the decoder's choice, once for all passes.
        width = None if before.mix is None else before.mix.token_ids.shape[-1]
        yield _Wanted("state.mix.token_ids", mix.token_ids, (rows, length, width), torch.int64)
        yield _Wanted("state.mix.weights", mix.weights, tuple(mix.token_ids.shape), torch.float32)
        yield _Wanted("state.mix.where", mix.where, (rows, length), torch.bool)
    if state.memory is not None:
        known = before.memory
        width, dtype = (None, None) if known is None else (known.shape[-1], known.dtype)
        yield _Wanted("state.memory", state.memory, (rows, width), dtype)
    yield _Wanted("confidence", result.confidence, (rows, length), torch.float32)
    yield _Wanted("promoted", result.promoted, (rows, length), torch.bool)
    yield _Wanted("revised", result.revised, (rows, length), torch.bool)
    yield _Wanted("converged", result.converged, (rows,), torch.bool)


def _require_type(place: str, given: object, kind: type, name: str) -> None:
    if not isinstance(given, kind):
        raise ContractError(
            f"decoder {name!r} gave a {type(given).__name__} as its {place}; it must be a {kind.__name__}."
        )


def _check_tensor(wanted: _Wanted, device: torch.device, name: str) -> None:
    _require_type(wanted.place, wanted.given, Tensor, name)
    shape, dtype = tuple(wanted.given.shape), wanted.given.dtype
    fits = len(shape) == len(wanted.shape) and all(
        size in (None, given) for size, given in zip(wanted.shape, shape, strict=True)
    )
    if fits and dtype == (wanted.dtype or dtype) and wanted.given.device == device:
        return
    sizes = ", ".join("any" if size is None else str(size) for size in wanted.shape)
    raise ContractError(
        f"decoder {name!r} gave {wanted.place} of shape {shape}, {dtype} on {wanted.given.device}; it must be of shape "
        f"({sizes}), {wanted.dtype or dtype} on {device}."
    )


def tokens_or_none(state: BlockState, vocab_size: int) -> Tensor:
    """Return the tokens of checked blocks, ``(B, L)`` int64; -1 along a row whose embeddings could not be read.

    Args:
        state: after a pass, of shapes that :func:`check_result` has let through.
        vocab_size: of the model; ids of tokens and of mixes must lie below it.
    """
    wrong_BL = _outside(state.tokens, vocab_size)
    if state.mix is not None:
        wrong_BL = wrong_BL | _outside(state.mix.token_ids, vocab_size).any(-1)
    return state.tokens.masked_fill(wrong_BL.any(-1, keepdim=True), -1)


def _outside(token_ids: Tensor, vocab_size: int) -> Tensor:
    return (token_ids < 0) | (token_ids >= vocab_size)
