"""Shapes of the programs of :mod:`dmax.kernels.experts`, by the number of tokens and the dtype of the weights.

``benchmarks/tune_kernels.py`` times every candidate on a GPU and prints the best ones; what is here has been chosen by
reasoning and not yet by such a run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """One program: ``block_m`` tokens by ``block_w`` rows of weights, ``block_k`` channels a step."""

    block_m: int
    block_w: int
    block_k: int
    warps: int
    stages: int
    """Steps whose loads are under way at once."""
    tokens_first: bool = True
    """Whether the tokens are the left operand of the matmul, or the weights."""
    shares: int = 1
    """Most programs that divide the tokens of one strip of an expert among them."""

    def options(self) -> dict[str, int | bool]:
        """Return the launch options of a kernel."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_W": self.block_w,
            "BLOCK_K": self.block_k,
            "TOKENS_FIRST": self.tokens_first,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def tiles_for(num_tokens: int, num_experts: int, per_token: int, dtype: torch.dtype) -> tuple[Tile, Tile]:
    """Choose tiles for the gate and up projection, and for the down projection.

    Args:
        num_tokens: of the call.
        num_experts: routed experts.
        per_token: routed experts of a token.
        dtype: of the routed weights.
    """
    block_k = 128 if dtype.itemsize == 1 else 64
    return Tile(16, 32, block_k, 4, 4), Tile(16, 64, block_k, 4, 4)
