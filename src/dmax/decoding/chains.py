"""The chains of small operations in a decoder's step that can be compiled ahead of time.

Shape suffixes: N positions, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from dmax.decoding.mixing import soften
from dmax.decoding.prediction import most_probable
from dmax.kernels.ahead import LIKELY, Chain


def rule_chains(vocab_size: int, hidden_size: int, mask_token_id: int, dtype: torch.dtype) -> Iterator[Chain]:
    """What runs over a block's logits and embeddings, with the functions that run where nothing is compiled.

    Args:
        vocab_size: V.
        hidden_size: D.
        mask_token_id: of the model.
        dtype: of logits and embedding table.
    """
    logits_NV = torch.zeros(LIKELY, vocab_size, dtype=dtype)
    yield Chain("predict", partial(most_probable, mask_token_id=mask_token_id), (logits_NV,), (True,))
    token_N = torch.zeros(LIKELY, dtype=torch.int64)
    yield Chain(
        "soften", partial(soften, mask_token_id=mask_token_id),
        (token_N, torch.zeros(LIKELY, dtype=torch.bool), token_N.clone(), torch.zeros(LIKELY),
         torch.zeros(vocab_size, hidden_size, dtype=dtype)),
        (True, True, True, True, False),
    )  # fmt: skip
