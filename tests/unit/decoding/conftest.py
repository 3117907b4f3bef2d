"""Hand-made logits and blocks for the decoder tests: a vocabulary of 8, the mask token is 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from dmax.decoding import BlockState

VOCABULARY = 8
MASK = 1


@pytest.fixture
def says() -> Callable[..., Tensor]:
    """``says((token, p), ...)`` -> logits ``(1, L, V)`` in which each position gives its token probability p.

    The rest of the probability is spread evenly over the other tokens, the mask included.
    """

    def build(*positions: tuple[int, float]) -> Tensor:
        probabilities = torch.empty(1, len(positions), VOCABULARY)
        for index, (token, p) in enumerate(positions):
            probabilities[0, index] = (1 - p) / (VOCABULARY - 1)
            probabilities[0, index, token] = p
        return probabilities.log()

    return build


@pytest.fixture
def block() -> Callable[..., BlockState]:
    """``block(tokens, prompt=0)`` -> one row whose first ``prompt`` tokens are the prompt's.

    Active positions are masks where the token is 1 and decoded where it is another.
    """

    def build(tokens: Sequence[int], prompt: int = 0) -> BlockState:
        tokens_BL = torch.tensor([list(tokens)])
        active_BL = torch.arange(len(tokens))[None] >= prompt
        return BlockState(
            tokens=tokens_BL,
            active=active_BL,
            masked=active_BL & (tokens_BL == MASK),
            passes=torch.zeros(1, dtype=torch.int64),
            mask_token_id=MASK,
        )

    return build


@pytest.fixture
def noise_for() -> Callable[[int, int, int], Tensor]:
    """``noise_for(L, position, token)`` -> noise that makes one position draw that token and leaves the others be."""

    def build(length: int, position: int, token: int) -> Tensor:
        noise = torch.zeros(1, length, VOCABULARY)
        noise[0, position] = -math.inf
        noise[0, position, token] = 0
        return noise

    return build
