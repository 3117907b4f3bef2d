"""Log-probabilities of tokens that are final.

Shape suffixes: L positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dmax.engine.outputs import TokenLogprob


def token_logprobs(logits_LV: Tensor, token_ids: Sequence[int], top: int, mask_token_id: int) -> list[TokenLogprob]:
    """Return how probable tokens were, and which ones were likeliest.

    Args:
        logits_LV: ``(L, V)`` in any float dtype.
        token_ids: L of them, the tokens at these positions.
        top: likeliest tokens to name beside each.
        mask_token_id: takes its share of the softmax, and is never named.
    """
    scores_LV = torch.log_softmax(logits_LV.float(), -1)
    own_L = scores_LV.gather(-1, torch.tensor(token_ids, device=scores_LV.device)[:, None])[:, 0]
    scores_LV[:, mask_token_id] = -math.inf
    best = scores_LV.topk(min(top, scores_LV.shape[-1] - 1), -1)
    rows = zip(token_ids, own_L.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
    return [TokenLogprob(token_id, own, list(zip(ids, values, strict=True))) for token_id, own, ids, values in rows]
