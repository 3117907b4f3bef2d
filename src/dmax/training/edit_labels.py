"""What a draft is to become where positions can be deleted and inserted (algorithm.md#other-decoders; LLaDA2.2).

Shape suffixes: B rows, M noisy positions, S supervised positions of the batch (flattened).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmax.training.layout import Layout

IGNORED = -100
"""Label of a position that carries no loss."""


def edit_labels(draft: Sequence[int], target: Sequence[int], delete_id: int, insert_id: int) -> list[int]:
    """Label each token of a drafted block with what ``joint-threshold-indel`` is to write there.

    Draft and target are aligned by a longest common subsequence; where no other is longer, by their places. A token
    that is in both is kept. Between two of these, the draft's tokens become the target's one by one; those that are too
    many are deleted, and where some are missing, a mask is inserted before the next common token, one a pass. What
    comes behind the last common token falls off with insertions, or is filled up with masks after deletions: what is
    too much there has no label.

    Args:
        draft: tokens, of which some may be masks.
        target: as many.
        delete_id: the token that deletes its position.
        insert_id: the token that inserts a mask before its position.
    """
    common = _common(draft, target)
    if sum(a == b for a, b in zip(draft, target, strict=True)) >= len(common):
        return list(target)
    labels: list[int] = []
    at, aim = 0, 0
    for place, goal in common:
        count = min(place - at, goal - aim)
        labels += [*target[aim : aim + count], *[delete_id] * (place - at - count)]
        labels.append(insert_id if goal - aim > count else draft[place])
        at, aim = place + 1, goal + 1
    rest = list(target[aim : aim + len(draft) - at])
    return labels + rest + [IGNORED] * (len(draft) - at - len(rest))


def _common(draft: Sequence[int], target: Sequence[int]) -> list[tuple[int, int]]:
    """Return the places, in both, of a longest common subsequence."""
    longest = [[0] * (len(target) + 1) for _ in range(len(draft) + 1)]
    for i in reversed(range(len(draft))):
        for j in reversed(range(len(target))):
            longest[i][j] = (
                longest[i + 1][j + 1] + 1 if draft[i] == target[j] else max(longest[i + 1][j], longest[i][j + 1])
            )
    places, i, j = [], 0, 0
    while i < len(draft) and j < len(target):
        if draft[i] == target[j]:
            places.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return places


def batch_labels(rollout_ids: Tensor, layout: Layout, delete_id: int, insert_id: int) -> Tensor:
    """Label the supervised positions of a batch, block by block: ``(S,)`` int64.

    Args:
        rollout_ids: ``(B, M)`` int64, the drafts.
        layout: the batch, whose own tokens are the targets.
        delete_id: the token that deletes its position.
        insert_id: the token that inserts a mask before its position.
    """
    labels_BM = layout.noisy_ids.clone().cpu()
    drafts, targets, supervised = rollout_ids.cpu(), layout.noisy_ids.cpu(), layout.supervised.cpu()
    blocks = (layout.noisy_positions // layout.block_length).cpu()
    for row in range(len(drafts)):
        for block in (blocks[row][(drafts[row] != targets[row]) & supervised[row]]).unique():
            own = (blocks[row] == block) & supervised[row]
            found = edit_labels(drafts[row][own].tolist(), targets[row][own].tolist(), delete_id, insert_id)
            labels_BM[row][own] = torch.tensor(found)
    return labels_BM.to(rollout_ids.device)[layout.supervised]
