"""The chains of small operations in a decoder's step that can be compiled ahead of time.

Shape suffixes: B blocks, L block positions, N positions, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from dmax.decoding.mixing import soften
from dmax.decoding.prediction import most_probable
from dmax.decoding.soft_parallel import decide
from dmax.kernels.ahead import LIKELY, Chain

_BLOCKS = 2
_BL, _B, _N = ("blocks", "length"), ("blocks",), ("positions",)


def rule_chains(vocab_size: int, hidden_size: int, mask_token_id: int, dtype: torch.dtype) -> Iterator[Chain]:
    """What runs over a block's logits and embeddings, with the functions that run where nothing is compiled.

    Args:
        vocab_size: V.
        hidden_size: D.
        mask_token_id: of the model.
        dtype: of logits and embedding table.
    """
    tokens_BL = torch.zeros(_BLOCKS, LIKELY, dtype=torch.int64)
    flags_BL = torch.zeros(_BLOCKS, LIKELY, dtype=torch.bool)
    yield Chain(
        "decide", partial(decide, mask_token_id=mask_token_id),
        (torch.zeros(_BLOCKS, LIKELY, vocab_size, dtype=dtype), tokens_BL, flags_BL, flags_BL.clone(),
         tokens_BL[:, 0].clone(), flags_BL[:, 0].clone(), torch.zeros(()), torch.zeros(())),
        (_BL, _BL, _BL, _BL, _B, _B, (), ()),
    )  # fmt: skip
    yield Chain(
        "predict", partial(most_probable, mask_token_id=mask_token_id),
        (torch.zeros(_BLOCKS, LIKELY, vocab_size, dtype=dtype),), (_BL,),
    )  # fmt: skip
    tokens_N = torch.zeros(LIKELY, dtype=torch.int64)
    yield Chain(
        "soften", partial(soften, mask_token_id=mask_token_id),
        (tokens_N, torch.zeros(LIKELY, dtype=torch.bool), tokens_N.clone(), torch.zeros(LIKELY),
         torch.zeros(vocab_size, hidden_size, dtype=dtype)),
        (_N, _N, _N, _N, ()),
    )  # fmt: skip
